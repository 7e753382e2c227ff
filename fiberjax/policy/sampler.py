"""Sampling completions from the policy: one compiled loop over a key-value cache.

Prompts are padded on the left, so that every row's completion begins in the same column and a step
writes one column of the cache. The loop ends as soon as every row has ended. Reading the cache is
most of a step's work on an accelerator, so the loop runs in stages, each of which reads no more
columns than its last token needs.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from fiberjax.policy import transformer
from fiberjax.policy.config import TransformerConfig
from fiberjax.policy.placement import ONE_DEVICE, Placement

# The most tokens of a stage of the loop: six stages for answers of 3,072 tokens.
STAGE = 512

# A token this many nats below the likeliest has no mass: e⁻⁸⁰ is far below what a float32 sum over
# the vocabulary resolves, and far above the numbers that some devices flush to zero.
_DEEPEST = 80.0


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
    """

    tokens: Array
    log_prob: Array
    log_kept: Array
    length: Array
    finished: Array


def sample(
    config: TransformerConfig,
    params: transformer.Params,
    prompts: Array,
    prompt_mask: Array,
    keys: Array,
    *,
    max_new_tokens: int,
    eos_id: int | tuple[int, ...],
    pad_id: int,
    temperature: Array | float = 1.0,
    top_k: int = 0,
    top_p: Array | float = 1.0,
    logit_noise: Array | float = 0.0,
    greedy: bool = False,
    stage: int = STAGE,
    placement: Placement = ONE_DEVICE,
) -> Samples:
    """Draws one completion of up to `max_new_tokens` for each row of `prompts`.

    The distribution of a token is softmax(z / τ), restricted to the `top_k` likeliest tokens, then
    to the likeliest of those that together first reach probability `top_p`, then renormalised.
    Tokens as likely as the last one kept are kept too.

    With `logit_noise` σ, z is the policy's logits plus σ times standard normal noise, drawn anew
    for every token: a sampler that disagrees with the policy, as one of low precision does. What is
    reported is then of the disturbed distribution.

    A row's draw depends on its own prompt and key alone (step t uses `fold_in(key, t)`): permuting
    rows permutes completions.

    Args:
      config: shape of the policy; static.
      params: its parameters.
      prompts: int32[B, P], padded on the left.
      prompt_mask: bool[B, P], True at the prompt, False at the padding before it.
      keys: one typed PRNG key a row, [B].
      max_new_tokens: C, at least 1; static.
      eos_id: the token that ends a completion, or all those that do; static.
      pad_id: fills `tokens` after the end; may equal `eos_id`; static.
      temperature: τ, positive.
      top_k: 0 keeps every token; static.
      top_p: in (0, 1]; a Python 1.0 costs nothing, anything else a sort a step.
      logit_noise: σ, at least 0; a Python 0.0 costs nothing.
      greedy: take the likeliest token; static. `temperature`, `top_k`, `top_p` and `logit_noise`
        are then ignored and `log_prob` is that of the policy at temperature 1.
      stage: the most tokens of a stage, at least 1; each stage is compiled by itself; static.
      placement: where the policy's arrays lie.

    Returns:
      The completions; not differentiable.

    Raises:
      ValueError: if an option is out of range, or shapes do not agree.
    """
    end_ids = (eos_id,) if isinstance(eos_id, int) else tuple(eos_id)
    _validate(config, prompts, prompt_mask, keys, max_new_tokens, end_ids, pad_id)
    if stage < 1:
        raise ValueError(f"stage must be at least 1 token, got {stage}")
    if greedy:
        temperature, top_k, top_p, logit_noise = 1.0, 0, 1.0, 0.0
    _validate_distribution(config, temperature, top_k, top_p, logit_noise)
    truncate = not (isinstance(top_p, int | float) and top_p == 1.0)
    disturb = not (isinstance(logit_noise, int | float) and logit_noise == 0.0)
    return _sample(
        params,
        prompts,
        prompt_mask,
        keys,
        temperature,
        top_p if truncate else None,
        logit_noise if disturb else None,
        config=config,
        max_new_tokens=max_new_tokens,
        end_ids=end_ids,
        pad_id=pad_id,
        top_k=0 if top_k == config.vocab_size else top_k,
        greedy=greedy,
        stage_ends=stage_ends(max_new_tokens, stage),
        placement=placement,
    )


def stage_ends(max_new_tokens: int, stage: int) -> tuple[int, ...]:
    """Where the stages of the loop end: as few as may be, of one length or one less.

    >>> stage_ends(3072, 512)
    (512, 1024, 1536, 2048, 2560, 3072)
    >>> stage_ends(10, 4)
    (3, 6, 10)
    """
    count = -(-max_new_tokens // stage)
    return tuple(max_new_tokens * (k + 1) // count for k in range(count))


class _State(NamedTuple):
    """What a step of the loop carries; `token` [B] is the one drawn last."""

    step: Array
    token: Array
    samples: Samples
    cache: transformer.Cache


def _empty(batch: int, columns: int, pad_id: int) -> Samples:
    """Completions of which nothing is drawn yet."""
    return Samples(
        tokens=jnp.full((batch, columns), pad_id, jnp.int32),
        log_prob=jnp.zeros((batch, columns), jnp.float32),
        log_kept=jnp.zeros((batch, columns), jnp.float32),
        length=jnp.zeros((batch,), jnp.int32),
        finished=jnp.zeros((batch,), bool),
    )


@functools.partial(
    jax.jit,
    static_argnames=(
        *("config", "max_new_tokens", "end_ids", "pad_id", "top_k", "greedy"),
        *("stage_ends", "placement"),
    ),
)
def _sample(
    params: transformer.Params,
    prompts: Array,
    prompt_mask: Array,
    keys: Array,
    temperature: Array | float,
    top_p: Array | float | None,
    logit_noise: Array | float | None,
    *,
    config: TransformerConfig,
    max_new_tokens: int,
    end_ids: tuple[int, ...],
    pad_id: int,
    top_k: int,
    greedy: bool,
    stage_ends: tuple[int, ...],
    placement: Placement,
) -> Samples:
    batch, prompt_columns = prompts.shape
    kernels = cast_kernels(params, config)
    model = transformer.bind(config, kernels, placement=placement)
    truncates = top_k > 0 or top_p is not None

    def draw(state: _State, hidden: Array) -> _State:
        """Draws the token of column `state.step` and records it."""
        z = model.unembed(hidden[:, -1])
        if greedy:
            token, log_prob = _argmax(z)
        else:
            step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, state.step)
            if logit_noise is not None:
                z += logit_noise * _normal(step_keys, z)
            tempered = z / temperature
            z = truncated_logits(tempered, top_k=top_k, top_p=top_p)
            uniform = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(step_keys)
            token, log_prob = _categorical(uniform, z, placement)
        past = state.samples
        token = jnp.where(past.finished, pad_id, token)

        def record(table: Array, column: Array) -> Array:
            return lax.dynamic_update_slice(table, column[:, None], (0, state.step))

        samples = Samples(
            tokens=record(past.tokens, token),
            log_prob=record(past.log_prob, jnp.where(past.finished, 0.0, log_prob)),
            log_kept=past.log_kept,
            length=past.length + ~past.finished,
            finished=past.finished | jnp.any(token[:, None] == jnp.array(end_ids), axis=1),
        )
        if truncates:
            log_kept = jnp.where(past.finished, 0.0, _log_kept(tempered, z))
            samples = samples._replace(log_kept=record(past.log_kept, log_kept))
        return _State(state.step + 1, token, samples, state.cache)

    prompt_length_of_row = jnp.sum(prompt_mask, axis=1, dtype=jnp.int32)
    ones = jnp.ones((batch, 1), jnp.int32)

    def step(state: _State, *, columns: int) -> _State:
        position = (prompt_length_of_row + state.step - 1)[:, None]
        hidden, cache = model.decode(
            state.token[:, None], position, ones, state.cache, columns=columns
        )
        return draw(state._replace(cache=cache), hidden)

    def unfinished(state: _State, *, end: int) -> Array:
        return (state.step < end) & ~jnp.all(state.samples.finished)

    # Prompts attend to prompts: the columns of the completion are added afterwards.
    positions = jnp.cumsum(prompt_mask, axis=1, dtype=jnp.int32) - 1
    hidden, cache = model.prefill(prompts, positions, prompt_mask.astype(jnp.int32))
    # The last token drawn is never decoded: it needs no column.
    cache = transformer.extend_cache(cache, max_new_tokens - 1)
    empty = _empty(batch, max_new_tokens, pad_id)
    start = _State(jnp.int32(0), jnp.zeros((batch,), jnp.int32), empty, cache)
    state = draw(start, hidden)
    for end in stage_ends:
        state = lax.while_loop(
            functools.partial(unfinished, end=end),
            # One token fewer than are drawn by then has a column.
            functools.partial(step, columns=prompt_columns + end - 1),
            state,
        )
    # A table that no step writes would otherwise be whole on every device.
    return Samples(*(placement.activation(of, "activation") for of in state.samples))


def truncated_logits(z: Array, *, top_k: int, top_p: Array | float | None) -> Array:
    """`z` [B, V] with −∞ outside the `top_k` likeliest and the nucleus of mass `top_p`.

    Args:
      z: float32[B, V], already divided by the temperature.
      top_k: 0 keeps every token.
      top_p: in (0, 1], of the mass that `top_k` leaves; None keeps every token.

    Returns:
      float32[B, V]; at least one entry of a row is finite.
    """
    if top_k == 0 and top_p is None:
        return z
    sorted_z = lax.top_k(z, top_k)[0] if top_k else -jnp.sort(-z, axis=-1)
    if top_p is None:
        threshold = sorted_z[:, -1:]
    else:
        probability = jax.nn.softmax(sorted_z, axis=-1)
        before = jnp.cumsum(probability, axis=-1) - probability
        kept = (before < top_p).at[:, 0].set(True)
        threshold = jnp.min(jnp.where(kept, sorted_z, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(z >= threshold, z, -jnp.inf)


def _log_kept(z: Array, truncated: Array) -> Array:
    """Log of the share of softmax(z) that `truncated` [B, V] keeps, float32[B], at most 0."""
    share = jax.nn.logsumexp(truncated, axis=-1) - jax.nn.logsumexp(z, axis=-1)
    return jnp.minimum(share, 0.0)


def _argmax(z: Array) -> tuple[Array, Array]:
    token = jnp.argmax(z, axis=-1).astype(jnp.int32)
    return token, jnp.max(z, axis=-1) - jax.nn.logsumexp(z, axis=-1)


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
    block_mass = placement.activation(jnp.sum(blocks, axis=-1), "activation")
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


def cast_kernels(params: transformer.Params, config: TransformerConfig) -> transformer.Params:
    """Matrices in the compute dtype, once instead of at every step.

    Norms and routers stay float32, in which they compute.
    """

    def cast(path: tuple[Any, ...], x: Array) -> Array:
        wide = path[-1].key == "scale" or path[-2].key == "router"
        return x if wide else x.astype(config.dtype)

    return jax.tree_util.tree_map_with_path(cast, params)


def _validate(
    config: TransformerConfig,
    prompts: Array,
    prompt_mask: Array,
    keys: Array,
    max_new_tokens: int,
    end_ids: tuple[int, ...],
    pad_id: int,
) -> None:
    if prompts.ndim != 2 or prompts.shape != prompt_mask.shape:
        raise ValueError(
            "prompts and prompt_mask must both be [B, P], got "
            f"{prompts.shape} and {prompt_mask.shape}"
        )
    if not jnp.issubdtype(keys.dtype, jax.dtypes.prng_key) or keys.shape != prompts.shape[:1]:
        raise ValueError(
            f"keys must be one typed PRNG key a row, shape {prompts.shape[:1]}, got "
            f"{keys.dtype}{keys.shape}"
        )
    if prompt_mask.dtype != bool:
        raise ValueError(f"prompt_mask must be bool, got {prompt_mask.dtype}")
    if _on_this_host(prompt_mask):
        mask = np.asarray(prompt_mask)
        if not mask[:, -1].all() or (mask[:, :-1] & ~mask[:, 1:]).any():
            row = int(np.argmax(~mask[:, -1] | (mask[:, :-1] & ~mask[:, 1:]).any(axis=1)))
            raise ValueError(
                f"prompts must be padded on the left and not empty; row {row} of prompt_mask is "
                f"{mask[row].astype(int).tolist()}"
            )
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    if not end_ids:
        raise ValueError("eos_id must name at least one token that ends a completion")
    for name, token in (*(("eos_id", token) for token in end_ids), ("pad_id", pad_id)):
        if not 0 <= token < config.vocab_size:
            raise ValueError(f"{name} must be in [0, {config.vocab_size}), got {token}")


def _on_this_host(x: Array) -> bool:
    """Whether all of `x` can be read here: neither traced nor spread over processes."""
    return not isinstance(x, jax.core.Tracer) and (
        isinstance(x, np.ndarray) or x.is_fully_addressable
    )


def _validate_distribution(
    config: TransformerConfig,
    temperature: Any,
    top_k: int,
    top_p: Any,
    logit_noise: Any,
) -> None:
    if not isinstance(temperature, jax.core.Tracer) and not temperature > 0:
        raise ValueError(
            f"temperature must be positive, got {temperature}; pass greedy=True for the likeliest "
            "token"
        )
    if not 0 <= top_k <= config.vocab_size:
        raise ValueError(f"top_k must be in [0, {config.vocab_size}] (0: all), got {top_k}")
    if not isinstance(top_p, jax.core.Tracer) and not 0 < top_p <= 1:
        raise ValueError(f"top_p must be in (0, 1], got {top_p}")
    if not isinstance(logit_noise, jax.core.Tracer) and not logit_noise >= 0:
        raise ValueError(f"logit_noise must be at least 0, got {logit_noise}")
