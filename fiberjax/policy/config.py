"""The shape of a policy, as plain values."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Annotated, Any

import jax.numpy as jnp

from fiberjax import bounds
from fiberjax.bounds import AT_LEAST_0, POSITIVE, Range
from fiberjax.policy.rope import canonical_scaling, check_frequencies

COMPUTE_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
REMAT = ("none", "full", "dots")
ATTENTION = ("auto", "dense", "splash", "cudnn")
LAYERS = ("full", "sliding")
ACTIVATIONS = ("silu", "gelu_tanh")
# Far beyond any model; what is larger is a mistake, and arrays of it cannot be spoken of.
_SIZE = Range("[1, 1048576]")


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """The shape of a policy and how it is computed; hashable, so it can be a static argument.

    Attributes:
      vocab_size: rows of the embedding, in tokens.
      embed_dim: width of the residual stream.
      num_layers: number of blocks.
      num_heads: query heads.
      num_kv_heads: key and value heads; divides `num_heads`.
      head_dim: width of a head, even; `num_heads * head_dim` need not equal `embed_dim`.
      mlp_dim: hidden width of the gated MLP, or of one expert.
      num_experts: experts of every layer, in place of its MLP; 0 for none.
      experts_per_token: how many of them a token goes to; 0 without experts.
      norm_topk_prob: the shares of a token's experts are made to add up to one.
      activation: of the MLP's gate: `"silu"`, or `"gelu_tanh"` (Gemma), GELU by its tanh formula.
      rope_theta: base of the rotary wavelengths.
      rope_type: `"default"`, `"linear"`, `"llama3"` (Llama 3.1 and later) or `"yarn"`: how the
        wavelengths are stretched; see `rope`.
      rope_scaling: its numbers, pairs of a name and a value by the names of `config.json`, such as
        `(("factor", 8.0),)`; see `rope.ROPE_TYPES`.
      layer_pattern: the kind of each layer, `"full"` or `"sliding"`, over and over: five times
        "sliding" and once "full" is every sixth layer full. Kept in its shortest form.
      sliding_window: tokens that a sliding layer attends to, its own included; 0 where none slides.
      local_rope_theta: base of the wavelengths of sliding layers, which are then not stretched; 0
        where they rotate as the full ones do.
      norm_epsilon: added to the mean square in every RMSNorm.
      norm_offset: every RMSNorm multiplies by one plus its scale, which begins at 0 (Gemma).
      post_norms: RMSNorm on what attention and MLP give, before it is added (Gemma).
      qk_norm: RMSNorm on each query and key head before the rotation (Qwen3).
      qkv_bias: biases on queries, keys and values (Qwen2.5).
      query_pre_attn_scalar: scores are divided by its square root; 0 is `head_dim`.
      scale_embeddings: embeddings times the square root of `embed_dim`, in the compute dtype, as
        they are read (Gemma); not as the logits reuse them.
      tie_embeddings: whether the logits reuse the embedding.
      compute_dtype: `"float32"` or `"bfloat16"`: activations, matrix products, cache.
      remat: what the backward pass recomputes in a layer: `"none"`, `"full"` (everything), or
        `"dots"` (everything but the outputs of the projections).
      attention: `"dense"`, `"splash"` (a TPU kernel that keeps no scores; interpreted on a CPU),
        `"cudnn"` (the same on CUDA GPUs, in bfloat16), or `"auto"`: the kernel of the platform
        where it takes this shape and the query heads divide over the mesh, else dense.

    Raises:
      ValueError: if a number is out of its bounds, heads do not divide, or a choice is unknown.
    """

    vocab_size: Annotated[int, Range("[1, 16777216]")]
    embed_dim: Annotated[int, _SIZE]
    num_layers: Annotated[int, Range("[1, 1000]")]
    num_heads: Annotated[int, _SIZE]
    num_kv_heads: Annotated[int, _SIZE]
    head_dim: Annotated[int, Range("[1, 65536]")]
    mlp_dim: Annotated[int, _SIZE]
    num_experts: Annotated[int, Range("[0, 65536]")] = 0
    experts_per_token: int = 0
    norm_topk_prob: bool = False
    activation: str = "silu"
    rope_theta: Annotated[float, Range("(1, inf)")] = 10_000.0
    rope_type: str = "default"
    rope_scaling: tuple = ()
    layer_pattern: tuple = ("full",)
    sliding_window: Annotated[int, AT_LEAST_0] = 0
    local_rope_theta: Annotated[float, AT_LEAST_0] = 0.0
    norm_epsilon: Annotated[float, POSITIVE] = 1e-6
    norm_offset: bool = False
    post_norms: bool = False
    qk_norm: bool = False
    qkv_bias: bool = False
    query_pre_attn_scalar: Annotated[float, AT_LEAST_0] = 0.0
    scale_embeddings: bool = False
    tie_embeddings: bool = True
    compute_dtype: str = "float32"
    remat: str = "none"
    attention: str = "auto"

    def __post_init__(self) -> None:
        bounds.check(self)
        fewest = min(self.num_experts, 1)
        if not fewest <= self.experts_per_token <= self.num_experts:
            raise ValueError(
                f"experts_per_token must be in [{fewest}, {self.num_experts}] for num_experts = "
                f"{self.num_experts}, got {self.experts_per_token!r}"
            )
        if self.norm_topk_prob and not self.num_experts:
            raise ValueError("norm_topk_prob must be False without experts, got True")
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"activation must be one of {list(ACTIVATIONS)}, got {self.activation!r}"
            )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_kv_heads must divide num_heads, got num_kv_heads={self.num_kv_heads} "
                f"and num_heads={self.num_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even for rotary positions, got {self.head_dim}")
        scaling = canonical_scaling(self.rope_type, self.rope_scaling)
        object.__setattr__(self, "rope_scaling", scaling)
        check_frequencies(self.head_dim, self.rope_theta, self.rope_type, scaling)
        if self.local_rope_theta:
            check_frequencies(self.head_dim, self.local_rope_theta, "default", ())
        object.__setattr__(self, "layer_pattern", _shortest(self.layer_pattern, self.num_layers))
        if any(self.sliding) != (self.sliding_window > 0):
            expected = "positive" if any(self.sliding) else "0"
            raise ValueError(
                f"sliding_window must be {expected} for layers {list(self.layer_pattern)}, got "
                f"{self.sliding_window!r}"
            )
        if self.local_rope_theta and not any(self.sliding):
            raise ValueError(
                f"local_rope_theta must be 0 where no layer slides, got {self.local_rope_theta!r}"
            )
        if self.compute_dtype not in COMPUTE_DTYPES:
            raise ValueError(
                f"compute_dtype must be one of {sorted(COMPUTE_DTYPES)}, got {self.compute_dtype!r}"
            )
        if self.remat not in REMAT:
            raise ValueError(f"remat must be one of {list(REMAT)}, got {self.remat!r}")
        if self.attention not in ATTENTION:
            raise ValueError(f"attention must be one of {list(ATTENTION)}, got {self.attention!r}")

    @property
    def sliding(self) -> tuple[bool, ...]:
        """Whether each layer attends to no more than `sliding_window` tokens."""
        kinds = itertools.islice(itertools.cycle(self.layer_pattern), self.num_layers)
        return tuple(kind == "sliding" for kind in kinds)

    @property
    def attention_scale(self) -> float:
        """What scores are multiplied by."""
        return float(self.query_pre_attn_scalar or self.head_dim) ** -0.5

    @property
    def dtype(self) -> Any:
        """The compute dtype as a dtype."""
        return COMPUTE_DTYPES[self.compute_dtype]

    @property
    def route_dtype(self) -> Any:
        """The dtype that an expert's index is kept in."""
        return jnp.uint8 if self.num_experts <= 256 else jnp.uint16


def _shortest(pattern: Sequence[str], num_layers: int) -> tuple[str, ...]:
    """The shortest pattern that gives the same layers.

    Raises:
      ValueError: it is empty, or has kinds that do not exist.
    """
    known = not isinstance(pattern, str) and all(kind in LAYERS for kind in pattern)
    if not known or not pattern:
        raise ValueError(f"layer_pattern must be kinds of {list(LAYERS)}, got {pattern!r}")
    kinds = list(itertools.islice(itertools.cycle(pattern), num_layers))
    fits = (n for n in range(1, num_layers + 1) if kinds[n:] == kinds[: num_layers - n])
    return tuple(kinds[: next(fits)])
