"""Packing: several trajectories in a row of tokens, so that ragged answers waste none.

Rollouts stand one in a row, padded to the longest possible prompt and answer. Before the policy
runs over them the real tokens of several may be put behind one another in fewer rows: `segment_ids`
keep them from attending to each other, positions start again with each, and the layout names the
trajectory of every token. Values and gradients are those of the unpacked batch. Packing happens on
the host, and no trajectory leaves its row shard, whose tables of trajectories stay as they are.

A row has two windows, as it has without packing: so many tokens, and so many of them completions.
Where as few rows keep both, `Batch.columns` names the completions, and prompts cost no logits.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from fiberjax.parallel import mesh
from fiberjax.train.batch import Batch, Rows

BUCKETS = 8


def first_fit(
    lengths: Sequence[int],
    width: int,
    completions: Sequence[int] | None = None,
    window: int = 0,
) -> list[tuple[int, int]]:
    """Places sequences in rows, longest first, each in the first row with room.

    Args:
      lengths: tokens of each sequence.
      width: tokens of a row.
      completions: those of them that are completions; None sets no second bound.
      window: completions of a row.

    Returns:
      The row and the first column of each sequence.

    Raises:
      ValueError: a sequence is longer than a row.

    >>> first_fit([3, 5, 2, 4], 7)
    [(1, 4), (0, 0), (0, 5), (1, 0)]
    >>> first_fit([3, 5, 2, 4], 7, completions=[1, 4, 2, 3], window=4)
    [(1, 4), (0, 0), (2, 0), (1, 0)]
    """
    used: list[tuple[int, int]] = []
    places = [(0, 0)] * len(lengths)
    second = [0] * len(lengths) if completions is None else completions
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length, completion = int(lengths[index]), int(second[index])
        if length > width:
            raise ValueError(f"sequence {index} has {length} tokens; a row holds {width}")
        row = next(
            (
                r
                for r, (taken, said) in enumerate(used)
                if taken + length <= width and said + completion <= window
            ),
            len(used),
        )
        if row == len(used):
            used.append((0, 0))
        taken, said = used[row]
        places[index] = (row, taken)
        used[row] = (taken + length, said + completion)
    return places


def unit(rows: int, micro_batches: int) -> int:
    """What the rows of a shard come in: those of one micro-batch, or any where there is only one.

    >>> unit(32, 4), unit(32, 1)
    (8, 1)
    """
    return rows // micro_batches if micro_batches > 1 else 1


def buckets(rows: int, multiple: int) -> tuple[int, ...]:
    """The rows of a shard that may be packed into: few numbers, so that few programs compile.

    Args:
      rows: rows of a shard without packing.
      multiple: from `unit`; each number but `rows` itself is a multiple of it.

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


class Packing(NamedTuple):
    """Where every token of B rows goes in fewer rows; of `arrange`, which says what it is for.

    Attributes:
      unpacked: B.
      rows: of all shards.
      width: tokens of a row, packed or not.
      window: the last columns of an unpacked row, which are completions.
      source: int[n], the row of each real token, and `at` its column.
      row: int[n], the packed row of each, and `column` its column.
      segment: int[n], which of its row's sequences, from 1.
      columns: int32[rows, window], where a row's completions stand; 1 behind the last. None where
        they are more than the window, and all columns but the first are targets.
      order: int[n], of each completion its place in `columns`.
    """

    unpacked: int
    rows: int
    width: int
    window: int
    source: np.ndarray
    at: np.ndarray
    row: np.ndarray
    column: np.ndarray
    segment: np.ndarray
    columns: np.ndarray | None
    order: np.ndarray

    @property
    def segment_ids(self) -> Any:
        """int32[rows, S], 0 at padding."""
        found = np.zeros((self.rows, self.width), np.int32)
        found[self.row, self.column] = self.segment
        return found

    def pack(self, values: Any, padding: int = 0) -> Any:
        """`[B, S, ...]` as `[rows, S, ...]`, in its dtype."""
        values = np.asarray(values)
        packed = np.full((self.rows, self.width, *values.shape[2:]), padding, values.dtype)
        packed[self.row, self.column] = values[self.source, self.at]
        return packed

    def unpack(self, packed: Any) -> Any:
        """Undoes `pack`; 0 where no token is."""
        packed = np.asarray(packed)
        values = np.zeros((self.unpacked, self.width, *packed.shape[2:]), packed.dtype)
        values[self.source, self.at] = packed[self.row, self.column]
        return values

    def pack_completions(self, values: Any, padding: int = 0) -> Any:
        """`[B, window]` as `[rows, T]`, of `targets` columns."""
        values = np.asarray(values)
        said, completion, targets = self._completions()
        packed = np.full((self.rows, self.targets), padding, values.dtype)
        packed[self.row[said], targets] = values[self.source[said], completion]
        return packed

    def unpack_completions(self, packed: Any) -> Any:
        """Undoes `pack_completions`; 0 where no token is."""
        packed = np.asarray(packed)
        said, completion, targets = self._completions()
        values = np.zeros((self.unpacked, self.window), packed.dtype)
        values[self.source[said], completion] = packed[self.row[said], targets]
        return values

    @property
    def targets(self) -> int:
        """T, the columns of packed completions."""
        return self.width - 1 if self.columns is None else self.window

    def _completions(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Which tokens are completions, their columns in the window, and as packed targets."""
        completion = self.at - (self.width - self.window)
        said = completion >= 0
        # The first column of a row is no target: nothing stands before it.
        targets = self.column - 1 if self.columns is None else self.order
        return said, completion[said], targets[said]


Places = list[tuple[int, int]]
"""The row and first column of each of a shard's sequences."""


def places(real: np.ndarray, window: int, shards: int) -> tuple[list[Places], list[Places]]:
    """Where sequences go, shard by shard: once by their tokens alone, once by both windows.

    Args:
      real: bool[B, S], the tokens; sequences are as long as they hold tokens.
      window: the last columns, which are completions.
      shards: how many blocks of rows may not be mixed; divides B.
    """
    width = real.shape[1]
    lengths = real.sum(axis=1).reshape(shards, -1)
    said = real[:, width - window :].sum(axis=1).reshape(shards, -1)
    free = [first_fit(block, width) for block in lengths]
    both = [first_fit(a, width, b, window) for a, b in zip(lengths, said, strict=True)]
    return free, both


def rows_of(of_shards: list[Places]) -> int:
    """Rows that the fullest shard needs."""
    return max(1 + max(row for row, _ in block) for block in of_shards)


def choose(device_mesh: Mesh, segment_ids: Any, window: int, micro_batches: int) -> Packing | None:
    """How this process packs its rows: into as many a shard as all processes need.

    Args:
      device_mesh: from `mesh.make_mesh`.
      segment_ids: int32[B, S], one trajectory a row.
      window: the last columns, which are completions.
      micro_batches: a micro-batch keeps the rows that it has when unpacked rows are split into so
        many. One micro-batch takes any number of rows.

    Returns:
      The packing, whose `columns` are named where that takes no more rows; None where all rows are
      needed: unpacked, columns of prompts cost no logits either.
    """
    real = np.asarray(segment_ids) != 0
    shards = len(mesh.local_shards(device_mesh))
    rows = len(real) // shards
    multiple = unit(rows, micro_batches)
    free, both = places(real, window, shards)
    needed = np.broadcast_to([rows_of(free), rows_of(both)], (shards, 2))
    most = mesh.gather(device_mesh, needed).max(axis=0)
    size, within = (bucket(int(of), rows, multiple) for of in most)
    if size == rows:
        return None
    named = size == within
    return arrange(real, window, both if named else free, rows=size, named=named)


def arrange(
    real: np.ndarray, window: int, of_shards: list[Places], *, rows: int, named: bool
) -> Packing:
    """The packing of sequences to their places.

    Args:
      real: bool[B, S], the tokens.
      window: the last columns, which are completions.
      of_shards: where each sequence goes, from `places`.
      rows: of a shard, from `bucket`.
      named: whether a row has no more completions than the window, so that `columns` names them.

    Raises:
      ValueError: the sequences do not fit.
    """
    num, width = real.shape
    local, shards = num // len(of_shards), len(of_shards)
    first_row, first_column, segment = (np.zeros(num, np.int32) for _ in range(3))
    for shard, block in enumerate(of_shards):
        order = np.zeros(rows, np.int32)
        for index, (row, column) in enumerate(block, shard * local):
            if row >= rows:
                raise ValueError(
                    f"{local} trajectories need more than {rows} rows of {width} tokens"
                )
            order[row] += 1
            first_row[index], first_column[index] = shard * rows + row, column
            segment[index] = order[row]
    source, at = np.nonzero(real)
    begins = np.searchsorted(source, source)  # The first token of each token's sequence.
    in_row, in_column = first_row[source], first_column[source] + np.arange(len(source)) - begins
    order_in_row, columns = np.zeros(len(source), np.int32), None
    if named:
        columns = np.ones((shards * rows, window), np.int32)
        said = np.flatnonzero(at >= width - window)
        said = said[np.lexsort((in_column[said], in_row[said]))]
        order_in_row[said] = np.arange(len(said)) - np.searchsorted(in_row[said], in_row[said])
        columns[in_row[said], order_in_row[said]] = in_column[said]
    of_tokens = (source, at, in_row, in_column, segment[source])
    return Packing(num, shards * rows, width, window, *of_tokens, columns, order_in_row)


def pack_rows(rows: Rows, packing: Packing) -> Rows:
    """What the policy reads of the same trajectories in fewer rows; host arrays."""
    routes = None if rows.routes is None else packing.pack(rows.routes)
    tokens, positions = packing.pack(rows.tokens), packing.pack(rows.positions)
    columns: Any = packing.columns
    return Rows(tokens, positions, packing.segment_ids, routes, columns)


def pack(batch: Batch, packing: Packing, shards: int = 1) -> Batch:
    """The same trajectories in fewer rows.

    Args:
      batch: host arrays, one trajectory a row, `[B, S]`.
      packing: from `choose`, or `arrange`.
      shards: row shards that these arrays will lie on.

    Returns:
      A batch whose layout has one id a token, counted within its shard, of its trajectory or of
      its turn. Where `columns` names no completions the layout's columns are all targets: column t
      is column t + 1 of the tokens.
    """
    num, completion = batch.layout.mask.shape
    move_completion = packing.pack_completions
    mask = move_completion(batch.layout.mask)
    cell: Any = batch.layout.cell_id
    if cell is None:  # A row is a cell.
        local = np.arange(num, dtype=np.int32) % (num // shards)
        cell = np.broadcast_to(local[:, None], (num, completion))
    state_id: Any = batch.layout.state_id
    missing = batch.layout.sizes[0].shape[0] // shards
    cell_id: Any = np.where(mask, move_completion(cell), missing).astype(np.int32)
    if state_id is not None:
        moved = move_completion(state_id)
        state_id = np.where(mask, moved, batch.layout.num_states).astype(np.int32)
    layout = dataclasses.replace(batch.layout, mask=mask, cell_id=cell_id, state_id=state_id)
    return Batch(
        **pack_rows(batch.rows, packing)._asdict(),
        layout=layout,
        advantage=move_completion(batch.advantage),
        old_log_prob=move_completion(batch.old_log_prob),
        reference_log_prob=move_completion(batch.reference_log_prob),
        sample_weight=move_completion(batch.sample_weight),
    )
