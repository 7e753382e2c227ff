"""What a run logs about its gate: which level clipped, in which regime the trajectories are.

Everything is a reduction of `objective` (a `Mean`, a `Quantile` and their kin) over the tokens at
hand; inside `shard_map` the training step joins the shards with `objective.add_over`. Cells count
once, however their tokens are spread: each token adds its share of a cell.
"""

import jax
import jax.numpy as jnp

from fiberjax import objective, segments
from fiberjax.gates import aggregate, bundle
from fiberjax.gates.channels import MINUS, PLUS, channel, prepare
from fiberjax.gates.config import Budgets, Gate
from fiberjax.gates.hierarchy import Gating
from fiberjax.gates.scales import Held
from fiberjax.layout import TRAJECTORY, Layout
from fiberjax.objective import Effective, Max, Mean, Min, Reduction, Sum

GLOBAL_REGIMES = ("G-I", "G-II,r", "G-II", "G-III,r", "G-III")
"""Where the two channels of a trajectory sit: both open, one in rollback, one zeroed, none open
with one in rollback at least, both zeroed."""

LOCAL_REGIMES = ("L-I", "L-II", "L-III")
"""How many tokens of a trajectory have their own drift clipped: none, some, all."""

QUADRANTS = ("positive_plus", "positive_minus", "negative_plus", "negative_minus")
"""Signs of a token: of its advantage, above or below 0, and its log ratio's channel. Drift with the
advantage is in the first and the last, drift against it in the two between."""

QUANTILES = {"median": 0.5, "p99": 0.99}
"""Of a level's cells, by the end of a metric's name."""

_LARGEST_LOG_WEIGHT = 30.0
"""Nats. Squares of larger weights, added over tokens, would overflow."""


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
      The metrics of `ratio_metrics`, which cost next to nothing, and of `level_metrics`.
    """
    return ratio_metrics(log_ratio, layout) | level_metrics(
        gate, log_ratio, advantage, layout, budgets, old_log_prob=old_log_prob
    )


def level_metrics(
    gate: Gate,
    log_ratio: jax.Array,
    advantage: jax.Array,
    layout: Layout,
    budgets: Budgets,
    *,
    old_log_prob: jax.Array | None = None,
) -> dict[str, Reduction]:
    """What each level of a gate saw and did; a dict of metrics, arguments as `gate_metrics`.

    Returns:
      The metrics of `effective_sample_sizes`; `gate/clip_fraction/<level>`, the fraction of tokens
      whose own row of `∂ log G/∂ℓ` that level changed, and `actor/pg_clipfrac`, of those that some
      level did, though what two of them change may cancel; `gate/quadrant/<name>`, that of the
      tokens of each of `QUADRANTS`; for gates with levels `held_metrics`; for hierarchies
      `hierarchy_metrics`, and `channel_metrics` of their tower; for other gates those of the
      published tower over all levels.
    """
    masks = gate.clipped(log_ratio, advantage, layout, budgets, old_log_prob=old_log_prob)
    metrics = effective_sample_sizes(log_ratio, layout)
    changed = jnp.zeros_like(layout.mask)
    for level, mask in masks.items():
        metrics[f"gate/clip_fraction/{level}"] = _token_mean(mask, layout)
        changed |= mask
    metrics["actor/pg_clipfrac"] = _token_mean(changed, layout)
    held = gate.held(log_ratio, advantage, layout, budgets, old_log_prob=old_log_prob)
    metrics |= {} if held is None else held_metrics(held)
    # A gate without levels has no channels of its own; these say what levels would have seen.
    drift, credit = prepare(log_ratio, advantage, layout.mask)
    metrics |= _quadrant_metrics(changed, drift, credit)
    state = gate.inspect(log_ratio, advantage, layout, budgets, old_log_prob=old_log_prob)
    if state is None:
        tower = bundle.tower(drift, layout, variant="published")
        return metrics | channel_metrics(tower, layout)
    return metrics | channel_metrics(state.tower, state.layout) | hierarchy_metrics(state)


def ratio_metrics(log_ratio: jax.Array, layout: Layout) -> dict[str, Reduction]:
    """How far the policy moved from the one that sampled, whatever the gate; a dict of metrics.

    Args:
      log_ratio: float[B, T] or [N], nats.
      layout: where the tokens stand.

    Returns:
      `is_ratio/mean`, `min` and `max`; `actor/ppo_kl` and `actor/ppo_kl_k3`, the estimates k1 and
      k3 of KL(old ‖ current), nats a token; `actor/drift_over_one`, the fraction of tokens whose
      `|ℓ|` is above 1 nat; `gate/log_ratio_non_finite`, the number of real tokens whose log ratio
      is NaN or infinite, which no gate hides.
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
        "actor/drift_over_one": _token_mean(jnp.abs(log_ratio) > 1, layout),
        "gate/log_ratio_non_finite": Sum(
            jnp.sum((~jnp.isfinite(log_ratio) & layout.mask).astype(jnp.float32))
        ),
    }


def effective_sample_sizes(log_ratio: jax.Array, layout: Layout) -> dict[str, Reduction]:
    """How many tokens and cells carry the weight of all; a dict of metrics.

        ESS = (Σ w)² / (N Σ w²)          over the N tokens, or over the N cells of a level

        token                    wᵢ = rᵢ
        up to the trajectory     w_y = ∏ rᵢ over its tokens
        above                    w_z = the mean of the weights of its children

    A trajectory weighs what importance sampling gives it, without a root for its length, so the
    number falls with the length of answers. A cell above weighs as much as the mean of what it
    holds: near 1/N one prompt group, or domain, is all that the estimate is made of.

    Args:
      log_ratio: float[B, T] or [N], nats, of the current policy to the one that sampled.
      layout: where the tokens stand.

    Returns:
      `is_ratio/effective_sample_size/<level>`, in (0, 1], for "token" and every level. Log weights
      are taken within ±30 nats; NaN stays NaN.

    References:
      VCPO, arXiv 2602.17616 (of trajectories: where it falls, collapse follows).
    """
    log_ratio, _ = prepare(log_ratio, log_ratio, layout.mask)
    name = "is_ratio/effective_sample_size"
    ratio = jnp.where(layout.mask, _weight(log_ratio), 0)
    metrics: dict[str, Reduction] = {
        f"{name}/token": Effective(
            jnp.sum(ratio), jnp.sum(ratio**2), jnp.sum(layout.mask, dtype=ratio.dtype)
        )
    }
    total = layout.pushforward_tokens(log_ratio)
    weight = _weight(total)
    for k, level in enumerate(layout.levels):
        if 0 < k <= layout.index(TRAJECTORY):
            total = layout.pushforward(total, k - 1)
            weight = _weight(total)
        elif k > 0:
            weight = jnp.where(layout.sizes[k - 1] > 0, weight, 0)
            weight = segments.safe_divide(layout.pushforward(weight, k - 1), layout.sizes[k])
        of, share = _on_finest(weight, layout, level), layout.shares(level)
        parts = (jnp.sum(share * of), jnp.sum(share * of**2), jnp.sum(share))
        metrics[f"{name}/{level}"] = Effective(*parts)
    return metrics


def held_metrics(held: Held) -> dict[str, Reduction]:
    """How much of their budgets the cells of each gated level take up; a dict of metrics.

    Args:
      held: of `Gate.held`.

    Returns:
      For each level and side `gate/held/<level>/plus` and `minus`, the mean over its cells of what
      they hold against that budget, nothing where they lie on the other side. In the unit of the
      budgets: nats, of ratio deviations none.
    """
    metrics: dict[str, Reduction] = {}
    for level, drift in zip(held.layout.levels, held.drift, strict=True):
        for c, sign in ((PLUS, "plus"), (MINUS, "minus")):
            name = f"gate/held/{level}/{sign}"
            metrics[name] = _cell_mean(jnp.maximum(drift[:, c], 0), held.layout, level)
    return metrics


def channel_metrics(tower: bundle.Tower, layout: Layout) -> dict[str, Reduction]:
    """How far the cells of each level have drifted, up and down; a dict of metrics.

    Args:
      tower: of `bundle.tower`, over all levels of the layout.
      layout: the cells.

    Returns:
      For each level and its two channels `gate/channel/<level>/plus` and `minus`, the mean drift of
      its cells, nats; and by `QUANTILES` their `median` and `p99`, within 10 % (see
      `objective.Quantile`).
    """
    metrics: dict[str, Reduction] = {}
    for k, level in enumerate(layout.levels):
        share = layout.shares(level)
        for c, sign in ((PLUS, "plus"), (MINUS, "minus")):
            name, table = f"gate/channel/{level}/{sign}", tower.drift[k][:, c]
            metrics[name] = _cell_mean(table, layout, level)
            sizes = _on_finest(table, layout, level)
            for label, part in QUANTILES.items():
                metrics[f"{name}/{label}"] = objective.quantile(sizes, share, part)
    return metrics


def hierarchy_metrics(state: Gating) -> dict[str, Reduction]:
    """Fibers and regimes of a hierarchy; a dict of metrics.

    Args:
      state: what it decided, of `hierarchy.inspect` or a gate's own.

    Returns:
      `gate/fiber_residual`, the mean of `|u|`, nats; `gate/regime/<name>`, the fraction of
      trajectories (or of the finest cells, where trajectories are not gated) in each global and
      local regime.
    """
    layout = state.layout
    metrics: dict[str, Reduction] = {}
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


def _quadrant_metrics(
    changed: jax.Array, log_ratio: jax.Array, advantage: jax.Array
) -> dict[str, Reduction]:
    """The fraction of each quadrant's tokens that the gate changed; of prepared arrays."""
    channels = channel(log_ratio)
    metrics: dict[str, Reduction] = {}
    for index, name in enumerate(QUADRANTS):
        # Padding has no advantage, and tokens without one are in no quadrant.
        inside = (advantage > 0 if index < 2 else advantage < 0) & (channels == index % 2)
        found = (jnp.sum(of, dtype=jnp.float32) for of in (inside & changed, inside))
        metrics[f"gate/quadrant/{name}"] = Mean(*found)
    return metrics


def _cell_mean(table: jax.Array, layout: Layout, level: str) -> Mean:
    """The mean over the used cells of a level."""
    share = layout.shares(level)
    values = _on_finest(table.astype(jnp.float32), layout, level)
    return Mean(jnp.sum(share * values), jnp.sum(share))


def _on_finest(table: jax.Array, layout: Layout, level: str) -> jax.Array:
    """A level's table read at each finest cell; `[S_1]`, of fewer numbers than there are tokens."""
    for k in reversed(range(layout.index(level))):
        table = layout.lift(table, k)
    return table


def _weight(log_weight: jax.Array) -> jax.Array:
    """The exponential of a log weight within ±`_LARGEST_LOG_WEIGHT`; same shape."""
    return jnp.exp(jnp.clip(log_weight, -_LARGEST_LOG_WEIGHT, _LARGEST_LOG_WEIGHT))
