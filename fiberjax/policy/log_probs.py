"""Per-token log-probabilities and entropies, a part of the vocabulary at a time.

The logits of a whole batch, float32[B, T, V], are by far the largest array of a language model's
training step. Here they exist for one block of the vocabulary at a time, in the backward pass too,
where they are computed again. A block needs its rows of the table and no others, so the table and
its gradient, which are larger than the activations, pass through memory once; were the logits of
some columns formed at a time, all of the table would be read for each of them, and all of its
gradient written.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name

from fiberjax.policy import transformer
from fiberjax.policy.attention import LANES
from fiberjax.policy.config import TransformerConfig
from fiberjax.policy.placement import ONE_DEVICE, Placement
from fiberjax.policy.row_parts import in_parts

# Of the logits of a block on a device, and of the activations that they are made of, in float32,
# where nothing else is asked for: as much as stays on a TPU's chip, so that neither passes through
# its memory for every block, and little beside the memory of other devices.
_BYTES = 2**26
_KEPT = "sums"  # What the backward pass of a block has of the forward pass.
_KEEP = jax.checkpoint_policies.save_only_these_names(_KEPT)


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
      chunk: as many logits exist at a time as so many columns have, or with 0 as 64 MiB hold;
        static.
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
        parts=placement.vocabulary_parts,
    )


def chunked_token_outputs(
    hidden: Array,
    kernel: Array,
    targets: Array,
    *,
    temperature: Array | float,
    chunk: int,
    entropy_gradient: bool = True,
    parts: int = 1,
) -> TokenOutputs:
    """Log-probability of each target and entropy of its distribution, each float32[B, T].

    With Z_b = Σ_{v in b} exp(z_v) and μ_b = Σ_{v in b} z_v exp(z_v) / Z_b of every block b of the
    vocabulary, Z = Σ_b Z_b, and the entropy is log Z − Σ_b μ_b Z_b / Z.

    Args:
      hidden: dtype[B, T, D], normed activations.
      kernel: float32[V, D], the table that turns them into logits.
      targets: int32[B, T], in [0, V).
      temperature: divides the logits; positive.
      chunk: as many logits exist at a time as so many columns have, or with 0 as 64 MiB hold, of
        as many rows as 64 MiB hold the activations of; static. Where that is all of them, they stay
        for the backward pass. Rows stay together, so a batch sharded over rows stays sharded.
      entropy_gradient: whether entropies have a gradient; static. Without, they are constants and
        the backward pass does nothing for them.
      parts: into how many the table is sharded along V; static. Every block has rows of all of
        them, so that none waits for another.

    Returns:
      Both differentiable in `hidden`, `kernel` and `temperature`, entropies only with
      `entropy_gradient`.

    Raises:
      ValueError: if `chunk` is negative.
    """
    if chunk < 0:
        raise ValueError(f"chunk must be at least 0 columns, got {chunk}")
    # Cast once: inside the loop it would be done, and saved, again for every block.
    kernel = kernel.astype(hidden.dtype)
    rows, columns, width = hidden.shape
    vocabulary = len(kernel)
    parts = parts if vocabulary % parts == 0 else 1
    if chunk:
        least, groups = -(-columns // chunk), 1
    else:
        groups = _groups(rows, 4 * columns * width / _BYTES)
        least = math.ceil(4 * rows * columns * vocabulary / (groups * parts * _BYTES))
    if least == 1:
        sums = _at_once(hidden, kernel, targets, temperature, entropy_gradient)
    else:
        table = _cut(kernel, parts, *blocks(vocabulary // parts, least))

        def of_group(group: tuple[Array, Array]) -> _Sums:
            return _of_blocks(*group, table, 1 / temperature, entropy_gradient)

        sums = in_parts(of_group, (hidden, targets), groups)
    log_z = sums.log_z if entropy_gradient else lax.stop_gradient(sums.log_z)
    # −Σ p log p = log Z − Σ p z, without forming log p.
    return TokenOutputs(log_prob=sums.chosen - sums.log_z, entropy=log_z - sums.mean)


def _groups(rows: int, share: float) -> int:
    """Into how many groups of as many rows, each of so large a share of what there is room for.

    >>> _groups(16, 0.16), _groups(16, 0.1), _groups(6, 0.3), _groups(3, 2.0)
    (4, 2, 2, 3)
    """
    fitting = (n for n in range(1, rows) if rows % n == 0 and rows * share <= n)
    return next(fitting, rows)


def blocks(vocabulary: int, least: int) -> tuple[int, int]:
    """How many even blocks, and the tokens of each: a multiple of a TPU's lanes where it can be.

    What they leave of the vocabulary, less than another block, is one by itself.

    >>> blocks(151_936, 5), blocks(151_936, 112), blocks(7, 3), blocks(3, 8)
    ((5, 30336), (118, 1280), (3, 2), (3, 1))
    """
    size = max(1, vocabulary // least)
    size = size // LANES * LANES or size
    return vocabulary // size, size


class _Sums(NamedTuple):
    """Of the logits z of the vocabulary, or of a block of it, each float32[..., B, T].

    Attributes:
      log_z: log Σ exp(z).
      chosen: the target's logit; 0 where the block does not hold it.
      mean: of z under the distribution over these tokens alone.
    """

    log_z: Array
    chosen: Array
    mean: Array


def _at_once(
    hidden: Array,
    kernel: Array,
    targets: Array,
    temperature: Array | float,
    entropy_gradient: bool,
) -> _Sums:
    """Of all the vocabulary; logits and their exponentials stay for the backward pass."""
    scaled = transformer.logits(hidden, kernel) / temperature
    chosen = _chosen(scaled, jnp.arange(len(kernel)), targets)
    log_z = jax.nn.logsumexp(scaled, axis=-1)
    if not entropy_gradient:
        # Where it enters, so that nothing of the entropy is ever differentiated.
        scaled = lax.stop_gradient(scaled)
    mean = jnp.sum(jax.nn.softmax(scaled, axis=-1) * scaled, axis=-1)
    return _Sums(log_z, chosen, mean)


def _chosen(scaled: Array, ids: Array, targets: Array) -> Array:
    """The target's logit among those [B, T, S] of the tokens `ids`, int32[S]; 0 without it."""
    # A sum instead of a gather, whose gradient would scatter into another array of this size.
    return jnp.sum(scaled, axis=-1, where=ids == targets[..., None])


class _Table(NamedTuple):
    """The table of logits, cut into blocks; a leading axis of its P parts.

    Attributes:
      first: int32[P], the first token of each part.
      even: dtype[P, n, S, D], its blocks of one size.
      rest: dtype[P, R, D], what they leave of it.
    """

    first: Array
    even: Array
    rest: Array


def _cut(kernel: Array, parts: int, count: int, size: int) -> _Table:
    """The table [V, D] in so many parts, and each of these in so many blocks of a size."""
    vocabulary, width = kernel.shape
    of_part = vocabulary // parts
    cut = kernel.reshape(parts, of_part, width)
    even = cut[:, : count * size].reshape(parts, count, size, width)
    return _Table(jnp.arange(parts) * of_part, even, cut[:, count * size :])


def _of_blocks(
    hidden: Array, targets: Array, table: _Table, inverse: Array | float, entropy_gradient: bool
) -> _Sums:
    """Of all the vocabulary, a block at a time; `inverse` is of the temperature."""
    shape, (count, size) = targets.shape, table.even.shape[1:3]
    hidden, targets = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)

    def of_part(hidden: Array, part: _Table) -> _Sums:
        @functools.partial(jax.checkpoint, policy=_KEEP)
        def of_block(first: Array, kernel: Array) -> _Sums:
            scaled = transformer.logits(hidden.astype(kernel.dtype), kernel) * inverse
            log_z, mean = _log_z_and_mean(scaled)
            mean = mean if entropy_gradient else lax.stop_gradient(mean)
            return _Sums(log_z, _chosen(scaled, first + jnp.arange(len(kernel)), targets), mean)

        firsts = part.first + size * jnp.arange(count)
        sums = lax.map(lambda block: of_block(*block), (firsts, part.even))
        if not len(part.rest):
            return sums
        rest = of_block(part.first + count * size, part.rest)
        return jax.tree.map(lambda many, one: jnp.concatenate([many, one[None]]), sums, rest)

    # Each part adds to the gradient of activations of its own, in float32, and these are added up
    # after the loop.
    parts = len(table.first)
    whole = jnp.broadcast_to(hidden.astype(jnp.float32), (parts, *hidden.shape))
    sums = jax.vmap(of_part)(whole, table)
    return _joined(_Sums(*(x.reshape(-1, *shape) for x in sums)), entropy_gradient)


@jax.custom_jvp
def _log_z_and_mean(z: Array) -> tuple[Array, Array]:
    """Log Σ exp(z) over the last axis, and the mean of z under that distribution.

    Their gradients, p and p (1 + z − mean), are formed of z and of these two, which `_KEEP` keeps:
    of a block the backward pass forms the logits again, and no sum over them.
    """
    largest = jnp.max(z, axis=-1, keepdims=True)
    weight = jnp.exp(z - largest)
    total = jnp.sum(weight, axis=-1)
    return largest[..., 0] + jnp.log(total), jnp.sum(weight * z, axis=-1) / total


@_log_z_and_mean.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> Any:
    (z,), (dz,) = primals, tangents
    log_z, mean = (checkpoint_name(x, _KEPT) for x in _log_z_and_mean(z))
    p = jnp.exp(z - log_z[..., None]) * dz
    of_mean = jnp.sum(p * (1 + z - mean[..., None]), axis=-1)
    return (log_z, mean), (jnp.sum(p, axis=-1), of_mean)


def _joined(blocks: _Sums, entropy_gradient: bool) -> _Sums:
    """Of blocks along the first axis, together."""
    log_z = jax.nn.logsumexp(blocks.log_z, axis=0)
    weights = jnp.exp(blocks.log_z - log_z)
    if not entropy_gradient:
        weights = lax.stop_gradient(weights)
    return _Sums(log_z, blocks.chosen.sum(axis=0), jnp.sum(weights * blocks.mean, axis=0))
