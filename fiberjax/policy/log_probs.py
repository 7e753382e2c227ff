"""Per-token log-probabilities and entropies, in chunks of columns.

The logits of a whole batch, float32[B, T, V], are by far the largest array of a language model's
training step. Here they exist for one chunk of columns at a time, in the backward pass too, where
they are computed again.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from fiberjax.policy import transformer
from fiberjax.policy.config import TransformerConfig
from fiberjax.policy.placement import ONE_DEVICE, Placement


class TokenOutputs(NamedTuple):
    """What the objective needs of the policy at each token.

    Attributes:
      log_prob: float32[B, T], log-probability of the token given everything before it, in nats.
      entropy: float32[B, T], entropy of the distribution it was drawn from, in nats.
    """

    log_prob: Array
    entropy: Array


def token_outputs(
    config: TransformerConfig,
    params: transformer.Params,
    tokens: Array,
    positions: Array,
    segment_ids: Array,
    *,
    start: int,
    temperature: Array | float,
    chunk: int,
    entropy_gradient: bool = True,
    placement: Placement = ONE_DEVICE,
) -> TokenOutputs:
    """Log-probabilities of `tokens[:, start:]` and entropies there, each float32[B, S − start].

    log π(y_t | y_<t) = (z_t[y_t] / τ) − log Σ_v exp(z_t[v] / τ), with z_t the logits after t tokens
    and τ the temperature.

    Args:
      config: shape of the policy.
      params: its parameters.
      tokens: int32[B, S].
      positions: int32[B, S], counted from 0 within each segment.
      segment_ids: int32[B, S]; 0 is padding.
      start: first column wanted, at least 1; static.
      temperature: divides the logits; positive.
      chunk: columns whose logits exist at a time, static; S − start need not divide by it.
      entropy_gradient: whether entropies have a gradient; static. Without, they are constants and
        the backward pass does nothing for them.
      placement: where the policy's arrays lie.

    Returns:
      Both differentiable in `params` and `temperature`, entropies only with `entropy_gradient`.
      Values at padding, and at the first
      token of a segment (which nothing in its segment predicts), are finite and mean nothing.

    Raises:
      ValueError: if `start` or `chunk` is out of range.
    """
    if not 1 <= start < tokens.shape[1]:
        raise ValueError(f"start must be in [1, {tokens.shape[1] - 1}], got {start}")
    model = transformer.bind(config, params, placement=placement)
    hidden = model.hidden(tokens, positions, segment_ids)[:, start - 1 : -1]
    targets = jnp.where(segment_ids[:, start:] != 0, tokens[:, start:], 0)
    return chunked_token_outputs(
        hidden,
        model.unembedding(),
        targets,
        temperature=temperature,
        chunk=chunk,
        entropy_gradient=entropy_gradient,
    )


def chunked_token_outputs(
    hidden: Array,
    kernel: Array,
    targets: Array,
    *,
    temperature: Array | float,
    chunk: int,
    entropy_gradient: bool = True,
) -> TokenOutputs:
    """Log-probability of each target and entropy of its distribution, each float32[B, T].

    Args:
      hidden: dtype[B, T, D], normed activations.
      kernel: float32[V, D], the table that turns them into logits.
      targets: int32[B, T], in [0, V).
      temperature: divides the logits; positive.
      chunk: columns handled at a time; static, positive. Rows stay together, so a batch sharded
        over rows stays sharded.
      entropy_gradient: whether entropies have a gradient; static. Without, they are constants and
        the backward pass does nothing for them.

    Returns:
      Both differentiable in `hidden`, `kernel` and `temperature`, entropies only with
      `entropy_gradient`.

    Raises:
      ValueError: if `chunk` is not positive.
    """
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1 column, got {chunk}")
    batch, length, width = hidden.shape
    chunk = min(chunk, length)
    count = -(-length // chunk)
    padding = count * chunk - length
    hidden = jnp.pad(hidden, ((0, 0), (0, padding), (0, 0)))
    targets = jnp.pad(targets, ((0, 0), (0, padding)))

    # Cast once: inside the loop it would be done, and saved, again for every chunk.
    kernel = kernel.astype(hidden.dtype)

    def outputs(hidden: Array, targets: Array, kernel: Array) -> TokenOutputs:
        scaled = transformer.logits(hidden, kernel) / temperature
        return _outputs(scaled, targets, entropy_gradient)

    if count == 1:  # Nothing else is in memory with these logits: they may stay.
        return TokenOutputs(*(x[:, :length] for x in outputs(hidden, targets, kernel)))

    chunks = (
        hidden.reshape(batch, count, chunk, width).swapaxes(0, 1),
        targets.reshape(batch, count, chunk).swapaxes(0, 1),
    )
    stacked = lax.map(lambda args: jax.checkpoint(outputs)(*args, kernel), chunks)
    return TokenOutputs(
        *(x.swapaxes(0, 1).reshape(batch, count * chunk)[:, :length] for x in stacked)
    )


def _outputs(scaled: Array, targets: Array, entropy_gradient: bool) -> TokenOutputs:
    """Of logits [..., V] already divided by the temperature."""
    normaliser = jax.nn.logsumexp(scaled, axis=-1)
    # A sum instead of a gather, whose gradient would scatter into another array of this size.
    is_target = jnp.arange(scaled.shape[-1]) == targets[..., None]
    chosen = jnp.sum(scaled, axis=-1, where=is_target)
    log_prob = chosen - normaliser
    if not entropy_gradient:
        # Where it enters, so that nothing of the entropy is ever differentiated.
        scaled, normaliser = lax.stop_gradient((scaled, normaliser))
    # −Σ p log p = log Z − Σ p z, without forming log p.
    mean = jnp.sum(jax.nn.softmax(scaled, axis=-1) * scaled, axis=-1)
    return TokenOutputs(log_prob=log_prob, entropy=normaliser - mean)
