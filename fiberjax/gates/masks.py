"""Gates that keep a token's ratio or drop the token, by a statistic of its trajectory or the batch.

    Gᵢ = rᵢ where kept, 0 where dropped

A dropped token moves nothing, and still counts in the mean. None takes the pessimistic composition:
there is nothing between keeping and dropping.

    M2PO   the tokens with the largest log ratios of the batch
    TRM    trajectories that diverged in one token, or on average
    OPSM   bad trajectories that the policy has left behind
    TVPO   what moves on, in trajectories that moved far
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from fiberjax.gates import tokenwise
from fiberjax.gates.channels import prepare
from fiberjax.gates.sequence import trajectory_mean
from fiberjax.layout import Layout
from fiberjax.segments import safe_exp


def kept_ratio(log_ratio: jax.Array, drop: jax.Array, layout: Layout) -> jax.Array:
    """The ratio of each token, 0 where it is dropped and 1 at padding; the shape of the log ratios.

    Args:
      log_ratio: float[B, T] or [N], nats.
      drop: bool of the same shape.
      layout: where the tokens stand; only its mask is read.

    Returns:
      Gradient `r` where kept, 0 elsewhere.
    """
    ratio = tokenwise.importance(log_ratio, jnp.zeros_like(log_ratio), layout)
    return jnp.where(drop & layout.mask, 0, ratio)


def m2po(
    log_ratio: jax.Array, advantage: jax.Array, layout: Layout, *, second_moment: ArrayLike
) -> jax.Array:
    """M2PO: a bound on the second moment of the batch's log ratios; the shape of the log ratios.

    Of the tokens that PPO could clip, `Â ℓ > 0`, those with the largest `ℓ²` are dropped until the
    mean of `ℓ²` over the rest is within the bound. Outliers alone are dropped, however many tokens
    moved.

    Args:
      log_ratio: float[B, T] or [N], nats.
      advantage: float of the same shape; read for its sign.
      layout: where the tokens stand. The batch is all that its levels reach, over devices too.
      second_moment: the bound, nats squared; traced.

    Returns:
      The gated ratio, 1 at padding; gradient `r` where kept, 0 elsewhere.

    References:
      M2PO, arXiv 2510.01161, eqs. 4 and 5 and Algorithm 1. (The authors' code turns the bound into
      a clip range instead.)
    """
    return kept_ratio(log_ratio, _outliers(log_ratio, advantage, layout, second_moment), layout)


def m2po_clipped(
    log_ratio: jax.Array, advantage: jax.Array, layout: Layout, *, second_moment: ArrayLike
) -> dict[str, jax.Array]:
    """The tokens that `m2po` drops; {"token": bool[...]}."""
    return {"token": _outliers(log_ratio, advantage, layout, second_moment)}


def trm(
    log_ratio: jax.Array,
    advantage: jax.Array,
    layout: Layout,
    *,
    largest: ArrayLike,
    mean: ArrayLike,
    level: str = "trajectory",
) -> jax.Array:
    """TRM: trajectories outside the trust region are dropped; the shape of the log ratios.

        drop τ:  max_τ d > δ_max,  or  mean_τ d > δ_mean,   d = r − 1 − ℓ

    Args:
      log_ratio: float[B, T] or [N], nats.
      advantage: not read.
      layout: where the tokens stand.
      largest: `δ_max`, of one token, nats; traced.
      mean: `δ_mean`, over a trajectory, nats; traced.
      level: static, the level whose cells are dropped.

    Returns:
      The gated ratio, 1 at padding; gradient `r` where kept, 0 elsewhere.

    References:
      Trust region masking, arXiv 2512.23075, as described there and elsewhere. Its divergence is
      that of the whole vocabulary; `d` is the estimate k3 of KL(π_old ‖ π_θ) by the sampled token.
      Texts differ in the bounds: the preset has .1 and .002, and .05 and .001 are found too.
    """
    drop = _diverged(log_ratio, advantage, layout, largest, mean, level)
    return kept_ratio(log_ratio, drop, layout)


def trm_clipped(
    log_ratio: jax.Array,
    advantage: jax.Array,
    layout: Layout,
    *,
    largest: ArrayLike,
    mean: ArrayLike,
    level: str = "trajectory",
) -> dict[str, jax.Array]:
    """The tokens of the trajectories that `trm` drops; bool[...] under the level's name."""
    return {level: _diverged(log_ratio, advantage, layout, largest, mean, level)}


def opsm(
    log_ratio: jax.Array,
    advantage: jax.Array,
    layout: Layout,
    *,
    delta: ArrayLike,
    clip_low: ArrayLike,
    clip_high: ArrayLike,
    level: str = "trajectory",
) -> jax.Array:
    """OPSM: PPO's clip without bad trajectories already left behind; the shape of the log ratios.

        drop i:  Âᵢ < 0  and  mean_τ(−ℓ) > δ

    Args:
      log_ratio: float[B, T] or [N], nats.
      advantage: float of the same shape; read for its sign.
      layout: where the tokens stand.
      delta: `δ`, how far a trajectory may have fallen, nats a token; traced.
      clip_low: PPO's; traced.
      clip_high: PPO's; traced.
      level: static, the level whose cells are dropped.

    Returns:
      The gated ratio of `tokenwise.ppo` where kept, 0 where dropped, 1 at padding.

    References:
      Off-policy sequence masking: DeepSeek-V3.2, arXiv 2512.02556, as TRL has it; the bound is
      TRL's suggestion.
    """
    gated = tokenwise.ppo(log_ratio, advantage, layout, clip_low=clip_low, clip_high=clip_high)
    return jnp.where(_left_behind(log_ratio, advantage, layout, delta, level), 0, gated)


def opsm_clipped(
    log_ratio: jax.Array,
    advantage: jax.Array,
    layout: Layout,
    *,
    delta: ArrayLike,
    clip_low: ArrayLike,
    clip_high: ArrayLike,
    level: str = "trajectory",
) -> dict[str, jax.Array]:
    """The tokens that `opsm` clips, and those it drops; bool[...] by level."""
    clipped = tokenwise.ppo_clipped(
        log_ratio, advantage, layout, clip_low=clip_low, clip_high=clip_high
    )
    return clipped | {level: _left_behind(log_ratio, advantage, layout, delta, level)}


def tvpo(
    log_ratio: jax.Array,
    advantage: jax.Array,
    layout: Layout,
    *,
    delta: ArrayLike,
    level: str = "trajectory",
) -> jax.Array:
    """TVPO: trajectories that moved far may only move back; the shape of the log ratios.

        drop i:  mean_τ |r − 1| > δ  and  Âᵢ ℓᵢ > 0

    Args:
      log_ratio: float[B, T] or [N], nats.
      advantage: float of the same shape; read for its sign.
      layout: where the tokens stand.
      delta: `δ`, twice a total variation; traced.
      level: static, the level whose cells are measured.

    Returns:
      The gated ratio, 1 at padding; gradient `r` where kept, 0 elsewhere.

    References:
      VACO, arXiv 2603.01365, in the form that open-instruct gives it for language models. The
      bound of the preset is ours.
    """
    return kept_ratio(log_ratio, _moves_on(log_ratio, advantage, layout, delta, level), layout)


def tvpo_clipped(
    log_ratio: jax.Array,
    advantage: jax.Array,
    layout: Layout,
    *,
    delta: ArrayLike,
    level: str = "trajectory",
) -> dict[str, jax.Array]:
    """The tokens that `tvpo` drops; bool[...] under the level's name."""
    return {level: _moves_on(log_ratio, advantage, layout, delta, level)}


def _outliers(
    log_ratio: jax.Array, advantage: jax.Array, layout: Layout, bound: ArrayLike
) -> jax.Array:
    """Whether M2PO drops each token; bool[...].

    The mean of the `k` smallest squares grows with `k`, so the largest square that may stay is
    found by bisection: over the bits of non-negative floats, which are ordered as the numbers are.
    Each step adds two numbers over the devices, and none sorts the batch.
    """
    log_ratio, advantage = prepare(log_ratio, advantage, layout.mask)
    log_ratio, axes = lax.stop_gradient(log_ratio), layout.all_axes()
    square, counted = log_ratio**2, advantage * log_ratio > 0
    width = jnp.finfo(square.dtype).bits
    bits = lax.bitcast_convert_type(square, jnp.dtype(f"int{width}"))

    def halve(_: jax.Array, interval: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = interval
        middle = low + (high - low + 1) // 2
        stays = counted & (bits <= middle)
        excess = jnp.sum(jnp.where(stays, square - bound, 0))
        within = (lax.psum(excess, axes) if axes else excess) <= 0
        return jnp.where(within, middle, low), jnp.where(within, high, middle - 1)

    least = jnp.zeros((), bits.dtype)
    most = lax.bitcast_convert_type(jnp.asarray(jnp.inf, square.dtype), bits.dtype)
    largest, _ = lax.fori_loop(0, width, halve, (least, most))
    return counted & (bits > largest)


def _diverged(
    log_ratio: jax.Array,
    advantage: jax.Array,
    layout: Layout,
    largest: ArrayLike,
    mean: ArrayLike,
    level: str,
) -> jax.Array:
    """Whether TRM drops each token's trajectory; bool[...]."""
    log_ratio, _ = prepare(log_ratio, advantage, layout.mask)
    log_ratio = lax.stop_gradient(log_ratio)
    divergence = jnp.expm1(log_ratio) - log_ratio
    beyond = trajectory_mean((divergence > largest).astype(divergence.dtype), layout, level) > 0
    return (beyond | (trajectory_mean(divergence, layout, level) > mean)) & layout.mask


def _left_behind(
    log_ratio: jax.Array, advantage: jax.Array, layout: Layout, delta: ArrayLike, level: str
) -> jax.Array:
    """Whether OPSM drops each token; bool[...]."""
    log_ratio, advantage = prepare(log_ratio, advantage, layout.mask)
    fallen = -trajectory_mean(lax.stop_gradient(log_ratio), layout, level)
    return (advantage < 0) & (fallen > delta)


def _moves_on(
    log_ratio: jax.Array, advantage: jax.Array, layout: Layout, delta: ArrayLike, level: str
) -> jax.Array:
    """Whether TVPO drops each token; bool[...]."""
    log_ratio, advantage = prepare(log_ratio, advantage, layout.mask)
    log_ratio = lax.stop_gradient(log_ratio)
    moved = jnp.abs(safe_exp(log_ratio) - 1)
    return (trajectory_mean(moved, layout, level) > delta) & (advantage * log_ratio > 0)
