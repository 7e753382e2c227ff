"""Sign channels: every cell sums its upward and its downward drift apart.

The signed mean of log ratios can cancel while both directions drift far; two channels cannot. All
tables of a gate hold one column a channel, `[S, 2]`: PLUS, then MINUS.

A log ratio of exactly zero belongs to PLUS. On the first step on a fresh batch every token sits
there: with `sign(0) = 0` the tokens would belong to neither channel, and the first step would be
two or three times too large.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from fiberjax.layout import assert_tokens

PLUS, MINUS = 0, 1

LARGEST = 1e18
"""Nats. Log ratios beyond, infinite ones too, are taken as this far out: `∞ − ∞` is NaN."""


def prepare(
    log_ratio: jax.Array, advantage: jax.Array, mask: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Log ratios and advantages as gates compute with them; both of the mask's shape.

    Args:
      log_ratio: float[...], nats; anything at padding.
      advantage: float[...]; anything at padding.
      mask: bool[...], True at real tokens.

    Returns:
      Both in float32 or wider, and exactly 0 at padding, so that nothing there is ever seen. Log
      ratios are within ±`LARGEST`; NaN stays NaN. The gradient is 1 at real tokens, 0 at padding;
      advantages are constants.

    Raises:
      AssertionError: shapes differ (see `assert_tokens`).
    """
    assert_tokens({"log_ratio": log_ratio, "advantage": advantage}, mask)
    dtype = jnp.promote_types(log_ratio.dtype, jnp.float32)
    log_ratio = _finite(jnp.where(mask, log_ratio.astype(dtype), 0))
    advantage = jnp.where(mask, jax.lax.stop_gradient(advantage).astype(dtype), 0)
    return log_ratio, advantage


@jax.custom_jvp
def _finite(log_ratio: jax.Array) -> jax.Array:
    """The log ratio within ±`LARGEST`, with gradient 1 also beyond; same shape."""
    return jnp.clip(log_ratio, -LARGEST, LARGEST)


@_finite.defjvp
def _finite_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Value and directional derivative of `_finite`."""
    return _finite(*primals), tangents[0]


def channel(log_ratio: jax.Array) -> jax.Array:
    """The channel of every token: PLUS where `ℓ ≥ 0`, MINUS elsewhere; int32 of its shape.

    >>> channel(jnp.array([0.1, 0.0, -0.1])).tolist()
    [0, 0, 1]
    """
    return jnp.where(log_ratio < 0, MINUS, PLUS)


def sign(log_ratio: jax.Array) -> jax.Array:
    """`l = +1` where `ℓ ≥ 0`, `−1` elsewhere, never 0; the dtype and shape of the log ratios."""
    return jnp.where(log_ratio < 0, -1.0, 1.0).astype(log_ratio.dtype)


def per_channel(budget: ArrayLike | tuple[ArrayLike, ...], dtype: jnp.dtype) -> jax.Array:
    """A budget as a pair `[2]`, plus and minus; one number stands for both.

    A table `[S, 2]`, a pair for each cell of the level, is taken as it is.
    """
    pair = jnp.asarray(budget, dtype)
    return pair if pair.ndim == 2 else jnp.broadcast_to(pair.reshape(-1), (2,))
