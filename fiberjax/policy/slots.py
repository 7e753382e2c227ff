"""Sampling in slots: a row that ends makes place for one that waits, inside the compiled loop.

A slot is a place in the batch, with columns of its own in the cache. Prompts wait in a queue on
each row shard. Where enough slots are free, as many prompts are taken from the queue, read together
and put into the cache; between that, all slots are decoded in step. So a batch takes as long as its
tokens, not as its longest rows.

In the cache the column of a token is its position: short prompts take few columns, and a step reads
no more than the longest row that goes on needs. Prompts are read at the narrowest of a few widths
that holds them.

Which row goes where is decided by lengths alone, and a row's draws by its key and step: rows are
drawn as they are without slots.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from fiberjax.policy import transformer
from fiberjax.policy.cache import Table, dtype_of, extended, init_cache, packed
from fiberjax.policy.drawing import Distribution, Samples, empty, stage_ends

# Slots are refilled when this share of them is free: seldom enough for a prompt to be read in
# company, often enough that few are decoded for nothing.
_FREE = 8
# Prompts are read at their full width, or at a half or a quarter of it.
_WIDTHS = (4, 2, 1)


class _Slots(NamedTuple):
    """What is in each slot; R slots over all row shards.

    Attributes:
      row: int32[R], which row of its shard; beyond all of them while there was none.
      key: keys [R], the row's own.
      limit: int32[R], the most tokens of its completion.
      token: int32[R], drawn last.
      position: int32[R], of that token.
      drawn: int32[R], tokens of it so far.
      live: bool[R], whether the row goes on.
      since: int32[R], the step after which it came.
    """

    row: Array
    key: Array
    limit: Array
    token: Array
    position: Array
    drawn: Array
    live: Array
    since: Array


class _State(NamedTuple):
    """What the loop carries; `waiting` int32[row shards] is the first row that waits, of each."""

    step: Array
    waiting: Array
    slots: _Slots
    samples: Samples
    keys: Table
    values: Table


def refilled(
    model: transformer.Transformer,
    distribution: Distribution,
    prompts: Array,
    prompt_mask: Array,
    keys: Array,
    limits: Array,
    *,
    slots: int,
    max_new_tokens: int,
    pad_id: int,
    stage: int,
    cache_dtype: str,
) -> Samples:
    """One completion of each row, `slots` rows of each row shard at a time.

    Args:
      model: bound to its parameters.
      distribution: of a token.
      prompts: int32[B, P], padded on the left.
      prompt_mask: bool[B, P].
      keys: one typed PRNG key a row, [B].
      limits: int32[B], the most tokens of each completion, at most `max_new_tokens`.
      slots: fewer than the rows of a shard; static.
      max_new_tokens: C; static.
      pad_id: fills what is not drawn; static.
      stage: the most columns by which a step reads more than it must; 0 as `stage_ends` has it;
        static.
      cache_dtype: one of `options.CACHE_DTYPES`; static.
    """
    place = model.placement
    shards, width = place.row_shards, prompts.shape[1]
    rows_of_shard = len(prompts) // shards
    together = max(1, slots // _FREE)
    lengths = jnp.sum(prompt_mask, axis=1, dtype=jnp.int32)
    # Every prompt begins in the first column.
    column = (jnp.arange(width) - lengths[:, None]) % width
    prompts = jnp.take_along_axis(prompts, column, axis=1)
    # The last token drawn is never decoded: it needs no column.
    capacity = width + max_new_tokens - 1
    widths = sorted({-(-width // part) for part in _WIDTHS})

    def draw(samples: Samples, slots: _Slots, hidden: Array, drawing: Array) -> Any:
        """Draws the next token of some of the slots and records it."""
        token, log_prob, log_kept = distribution.draw(model.unembed(hidden), slots.key, slots.drawn)
        ended = distribution.ends(token)

        def record(*of: Any) -> Samples:
            samples, row, column, drawing, ended, token, log_prob, *log_kept = of
            # Out of range, and so dropped, where nothing is drawn.
            row = jnp.where(drawing, row, rows_of_shard)
            at = (row, column)
            samples = samples._replace(
                tokens=samples.tokens.at[at].set(token, mode="drop"),
                log_prob=samples.log_prob.at[at].set(log_prob, mode="drop"),
                length=samples.length.at[row].set(column + 1, mode="drop"),
                finished=samples.finished.at[row].set(ended, mode="drop"),
            )
            if log_kept:
                table = samples.log_kept.at[at].set(log_kept[0], mode="drop")
                samples = samples._replace(log_kept=table)
            return samples

        drawn = (token, log_prob, *([] if log_kept is None else [log_kept]))
        samples = place.by_rows(record, samples, slots.row, slots.drawn, drawing, ended, *drawn)
        count = slots.drawn + drawing
        live = jnp.where(drawing, ~ended & (count < slots.limit), slots.live)
        token = jnp.where(drawing, token, slots.token)
        return samples, slots._replace(token=token, drawn=count, live=live)

    def by_shard(x: Array) -> Array:
        return x.reshape(shards, -1)

    def free(state: _State) -> Array:
        """Slots of each shard that could be filled, int32[row shards]."""
        return jnp.minimum(
            jnp.sum(by_shard(~state.slots.live), axis=1), rows_of_shard - state.waiting
        )

    def due(state: _State) -> Array:
        """Whether slots are to be filled: where on average over the shards enough are free."""
        wanted = jnp.sum(jnp.minimum(together, rows_of_shard - state.waiting))
        return (wanted > 0) & (jnp.sum(free(state)) >= wanted)

    def refill(state: _State) -> _State:
        """Takes up to `together` prompts a shard from the queue into free slots."""
        count = jnp.minimum(free(state), together)

        def queue(first: Array, *tables: Array) -> list[Array]:
            row = jnp.minimum(first + jnp.arange(together), rows_of_shard - 1)
            return [table[row] for table in tables]

        def assign(live: Array, count: Array) -> Array:
            """Which of the prompts taken each slot gets, int32[slots]; −1 for none."""
            rank = jnp.cumsum(~live) - 1
            return jnp.where(~live & (rank < count), rank, -1).astype(jnp.int32)

        def enter(slots: _Slots, source: Array, first: Array, key, limit, length, step) -> _Slots:
            filled, of = source >= 0, jnp.maximum(source, 0)
            new = _Slots(
                row=first + of,
                key=key[of],
                limit=limit[of],
                token=slots.token,
                position=length[of],
                drawn=jnp.zeros_like(of),
                live=filled,
                # A slot that was nobody's before counts as its first row's.
                since=jnp.where(slots.row < rows_of_shard, step, slots.since),
            )
            return _Slots(*(jnp.where(filled, a, b) for a, b in zip(new, slots, strict=True)))

        tokens, length, key, limit = place.by_rows(
            queue, state.waiting, prompts, lengths, keys, limits
        )
        real = by_shard(jnp.arange(together * shards) % together < jnp.repeat(count, together))
        longest = jnp.max(jnp.where(real, by_shard(length), 0))
        branch = jnp.sum(longest > jnp.array(widths[:-1], jnp.int32))
        read = [functools.partial(_read, model, columns=w, width=width) for w in widths]
        hidden, new_keys, new_values = lax.switch(branch, read, tokens, length)

        source = place.by_rows(assign, state.slots.live, count)
        steps = jnp.broadcast_to(state.step, (shards,))
        samples = _leave(state, source >= 0, place)
        slots = place.by_rows(enter, state.slots, source, state.waiting, key, limit, length, steps)
        taken = place.by_rows(lambda x, of: x[jnp.maximum(of, 0)], hidden, source)
        samples, slots = draw(samples, slots, taken, source >= 0)

        def put(table: Table, new: Any) -> Table:
            new = packed(new, dtype_of(table))
            return jax.tree.map(lambda part, new: place.put(part, new, source), table, new)

        return _State(
            step=state.step,
            waiting=state.waiting + count,
            slots=slots,
            samples=samples,
            keys=put(state.keys, new_keys),
            values=put(state.values, new_values),
        )

    def needed(state: _State) -> Array:
        """Columns that the next step must read; 0 where no row goes on."""
        slots = state.slots
        return jnp.max(jnp.where(slots.live, slots.position + 1, 0))

    def step(state: _State, *, columns: int) -> _State:
        slots = state.slots
        position = jnp.minimum(slots.position, capacity - 1)
        hidden, keys, values = model.decode_own(
            slots.token, position, state.keys, state.values, columns=columns
        )
        live = slots.live
        samples, slots = draw(state.samples, slots, hidden, live)
        slots = slots._replace(position=slots.position + live)
        return _State(state.step + 1, state.waiting, slots, samples, keys, values)

    def within(state: _State, *, above: int, end: int) -> Array:
        columns = needed(state)
        return (columns > above) & (columns <= end) & ~due(state)

    ends = stage_ends(capacity, stage)

    def round_(state: _State) -> _State:
        state = lax.cond(due(state), refill, lambda state: state, state)
        for above, end in zip((0, *ends), ends, strict=False):
            state = lax.while_loop(
                functools.partial(within, above=above, end=end),
                functools.partial(step, columns=end),
                state,
            )
        return state

    def unfinished(state: _State) -> Array:
        return jnp.any(state.slots.live) | jnp.any(state.waiting < rows_of_shard)

    count = slots * shards
    zeros = jnp.zeros((count,), jnp.int32)
    cache = init_cache(model.config, count, capacity, cache_dtype)
    state = _State(
        step=jnp.int32(0),
        waiting=jnp.zeros((shards,), jnp.int32),
        slots=_Slots(
            row=jnp.full((count,), rows_of_shard, jnp.int32),
            key=place.by_rows(lambda key: key[:slots], keys),
            limit=zeros,
            token=zeros,
            position=zeros,
            drawn=zeros,
            live=jnp.zeros((count,), bool),
            since=zeros,
        ),
        samples=empty(len(prompts), max_new_tokens, pad_id),
        keys=cache.key,
        values=cache.value,
    )
    state = lax.while_loop(unfinished, round_, state)
    return _leave(state, jnp.ones((count,), bool), place)


def _read(
    model: transformer.Transformer, tokens: Array, length: Array, *, columns: int, width: int
) -> tuple[Array, Table, Table]:
    """What the last token of each prompt gives [N, D], and keys and values in `width` columns."""
    real = (jnp.arange(columns) < length[:, None]).astype(jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(columns), real.shape)
    hidden, cache = model.prefill(tokens[:, :columns], positions, real)
    hidden = jnp.take_along_axis(hidden, length[:, None, None] - 1, axis=1)[:, 0]
    return hidden, extended(cache.key, width - columns), extended(cache.value, width - columns)


def _leave(state: _State, leaving: Array, place: Any) -> Samples:
    """The samples, with how long the rows that leave their slots were in them."""

    def note(held: Array, row: Array, leaving: Array, time: Array) -> Array:
        return held.at[jnp.where(leaving, row, len(held))].set(time, mode="drop")

    # The first token came without a step.
    time = state.step - state.slots.since + 1
    held = place.by_rows(note, state.samples.held, state.slots.row, leaving, time)
    return state.samples._replace(held=held)
