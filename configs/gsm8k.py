"""What the recipes on grade-school arithmetic share: GSM8K's rows, their reward, windows and rates.

Not a run by itself: `configs/gsm8k_*.py` add a model. GSM8K's two files, `train.jsonl` and
`test.jsonl` with `question` and `answer`, are read as they are published; nothing downloads them.
"""

from ml_collections import ConfigDict

from configs import pods
from configs.gates import DEFAULT

SYSTEM = "Solve the problem step by step. End with a line of #### and the number alone."


def get_config(gate: str = DEFAULT) -> ConfigDict:
    """The experiment but for the model."""
    config = pods.get_config(gate)
    config.iterations = 200

    config.tasks.file = "gsm8k/train.jsonl"
    config.tasks.test_file = "gsm8k/test.jsonl"
    config.tasks.layout = "gsm8k"
    # The number behind ####, in the row's answer as in the completion.
    config.tasks.verifier = "number"
    config.model.system = SYSTEM
    config.window.prompt = 384
    config.window.completion = 640

    # 64 prompts × 8 answers an iteration, 128 rows a batch.
    config.rollout.prompts = 64
    config.rollout.samples = 8
    config.rollout.max_rows = 64
    config.training.minibatches = 4
    config.training.micro_batches = 4

    config.optimizer.learning_rate = 1e-6
    config.optimizer.warmup_steps = 10

    config.evaluation.prompts = 1_319  # All of test.jsonl.
    config.evaluation.samples = 1
    config.evaluation.batch = 128
    config.checkpoint.every = 20
    return config
