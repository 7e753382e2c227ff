"""From a config to a gate: what is static in a hashable `Gate`, what is traced in a pytree.

The budgets of a gate are arrays, so that sweeping them never recompiles; its structure (the gate's
name, levels, variant and switches) is static. Everything a config says is checked here, before any
compilation; a refusal names the path, the value and the choices.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fiberjax.bounds import as_float32, check_sound, shown
from fiberjax.gates import compose
from fiberjax.gates.channels import prepare
from fiberjax.gates.hierarchy import Gating
from fiberjax.gates.scales import Held
from fiberjax.layout import STATE, TRAJECTORY, Layout, assert_tokens

Budgets = dict[str, Any]
"""The traced numbers of a gate by name; `budgets` of a hierarchy is a dict by level."""


@dataclasses.dataclass(frozen=True)
class Budget:
    """A traced number of a gate.

    Attributes:
      default: None switches an optional one off.
      unit: for messages and tables.
      width: whether it is a width of the trust region, more of which allows more drift: what
        `control` multiplies.
      least: the smallest value; None for any above 0. Caps of weights below 1 would hold tokens
        that have not moved.
    """

    default: float | None
    unit: str
    width: bool = False
    least: float | None = None


@dataclasses.dataclass(frozen=True)
class Option:
    """A static choice of a gate: its default and all its values."""

    default: Any
    choices: tuple[Any, ...]


LEVEL = Option("trajectory", ())
"""An option that names one of the layout's levels."""

UNIT = Option(STATE, ())
"""An option that names a level or "state": whose tokens share a budget."""

TOKEN, NAMED = "token", "named"
"""What a gate couples (`GateSpec.couples`): nothing, or the cells that its config names."""

BY_LEVEL = Budget(None, "nats", width=True)
"""Marks a gate that takes `budgets` by level from the config's `order` and `levels`."""


@dataclasses.dataclass(frozen=True, eq=False)
class GateSpec:
    """An entry of the name table; equal to itself only, so that programs of two are never mixed.

    Attributes:
      gate: `(log_ratio, advantage, layout, *, budgets and options) -> gated_ratio`; where the entry
        has `settings`, `(log_ratio, advantage, layout, settings) -> gated_ratio`.
      limit: `(log_ratio, advantage, layout, *, limit_options) -> gated_ratio`: the same gate with
        infinite budgets.
      clipped: as `gate`, giving a dict from level to bool[tokens]: where the level's gate makes a
        token's own row of the Jacobian differ from the limit's.
      budgets: traced keyword arguments by name.
      options: static keyword arguments by name.
      limit_options: those of the options that the limit takes too.
      score_weight: the gate is a weight on the score, not a bounded ratio: it takes no pessimistic
        composition, dual clip or recovery.
      needs_old_log_prob: the gate reads `old_log_prob`, the log-probability of each token under the
        sampling policy.
      dual_clip_past: the dual clip goes past the gate (`compose.dual_clip_past`) instead of
        bounding what it gives (`compose.dual_clip`).
      depth: the number of levels of a hierarchy; None for any.
      settings: makes one value of the budgets and options, for gates whose functions share many.
        `gate`, `clipped`, `inspect` and `held` then take it after the layout.
      inspect: as `gate`, giving a `Gating`, whose channels and regimes are then logged;
        None for a gate without levels.
      held: as `gate`, giving a `Held`: what the cells of each gated level hold against their
        budgets, and these; None for what `inspect` says of a hierarchy, and for others without
        levels.
      couples: the cells within which the gate couples tokens: `TOKEN`, "trajectory", or `NAMED`,
        those of the coarsest level that its options and budgets name. A token's gated ratio and its
        derivatives depend on no token outside its cell, so an update may take one set of whole
        cells after the other. None, which is always right: on all tokens of a batch.
    """

    gate: Callable[..., jax.Array]
    limit: Callable[..., jax.Array]
    clipped: Callable[..., dict[str, jax.Array]]
    budgets: Mapping[str, Budget] = dataclasses.field(default_factory=dict)
    options: Mapping[str, Option] = dataclasses.field(default_factory=dict)
    limit_options: tuple[str, ...] = ()
    score_weight: bool = False
    needs_old_log_prob: bool = False
    dual_clip_past: bool = False
    depth: int | None = None
    settings: Callable[..., Any] | None = None
    inspect: Callable[..., Gating] | None = None
    held: Callable[..., Held] | None = None
    couples: str | None = None


@dataclasses.dataclass(frozen=True)
class Gate:
    """A configured gate, hashable: everything about it that is static.

    Attributes:
      name: its entry in the name table.
      spec: that entry.
      options: its static options, by name.
      pessimistic: whether the gate's contribution is the smaller of its own and its limit's.
      recovery: whether good tokens that became unlikely use the limit (see `compose.recovery`).
    """

    name: str
    spec: GateSpec = dataclasses.field(repr=False)
    options: tuple[tuple[str, Any], ...] = ()
    pessimistic: bool = False
    recovery: bool = False

    @property
    def widths(self) -> tuple[str, ...]:
        """Names of the budgets that are widths of the trust region."""
        return tuple(name for name, budget in self.spec.budgets.items() if budget.width)

    def couples(self, budgets: Budgets, layout: Layout) -> str | None:
        """The level within whose cells the gate couples tokens; see `GateSpec.couples`.

        Returns:
          `TOKEN`, a level of the layout, "state", or None for all tokens of a batch.
        """
        if self.spec.couples != NAMED:
            return self.spec.couples
        if "budgets" in budgets:  # By level, and in no order.
            weighed = (TRAJECTORY,) if ("weight", TRAJECTORY) in self.options else ()
            return max((*budgets["budgets"], *weighed), key=layout.index)
        return str(dict(self.options)["level"])

    def widened(self, budgets: Budgets, factor: float) -> Budgets:
        """The budgets with every width of the trust region times a factor; the others as given."""
        wider = {name: budgets[name] for name in self.widths}
        return {**budgets, **jax.tree.map(lambda width: width * np.float32(factor), wider)}

    def __call__(
        self,
        log_ratio: jax.Array,
        advantage: jax.Array,
        layout: Layout,
        budgets: Budgets,
        *,
        old_log_prob: jax.Array | None = None,
    ) -> jax.Array:
        """Gates the ratios; the shape of the log ratios, 1 at padding.

        Args:
          log_ratio: float[B, T] or [N], nats.
          advantage: float of the same shape.
          layout: where the tokens stand.
          budgets: the pytree that `from_config` gave.
          old_log_prob: float of the same shape, nats; needed by gates that say so.

        Returns:
          The gated ratio, differentiable in `log_ratio`. The gates of `GATES` give finite numbers
          unless a log ratio is NaN.

        Raises:
          AssertionError: while tracing, shapes differ from that of the layout's mask.
        """
        gated = self._call(self.spec.gate, log_ratio, advantage, layout, budgets, old_log_prob)
        dual = budgets.get("dual_clip")
        if not self.pessimistic and not self.recovery and dual is None:
            return gated
        limit = self.limit(log_ratio, layout)
        _, advantage = prepare(log_ratio, advantage, layout.mask)
        if self.pessimistic:
            gated = compose.pessimistic(gated, limit, advantage)
        if dual is not None:
            if self.spec.dual_clip_past:
                gated = compose.dual_clip_past(gated, limit, advantage, dual)
            else:
                gated = compose.dual_clip(gated, advantage, dual)
        if self.recovery:
            gated = compose.recovery(gated, limit, advantage)
        return gated

    def limit(self, log_ratio: jax.Array, layout: Layout) -> jax.Array:
        """The gate with infinite budgets; the shape of the log ratios."""
        assert_tokens({"log_ratio": log_ratio}, layout.mask)
        options = {name: value for name, value in self.options if name in self.spec.limit_options}
        return self.spec.limit(log_ratio, jnp.zeros_like(log_ratio), layout, **options)

    def clipped(
        self,
        log_ratio: jax.Array,
        advantage: jax.Array,
        layout: Layout,
        budgets: Budgets,
        *,
        old_log_prob: jax.Array | None = None,
    ) -> dict[str, jax.Array]:
        """The tokens whose own row of the Jacobian each level changes; bool[tokens] by level.

        A token that the pessimistic composition or the recovery hands to the limit is not clipped;
        one beyond the dual clip is, at "token".
        """
        spec, dual = self.spec, budgets.get("dual_clip")
        masks = self._call(spec.clipped, log_ratio, advantage, layout, budgets, old_log_prob)
        if not self.pessimistic and not self.recovery and dual is None:
            return masks
        gated = self._call(spec.gate, log_ratio, advantage, layout, budgets, old_log_prob)
        limit = self.limit(log_ratio, layout)
        _, advantage = prepare(log_ratio, advantage, layout.mask)
        free = bound = jnp.zeros_like(layout.mask)
        if self.pessimistic:
            free = compose.prefers_limit(gated, limit, advantage)
            gated = jnp.where(free, limit, gated)
        if dual is not None and spec.dual_clip_past:
            free |= compose.past_region(limit, advantage)
            gated = jnp.where(free, limit, gated)
        if dual is not None:
            bound = compose.dual_binds(gated, advantage, dual) & layout.mask
            if spec.dual_clip_past:
                bound &= free
        if self.recovery:
            free |= compose.recovery_region(limit, advantage)
        masks = {level: mask & ~free for level, mask in masks.items()}
        finest = "token" if "token" in masks else next(iter(masks))
        return {**masks, finest: masks[finest] | bound}

    def inspect(
        self,
        log_ratio: jax.Array,
        advantage: jax.Array,
        layout: Layout,
        budgets: Budgets,
        *,
        old_log_prob: jax.Array | None = None,
    ) -> Gating | None:
        """What a hierarchy decided, a `Gating`; None for a gate without levels."""
        if self.spec.inspect is None:
            return None
        return self._call(self.spec.inspect, log_ratio, advantage, layout, budgets, old_log_prob)

    def held(
        self,
        log_ratio: jax.Array,
        advantage: jax.Array,
        layout: Layout,
        budgets: Budgets,
        *,
        old_log_prob: jax.Array | None = None,
    ) -> Held | None:
        """What the levels hold against their budgets; None for a gate without levels."""
        if self.spec.held is not None:
            return self._call(self.spec.held, log_ratio, advantage, layout, budgets, old_log_prob)
        state = self.inspect(log_ratio, advantage, layout, budgets, old_log_prob=old_log_prob)
        return None if state is None else state.held

    def _call(
        self,
        function: Callable[..., Any],
        log_ratio: jax.Array,
        advantage: jax.Array,
        layout: Layout,
        budgets: Budgets,
        old_log_prob: jax.Array | None,
    ) -> Any:
        """One of the entry's functions, given the budgets and options in the form it takes."""
        arguments = {name: budgets[name] for name in self.spec.budgets} | dict(self.options)
        if self.spec.needs_old_log_prob:
            if old_log_prob is None:
                raise ValueError(f"gate {self.name!r} needs old_log_prob")
            arguments["old_log_prob"] = old_log_prob
        tokens = {"log_ratio": log_ratio, "advantage": advantage}
        assert_tokens({**tokens, "old_log_prob": old_log_prob}, layout.mask)
        if self.spec.settings is not None:
            return function(log_ratio, advantage, layout, self.spec.settings(**arguments))
        return function(log_ratio, advantage, layout, **arguments)


COMMON = ("name", "pessimistic", "dual_clip", "recovery")
"""Config keys of every gate."""


def build(
    table: Mapping[str, GateSpec],
    config: Mapping[str, Any],
    layout_levels: Sequence[str],
    path: str,
) -> tuple[Gate, Budgets]:
    """Builds a gate from a config; see `fiberjax.gates.from_config`."""
    if not isinstance(config, Mapping) and not hasattr(config, "keys"):
        raise ValueError(f"{path} = {shown(config)}: expected a section with the name of a gate")
    check_sound(config, path)
    if "name" not in config:
        raise ValueError(f"{path}.name is missing; choose from {tuple(table)}")
    name = config["name"]
    if not isinstance(name, str) or name not in table:
        raise ValueError(f"{path}.name = {shown(name)} is not a gate; choose from {tuple(table)}")
    spec = table[name]
    by_level = spec.budgets.get("budgets") is BY_LEVEL
    known = {*COMMON, *spec.budgets, *spec.options} - {"budgets"}
    known |= {"order", "levels"} if by_level else set()
    for key in config:
        if key not in known:
            raise ValueError(
                f"{path}.{key} = {shown(config[key])} is not an option of {name!r}; "
                f"choose from {tuple(sorted(known))}"
            )

    budgets: Budgets = {"dual_clip": None}
    for key, budget in spec.budgets.items():
        if budget is not BY_LEVEL:
            value = config[key] if key in config else budget.default
            optional = budget.default is None
            number = _number(f"{path}.{key}", value, budget.unit, optional)
            if number is not None and budget.least is not None and number < budget.least:
                raise ValueError(
                    f"{path}.{key} = {shown(value)}: expected at least {budget.least:g} "
                    f"({budget.unit}), or tokens that have not moved would be held"
                )
            budgets[key] = _traced(number)
    if by_level:
        budgets["budgets"] = _level_budgets(path, config, layout_levels)
        if spec.depth not in (None, len(budgets["budgets"])):
            raise ValueError(
                f"{path}.order = {tuple(config['order'])!r}: {name!r} has {spec.depth} level(s); "
                "'fgh' takes any number"
            )
    options = []
    for key, option in spec.options.items():
        choices = option.choices
        if option is LEVEL or option is UNIT:
            choices = (*((STATE,) if option is UNIT else ()), *layout_levels)
        options.append((key, _choice(path, config, key, option.default, choices)))
    pessimistic = _choice(path, config, "pessimistic", False, (False, True))
    recovery = _choice(path, config, "recovery", False, (False, True))
    dual = config["dual_clip"] if "dual_clip" in config else None
    if spec.score_weight:
        for key, value in (("pessimistic", pessimistic), ("recovery", recovery)):
            if value:
                raise ValueError(
                    f"{path}.{key} = True, but {name!r} is a weight on the score: expected False"
                )
        if dual is not None:
            raise ValueError(
                f"{path}.dual_clip = {dual!r}, but {name!r} is a weight on the score: expected None"
            )
    if spec.settings is not None:
        try:
            spec.settings(**{name: budgets[name] for name in spec.budgets}, **dict(options))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    dual = _number(f"{path}.dual_clip", dual, "ratio", True)
    if dual is not None and as_float32(dual) <= 1:
        raise ValueError(f"{path}.dual_clip = {dual!r}: expected a ratio above 1, or None")
    budgets["dual_clip"] = _traced(dual)
    return Gate(name, spec, tuple(options), pessimistic, recovery), budgets


def _level_budgets(
    path: str, config: Mapping[str, Any], layout_levels: Sequence[str]
) -> dict[str, np.ndarray]:
    """The budgets of the levels that the config orders; float32[2] by level."""
    for key in ("order", "levels"):
        if key not in config:
            raise ValueError(f"{path}.{key} is missing; the layout has levels {layout_levels}")
    order, levels = config["order"], config["levels"]
    if isinstance(order, str) or not isinstance(order, Sequence) or not order:
        raise ValueError(
            f"{path}.order = {shown(order)}: expected a tuple of levels, finest first, "
            f"from {tuple(layout_levels)}"
        )
    for level in order:
        if level not in layout_levels:
            raise ValueError(
                f"{path}.order names {shown(level)}, which the layout lacks; "
                f"choose from {tuple(layout_levels)}"
            )
    positions = [list(layout_levels).index(level) for level in order]
    if positions != sorted(set(positions)):
        raise ValueError(
            f"{path}.order = {tuple(order)!r}: expected each level once, finest first, "
            f"as in {tuple(layout_levels)}"
        )
    if not isinstance(levels, Mapping) and not hasattr(levels, "keys"):
        raise ValueError(f"{path}.levels = {shown(levels)}: expected a dict by level")
    for level in levels:
        if level not in order:
            raise ValueError(
                f"{path}.levels.{level} is not in {path}.order; choose from {tuple(order)}"
            )
    budgets = {}
    for level in order:
        if level not in levels:
            raise ValueError(f"{path}.levels.{level} is missing, though {path}.order names it")
        entry = levels[level]
        if not hasattr(entry, "keys") or set(entry.keys()) != {"budget"}:
            raise ValueError(
                f"{path}.levels.{level} = {shown(entry)}: expected the single key 'budget', in nats"
            )
        budgets[level] = _pair(f"{path}.levels.{level}.budget", entry["budget"])
    return budgets


def _pair(path: str, value: Any) -> np.ndarray:
    """A budget given as a number, or as a tuple of one or two; float32[2], plus and minus."""
    if isinstance(value, (tuple, list)):
        if len(value) not in (1, 2):
            raise ValueError(
                f"{path} = {shown(value)}: expected a number or a pair (plus, minus), nats"
            )
        numbers = [_number(path, v, "nats", False) for v in value]
    else:
        numbers = [_number(path, value, "nats", False)]
    return np.broadcast_to(np.array(numbers, np.float32), (2,)).copy()


def _number(path: str, value: Any, unit: str, optional: bool) -> float | None:
    """A positive number, or None where it is optional."""
    if value is None and optional:
        return None
    choices = f"a number above 0 ({unit}){', or None' if optional else ''}"
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.number)):
        raise ValueError(f"{path} = {shown(value)}: expected {choices}")
    if not 0 < as_float32(value) < math.inf:
        raise ValueError(f"{path} = {shown(value)}: expected {choices}, finite and as float32 too")
    return float(value)


def _traced(value: float | None) -> np.ndarray | None:
    """A number as a float32[] array."""
    return None if value is None else np.asarray(value, np.float32)


def _choice(
    path: str, config: Mapping[str, Any], key: str, default: Any, choices: tuple[Any, ...]
) -> Any:
    """A static option of the config or its default, which must be one of its choices."""
    value = config[key] if key in config else default
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        raise ValueError(f"{path}.{key} = {shown(value)}: choose from {choices}")
    return value
