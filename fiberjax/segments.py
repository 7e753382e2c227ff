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

All of it is made of two pairs of linear maps, each the transpose of its partner, with a form for
each platform (`segment_forms`).
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fiberjax import segment_forms

AxisName = str | tuple[str, ...] | None

Elements = tuple[jax.Array, ...]
"""What is combined along a segment: one or several arrays of one shape."""


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
        table = segment_forms.sums(values, ids.ravel(), num_segments=num_segments)
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
    read = segment_forms.entries(table, ids.ravel(), num_segments=len(table))
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
    table = segment_forms.class_sums(values, classes, num_classes=num_classes)
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
    return segment_forms.class_entries(table, classes, num_classes=num_classes).reshape(shape)


def widen(values: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Gives every element the value of its block; an array of the given shape.

    Args:
      values: float[...] or int[...], one value a block of neighbouring elements.
      shape: static, of the elements, a multiple of as many as there are values.
    """
    block = int(np.prod(shape)) // max(values.size, 1)
    one_class = jnp.zeros((*values.shape, block), jnp.int32)
    return segment_forms.class_entries(values[..., None], one_class, num_classes=1).reshape(shape)


def row_sums(values: jax.Array) -> jax.Array:
    """Sums values over their last axis; float[...] or int[...] of one axis fewer."""
    one_class = jnp.zeros(values.shape, jnp.int32)
    return segment_forms.class_sums(values, one_class, num_classes=1)[..., 0]


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
