"""What a run logs about its gate: which level clipped, in which regime the trajectories are.

Everything is a reduction of `objective` (`Mean`, `Sum`, `Max`, `Min`) over the tokens at hand;
inside `shard_map` the training step joins the shards with `objective.add_over`. Cells count once,
however their tokens are spread: each token adds its share of a cell.
"""

import jax
import jax.numpy as jnp

from fiberjax import objective
from fiberjax.gates import aggregate
from fiberjax.gates.config import Budgets, Gate
from fiberjax.gates.hierarchy import Gating
from fiberjax.layout import TRAJECTORY, Layout
from fiberjax.objective import Max, Mean, Min, Reduction, Sum

GLOBAL_REGIMES = ("G-I", "G-II,r", "G-II", "G-III,r", "G-III")
"""Where the two channels of a trajectory sit: both open, one in rollback, one zeroed, none open
with one in rollback at least, both zeroed."""

LOCAL_REGIMES = ("L-I", "L-II", "L-III")
"""How many tokens of a trajectory have their own drift clipped: none, some, all."""


def gate_metrics(
    gate: Gate,
    log_ratio: jax.Array,
    advantage: jax.Array,
    layout: Layout,
    budgets: Budgets,
    *,
    old_log_prob: jax.Array | None = None,
) -> dict[str, Reduction]:
    """Everything worth logging about a gate on a batch; a dict of metrics by name.

    Args:
      gate: of `gates.from_config`.
      log_ratio: float[B, T] or [N], nats.
      advantage: float of the same shape.
      layout: where the tokens stand.
      budgets: the gate's.
      old_log_prob: float of the same shape, nats, for gates that need it.

    Returns:
      The metrics of `ratio_metrics`; `actor/pg_clipfrac`, the fraction of tokens whose own row of
      `∂ log G/∂ℓ` the gate changed, and `gate/clip_fraction/<level>`, that of each level; for
      hierarchies those of `hierarchy_metrics`.
    """
    masks = gate.clipped(log_ratio, advantage, layout, budgets, old_log_prob=old_log_prob)
    metrics = ratio_metrics(log_ratio, layout)
    changed = jnp.zeros_like(layout.mask)
    for level, mask in masks.items():
        metrics[f"gate/clip_fraction/{level}"] = _token_mean(mask, layout)
        changed |= mask
    metrics["actor/pg_clipfrac"] = _token_mean(changed, layout)
    state = gate.inspect(log_ratio, advantage, layout, budgets, old_log_prob=old_log_prob)
    if state is not None:
        metrics |= hierarchy_metrics(state)
    return metrics


def ratio_metrics(log_ratio: jax.Array, layout: Layout) -> dict[str, Reduction]:
    """How far the policy moved from the one that sampled, whatever the gate; a dict of metrics.

    Args:
      log_ratio: float[B, T] or [N], nats.
      layout: where the tokens stand.

    Returns:
      `is_ratio/mean`, `min` and `max`; `actor/ppo_kl` and `actor/ppo_kl_k3`, the estimates k1 and
      k3 of KL(old ‖ current), nats a token; `gate/log_ratio_non_finite`, the number of real tokens
      whose log ratio is NaN or infinite, which no gate hides.
    """
    # As it comes, unlike what gates compute with: infinities are to be seen.
    dtype = jnp.promote_types(log_ratio.dtype, jnp.float32)
    log_ratio = jnp.where(layout.mask, log_ratio.astype(dtype), 0)
    ratio = jnp.exp(log_ratio)
    return {
        "is_ratio/mean": _token_mean(ratio, layout),
        "is_ratio/min": Min(jnp.min(jnp.where(layout.mask, ratio, jnp.inf))),
        "is_ratio/max": Max(jnp.max(jnp.where(layout.mask, ratio, -jnp.inf))),
        "actor/ppo_kl": _token_mean(-log_ratio, layout),
        "actor/ppo_kl_k3": _token_mean(jnp.expm1(log_ratio) - log_ratio, layout),
        "gate/log_ratio_non_finite": Sum(
            jnp.sum((~jnp.isfinite(log_ratio) & layout.mask).astype(jnp.float32))
        ),
    }


def hierarchy_metrics(state: Gating) -> dict[str, Reduction]:
    """Channels, fibers and regimes of a hierarchy; a dict of metrics.

    Args:
      state: what it decided, of `hierarchy.inspect` or a gate's own.

    Returns:
      For each gated level `gate/channel/<level>/plus` and `minus`, the mean drift of its cells,
      nats; `gate/fiber_residual`, the mean of `|u|`, nats; `gate/regime/<name>`, the fraction of
      trajectories (or of the finest cells, where trajectories are not gated) in each global and
      local regime.
    """
    layout = state.layout
    metrics: dict[str, Reduction] = {}
    for k, level in enumerate(layout.levels):
        for c, name in enumerate(("plus", "minus")):
            table = state.tower.drift[k][:, c]
            metrics[f"gate/channel/{level}/{name}"] = _cell_mean(table, layout, level)
    metrics["gate/fiber_residual"] = _token_mean(jnp.abs(state.own_drift), layout)

    level = TRAJECTORY if TRAJECTORY in layout.levels else layout.levels[0]
    k = layout.index(level)
    regime = global_regime(
        state.tower.residual[k],
        state.budgets[k],
        state.tower.size[k],
        hold=state.base_gate == "hold",
    )
    for index, name in enumerate(GLOBAL_REGIMES):
        metrics[f"gate/regime/{name}"] = _cell_mean(regime == index, layout, level)
    regime = local_regime(state.fiber_clipped, layout, level)
    for index, name in enumerate(LOCAL_REGIMES):
        metrics[f"gate/regime/{name}"] = _cell_mean(regime == index, layout, level)
    return metrics


def global_regime(
    residual: jax.Array, budget: jax.Array, size: jax.Array, *, hold: bool = False
) -> jax.Array:
    """Which of `GLOBAL_REGIMES` each cell is in; int32[S].

    Args:
      residual: float[S, 2], nats, by channel.
      budget: float[2], nats.
      size: float[S, 1] or [S, 2], the children counted.
      hold: static, the gate holds at its budget: a closed channel then counts as zeroed, for its
        slope is 0.

    >>> residual = jnp.array([[0.05, 0.0], [0.2, 0.0]])
    >>> global_regime(residual, jnp.array([0.1, 0.1]), jnp.array([[4.0], [4.0]])).tolist()
    [0, 2]
    """
    place = aggregate.position(residual, budget, size)
    if hold:
        place = jnp.where(place == aggregate.ROLLBACK, aggregate.ZEROED, place)
    falling = jnp.sum(place == aggregate.ROLLBACK, axis=-1)
    zeroed = jnp.sum(place == aggregate.ZEROED, axis=-1)
    one = jnp.where(zeroed == 1, 2, 1)
    two = jnp.where(zeroed == 2, 4, 3)
    return jnp.where(falling + zeroed == 0, 0, jnp.where(falling + zeroed == 1, one, two))


def local_regime(fiber_clipped: jax.Array, layout: Layout, level: str) -> jax.Array:
    """Which of `LOCAL_REGIMES` each cell of a level is in; int32[S].

    Args:
      fiber_clipped: bool[...], True at real tokens whose own drift is clipped.
      layout: where the tokens stand.
      level: static.
    """
    count = layout.pushforward_tokens(fiber_clipped.astype(jnp.int32))
    for k in range(layout.index(level)):
        count = layout.pushforward(count, k)
    total = layout.tokens_of(level)
    return jnp.where(count == 0, 0, jnp.where(count == total, 2, 1))


def _token_mean(values: jax.Array, layout: Layout) -> Mean:
    """The mean over real tokens."""
    return objective.mean(values, layout, weighting="token")


def _cell_mean(table: jax.Array, layout: Layout, level: str) -> Mean:
    """The mean over the used cells of a level, each token adding its share of its cell."""
    tokens = layout.lift_from(layout.tokens_of(level), level)
    share = jnp.where(layout.mask, 1 / jnp.maximum(tokens, 1).astype(jnp.float32), 0)
    values = layout.lift_from(table.astype(jnp.float32), level)
    return Mean(jnp.sum(share * values), jnp.sum(share))
