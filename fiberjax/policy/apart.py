"""Attention of rows whose columns lie apart, on the devices of a mesh axis.

Each device holds one block of every row's columns and computes the attention of as many queries.
Keys and values of all columns are gathered, a few heads of them where query heads share them, and
their gradients added and scattered again; queries never meet but their own keys, so the result is
that of whole rows. Masks go by the columns' numbers in the whole row.

Of a causal mask the last columns see most. So that devices work alike, the kernel's queries change
places on the way in and out: with s devices a row is cut into 2 s pieces, and device j takes pieces
j and 2 s − 1 − j. That moves two pieces from each device, and nothing else knows of it.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from fiberjax.policy import attention


def pieces(parts: int) -> np.ndarray:
    """The two pieces of a row that each of `parts` devices computes, int[parts, 2].

    The first comes to it from a device whose first piece it was, and so the second.

    >>> pieces(4).tolist()
    [[0, 7], [6, 1], [2, 5], [4, 3]]
    """
    device = np.arange(parts)
    low, high = device, 2 * parts - 1 - device
    even = device % 2 == 0
    return np.stack([np.where(even, low, high), np.where(even, high, low)], axis=1)


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

    Runs under `shard_map`; differentiable in `query`, `key` and `value`.

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
    length, head_dim = query.shape[1], query.shape[-1]
    held = padded(length)
    scale = head_dim**-0.5 if scale is None else scale
    query = (query * scale).astype(query.dtype).swapaxes(1, 2)
    # Padding stands at the end of each block, where columns keep their order, as a segment that is
    # nobody's.
    query, key, value = (
        jnp.pad(part, ((0, 0), (0, 0), (0, held - length), (0, 0))) for part in (query, key, value)
    )
    blocks = segment_ids.reshape(len(segment_ids), parts, length)
    ids = jnp.pad(blocks, ((0, 0), (0, 0), (0, held - length)), constant_values=-1)
    ids = ids.reshape(len(ids), 2 * parts, held // 2)
    mine = jnp.asarray(pieces(parts))[lax.axis_index(axis)]
    key, value = (lax.all_gather(part, axis, axis=2, tiled=True) for part in (key, value))
    moved = _move(query, axis, _ways(parts))
    out = attention.run(
        kernel, moved, key, value, ids[:, mine].reshape(len(ids), -1), ids.reshape(len(ids), -1)
    )
    back = [[(end, start) for start, end in way] for way in _ways(parts)]
    return _move(out, axis, back)[:, :, :length].swapaxes(1, 2)


def make_kernel(
    length: int, parts: int, *, window: int | None, interpret: bool
) -> attention.Kernel:
    """The kernel of `parts` devices with `length` columns each; its tables are split over them.

    Raises:
      ValueError: a window, and columns that are no whole number of tiles: it would count padding.
    """
    held = padded(length)
    if window is not None and held != length:
        raise ValueError(
            f"a sliding window over mesh sequence={parts} needs rows of a multiple of "
            f"{parts * padded(1)} tokens: expected so of config.window.prompt + completion, got "
            f"{parts * length}"
        )
    piece = np.arange(parts * held).reshape(2 * parts, -1)
    order = piece[pieces(parts)].reshape(-1)
    return attention.make_kernel(
        order, block=held // 2, parts=parts, window=window, interpret=interpret
    )


def padded(length: int) -> int:
    """Columns that a device holds so many in: two pieces of whole tiles."""
    return length + -length % (2 * attention.LANES)


def _ways(parts: int) -> list[list[tuple[int, int]]]:
    """From which device to which the first pieces go, and the second."""
    holder = {int(piece): device for device, of in enumerate(pieces(parts)) for piece in of}
    return [[(device, holder[2 * device + k]) for device in range(parts)] for k in range(2)]


def _move(x: Array, axis: str, ways: Sequence[Sequence[tuple[int, int]]]) -> Array:
    """Both halves of the columns of `[B, H, T, K]`, each its way."""
    halves = jnp.split(x, 2, axis=2)
    moved = [lax.ppermute(half, axis, way) for half, way in zip(halves, ways, strict=True)]
    return jnp.concatenate(moved, axis=2)
