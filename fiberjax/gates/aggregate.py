"""The aggregate gate: how a budget shapes one drift, whether of a trajectory, a group or a domain.

    g(x; C, k) = clip(x, ±B⁺),   B = C + k(C − |x|)

An APC clip: the drift `x` of a cell with `k` children may use what `k` siblings of the same drift
leave of a budget of `(k + 1)C`. Within the budget it is the identity; beyond it falls back with
slope `−k` (rollback) and reaches 0 at `(1 + 1/k)C`.
"""

import jax
import jax.numpy as jnp

OPEN, ROLLBACK, ZEROED = 0, 1, 2


def clip(value: jax.Array, bound: jax.Array) -> jax.Array:
    """Clips to `±bound`; same shape. Gradient 1 up to and at the bound, 0 beyond.

    `jnp.clip` splits the gradient where value and bound tie; here a gate at its bound is open.

    Args:
      value: float[...].
      bound: float, broadcasts against the value; not negative.
    """
    return jnp.where(jnp.abs(value) <= bound, value, jnp.sign(value) * bound)


def rollback(drift: jax.Array, budget: jax.Array, size: jax.Array) -> jax.Array:
    """The aggregate gate `g(x; C, k)`; same shape as the drift.

        g = x                        |x| ≤ C
        g = sign(x)(C + k(C − |x|))  C < |x| < (1 + 1/k)C
        g = 0                        beyond

    Args:
      drift: float[...], nats; may be negative, the gate is odd.
      budget: `C > 0`, nats, broadcasts against the drift.
      size: `k`, the number of children of the cell, broadcasts against the drift.

    Returns:
      The gated drift, nats. Its slope is 1, `−k` and 0 on the three pieces; 1 at `|x| = C`.

    References:
      JoyAI-LLM Flash report, arXiv 2604.03044, eq. 4; as an APC clip: FPO, arXiv 2603.08239,
      Definition 3.2.

    >>> gated = rollback(jnp.array([0.05, 0.11, 0.2]), jnp.array(0.1), jnp.array(4.0))
    >>> [round(g, 3) for g in gated.tolist()]
    [0.05, 0.06, 0.0]
    """
    left = budget + size * (budget - jnp.abs(drift))
    # Clipping `left` at 0 instead would leave a gradient of one half where it is exactly 0.
    fallen = jnp.where(left > 0, jnp.sign(drift) * left, 0)
    return jnp.where(jnp.abs(drift) <= budget, drift, fallen)


def hold(drift: jax.Array, budget: jax.Array, size: jax.Array) -> jax.Array:
    """The gate that holds at the budget, `clip(x, ±C)`; same shape as the drift.

    Args:
      drift: float[...], nats.
      budget: `C > 0`, nats, broadcasts against the drift.
      size: not read; every base gate has the same signature.

    Returns:
      The gated drift, nats; slope 1 up to and at the budget, 0 beyond.
    """
    del size
    return clip(drift, budget)


BASE_GATES = {"rollback": rollback, "hold": hold}
"""Base gates by name: `gate(drift, budget, size) -> gated drift`."""


def position(drift: jax.Array, budget: jax.Array, size: jax.Array) -> jax.Array:
    """Which piece of `rollback` a drift is on; int32 of its shape, OPEN, ROLLBACK or ZEROED."""
    magnitude = jnp.abs(drift)
    beyond = budget + size * (budget - magnitude) <= 0
    return jnp.where(magnitude <= budget, OPEN, jnp.where(beyond, ZEROED, ROLLBACK))
