"""The quickstart at the size of a notebook: three short tasks, learned in seconds on two CPU cores.

    python experiments/train.py --config=configs/first_steps.py --workdir=runs/first_steps

The argument after the colon picks a gate of `configs/gates.py`: `configs/first_steps.py:gspo`. The
policy has 40,000 parameters; 16 updates a batch of rollouts let it drift, so that gates have
something to decide.
"""

from ml_collections import ConfigDict

from configs import gates, quickstart


def get_config(gate: str = gates.DEFAULT) -> ConfigDict:
    """The experiment; every value may be overridden on the command line."""
    config = quickstart.get_config(gate)
    config.iterations = 12
    config.tasks.domains = ConfigDict(
        {
            "modular": {"digits": 1},
            "reverse": {"min_length": 2, "max_length": 4, "letters": "abcde"},
            "sort": {"min_length": 2, "max_length": 4, "symbols": "01234"},
        }
    )
    config.tasks.num_train = 200
    config.tasks.num_test = 40
    config.window.prompt = 16
    config.window.completion = 8
    config.policy.embed_dim = 32
    config.policy.num_heads = 2
    config.policy.num_kv_heads = 1
    config.policy.mlp_dim = 96
    config.policy.remat = "none"
    config.warm_start.steps = 150
    config.rollout.prompts = 24
    config.rollout.samples = 8
    config.training.epochs = 4
    config.training.micro_batches = 1
    config.training.packing = False
    config.training.chunk = 8
    config.optimizer.warmup_steps = 2
    config.evaluation.prompts = 40
    config.evaluation.batch = 40
    config.evaluation.every = 3
    config.evaluation.curve_prompts = 40
    config.keep.show_every = 0
    config.checkpoint.every = 4
    config.checkpoint.keep = 3
    config.mesh.data = 1
    return config
