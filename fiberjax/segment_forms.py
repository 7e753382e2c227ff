"""The four maps that sums over segments are made of, in a form for each platform.

    sums        [N, ...] by ids -> [S, ...]     entries        its transpose: the entry of each id
    class_sums  [..., T] by class -> [..., C]   class_entries  its transpose, along rows

Values are moved over the tokens as few times as a compiler allows, and that decides the form:

* XLA writes what it reduces on a CPU to memory first, unless several numbers are reduced at once:
  rows are then read once, whatever is summed of them (`_rows_at_once`).
* On a CPU it also computes an entry of a small table again for each token that reads it. Tables are
  therefore made whole before many read them (`_kept`).
* A TPU has no fast scatter or gather, and no time for comparing every token with every segment. An
  id is written as two digits (`bases`); a table is then a matrix, a sum the product of two one-hot
  matrices, and a token reads a row of the table by another product (`digit_sums`,
  `digit_entries`). XLA fuses the comparisons into the products. Rows shorter than a TPU's lanes,
  such as blocks, are joined, and summed by a product too (`joined_sums_by_class`).

Of fewer than `FEW` elements all of this is left out: nothing would be saved but compiling.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fiberjax import transposes

Arrays = tuple[jax.Array, ...]

PARTS = 8
"""Parts of a row that a CPU adds to each other; XLA makes a slow loop of more."""

LANES = 8
"""Elements that a part has at least."""

FEW = 256
"""Elements. Fewer are moved in the plainest form on every platform."""

TPU_LANES = 128
"""Elements that a TPU computes side by side; shorter rows are joined to as many."""

LARGEST_MATRIX = 2**16
"""Segments of a table that a TPU makes a matrix of; larger ones are scattered and gathered."""

LARGEST_NUMBER = 2.0**127
"""What is beyond, infinite too, is taken as this much on a TPU, whose products round in parts."""


def _rows_alone(arrays: Arrays) -> Arrays:
    """The sums of each array over its last axis, as reductions of their own."""
    return tuple(jnp.sum(array, axis=-1, dtype=array.dtype) for array in arrays)


def _rows_at_once(arrays: Arrays) -> Arrays:
    """`_rows_alone` as one reduction of all arrays: a row's parts are added element by element."""

    def add(left: Arrays, right: Arrays) -> Arrays:
        return tuple(a + b for a, b in zip(left, right, strict=True))

    def reduce(arrays: Arrays, axis: int) -> Arrays:
        return tuple(lax.reduce(arrays, tuple(np.zeros((), a.dtype) for a in arrays), add, (axis,)))

    length, last = arrays[0].shape[-1], arrays[0].ndim - 1
    count = min(PARTS, length // LANES)
    if count < 2:
        return reduce(arrays, last)
    whole = length - length % count
    parts = tuple(a[..., :whole].reshape(*a.shape[:-1], count, -1) for a in arrays)
    sums = _rows_at_once(reduce(parts, last))
    if whole < length:
        sums = add(sums, reduce(tuple(a[..., whole:] for a in arrays), last))
    return sums


def sums_by_class(
    values: jax.Array, classes: jax.Array, *, num_classes: int, at_once: bool = False
) -> jax.Array:
    """`[..., C]`, the sums of values `[..., T]` over each row by class."""
    # Products, here and below: twice as fast as selects on a CPU.
    parts = tuple((classes == c) * values for c in range(num_classes))
    floating = jnp.issubdtype(values.dtype, jnp.floating)
    joined = at_once and floating and values.size >= FEW
    return jnp.stack(_rows_at_once(parts) if joined else _rows_alone(parts), axis=-1)


def entries_by_class(
    table: jax.Array, classes: jax.Array, *, num_classes: int, kept: bool = False
) -> jax.Array:
    """`[..., T]`, for each element the entry of its class in its row of a table `[..., C]`."""
    if kept and num_classes > 1 and classes.size >= FEW:
        table = _kept(table)
    return sum(
        ((classes == c) * table[..., c : c + 1] for c in range(num_classes)),
        start=jnp.zeros((), table.dtype),
    )


def scattered_sums(values: jax.Array, ids: jax.Array, *, num_segments: int) -> jax.Array:
    """`[S, ...]`, the sums of values `[N, ...]` by ids `[N]`."""
    return jax.ops.segment_sum(values, ids, num_segments)


def gathered_entries(
    table: jax.Array, ids: jax.Array, *, num_segments: int, kept: bool = False
) -> jax.Array:
    """`[N, ...]`, the entry of each id in a table `[S, ...]`; 0 for ids outside."""
    if kept and ids.size >= max(FEW, num_segments):
        table = _kept(table)
    return table.at[ids].get(mode="fill", fill_value=0)


def bases(num_segments: int) -> tuple[int, int]:
    """Values of the smaller and of the larger digit, powers of two whose product is at least `S`.

    The further apart, the cheaper; but of a digit of 128 values and more a TPU's compiler writes
    the one-hot rows to memory.
    """
    bits = (num_segments - 1).bit_length()
    larger = max(min(bits - 3, 6), (bits + 1) // 2)
    return 2 ** (bits - larger), 2**larger


def _digits(ids: jax.Array, num_segments: int, base: int) -> tuple[jax.Array, jax.Array]:
    """The two digits of each id as one-hot rows, bool[N, H] and [N, base]."""
    first = ids[:, None] // base == jnp.arange(-(-num_segments // base), dtype=ids.dtype)
    second = ids[:, None] % base == jnp.arange(base, dtype=ids.dtype)
    return first, second


def _in_digits(array: jax.Array, ids: jax.Array, num_segments: int) -> bool:
    """Whether a TPU makes a matrix of a table."""
    exact = array.dtype in (jnp.float32, jnp.int32)
    return exact and ids.size >= FEW and num_segments <= LARGEST_MATRIX


def digit_sums(values: jax.Array, ids: jax.Array, *, num_segments: int) -> jax.Array:
    """`scattered_sums` as a product of two one-hot matrices, one of which holds the values.

    In full float32 every product is a value or 0: the sums are those of any other order. Those of
    integers are exact below 2²⁴.
    """
    if not _in_digits(values, ids, num_segments):
        return scattered_sums(values, ids, num_segments=num_segments)
    _, base = bases(num_segments)  # The first digit holds the columns: it is the smaller.
    first, second = _digits(ids, num_segments, base)
    columns = values.reshape(ids.size, 1, -1).astype(jnp.float32)
    columns = jnp.clip(columns, -LARGEST_NUMBER, LARGEST_NUMBER)
    chosen = jnp.where(first[:, :, None], columns, 0)
    table = jnp.einsum("nhk,nr->hrk", chosen, second.astype(jnp.float32), precision="highest")
    return table.reshape(-1, *values.shape[1:])[:num_segments].astype(values.dtype)


def digit_entries(table: jax.Array, ids: jax.Array, *, num_segments: int) -> jax.Array:
    """`gathered_entries` as a product that reads a row by the first digit, and a choice in it."""
    if not _in_digits(table, ids, num_segments):
        return gathered_entries(table, ids, num_segments=num_segments)
    if table.dtype == jnp.int32:  # Of 16 bits each, which a float32 holds.
        parts = jnp.stack([table >> 16, table & 0xFFFF], axis=-1).astype(jnp.float32)
        high, low = jnp.moveaxis(digit_entries(parts, ids, num_segments=num_segments), -1, 0)
        return (high.astype(jnp.int32) << 16) | low.astype(jnp.int32)
    base, _ = bases(num_segments)  # What the first digit reads is as wide as the second is.
    first, second = _digits(ids, num_segments, base)
    columns = jnp.clip(table.reshape(num_segments, -1), -LARGEST_NUMBER, LARGEST_NUMBER)
    height = first.shape[1]
    whole = jnp.pad(columns, ((0, height * base - num_segments), (0, 0)))
    matrix = whole.reshape(height, base, -1)
    rows = jnp.einsum("nh,hrk->nrk", first.astype(jnp.float32), matrix, precision="highest")
    read = jnp.sum(jnp.where(second[:, :, None], rows, 0), axis=1)
    return read.reshape(ids.size, *table.shape[1:])


def _rows_of_lanes(shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array | None:
    """One-hot float32[TPU_LANES, J]: which of `J` joined rows a lane is of.

    None where rows of that shape are not joined.
    """
    length, size = shape[-1], int(np.prod(shape))
    if dtype != jnp.float32 or size < FEW or not 1 < length < TPU_LANES:
        return None
    if TPU_LANES % length or size % TPU_LANES:
        return None
    return jnp.repeat(jnp.eye(TPU_LANES // length, dtype=jnp.float32), length, axis=0)


def joined_sums_by_class(values: jax.Array, classes: jax.Array, *, num_classes: int) -> jax.Array:
    """`sums_by_class` of short rows, as many joined as a TPU has lanes, by a product a class."""
    rows = _rows_of_lanes(values.shape, values.dtype)
    if rows is None:
        return sums_by_class(values, classes, num_classes=num_classes)
    values = jnp.clip(values, -LARGEST_NUMBER, LARGEST_NUMBER)
    joined, of = (x.reshape(-1, TPU_LANES) for x in (values, classes))
    parts = jnp.stack([jnp.where(of == c, joined, 0) for c in range(num_classes)])
    sums = jnp.matmul(parts, rows, precision="highest")
    return jnp.moveaxis(sums.reshape(num_classes, *values.shape[:-1]), 0, -1)


def joined_entries_by_class(table: jax.Array, classes: jax.Array, *, num_classes: int) -> jax.Array:
    """`entries_by_class` of short rows, the transpose of `joined_sums_by_class`."""
    rows = _rows_of_lanes(classes.shape, table.dtype)
    if rows is None:
        return entries_by_class(table, classes, num_classes=num_classes)
    table = jnp.clip(table, -LARGEST_NUMBER, LARGEST_NUMBER)
    of = classes.reshape(-1, TPU_LANES)
    read = jnp.zeros((), table.dtype)
    for c in range(num_classes):
        joined = table[..., c].reshape(-1, rows.shape[1])
        read = jnp.where(of == c, jnp.matmul(joined, rows.T, precision="highest"), read)
    return read.reshape(classes.shape)


def _kept(table: jax.Array) -> jax.Array:
    """The table, of which XLA computes no entry twice: it fuses no scatter into what reads it."""
    rows = jnp.arange(len(table))
    return jnp.zeros_like(table).at[rows].set(table, unique_indices=True, indices_are_sorted=True)


sums, entries = transposes.pair(
    ("segment_sum", "segment_entries"),
    (scattered_sums, gathered_entries),
    {
        "cpu": (scattered_sums, functools.partial(gathered_entries, kept=True)),
        "tpu": (digit_sums, digit_entries),
    },
)
class_sums, class_entries = transposes.pair(
    ("class_sum", "class_entries"),
    (sums_by_class, entries_by_class),
    {
        "cpu": (
            functools.partial(sums_by_class, at_once=True),
            functools.partial(entries_by_class, kept=True),
        ),
        "tpu": (joined_sums_by_class, joined_entries_by_class),
    },
)
