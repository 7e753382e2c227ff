"""Shapes and inputs shared by the tests of the policy."""

import jax
import jax.numpy as jnp
from flax import nnx

from fiberjax.policy import TransformerConfig, init


def config(**changes) -> TransformerConfig:
    shape = dict(vocab_size=11, embed_dim=16, num_layers=2, num_heads=4, num_kv_heads=2)
    shape |= dict(head_dim=8, mlp_dim=24, qk_norm=True, qkv_bias=True, tie_embeddings=False)
    return TransformerConfig(**(shape | changes))


def params(config: TransformerConfig, seed: int = 0):
    """Random parameters, biases and scales included, large enough for peaked distributions."""
    shapes = jax.eval_shape(lambda: init(config, jax.random.key(0)))
    leaves, structure = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    drawn = [0.3 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    drawn = jax.tree.unflatten(structure, drawn)
    return jax.tree_util.tree_map_with_path(
        lambda path, x: 1 + x if path[-1].key == "scale" else x, drawn
    )


def tokens(batch: int, length: int, vocab: int = 11, seed: int = 1):
    return jax.random.randint(jax.random.key(seed), (batch, length), 0, vocab)


def whole(tokens):
    """Positions and segment ids of rows that are one sequence each."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    return positions, jnp.ones_like(tokens)


def rngs():
    return nnx.Rngs(params=0)
