"""Causal grouped-query attention: dense, over a cache, and as a kernel that keeps no scores.

Rows hold one or several segments; a token attends to itself and to the tokens before it that share
its segment id, under a window to no more than that many of them; a segment's tokens stand side by
side. Three implementations agree to rounding:

    dense     plain products; the scores of a layer, float32[B, H, T, T], exist. Runs everywhere.
    splash    JAX's own TPU kernel: scores exist one block at a time and blocks after the diagonal
              are left out, in the backward pass too. Interpreted, slowly, on a CPU.
    cudnn     cuDNN's flash attention, for GPUs: scores exist one block at a time, beside a mask of
              the compute dtype, [B, 1, T, T], one for all heads.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental.pallas.ops.tpu import splash_attention

# Finite, so that a softmax over nothing but masked scores is uniform instead of NaN.
_MASKED = -1e30
# A window that no row fills, where the window of a layer is traced.
EVERYTHING = 2**30
# Columns are padded to a multiple of the TPU's lanes; a larger block reads keys fewer times.
_LANES = 128
_BLOCKS = (512, 384, 256, 128)


def dense(
    query: Array,
    key: Array,
    value: Array,
    segment_ids: Array,
    *,
    scale: float | None = None,
    window: Array | int | None = None,
) -> Array:
    """Attention of whole rows, dtype[B, T, H, K].

    Args:
      query: dtype[B, T, H, K].
      key: dtype[B, G, T, K]; G divides H, query head h reads key head h // (H / G).
      value: dtype[B, G, T, K].
      segment_ids: int32[B, T]; 0 is padding, which attends to padding.
      scale: scores are multiplied by it; None is 1/√K; static.
      window: tokens that a token sees, itself included; None for all.

    Returns:
      dtype[B, T, H, K], with scores and softmax in float32.
    """
    column = jnp.arange(segment_ids.shape[1])
    mask = causal_mask(segment_ids, column, segment_ids, column, window=window)
    return masked(query, key, value, mask, scale=scale)


def splash(
    query: Array,
    key: Array,
    value: Array,
    segment_ids: Array,
    *,
    scale: float | None = None,
    window: int | None = None,
    interpret: bool = False,
) -> Array:
    """What `dense` computes, by the kernel; differentiable in `query`, `key` and `value`.

    Args:
      query: dtype[B, T, H, K].
      key: dtype[B, G, T, K]; G divides H.
      value: dtype[B, G, T, K].
      segment_ids: int32[B, T].
      scale: scores are multiplied by it; None is 1/√K; static.
      window: tokens that a token sees, itself included; None for all; static.
      interpret: run the kernel without a TPU, for tests; static.
    """
    length, heads, head_dim = query.shape[1:]
    padding = -length % _LANES
    columns = length + padding
    # The kernel leaves the scale of the scores to its caller.
    scale = head_dim**-0.5 if scale is None else scale
    query = (query * scale).astype(query.dtype).swapaxes(1, 2)
    query, key, value = (
        jnp.pad(part, ((0, 0), (0, 0), (0, padding), (0, 0))) for part in (query, key, value)
    )
    segment_ids = jnp.pad(segment_ids, ((0, 0), (0, padding)))
    block = next(size for size in _BLOCKS if columns % size == 0)
    square = (columns, columns)
    mask: Any = splash_attention.CausalMask(square)
    if window is not None:
        mask = splash_attention.LocalMask(square, window_size=(window - 1, 0), offset=0)
    kernel = splash_attention.make_splash_mha_single_device(
        splash_attention.MultiHeadMask([mask] * heads),
        block_sizes=splash_attention.BlockSizes(
            block_q=block,
            block_kv=block,
            block_kv_compute=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_kv_dkv_compute=block,
            block_q_dq=block,
            block_kv_dq=block,
        ),
        interpret=interpret,
    )
    out = jax.vmap(kernel)(query, key, value, splash_attention.SegmentIds(segment_ids, segment_ids))
    return out[:, :, :length].swapaxes(1, 2)


def takes_cudnn(dtype: Any, head_dim: int) -> bool:
    """Whether cuDNN's flash attention, forward and backward, is made for such heads on every GPU.

    Newer ones take wider heads as well; this is what all take that bfloat16 is computed on.
    """
    return dtype in (jnp.bfloat16, jnp.float16) and head_dim % 8 == 0 and head_dim <= 128


def cudnn(
    query: Array,
    key: Array,
    value: Array,
    segment_ids: Array,
    *,
    scale: float | None = None,
    window: Array | int | None = None,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Array:
    """What `dense` computes, by `jax.nn.dot_product_attention`; differentiable in all three.

    Args:
      query: dtype[B, T, H, K], of a dtype and a K that `takes_cudnn`.
      key: dtype[B, G, T, K]; G divides H.
      value: dtype[B, G, T, K].
      segment_ids: int32[B, T].
      scale: scores are multiplied by it; None is 1/√K; static.
      window: tokens that a token sees, itself included; None for all.
      implementation: "xla" computes the same call without cuDNN, for tests; static.
    """
    length = query.shape[1]
    # Under a mask its backward pass takes even lengths only.
    padding = -length % 2
    query = jnp.pad(query, ((0, 0), (0, padding), (0, 0), (0, 0)))
    key, value = (
        jnp.pad(part, ((0, 0), (0, 0), (0, padding), (0, 0))).swapaxes(1, 2)
        for part in (key, value)
    )
    segment_ids = jnp.pad(segment_ids, ((0, 0), (0, padding)))
    column = jnp.arange(length + padding)
    mask = causal_mask(segment_ids, column, segment_ids, column, window=window)
    out = jax.nn.dot_product_attention(
        query, key, value, mask=mask[:, None], scale=scale, implementation=implementation
    )
    return out[:, :length]


def masked(
    query: Array, key: Array, value: Array, mask: Array, *, scale: float | None = None
) -> Array:
    """Attention to whatever columns a mask allows, dtype[B, T, H, K].

    Args:
      query: dtype[B, T, H, K].
      key: dtype[B, G, C, K]; G divides H, query head h reads key head h // (H / G).
      value: dtype[B, G, C, K].
      mask: bool[B, T, C]; where False, a score counts as −∞. A row without any True yields a
        finite value of no meaning.
      scale: scores are multiplied by it; None is 1/√K; static.

    Returns:
      dtype[B, T, H, K], with scores and softmax in float32.
    """
    batch, length, heads, head_dim = query.shape
    scale = head_dim**-0.5 if scale is None else scale
    groups, columns = key.shape[1:3]
    # Time and the heads of a group become the rows of one matrix, so that both products are plain
    # batched ones; in a decoding step (T = 1) this moves nothing in memory.
    grouped = query.reshape(batch, length, groups, -1, head_dim).swapaxes(1, 2)
    rows = grouped.reshape(batch, groups, -1, head_dim)
    scores = jnp.einsum("bgrk,bgck->bgrc", rows, key, preferred_element_type=jnp.float32)
    scores = scores.reshape(batch, groups, length, -1, columns) * scale
    scores = jnp.where(mask[:, None, :, None], scores, _MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    out = jnp.einsum("bgrc,bgck->bgrk", weights.reshape(batch, groups, -1, columns), value)
    out = out.reshape(batch, groups, length, -1, head_dim).swapaxes(1, 2)
    return out.reshape(batch, length, heads, head_dim)


def causal_mask(
    query_ids: Array,
    query_column: Array,
    key_ids: Array,
    key_column: Array,
    *,
    window: Array | int | None = None,
) -> Array:
    """Who may attend to whom, bool[B, T, C]: same segment, not later, within the window.

    Padding is the segment 0 and attends to padding, so no row of a softmax is empty.
    """
    same = query_ids[:, :, None] == key_ids[:, None, :]
    distance = query_column[:, None] - key_column[None, :]
    seen = distance >= 0
    return same & (seen if window is None else seen & (distance < window))
