"""A published chat model of 135 M parameters, trained on three kinds of question about numbers.

    .torch/bin/python -m experiments.smollm2.make_folder --output=SmolLM2-135M-Instruct
    python experiments/smollm2/make_prompts.py --output=numbers.jsonl
    python experiments/train.py --config=configs/smollm2.py --workdir=runs/smollm2
    python experiments/export.py --workdir=runs/smollm2 --output=exported

docs/real_model.md has the runs, GRPO beside it.
"""

from ml_collections import ConfigDict

from configs import quickstart
from configs.gates import DEFAULT


def get_config(gate: str = DEFAULT) -> ConfigDict:
    """The experiment; every value may be overridden on the command line."""
    config = quickstart.get_config(gate)
    config.iterations = 8

    # The folder says shape, tokens, template and context.
    config.model.folder = "SmolLM2-135M-Instruct"
    config.model.system = "Answer with a number alone."
    config.model.examples = (("Which is larger, 27 or 82?", "82"),)
    config.warm_start.steps = 0

    # Three domains: the larger of two numbers, the largest of three, the last of three.
    config.tasks.file = "numbers.jsonl"
    config.tasks.verifier = "exact"
    config.window.prompt = 64
    config.window.completion = 4

    # 6 prompts × 8 answers an iteration, two updates.
    config.rollout.prompts = 6
    config.rollout.samples = 8
    config.training.minibatches = 2
    config.training.micro_batches = 1
    config.training.packing = False
    config.policy.remat = "none"

    config.optimizer.name = "adamw"
    config.optimizer.schedule = "constant"
    config.optimizer.learning_rate = 2e-5
    config.optimizer.warmup_steps = 0

    config.evaluation.update({"prompts": 40, "samples": 1, "batch": 40})
    config.evaluation.update({"every": 0, "curve_prompts": 20})
    config.checkpoint.update({"every": 100, "keep": 1})
    return config
