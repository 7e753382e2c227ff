"""The shape of Qwen2.5-0.5B, trained with FiberPO-Domain on answers of up to 3,072 tokens.

    python experiments/plan.py --config=configs/qwen2_5_0_5b.py --topology=v5e:4x4
    bash experiments/tpu/train.sh configs/qwen2_5_0_5b.py first-run

Plan: 4.4 of 15.75 GB a chip for the updates and 6.9 GB for sampling on `v5e:2x2` with
`--config.rollout.prompts=16`; 2.5 and 5.9 GB on `v5e:4x4` as it stands (docs/pods.md). On N chips
`rollout.prompts` must be a multiple of 4 N. Parameters are split into 16 parts at most, 56 of their
896 columns each, and chips beyond hold replicas.
Parameters start at random where `config.model.folder` names no published model. Its folder says the
shape too; this one is for plans without a checkpoint.
"""

from ml_collections import ConfigDict

from configs import pods
from configs.gates import DEFAULT


def get_config(gate: str = DEFAULT) -> ConfigDict:
    """The experiment; every value may be overridden on the command line."""
    config = pods.get_config(gate)

    # Qwen2.5-0.5B.
    config.policy.vocab_size = 151_936
    config.policy.embed_dim = 896
    config.policy.num_layers = 24
    config.policy.num_heads = 14
    config.policy.num_kv_heads = 2
    config.policy.head_dim = 64
    config.policy.mlp_dim = 4_864
    config.policy.qk_norm = False
    config.policy.qkv_bias = True
    config.policy.tie_embeddings = True
    return config
