"""A published chat model of 135 M parameters, trained on a question with one right answer.

    .torch/bin/python experiments/smollm2/make_folder.py --output=SmolLM2-135M-Instruct
    python experiments/smollm2/make_prompts.py --output=larger.jsonl
    python experiments/train.py --config=configs/smollm2.py --workdir=runs/smollm2
    python experiments/export.py --workdir=runs/smollm2 --output=exported

experiments/smollm2/README.md has what it did on two CPU cores.
"""

from ml_collections import ConfigDict

from configs import quickstart
from configs.gates import DEFAULT


def get_config(gate: str = DEFAULT) -> ConfigDict:
    """The experiment; every value may be overridden on the command line."""
    config = quickstart.get_config(gate)
    config.iterations = 6

    # The folder says shape, tokens, template and context.
    config.model.folder = "SmolLM2-135M-Instruct"
    config.model.system = "Answer with a number alone."
    config.model.examples = (("Which is larger, 271 or 828?", "828"),)
    config.warm_start.steps = 0

    config.tasks.file = "larger.jsonl"
    config.tasks.verifier = "exact"
    config.window.prompt = 72
    config.window.completion = 6

    # 8 prompts × 8 answers an iteration, two updates.
    config.rollout.prompts = 8
    config.rollout.samples = 8
    config.training.minibatches = 2
    config.training.micro_batches = 4
    config.training.packing = False
    config.training.chunk = 6

    config.optimizer.name = "adamw"
    config.optimizer.schedule = "constant"
    config.optimizer.learning_rate = 1e-5
    config.optimizer.warmup_steps = 0

    config.evaluation.update({"prompts": 40, "samples": 2, "batch": 20})
    config.evaluation.update({"every": 0, "curve_prompts": 20})
    config.checkpoint.update({"every": 2, "keep": 3})
    return config
