"""The behaviour edge: weights and masks for a sampler that disagrees with the trainer.

Three ratios stand between the current policy and the distribution that a token was drawn from:

    behaviour   B = π_old / q     the trainer's old policy over the sampler
    update      U = π_θ / π_old   what gates read
    direct      E = π_θ / q = B U

`B` is known before the first update and stays: a number a token, which weighs its contribution. A
gate on `U` and a weight on `B` go together. A gate that is given `E` instead has `B` within, and
must not get it a second time.

All corrections take the same arguments and give one weight a token, a constant in gradients.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from fiberjax.segments import safe_divide, safe_exp

Correction = Callable[..., jax.Array]
"""`(log_prob, sampler_log_prob, mask, *, floor, cap) -> weight`, all of one shape [R, C]."""


def truncate(
    log_prob: jax.Array,
    sampler_log_prob: jax.Array,
    mask: jax.Array,
    *,
    floor: ArrayLike,
    cap: ArrayLike,
) -> jax.Array:
    """The ratio of each token, capped, `w = min(B, cap)`; float[R, C].

    Args:
      log_prob: float[R, C], one trajectory a row, nats: the tokens under the trainer's copy of the
        sampling policy.
      sampler_log_prob: float of the same shape, nats, as the sampler reported it.
      mask: bool of the same shape, the real tokens.
      floor: not read.
      cap: the largest weight, commonly 2 to 3; traced.

    Returns:
      The weights, 1 at padding.

    References:
      Truncated importance sampling: Ionides 2008; for samplers, arXiv 2510.18855.
    """
    del floor
    ratio = safe_exp(_gap(log_prob, sampler_log_prob, mask))
    return jnp.minimum(ratio, cap)


def truncate_trajectory(
    log_prob: jax.Array,
    sampler_log_prob: jax.Array,
    mask: jax.Array,
    *,
    floor: ArrayLike,
    cap: ArrayLike,
) -> jax.Array:
    """The ratio of each whole trajectory, capped, `w = min(Π_τ B, cap)`; float[R, C].

    Arguments and result as `truncate`. Unbiased but for the cap, and the noisier the longer an
    answer is.
    """
    del floor
    gap = _gap(log_prob, sampler_log_prob, mask)
    weight = jnp.minimum(safe_exp(jnp.sum(gap, axis=-1, keepdims=True)), cap)
    return jnp.where(mask, weight, 1)


def band(
    log_prob: jax.Array,
    sampler_log_prob: jax.Array,
    mask: jax.Array,
    *,
    floor: ArrayLike,
    cap: ArrayLike,
) -> jax.Array:
    """IcePop: the ratio of each token, 0 outside a band, `w = B · 1[floor ≤ B ≤ cap]`; float[R, C].

    Arguments and result as `truncate`; `floor` is the smallest ratio kept. A token on which the two
    disagree this much is left out instead of being trusted in part.

    References:
      IcePop: Ring-1T, arXiv 2510.18855; its band is .5 to 5.
    """
    ratio = safe_exp(_gap(log_prob, sampler_log_prob, mask))
    return jnp.where((ratio >= floor) & (ratio <= cap), ratio, 0)


def mask_tokens(
    log_prob: jax.Array,
    sampler_log_prob: jax.Array,
    mask: jax.Array,
    *,
    floor: ArrayLike,
    cap: ArrayLike,
) -> jax.Array:
    """`band` with the floor `1/cap`; float[R, C]. Arguments and result as `truncate`."""
    del floor
    ratio = safe_exp(_gap(log_prob, sampler_log_prob, mask))
    return jnp.where((ratio <= cap) & (ratio * cap >= 1), ratio, 0)


def reject(
    log_prob: jax.Array,
    sampler_log_prob: jax.Array,
    mask: jax.Array,
    *,
    floor: ArrayLike,
    cap: ArrayLike,
) -> jax.Array:
    """Geometric rejection: 1, or 0 for whole trajectories off the band; float[R, C].

        w = 1[floor ≤ exp(mean_τ log B) ≤ cap]

    Arguments and result as `truncate`. The bounds are those of a mean of many tokens, so far nearer
    to 1 than a token's: verl's are .999 and 1.001.
    """
    gap = _gap(log_prob, sampler_log_prob, mask)
    tokens = jnp.sum(mask, axis=-1, keepdims=True).astype(gap.dtype)
    mean = safe_exp(safe_divide(jnp.sum(gap, axis=-1, keepdims=True), tokens))
    return jnp.where(mask & ~((mean >= floor) & (mean <= cap)), 0, 1).astype(gap.dtype)


CORRECTIONS: Mapping[str, Correction] = {
    "truncate": truncate,
    "truncate_trajectory": truncate_trajectory,
    "mask": mask_tokens,
    "icepop": band,
    "reject": reject,
}
"""By the name that `config.training.mismatch` gives them."""


def _gap(log_prob: jax.Array, sampler_log_prob: jax.Array, mask: jax.Array) -> jax.Array:
    """`log B` of each token, 0 at padding, in float32 or wider; a constant."""
    log_prob, sampler_log_prob = jnp.asarray(log_prob), jnp.asarray(sampler_log_prob)
    dtype = jnp.promote_types(log_prob.dtype, jnp.float32)
    gap = jax.lax.stop_gradient(log_prob.astype(dtype) - sampler_log_prob.astype(dtype))
    return jnp.where(mask, gap, 0)
