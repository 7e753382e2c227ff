"""Our policy's shape as google-tunix builds it; for the sides that run where google-tunix is."""

from collections.abc import Mapping
from typing import Any

from flax import nnx
from tunix.generate.sampler import CacheConfig
from tunix.models.qwen3.model import ModelConfig, Qwen3


def make_model(options: Mapping[str, Any]) -> Qwen3:
    """A random model of the shape that the options give; tied embeddings."""
    names = ("vocab_size", "embed_dim", "num_layers", "num_heads", "num_kv_heads", "head_dim")
    config = ModelConfig(
        **{name: options[name] for name in names},
        hidden_dim=options["mlp_dim"],
        rope_theta=int(options["rope_theta"]),
        norm_eps=options["norm_epsilon"],
        use_tied_embedding=True,
    )
    return Qwen3(config, rngs=nnx.Rngs(0))


def make_cache(options: Mapping[str, Any]) -> CacheConfig:
    """A cache for as many tokens as a prompt and its completion may have."""
    shape = (options[name] for name in ("num_layers", "num_kv_heads", "head_dim"))
    return CacheConfig(options["prompt"] + options["completion"], *shape)
