"""Looking into a gate: full Jacobians, and what each level does to the gradient of each token.

For notebooks and tests; costs grow with the square of the tokens or with the number of levels.
"""

import dataclasses

import jax
import jax.numpy as jnp

from fiberjax import objective
from fiberjax.gates.config import Budgets, Gate
from fiberjax.layout import Layout


def jacobian(
    gate: Gate,
    log_ratio: jax.Array,
    advantage: jax.Array,
    layout: Layout,
    budgets: Budgets,
    *,
    log: bool = True,
    old_log_prob: jax.Array | None = None,
) -> jax.Array:
    """How every token's log ratio moves every token's gated ratio; float[N, N].

        ∂ log Gᵢ/∂ℓⱼ   or, with `log=False`,   ∂Gᵢ/∂ℓⱼ

    Args:
      gate: of `gates.from_config`.
      log_ratio: float[B, T] or [N], nats; rows are laid end to end.
      advantage: float of the same shape.
      layout: where the tokens stand.
      budgets: the gate's.
      log: static, whether to take the log of the gated ratio; not where a gate gives 0.
      old_log_prob: float of the same shape, nats, for gates that need it.

    Returns:
      Row `i` is token `i`'s gated ratio; rows and columns of padding are 0.

    >>> import numpy as np
    >>> import fiberjax as fj
    >>> layout = fj.make_layout(np.ones((1, 2), bool))
    >>> fiberpo = fj.gate("fiberpo")
    >>> on_policy = jnp.zeros((1, 2))
    >>> jacobian(fiberpo.structure, on_policy, on_policy, layout, fiberpo.budgets).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """

    def gated(flat: jax.Array) -> jax.Array:
        shaped = flat.reshape(log_ratio.shape)
        value = gate(shaped, advantage, layout, budgets, old_log_prob=old_log_prob).ravel()
        return jnp.log(value) if log else value

    return jax.jacrev(gated)(jnp.asarray(log_ratio).ravel())


def limit_jacobian(
    gate: Gate, log_ratio: jax.Array, layout: Layout, *, log: bool = True
) -> jax.Array:
    """The same of the gate's limit; float[N, N]. Arguments as `jacobian`."""

    def gated(flat: jax.Array) -> jax.Array:
        value = gate.limit(flat.reshape(log_ratio.shape), layout).ravel()
        return jnp.log(value) if log else value

    return jax.jacrev(gated)(jnp.asarray(log_ratio).ravel())


def open_levels(budgets: Budgets, *, levels: tuple[str, ...], token: bool) -> Budgets:
    """The budgets of a hierarchy with some gates opened, by infinite budgets; a new pytree.

    Args:
      budgets: of a hierarchy.
      levels: static, the levels to open.
      token: static, whether the token's gate is opened too.
    """
    opened = {
        level: jnp.full_like(budget, jnp.inf) if level in levels else budget
        for level, budget in budgets["budgets"].items()
    }
    fibers: Budgets = {
        key: None if budgets[key] is None else jnp.full_like(budgets[key], jnp.inf)
        for key in ("epsilon", "epsilon_negative", "upper_negative", "weight_cap")
        if token and key in budgets
    }
    return {**budgets, **fibers, "budgets": opened}


def attribution(
    gate: Gate,
    log_ratio: jax.Array,
    advantage: jax.Array,
    layout: Layout,
    budgets: Budgets,
    *,
    weighting: str = "trajectory",
) -> dict[str, jax.Array]:
    """What each level of a hierarchy adds to each token's gradient; float[...] by level.

    The gradient of the surrogate with every gate open, and then what changes as the gates are
    closed one level after the other, coarsest first and tokens last.

    Args:
      gate: a hierarchy, of `gates.from_config`.
      log_ratio: float[B, T] or [N], nats.
      advantage: float of the same shape.
      layout: where the tokens stand.
      budgets: the gate's.
      weighting: static, of the objective.

    Returns:
      "open", then each level from the coarsest down, then "token"; they add up to the gradient of
      the surrogate. The pessimistic composition, the dual clip and the recovery are left out: they
      weigh whole contributions and belong to no level.

    Raises:
      ValueError: the gate is no hierarchy.
    """
    if "budgets" not in budgets:
        raise ValueError(f"gate {gate.name!r} is no hierarchy: it has no levels to attribute to")
    plain = dataclasses.replace(gate, pessimistic=False, recovery=False)
    budgets = {**budgets, "dual_clip": None}

    def gradient(budgets: Budgets) -> jax.Array:
        def value(log_ratio: jax.Array) -> jax.Array:
            gated = plain(log_ratio, advantage, layout, budgets)
            return objective.surrogate(gated, advantage, layout, weighting=weighting).value

        return jax.grad(value)(jnp.asarray(log_ratio))

    levels = [level for level in layout.levels if level in budgets["budgets"]]
    opened = (levels[:k] for k in reversed(range(len(levels) + 1)))
    steps = [*(open_levels(budgets, levels=tuple(of), token=True) for of in opened), budgets]
    # They differ in numbers alone: one program for all of them.
    stages = jax.vmap(gradient)(jax.tree.map(lambda *of: jnp.stack(of), *steps))
    added = jnp.concatenate([stages[:1], stages[1:] - stages[:-1]])
    return dict(zip(("open", *reversed(levels), "token"), added, strict=True))
