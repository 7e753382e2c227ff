"""Per-token terms beside the gate: KL estimates and entropy.

With `q = log π_ref − log π_θ` of a token sampled from `π_θ`, three estimates of KL(π_θ ‖ π_ref):

    k1 = −q        unbiased, of either sign; its gradient has expectation zero
    k2 = q²/2      biased; its gradient is the right one
    k3 = e^q − 1 − q  unbiased, never negative; its gradient is that of KL(π_ref ‖ π_θ)

A number to log and a term to differentiate are therefore two things: `VALUES` holds the first,
`LOSSES` the second, where every estimator keeps its value and takes the right gradient.

All this holds for tokens of the current policy. A batch is sampled by the old one, and from the
second update on the two differ; a token of the old policy must be weighed by `π_θ/π_old` or the
gradient is that of no KL: at half a nat of drift, wrong by more than half its length.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from fiberjax.segments import safe_exp

Estimate = Callable[[jax.Array, jax.Array], jax.Array]
"""`(log_prob, reference_log_prob) -> nats`, all of one shape."""

Loss = Callable[..., jax.Array]
"""`(log_prob, reference_log_prob, log_ratio=None) -> nats`, all of one shape."""


def k1(log_prob: jax.Array, reference_log_prob: jax.Array) -> jax.Array:
    """The estimate `log π_θ − log π_ref`, nats; same shape. Not for a loss: see the module.

    Args:
      log_prob: float[...], nats, of tokens sampled from `π_θ`.
      reference_log_prob: float of the same shape, nats.
    """
    return _wide(log_prob) - _wide(reference_log_prob)


def k2(log_prob: jax.Array, reference_log_prob: jax.Array) -> jax.Array:
    """The estimate `(log π_θ − log π_ref)²/2`, nats; same shape. Arguments as `k1`."""
    return k1(log_prob, reference_log_prob) ** 2 / 2


def k3(log_prob: jax.Array, reference_log_prob: jax.Array) -> jax.Array:
    """The estimate `π_ref/π_θ − 1 − log(π_ref/π_θ)`, nats; same shape. Arguments as `k1`.

    >>> round(float(k3(jnp.array(-1.0), jnp.array(-1.5))), 4)
    0.1065
    """
    q = -k1(log_prob, reference_log_prob)
    return jnp.expm1(q) - q


def loss(estimate: Estimate) -> Loss:
    """The estimate with the gradient of k2, weighed by the ratio; a `Loss`.

        w · estimate,   w = sg(π_θ/π_old) = sg(e^ℓ),   1 without log ratios

    `E_θ[∇ k2] = E_θ[(log π_θ − log π_ref) ∇ log π_θ] = ∇ KL(π_θ ‖ π_ref)`, and `E_θ` is `E_old`
    weighed by `w`. The function takes

      log_prob: float[...], nats; the tokens under the current policy.
      reference_log_prob: float of the same shape, nats.
      log_ratio: float of the same shape, nats: `log π_θ − log π_old` of tokens sampled from
        `π_old`; None for tokens sampled from `π_θ`.

    and gives the weighed estimates. Value (of k1 and k3) and gradient are unbiased. The weight is a
    constant in the gradient and has no cap, for any would bring the bias back; where it overflows
    it is the largest finite number. Padding must be masked in all three.
    """

    def weighed(
        log_prob: jax.Array, reference_log_prob: jax.Array, log_ratio: jax.Array | None = None
    ) -> jax.Array:
        right = k2(log_prob, reference_log_prob)
        value = estimate(log_prob, reference_log_prob)
        value = jax.lax.stop_gradient(value - right) + right
        if log_ratio is None:
            return value
        return jax.lax.stop_gradient(safe_exp(_wide(log_ratio))) * value

    return weighed


VALUES: Mapping[str, Estimate] = {"k1": k1, "k2": k2, "k3": k3}
"""Estimates to log."""

LOSSES: Mapping[str, Loss] = {"k1": loss(k1), "k2": loss(k2), "k3": loss(k3)}
"""Estimates to differentiate: the value of each, with the gradient of k2."""


def entropy(logits: jax.Array) -> jax.Array:
    """Entropy of a categorical distribution, `−Σ p log p`, nats; the shape without the last axis.

    Args:
      logits: float[..., V]; −inf forbids an outcome.

    Returns:
      float32 or wider, in `[0, log V]`; differentiable, also beside forbidden outcomes.
    """
    log_prob = jax.nn.log_softmax(_wide(logits), axis=-1)
    possible = jnp.isfinite(log_prob)
    log_prob = jnp.where(possible, log_prob, 0)
    return -jnp.sum(jnp.where(possible, jnp.exp(log_prob), 0) * log_prob, axis=-1)


def _wide(values: jax.Array) -> jax.Array:
    """The values in float32 or wider."""
    return jnp.asarray(values, jnp.promote_types(jnp.result_type(values), jnp.float32))
