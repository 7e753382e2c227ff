"""The pieces of a decoder layer; parameters of all layers are stacked along a leading axis.

A module here holds the stack. What runs is one slice of it (see `Transformer.hidden`), so the
methods see one layer's parameters.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from fiberjax.policy.activation import activate
from fiberjax.policy.config import TransformerConfig
from fiberjax.policy.experts import Experts
from fiberjax.policy.placement import Placement
from fiberjax.policy.rope import rotate


def _matmul(x: Array, kernel: Array, flat: bool) -> Array:
    """`x @ kernel` over the last axis, through a two-dimensional product where that is asked for.

    The gradient of a batched product with an unbatched matrix is much slower on XLA:CPU.
    """
    if not flat:
        return x @ kernel
    product = x.reshape(-1, x.shape[-1]) @ kernel
    return product.reshape(*x.shape[:-1], kernel.shape[-1])


class Linear(nnx.Module):
    """`x @ kernel (+ bias)`, parameters stacked over `layers`."""

    def __init__(
        self,
        layers: int,
        fan_in: int,
        fan_out: int,
        *,
        scale: float,
        bias: bool,
        split: str,
        placement: Placement,
        rngs: nnx.Rngs,
    ):
        stddev = scale / math.sqrt(fan_in)
        self.kernel = nnx.Param(
            stddev * jax.random.normal(rngs.params(), (layers, fan_in, fan_out), jnp.float32)
        )
        if bias:
            self.bias = nnx.Param(jnp.zeros((layers, fan_out), jnp.float32))
        self.use_bias = bias
        self.use_adapter = False
        self.split = split
        self.placement = placement

    def adapt(self) -> None:
        """Makes place for an adapter, of any rank; see `lora`."""
        layers, fan_in, fan_out = self.kernel.shape
        self.lora_a = nnx.Param(jnp.zeros((layers, fan_in, 1), jnp.float32))
        self.lora_b = nnx.Param(jnp.zeros((layers, 1, fan_out), jnp.float32))
        self.use_adapter = True

    def __call__(self, x: Array) -> Array:
        """Maps [..., fan_in] to [..., fan_out]."""
        flat = self.placement.flat
        out = _matmul(x, self._read(self.kernel, self.split, x), flat)
        if self.use_adapter:
            narrow = _matmul(x, self._read(self.lora_a, f"{self.split} lora_a", x), flat)
            out = out + _matmul(narrow, self._read(self.lora_b, f"{self.split} lora_b", x), flat)
        return out + self.bias[...].astype(x.dtype) if self.use_bias else out

    def _read(self, matrix: nnx.Param, split: str, x: Array) -> Array:
        return self.placement.kernel(matrix[...].astype(x.dtype), split)


class RMSNorm(nnx.Module):
    """`x / √(mean(x²) + ε) · scale` over the last axis, computed in float32.

    With `norm_offset` it multiplies by `1 + scale`.
    """

    def __init__(self, shape: tuple[int, ...], config: TransformerConfig):
        initial = jnp.zeros if config.norm_offset else jnp.ones
        self.scale = nnx.Param(initial(shape, jnp.float32))
        self.epsilon = config.norm_epsilon
        self.offset = config.norm_offset

    def __call__(self, x: Array) -> Array:
        """Normed `x`, same shape and dtype."""
        wide = x.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        scale = 1.0 + self.scale[...] if self.offset else self.scale[...]
        return (wide * lax.rsqrt(mean_square + self.epsilon) * scale).astype(x.dtype)


class Embedding(nnx.Module):
    """A table [V, D], read by token on the way in and multiplied by on the way out."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        shape = (config.vocab_size, config.embed_dim)
        # Rows of norm 1. A residual stream that starts much smaller makes the layers so sensitive
        # that training after the warm start destroys it.
        stddev = config.embed_dim**-0.5
        self.kernel = nnx.Param(stddev * jax.random.normal(rngs.params(), shape, jnp.float32))


class Attention(nnx.Module):
    """The projections of attention; who attends to whom is decided by the caller."""

    def __init__(self, config: TransformerConfig, placement: Placement, *, rngs: nnx.Rngs):
        layers, width = config.num_layers, config.embed_dim
        wide, narrow = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        shared = functools.partial(Linear, layers, placement=placement, rngs=rngs)
        project = functools.partial(shared, width, scale=1.0, bias=config.qkv_bias, split="out")
        self.q, self.k, self.v = project(wide), project(narrow), project(narrow)
        self.o = shared(wide, width, scale=_residual(config), bias=False, split="in")
        if config.qk_norm:
            self.q_norm = RMSNorm((layers, config.head_dim), config)
            self.k_norm = RMSNorm((layers, config.head_dim), config)
        self.config = config
        self.placement = placement

    def project(self, x: Array, rope: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        """Queries [B, T, H, K], keys and values [B, G, T, K], rotated where it applies."""
        heads = (*x.shape[:2], -1, self.config.head_dim)
        query, key, value = (linear(x).reshape(heads) for linear in (self.q, self.k, self.v))
        if self.config.qk_norm:
            query, key = self.q_norm(query), self.k_norm(key)
        query, key = rotate(query, rope), rotate(key, rope)
        query, key, value = (
            self.placement.activation(part, "heads") for part in (query, key, value)
        )
        return query, key.swapaxes(1, 2), value.swapaxes(1, 2)

    def output(self, heads: Array) -> Array:
        """Heads [B, T, H, K] back to the residual width [B, T, D]."""
        heads = self.placement.activation(heads, "heads")
        return self.o(heads.reshape(*heads.shape[:2], -1))


class MLP(nnx.Module):
    """The gated MLP: `down(f(gate(x)) · up(x))`, f the activation."""

    def __init__(self, config: TransformerConfig, placement: Placement, *, rngs: nnx.Rngs):
        layers, width, hidden = config.num_layers, config.embed_dim, config.mlp_dim
        shared = functools.partial(Linear, layers, bias=False, placement=placement, rngs=rngs)
        self.gate = shared(width, hidden, scale=1.0, split="out")
        self.up = shared(width, hidden, scale=1.0, split="out")
        self.down = shared(hidden, width, scale=_residual(config), split="in")
        self.activation = config.activation
        self.placement = placement

    def __call__(self, x: Array) -> Array:
        """Maps [B, T, D] to [B, T, D]."""
        hidden = activate(self.gate(x), self.activation) * self.up(x)
        return self.down(self.placement.activation(hidden, "mlp"))


class Block(nnx.Module):
    """All layers' parameters, stacked; one slice of them is one layer, normed where it reads.

    With `post_norms` it is normed where it writes, too; with `num_experts` its MLP is a mixture.
    """

    def __init__(self, config: TransformerConfig, placement: Placement, *, rngs: nnx.Rngs):
        shape = (config.num_layers, config.embed_dim)
        self.attention_norm = RMSNorm(shape, config)
        self.attention = Attention(config, placement, rngs=rngs)
        self.mlp_norm = RMSNorm(shape, config)
        if config.num_experts:
            self.experts = Experts(config, placement, scale=_residual(config), rngs=rngs)
        else:
            self.mlp = MLP(config, placement, rngs=rngs)
        self.mixture = config.num_experts > 0
        if config.post_norms:
            self.attention_post_norm = RMSNorm(shape, config)
            self.mlp_post_norm = RMSNorm(shape, config)
        self.post_norms = config.post_norms
        self.placement = placement

    def project(self, x: Array, rope: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        """Queries, keys and values of the normed residual stream."""
        return self.attention.project(self.attention_norm(x), rope)

    def finish(
        self, x: Array, heads: Array, replayed: Array | None = None
    ) -> tuple[Array, Array | None]:
        """The layer's output, given what attention read, and the experts of each token, if any.

        `replayed` names the experts to take in place of the likeliest.
        """
        attended = self.attention.output(heads)
        x = x + (self.attention_post_norm(attended) if self.post_norms else attended)
        normed, expert = self.mlp_norm(x), None
        if self.mixture:
            thought, expert = self.experts(normed, replayed)
        else:
            thought = self.mlp(normed)
        x = x + (self.mlp_post_norm(thought) if self.post_norms else thought)
        return self.placement.activation(x, "activation"), expert


def _residual(config: TransformerConfig) -> float:
    """Scale of the projections that write to the residual stream: 1/√(2L)."""
    return 1.0 / math.sqrt(2 * config.num_layers)
