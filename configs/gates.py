"""Gate presets for configs: the table of `fiberjax.presets`, every value open to the command line.

config.gate = get_gate("fiberpo_domain")
--config.gate.levels.trajectory.budget=0.2 --config.gate.epsilon=0.1
"""

from typing import Any

from ml_collections import config_dict

from fiberjax.presets import DEFAULT, PRESETS, preset, step_share

__all__ = ["DEFAULT", "PRESETS", "get_gate", "step_share"]


def get_gate(name: str) -> config_dict.ConfigDict:
    """A gate's config by the name of its preset; ValueError naming the choices if there is none."""
    return config_dict.ConfigDict({key: _open(value) for key, value in preset(name).items()})


def _open(value: Any) -> Any:
    """None is a number that is off until an override sets it."""
    return config_dict.placeholder(float) if value is None else value
