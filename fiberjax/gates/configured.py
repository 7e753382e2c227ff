"""A gate and its budgets as one value, by the name of a preset: for those with arrays in hand.

    gate = fj.gate("fiberpo_domain_pessimistic", trajectory=0.1)
    gated_ratio = gate(log_ratio, advantage, layout)

The value is a pytree whose leaves are the budgets. Given to a jitted function as an argument, it
may be swept, batched by `vmap` or differentiated, and no budget compiles anything again.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from fiberjax.gates import GATES, GateSpec, from_config
from fiberjax.gates.config import Budgets, Gate
from fiberjax.layout import STATE, TRAJECTORY, Layout
from fiberjax.presets import preset


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ConfiguredGate:
    """A gate ready to be called; `ConfiguredGate(*gates.from_config(...))` makes one of a config.

    Attributes:
      structure: everything about it that is static: name, levels, options. Static.
      budgets: its traced numbers by name, float32; those of a hierarchy's levels, each [2] (plus,
        minus), are the dict `budgets["budgets"]`.
    """

    structure: Gate = dataclasses.field(metadata={"static": True})
    budgets: Budgets

    def __call__(
        self,
        log_ratio: jax.Array,
        advantage: jax.Array,
        layout: Layout,
        *,
        old_log_prob: jax.Array | None = None,
    ) -> jax.Array:
        """Gates the ratios; the shape of the log ratios, 1 at padding.

        Args:
          log_ratio: float[B, T] or [N], nats: log π_θ − log π_old of each token.
          advantage: float of the same shape.
          layout: where the tokens stand; it has the levels that the gate names.
          old_log_prob: float of the same shape, nats; needed by the gates of DPPO.

        Returns:
          The gated ratio, differentiable in `log_ratio` and in the budgets.
        """
        return self.structure(log_ratio, advantage, layout, self.budgets, old_log_prob=old_log_prob)

    def replace(self, **changes: Any) -> "ConfiguredGate":
        """The gate with other budgets or options; a new `ConfiguredGate`.

        Args:
          **changes: an option by its name, or a level's budget by the level's name: nats, a number
            or a pair (plus, minus). `levels={"turn": 0.1, "trajectory": 0.05}` gives a hierarchy
            other levels; how they nest, the layout says.

        Returns:
          The new gate. The budgets that stay must be numbers: of a traced or batched gate, change
          the pytree instead.

        Raises:
          ValueError: a name is neither, or a value is not what it stands for; names the choices.

        >>> gate("fiberpo", epsilon=0.1).replace(trajectory=0.5).budgets["budgets"]
        {'trajectory': array([0.5, 0.5], dtype=float32)}
        """
        config = _changed(self._config(), changes, f"gate {self.structure.name!r}")
        return _build(config, {self.structure.name: self.structure.spec})

    def _config(self) -> dict[str, Any]:
        """What `from_config` would make this gate of."""
        config: dict[str, Any] = {
            "name": self.structure.name,
            "pessimistic": self.structure.pessimistic,
            "recovery": self.structure.recovery,
            **dict(self.structure.options),
        }
        for name, budget in self.budgets.items():
            if name != "budgets":
                config[name] = None if budget is None else float(budget)
        if "budgets" in self.budgets:
            pairs = {level: tuple(map(float, b)) for level, b in self.budgets["budgets"].items()}
            config["order"] = tuple(pairs)
            config["levels"] = {level: {"budget": pair} for level, pair in pairs.items()}
        return config


def gate(name: str, /, **overrides: Any) -> ConfiguredGate:
    """A gate by the name of its preset, with other budgets and options; a `ConfiguredGate`.

    Args:
      name: a key of `fiberjax.presets.PRESETS`.
      **overrides: as `ConfiguredGate.replace` takes them.

    Raises:
      ValueError: the preset or an override does not exist, or a value is not what it stands for;
        names the choices.

    >>> pessimistic = gate("fiberpo_domain_pessimistic", trajectory=0.1)
    >>> sorted(pessimistic.budgets["budgets"])
    ['domain', 'group', 'trajectory']
    >>> gate("cispo", clip_hi=0.3)
    Traceback (most recent call last):
    ...
    ValueError: gate preset 'cispo' has no 'clip_hi'; choose from ('clip_low', 'clip_high')
    """
    return _build(_changed(preset(name), overrides, f"gate preset {name!r}"), GATES)


def _changed(config: dict[str, Any], changes: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The config with other options, levels and budgets of levels; `what` names it in errors."""
    options = tuple(name for name in config if name not in ("name", "order"))
    levels = config.get("levels", {})
    if "levels" in config and "levels" in changes:
        given = changes["levels"]
        if not isinstance(given, Mapping):
            raise ValueError(f"gate.levels = {given!r}: expected a dict from level to budget")
        levels = {level: {"budget": budget} for level, budget in given.items()}
    for name in changes:
        if name not in (*levels, *options):
            raise ValueError(f"{what} has no {name!r}; choose from {(*levels, *options)}")
    budgets = {name: {"budget": changes[name]} for name in levels if name in changes}
    chosen = {name: changes[name] for name in options if name in changes}
    if "levels" in config:
        chosen |= {"order": tuple(levels), "levels": levels | budgets}
    return config | chosen


def _build(config: dict[str, Any], table: Mapping[str, GateSpec]) -> ConfiguredGate:
    """The gate of a config, over the levels that the config itself names."""
    levels = config["order"] if "order" in config else (config.get("level", TRAJECTORY),)
    if not all(isinstance(level, str) for level in levels):
        raise ValueError(f"gate.level = {levels[0]!r}: expected the name of a level")
    levels = tuple(TRAJECTORY if level == STATE else level for level in levels)
    return ConfiguredGate(*from_config(config, levels, table=table, path="gate"))
