"""The MLP of a mixture of experts: a router, and as many gated MLPs as there are experts.

Every token goes to the `experts_per_token` experts that the router finds likeliest, however many
others do: none is dropped, so that a token's result depends on that token alone. Tokens are sorted
by expert, and each product runs once over all of them: a kernel on TPUs, on a CPU as much
arithmetic as all experts on all tokens.

The router computes in float32 whatever the compute dtype is, and its parameters stay float32 in the
sampler: which experts a token goes to must not depend on who asks.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from fiberjax.policy.activation import activate
from fiberjax.policy.config import TransformerConfig
from fiberjax.policy.placement import Placement

# Rows and columns of a TPU kernel's tile.
_TILE = 128


class Router(nnx.Module):
    """Which experts a token goes to, and how much each of them counts."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        shape = (config.num_layers, config.embed_dim, config.num_experts)
        scale = config.embed_dim**-0.5
        self.kernel = nnx.Param(scale * jax.random.normal(rngs.params(), shape, jnp.float32))
        self.count = config.experts_per_token
        self.renormalise = config.norm_topk_prob

    def __call__(self, x: Array, replayed: Array | None = None) -> tuple[Array, Array]:
        """Of x [B, T, D]: the share of each chosen expert float32[B, T, k], and its index.

        Args:
          x: the normed activations.
          replayed: integer[B, T, k], the experts to take in place of the likeliest; shares stay
            those that this router gives them, and have its gradient.
        """
        flat = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
        # A TPU would take the factors of a float32 product as bfloat16.
        logits = jnp.dot(flat, self.kernel[...], precision=lax.Precision.HIGHEST)
        probability = jax.nn.softmax(logits, axis=-1)
        if replayed is None:
            share, expert = lax.top_k(probability, self.count)
        else:
            expert = replayed.reshape(-1, self.count).astype(jnp.int32)
            share = jnp.take_along_axis(probability, expert, axis=-1)
        if self.renormalise:
            share = share / jnp.sum(share, axis=-1, keepdims=True)
        shape = (*x.shape[:-1], self.count)
        return share.reshape(shape), expert.reshape(shape)


class Expert(nnx.Module):
    """One matrix of every expert, stacked over layers and experts: [L, E, in, out]."""

    def __init__(
        self, config: TransformerConfig, fan_in: int, fan_out: int, *, scale: float, rngs: nnx.Rngs
    ):
        shape = (config.num_layers, config.num_experts, fan_in, fan_out)
        stddev = scale / math.sqrt(fan_in)
        self.kernel = nnx.Param(stddev * jax.random.normal(rngs.params(), shape, jnp.float32))


class Experts(nnx.Module):
    """`Σ share · down(f(gate(x)) · up(x))` over a token's experts, f the activation."""

    def __init__(
        self, config: TransformerConfig, placement: Placement, *, scale: float, rngs: nnx.Rngs
    ):
        width, hidden = config.embed_dim, config.mlp_dim
        self.router = Router(config, rngs=rngs)
        self.gate = Expert(config, width, hidden, scale=1.0, rngs=rngs)
        self.up = Expert(config, width, hidden, scale=1.0, rngs=rngs)
        self.down = Expert(config, hidden, width, scale=scale, rngs=rngs)
        self.activation = config.activation
        self.placement = placement

    def __call__(self, x: Array, replayed: Array | None = None) -> tuple[Array, Array]:
        """Maps [B, T, D] to [B, T, D]; with it, the experts int32[B, T, k] that did so."""
        share, expert = self.router(x, replayed)
        kernels = [
            self.placement.kernel(one.kernel[...].astype(x.dtype), split)
            for one, split in (
                (self.gate, "expert out"),
                (self.up, "expert out"),
                (self.down, "expert in"),
            )
        ]
        local = functools.partial(dispatch, activation=self.activation)
        return self.placement.experts(local, x, share.astype(x.dtype), expert, *kernels), expert


def dispatch(
    first: Array | int,
    x: Array,
    share: Array,
    expert: Array,
    gate: Array,
    up: Array,
    down: Array,
    *,
    activation: str,
) -> Array:
    """What some of the experts add to each token, dtype[B, T, D].

    Args:
      first: index of the first of these experts.
      x: dtype[B, T, D].
      share: dtype[B, T, k], how much each chosen expert counts.
      expert: int32[B, T, k], which ones were chosen, of all experts.
      gate: dtype[E, D, F] of these experts alone.
      up: dtype[E, D, F].
      down: dtype[E, F, D].
      activation: of the gate; static.
    """
    count, chosen = gate.shape[0], expert.shape[-1]
    local = expert.reshape(-1) - first
    # Other devices' experts come last, and no product reaches their rows.
    local = jnp.where((local >= 0) & (local < count), local, count)
    order = jnp.argsort(local)
    back = jnp.argsort(order)
    sizes = jnp.sum(local[:, None] == jnp.arange(count), axis=0, dtype=jnp.int32)
    ours = (jnp.arange(len(order)) < jnp.sum(sizes))[:, None]
    rows = jnp.repeat(x.reshape(-1, x.shape[-1]), chosen, axis=0)
    # Zeros in and zeros out: what lies beyond the last group is not defined on every platform.
    rows = jnp.where(ours, _permuted(rows, order, back), 0)
    hidden = activate(grouped(rows, gate, sizes), activation) * grouped(rows, up, sizes)
    out = jnp.where(ours, grouped(hidden, down, sizes), 0)
    out = _permuted(out, back, order).reshape(*expert.shape, -1)
    return jnp.sum(out * share[..., None], axis=-2)


@jax.custom_vjp
def _permuted(rows: Array, order: Array, back: Array) -> Array:
    """`rows[order]`, whose gradient is a gather by the inverse permutation, not a scatter."""
    del back
    return rows[order]


_permuted.defvjp(
    lambda rows, order, back: (rows[order], back),
    lambda back, gradient: (gradient[back], None, None),
)


@jax.custom_vjp
def grouped(rows: Array, kernels: Array, sizes: Array) -> Array:
    """Each row times the matrix of its group, dtype[N, out].

    Args:
      rows: dtype[N, in], sorted by group.
      kernels: dtype[E, in, out], a matrix a group.
      sizes: int32[E], rows of each group; what lies beyond their sum means nothing.

    Returns:
      Differentiable in `rows` and `kernels`.
    """
    return lax.ragged_dot(rows, kernels, sizes)


def _grouped_backward(
    residuals: tuple[Array, Array, Array], gradient: Array
) -> tuple[Array, Array, None]:
    rows, kernels, sizes = residuals
    of_rows = lax.ragged_dot(gradient, kernels.swapaxes(1, 2), sizes)
    # On a TPU, XLA has no kernel for sums over the rows of a group: left to it, the rows are laid
    # out once for every group.
    of_kernels = lax.platform_dependent(rows, gradient, sizes, tpu=outer_tpu, default=outer)
    return of_rows, of_kernels.astype(kernels.dtype), None


grouped.defvjp(lambda *given: (lax.ragged_dot(*given), given), _grouped_backward)


def outer(rows: Array, gradient: Array, sizes: Array) -> Array:
    """Σ over the rows of each group of row ⊗ gradient, dtype[E, in, out]."""
    sums = lax.RaggedDotDimensionNumbers(
        dot_dimension_numbers=(((0,), (0,)), ((), ())),
        lhs_ragged_dimensions=[0],
        rhs_group_dimensions=[],
    )
    return lax.ragged_dot_general(rows, gradient, sizes, sums)


def outer_tpu(rows: Array, gradient: Array, sizes: Array, *, interpret: bool = False) -> Array:
    """What `outer` computes, by JAX's own kernel; `interpret` runs it without a TPU."""
    # What runs on no TPU never needs it, and every start would wait for it.
    from jax.experimental.pallas.ops.tpu.megablox.gmm import tgmm

    padding = ((0, -len(rows) % _TILE), (0, 0))
    rows, gradient = jnp.pad(rows, padding), jnp.pad(gradient, padding)
    tiling = (_TILE, _TILE, _TILE)
    return tgmm(rows.T, gradient, sizes, rows.dtype, tiling, interpret=interpret)
