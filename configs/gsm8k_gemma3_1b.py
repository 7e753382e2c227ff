"""Gemma 3 1B on GSM8K.

    python experiments/train.py --config=configs/gsm8k_gemma3_1b.py --workdir=runs/gsm8k
    python experiments/plan.py --config=configs/gsm8k_gemma3_1b.py --shape --topology=v5e:2x4

The first command wants the folder of the model and GSM8K's files (configs/gsm8k.py), the second
neither: 5.7 of 15.75 GB a chip for the updates, 6.3 GB packed, and 6.3 GB for sampling.
It has not been run.
"""

from ml_collections import ConfigDict

from configs import gsm8k
from configs.gates import DEFAULT


def get_config(gate: str = DEFAULT) -> ConfigDict:
    """The experiment; every value may be overridden on the command line."""
    config = gsm8k.get_config(gate)
    config.model.folder = "gemma-3-1b-it"

    # What the folder says; for plans without it.
    config.policy.vocab_size = 262_144
    config.policy.embed_dim = 1_152
    config.policy.num_layers = 26
    config.policy.num_heads = 4
    config.policy.num_kv_heads = 1
    config.policy.head_dim = 256
    config.policy.mlp_dim = 6_912
    config.policy.activation = "gelu_tanh"
    config.policy.layer_pattern = ("sliding",) * 5 + ("full",)
    config.policy.sliding_window = 512
    config.policy.local_rope_theta = 10_000.0
    config.policy.norm_offset = True
    config.policy.post_norms = True
    config.policy.query_pre_attn_scalar = 256.0
    config.policy.scale_embeddings = True
    return config
