"""Levels with advantages of their own, and budgets by the dispersion of rewards.

Both are the authors', from research code that they published after FiberPO, written here over the
tower of `bundle`. With `Δₖ` the gated drift of a cell, plus less minus, trajectories, groups and
domains give

    Δ_dom Â_dom + (Δ_g − Δ_dom) Â_g + (Δ_τ − Δ_g) Â_τ

a trajectory: what a level's gate leaves of its own part of the drift meets the advantage of that
level. A trajectory's advantage at every level gives `Δ_τ Â_τ` back, and where such advantages are
centred in their groups, what the levels above leave adds up to zero over a group: then groups and
domains act through nothing but what their drift takes off the residuals below.

A gate reads one advantage a token, so no config reaches these: they are for losses of one's own.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from fiberjax.gates import bundle
from fiberjax.gates.hierarchy import Hierarchy, inspect
from fiberjax.layout import TRAJECTORY, Layout
from fiberjax.segments import safe_divide


def gated_drift(
    log_ratio: jax.Array, layout: Layout, hierarchy: Hierarchy
) -> tuple[Layout, tuple[jax.Array, ...]]:
    """`Δₖ`, the gated drift of every cell; the layout of the gated levels, and float[S_k] for each.

    Args:
      log_ratio: float[B, T] or [N], nats.
      layout: where the tokens stand.
      hierarchy: levels, budgets and variant; its token budgets and `α` are not read.

    Returns:
      Plus less minus, in nats (without a unit for ratio deviations). Where every gate is open, the
      signed mean drift of the published bundle, and of the exact one the difference of the means
      of its channels; the gradient is the identity's on-policy.

    Raises:
      ValueError: budgets follow advantages, of which there are several here.
    """
    if hierarchy.budget_scale != "none":
        raise ValueError(
            f"budget_scale {hierarchy.budget_scale!r} reads one advantage a token: expected "
            "'none', or a table of budgets for each cell, such as those of `dispersion`"
        )
    state = inspect(log_ratio, jnp.zeros_like(log_ratio), layout, hierarchy)
    tower, layout, gated = state.tower, state.layout, []
    for k in range(len(layout.levels)):
        above = bundle.Tower(tower.drift[k:], tower.residual[k:], tower.size[k:])
        weight = bundle.log_weight(
            above,
            layout.select(layout.levels[k:]),
            state.budgets[k:],
            base_gate=hierarchy.base_gate,
            lift=hierarchy.lift,
        )
        gated.append(weight[:, 0] - weight[:, 1])
    return layout, tuple(gated)


def levelwise(
    log_ratio: jax.Array,
    advantages: Mapping[str, jax.Array],
    layout: Layout,
    hierarchy: Hierarchy,
) -> jax.Array:
    """What the cells of each token contribute, each level at its own advantage; float[...].

        Σₖ (Δₖ − Δₖ₊₁) Âₖ      over the cells that hold the token, Δ = 0 above the coarsest

    Args:
      log_ratio: float[B, T] or [N], nats.
      advantages: for each level of the hierarchy, float[S_k], the advantage of its cells.
      layout: where the tokens stand.
      hierarchy: levels, budgets and variant; its token budgets and `α` are not read.

    Returns:
      One value for all tokens of a finest cell, whose `objective.mean` weighted by trajectory is to
      be maximised. 0 at padding; advantages are constants.

    Raises:
      ValueError: the advantages are not those of the hierarchy's levels.

    >>> import numpy as np
    >>> from fiberjax.layout import make_layout
    >>> layout = make_layout(np.ones((2, 2), bool), {"group": np.array([0, 0])})
    >>> hierarchy = Hierarchy(budgets={"trajectory": 1.0, "group": 1.0}, epsilon=1.0)
    >>> advantages = {"trajectory": jnp.array([1.0, -1.0]), "group": jnp.array([2.0])}
    >>> drift = jnp.array([[0.3, 0.3], [0.1, 0.1]])
    >>> [round(v, 3) for v in levelwise(drift, advantages, layout, hierarchy)[:, 0].tolist()]
    [0.5, 0.5]
    """
    if set(advantages) != set(hierarchy.budgets):
        raise ValueError(
            f"advantages are of levels {tuple(advantages)}; expected {tuple(hierarchy.budgets)}"
        )
    levels, gated = gated_drift(log_ratio, layout, hierarchy)
    total = jnp.zeros_like(gated[-1])
    for k in reversed(range(len(gated))):
        own = gated[k]
        if k + 1 < len(gated):
            own, total = own - levels.lift(gated[k + 1], k), levels.lift(total, k)
        total = total + own * jax.lax.stop_gradient(advantages[levels.levels[k]])
    return jnp.where(layout.mask, levels.lift_tokens(total), 0)


def dispersion(reward: jax.Array, layout: Layout) -> dict[str, jax.Array]:
    """The mean absolute deviation of rewards in every cell; float[S_k] by level above trajectories.

        mean over the cell's trajectories of |R − R̄|

    As budgets, `C * dispersion[:, None] * ones(2)` a level, a cell whose rewards agree is held to
    0 and one where they part far may drift.

    Args:
      reward: float[M], one a trajectory; anything at unused cells.
      layout: where the tokens stand.

    Returns:
      At least 0, and 0 but for rounding where all rewards of a cell are equal; their unit.

    >>> import numpy as np
    >>> from fiberjax.layout import make_layout
    >>> layout = make_layout(np.ones((4, 1), bool), {"group": np.array([0, 0, 1, 1])})
    >>> dispersion(jnp.array([1.0, 0.0, 1.0, 1.0]), layout)["group"].tolist()
    [0.5, 0.0]
    """
    first = layout.index(TRAJECTORY)
    used = jnp.asarray(layout.sizes[first]) > 0
    reward = jnp.where(used, reward, 0)
    found = {}
    for last in range(first + 1, len(layout.levels)):

        def pushed(table: jax.Array, last: int = last) -> jax.Array:
            for k in range(first, last):
                table = layout.pushforward(table, k)
            return table

        count = pushed(used.astype(reward.dtype))
        centre = safe_divide(pushed(reward), count)
        for k in reversed(range(first, last)):
            centre = layout.lift(centre, k)
        deviation = jnp.where(used, jnp.abs(reward - centre), 0)
        found[layout.levels[last]] = safe_divide(pushed(deviation), count)
    return found
