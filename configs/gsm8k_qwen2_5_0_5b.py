"""Qwen2.5-0.5B-Instruct on GSM8K.

    python experiments/train.py --config=configs/gsm8k_qwen2_5_0_5b.py --workdir=runs/gsm8k
    python experiments/plan.py --config=configs/gsm8k_qwen2_5_0_5b.py --shape --topology=v5e:2x2

The first command wants the folder of the model and GSM8K's files (configs/gsm8k.py), the second
neither. Plan: 5.57 of 15.75 GB a chip for the updates and 3.61 GB for sampling. It was compiled,
not run.
"""

from ml_collections import ConfigDict

from configs import gsm8k, qwen2_5_0_5b
from configs.gates import DEFAULT


def get_config(gate: str = DEFAULT) -> ConfigDict:
    """The experiment; every value may be overridden on the command line."""
    config = gsm8k.get_config(gate)
    config.model.folder = "Qwen2.5-0.5B-Instruct"
    config.policy = qwen2_5_0_5b.get_config(gate).policy
    return config
