"""Segment sums and broadcasts: how values move between tokens, trajectories and the cells above.

Every function takes `ids`, the segment of each element, in one of two forms:

* an integer array of the values' shape; an id outside `[0, num_segments)` belongs to nothing: it is
  left out of sums and reads zero from tables, so padding points at `num_segments`;
* `None`, the row layout: each row of `[S, T]` values is one segment. Plain reductions and
  broadcasts, several times faster than scatters.

`axis_name` names the mesh axes over which a segment's elements are spread. Inside `jax.shard_map`
the local sums are then added over those axes, so only a table of `[S]` numbers ever travels.
"""

import jax
import jax.numpy as jnp
from jax import lax

AxisName = str | tuple[str, ...] | None


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
      ids: int32 of the same shape, or None where a row is a segment.
      num_segments: static number of segments `S`.
      axis_name: mesh axes over which segments are spread; None or () sums locally.

    Returns:
      `[S]` of the values' dtype; an empty segment is 0. Linear, so the gradient of an element is
      the cotangent of its segment, and 0 where its id belongs to nothing.
    """
    if ids is None:
        table = jnp.sum(values, axis=-1)
    else:
        table = jax.ops.segment_sum(values.ravel(), ids.ravel(), num_segments)
    return lax.psum(table, axis_name) if axis_name else table


def spread(table: jax.Array, ids: jax.Array | None) -> jax.Array:
    """Gives every element its segment's value; returns the shape of `ids`.

    Args:
      table: `[S]`, one value a segment.
      ids: int32[...], or None where a row is a segment: the result is then `[S, 1]`, which
        broadcasts against `[S, T]` values.

    Returns:
      The values of the table's dtype; 0 where the id belongs to nothing. The gradient is the
      segment sum of the cotangents.
    """
    if ids is None:
        return table[:, None]
    return table.at[ids].get(mode="fill", fill_value=0)


def safe_divide(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """Divides, with 0 where the denominator is 0, in value and in gradient; same shape."""
    zero = denominator == 0
    return jnp.where(zero, 0, numerator / jnp.where(zero, 1, denominator))
