"""The shape of Qwen2.5-0.5B, trained with FiberPO-Domain on answers of up to 3,072 tokens.

    python experiments/plan.py --config=configs/qwen2_5_0_5b.py --topology=v5e:4x4
    bash experiments/tpu/train.sh configs/qwen2_5_0_5b.py first-run

Plan: 5.8 of 15.75 GB a chip for the updates and 12.1 GB for sampling on `v5e:2x2` with
`--config.rollout.prompts=16`; 3.5 and 12.1 GB on `v5e:4x4` as it stands (docs/pods.md). On N chips
`rollout.prompts` must be a multiple of 4 N.
Parameters start at random; `config.tasks.vocabulary` names a tokenizer.json.
"""

from ml_collections import ConfigDict

from configs import quickstart


def get_config(gate: str = "fiberpo_domain") -> ConfigDict:
    """The experiment; every value may be overridden on the command line."""
    config = quickstart.get_config(gate)
    config.iterations = 500

    # Qwen2.5-0.5B.
    config.policy.vocab_size = 151_936
    config.policy.embed_dim = 896
    config.policy.num_layers = 24
    config.policy.num_heads = 14
    config.policy.num_kv_heads = 2
    config.policy.head_dim = 64
    config.policy.mlp_dim = 4_864
    config.policy.rope_theta = 1_000_000.0
    config.policy.norm_epsilon = 1e-6
    config.policy.qk_norm = False
    config.policy.qkv_bias = True
    config.policy.tie_embeddings = True
    config.policy.compute_dtype = "bfloat16"
    config.policy.remat = "full"

    config.tasks.vocabulary = "ascii"
    config.window.prompt = 1_024
    config.window.completion = 3_072
    config.warm_start.steps = 0

    # 64 prompts × 16 answers an iteration, 256 rows a batch.
    config.rollout.prompts = 64
    config.rollout.samples = 16
    config.training.minibatches = 4
    config.training.epochs = 1
    config.training.micro_batches = 16
    config.training.packing = True
    config.training.chunk = 512
    config.training.mismatch = "truncate"

    config.optimizer.learning_rate = 1e-6
    config.optimizer.warmup_steps = 20
    config.optimizer.moment_dtype = "float32"

    config.evaluation.prompts = 128
    config.evaluation.batch = 256
    config.checkpoint.every = 10
    config.mesh = ConfigDict({"data": 1, "fsdp": -1, "tensor": 1})
    return config
