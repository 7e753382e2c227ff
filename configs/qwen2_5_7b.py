"""The shape of Qwen2.5-7B, trained with FiberPO-Domain on answers of up to 3,072 tokens.

    python experiments/plan.py --config=configs/qwen2_5_7b.py --topology=v5e:16x16
    bash experiments/tpu/train.sh configs/qwen2_5_7b.py first-run

Plan: 13.7 of 15.75 GB a chip for the updates and 15.2 GB for sampling on `v5e:4x4` with
`--config.rollout.prompts=16`; 3.1 and 10.2 GB on `v5e:16x16` as it stands (docs/pods.md). Heads,
MLP and logits are split over 4 chips; on N chips `rollout.prompts` must be a multiple of N.
Parameters start at random where `config.model.folder` names no published model. Its folder says the
shape too; this one is for plans without a checkpoint.
"""

from ml_collections import ConfigDict

from configs import pods
from configs.gates import DEFAULT


def get_config(gate: str = DEFAULT) -> ConfigDict:
    """The experiment; every value may be overridden on the command line."""
    config = pods.get_config(gate)

    # Qwen2.5-7B.
    config.policy.vocab_size = 152_064
    config.policy.embed_dim = 3_584
    config.policy.num_layers = 28
    config.policy.num_heads = 28
    config.policy.num_kv_heads = 4
    config.policy.head_dim = 128
    config.policy.mlp_dim = 18_944
    config.policy.qk_norm = False
    config.policy.qkv_bias = True
    config.policy.tie_embeddings = False

    # 256 prompts × 16 answers an iteration, 1,024 rows a batch.
    config.rollout.prompts = 256
    config.mesh.tensor = 4
    return config
