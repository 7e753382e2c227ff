"""The quickstart at the size of a notebook: three short tasks, learned in seconds on two CPU cores.

    python experiments/train.py --config=configs/first_steps.py --workdir=runs/first_steps

The argument after the colon picks a gate of `configs/gates.py`: `configs/first_steps.py:gspo`. The
policy has 25,000 parameters; every eighth batch is kept whole, beside a checkpoint of the policy
that it made. `notebooks/first_steps.ipynb` trains it.
"""

from ml_collections import ConfigDict

from configs import gates, quickstart


def get_config(gate: str = gates.DEFAULT) -> ConfigDict:
    """The experiment; every value may be overridden on the command line."""
    config = quickstart.get_config(gate)
    config.iterations = 40
    config.tasks.domains = ConfigDict(
        {
            "brackets": {"min_length": 2, "max_length": 4},
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
    config.warm_start.steps = 300
    config.rollout.prompts = 32
    config.rollout.samples = 8
    config.training.epochs = 1
    config.training.micro_batches = 1
    config.training.packing = False
    config.optimizer.warmup_steps = 2
    config.evaluation.prompts = 40
    config.evaluation.batch = 40
    config.evaluation.every = 8
    config.evaluation.curve_prompts = 40
    config.keep.show_every = 0
    config.keep.rollouts = "every 8"
    config.checkpoint.every = 8
    config.checkpoint.keep = 5
    config.mesh.data = 1
    return config
