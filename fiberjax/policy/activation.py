"""The activations of a gated MLP."""

import jax
from jax import Array


def activate(x: Array, activation: str) -> Array:
    """The activation of a gate, one of `config.ACTIVATIONS`, entry by entry."""
    return jax.nn.silu(x) if activation == "silu" else jax.nn.gelu(x, approximate=True)
