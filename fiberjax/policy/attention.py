"""Causal grouped-query attention: dense, over a cache, and as kernels that keep no scores.

Rows hold one or several segments; a token attends to itself and to the tokens before it that share
its segment id, under a window to no more than that many of them; a segment's tokens stand side by
side. Three implementations agree to rounding:

    dense     plain products; the scores of a layer, float32[B, H, T, T], exist. Runs everywhere.
    splash    JAX's own TPU kernel: scores exist one block at a time and blocks after the diagonal
              are left out, in the backward pass too. Interpreted, slowly, on a CPU.
    cudnn     cuDNN's kernel, by `jax.nn.dot_product_attention`, in bfloat16: no scores either, but
              a mask of who shares a segment, [B, T, T]. On a CPU its arguments go to XLA.
"""

import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from fiberjax.policy.config import TransformerConfig

# Finite, so that a softmax over nothing but masked scores is uniform instead of NaN.
_MASKED = -1e30
# A window that no row fills, where the window of a layer is traced.
EVERYTHING = 2**30
# Columns are padded to a multiple of the TPU's lanes; a larger block reads keys fewer times.
LANES = 128
_BLOCKS = (512, 384, 256, 128)
# What cuDNN's kernel takes on every GPU that has it.
_CUDNN_HEAD_DIM = 128
_CUDNN_CAPABILITY = 8.0


class Hardware(NamedTuple):
    """What attention runs on.

    Attributes:
      platform: "cpu", "tpu", "cuda" or "rocm".
      capability: of a CUDA device, such as 8.0; 0 elsewhere.
    """

    platform: str
    capability: float = 0.0


def choose(config: TransformerConfig, hardware: Hardware, tensor: int, sequence: int = 1) -> str:
    """The implementation that a policy takes: "dense", "splash" or "cudnn".

    Args:
      config: `config.attention` is it, or "auto": the kernel of the platform where it can run.
      hardware: of every device.
      tensor: parts that the heads are split into.
      sequence: parts that the columns of a row are split into.

    Raises:
      ValueError: the implementation that was asked for cannot run; says why.
    """
    if config.attention == "auto":
        kernel = {"tpu": "splash", "cuda": "cudnn"}.get(hardware.platform, "dense")
        return "dense" if _obstacle(kernel, config, hardware, tensor, sequence) else kernel
    if obstacle := _obstacle(config.attention, config, hardware, tensor, sequence):
        raise ValueError(f"config.policy.attention = {config.attention!r} {obstacle}")
    return config.attention


def _obstacle(
    kernel: str, config: TransformerConfig, hardware: Hardware, tensor: int, sequence: int
) -> str:
    """Why an implementation cannot run; "" where it can."""
    platform = hardware.platform
    if kernel == "dense":
        return ""
    if kernel == "splash" and platform not in ("tpu", "cpu"):
        return (
            f"runs on TPUs, and on CPUs for tests; the mesh is of {platform} devices: choose "
            "'dense' or 'auto'"
        )
    if kernel == "cudnn" and platform not in ("cuda", "cpu"):
        return (
            f"runs on CUDA GPUs, and on CPUs for tests; the mesh is of {platform} devices: choose "
            "'dense' or 'auto'"
        )
    if config.num_heads % math.lcm(config.num_kv_heads, tensor):
        return (
            f"splits heads over mesh tensor={tensor}: num_heads = {config.num_heads} must divide "
            f"by lcm(num_kv_heads = {config.num_kv_heads}, {tensor}); choose 'dense', 'auto' or "
            "another size"
        )
    if kernel == "cudnn" and sequence > 1:
        return (
            f"does not split the columns of a row, as mesh sequence={sequence} does: choose "
            "'dense' or 'auto'"
        )
    if kernel == "cudnn" and platform == "cuda":
        head_dim = config.head_dim
        for fits, what in (
            (config.compute_dtype == "bfloat16", f"bfloat16; got {config.compute_dtype}"),
            (
                head_dim % 8 == 0 and head_dim <= _CUDNN_HEAD_DIM,
                f"a head_dim that divides by 8, up to {_CUDNN_HEAD_DIM}; got {head_dim}",
            ),
            (
                hardware.capability >= _CUDNN_CAPABILITY,
                f"compute capability {_CUDNN_CAPABILITY} or later; got {hardware.capability}",
            ),
        ):
            if not fits:
                return f"needs {what}: choose 'dense' or 'auto'"
    return ""


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
    length, head_dim = query.shape[1], query.shape[-1]
    padding = -length % LANES
    # The kernel leaves the scale of the scores to its caller.
    scale = head_dim**-0.5 if scale is None else scale
    query = (query * scale).astype(query.dtype).swapaxes(1, 2)
    query, key, value = (
        jnp.pad(part, ((0, 0), (0, 0), (0, padding), (0, 0))) for part in (query, key, value)
    )
    segment_ids = jnp.pad(segment_ids, ((0, 0), (0, padding)))
    columns = length + padding
    kernel = make_kernel(np.arange(columns), block=columns, window=window, interpret=interpret)
    out = run(kernel, query, key, value, segment_ids, segment_ids)
    return out[:, :, :length].swapaxes(1, 2)


Kernel = Any
"""JAX's splash attention over given columns; a pytree of its tables."""


def make_kernel(
    order: np.ndarray, *, block: int, parts: int = 1, window: int | None, interpret: bool
) -> Kernel:
    """Splash attention of as many queries as keys.

    Args:
      order: int[T], the column of each query.
      block: columns that a block of the kernel must divide.
      parts: devices that the queries are split over; the kernel's tables are.
      window: tokens that a token sees, itself included; None for all.
      interpret: run it without a TPU.
    """
    # What runs on no TPU never needs it, and every start would wait for it.
    from jax.experimental.pallas.ops.tpu import splash_attention

    size = next(size for size in _BLOCKS if block % size == 0)
    square = (len(order), len(order))
    mask: Any = splash_attention.CausalMask(square)
    if window is not None:
        mask = splash_attention.LocalMask(square, window_size=(window - 1, 0), offset=0)
    mask.q_sequence = order.astype(np.int32)
    return splash_attention.make_splash_mha(
        splash_attention.MultiHeadMask([mask]),  # Of every head.
        block_sizes=splash_attention.BlockSizes(
            block_q=size,
            block_kv=size,
            block_kv_compute=size,
            block_q_dkv=size,
            block_kv_dkv=size,
            block_kv_dkv_compute=size,
            block_q_dq=size,
            block_kv_dq=size,
        ),
        head_shards=1,
        q_seq_shards=parts,
        interpret=interpret,
    )


def run(
    kernel: Kernel, query: Array, key: Array, value: Array, ids: Array, key_ids: Array
) -> Array:
    """A kernel's attention, dtype[B, H, T, K].

    Args:
      kernel: of `make_kernel`, or this device's part of it.
      query: dtype[B, H, T, K], scaled.
      key: dtype[B, G, C, K].
      value: dtype[B, G, C, K].
      ids: int32[B, T], segments of the queries.
      key_ids: int32[B, C].
    """
    from jax.experimental.pallas.ops.tpu import splash_attention

    return jax.vmap(kernel)(query, key, value, splash_attention.SegmentIds(ids, key_ids))


def cudnn(
    query: Array,
    key: Array,
    value: Array,
    segment_ids: Array,
    *,
    scale: float | None = None,
    window: int | None = None,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Array:
    """What `dense` computes, by cuDNN; differentiable in `query`, `key` and `value`.

    Args:
      query: dtype[B, T, H, K]; bfloat16 for cuDNN.
      key: dtype[B, G, T, K]; G divides H.
      value: dtype[B, G, T, K].
      segment_ids: int32[B, T].
      scale: scores are multiplied by it; None is 1/√K; static.
      window: tokens that a token sees, itself included; None for all; static.
      implementation: "xla" gives the same arguments to plain products, which run anywhere; static.
    """
    length = query.shape[1]
    # The backward kernel takes an even number of columns under a mask.
    pad = ((0, 0), (0, length % 2), (0, 0), (0, 0))
    query, key, value = (
        jnp.pad(part, pad) for part in (query, key.swapaxes(1, 2), value.swapaxes(1, 2))
    )
    segment_ids = jnp.pad(segment_ids, pad[:2])
    out = jax.nn.dot_product_attention(
        query,
        key,
        value,
        mask=(segment_ids[:, :, None] == segment_ids[:, None, :])[:, None],
        scale=scale,
        is_causal=True,
        local_window_size=None if window is None else (window - 1, 0),
        implementation=implementation,
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
