"""Gates that couple nothing: each token's ratio is gated alone.

Each gate stands with the mask of the tokens it changes; the limit of all of them, the same gate
with infinite budgets, is `importance`.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from fiberjax.gates.channels import prepare
from fiberjax.layout import Layout, assert_tokens
from fiberjax.segments import safe_exp


def importance(log_ratio: jax.Array, advantage: jax.Array, layout: Layout) -> jax.Array:
    """Plain importance sampling, `Gᵢ = rᵢ`; the shape of the log ratios.

    Args:
      log_ratio: float[B, T] or [N], nats.
      advantage: not read.
      layout: where the tokens stand; only its mask is read.

    Returns:
      The ratio, 1 at padding; gradient `∂G/∂ℓ = r`. Nothing bounds it but its type (`safe_exp`).
    """
    log_ratio, _ = prepare(log_ratio, advantage, layout.mask)
    return safe_exp(log_ratio)


def never(log_ratio: jax.Array, advantage: jax.Array, layout: Layout) -> dict[str, jax.Array]:
    """The clip mask of a gate that changes nothing; {"token": bool[...]}, all False."""
    assert_tokens({"log_ratio": log_ratio, "advantage": advantage}, layout.mask)
    return {"token": jnp.zeros_like(layout.mask)}


def clip(
    log_ratio: jax.Array,
    advantage: jax.Array,
    layout: Layout,
    *,
    clip_low: ArrayLike,
    clip_high: ArrayLike,
) -> jax.Array:
    """The plain clip of the ratio on both sides; the shape of the log ratios.

        Gᵢ = clip(rᵢ, 1 − ε_lo, 1 + ε_hi)

    Its pessimistic composition is `ppo`.

    Args:
      log_ratio: float[B, T] or [N], nats.
      advantage: not read.
      layout: where the tokens stand; only its mask is read.
      clip_low: how far below 1 a ratio may fall; traced.
      clip_high: how far above 1 a ratio may rise; traced.

    Returns:
      The clipped ratio, 1 at padding; gradient `r` within and at the bounds, 0 beyond.
    """
    log_ratio, _ = prepare(log_ratio, advantage, layout.mask)
    return _between(safe_exp(log_ratio), 1 - clip_low, 1 + clip_high)


def clip_clipped(
    log_ratio: jax.Array,
    advantage: jax.Array,
    layout: Layout,
    *,
    clip_low: ArrayLike,
    clip_high: ArrayLike,
) -> dict[str, jax.Array]:
    """The tokens outside the bounds of `clip`; {"token": bool[...]}."""
    log_ratio, _ = prepare(log_ratio, advantage, layout.mask)
    ratio = safe_exp(log_ratio)
    return {"token": (ratio < 1 - clip_low) | (ratio > 1 + clip_high)}


def ppo(
    log_ratio: jax.Array,
    advantage: jax.Array,
    layout: Layout,
    *,
    clip_low: ArrayLike,
    clip_high: ArrayLike,
) -> jax.Array:
    """PPO's clip, also that of GRPO and, with `ε_hi > ε_lo`, DAPO; the shape of the log ratios.

        Gᵢ = min(rᵢ, 1 + ε_hi) if Âᵢ ≥ 0, else max(rᵢ, 1 − ε_lo)

    so that `GᵢÂᵢ` is the smaller of the clipped and the unclipped product.

    Args:
      log_ratio: float[B, T] or [N], nats.
      advantage: float of the same shape; read for its sign.
      layout: where the tokens stand; only its mask is read.
      clip_low: how far below 1 a ratio with `Â < 0` may fall; traced.
      clip_high: how far above 1 a ratio with `Â ≥ 0` may rise; traced.

    Returns:
      The gated ratio, 1 at padding; gradient `r` within and at the bound, 0 beyond.

    References:
      PPO, arXiv 1707.06347, eq. 7; DAPO, arXiv 2503.14476, eq. 8.

    >>> import numpy as np
    >>> from fiberjax.layout import make_layout
    >>> layout = make_layout(np.ones((1, 2), bool))
    >>> drift, advantage = jnp.array([[0.5, 0.5]]), jnp.array([[1.0, -1.0]])
    >>> gated = ppo(drift, advantage, layout, clip_low=0.2, clip_high=0.2)
    >>> [round(g, 3) for g in gated[0].tolist()]
    [1.2, 1.649]
    """
    log_ratio, advantage = prepare(log_ratio, advantage, layout.mask)
    return one_sided(safe_exp(log_ratio), advantage, 1 - clip_low, 1 + clip_high)


def ppo_clipped(
    log_ratio: jax.Array,
    advantage: jax.Array,
    layout: Layout,
    *,
    clip_low: ArrayLike,
    clip_high: ArrayLike,
) -> dict[str, jax.Array]:
    """The tokens that `ppo` stops: beyond the bound on their advantage's side; {"token": bool}."""
    log_ratio, advantage = prepare(log_ratio, advantage, layout.mask)
    return {"token": beyond(safe_exp(log_ratio), advantage, 1 - clip_low, 1 + clip_high)}


def one_sided(value: jax.Array, advantage: jax.Array, low: ArrayLike, high: ArrayLike) -> jax.Array:
    """PPO's rule on any value: bounded above where `Â ≥ 0`, below elsewhere; same shape."""
    bound = jnp.where(advantage >= 0, high, low).astype(value.dtype)
    return jnp.where(beyond(value, advantage, low, high), bound, value)


def beyond(value: jax.Array, advantage: jax.Array, low: ArrayLike, high: ArrayLike) -> jax.Array:
    """Where PPO's rule binds; bool of the values' shape."""
    return jnp.where(advantage >= 0, value > high, value < low)


def _between(value: jax.Array, low: ArrayLike, high: ArrayLike) -> jax.Array:
    """`clip(value, low, high)` with gradient 1 at the bounds; same shape."""
    low = jnp.asarray(low, value.dtype)
    high = jnp.asarray(high, value.dtype)
    return jnp.where(value < low, low, jnp.where(value > high, high, value))
