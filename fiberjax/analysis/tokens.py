"""What a gate does to every token of kept rollouts, and what each of its levels takes.

The number that counts is the coefficient, the objective's gradient in a token's log-probability,

    cᵢ = ∂J/∂ log π_θ(i) = c°ᵢ + Σₖ takenₖ,ᵢ

`c°` is the coefficient with every gate open; then the gates close one after the other, coarsest
level first and tokens last, and what changes is what each took. A gate without levels takes all of
it at once. The parts add up to the coefficient exactly: they are differences, in float64, of
gradients in float32.

Gates see one optimizer batch at a time, as they do in training: cells above the trajectory hold
what the batch holds of them.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fiberjax import diagnostics, objective, probes
from fiberjax.analysis.batch import Seen, seen
from fiberjax.analysis.objectives import Asked, Objective, objectives_of
from fiberjax.gates import aggregate, silent
from fiberjax.gates.channels import prepare
from fiberjax.gates.configured import ConfiguredGate
from fiberjax.layout import TRAJECTORY, Layout
from fiberjax.run.kept import Kept

OPEN, TOKEN, GATE, COMPOSITION = "open", "token", "gate", "composition"
"""Parts that are no level: every gate open; the token's own gate; a gate without levels; the
pessimistic composition, the dual clip and the recovery."""

FATES = ("idle", "kept", "weaker", "stronger", "vanished", "turned", "moved by others")
"""What became of a token's coefficient against the open gates': both 0; the same within 1 %; less;
more; 0; of the other sign; not 0 where it was 0."""
IDLE, KEPT, WEAKER, STRONGER, VANISHED, TURNED, MOVED = range(len(FATES))

LABEL = "looked at"

WHOLE, SOME, ALL = "open", "some tokens changed", "all tokens changed"
"""Regimes of a trajectory under a gate without channels."""


@dataclasses.dataclass(frozen=True, eq=False)
class Level:
    """What one level of a hierarchy holds against its budgets, read at every token.

    The last axis are the two directions: of the channels plus and minus of a hierarchy; of a silent
    one up and down, in which only the direction that a token's advantage asks for can close it.

    Attributes:
      drift: float32[R, C, 2], nats: mean drift of the token's cell.
      held: float32[R, C, 2], nats: what is held against the budget, the cell's own part of it.
      budget: float32[R, C, 2], nats.
      place: int8[R, C, 2]: on which piece of its gate, `aggregate.OPEN`, `ROLLBACK` or `ZEROED`.
      size: int32[R, C], children of the cell.
    """

    drift: np.ndarray
    held: np.ndarray
    budget: np.ndarray
    place: np.ndarray
    size: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Tokens:
    """Every token's numbers under a gate; arrays over [R, C], 0 off the mask.

    Attributes:
      kept: the rollouts.
      gate: the gate.
      log_ratio: float32, nats.
      gated_ratio: float32, what the gate makes of the ratios; 1 off the mask.
      coefficient: float32: the objective's gradient in the token's log-probability.
      parts: float64 by name, in this order: "open", then what each level took, the coarsest first,
        and "token"; of a gate without levels "open" and "gate". They add up to the coefficient.
      changed: bool by level: where the level's gate changes the token's own row of the Jacobian.
      fate: int8, of `FATES`.
      levels: of a hierarchy, finest first; {} else.
      own: float32, nats: of a hierarchy, the token's own drift; None else.
      own_budget: float32, nats: what that is held to; None else.
      regime: of each trajectory, [R]: of a hierarchy the global and the local one, such as
        "G-II,r L-I"; of other gates one of `WHOLE`, `SOME` and `ALL`.
      entropy: float32, nats, of the policy looked at; None where it is not known.
    """

    kept: Kept
    gate: ConfiguredGate
    log_ratio: np.ndarray
    gated_ratio: np.ndarray
    coefficient: np.ndarray
    parts: dict[str, np.ndarray]
    changed: dict[str, np.ndarray]
    fate: np.ndarray
    levels: dict[str, Level]
    own: np.ndarray | None
    own_budget: np.ndarray | None
    regime: list[str]
    entropy: np.ndarray | None

    @property
    def sampler_gap(self) -> np.ndarray | None:
        """`log π_old − log q` of every token, float32[R, C], nats; None without a sampler's."""
        if self.kept.sampler_log_prob is None:
            return None
        gap = self.kept.old_log_prob - self.kept.sampler_log_prob
        return np.where(self.kept.mask, gap, np.float32(0))

    def drift(self) -> np.ndarray:
        """Mean drift of every trajectory: up, down and on the whole; float32[R, 3], nats."""
        count = np.maximum(self.kept.mask.sum(axis=1), 1).astype(np.float32)
        up, down = (np.maximum(sign * self.log_ratio, 0).sum(axis=1) / count for sign in (1, -1))
        return np.stack([up, down, up - down], axis=1).astype(np.float32)


def look(kept: Kept, asked: Asked, *, entropy: np.ndarray | None = None) -> Tokens:
    """Every token's numbers under an objective; a `Tokens`.

    Args:
      kept: the rollouts; log ratios are 0 where they have no `log_prob`.
      asked: the objective, as `objectives.objectives_of` takes one: the name of a preset, a pair of
        a name and overrides, a gate, or `objectives.RUN` for the run's own.
      entropy: float[R, C], nats, of the policy looked at, if it is known.

    Raises:
      ValueError: there is no such preset, the gate has a level that the rollouts lack, no token
        counts, or entropies are of another shape.

    >>> from fiberjax.run.kept import from_arrays
    >>> drift, mask = np.array([[0.3, 0.1], [0.0, 0.0]]), np.ones((2, 2), bool)
    >>> old = np.full((2, 2), -1.0)
    >>> kept = from_arrays(
    ...     log_prob=old + drift, old_log_prob=old, mask=mask, advantage=np.array([1.0, -1.0])
    ... )
    >>> tokens = look(kept, "ppo")
    >>> [FATES[fate] for fate in tokens.fate.ravel()]
    ['vanished', 'kept', 'kept', 'kept']
    >>> [round(float(part[0, 0]), 3) for part in tokens.parts.values()]
    [0.337, -0.337]
    """
    if entropy is not None and np.shape(entropy) != kept.mask.shape:
        raise ValueError(
            f"entropy has shape {np.shape(entropy)}, the rollouts {kept.mask.shape}: expected one "
            "a token"
        )
    named = {LABEL: asked}
    chosen = objectives_of(named, layout=kept.layout, config=kept.meta.get("config"))[LABEL]
    gate, mask = chosen.gate, kept.mask
    found: dict[str, Any] = {}
    for number in np.unique(kept.minibatch[mask.any(axis=1)]).tolist():
        batch = seen(kept, {LABEL: chosen}, number)
        numbers = jax.device_get(_numbers(chosen, kept.log_ratio, batch))
        _scatter(found, numbers, kept.minibatch == number)
    if not found:
        raise ValueError("no token of these rollouts counts in the loss")
    stages = found["stages"]
    names = part_names(gate, kept.layout.levels)
    wide = np.stack([stages[name].astype(np.float64) for name in names])
    taken = np.diff(wide, axis=0, prepend=np.zeros_like(wide[:1]))
    coefficient = stages[names[-1]]
    ordered = sorted(found["changed"], key=[TOKEN, *kept.layout.levels].index)
    changed = {level: found["changed"][level] & mask for level in ordered}
    return Tokens(
        kept=kept,
        gate=gate,
        log_ratio=kept.log_ratio,
        gated_ratio=np.where(mask, found["gated"], np.float32(1)),
        coefficient=coefficient,
        parts=dict(zip(names, taken, strict=True)),
        changed=changed,
        fate=_fate(stages[OPEN], coefficient),
        levels={
            level: Level(**found["levels"][level])
            for level in kept.layout.levels
            if level in found["levels"]
        },
        own=found["own"].get("drift"),
        own_budget=found["own"].get("budget"),
        regime=_regimes(found["regime"], changed, mask),
        entropy=None if entropy is None else np.where(mask, entropy, 0).astype(np.float32),
    )


def part_names(gate: ConfiguredGate, levels: tuple[str, ...]) -> tuple[str, ...]:
    """The names of the parts that a gate's coefficients are made of, in their order.

    >>> from fiberjax.gates.configured import gate
    >>> part_names(gate("fiberpo_group"), ("trajectory", "group"))
    ('open', 'group', 'trajectory', 'token')
    >>> part_names(gate("gspo"), ("trajectory",))
    ('open', 'gate')
    """
    if "budgets" not in gate.budgets:
        return (OPEN, GATE)
    gated = (level for level in reversed(levels) if level in gate.budgets["budgets"])
    return (OPEN, *gated, TOKEN, *((COMPOSITION,) if _composed(gate) else ()))


def _composed(gate: ConfiguredGate) -> bool:
    structure = gate.structure
    return structure.pessimistic or structure.recovery or gate.budgets["dual_clip"] is not None


def _stages(
    gate: ConfiguredGate, levels: tuple[str, ...], gradient: Callable[[Any], jax.Array]
) -> dict[str, jax.Array]:
    """The gradient as the gate is closed, level by level, by the names of `part_names`.

    Args:
      gate: the gate.
      levels: of the layout, finest first.
      gradient: of a gate.
    """
    structure, budgets = gate.structure, gate.budgets
    names = part_names(gate, levels)
    if "budgets" not in budgets:

        def limit(log_ratio: jax.Array, _: Any, layout: Layout, **__: Any) -> jax.Array:
            return structure.limit(log_ratio, layout)

        return {OPEN: gradient(limit), GATE: gradient(gate)}
    plain = dataclasses.replace(structure, pessimistic=False, recovery=False)
    inner = {**budgets, "dual_clip": None}
    gated = [level for level in levels if level in budgets["budgets"]]
    steps = [
        *(
            probes.open_levels(inner, levels=tuple(gated[:k]), token=True)
            for k in reversed(range(len(gated) + 1))
        ),
        inner,
    ]
    # They differ in numbers alone: one program, compiled once.
    stacked = jax.tree.map(lambda *of: jnp.stack(of), *steps)
    taken = jax.lax.map(lambda budgets: gradient(ConfiguredGate(plain, budgets)), stacked)
    stages = dict(zip(names, taken, strict=False))
    return stages | ({COMPOSITION: gradient(gate)} if _composed(gate) else {})


@jax.jit
def _numbers(chosen: Objective, log_ratio: jax.Array, batch: Seen) -> dict[str, Any]:
    """All numbers of one optimizer batch, a dict of arrays over all tokens."""
    gate, layout = chosen.gate, batch.layout
    structure, budgets = gate.structure, gate.budgets
    log_ratio, advantage, credit, old_log_prob = (
        jnp.where(layout.mask, of, 0)
        for of in (log_ratio, batch.advantage, batch.credit, batch.old_log_prob)
    )
    found: dict[str, Any] = {"levels": {}, "own": {}, "regime": {}}

    def gradient(function: Callable[..., jax.Array]) -> jax.Array:
        def of_advantage(log_ratio: jax.Array, _: Any, layout: Layout) -> jax.Array:
            # The gate reads the advantage; what it gives is weighed by the credit.
            return function(log_ratio, advantage, layout, old_log_prob=old_log_prob)

        return objective.coefficients(
            of_advantage,
            log_ratio,
            credit,
            layout,
            weighting=chosen.weighting,
            constant_length=chosen.constant_length,
        )

    found["stages"] = _stages(gate, layout.levels, gradient)
    found["gated"] = gate(log_ratio, advantage, layout, old_log_prob=old_log_prob)
    found["changed"] = structure.clipped(
        log_ratio, advantage, layout, budgets, old_log_prob=old_log_prob
    )
    state = structure.inspect(log_ratio, advantage, layout, budgets, old_log_prob=old_log_prob)
    if state is not None:
        found["levels"] = _tower_levels(state)
        found["own"] = {"drift": state.own_drift, "budget": state.own_budget}
        level = TRAJECTORY if TRAJECTORY in state.layout.levels else state.layout.levels[0]
        k = state.layout.index(level)
        regime = diagnostics.global_regime(
            state.tower.residual[k],
            state.budgets[k],
            state.tower.size[k],
            hold=state.base_gate == "hold",
        )
        local = diagnostics.local_regime(state.fiber_clipped, state.layout, level)
        for name, table in (("global", regime), ("local", local)):
            found["regime"][name] = _at_tokens(table, state.layout, level)
    elif structure.spec.settings is silent.SilentHierarchy:
        options = {name: budgets[name] for name in structure.spec.budgets}
        hierarchy = silent.SilentHierarchy(**options, **dict(structure.options))
        found |= _silent_levels(log_ratio, advantage, layout, hierarchy)
    return found


def _tower_levels(state: Any) -> dict[str, dict[str, jax.Array]]:
    """The levels of a hierarchy at every token, as `Level` has them."""
    layout, levels = state.layout, {}
    for k, level in enumerate(layout.levels):
        drift, residual, size = (
            of[k] for of in (state.tower.drift, state.tower.residual, state.tower.size)
        )
        place = aggregate.position(residual, state.budgets[k], size)
        levels[level] = {
            "drift": _pair(drift, layout, level),
            "held": _pair(residual, layout, level),
            "budget": _pair(jnp.broadcast_to(state.budgets[k], drift.shape), layout, level),
            "place": _pair(place.astype(jnp.int8), layout, level),
            "size": _at_tokens(layout.sizes[k], layout, level),
        }
    return levels


def _silent_levels(
    log_ratio: jax.Array,
    advantage: jax.Array,
    layout: Layout,
    hierarchy: silent.SilentHierarchy,
) -> dict[str, Any]:
    """The levels of a silent hierarchy at every token, and the token's own drift and budget."""
    log_ratio, advantage = prepare(log_ratio, advantage, layout.mask)
    gated = layout.select([level for level in layout.levels if level in hierarchy.budgets])
    drifts = silent.mean_drift(gated.blocks(log_ratio), gated)
    levels = {}
    held = silent.against_budgets(gated.blocks(log_ratio), gated, hierarchy)
    for k, (level, (both, budget)) in enumerate(zip(gated.levels, held, strict=True)):
        beyond = jnp.where(both > budget, aggregate.ZEROED, aggregate.OPEN)
        levels[level] = {
            "drift": _pair(jnp.stack([drifts[k], -drifts[k]], axis=-1), gated, level),
            "held": _pair(both, gated, level),
            "budget": _pair(jnp.broadcast_to(budget, both.shape), gated, level),
            "place": _pair(beyond.astype(jnp.int8), gated, level),
            "size": _at_tokens(gated.sizes[k], gated, level),
        }
    epsilon, negative = hierarchy.epsilon, hierarchy.epsilon_negative
    bound = jnp.where(advantage < 0, epsilon if negative is None else negative, epsilon)
    own = {"drift": log_ratio, "budget": jnp.where(layout.mask, bound, 0)}
    return {"levels": levels, "own": own}


def _at_tokens(table: jax.Array, layout: Layout, level: str) -> jax.Array:
    """A level's table read at every token, 0 off the mask."""
    values = jnp.broadcast_to(layout.lift_from(jnp.asarray(table), level), layout.mask.shape)
    return jnp.where(layout.mask, values, 0)


def _pair(table: jax.Array, layout: Layout, level: str) -> jax.Array:
    return jnp.stack([_at_tokens(table[:, c], layout, level) for c in (0, 1)], axis=-1)


def _scatter(found: dict[str, Any], numbers: dict[str, Any], rows: np.ndarray) -> None:
    """Puts the rows of one batch, bool[R], into the arrays of all, in place."""
    for name, of in numbers.items():
        if isinstance(of, dict):
            _scatter(found.setdefault(name, {}), of, rows)
        else:
            whole = found.setdefault(name, np.zeros_like(of))
            whole[rows] = of[rows]


def _fate(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """What became of every coefficient; int8 of their shape, of `FATES`."""
    was, now = np.abs(before), np.abs(after)
    idle, gone = was == 0, now <= 1e-6 * was
    return np.select(
        [
            *(idle & (now == 0), idle, gone, before * after < 0),
            *(now < 0.99 * was, now > 1.01 * was),
        ],
        [IDLE, MOVED, VANISHED, TURNED, WEAKER, STRONGER],
        KEPT,
    ).astype(np.int8)


def _regimes(
    regime: dict[str, np.ndarray], changed: dict[str, np.ndarray], mask: np.ndarray
) -> list[str]:
    """The regime of every trajectory, [R]; "" of one without a token.

    Args:
      regime: "global" and "local", int32[R, C], of a hierarchy; {} else.
      changed: of `Tokens`.
      mask: bool[R, C].
    """
    used = mask.any(axis=1)
    if regime:
        first = mask.argmax(axis=1)
        rows = np.arange(len(mask))
        pairs = (regime[name][rows, first] for name in ("global", "local"))
        return [
            f"{diagnostics.GLOBAL_REGIMES[g]} {diagnostics.LOCAL_REGIMES[l]}" if of else ""
            for g, l, of in zip(*pairs, used, strict=True)
        ]
    count = np.logical_or.reduce(list(changed.values())).sum(axis=1)
    names = np.where(count == 0, WHOLE, np.where(count == mask.sum(axis=1), ALL, SOME))
    return [str(name) if of else "" for name, of in zip(names, used, strict=True)]
