"""The shape of Qwen3-1.7B, trained with FiberPO-Domain on answers of up to 3,072 tokens.

    python experiments/plan.py --config=configs/qwen3_1_7b.py --topology=v5e:4x4
    bash experiments/tpu/train.sh configs/qwen3_1_7b.py first-run

Plan: 11.2 of 15.75 GB a chip for the updates and 11.1 GB for sampling on `v5e:2x2` with
`--config.rollout.prompts=4` (docs/pods.md). Heads, MLP and logits are split over 4 chips, for the
key-value cache; on N chips `rollout.prompts` must be a multiple of N.
Parameters start at random where `config.model.folder` names no published model. Its folder says the
shape too; this one is for plans without a checkpoint.
"""

from ml_collections import ConfigDict

from configs import pods
from configs.gates import DEFAULT


def get_config(gate: str = DEFAULT) -> ConfigDict:
    """The experiment; every value may be overridden on the command line."""
    config = pods.get_config(gate)

    # Qwen3-1.7B.
    config.policy.vocab_size = 151_936
    config.policy.embed_dim = 2_048
    config.policy.num_layers = 28
    config.policy.num_heads = 16
    config.policy.num_kv_heads = 8
    config.policy.head_dim = 128
    config.policy.mlp_dim = 6_144
    config.policy.qk_norm = True
    config.policy.qkv_bias = False
    config.policy.tie_embeddings = True

    # The eight key-value heads keep 14 GB for 32 rows: a chip takes two of them.
    config.mesh.tensor = 4
    config.rollout.max_rows = 32
    return config
