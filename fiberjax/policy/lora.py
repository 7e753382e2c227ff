"""Low-rank adapters (LoRA, arXiv 2106.09685): a few parameters that are trained in place of all.

A matrix W [in, out] of every layer that has an adapter computes

    x W + (α/r) (x A) B,    A [in, r], B [r, out],

and W stays as it is. A begins at random and B at zero: the policy begins as its base.

The *base* is the parameters of a policy as they always are. The *adapters* are a tree beside it, of
the same paths, float32:

    layers/attention/{q,k,v,o}/lora_a  [L, in, r]
    layers/attention/{q,k,v,o}/lora_b  [L, r, out]
    layers/mlp/{gate,up,down}/...      the same

They alone have gradients, moments and checkpoints. `attached` puts both into one tree, which
whatever takes the parameters of a policy takes in their place; the base by itself is the policy
without adapters, and so the reference of a KL penalty.
"""

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from fiberjax.policy.config import COMPUTE_DTYPES, TransformerConfig

TARGETS: Mapping[str, str] = {
    **{f"{name}_proj": f"attention/{name}" for name in "qkvo"},
    **{f"{name}_proj": f"mlp/{name}" for name in ("gate", "up", "down")},
}
"""A matrix as published models call it -> where it is in `layers`."""

ALL = "all-linear"
"""Stands for all of `TARGETS`."""

Tree = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class LoRA:
    """Which matrices have an adapter, and of what size; see `make_lora`, which checks.

    Attributes:
      rank: r, of every adapter.
      alpha: α; what an adapter gives is multiplied by α/r.
      targets: keys of `TARGETS`, in their order.
      base_dtype: "float32" or "bfloat16", of the matrices of the base.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]
    base_dtype: str

    @property
    def scale(self) -> float:
        """α/r."""
        return self.alpha / self.rank


def make_lora(
    config: TransformerConfig, *, rank: int, alpha: float, targets: Sequence[str], base_dtype: str
) -> LoRA:
    """Adapters for a policy.

    Args:
      config: its shape.
      rank: at least 1, at most the smaller side of any target.
      alpha: positive.
      targets: keys of `TARGETS`, or `ALL` alone.
      base_dtype: "float32" or "bfloat16".

    Raises:
      ValueError: a number out of range, or a matrix that does not exist or can have no adapter.
    """
    if not (math.isfinite(alpha) and alpha > 0):
        raise ValueError(f"alpha must be positive and finite; got {alpha!r}")
    if base_dtype not in COMPUTE_DTYPES:
        raise ValueError(
            f"base_dtype must be one of {', '.join(sorted(COMPUTE_DTYPES))}; got {base_dtype!r}"
        )
    known = ", ".join(TARGETS)
    chosen = tuple(TARGETS) if tuple(targets) == (ALL,) else tuple(targets)
    if not chosen or len(set(chosen)) < len(chosen) or not set(chosen) <= set(TARGETS):
        raise ValueError(
            f"targets must be some of {known}, each once, or {ALL!r} alone; got {targets!r}"
        )
    experts = [name for name in chosen if TARGETS[name].startswith("mlp/") and config.num_experts]
    if experts:
        raise ValueError(
            f"targets: the experts of a mixture have no adapters, and {', '.join(experts)} of this "
            "policy are theirs; choose from q_proj, k_proj, v_proj, o_proj"
        )
    for name in chosen:
        sides = _sides(config, name)
        if not 1 <= rank <= min(sides):
            raise ValueError(
                f"rank must be between 1 and the smaller side of each target, and {name} is "
                f"{sides[0]} by {sides[1]}; got {rank}"
            )
    return LoRA(rank, alpha, tuple(name for name in TARGETS if name in chosen), base_dtype)


def _sides(config: TransformerConfig, target: str) -> tuple[int, int]:
    """[in, out] of a matrix."""
    width, hidden = config.embed_dim, config.mlp_dim
    wide, narrow = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return {
        "q_proj": (width, wide),
        "k_proj": (width, narrow),
        "v_proj": (width, narrow),
        "o_proj": (wide, width),
        "gate_proj": (width, hidden),
        "up_proj": (width, hidden),
        "down_proj": (hidden, width),
    }[target]


def init(lora: LoRA, base: Tree, key: Array) -> Tree:
    """Adapters before any training: A even in ±1/√in, as PEFT draws it, and B zero; float32.

    Args:
      lora: which.
      base: parameters of the policy; their shapes alone are read.
      key: what a matrix draws does not depend on which others have an adapter.
    """
    layers: Tree = {}
    for place, (target, path) in enumerate(TARGETS.items()):
        if target in lora.targets:
            part, name = path.split("/")
            count, fan_in, fan_out = base["layers"][part][name]["kernel"].shape
            bound = fan_in**-0.5
            shape = (count, fan_in, lora.rank)
            layers.setdefault(part, {})[name] = {
                "lora_a": jax.random.uniform(
                    jax.random.fold_in(key, place), shape, jnp.float32, -bound, bound
                ),
                "lora_b": jnp.zeros((count, lora.rank, fan_out), jnp.float32),
            }
    return {"layers": layers}


def attached(lora: LoRA | None, base: Tree, trained: Tree) -> Tree:
    """The parameters of a policy: base and adapters in one tree, α/r within B.

    Args:
      lora: which; None where all parameters are trained.
      base: of the policy; not read without adapters.
      trained: the adapters; without adapters all parameters, which are given back.

    Returns:
      Differentiable in both. No matrix is computed: the layers add what the adapters give.
    """
    if lora is None:
        return trained
    scaled = jax.tree_util.tree_map_with_path(
        lambda path, leaf: lora.scale * leaf if path[-1].key == "lora_b" else leaf, trained
    )
    return _joined(base, scaled)


def _joined(first: Tree, second: Tree) -> Tree:
    """Two trees of dicts that share no leaf, as one."""
    shared = {name: _joined(first[name], second[name]) for name in first.keys() & second.keys()}
    return first | second | shared


def merged(lora: LoRA | None, base: Tree, trained: Tree) -> Tree:
    """The parameters of the policy without adapters that computes the same, float32.

    Arguments as `attached`. With W in float32, W + (α/r) A B.
    """

    def walk(node: Tree) -> Tree:
        if "lora_a" in node:
            product = jnp.matmul(node["lora_a"], node["lora_b"], precision=lax.Precision.HIGHEST)
            rest = {name: leaf for name, leaf in node.items() if not name.startswith("lora_")}
            return rest | {"kernel": node["kernel"].astype(jnp.float32) + product}
        return {name: walk(leaf) if isinstance(leaf, dict) else leaf for name, leaf in node.items()}

    whole = walk(attached(lora, base, trained))
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), whole)


def adapted(params: Tree) -> tuple[str, ...]:
    """Where in `layers` parameters hold adapters: values of `TARGETS`."""
    layers = params["layers"]
    return tuple(
        path
        for path in TARGETS.values()
        for part, name in [path.split("/")]
        if "lora_a" in layers.get(part, {}).get(name, {})
    )


def digest(base: Tree) -> str:
    """A digest of every bit of a base, computed where its arrays lie; of any mesh the same.

    It tells one model from another, or from itself after training; it is no protection against
    someone who wants to deceive.
    """
    sums = jax.device_get(jax.jit(lambda base: jax.tree.map(_checksum, base))(base))
    return hashlib.blake2b(np.array(jax.tree.leaves(sums)).tobytes(), digest_size=8).hexdigest()


def _checksum(leaf: Array) -> Array:
    """uint32[], the bits of an array weighed by their places; exact, so of any order of adding."""
    narrow = leaf.dtype.itemsize == 2
    bits = lax.bitcast_convert_type(leaf, jnp.uint16 if narrow else jnp.uint32).astype(jnp.uint32)
    # Every bit takes part in the low ones: alone, signs would add up to nothing.
    bits = (bits ^ (bits >> 15)) * jnp.uint32(0x2C1B3C6D)
    total = bits ^ (bits >> 12)
    while total.ndim:
        place = jnp.arange(total.shape[-1], dtype=jnp.uint32)
        weight = place * jnp.uint32(0x9E3779B2) + 1  # Odd, so that no bit is lost.
        total = jnp.sum(total * weight, axis=-1, dtype=jnp.uint32)
    return total
