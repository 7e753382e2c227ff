"""The policy: the decoder of the published families, and its parameters.

RMSNorm, rotary positions (the half-split form of the published checkpoints), grouped-query
attention over all that came before or over a window, a gated MLP or a mixture of them, tied or
untied embeddings; what tells the families apart are options of `TransformerConfig`. Parameters are
float32; activations and matrix products are in `compute_dtype`; norms, softmax, routers and logits
are in float32.

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
    layers/attention_post_norm/scale      [L, D]        with post_norms
    layers/mlp_norm/scale                 [L, D]
    layers/mlp/{gate,up}/kernel           [L, D, F]
    layers/mlp/down/kernel                [L, F, D]
    layers/experts/router/kernel          [L, D, E]     in place of mlp with E = num_experts
    layers/experts/{gate,up}/kernel       [L, E, D, F]
    layers/experts/down/kernel            [L, E, F, D]
    layers/mlp_post_norm/scale            [L, D]        with post_norms
    final_norm/scale                      [D]
    head/kernel                           [V, D]        without tie_embeddings
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from fiberjax.policy import attention, layers, lora, rope
from fiberjax.policy import cache as caches
from fiberjax.policy.cache import Cache, Table
from fiberjax.policy.config import TransformerConfig
from fiberjax.policy.placement import ONE_DEVICE, Placement

Params = dict[str, Any]

# The most layers that are written out instead of looped over.
_WRITTEN_OUT = 4


class Transformer(nnx.Module):
    """The decoder.

    Args:
      config: its shape.
      rngs: source of the initial parameters (the `params` stream).
      placement: where its arrays lie.
    """

    def __init__(
        self,
        config: TransformerConfig,
        *,
        rngs: nnx.Rngs,
        placement: Placement = ONE_DEVICE,
    ):
        self.config = config
        self.placement = placement
        self.embed = layers.Embedding(config, rngs=rngs)
        self.layers = layers.Block(config, placement, rngs=rngs)
        self.final_norm = layers.RMSNorm((config.embed_dim,), config)
        if not config.tie_embeddings:
            self.head = layers.Embedding(config, rngs=rngs)

    def hidden(
        self,
        tokens: Array,
        positions: Array,
        segment_ids: Array,
        routes: Array | None = None,
    ) -> Array:
        """The normed last activations, compute_dtype[B, S, D].

        A token attends to the tokens before it in its row, and itself, that share its segment id.

        Args:
          tokens: int32[B, S].
          positions: int32[B, S], counted from 0 within each segment.
          segment_ids: int32[B, S]; 0 is padding, whose contents never matter.
          routes: of `routed`, the experts that each token takes in each layer; None takes the
            likeliest.
        """
        return self._rows(tokens, positions, segment_ids, routes)[0]

    def routed(self, tokens: Array, positions: Array, segment_ids: Array) -> tuple[Array, Array]:
        """What `hidden` returns, and the routes: the experts of each token, integer[B, S, L, k].

        Of a mixture alone. They are of the smallest unsigned type that holds them.
        """
        x, (_, experts) = self._rows(tokens, positions, segment_ids, keep=("routes",))
        experts = jnp.moveaxis(experts, 0, 2).astype(self.config.route_dtype)
        return x, self.placement.restore(experts)

    def prefill(self, tokens: Array, positions: Array, segment_ids: Array) -> tuple[Array, Cache]:
        """What `hidden` returns, and the full cache of the S columns, in the compute dtype.

        Not differentiable.
        """
        x, ((keys, values), _) = self._rows(tokens, positions, segment_ids, keep=("cache",))
        return x, Cache(keys, values, segment_ids, jnp.int32(tokens.shape[1]))

    def _rows(
        self,
        tokens: Array,
        positions: Array,
        segment_ids: Array,
        routes: Array | None = None,
        *,
        keep: tuple[str, ...] = (),
    ) -> tuple[Array, Any]:
        """Whole rows through all layers, and what is kept of each layer.

        Kept are a pair: of "cache" keys and values [L, B, G, S, K], of "routes" experts
        [L, B, S, k]; None for what is not.
        """
        place = self.placement
        tokens, positions, segment_ids = map(place.spread, (tokens, positions, segment_ids))
        x, angles = self._embed(tokens, positions, segment_ids)
        by_layer = None if routes is None else jnp.moveaxis(place.spread(routes), 2, 0)
        graphdef, stacked = nnx.split(self.layers)

        def layer(x: Array, step: Any) -> tuple[Array, Any]:
            params, sliding, replayed = step
            block = nnx.merge(graphdef, params)
            query, key, value = block.project(x, self._angles(angles, sliding))
            heads = self.placement.attend(
                *(query, key, value, segment_ids),
                scale=self.config.attention_scale,
                window=self._window(sliding),
            )
            x, expert = block.finish(x, heads, replayed)
            cache = (key, value) if "cache" in keep else None
            return x, (cache, expert if "routes" in keep else None)

        # A few layers are written out: their activations are then kept where they are, where a loop
        # would copy them into a stack.
        shallow = self.config.num_layers <= _WRITTEN_OUT and self.config.remat == "none"
        layer = _remat(layer, "none" if "cache" in keep else self.config.remat)
        steps = (stacked, self._sliding(), by_layer)
        x, kept = lax.scan(layer, x, steps, unroll=self.config.num_layers if shallow else 1)
        return place.restore(self.final_norm(x)), kept

    def decode(
        self,
        tokens: Array,
        positions: Array,
        segment_ids: Array,
        cache: Cache,
        *,
        columns: int | None = None,
    ) -> tuple[Array, Cache]:
        """The normed last activations [B, T, D] of the next T columns, and the cache with them.

        Args:
          tokens: int32[B, T], often one a row.
          positions: int32[B, T].
          segment_ids: int32[B, T]; 0 is padding.
          cache: from `init_cache`, `prefill` or a previous call, with room for T more columns
            (not checked: `length` is traced).
          columns: how many columns of the cache are read, at least those that are filled
            afterwards (not checked either); all by default; static.
        """
        start = cache.length
        segments = lax.dynamic_update_slice(cache.segment_ids, segment_ids, (0, start))
        seen = segments[:, :columns]
        new, old = start + jnp.arange(tokens.shape[1]), jnp.arange(seen.shape[1])

        def write(table: Table, index: Array, column: Table) -> tuple[Table, Table]:
            table = caches.write_layer(table, index, start, column)
            return table, caches.layer_of(table, index, len(old))

        def mask(window: Array | int | None) -> Array:
            return attention.causal_mask(segment_ids, new, seen, old, window=window)

        embedded = self._embed(tokens, positions, segment_ids)
        x, keys, values = self._columns(embedded, cache.key, cache.value, write, mask)
        return x, Cache(keys, values, segments, start + tokens.shape[1])

    def decode_own(
        self, tokens: Array, positions: Array, keys: Table, values: Table, *, columns: int
    ) -> tuple[Array, Table, Table]:
        """The normed last activations [B, D] of a token a row, and the cache with it.

        In this cache the column of a token is its position: each row writes its own, and sees
        those up to it.

        Args:
          tokens: int32[B].
          positions: int32[B], below `columns` for rows whose result means anything.
          keys: of [L, B, G, C, K].
          values: of [L, B, G, C, K].
          columns: how many columns are read; static.
        """
        old = jnp.arange(columns)

        def write(table: Table, index: Array, column: Table) -> tuple[Table, Table]:
            def put(part: Array, new: Array) -> tuple[Array, Array]:
                return self.placement.write(part, index, positions, new[:, :, 0], columns=columns)

            both = jax.tree.map(put, table, column)
            whole, seen = jax.tree.transpose(jax.tree.structure(table), None, both)
            return whole, seen

        def mask(window: Array | int | None) -> Array:
            distance = positions[:, None] - old
            seen = distance >= 0
            return (seen if window is None else seen & (distance < window))[:, None]

        one = jnp.ones_like(positions)[:, None]
        embedded = self._embed(tokens[:, None], positions[:, None], one)
        x, keys, values = self._columns(embedded, keys, values, write, mask)
        return x[:, 0], keys, values

    def _columns(
        self,
        embedded: tuple[Array, Any],
        keys: Table,
        values: Table,
        write: Callable[[Table, Array, Table], tuple[Table, Table]],
        mask: Callable[[Array | int | None], Array],
    ) -> tuple[Array, Table, Table]:
        """New columns through all layers, over a cache that `write` puts theirs into.

        Args:
          embedded: from `_embed`.
          keys: of [L, B, G, C, K].
          values: of [L, B, G, C, K].
          write: the table, a layer and its new columns, of [B, G, T, K] -> the table, and the
            columns of that layer that are read, of [B, G, columns, K].
          mask: a window -> who sees what, bool[B, T, columns].
        """
        x, angles = embedded
        dtype = caches.dtype_of(keys)
        graphdef, stacked = nnx.split(self.layers)

        # The cache is carried, not scanned over: a scan's outputs would be a copy of all of it.
        def layer(carry: Any, step: Any) -> tuple[Any, None]:
            x, keys, values = carry
            index, (params, sliding) = step
            block = nnx.merge(graphdef, params)
            query, key, value = block.project(x, self._angles(angles, sliding))
            key, value = (self.placement.activation(new, "column") for new in (key, value))
            keys, seen_keys = write(keys, index, caches.packed(key, dtype))
            values, seen_values = write(values, index, caches.packed(value, dtype))
            key, value = (caches.unpacked(of, x.dtype) for of in (seen_keys, seen_values))
            heads = attention.masked(
                *(query, key, value, mask(self._window(sliding))),
                scale=self.config.attention_scale,
            )
            return (block.finish(x, heads)[0], keys, values), None

        steps = (jnp.arange(self.config.num_layers), (stacked, self._sliding()))
        (x, keys, values), _ = lax.scan(layer, (x, keys, values), steps)
        return self.final_norm(x), keys, values

    def _sliding(self) -> Array | None:
        """Whether each layer slides, bool[L]; None where all are of one kind."""
        sliding = self.config.sliding
        return None if len(set(sliding)) == 1 else jnp.array(sliding)

    def _window(self, sliding: Array | None) -> Array | int | None:
        """The window of a layer, by its entry of `_sliding`; None where no layer has one."""
        if sliding is None:
            return self.config.sliding_window or None
        return jnp.where(sliding, self.config.sliding_window, attention.EVERYTHING)

    def unembed(self, hidden: Array) -> Array:
        """Logits float32[..., V] of normed activations [..., D]."""
        return logits(hidden, self.unembedding())

    def unembedding(self) -> Array:
        """The table float32[V, D] that turns activations into logits."""
        table = self.embed if self.config.tie_embeddings else self.head
        return table.kernel[...]

    def _angles(self, angles: tuple[Any, Any], sliding: Array | None) -> tuple[Array, Array]:
        """The rotary angles of a layer, by its entry of `_sliding`."""
        full, local = angles
        if local is None:
            return full
        if sliding is None:
            return local
        cos, sin = (jnp.where(sliding, *of) for of in zip(local, full, strict=True))
        return cos, sin

    def _embed(self, tokens: Array, positions: Array, segment_ids: Array) -> tuple[Array, Any]:
        """The embedded tokens, and the rotary angles of full and of sliding layers.

        The latter are None where sliding layers rotate as the full ones do.
        """
        config, real = self.config, segment_ids != 0
        x = self.embed.kernel[...].astype(config.dtype)[jnp.where(real, tokens, 0)]
        if config.scale_embeddings:
            x = x * jnp.asarray(math.sqrt(config.embed_dim), config.dtype)
        x = self.placement.activation(x, "activation")
        positions = jnp.where(real, positions, 0)
        frequency, scale = rope.frequencies(
            config.head_dim, config.rope_theta, config.rope_type, config.rope_scaling
        )
        full, local = rope.table(positions, frequency, scale), None
        if config.local_rope_theta:
            frequency, _ = rope.frequencies(config.head_dim, config.local_rope_theta)
            local = rope.table(positions, frequency)
        return x, (full, local)


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


def init(config: TransformerConfig, key: Array) -> Params:
    """Initial parameters, a nested dict of float32 arrays (paths in the module's docstring).

    Pure: runs under `jax.jit` with `out_shardings` and under `jax.eval_shape`.
    """
    return nnx.to_pure_dict(nnx.state(Transformer(config, rngs=nnx.Rngs(params=key))))


def bind(
    config: TransformerConfig,
    params: Params,
    *,
    placement: Placement = ONE_DEVICE,
) -> Transformer:
    """The module with `params` in it, for calling its methods inside a traced function.

    They may hold adapters, as `lora.attached` puts them there.
    """
    graphdef, state, expected = _structure(config, placement, lora.adapted(params))
    leaves, found = jax.tree.flatten(params)
    if found != expected:
        raise ValueError(f"params do not fit the config: expected {expected}, got {found}")
    return nnx.merge(graphdef, jax.tree.unflatten(state, leaves))


@functools.lru_cache(maxsize=64)
def _structure(
    config: TransformerConfig, placement: Placement, adapted: tuple[str, ...]
) -> tuple[Any, Any, Any]:
    def make() -> Transformer:
        model = Transformer(config, rngs=nnx.Rngs(params=0), placement=placement)
        for path in adapted:
            part, name = path.split("/")
            getattr(getattr(model.layers, part), name).adapt()
        return model

    graphdef, state = nnx.split(nnx.eval_shape(make))
    return graphdef, jax.tree.structure(state), jax.tree.structure(nnx.to_pure_dict(state))


def num_params(config: TransformerConfig) -> int:
    """The number of parameters; a tied embedding counts once."""
    shapes = jax.eval_shape(lambda: init(config, jax.random.key(0)))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
