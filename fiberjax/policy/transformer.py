"""The policy: a decoder of the Llama and Qwen family, its parameters, and its key-value cache.

RMSNorm, rotary positions (the half-split form of the published checkpoints), grouped-query
attention with optional biases (Qwen2.5) and optional norms on queries and keys (Qwen3), SwiGLU,
tied or untied embeddings. Parameters are float32; activations and matrix products are in
`compute_dtype`; norms, softmax and logits are in float32.

Parameters are a nested dict of arrays. The layers are stacked along a leading axis and run by one
`lax.scan`, so that compile time does not grow with depth. With L layers, D `embed_dim`,
H `num_heads`, G `num_kv_heads`, K `head_dim`, F `mlp_dim` and V `vocab_size`:

    embed/kernel                          [V, D]
    layers/attention_norm/scale           [L, D]
    layers/attention/q/kernel             [L, D, H·K]
    layers/attention/{k,v}/kernel         [L, D, G·K]
    layers/attention/o/kernel             [L, H·K, D]
    layers/attention/q/bias               [L, H·K]      with qkv_bias
    layers/attention/{k,v}/bias           [L, G·K]      with qkv_bias
    layers/attention/{q_norm,k_norm}/scale [L, K]       with qk_norm
    layers/mlp_norm/scale                 [L, D]
    layers/mlp/{gate,up}/kernel           [L, D, F]
    layers/mlp/down/kernel                [L, F, D]
    final_norm/scale                      [D]
    head/kernel                           [V, D]        without tie_embeddings
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

Params = dict[str, Any]
Constrain = Callable[[Array, str], Array]

COMPUTE_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
REMAT = ("none", "full", "dots")

# Finite, so that a softmax over nothing but masked scores is uniform instead of NaN.
_MASKED = -1e30


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """The shape of a policy and how it is computed; hashable, so it can be a static argument.

    Attributes:
        vocab_size: Rows of the embedding, in tokens.
        embed_dim: Width of the residual stream.
        num_layers: Number of blocks.
        num_heads: Query heads.
        num_kv_heads: Key and value heads; divides `num_heads`.
        head_dim: Width of a head, even; `num_heads * head_dim` need not equal `embed_dim`.
        mlp_dim: Hidden width of the SwiGLU.
        rope_theta: Base of the rotary wavelengths.
        norm_epsilon: Added to the mean square in every RMSNorm.
        qk_norm: RMSNorm on each query and key head before the rotation (Qwen3).
        qkv_bias: Biases on queries, keys and values (Qwen2.5).
        tie_embeddings: Whether the logits reuse the embedding.
        compute_dtype: `"float32"` or `"bfloat16"`: activations, matrix products, cache.
        remat: What the backward pass recomputes in a layer: `"none"`, `"full"` (everything), or
            `"dots"` (everything but the outputs of the projections).

    Raises:
        ValueError: If a size is not positive, heads do not divide, or a choice is unknown.
    """

    vocab_size: int
    embed_dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_dim: int
    rope_theta: float = 10_000.0
    norm_epsilon: float = 1e-6
    qk_norm: bool = False
    qkv_bias: bool = False
    tie_embeddings: bool = True
    compute_dtype: str = "float32"
    remat: str = "none"

    def __post_init__(self) -> None:
        for name in (
            *("vocab_size", "embed_dim", "num_layers", "num_heads", "num_kv_heads"),
            *("head_dim", "mlp_dim", "rope_theta", "norm_epsilon"),
        ):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)!r}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_kv_heads must divide num_heads, got num_kv_heads={self.num_kv_heads} "
                f"and num_heads={self.num_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even for rotary positions, got {self.head_dim}")
        if self.compute_dtype not in COMPUTE_DTYPES:
            raise ValueError(
                f"compute_dtype must be one of {sorted(COMPUTE_DTYPES)}, got {self.compute_dtype!r}"
            )
        if self.remat not in REMAT:
            raise ValueError(f"remat must be one of {list(REMAT)}, got {self.remat!r}")

    @property
    def dtype(self) -> Any:
        """The compute dtype as a dtype."""
        return COMPUTE_DTYPES[self.compute_dtype]


class Cache(NamedTuple):
    """Keys and values of the columns seen so far; the same column for every row.

    Attributes:
        key: compute_dtype[L, B, G, C, K], rotated keys; C is the capacity in columns.
        value: compute_dtype[L, B, G, C, K].
        segment_ids: int32[B, C]; 0 is padding.
        length: int32[], columns filled.
    """

    key: Array
    value: Array
    segment_ids: Array
    length: Array


def identity(x: Array, name: str) -> Array:
    """The default activation constraint: leaves `x` where the compiler puts it."""
    del name
    return x


def _matmul(x: Array, kernel: Array) -> Array:
    """`x @ kernel` over the last axis, through a two-dimensional product.

    The gradient of a batched product with an unbatched matrix is much slower on XLA:CPU.
    """
    flat = x.reshape(-1, x.shape[-1]) @ kernel.astype(x.dtype)
    return flat.reshape(*x.shape[:-1], kernel.shape[-1])


def rope_table(positions: Array, head_dim: int, theta: float) -> tuple[Array, Array]:
    """Cosines and sines of the rotary angles, each float32[B, T, 1, K/2].

    The angle of pair i at position p is p · theta^(−2i/K).
    """
    frequency = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angle = positions.astype(jnp.float32)[:, :, None, None] * frequency
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: Array, rope: tuple[Array, Array]) -> Array:
    """`x` [B, T, heads, K] with entries i and i + K/2 rotated by the angles of `rope`."""
    cos, sin = rope
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = (first * cos - second * sin, second * cos + first * sin)
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)


def attend(query: Array, key: Array, value: Array, mask: Array) -> Array:
    """Grouped-query attention, [B, T, H, K].

    Args:
        query: dtype[B, T, H, K].
        key: dtype[B, G, C, K]; G divides H, query head h reads key head h // (H / G).
        value: dtype[B, G, C, K].
        mask: bool[B, T, C]; where False, a score counts as −∞. A row without any True yields a
            finite value of no meaning.

    Returns:
        dtype[B, T, H, K], with scores and softmax in float32.
    """
    batch, length, heads, head_dim = query.shape
    groups, columns = key.shape[1:3]
    # Time and the heads of a group become the rows of one matrix, so that both products are plain
    # batched ones; in a decoding step (T = 1) this moves nothing in memory.
    grouped = query.reshape(batch, length, groups, -1, head_dim).swapaxes(1, 2)
    rows = grouped.reshape(batch, groups, -1, head_dim)
    scores = jnp.einsum("bgrk,bgck->bgrc", rows, key, preferred_element_type=jnp.float32)
    scores = scores.reshape(batch, groups, length, -1, columns) * head_dim**-0.5
    scores = jnp.where(mask[:, None, :, None], scores, _MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    out = jnp.einsum("bgrc,bgck->bgrk", weights.reshape(batch, groups, -1, columns), value)
    out = out.reshape(batch, groups, length, -1, head_dim).swapaxes(1, 2)
    return out.reshape(batch, length, heads, head_dim)


class Linear(nnx.Module):
    """`x @ kernel (+ bias)`, parameters stacked over `layers`."""

    def __init__(
        self, layers: int, fan_in: int, fan_out: int, *, scale: float, bias: bool, rngs: nnx.Rngs
    ):
        stddev = scale / math.sqrt(fan_in)
        self.kernel = nnx.Param(
            stddev * jax.random.normal(rngs.params(), (layers, fan_in, fan_out), jnp.float32)
        )
        if bias:
            self.bias = nnx.Param(jnp.zeros((layers, fan_out), jnp.float32))
        self.use_bias = bias

    def __call__(self, x: Array) -> Array:
        out = _matmul(x, self.kernel[...])
        return out + self.bias[...].astype(x.dtype) if self.use_bias else out


class RMSNorm(nnx.Module):
    """`x / √(mean(x²) + ε) · scale` over the last axis, computed in float32."""

    def __init__(self, shape: tuple[int, ...], epsilon: float):
        self.scale = nnx.Param(jnp.ones(shape, jnp.float32))
        self.epsilon = epsilon

    def __call__(self, x: Array) -> Array:
        wide = x.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        return (wide * lax.rsqrt(mean_square + self.epsilon) * self.scale[...]).astype(x.dtype)


class Embedding(nnx.Module):
    """A table [V, D], read by token on the way in and multiplied by on the way out."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        shape = (config.vocab_size, config.embed_dim)
        self.kernel = nnx.Param(0.02 * jax.random.normal(rngs.params(), shape, jnp.float32))


class Attention(nnx.Module):
    """The projections of attention; who attends to whom is decided by the caller."""

    def __init__(self, config: TransformerConfig, constrain: Constrain, *, rngs: nnx.Rngs):
        layers, width, bias = config.num_layers, config.embed_dim, config.qkv_bias
        wide, narrow = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.q = Linear(layers, width, wide, scale=1.0, bias=bias, rngs=rngs)
        self.k = Linear(layers, width, narrow, scale=1.0, bias=bias, rngs=rngs)
        self.v = Linear(layers, width, narrow, scale=1.0, bias=bias, rngs=rngs)
        self.o = Linear(layers, wide, width, scale=_residual(config), bias=False, rngs=rngs)
        if config.qk_norm:
            self.q_norm = RMSNorm((layers, config.head_dim), config.norm_epsilon)
            self.k_norm = RMSNorm((layers, config.head_dim), config.norm_epsilon)
        self.config = config
        self.constrain = constrain

    def project(self, x: Array, rope: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        """Queries [B, T, H, K], keys and values [B, G, T, K], rotated where it applies."""
        heads = (*x.shape[:2], -1, self.config.head_dim)
        query, key, value = (linear(x).reshape(heads) for linear in (self.q, self.k, self.v))
        if self.config.qk_norm:
            query, key = self.q_norm(query), self.k_norm(key)
        query, key = rotate(query, rope), rotate(key, rope)
        query, key, value = (self.constrain(part, "heads") for part in (query, key, value))
        return query, key.swapaxes(1, 2), value.swapaxes(1, 2)

    def output(self, heads: Array) -> Array:
        """Heads [B, T, H, K] back to the residual width [B, T, D]."""
        return self.o(self.constrain(heads, "heads").reshape(*heads.shape[:2], -1))


class MLP(nnx.Module):
    """SwiGLU: `down(silu(gate(x)) · up(x))`."""

    def __init__(self, config: TransformerConfig, constrain: Constrain, *, rngs: nnx.Rngs):
        layers, width, hidden = config.num_layers, config.embed_dim, config.mlp_dim
        self.gate = Linear(layers, width, hidden, scale=1.0, bias=False, rngs=rngs)
        self.up = Linear(layers, width, hidden, scale=1.0, bias=False, rngs=rngs)
        self.down = Linear(layers, hidden, width, scale=_residual(config), bias=False, rngs=rngs)
        self.constrain = constrain

    def __call__(self, x: Array) -> Array:
        return self.down(self.constrain(jax.nn.silu(self.gate(x)) * self.up(x), "mlp"))


class Block(nnx.Module):
    """All layers' parameters, stacked; one slice of them is one pre-norm layer."""

    def __init__(self, config: TransformerConfig, constrain: Constrain, *, rngs: nnx.Rngs):
        shape = (config.num_layers, config.embed_dim)
        self.attention_norm = RMSNorm(shape, config.norm_epsilon)
        self.attention = Attention(config, constrain, rngs=rngs)
        self.mlp_norm = RMSNorm(shape, config.norm_epsilon)
        self.mlp = MLP(config, constrain, rngs=rngs)
        self.constrain = constrain

    def project(self, x: Array, rope: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        """Queries, keys and values of the normed residual stream."""
        return self.attention.project(self.attention_norm(x), rope)

    def finish(self, x: Array, heads: Array) -> Array:
        """The layer's output, given what attention read."""
        x = x + self.attention.output(heads)
        return self.constrain(x + self.mlp(self.mlp_norm(x)), "activation")


def _residual(config: TransformerConfig) -> float:
    """Scale of the projections that write to the residual stream: 1/√(2L)."""
    return 1.0 / math.sqrt(2 * config.num_layers)


class Transformer(nnx.Module):
    """The decoder.

    Args:
        config: Its shape.
        rngs: Source of the initial parameters (the `params` stream).
        constrain: Called as `constrain(x, name)` on activations and returned in their place, for
            sharding constraints. Names: `"activation"` [B, T, D], `"heads"` [B, T, heads, K],
            `"mlp"` [B, T, F].
    """

    def __init__(
        self, config: TransformerConfig, *, rngs: nnx.Rngs, constrain: Constrain = identity
    ):
        self.config = config
        self.constrain = constrain
        self.embed = Embedding(config, rngs=rngs)
        self.layers = Block(config, constrain, rngs=rngs)
        self.final_norm = RMSNorm((config.embed_dim,), config.norm_epsilon)
        if not config.tie_embeddings:
            self.head = Embedding(config, rngs=rngs)

    def hidden(self, tokens: Array, positions: Array, segment_ids: Array) -> Array:
        """The normed last activations, compute_dtype[B, S, D].

        A token attends to the tokens before it in its row, and itself, that share its segment id.

        Args:
            tokens: int32[B, S].
            positions: int32[B, S], counted from 0 within each segment.
            segment_ids: int32[B, S]; 0 is padding, whose contents never matter.
        """
        x, rope = self._embed(tokens, positions, segment_ids)
        column = jnp.arange(tokens.shape[1])
        mask = _mask(segment_ids, column, segment_ids, column)
        graphdef, stacked = nnx.split(self.layers)

        def layer(x: Array, params: Any) -> tuple[Array, None]:
            block = nnx.merge(graphdef, params)
            query, key, value = block.project(x, rope)
            return block.finish(x, attend(query, key, value, mask)), None

        x, _ = lax.scan(_remat(layer, self.config.remat), x, stacked)
        return self.final_norm(x)

    def decode(
        self, tokens: Array, positions: Array, segment_ids: Array, cache: Cache
    ) -> tuple[Array, Cache]:
        """The normed last activations [B, T, D] of the next T columns, and the cache with them.

        Args:
            tokens: int32[B, T]: a prompt (prefill), or one token a row (a step).
            positions: int32[B, T].
            segment_ids: int32[B, T]; 0 is padding.
            cache: From `init_cache` or a previous call, with room for T more columns (not
                checked: `length` is traced).
        """
        x, rope = self._embed(tokens, positions, segment_ids)
        start = cache.length
        segments = lax.dynamic_update_slice(cache.segment_ids, segment_ids, (0, start))
        mask = _mask(
            segment_ids,
            start + jnp.arange(tokens.shape[1]),
            segments,
            jnp.arange(segments.shape[1]),
        )
        graphdef, stacked = nnx.split(self.layers)

        # The cache is carried, not scanned over: a scan's outputs would be a copy of all of it.
        def layer(carry: Any, step: Any) -> tuple[Any, None]:
            x, keys, values = carry
            index, params = step
            block = nnx.merge(graphdef, params)
            query, key, value = block.project(x, rope)
            at = (index, 0, 0, start, 0)
            keys = lax.dynamic_update_slice(keys, key[None], at)
            values = lax.dynamic_update_slice(values, value[None], at)
            heads = attend(query, keys[index], values[index], mask)
            return (block.finish(x, heads), keys, values), None

        steps = (jnp.arange(self.config.num_layers), stacked)
        (x, keys, values), _ = lax.scan(layer, (x, cache.key, cache.value), steps)
        return self.final_norm(x), Cache(keys, values, segments, start + tokens.shape[1])

    def unembed(self, hidden: Array) -> Array:
        """Logits float32[..., V] of normed activations [..., D]."""
        return logits(hidden, self.unembedding())

    def unembedding(self) -> Array:
        """The table float32[V, D] that turns activations into logits."""
        table = self.embed if self.config.tie_embeddings else self.head
        return table.kernel[...]

    def _embed(
        self, tokens: Array, positions: Array, segment_ids: Array
    ) -> tuple[Array, tuple[Array, Array]]:
        real = segment_ids != 0
        kernel = self.embed.kernel[...].astype(self.config.dtype)
        x = self.constrain(kernel[jnp.where(real, tokens, 0)], "activation")
        positions = jnp.where(real, positions, 0)
        return x, rope_table(positions, self.config.head_dim, self.config.rope_theta)


def _mask(query_ids: Array, query_column: Array, key_ids: Array, key_column: Array) -> Array:
    """Who may attend to whom, bool[B, T, C]: same segment, not later.

    Padding is the segment 0 and attends to padding, so no row of a softmax is empty.
    """
    same = query_ids[:, :, None] == key_ids[:, None, :]
    return same & (query_column[:, None] >= key_column[None, :])


def _remat(layer: Callable, remat: str) -> Callable:
    if remat == "none":
        return layer
    policies = jax.checkpoint_policies
    policy = {
        "full": policies.nothing_saveable,
        "dots": policies.dots_with_no_batch_dims_saveable,
    }[remat]
    return jax.checkpoint(layer, policy=policy, prevent_cse=False)


def logits(hidden: Array, kernel: Array) -> Array:
    """Logits float32[..., V] of activations [..., D] and a table [V, D]."""
    flat = hidden.reshape(-1, hidden.shape[-1])
    out = lax.dot_general(
        flat,
        kernel.astype(hidden.dtype),
        (((1,), (1,)), ((), ())),
        preferred_element_type=jnp.float32,
    )
    return out.reshape(*hidden.shape[:-1], kernel.shape[0])


def init_cache(config: TransformerConfig, batch: int, capacity: int) -> Cache:
    """An empty cache for `batch` rows of up to `capacity` columns."""
    shape = (config.num_layers, batch, config.num_kv_heads, capacity, config.head_dim)
    return Cache(
        key=jnp.zeros(shape, config.dtype),
        value=jnp.zeros(shape, config.dtype),
        segment_ids=jnp.zeros((batch, capacity), jnp.int32),
        length=jnp.zeros((), jnp.int32),
    )


def init(config: TransformerConfig, key: Array) -> Params:
    """Initial parameters, a nested dict of float32 arrays (paths in the module's docstring).

    Pure: runs under `jax.jit` with `out_shardings` and under `jax.eval_shape`.
    """
    return nnx.to_pure_dict(nnx.state(Transformer(config, rngs=nnx.Rngs(params=key))))


def bind(
    config: TransformerConfig, params: Params, *, constrain: Constrain = identity
) -> Transformer:
    """The module with `params` in it, for calling its methods inside a traced function."""
    graphdef, state, expected = _structure(config, constrain)
    leaves, found = jax.tree.flatten(params)
    if found != expected:
        raise ValueError(f"params do not fit the config: expected {expected}, got {found}")
    return nnx.merge(graphdef, jax.tree.unflatten(state, leaves))


@functools.lru_cache(maxsize=64)
def _structure(config: TransformerConfig, constrain: Constrain) -> tuple[Any, Any, Any]:
    model = nnx.eval_shape(
        lambda: Transformer(config, rngs=nnx.Rngs(params=0), constrain=constrain)
    )
    graphdef, state = nnx.split(model)
    return graphdef, jax.tree.structure(state), jax.tree.structure(nnx.to_pure_dict(state))


def num_params(config: TransformerConfig) -> int:
    """The number of parameters; a tied embedding counts once."""
    shapes = jax.eval_shape(lambda: init(config, jax.random.key(0)))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
