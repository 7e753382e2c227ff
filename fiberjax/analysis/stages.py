"""The one program behind `tokens`: every number of one optimizer batch under a gate.

Coefficients are made as the gate is closed, level by level: the stages differ in budgets alone, and
budgets are traced, so that all of them are one program, compiled once.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fiberjax import diagnostics, objective, probes
from fiberjax.analysis.batch import Seen
from fiberjax.analysis.objectives import Objective
from fiberjax.gates import aggregate, silent
from fiberjax.gates.channels import prepare
from fiberjax.gates.configured import ConfiguredGate
from fiberjax.layout import TRAJECTORY, Layout

OPEN, TOKEN, GATE, COMPOSITION = "open", "token", "gate", "composition"
"""Parts that are no level: every gate open; the token's own gate; a gate without levels; the
pessimistic composition, the dual clip and the recovery."""


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
def numbers(chosen: Objective, log_ratio: jax.Array, batch: Seen) -> dict[str, Any]:
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
            "size": _pair(jnp.broadcast_to(size, drift.shape).astype(jnp.int32), layout, level),
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
    gated, held, budgets = silent.held(log_ratio, advantage, layout, hierarchy)
    drifts, levels = gated.means(log_ratio), {}
    for k, (level, both, budget) in enumerate(zip(gated.levels, held, budgets, strict=True)):
        beyond = jnp.where(both > budget, aggregate.ZEROED, aggregate.OPEN)
        levels[level] = {
            "drift": _pair(jnp.stack([drifts[k], -drifts[k]], axis=-1), gated, level),
            "held": _pair(both, gated, level),
            "budget": _pair(jnp.broadcast_to(budget, both.shape), gated, level),
            "place": _pair(beyond.astype(jnp.int8), gated, level),
            "size": _pair(jnp.broadcast_to(gated.sizes[k][:, None], both.shape), gated, level),
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
