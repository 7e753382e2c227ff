"""A sampler with weights of eight bits: what it computes with, in the numbers it is computed in."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

Rounding = Literal["", "int8", "float8"]
"""How the sampler's matrices are rounded: not at all, to int8, or to float8 (e4m3)."""

LARGEST = {"int8": 127.0, "float8": 448.0}
"""The largest magnitude of a format."""


def rounded(params: Any, to: Rounding) -> Any:
    """Parameters after the way to eight bits and back, one scale for each output channel.

    Args:
      params: of a policy: its kernels are rounded. Norms, biases and a mixture's router, which
        servers keep as they are, stay.
      to: the format.

    Returns:
      A tree of the same shapes and dtypes. A channel is a column of a kernel, or a token's row of
      the embedding; its largest magnitude becomes the format's largest, and keeps its value. No
      gradient is meant.
    """
    if not to:
        return params

    def of(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        names = [key.key for key in path]
        if names[-1] != "kernel" or "router" in names:
            return leaf
        inputs = -1 if "embed" in names else -2
        scale = jnp.max(jnp.abs(leaf), axis=inputs, keepdims=True) / LARGEST[to]
        scale = jnp.where(scale == 0, 1, scale)
        units = leaf / scale
        near = (
            jnp.round(units)
            if to == "int8"
            else units.astype(jnp.float8_e4m3fn).astype(units.dtype)
        )
        return (near * scale).astype(leaf.dtype)

    return jax.tree.map_with_path(of, params)


def rounder(to: Rounding) -> Callable[[Any], Any] | None:
    """`rounded` compiled; None where nothing is rounded."""
    return jax.jit(lambda params: rounded(params, to)) if to else None
