"""Operators over any gate: the pessimistic composition, the dual clip and the recovery.

Each takes gated ratios `G`, the gate's limit `G°` (the same gate with infinite budgets) and
advantages, and gives gated ratios again. In the order of application: gate, pessimistic, dual clip,
recovery.
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
    """
    return jnp.where(prefers_limit(gated, limit, advantage), limit, gated)


def dual_region(limit: jax.Array, advantage: jax.Array) -> jax.Array:
    """Where the dual clip decides: `Â < 0` and `G° > 1`; bool of their shape."""
    return (advantage < 0) & (limit > 1)


def dual_clip(
    gated: jax.Array, limit: jax.Array, advantage: jax.Array, bound: ArrayLike
) -> jax.Array:
    """Floors the contribution of a bad token that became likelier; shape of the gated ratios.

        G = min(G°, c) where Â < 0 and G° > 1

    Args:
      gated: float[...], of a gate, pessimistic or not.
      limit: float[...], the gate with infinite budgets.
      advantage: float[...], masked.
      bound: `c > 1`; traced. The contribution is never below `c Â`.

    Returns:
      The gated ratio; in that region the gradient of the limit up to `c`, 0 beyond.

    References:
      Mastering Complex Control in MOBA Games, arXiv 1912.09729, eq. 5.
    """
    bounded = jnp.where(limit <= bound, limit, jnp.asarray(bound, limit.dtype))
    return jnp.where(dual_region(limit, advantage), bounded, gated)


def recovery_region(limit: jax.Array, advantage: jax.Array) -> jax.Array:
    """Where the recovery decides: `Â > 0` and `G° < 1`; bool of their shape."""
    return (advantage > 0) & (limit < 1)


def recovery(gated: jax.Array, limit: jax.Array, advantage: jax.Array) -> jax.Array:
    """Lets a good token that became unlikely come back: `G = G°` where `Â > 0` and `G° < 1`.

    Arguments as `pessimistic`; the shape of the gated ratios.
    """
    return jnp.where(recovery_region(limit, advantage), limit, gated)
