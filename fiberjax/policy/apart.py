"""Rows whose columns lie apart, on the devices of a mesh axis, and the kernel's attention of them.

Each device holds as many columns of every row and computes the attention of their queries. Keys and
values of all columns are gathered, of a few heads where query heads share them, and their gradients
added and scattered again; every query meets what it meets in a whole row, so the result is that of
whole rows. Masks go by the columns' numbers in the row.

Of a causal mask the last columns see most. So that devices work alike, a row is cut into 2 s pieces
for s devices, and device j holds pieces j and 2 s − 1 − j while the layers run. Tokens are whole
everywhere, and are simply read in that order; the last activations go back to where the row has
them.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from fiberjax.policy import attention


def pieces(parts: int) -> np.ndarray:
    """The two pieces of a row that each of `parts` devices holds, int[parts, 2]; even ones first.

    >>> pieces(4).tolist()
    [[0, 7], [6, 1], [2, 5], [4, 3]]
    """
    device = np.arange(parts)
    low, high = device, 2 * parts - 1 - device
    even = device % 2 == 0
    return np.stack([np.where(even, low, high), np.where(even, high, low)], axis=1)


def order(length: int, parts: int) -> np.ndarray:
    """The column of a row at each place, int[length]; device by device.

    >>> order(8, 2).tolist()
    [0, 1, 6, 7, 4, 5, 2, 3]
    """
    return np.arange(length).reshape(2 * parts, -1)[pieces(parts)].reshape(-1)


def back(x: Array, *, axis: str, parts: int) -> Array:
    """This device's part of `[B, T, ...]`, from `order` to that of the row, dtype[B, T/s, ...].

    Runs under `shard_map`; differentiable.
    """
    halves = jnp.split(x, 2, axis=1)
    homes = pieces(parts).T // 2
    return jnp.concatenate(
        [
            lax.ppermute(half, axis, [(device, int(home)) for device, home in enumerate(of)])
            for half, of in zip(halves, homes, strict=True)
        ],
        axis=1,
    )


def splash(
    query: Array,
    key: Array,
    value: Array,
    segment_ids: Array,
    *,
    axis: str,
    parts: int,
    kernel: attention.Kernel,
    scale: float | None = None,
) -> Array:
    """This device's columns of what `attention.splash` computes of whole rows, dtype[B, T/s, H, K].

    Runs under `shard_map`; differentiable in `query`, `key` and `value`. All are in `order`.

    Args:
      query: dtype[B, T/s, H, K].
      key: dtype[B, G, T/s, K]; G divides H.
      value: dtype[B, G, T/s, K].
      segment_ids: int32[B, T], of all columns.
      axis: the mesh axis.
      parts: s, its size.
      kernel: this device's part of `make_kernel`.
      scale: scores are multiplied by it; None is 1/√K; static.
    """
    batch, length, _, head_dim = query.shape
    piece = length // 2
    scale = head_dim**-0.5 if scale is None else scale
    query = (query * scale).astype(query.dtype).swapaxes(1, 2)
    # Padding stands at the end of each piece, as a segment that is nobody's.
    padding = padded(piece) - piece

    def split(x: Array) -> Array:
        cut = x.reshape(*x.shape[:2], -1, piece, head_dim)
        return jnp.pad(cut, ((0, 0), (0, 0), (0, 0), (0, padding), (0, 0)))

    def whole(x: Array) -> Array:
        everywhere = lax.all_gather(split(x), axis, axis=2, tiled=True)
        return everywhere[:, :, natural].reshape(*x.shape[:2], -1, head_dim)

    natural = np.argsort(pieces(parts).reshape(-1))
    ids = segment_ids.reshape(batch, 2 * parts, piece)
    ids = jnp.pad(ids, ((0, 0), (0, 0), (0, padding)), constant_values=-1)
    mine = lax.dynamic_slice_in_dim(ids, 2 * lax.axis_index(axis), 2, axis=1)
    held = split(query)
    out = attention.run(
        kernel,
        held.reshape(*held.shape[:2], -1, head_dim),
        whole(key),
        whole(value),
        mine.reshape(batch, -1),
        ids[:, natural].reshape(batch, -1),
    )
    return out.reshape(held.shape)[:, :, :, :piece].reshape(query.shape).swapaxes(1, 2)


def make_kernel(
    length: int, parts: int, *, window: int | None, interpret: bool
) -> attention.Kernel:
    """The kernel for rows of `length` columns on `parts` devices; its tables are split over them.

    Raises:
      ValueError: a window, and pieces that are no whole number of tiles: it would count padding.
    """
    piece = length // (2 * parts)
    if window is not None and padded(piece) != piece:
        raise ValueError(
            f"a sliding window over mesh sequence={parts} needs rows of a multiple of "
            f"{2 * parts * attention.LANES} tokens: expected so of config.window.prompt + "
            f"completion, got {length}"
        )
    held = padded(piece)
    columns = order(2 * parts * held, parts)
    return attention.make_kernel(
        columns, block=held, parts=parts, window=window, interpret=interpret
    )


def padded(piece: int) -> int:
    """Columns of a piece in whole tiles."""
    return piece + -piece % attention.LANES
