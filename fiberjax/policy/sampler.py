"""Sampling completions from the policy: one compiled loop over a key-value cache.

Prompts are padded on the left, so that every row's completion begins in the same column and a step
writes one column of the cache. The loop ends as soon as every row has ended. Reading the cache is
most of a step's work on an accelerator, so the loop runs in stages, each of which reads no more
columns than its last token needs.

With `slots`, fewer rows are decoded at a time, and a row that ends makes place for one that waits;
that loop is in `slots`.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from fiberjax.options import CACHE_DTYPES
from fiberjax.policy import slots as slots_
from fiberjax.policy import transformer
from fiberjax.policy.cache import Cache, extend_cache
from fiberjax.policy.config import TransformerConfig
from fiberjax.policy.drawing import Distribution, Samples, empty, stage_ends
from fiberjax.policy.placement import ONE_DEVICE, Placement


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
    greedy: Array | bool = False,
    limits: Array | None = None,
    slots: int = 0,
    stage: int = 0,
    cache_dtype: str = "",
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
      top_p: in (0, 1]; a Python 1.0 costs nothing, anything else 31 sums over the vocabulary a
        step, or a sort of the `top_k`.
      logit_noise: σ, at least 0; a Python 0.0 costs nothing.
      greedy: take the likeliest token, by the same program. `temperature`, `top_k`, `top_p` and
        `logit_noise` are then ignored and `log_prob` is that of the policy at temperature 1.
      limits: int32[B], at least 1: the most tokens of each row's completion, where they are fewer
        than `max_new_tokens`; None for no other limit.
      slots: rows that are decoded at a time on each row shard of `placement`; where more wait, they
        take the places of those that have ended. 0 decodes all rows together; static. Rows draw the
        same, up to what rounding does to a draw at the edge of a token.
      stage: the most tokens of a stage; each is compiled by itself; 0 takes a quarter of all, from
        32 to 512, or a sixteenth of very long ones (`stage_ends`); static.
      cache_dtype: what keys and values are kept in: "" is the compute dtype; "bfloat16"; "int8",
        each vector of a head and column with a scale of its own. Prompts are read in the compute
        dtype. What is reported is of the distribution drawn from, rounding included; static.
      placement: where the policy's arrays lie.

    Returns:
      The completions; not differentiable.

    Raises:
      ValueError: if an option is out of range, or shapes do not agree.
    """
    end_ids = (eos_id,) if isinstance(eos_id, int) else tuple(eos_id)
    _validate(config, prompts, prompt_mask, keys, max_new_tokens, end_ids, pad_id)
    if stage < 0:
        raise ValueError(f"stage must be 0 or positive, got {stage}")
    if not isinstance(greedy, jax.core.Tracer) and greedy:
        temperature = 1.0  # 0 says the same.
    _validate_distribution(config, temperature, top_k, top_p, logit_noise)
    if slots < 0:
        raise ValueError(f"slots must be 0 or positive, got {slots}")
    if cache_dtype not in CACHE_DTYPES:
        raise ValueError(f"cache_dtype must be one of {CACHE_DTYPES}, got {cache_dtype!r}")
    if limits is not None and limits.shape != keys.shape:
        raise ValueError(f"limits must be one a row, shape {keys.shape}, got {limits.shape}")
    truncate = not (isinstance(top_p, int | float) and top_p == 1.0)
    disturb = not (isinstance(logit_noise, int | float) and logit_noise == 0.0)
    distribution = Distribution(
        temperature,
        top_p if truncate else None,
        logit_noise if disturb else None,
        greedy,
        top_k=0 if top_k == config.vocab_size else top_k,
        end_ids=end_ids,
        placement=placement,
    )
    return _sample(
        params,
        prompts,
        prompt_mask,
        keys,
        jnp.full(len(keys), max_new_tokens, jnp.int32) if limits is None else limits,
        distribution,
        config=config,
        max_new_tokens=max_new_tokens,
        pad_id=pad_id,
        slots=slots if slots * placement.row_shards < len(keys) else 0,
        stage=stage,
        cache_dtype=cache_dtype,
        placement=placement,
    )


@functools.partial(
    jax.jit,
    static_argnames=(
        *("config", "max_new_tokens", "pad_id", "slots", "stage", "cache_dtype", "placement"),
    ),
)
def _sample(
    params: transformer.Params,
    prompts: Array,
    prompt_mask: Array,
    keys: Array,
    limits: Array,
    distribution: Distribution,
    *,
    config: TransformerConfig,
    max_new_tokens: int,
    pad_id: int,
    slots: int,
    stage: int,
    cache_dtype: str,
    placement: Placement,
) -> Samples:
    model = transformer.bind(config, cast_kernels(params, config), placement=placement)
    rows = (prompts, prompt_mask, keys, jnp.minimum(limits, max_new_tokens))
    draw = functools.partial(slots_.refilled, slots=slots) if slots else _together
    samples = draw(
        *(model, distribution, *rows),
        max_new_tokens=max_new_tokens,
        pad_id=pad_id,
        stage=stage,
        cache_dtype=cache_dtype,
    )
    # A table that no step writes would otherwise be whole on every device.
    return Samples(*(placement.activation(of, "rows") for of in samples))


class _State(NamedTuple):
    """What a step carries; `token` [B] is the one drawn last, `live` [B] says who goes on."""

    step: Array
    token: Array
    live: Array
    samples: Samples
    cache: Cache


def _together(
    model: transformer.Transformer,
    distribution: Distribution,
    prompts: Array,
    prompt_mask: Array,
    keys: Array,
    limits: Array,
    *,
    max_new_tokens: int,
    pad_id: int,
    stage: int,
    cache_dtype: str,
) -> Samples:
    """All rows in step: the loop ends when the last of them has."""
    batch, prompt_columns = prompts.shape

    def draw(state: _State, hidden: Array) -> _State:
        """Draws the token of column `state.step` and records it."""
        token, log_prob, log_kept = distribution.draw(
            model.unembed(hidden[:, -1]), keys, state.step
        )
        past, live = state.samples, state.live
        token = jnp.where(live, token, pad_id)

        def record(table: Array, column: Array) -> Array:
            column = jnp.where(live, column, jnp.zeros_like(column))
            return lax.dynamic_update_slice(table, column[:, None], (0, state.step))

        finished = live & distribution.ends(token)
        samples = past._replace(
            tokens=lax.dynamic_update_slice(past.tokens, token[:, None], (0, state.step)),
            log_prob=record(past.log_prob, log_prob),
            length=past.length + live,
            finished=past.finished | finished,
        )
        if log_kept is not None:
            samples = samples._replace(log_kept=record(past.log_kept, log_kept))
        live &= ~finished & (samples.length < limits)
        return _State(state.step + 1, token, live, samples, state.cache)

    prompt_length_of_row = jnp.sum(prompt_mask, axis=1, dtype=jnp.int32)
    ones = jnp.ones((batch, 1), jnp.int32)

    def step(state: _State, *, columns: int) -> _State:
        position = (prompt_length_of_row + state.step - 1)[:, None]
        hidden, cache = model.decode(
            state.token[:, None], position, ones, state.cache, columns=columns
        )
        return draw(state._replace(cache=cache), hidden)

    def unfinished(state: _State, *, end: int) -> Array:
        return (state.step < end) & jnp.any(state.live)

    # Prompts attend to prompts: the columns of the completion are added afterwards.
    positions = jnp.cumsum(prompt_mask, axis=1, dtype=jnp.int32) - 1
    hidden, cache = model.prefill(prompts, positions, prompt_mask.astype(jnp.int32))
    # The last token drawn is never decoded: it needs no column.
    cache = extend_cache(cache, max_new_tokens - 1, cache_dtype)
    start = _State(
        step=jnp.int32(0),
        token=jnp.zeros((batch,), jnp.int32),
        live=jnp.ones((batch,), bool),
        samples=empty(batch, max_new_tokens, pad_id),
        cache=cache,
    )
    state = draw(start, hidden)
    for end in stage_ends(max_new_tokens, stage):
        state = lax.while_loop(
            functools.partial(unfinished, end=end),
            # One token fewer than are drawn by then has a column.
            functools.partial(step, columns=prompt_columns + end - 1),
            state,
        )
    return state.samples._replace(held=jnp.full_like(state.samples.held, state.step))


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
