"""The quickstart at the smallest size that still exercises everything: seconds, not minutes."""

import sys
from unittest import mock

from absl import flags
from ml_collections import ConfigDict, config_flags

from configs import quickstart


def get_config(gate: str = "fiberpo_domain") -> ConfigDict:
    config = quickstart.get_config(gate)
    config.iterations = 4
    config.tasks.domains = ConfigDict(
        {
            "modular": {"digits": 1},
            "reverse": {"min_length": 2, "max_length": 3, "letters": "abcde"},
            "sort": {"min_length": 2, "max_length": 3, "symbols": "01234"},
        }
    )
    config.tasks.num_train = 40
    config.tasks.num_test = 8
    config.window.prompt = 16
    config.window.completion = 8
    config.policy.embed_dim = 16
    config.policy.num_layers = 1
    config.policy.num_heads = 2
    config.policy.num_kv_heads = 1
    config.policy.head_dim = 8
    config.policy.mlp_dim = 32
    config.policy.remat = "none"
    config.warm_start.steps = 400
    config.warm_start.batch_size = 16
    config.warm_start.flawed = 0.0
    config.warm_start.optimizer = "adamw"
    config.warm_start.learning_rate = 1e-2
    config.rollout.prompts = 8
    config.rollout.samples = 4
    config.training.epochs = 2
    config.training.minibatches = 2
    config.training.micro_batches = 1
    config.training.packing = False
    config.training.chunk = 4
    config.optimizer.name = "adamw"
    config.optimizer.schedule = "constant"
    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup_steps = 0
    config.evaluation.prompts = 4
    config.evaluation.samples = 2
    config.evaluation.batch = 4
    config.evaluation.every = 0
    config.evaluation.curve_prompts = 2
    config.keep.show_every = 2
    config.diagnostics.every = 0  # What looks compiles as long as a run of this size takes.
    config.keep.rollouts = "every 2, last 1"
    config.checkpoint.every = 1
    config.mesh.data = 1
    return config


def from_command_line(*arguments: str, config: str = __file__) -> ConfigDict:
    """What `experiments/train.py --config=… arguments` makes of its flags."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", lock_config=True, flag_values=values)
    argv = ["train.py", f"--config={config}", *arguments]
    with mock.patch.object(sys, "argv", argv):  # Where overrides are looked up.
        values(argv)
    return values.config
