"""Where a policy's arrays lie: what a mesh changes about how it is computed, never what."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from fiberjax.policy import attention


@dataclasses.dataclass(frozen=True)
class Placement:
    """One device: everything stays where it is, attention is dense.

    `shardings.placement` makes one for a mesh, which overrides what it must. Hashable, so that it
    can be a static argument.
    """

    @property
    def row_shards(self) -> int:
        """Into how many parts the rows are split."""
        return 1

    @property
    def vocabulary_parts(self) -> int:
        """Into how many parts the table of logits is split, where its rows divide by them."""
        return 1

    def activation(self, x: Array, name: str) -> Array:
        """An activation, on the devices that should hold its parts.

        Args:
          x: the activation.
          name: `"rows"` [B, ...], `"activation"` [B, T, D], `"heads"` [B, T, heads, K], `"mlp"`
            [B, T, F], or `"column"` [B, G, T, K], new keys or values of the cache.
        """
        del name
        return x

    @property
    def flat(self) -> bool:
        """Whether rows and columns become one axis in place: not where both are split."""
        return True

    def spread(self, columns: Array) -> Array:
        """`[B, S, ...]`, whole on every device, in the order that the layers read columns in."""
        return columns

    def restore(self, x: Array) -> Array:
        """`[B, S, ...]` of the layers, with columns in the order of the rows again."""
        return x

    def kernel(self, kernel: Array, split: str) -> Array:
        """A layer's matrix [in, out] in the compute dtype, as its product reads it.

        Args:
          kernel: the matrix, or those of all experts [E, in, out].
          split: `"out"` or `"in"`, the axis that may stay in parts; `"out lora_a"` and the like of
            the two matrices of its adapter; of experts, which stay in parts by themselves,
            `"expert out"` or `"expert in"`: the one that does not.
        """
        del split
        return kernel

    def attend(
        self,
        query: Array,
        key: Array,
        value: Array,
        segment_ids: Array,
        *,
        scale: float | None = None,
        window: Array | int | None = None,
    ) -> Array:
        """What `attention.dense` computes of whole rows."""
        return attention.dense(query, key, value, segment_ids, scale=scale, window=window)

    def experts(
        self,
        local: Callable[..., Array],
        x: Array,
        share: Array,
        expert: Array,
        *kernels: Array,
    ) -> Array:
        """What the experts add to each token, dtype[B, T, D]: the sum over all who hold some.

        Args:
          local: `experts.dispatch`, of the index of the first expert held and what follows here.
          x: dtype[B, T, D].
          share: dtype[B, T, k].
          expert: int32[B, T, k].
          *kernels: of the experts, dtype[E, in, out].
        """
        return local(0, x, share, expert, *kernels)

    def by_rows(self, local: Callable[..., Any], *arrays: Any) -> Any:
        """`local` of each row shard's part of the arrays, which are split along their first axis.

        So are its results; nothing is exchanged.
        """
        return local(*arrays)

    def write(
        self, table: Array, layer: Array, column: Array, new: Array, *, columns: int
    ) -> tuple[Array, Array]:
        """The keys or values of a cache, with one column of a layer written in each row.

        Args:
          table: dtype[L, B, G, C, K], or without the last axis, as scales are.
          layer: int32[].
          column: int32[B], below `columns` for rows whose contents mean anything.
          new: dtype[B, G, K], or without the last axis.
          columns: that are read afterwards; static.

        Returns:
          The table, and the first `columns` of the layer in it, dtype[B, G, columns, K].
        """
        return write_columns(table, layer, column, new, columns=columns)

    def put(self, table: Array, new: Array, source: Array) -> Array:
        """The keys or values of a cache, with the first columns of some rows replaced.

        Args:
          table: dtype[L, B, G, C, K], or without the last axis, as scales are.
          new: dtype[L, N, G, P, K], or without the last axis; P at most C; as many of the N on each
            row shard.
          source: int32[B], which of its shard's rows of `new` a row takes; negative for none.
        """
        return put_rows(table, new, source)


def write_columns(
    table: Array, layer: Array, column: Array, new: Array, *, columns: int
) -> tuple[Array, Array]:
    """`Placement.write` where all of it lies here."""
    rows = jnp.arange(len(column))
    table = table.at[layer, rows, :, column].set(
        new, indices_are_sorted=True, unique_indices=True, mode="promise_in_bounds"
    )
    return table, _first(table, layer, columns)[0]


def select_columns(
    table: Array, layer: Array, column: Array, new: Array, *, columns: int
) -> tuple[Array, Array]:
    """What `write_columns` gives, by writing all columns that are read: none beyond them.

    To scatter, a TPU copies the cache; these columns it reads anyhow, and they stay on the chip.
    """
    here = jnp.arange(columns) == column[:, None]
    here = here.reshape(1, len(column), 1, -1, *[1] * (table.ndim - 4))
    merged = jnp.where(here, new[None, :, :, None], _first(table, layer, columns))
    return lax.dynamic_update_slice(table, merged, (layer, *[0] * (table.ndim - 1))), merged[0]


def _first(table: Array, layer: Array, columns: int) -> Array:
    """The first columns of one layer, [1, B, G, columns, K]."""
    shape = (1, *table.shape[1:3], columns, *table.shape[4:])
    return lax.dynamic_slice(table, (layer, *[0] * (table.ndim - 1)), shape)


def put_rows(table: Array, new: Array, source: Array) -> Array:
    """`Placement.put` where all of it lies here."""
    columns = new.shape[3]
    taken = new[:, jnp.maximum(source, 0)]
    old = table[:, :, :, :columns]
    here = (source >= 0).reshape(-1, *[1] * (table.ndim - 2))
    merged = jnp.where(here, taken, old)
    return lax.dynamic_update_slice(table, merged, (0,) * table.ndim)


ONE_DEVICE = Placement()
