"""Segment sums and broadcasts: how values move between tokens, trajectories and the cells above.

Every function takes `ids`, the segment of each element, in one of three forms:

* an integer array of the values' shape; an id outside `[0, num_segments)` belongs to nothing: it is
  left out of sums and reads zero from tables, so padding points at `num_segments`;
* an integer array of fewer elements: each stands for a block of as many neighbouring values as
  there are values to an id. Blocks are reduced first, so that far fewer elements are scattered;
* `None`, the row layout: each row of `[S, T]` values is one segment. Plain reductions and
  broadcasts, several times faster than scatters.

`axis_name` names the mesh axes over which a segment's elements are spread. Inside `jax.shard_map`
the local sums are then added over those axes, so only a table of `[S]` numbers ever travels.

All of it is made of two pairs of linear maps, each the transpose of its partner (`transposes`):
sums by id and the entries of ids, sums by class along rows and the entries of classes. Values are
moved over the tokens as few times as a compiler allows, and that decides the form on each platform:

* XLA writes what it reduces on a CPU to memory first, unless several numbers are reduced at once:
  rows are then read once, whatever is summed of them (`_rows_at_once`).
* On a CPU it also computes an entry of a small table again for each token that reads it. Tables are
  therefore made whole before many read them (`_kept`).
* A TPU has no fast scatter or gather, and no time for comparing every token with every segment. An
  id is written as two digits (`_bases`); a table is then a matrix, a sum the product of two one-hot
  matrices, and a token reads a row of the table by another product (`_digits_sum`,
  `_digits_entries`). XLA fuses the comparisons into the products. Rows shorter than a TPU's lanes,
  such as blocks, are joined, and summed by a product too (`_joined_sums_by_class`).

Of fewer than `FEW` elements all of this is left out: nothing would be saved but compiling.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fiberjax import transposes

AxisName = str | tuple[str, ...] | None

Elements = tuple[jax.Array, ...]
"""What is combined along a segment: one or several arrays of one shape."""

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


def segment_sum(
    values: jax.Array,
    ids: jax.Array | None,
    num_segments: int,
    *,
    axis_name: AxisName = None,
) -> jax.Array:
    """Sums the values of every segment; returns `[S]`.

    Args:
      values: float[...] or int[...], one value an element; `[S, T]` where `ids` is None.
      ids: int32 of the values' leading axes, or None where a row is a segment.
      num_segments: static number of segments `S`.
      axis_name: mesh axes over which segments are spread; None or () sums locally.

    Returns:
      `[S]` of the values' dtype (with `ids`, further trailing axes of the values are kept); an
      empty segment is 0. Linear, so the gradient of an element is the cotangent of its segment, and
      0 where its id belongs to nothing. On a TPU sums of integers are exact below 2²⁴, and a NaN
      may reach other segments too, those whose ids share a digit with its own and those of blocks
      beside its own; elsewhere it stays in its segment.
    """
    if ids is None:
        table = row_sums(values)
    else:
        values = values.reshape(ids.size, *values.shape[ids.ndim :])
        table = _sums(values, ids.ravel(), num_segments=num_segments)
    return lax.psum(table, axis_name) if axis_name else table


def spread(table: jax.Array, ids: jax.Array | None) -> jax.Array:
    """Gives every element, or block, its segment's value; returns the shape of `ids`.

    Args:
      table: `[S]`, one value a segment; further axes are kept.
      ids: int32[...], or None where a row is a segment: the result is then `[S, 1]`, which
        broadcasts against `[S, T]` values.

    Returns:
      The values of the table's dtype; 0 where the id belongs to nothing. The gradient is the
      segment sum of the cotangents.
    """
    if ids is None:
        return jnp.expand_dims(table, 1)
    ids = jnp.asarray(ids)
    read = _entries(table, ids.ravel(), num_segments=len(table))
    return read.reshape(*ids.shape, *jnp.shape(table)[1:])


def class_sum(
    values: jax.Array,
    ids: jax.Array | None,
    classes: jax.Array,
    num_segments: int,
    num_classes: int,
    *,
    axis_name: AxisName = None,
) -> jax.Array:
    """Sums the values of every segment by class; returns `[S, C]`.

    At most one scatter of the values, whatever the number of classes: a segment and a class
    together are one finer segment.

    Args:
      values: float[...] or int[...], one value an element; `[S, T]` where `ids` is None.
      ids: int32, of the same shape or one a block, or None where a row is a segment.
      classes: int32 of the values' shape, in `[0, C)`.
      num_segments: static number of segments `S`.
      num_classes: static number of classes `C`.
      axis_name: mesh axes over which segments are spread; None or () sums locally.

    Returns:
      `[S, C]` of the values' dtype; linear in the values.
    """
    if ids is not None and ids.shape == values.shape:
        finer = ids * num_classes + classes
        table = segment_sum(values, finer, num_segments * num_classes, axis_name=axis_name)
        return table.reshape(num_segments, num_classes)
    if ids is not None:
        values, classes = (x.reshape(*ids.shape, -1) for x in (values, classes))
    table = _class_sums(values, classes, num_classes=num_classes)
    if ids is not None:
        return segment_sum(table, ids, num_segments, axis_name=axis_name)
    return lax.psum(table, axis_name) if axis_name else table


def class_spread(table: jax.Array, ids: jax.Array | None, classes: jax.Array) -> jax.Array:
    """Gives every element the value of its segment and class; returns the shape of `classes`.

    The transpose of `class_sum`: its gradient is at most one scatter of the cotangents.

    Args:
      table: `[S, C]`, one value a segment and class.
      ids: int32, of the classes' shape or one a block, or None where a row is a segment.
      classes: int32[...], in `[0, C)`.

    Returns:
      The values of the table's dtype; 0 where the id belongs to nothing.
    """
    num_classes = table.shape[-1]
    if ids is not None and ids.shape == classes.shape:
        return spread(table.reshape(-1), ids * num_classes + classes)
    shape = classes.shape
    if ids is not None:
        table, classes = spread(table, ids), classes.reshape(*ids.shape, -1)
    return _class_entries(table, classes, num_classes=num_classes).reshape(shape)


def widen(values: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Gives every element the value of its block; an array of the given shape.

    Args:
      values: float[...] or int[...], one value a block of neighbouring elements.
      shape: static, of the elements, a multiple of as many as there are values.
    """
    block = int(np.prod(shape)) // max(values.size, 1)
    one_class = jnp.zeros((*values.shape, block), jnp.int32)
    return _class_entries(values[..., None], one_class, num_classes=1).reshape(shape)


def row_sums(values: jax.Array) -> jax.Array:
    """Sums values over their last axis; float[...] or int[...] of one axis fewer."""
    one_class = jnp.zeros(values.shape, jnp.int32)
    return _class_sums(values, one_class, num_classes=1)[..., 0]


def _rows_alone(arrays: Elements) -> Elements:
    """The sums of each array over its last axis, as reductions of their own."""
    return tuple(jnp.sum(array, axis=-1, dtype=array.dtype) for array in arrays)


def _rows_at_once(arrays: Elements) -> Elements:
    """`_rows_alone` as one reduction of all arrays: a row's parts are added element by element."""

    def add(left: Elements, right: Elements) -> Elements:
        return tuple(a + b for a, b in zip(left, right, strict=True))

    def reduce(arrays: Elements, axis: int) -> Elements:
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


def _sums_by_class(
    values: jax.Array, classes: jax.Array, *, num_classes: int, at_once: bool = False
) -> jax.Array:
    """`[..., C]`, the sums of values `[..., T]` over each row by class."""
    # Products, here and below: twice as fast as selects on a CPU.
    parts = tuple((classes == c) * values for c in range(num_classes))
    floating = jnp.issubdtype(values.dtype, jnp.floating)
    joined = at_once and floating and values.size >= FEW
    return jnp.stack(_rows_at_once(parts) if joined else _rows_alone(parts), axis=-1)


def _entries_by_class(
    table: jax.Array, classes: jax.Array, *, num_classes: int, kept: bool = False
) -> jax.Array:
    """`[..., T]`, for each element the entry of its class in its row of a table `[..., C]`."""
    if kept and num_classes > 1 and classes.size >= FEW:
        table = _kept(table)
    return sum(
        ((classes == c) * table[..., c : c + 1] for c in range(num_classes)),
        start=jnp.zeros((), table.dtype),
    )


def _scattered_sum(values: jax.Array, ids: jax.Array, *, num_segments: int) -> jax.Array:
    """`[S, ...]`, the sums of values `[N, ...]` by ids `[N]`."""
    return jax.ops.segment_sum(values, ids, num_segments)


def _gathered_entries(
    table: jax.Array, ids: jax.Array, *, num_segments: int, kept: bool = False
) -> jax.Array:
    """`[N, ...]`, the entry of each id in a table `[S, ...]`; 0 for ids outside."""
    if kept and ids.size >= max(FEW, num_segments):
        table = _kept(table)
    return table.at[ids].get(mode="fill", fill_value=0)


def _bases(num_segments: int) -> tuple[int, int]:
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


def _digits_sum(values: jax.Array, ids: jax.Array, *, num_segments: int) -> jax.Array:
    """`_scattered_sum` as a product of two one-hot matrices, one of which holds the values.

    In full float32 every product is a value or 0: the sums are those of any other order. Those of
    integers are exact below 2²⁴.
    """
    if not _in_digits(values, ids, num_segments):
        return _scattered_sum(values, ids, num_segments=num_segments)
    _, base = _bases(num_segments)  # The first digit holds the columns: it is the smaller.
    first, second = _digits(ids, num_segments, base)
    columns = values.reshape(ids.size, 1, -1).astype(jnp.float32)
    columns = jnp.clip(columns, -LARGEST_NUMBER, LARGEST_NUMBER)
    chosen = jnp.where(first[:, :, None], columns, 0)
    table = jnp.einsum("nhk,nr->hrk", chosen, second.astype(jnp.float32), precision="highest")
    return table.reshape(-1, *values.shape[1:])[:num_segments].astype(values.dtype)


def _digits_entries(table: jax.Array, ids: jax.Array, *, num_segments: int) -> jax.Array:
    """`_gathered_entries` as a product that reads a row by the first digit, and a choice in it."""
    if not _in_digits(table, ids, num_segments):
        return _gathered_entries(table, ids, num_segments=num_segments)
    if table.dtype == jnp.int32:  # Of 16 bits each, which a float32 holds.
        parts = jnp.stack([table >> 16, table & 0xFFFF], axis=-1).astype(jnp.float32)
        high, low = jnp.moveaxis(_digits_entries(parts, ids, num_segments=num_segments), -1, 0)
        return (high.astype(jnp.int32) << 16) | low.astype(jnp.int32)
    base, _ = _bases(num_segments)  # What the first digit reads is as wide as the second is.
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


def _joined_sums_by_class(values: jax.Array, classes: jax.Array, *, num_classes: int) -> jax.Array:
    """`_sums_by_class` of short rows, as many joined as a TPU has lanes, by a product a class."""
    rows = _rows_of_lanes(values.shape, values.dtype)
    if rows is None:
        return _sums_by_class(values, classes, num_classes=num_classes)
    values = jnp.clip(values, -LARGEST_NUMBER, LARGEST_NUMBER)
    joined, of = (x.reshape(-1, TPU_LANES) for x in (values, classes))
    parts = jnp.stack([jnp.where(of == c, joined, 0) for c in range(num_classes)])
    sums = jnp.matmul(parts, rows, precision="highest")
    return jnp.moveaxis(sums.reshape(num_classes, *values.shape[:-1]), 0, -1)


def _joined_entries_by_class(
    table: jax.Array, classes: jax.Array, *, num_classes: int
) -> jax.Array:
    """`_entries_by_class` of short rows, the transpose of `_joined_sums_by_class`."""
    rows = _rows_of_lanes(classes.shape, table.dtype)
    if rows is None:
        return _entries_by_class(table, classes, num_classes=num_classes)
    table = jnp.clip(table, -LARGEST_NUMBER, LARGEST_NUMBER)
    of = classes.reshape(-1, TPU_LANES)
    read = jnp.zeros((), table.dtype)
    for c in range(num_classes):
        joined = table[..., c].reshape(-1, rows.shape[1])
        read = jnp.where(of == c, jnp.matmul(joined, rows.T, precision="highest"), read)
    return read.reshape(classes.shape)


_sums, _entries = transposes.pair(
    ("segment_sum", "segment_entries"),
    (_scattered_sum, _gathered_entries),
    {
        "cpu": (_scattered_sum, functools.partial(_gathered_entries, kept=True)),
        "tpu": (_digits_sum, _digits_entries),
    },
)
_class_sums, _class_entries = transposes.pair(
    ("class_sum", "class_entries"),
    (_sums_by_class, _entries_by_class),
    {
        "cpu": (
            functools.partial(_sums_by_class, at_once=True),
            functools.partial(_entries_by_class, kept=True),
        ),
        "tpu": (_joined_sums_by_class, _joined_entries_by_class),
    },
)


def _kept(table: jax.Array) -> jax.Array:
    """The table, of which XLA computes no entry twice: it fuses no scatter into what reads it."""
    rows = jnp.arange(len(table))
    return jnp.zeros_like(table).at[rows].set(table, unique_indices=True, indices_are_sorted=True)


def segment_max(values: jax.Array, ids: jax.Array, num_segments: int) -> jax.Array:
    """Largest value of every segment; returns `[S]`, 0 for an empty segment.

    Args:
      values: float[...], one value an element.
      ids: int32 of the same shape.
      num_segments: static number of segments `S`.

    Returns:
      `[S]` of the values' dtype, a constant in gradients.
    """
    values = lax.stop_gradient(values.ravel())
    largest = jax.ops.segment_max(values, ids.ravel(), num_segments)
    return jnp.where(jnp.isneginf(largest), 0, largest)


@functools.partial(jax.jit, static_argnames=("combine", "neutral", "before", "reverse"))
def running(
    combine: Callable[[Elements, Elements], Elements],
    elements: Elements,
    ids: jax.Array | None,
    neutral: tuple[float, ...],
    *,
    before: bool = False,
    reverse: bool = False,
) -> Elements:
    """Combines, at every element, its segment's elements up to it; the shapes of the elements.

    The elements of a segment stand in the order of the array, row by row; those of others may
    stand between them. Whole segments only: nothing is combined over devices.

    Args:
      combine: static, associative, from two `Elements` to one, the earlier on the left.
      elements: float[...] each, one or several arrays of one shape.
      ids: int32 of that shape, or None where a row is a segment. An id that belongs to nothing
        makes a segment of its own, whose results nobody should read.
      neutral: static, by array, what stands where nothing came before.
      before: static, leaves the element itself out.
      reverse: static, from the last element of a segment back to its first.

    Returns:
      A tuple as `elements`; differentiable as `combine` is.
    """
    if ids is None:
        starts = jnp.zeros(elements[0].shape, bool)
        starts = starts.at[..., -1 if reverse else 0].set(True)
        return _scan(combine, elements, starts, neutral, before, reverse)
    order = jnp.argsort(ids.ravel(), stable=True)
    sorted_ids = ids.ravel()[order]
    change = sorted_ids[1:] != sorted_ids[:-1]
    edge = jnp.ones((1,), bool)
    starts = jnp.concatenate([change, edge] if reverse else [edge, change])
    in_order = tuple(x.ravel()[order] for x in elements)
    scanned = _scan(combine, in_order, starts, neutral, before, reverse)
    return tuple(jnp.zeros_like(x).at[order].set(x).reshape(ids.shape) for x in scanned)


def _scan(
    combine: Callable[[Elements, Elements], Elements],
    elements: Elements,
    starts: jax.Array,
    neutral: tuple[float, ...],
    before: bool,
    reverse: bool,
) -> Elements:
    """`running` along the last axis, begun anew at each start; the shapes of the elements."""

    def step(left: Elements, right: Elements) -> Elements:
        joined = combine(left[1:], right[1:])
        kept = (jnp.where(right[0], y, x) for x, y in zip(joined, right[1:], strict=True))
        return (left[0] | right[0], *kept)

    last = starts.ndim - 1
    _, *scanned = lax.associative_scan(step, (starts, *elements), reverse=reverse, axis=last)
    if before:
        shift = -1 if reverse else 1
        scanned = [
            jnp.where(starts, empty, jnp.roll(x, shift, axis=-1))
            for x, empty in zip(scanned, neutral, strict=True)
        ]
    return tuple(scanned)


@jax.custom_jvp
def safe_exp(values: jax.Array) -> jax.Array:
    """`exp x`, the largest finite number where that overflows; same shape.

    A gate often computes a ratio and rejects it, or weighs it by an advantage of 0. Zero times a
    finite number is 0, in value and in gradient; zero times infinity would be NaN.

    Args:
      values: float[...]; ±inf too, and NaN stays NaN.

    Returns:
      float[...] of the same dtype; the gradient is the value, as that of `exp` is.

    >>> value, slope = jax.value_and_grad(lambda x: 0 * safe_exp(x))(100.0)
    >>> float(value), float(slope)
    (0.0, 0.0)
    """
    return jnp.minimum(jnp.exp(values), jnp.finfo(values.dtype).max)


@safe_exp.defjvp
def _safe_exp_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Value and directional derivative of `safe_exp`."""
    value = safe_exp(*primals)
    return value, value * tangents[0]


def safe_divide(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """Divides, with 0 where the denominator is 0, in value and in gradient; same shape."""
    zero = denominator == 0
    return jnp.where(zero, 0, numerator / jnp.where(zero, 1, denominator))
