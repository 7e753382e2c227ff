"""Operators over any gate: the pessimistic composition, the dual clip and the recovery.

Each takes gated ratios `G` and advantages, most of them the gate's limit `G°` (the same gate with
infinite budgets) too, and gives gated ratios again. In the order of application: gate, pessimistic,
dual clip, recovery.

Two dual clips go by that name. PPO's bounds what a gate gives, whatever the gate: one that never
binds changes nothing, also where a gate couples tokens. That of the hierarchies goes past the gate
instead, as the authors of FiberPO have it: bad tokens that became likelier get their plain ratio
back, bounded. A hierarchy closes tokens with drift of either direction and its rollback may push
bad ones further out, so this is the other half of the recovery, not a bound on it.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def prefers_limit(gated: jax.Array, limit: jax.Array, advantage: jax.Array) -> jax.Array:
    """Where `G° Â < G Â`, so that the minimum is the limit's; bool of their shape."""
    return limit * advantage < gated * advantage


def pessimistic(gated: jax.Array, limit: jax.Array, advantage: jax.Array) -> jax.Array:
    """The gate that makes `Gᵢ' Âᵢ = min(Gᵢ Âᵢ, Gᵢ° Âᵢ)`; the shape of the gated ratios.

    A gate may then only lower a token's contribution, never reward drift. Where both products are
    equal, as on-policy, the gate's branch is taken; their gradients are equal there.

    Args:
      gated: float[...], what the gate made of the ratios.
      limit: float[...], what it makes of them with infinite budgets.
      advantage: float[...], masked.

    Returns:
      The gated ratio; gradient of the branch taken. PPO, DAPO and GSPO are this over a plain clip.

    >>> gated, limit = jnp.array([0.8, 1.2]), jnp.array([0.5, 1.5])
    >>> pessimistic(gated, limit, jnp.array([1.0, -1.0])).tolist()
    [0.5, 1.5]
    """
    return jnp.where(prefers_limit(gated, limit, advantage), limit, gated)


def dual_binds(gated: jax.Array, advantage: jax.Array, bound: ArrayLike) -> jax.Array:
    """Where the dual clip binds: `Â < 0` and `G > c`; bool of their shape."""
    return (advantage < 0) & (gated > bound)


def dual_clip(gated: jax.Array, advantage: jax.Array, bound: ArrayLike) -> jax.Array:
    """Floors the contribution of bad tokens; the shape of the gated ratios.

        G' = min(G, c) where Â < 0,   so that G'Â = max(GÂ, cÂ)

    Args:
      gated: float[...], of a gate, pessimistic or not.
      advantage: float[...], masked.
      bound: `c > 1`; traced. The contribution is never below `c Â`.

    Returns:
      The gated ratio; its gradient up to and at `c`, 0 beyond.

    References:
      Mastering Complex Control in MOBA Games, arXiv 1912.09729, eq. 5.
    """
    bound = jnp.asarray(bound, gated.dtype)
    return jnp.where(dual_binds(gated, advantage, bound), bound, gated)


def past_region(limit: jax.Array, advantage: jax.Array) -> jax.Array:
    """Where the dual clip past the gate decides: `Â < 0` and `G° > 1`; bool of their shape."""
    return (advantage < 0) & (limit > 1)


def dual_clip_past(
    gated: jax.Array, limit: jax.Array, advantage: jax.Array, bound: ArrayLike
) -> jax.Array:
    """The dual clip of the hierarchies, past base and fiber; the shape of the gated ratios.

        G' = min(G°, c) where Â < 0 and G° > 1

    Args:
      gated: float[...], of a gate, pessimistic or not.
      limit: float[...], the gate with infinite budgets.
      advantage: float[...], masked.
      bound: `c > 1`; traced. The contribution is never below `c Â`.

    Returns:
      The gated ratio; in that region the gradient of the limit up to and at `c`, 0 beyond.
    """
    bounded = dual_clip(limit, advantage, bound)
    return jnp.where(past_region(limit, advantage), bounded, gated)


def recovery_region(limit: jax.Array, advantage: jax.Array) -> jax.Array:
    """Where the recovery decides: `Â > 0` and `G° < 1`; bool of their shape."""
    return (advantage > 0) & (limit < 1)


def recovery(gated: jax.Array, limit: jax.Array, advantage: jax.Array) -> jax.Array:
    """Lets a good token that became unlikely come back: `G = G°` where `Â > 0` and `G° < 1`.

    Arguments as `pessimistic`; the shape of the gated ratios.
    """
    return jnp.where(recovery_region(limit, advantage), limit, gated)
