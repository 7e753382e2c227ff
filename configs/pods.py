"""What the configs of large models share: long answers, sharded bfloat16 compute, small steps.

Not a run by itself: `config.model.folder` names a published model, which says its shape, or
`configs/qwen2_5_*.py` and `configs/qwen3_*.py` add one.
"""

from ml_collections import ConfigDict

from configs import quickstart
from configs.gates import DEFAULT


def get_config(gate: str = DEFAULT) -> ConfigDict:
    """The experiment but for the policy's shape."""
    config = quickstart.get_config(gate)
    config.iterations = 500

    config.policy.rope_theta = 1_000_000.0
    config.policy.norm_epsilon = 1e-6
    config.policy.compute_dtype = "bfloat16"
    config.policy.remat = "full"

    config.tasks.vocabulary = "ascii"
    config.window.prompt = 1_024
    config.window.completion = 3_072
    config.warm_start.steps = 0

    # 64 prompts × 16 answers an iteration, 256 rows a batch.
    config.rollout.prompts = 64
    config.rollout.samples = 16
    # What the cache of a chip must hold; more are drawn one part after the other.
    config.rollout.max_rows = 64
    config.training.minibatches = 4
    config.training.epochs = 1
    config.training.micro_batches = 16
    config.training.packing = True
    config.training.mismatch = "truncate"

    config.optimizer.name = "adamw"
    config.optimizer.schedule = "constant"
    config.optimizer.learning_rate = 1e-6
    config.optimizer.warmup_steps = 20

    config.evaluation.prompts = 128
    config.evaluation.batch = 256
    config.evaluation.every = 20
    config.evaluation.curve_prompts = 32
    config.checkpoint.every = 10
    config.mesh = ConfigDict({"data": 1, "fsdp": -1, "sequence": 1, "tensor": 1})
    return config
