"""Rows in parts, one after the other, so that devices that rows are split over keep theirs."""

from collections.abc import Callable
from typing import Any

import jax


def split_rows(x: jax.Array, parts: int, together: int = 1) -> jax.Array:
    """`[B, ...]` as `[n, B/n, ...]`; part j takes rows j, n + j, ..., so devices keep theirs.

    Blocks of `together` rows stay together: part j then takes blocks j, n + j, ...
    """
    blocks = x.reshape(-1, parts, together, *x.shape[1:]).swapaxes(0, 1)
    return blocks.reshape(parts, -1, *x.shape[1:])


def merge_rows(x: jax.Array, together: int = 1) -> jax.Array:
    """Undoes `split_rows`."""
    blocks = x.reshape(len(x), -1, together, *x.shape[2:]).swapaxes(0, 1)
    return blocks.reshape(-1, *x.shape[2:])


def in_parts(function: Callable[[Any], Any], rows: Any, parts: int) -> Any:
    """Applies a function of rows to `parts` splits of them, one after the other, and merges."""
    if parts == 1:
        return function(rows)
    split = jax.tree.map(lambda x: split_rows(x, parts), rows)
    return jax.tree.map(merge_rows, jax.lax.map(function, split))
