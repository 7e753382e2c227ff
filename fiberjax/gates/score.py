"""Gates that weigh the score function instead of bounding a ratio, and SAPO's soft gate.

    Gᵢ = sg(weightᵢ) · exp(ℓᵢ − sg(ℓᵢ)),   sg = stop_gradient

The gradient of such a gate is `weight · ∇ log π`: no token is silenced by a clip's flat part, it is
only weighed. They are bounded by their weight already, so none takes the pessimistic composition.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from fiberjax.gates import tokenwise
from fiberjax.gates.channels import prepare
from fiberjax.layout import Layout, assert_tokens
from fiberjax.segments import safe_exp


@jax.custom_jvp
def unit_score(log_ratio: jax.Array) -> jax.Array:
    """The number 1 with the gradient of `ℓ`, `exp(ℓ − sg(ℓ))`; same shape. NaN stays NaN."""
    # Without its exponential: XLA takes one to be needed, of zeros, for every token.
    return 1 + (log_ratio - log_ratio)


@unit_score.defjvp
def _unit_score_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Value and directional derivative of `unit_score`, which is its own derivative."""
    value = unit_score(*primals)
    return value, value * tangents[0]


def cispo(
    log_ratio: jax.Array,
    advantage: jax.Array,
    layout: Layout,
    *,
    clip_low: ArrayLike,
    clip_high: ArrayLike,
) -> jax.Array:
    """CISPO: a clipped importance weight on the score; the shape of the log ratios.

        Gᵢ = sg(clip(rᵢ, 1 − ε_lo, 1 + ε_hi)) · exp(ℓᵢ − sg(ℓᵢ))

    Args:
      log_ratio: float[B, T] or [N], nats.
      advantage: not read.
      layout: where the tokens stand; only its mask is read.
      clip_low: how far below 1 the weight may fall; 1 and more leave it free. Traced.
      clip_high: how far above 1 the weight may rise; traced.

    Returns:
      The gated ratio, 1 at padding; `∂G/∂ℓ = G`.

    References:
      MiniMax-M1, arXiv 2506.13585, eqs. 4 and 5.

    >>> import numpy as np
    >>> from fiberjax.layout import make_layout
    >>> layout = make_layout(np.ones((1, 2), bool))
    >>> drift = jnp.array([[2.0, 0.0]])
    >>> cispo(drift, drift, layout, clip_low=1.0, clip_high=4.0).tolist()
    [[5.0, 1.0]]
    """
    weight = tokenwise.clip(log_ratio, advantage, layout, clip_low=clip_low, clip_high=clip_high)
    masked, _ = prepare(log_ratio, advantage, layout.mask)
    return jax.lax.stop_gradient(weight) * unit_score(masked)


def sapo(
    log_ratio: jax.Array,
    advantage: jax.Array,
    layout: Layout,
    *,
    temperature_positive: ArrayLike,
    temperature_negative: ArrayLike,
) -> jax.Array:
    """SAPO: a soft gate on the ratio; the shape of the log ratios.

        Gᵢ = (4/τ) σ(τ(rᵢ − 1)),   τ = τ_pos if Âᵢ > 0 else τ_neg

    Args:
      log_ratio: float[B, T] or [N], nats.
      advantage: float of the same shape; read for its sign.
      layout: where the tokens stand; only its mask is read.
      temperature_positive: `τ_pos`, one over a ratio; traced. Higher closes earlier.
      temperature_negative: `τ_neg`; traced.

    Returns:
      The gated ratio, 2/τ on-policy and 1 at padding; slope 1 in `r` on-policy, fading on both
      sides as `sech²(τ(r − 1)/2)`.

    References:
      SAPO, arXiv 2511.20347, eqs. 5 and 6.
    """
    log_ratio, advantage = prepare(log_ratio, advantage, layout.mask)
    temperature = jnp.where(advantage > 0, temperature_positive, temperature_negative)
    temperature = temperature.astype(log_ratio.dtype)
    soft = 4 / temperature * jax.nn.sigmoid(temperature * (safe_exp(log_ratio) - 1))
    return jnp.where(layout.mask, soft, 1)


def sapo_clipped(
    log_ratio: jax.Array,
    advantage: jax.Array,
    layout: Layout,
    *,
    temperature_positive: ArrayLike,
    temperature_negative: ArrayLike,
) -> dict[str, jax.Array]:
    """The tokens that `sapo` damps; {"token": bool[...]}: a soft gate damps all off-policy ones."""
    del temperature_positive, temperature_negative
    log_ratio, _ = prepare(log_ratio, advantage, layout.mask)
    return {"token": jnp.exp(log_ratio) != 1}


def dppo_tv(
    log_ratio: jax.Array,
    advantage: jax.Array,
    layout: Layout,
    *,
    old_log_prob: jax.Array,
    delta_low: ArrayLike,
    delta_high: ArrayLike,
    weight_cap: ArrayLike,
) -> jax.Array:
    """DPPO, total-variation form; the shape of the log ratios.

        Gᵢ = sg(min(rᵢ, c) · keepᵢ) · exp(ℓᵢ − sg(ℓᵢ))

    A token is kept while `π_θ − π_old ≤ δ_hi` if `Â ≥ 0`, or `≥ −δ_lo` if `Â < 0`: what counts is
    the probability that moved, so rare tokens are free and common ones held.

    Args:
      log_ratio: float[B, T] or [N], nats.
      advantage: float of the same shape; read for its sign.
      layout: where the tokens stand; only its mask is read.
      old_log_prob: float of the same shape, nats: `log π_old` of the sampled tokens.
      delta_low: how far a probability may fall, a probability; traced.
      delta_high: how far a probability may rise, a probability; traced.
      weight_cap: `c`, the largest ratio; traced.

    Returns:
      The gated ratio, 1 at padding; `∂G/∂ℓ = G`, 0 where the token is not kept.

    References:
      DPPO, arXiv 2602.04879.
    """
    keep = _keep_tv(log_ratio, advantage, layout, old_log_prob, delta_low, delta_high)
    return _kept(log_ratio, advantage, layout, keep, weight_cap)


def dppo_tv_clipped(
    log_ratio: jax.Array,
    advantage: jax.Array,
    layout: Layout,
    *,
    old_log_prob: jax.Array,
    delta_low: ArrayLike,
    delta_high: ArrayLike,
    weight_cap: ArrayLike,
) -> dict[str, jax.Array]:
    """The tokens that `dppo_tv` drops or caps; {"token": bool[...]}."""
    keep = _keep_tv(log_ratio, advantage, layout, old_log_prob, delta_low, delta_high)
    return _changed(log_ratio, advantage, layout, keep, weight_cap)


def dppo_kl(
    log_ratio: jax.Array,
    advantage: jax.Array,
    layout: Layout,
    *,
    old_log_prob: jax.Array,
    delta: ArrayLike,
    weight_cap: ArrayLike,
) -> jax.Array:
    """DPPO, Kullback-Leibler form; the shape of the log ratios.

        keepᵢ: KL(Bern(π_old) ‖ Bern(π_θ)) ≤ δ, or the token moves back towards its old probability

    Args:
      log_ratio: float[B, T] or [N], nats.
      advantage: float of the same shape; read for its sign.
      layout: where the tokens stand; only its mask is read.
      old_log_prob: float of the same shape, nats: `log π_old` of the sampled tokens.
      delta: `δ`, nats; traced.
      weight_cap: `c`, the largest ratio; traced.

    Returns:
      As `dppo_tv`.

    References:
      DPPO, arXiv 2602.04879.
    """
    keep = _keep_kl(log_ratio, advantage, layout, old_log_prob, delta)
    return _kept(log_ratio, advantage, layout, keep, weight_cap)


def dppo_kl_clipped(
    log_ratio: jax.Array,
    advantage: jax.Array,
    layout: Layout,
    *,
    old_log_prob: jax.Array,
    delta: ArrayLike,
    weight_cap: ArrayLike,
) -> dict[str, jax.Array]:
    """The tokens that `dppo_kl` drops or caps; {"token": bool[...]}."""
    keep = _keep_kl(log_ratio, advantage, layout, old_log_prob, delta)
    return _changed(log_ratio, advantage, layout, keep, weight_cap)


def moved_probability(log_ratio: jax.Array, old_log_prob: jax.Array) -> jax.Array:
    """How far the probability of each token moved, `π_θ − π_old`; same shape.

    Args:
      log_ratio: float[...], nats, as `prepare` gives it.
      old_log_prob: float of the same shape, nats.
    """
    # From the larger of both probabilities down, so that nothing overflows.
    larger = old_log_prob + jnp.maximum(log_ratio, 0)
    return -jnp.sign(log_ratio) * safe_exp(larger) * jnp.expm1(-jnp.abs(log_ratio))


def binary_kl(old_log_prob: jax.Array, log_prob: jax.Array) -> jax.Array:
    """KL of the event "this token", `KL(Bern(π_old) ‖ Bern(π))`, nats; same shape.

    Args:
      old_log_prob: float[...], nats, at most 0.
      log_prob: float of the same shape, nats, at most 0.

    Returns:
      The divergence, at least 0; +inf where an event of positive probability became impossible.
    """
    old, rest = jnp.exp(old_log_prob), -jnp.expm1(old_log_prob)
    change = old_log_prob - log_prob
    log_rest_ratio = jnp.log(rest) - jnp.log(-jnp.expm1(log_prob))
    first = jnp.where(old > 0, old * change, 0)
    return jnp.maximum(first + jnp.where(rest > 0, rest * log_rest_ratio, 0), 0)


def _keep_tv(
    log_ratio: jax.Array,
    advantage: jax.Array,
    layout: Layout,
    old_log_prob: jax.Array,
    delta_low: ArrayLike,
    delta_high: ArrayLike,
) -> jax.Array:
    """Whether the probability of each token may still move; bool[...]."""
    assert_tokens({"old_log_prob": old_log_prob}, layout.mask)
    log_ratio, advantage = prepare(log_ratio, advantage, layout.mask)
    old_log_prob, _ = prepare(old_log_prob, advantage, layout.mask)
    moved = moved_probability(log_ratio, old_log_prob)
    return jnp.where(advantage >= 0, moved <= delta_high, moved >= -jnp.asarray(delta_low))


def _keep_kl(
    log_ratio: jax.Array,
    advantage: jax.Array,
    layout: Layout,
    old_log_prob: jax.Array,
    delta: ArrayLike,
) -> jax.Array:
    """Whether each token's binary KL is within its budget, or the token moves back; bool[...]."""
    assert_tokens({"old_log_prob": old_log_prob}, layout.mask)
    log_ratio, advantage = prepare(log_ratio, advantage, layout.mask)
    old_log_prob, _ = prepare(old_log_prob, advantage, layout.mask)
    # Rounding may put a log-probability above 0.
    log_prob = jnp.minimum(old_log_prob + log_ratio, 0)
    back = jnp.where(advantage >= 0, log_ratio <= 0, log_ratio >= 0)
    return back | (binary_kl(jnp.minimum(old_log_prob, 0), log_prob) <= delta)


def _kept(
    log_ratio: jax.Array,
    advantage: jax.Array,
    layout: Layout,
    keep: jax.Array,
    weight_cap: ArrayLike,
) -> jax.Array:
    """`sg(min(r, c) · keep) · exp(ℓ − sg(ℓ))`; the shape of the log ratios."""
    log_ratio, _ = prepare(log_ratio, advantage, layout.mask)
    weight = jnp.where(keep, jnp.minimum(safe_exp(log_ratio), weight_cap), 0)
    return jnp.where(layout.mask, jax.lax.stop_gradient(weight) * unit_score(log_ratio), 1)


def _changed(
    log_ratio: jax.Array,
    advantage: jax.Array,
    layout: Layout,
    keep: jax.Array,
    weight_cap: ArrayLike,
) -> dict[str, jax.Array]:
    """Where `_kept` is not the plain ratio; {"token": bool[...]}."""
    log_ratio, _ = prepare(log_ratio, advantage, layout.mask)
    return {"token": (~keep | (safe_exp(log_ratio) > weight_cap)) & layout.mask}
