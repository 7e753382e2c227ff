"""The cache of keys and values, in the compute dtype or in fewer bytes.

A table holds the keys or the values of all layers, rows, heads and columns. It is one array in a
floating dtype, or `Int8`: whole numbers with a scale for every head and column. Whoever moves
columns about does the same with every part of a table, by `jax.tree.map`: columns are axis 3 of
each.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from fiberjax.policy.config import TransformerConfig

_LARGEST = 127


class Int8(NamedTuple):
    """Vectors x as whole numbers: x ≈ number · scale, off by half a scale at most.

    Attributes:
      number: int8[..., K], from −127 to 127.
      scale: float32[...], the largest magnitude of each vector over 127.
    """

    number: Array
    scale: Array


Table = Array | Int8
"""Keys or values: dtype[L, B, G, C, K], or `Int8` of that."""


class Cache(NamedTuple):
    """Keys and values of the columns seen so far; the same column for every row.

    Attributes:
      key: of [L, B, G, C, K], rotated keys; C is the capacity in columns.
      value: of [L, B, G, C, K].
      segment_ids: int32[B, C]; 0 is padding.
      length: int32[], columns filled.
    """

    key: Table
    value: Table
    segment_ids: Array
    length: Array


def packed(x: Array, dtype: Any) -> Table:
    """Vectors [..., K] as a table of a dtype holds them; `unpacked` undoes it but for rounding.

    Args:
      x: float[..., K].
      dtype: of the numbers kept: int8 makes an `Int8`.
    """
    if dtype != jnp.int8:
        return x.astype(dtype)
    x = x.astype(jnp.float32)
    largest = jnp.max(jnp.abs(x), axis=-1)
    # A vector of zeros has the scale 0, and stays one.
    per_unit = jnp.where(largest > 0, _LARGEST / largest, 0.0)
    return Int8(jnp.round(x * per_unit[..., None]).astype(jnp.int8), largest / _LARGEST)


def unpacked(table: Table, dtype: Any) -> Array:
    """The vectors dtype[..., K] of a table, or of a part of one."""
    if isinstance(table, Int8):
        return (table.number * table.scale[..., None]).astype(dtype)
    return table.astype(dtype)


def dtype_of(table: Table) -> Any:
    """What `packed` is told to make such a table."""
    return (table.number if isinstance(table, Int8) else table).dtype


def layer_of(table: Table, layer: Array, columns: int) -> Table:
    """The first columns of one layer, [B, G, columns, K]."""

    def read(part: Array) -> Array:
        start: list[Any] = [layer, *[0] * (part.ndim - 1)]
        return lax.dynamic_slice(part, start, (1, *part.shape[1:3], columns, *part.shape[4:]))[0]

    return jax.tree.map(read, table)


def write_layer(table: Table, layer: Array, column: Array, new: Table) -> Table:
    """The table with new columns [B, G, T, K] of a layer from `column` int32[] on, in every row."""

    def write(part: Array, new: Array) -> Array:
        start: list[Any] = [layer, 0, 0, column, *[0] * (part.ndim - 4)]
        return lax.dynamic_update_slice(part, new[None], start)

    return jax.tree.map(write, table, new)


def extended(table: Table, columns: int) -> Table:
    """The table with room for `columns` more."""

    def extend(part: Array) -> Array:
        return jnp.pad(part, [(0, columns if axis == 3 else 0) for axis in range(part.ndim)])

    return jax.tree.map(extend, table)


def init_cache(config: TransformerConfig, batch: int, capacity: int, dtype: str = "") -> Cache:
    """An empty cache for `batch` rows of `capacity` columns, kept in one of `CACHE_DTYPES`."""
    shape = (config.num_layers, batch, config.num_kv_heads, capacity, config.head_dim)
    empty = packed(jnp.zeros(shape, config.dtype), jnp.dtype(dtype or config.dtype))
    return Cache(
        key=empty,
        value=empty,
        segment_ids=jnp.zeros((batch, capacity), jnp.int32),
        length=jnp.zeros((), jnp.int32),
    )


def extend_cache(cache: Cache, columns: int, dtype: str = "") -> Cache:
    """The cache with room for `columns` more, and what it holds in another of `CACHE_DTYPES`."""

    def kept(table: Any) -> Table:
        return extended(packed(table, jnp.dtype(dtype or table.dtype)), columns)

    return Cache(
        key=kept(cache.key),
        value=kept(cache.value),
        segment_ids=jnp.pad(cache.segment_ids, ((0, 0), (0, columns))),
        length=cache.length,
    )
