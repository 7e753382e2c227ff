"""Trust-region theory: how far TRPO lets a policy move, and its problem solved on samples.

TRPO guarantees an improvement of at least `L − 4 ε γ α²/(1 − γ)²`, `α` the total variation of the
two policies in the worst state and `ε` the largest advantage, and a surrogate of that radius gains
at most `2 α ε/(1 − γ)`. Every radius below which something is guaranteed goes to 0 as γ goes to 1:
undiscounted, nothing but the old policy is left. In an episodic problem of horizon H at γ = 1 the
same argument leaves `1/(H − 1)`, 1.2e-4 for 8192 tokens (our derivation from TRPO's Theorem 1 and
its finite-horizon form). Radii of total variation are capped at 1, its largest value.

    tv_limit    above it nothing is guaranteed
    tv_radius   where the guarantee is largest
    kl_from_tv  the same radii in KL, by Pinsker's inequality
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from fiberjax import segments


def tv_limit(discount: ArrayLike) -> jax.Array:
    """Largest total variation with a positive guarantee, `(1 − γ)/(2γ)`; the discount's shape.

    Args:
      discount: float[...], γ in [0, 1], a probability.

    References:
      TRPO, arXiv 1502.05477, Theorem 1; FPO, arXiv 2603.08239, section 2.
    """
    return _capped(1 - jnp.asarray(discount), 2 * jnp.asarray(discount))


def tv_radius(discount: ArrayLike) -> jax.Array:
    """Total variation of the best guarantee, `(1 − γ)/(4γ)`; the discount's shape.

    Arguments as `tv_limit`. The guarantee there is `ε/(4γ)`, which does not vanish.

    >>> round(float(tv_radius(0.99)), 6)
    0.002525
    """
    return _capped(1 - jnp.asarray(discount), 4 * jnp.asarray(discount))


def horizon_tv_limit(horizon: ArrayLike) -> jax.Array:
    """Largest total variation with a positive guarantee over H steps, `1/(H − 1)`; same shape.

    Args:
      horizon: float[...] or int[...], H ≥ 1, tokens.
    """
    return _capped(jnp.ones(()), jnp.asarray(horizon, jnp.result_type(float)) - 1)


def horizon_tv_radius(horizon: ArrayLike) -> jax.Array:
    """Total variation of the best guarantee over H steps, `1/(2(H − 1))`; same shape.

    Arguments as `horizon_tv_limit`.
    """
    return _capped(jnp.ones(()), 2 * (jnp.asarray(horizon, jnp.result_type(float)) - 1))


def kl_from_tv(tv: ArrayLike) -> jax.Array:
    """The KL radius that keeps a total variation, `2α²` nats; same shape.

    Args:
      tv: float[...], a total variation in [0, 1].

    Returns:
      By Pinsker's inequality `α² ≤ KL/2`: a policy within it is within `α`. A KL has no largest
      value, so nothing caps it.

    >>> float(kl_from_tv(1.0))
    2.0
    """
    return 2 * jnp.asarray(tv) ** 2


def guarantee(tv: ArrayLike, discount: ArrayLike, advantage_bound: ArrayLike) -> jax.Array:
    """What TRPO can guarantee at most within a radius; the arguments' broadcast shape.

        2 α ε/(1 − γ) − 4 ε γ α²/(1 − γ)²

    Args:
      tv: float[...], `α`, a total variation.
      discount: float[...], γ in [0, 1).
      advantage_bound: float[...], `ε`, in units of the reward.
    """
    tv, discount = jnp.asarray(tv), jnp.asarray(discount)
    reach = tv / (1 - discount)
    return jnp.asarray(advantage_bound) * (2 * reach - 4 * discount * reach**2)


def horizon_guarantee(tv: ArrayLike, horizon: ArrayLike, advantage_bound: ArrayLike) -> jax.Array:
    """The same over H steps at γ = 1, `2 α ε H − 2 ε α² H(H − 1)`; the broadcast shape.

    Args:
      tv: float[...], `α`, a total variation.
      horizon: float[...], H ≥ 1, tokens.
      advantage_bound: float[...], `ε`, in units of the reward.
    """
    tv, horizon = jnp.asarray(tv), jnp.asarray(horizon)
    return 2 * jnp.asarray(advantage_bound) * horizon * (tv - tv**2 * (horizon - 1))


def solve_tv_trpo(
    advantage: jax.Array, state_id: jax.Array, num_states: int, *, delta: ArrayLike
) -> jax.Array:
    """Sample-based TV-TRPO solved exactly: the best deviations `x = r − 1`; float[N].

        max Σᵢ Âᵢxᵢ   under   Σ_{i ∈ s} |xᵢ| ≤ T_s δ for every state s,   xᵢ ≥ −1

    A linear programme that greed solves: within a state the budget goes to the largest `|Â|` first.
    A sample with `Â > 0` takes all that is left; one with `Â < 0` takes at most 1, for a ratio
    cannot fall below 0.

    Args:
      advantage: float[N].
      state_id: int32[N], the state each was sampled in; `num_states` for padding.
      num_states: static.
      delta: `δ`, the mean deviation of a state, twice a total variation; traced.

    Returns:
      One solution; samples with `Â = 0` and padding stay at 0. With free ratios it also maximises
      the APC objective.

    References:
      FPO, arXiv 2603.08239, Theorem 3.3.

    >>> advantage, state = jnp.array([2.0, -3.0, 1.0]), jnp.array([0, 0, 0])
    >>> solve_tv_trpo(advantage, state, 1, delta=0.5).tolist()
    [0.5, -1.0, 0.0]
    """
    dtype = jnp.promote_types(advantage.dtype, jnp.float32)
    real = (state_id >= 0) & (state_id < num_states)
    state_id = jnp.where(real, state_id, num_states)
    advantage = jnp.where(real, advantage.astype(dtype), 0)
    order = jnp.lexsort((-jnp.abs(advantage), state_id))
    state, value = state_id[order], advantage[order]
    count = segments.segment_sum(jnp.ones_like(state), state, num_states)
    first = jnp.cumsum(count) - count
    rank = jnp.arange(state.size) - segments.spread(first, state)

    # Ranks before the state's first positive sample are negative ones, each taking 1 at most.
    winner = -segments.segment_max(
        jnp.where(value > 0, -rank, -state.size).astype(dtype), state, num_states
    )
    winner_rank = segments.spread(winner, state)
    left = jnp.maximum(segments.spread(count * jnp.asarray(delta, dtype), state) - rank, 0)
    falls = jnp.where((value < 0) & (rank < winner_rank), -jnp.minimum(left, 1), 0)
    solution = jnp.where((value > 0) & (rank == winner_rank), left, falls)
    return jnp.zeros_like(advantage).at[order].set(solution)


def _capped(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """`min(numerator/denominator, 1)`, also where the denominator is 0."""
    small = numerator < denominator
    return jnp.where(small, numerator / jnp.where(small, denominator, 1), 1)
