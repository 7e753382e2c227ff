"""Qwen3-1.7B, its thinking off, on GSM8K.

    python experiments/train.py --config=configs/gsm8k_qwen3_1_7b.py --workdir=runs/gsm8k
    python experiments/plan.py --config=configs/gsm8k_qwen3_1_7b.py --shape --topology=v5e:2x4

The first command wants the folder of the model and GSM8K's files (configs/gsm8k.py), the second
neither: 8.7 of 15.75 GB a chip for the updates, packed or not, and 12.3 GB for sampling.
It has not been run.
"""

from ml_collections import ConfigDict

from configs import gsm8k, qwen3_1_7b
from configs.gates import DEFAULT


def get_config(gate: str = DEFAULT) -> ConfigDict:
    """The experiment; every value may be overridden on the command line."""
    config = gsm8k.get_config(gate)
    config.model.folder = "Qwen3-1.7B"
    config.model.thinking = "off"
    config.policy = qwen3_1_7b.get_config(gate).policy
    # The cache of 64 rows would take 7 GB, and leave no room.
    config.rollout.max_rows = 32
    return config
