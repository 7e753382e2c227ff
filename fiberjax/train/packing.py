"""Packing: several trajectories in a row of tokens, so that ragged answers waste none.

Rollouts stand one in a row, padded to the longest possible prompt and answer. Before an update the
real tokens of several may be put behind one another in fewer rows: `segment_ids` keep them from
attending to each other, positions start again with each, and the layout names the trajectory of
every token. Values and gradients are those of the unpacked batch. Packing happens on the host, and
no trajectory leaves its row shard, whose tables of trajectories stay as they are.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from fiberjax.train.batch import Batch

BUCKETS = 8


def first_fit(lengths: Sequence[int], width: int) -> list[tuple[int, int]]:
    """Places sequences in rows, longest first, each in the first row with room.

    Args:
      lengths: tokens of each sequence.
      width: tokens of a row.

    Returns:
      The row and the first column of each sequence.

    Raises:
      ValueError: a sequence is longer than a row.

    >>> first_fit([3, 5, 2, 4], 7)
    [(1, 4), (0, 0), (0, 5), (1, 0)]
    """
    used: list[int] = []
    places = [(0, 0)] * len(lengths)
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = int(lengths[index])
        if length > width:
            raise ValueError(f"sequence {index} has {length} tokens; a row holds {width}")
        row = next((r for r, taken in enumerate(used) if taken + length <= width), len(used))
        if row == len(used):
            used.append(0)
        places[index] = (row, used[row])
        used[row] += length
    return places


def rows_needed(batch: Batch, shards: int) -> int:
    """Rows that the fullest shard needs once packed.

    Args:
      batch: host arrays, one trajectory a row, B rows.
      shards: how many blocks of rows may not be mixed; divides B.
    """
    lengths = (np.asarray(batch.segment_ids) != 0).sum(axis=1)
    width = batch.tokens.shape[1]
    return max(
        1 + max(row for row, _ in first_fit(block, width)) for block in lengths.reshape(shards, -1)
    )


def buckets(rows: int, multiple: int) -> tuple[int, ...]:
    """The rows of a shard that may be packed into: few numbers, so that few programs compile.

    Args:
      rows: rows of a shard without packing.
      multiple: the rows of a micro-batch; each number but `rows` itself is a multiple of it.

    Returns:
      Whole numbers of eighths of `rows`, rounded up, the smallest first, `rows` last.

    >>> buckets(32, 8)
    (8, 16, 24, 32)
    """
    step = -(-rows // BUCKETS)
    step = -(-step // multiple) * multiple
    return (*range(step, rows, step), rows)


def bucket(needed: int, rows: int, multiple: int) -> int:
    """The smallest of `buckets` that holds the rows needed by the fullest shard.

    >>> bucket(9, 32, 2)
    12
    """
    return next(size for size in buckets(rows, multiple) if size >= needed)


def pack(batch: Batch, *, rows: int, shards: int = 1) -> Batch:
    """The same trajectories in fewer rows: `[shards · rows, S]`, completion columns `[.., S − 1]`.

    Args:
      batch: host arrays, one trajectory a row, `[B, S]`; B a multiple of `shards`.
      rows: rows of a shard, from `bucket`.
      shards: row shards that these arrays will lie on.

    Returns:
      A batch whose layout has one id a token, counted within its shard. Its columns are the
      targets: column t of the layout is column t + 1 of the tokens.

    Raises:
      ValueError: the trajectories do not fit.
    """
    num, width = batch.tokens.shape
    completion = batch.layout.mask.shape[1]
    local = num // shards
    real = np.asarray(batch.segment_ids) != 0
    lengths = real.sum(axis=1)
    # Where every real token of the old rows goes; padding goes nowhere.
    row_of, column_of, segment_of = (np.zeros(num, np.int32) for _ in range(3))
    for shard in range(shards):
        block = slice(shard * local, (shard + 1) * local)
        places = first_fit(lengths[block], width)
        order = np.zeros(rows, np.int32)
        for index, (row, column) in enumerate(places):
            if row >= rows:
                raise ValueError(
                    f"{local} trajectories need more than {rows} rows of {width} tokens"
                )
            order[row] += 1
            row_of[block][index], column_of[block][index] = shard * rows + row, column
            segment_of[block][index] = order[row]
    source, at = np.nonzero(real)
    target_row = row_of[source]
    target_column = column_of[source] + np.asarray(batch.positions)[source, at]

    def move(values: Any, padding: int = 0) -> Any:
        values = np.asarray(values)
        packed = np.full((shards * rows, width, *values.shape[2:]), padding, values.dtype)
        packed[target_row, target_column] = values[source, at]
        return packed

    def move_completion(values: Any, padding: int = 0) -> Any:
        """Columns of completions; the first column of a row is no target."""
        values = np.asarray(values)
        whole = np.zeros((num, width), values.dtype)
        whole[:, width - completion :] = values
        return move(whole, padding)[:, 1:]

    mask = move_completion(batch.layout.mask)
    cell: Any = np.broadcast_to(
        (np.arange(num, dtype=np.int32) % local)[:, None], (num, completion)
    )
    state_id: Any = batch.layout.state_id
    cell_id: Any = np.where(mask, move_completion(cell), local).astype(np.int32)
    if state_id is not None:
        moved = move_completion(state_id)
        state_id = np.where(mask, moved, batch.layout.num_states).astype(np.int32)
    layout = dataclasses.replace(batch.layout, mask=mask, cell_id=cell_id, state_id=state_id)
    segments = np.broadcast_to(segment_of[:, None], (num, width))
    return Batch(
        tokens=move(batch.tokens),
        positions=move(batch.positions),
        segment_ids=move(segments),
        layout=layout,
        advantage=move_completion(batch.advantage),
        old_log_prob=move_completion(batch.old_log_prob),
        reference_log_prob=move_completion(batch.reference_log_prob),
        sample_weight=move_completion(batch.sample_weight),
        routes=None if batch.routes is None else move(batch.routes),
    )
