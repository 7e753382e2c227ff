"""Drawing a token: its distribution, a draw from it, and what is kept of it.

The distribution is softmax(z / τ), restricted to the likeliest tokens and renormalised. A draw
takes two uniforms a row, from the row's own key: the rest of the batch does not matter.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from fiberjax.policy.placement import ONE_DEVICE, Placement

# A token this many nats below the likeliest has no mass: e⁻⁸⁰ is far below what a float32 sum over
# the vocabulary resolves, and far above the numbers that some devices flush to zero.
_DEEPEST = 80.0
# Logits closer than this, over the larger of one and the row's largest, are the same: a compiler
# may compute one number twice, each time rounded in its own way.
_SAME = 1e-6
# Columns of a stage where nothing else is asked for.
_SHORTEST, _LONGEST = 32, 512
# Stages of the longest completions.
_MOST = 16


class Samples(NamedTuple):
    """Completions, one a row.

    Attributes:
      tokens: int32[B, C]; `pad_id` from `length` on. The end token, if drawn, is the last token
        of the completion and counts in `length`. Whether a column belongs to the completion is
        decided by `length`, never by the token there.
      log_prob: float32[B, C], log-probability of each token under the distribution it was drawn
        from (tempered, truncated, renormalised), in nats; 0 from `length` on.
      log_kept: float32[B, C], log of the mass of the tempered distribution that `top_k` and `top_p`
        kept when the token was drawn, in nats, at most 0; exactly 0 without truncation and from
        `length` on. `log_prob + log_kept` is the log-probability before truncation: what
        `token_outputs` computes.
      length: int32[B], tokens in the completion.
      finished: bool[B], whether it ended with the end token rather than at the limit.
      held: int32[B], steps for which the row's place in the batch was its own, at least `length`:
        what is beyond it was computed for nothing.
    """

    tokens: Array
    log_prob: Array
    log_kept: Array
    length: Array
    finished: Array
    held: Array


def empty(batch: int, columns: int, pad_id: int) -> Samples:
    """Completions of which nothing is drawn yet."""
    return Samples(
        tokens=jnp.full((batch, columns), pad_id, jnp.int32),
        log_prob=jnp.zeros((batch, columns), jnp.float32),
        log_kept=jnp.zeros((batch, columns), jnp.float32),
        length=jnp.zeros((batch,), jnp.int32),
        finished=jnp.zeros((batch,), bool),
        held=jnp.zeros((batch,), jnp.int32),
    )


def stage_ends(columns: int, stage: int = 0) -> tuple[int, ...]:
    """Where the stages of a loop over columns end: as few as may be, of one length or one less.

    Args:
      columns: of all stages together.
      stage: the most of one stage; 0 takes a quarter of all, but no fewer than 32 and no more than
        512, or a sixteenth: each stage is compiled by itself, and each lets steps read fewer
        columns.

    >>> stage_ends(3072), stage_ends(128)
    ((512, 1024, 1536, 2048, 2560, 3072), (32, 64, 96, 128))
    >>> stage_ends(10, 4)
    (3, 6, 10)
    """
    longest = max(_LONGEST, -(-columns // _MOST))
    stage = stage or min(max(-(-columns // 4), _SHORTEST), longest)
    count = -(-columns // stage)
    return tuple(columns * (k + 1) // count for k in range(count))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Distribution:
    """What a token is drawn from, given its logits; a pytree, of which what is static is metadata.

    Attributes:
      temperature: τ, positive.
      top_p: in (0, 1]; None keeps every token.
      logit_noise: σ of the noise on the logits; None for none.
      greedy: takes the likeliest token, whatever the others are; a bool, so that greedy and drawn
        completions are of one program.
      top_k: 0 keeps every token; static.
      end_ids: the tokens that end a completion; static.
      placement: where arrays lie; static.
    """

    temperature: Array | float
    top_p: Array | float | None
    logit_noise: Array | float | None
    greedy: Array | bool
    top_k: int = dataclasses.field(metadata={"static": True})
    end_ids: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    placement: Placement = dataclasses.field(default=ONE_DEVICE, metadata={"static": True})

    @property
    def truncates(self) -> bool:
        """Whether tokens are left out."""
        return self.top_k > 0 or self.top_p is not None

    def draw(self, z: Array, keys: Array, step: Array) -> tuple[Array, Array, Array | None]:
        """A token of each row, its log-probability, and the log of the mass that was kept.

        Args:
          z: float32[B, V], logits.
          keys: typed PRNG keys [B], of the rows.
          step: int32[] or int32[B], which token of its row is drawn, from 0.

        Returns:
          int32[B], float32[B] and float32[B], in nats; the last is None where nothing is left out.
        """
        return lax.cond(self.greedy, self._likeliest, lambda z: self._random(z, keys, step), z)

    def _likeliest(self, z: Array) -> tuple[Array, Array, Array | None]:
        """The likeliest tokens, and what the policy says of them at temperature 1."""
        token = jnp.argmax(z, axis=-1).astype(jnp.int32)
        log_prob = jnp.max(z, axis=-1) - jax.nn.logsumexp(z, axis=-1)
        return token, log_prob, jnp.zeros_like(log_prob) if self.truncates else None

    def _random(self, z: Array, keys: Array, step: Array) -> tuple[Array, Array, Array | None]:
        """Random tokens of the distribution."""
        step_keys = jax.vmap(jax.random.fold_in, (0, None if step.ndim == 0 else 0))(keys, step)
        if self.logit_noise is not None:
            z += self.logit_noise * _normal(step_keys, z)
        tempered = z / self.temperature
        z = truncated_logits(tempered, top_k=self.top_k, top_p=self.top_p)
        uniform = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(step_keys)
        token, log_prob = _categorical(uniform, z, self.placement)
        return token, log_prob, _log_kept(tempered, z) if self.truncates else None

    def ends(self, token: Array) -> Array:
        """Whether a token ends its completion, bool[B]."""
        return jnp.any(token[:, None] == jnp.array(self.end_ids), axis=1)


def truncated_logits(z: Array, *, top_k: int, top_p: Array | float | None) -> Array:
    """`z` [B, V] with −∞ outside the `top_k` likeliest and the nucleus of mass `top_p`.

    Args:
      z: float32[B, V], already divided by the temperature.
      top_k: 0 keeps every token.
      top_p: in (0, 1], of the mass that `top_k` leaves; None keeps every token.

    Returns:
      float32[B, V]; at least one entry of a row is finite.
    """
    if top_k == 0:
        return z if top_p is None else _nucleus(z, top_p)
    sorted_z = lax.top_k(z, top_k)[0]
    if top_p is None:
        threshold = sorted_z[:, -1:]
    else:
        probability = jax.nn.softmax(sorted_z, axis=-1)
        before = jnp.cumsum(probability, axis=-1) - probability
        kept = (before < top_p).at[:, 0].set(True)
        threshold = jnp.min(jnp.where(kept, sorted_z, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(z >= _below(threshold, sorted_z[:, :1]), z, -jnp.inf)


def _below(edge: Array, largest: Array) -> Array:
    """The least that may be the logit `edge`, of a row whose largest is given; float32[B, 1]."""
    return edge - _SAME * jnp.maximum(jnp.abs(edge), jnp.abs(largest))


def _nucleus(z: Array, top_p: Array | float) -> Array:
    """`z` [B, V] with −∞ outside the nucleus of mass `top_p`, without sorting.

    A token is kept where those that are likelier hold less than `top_p`. That mass grows with the
    distance below the likeliest, d = max z − z, in float32 too: a sum of more numbers that are not
    negative never rounds to less. So the tokens kept are those up to some d, and as the bits of
    such numbers are ordered as they are, that d is found bit by bit: 31 passes over the vocabulary.
    """
    largest = jnp.max(z, axis=-1, keepdims=True)
    distance = largest - z
    mass, order = jnp.exp(-distance), lax.bitcast_convert_type(distance, jnp.int32)
    wanted = top_p * jnp.sum(mass, axis=-1, keepdims=True)

    def settle(bit: Array, furthest: Array) -> Array:
        further = furthest | (jnp.int32(1 << 30) >> bit)
        likelier = jnp.sum(jnp.where(order < further, mass, 0.0), axis=-1, keepdims=True)
        return jnp.where(likelier < wanted, further, furthest)

    furthest = lax.fori_loop(0, 31, settle, jnp.zeros((len(z), 1), jnp.int32))
    edge = _below(largest - lax.bitcast_convert_type(furthest, jnp.float32), largest)
    return jnp.where((order <= furthest) | (z >= edge), z, -jnp.inf)


def _log_kept(z: Array, truncated: Array) -> Array:
    """Log of the share of softmax(z) that `truncated` [B, V] keeps, float32[B], at most 0."""
    share = jax.nn.logsumexp(truncated, axis=-1) - jax.nn.logsumexp(z, axis=-1)
    return jnp.minimum(share, 0.0)


def _categorical(uniform: Array, z: Array, placement: Placement) -> tuple[Array, Array]:
    """One draw a row from softmax(z), z float32[B, V], and its log-probability.

    In two stages, a block of tokens and a token of that block, each by inverting a cumulative sum:
    two uniforms a row, `uniform` [B, 2] in [0, 1), instead of V, and no running sum over the
    vocabulary. The log-probability is finite: both stages pass over what has no mass, and a block
    has mass only if a token of it has.
    """
    batch, vocab = z.shape
    width = _block_width(vocab)
    z = z - jnp.max(z, axis=-1, keepdims=True)
    mass = jnp.where(z > -_DEEPEST, jnp.exp(z), 0.0)
    mass = jnp.pad(mass, ((0, 0), (0, -vocab % width)))
    blocks = mass.reshape(batch, -1, width)
    block_mass = placement.activation(jnp.sum(blocks, axis=-1), "rows")
    block = _invert(block_mass, uniform[:, 0])
    within = _invert(jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0], uniform[:, 1])
    token = block * width + within
    chosen = jnp.take_along_axis(z, token[:, None], axis=-1)[:, 0]
    return token, chosen - jnp.log(jnp.sum(block_mass, axis=-1))


def _normal(keys: Array, z: Array) -> Array:
    """Standard normal noise of the shape of `z` [B, V], row b by `keys[b]`."""

    def row(key: Array) -> Array:
        # Apart from the uniforms, which are drawn with the key itself.
        return jax.random.normal(jax.random.fold_in(key, 1), z.shape[1:], z.dtype)

    return jax.vmap(row)(keys)


def _block_width(vocab: int) -> int:
    """Tokens in a block: about √V, but fewer where blocks then stay whole on 8 parts of V.

    Logits split over `tensor` keep their place if every part holds whole blocks; else every token
    drawn would gather all logits.
    """
    width = 2 ** math.ceil(math.log2(vocab) / 2)
    whole = math.gcd(vocab, 8 * width) // 8
    return whole if whole >= 8 else width


def _invert(mass: Array, uniform: Array) -> Array:
    """The first index of each row where the running share of `mass` [B, n] exceeds `uniform` [B].

    An index without mass is never returned where there is any mass, whatever the rounding: in exact
    arithmetic the running sum does not rise there, but in float32 it may (partial sums are not
    added in one order, and need not be monotone), so such an index is passed over. Rounding may
    also leave no index with mass beyond `uniform`, when the sum still rises after the last one:
    then that last one is meant. So the result is an index that was tested for its mass.
    """
    running = jnp.cumsum(mass, axis=-1)
    held = mass > 0
    beyond = held & (running > uniform[:, None] * running[:, -1:])
    index = jnp.arange(mass.shape[-1], dtype=jnp.int32)
    last = jnp.max(jnp.where(held, index, 0), axis=-1)
    return jnp.min(jnp.where(beyond, index, last[:, None]), axis=-1)
