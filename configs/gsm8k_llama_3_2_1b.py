"""Llama 3.2 1B on GSM8K.

    python experiments/train.py --config=configs/gsm8k_llama_3_2_1b.py --workdir=runs/gsm8k
    python experiments/plan.py --config=configs/gsm8k_llama_3_2_1b.py --shape --topology=v5e:2x4

The first command wants the folder of the model and GSM8K's files (configs/gsm8k.py), the second
neither: 6.7 of 15.75 GB a chip for the updates, packed or not, and 7.8 GB for sampling. It was
compiled, not run.
"""

from ml_collections import ConfigDict

from configs import gsm8k
from configs.gates import DEFAULT


def get_config(gate: str = DEFAULT) -> ConfigDict:
    """The experiment; every value may be overridden on the command line."""
    config = gsm8k.get_config(gate)
    config.model.folder = "Llama-3.2-1B-Instruct"

    # What the folder says; for plans without it.
    config.policy.vocab_size = 128_256
    config.policy.embed_dim = 2_048
    config.policy.num_layers = 16
    config.policy.num_heads = 32
    config.policy.num_kv_heads = 8
    config.policy.head_dim = 64
    config.policy.mlp_dim = 8_192
    config.policy.rope_theta = 500_000.0
    config.policy.rope_type = "llama3"
    config.policy.rope_scaling = (
        ("factor", 32.0),
        ("high_freq_factor", 4.0),
        ("low_freq_factor", 1.0),
        ("original_max_position_embeddings", 8_192),
    )
    config.policy.norm_epsilon = 1e-5
    config.policy.qk_norm = False
    return config
