"""Advantages from rewards: what a trajectory did better than its group, or a token than expected.

Group statistics go by id, never by position: filtering or permuting trajectories permutes the
advantages and nothing else. A trajectory whose group id is outside `[0, num_groups)` is padding and
gets 0. A group whose rewards are all equal gives exactly 0, and so does a group of one, under every
estimator that compares within groups.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from fiberjax import segments

Estimator = Callable[[jax.Array, jax.Array, int], jax.Array]
"""`(reward [M], group_id [M], num_groups) -> advantage [M]`."""


def centred(
    reward: jax.Array, group_id: jax.Array, num_groups: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Rewards less their group's mean, the group's size and its sum of squares; three [M].

    Rewards are first taken from the group's largest, so that equal rewards leave an exact 0 where
    subtracting a rounded mean would leave a residue.

    Args:
      reward: float[M], one a trajectory; anything where the group id is padding.
      group_id: int32[M], in `[0, num_groups)`, or `num_groups` for padding.
      num_groups: static.

    Returns:
      The deviations, float32 or wider, the sizes and the sums of squared deviations, each read at
      the trajectory; all 0 at padding.
    """
    reward, group_id, present = _present(reward, group_id, num_groups)
    below = reward - _of_group(segments.segment_max, reward, group_id, num_groups)
    size = _of_group(segments.segment_sum, present.astype(reward.dtype), group_id, num_groups)
    total = _of_group(segments.segment_sum, below, group_id, num_groups)
    deviation = jnp.where(present, below - segments.safe_divide(total, size), 0)
    squares = _of_group(segments.segment_sum, deviation**2, group_id, num_groups)
    return deviation, size, squares


def grpo(
    reward: jax.Array, group_id: jax.Array, num_groups: int, *, epsilon: float = 1e-6
) -> jax.Array:
    """Group-relative advantages, `(R − mean_g) / (std_g + ε)`; float[M].

    Args:
      reward: float[M], one a trajectory.
      group_id: int32[M], its prompt group; `num_groups` for padding.
      num_groups: static.
      epsilon: added to the sample deviation (ddof 1), in units of the reward.

    Returns:
      The advantages, in deviations, a constant in gradients; exactly 0 for groups of one, groups
      of equal rewards and padding.

    References:
      GRPO, arXiv 2402.03300, section 4.1.2.

    >>> advantage = grpo(jnp.array([1.0, 0.0, 0.35, 0.35]), jnp.array([0, 0, 1, 1]), 2)
    >>> [round(a, 3) for a in advantage.tolist()]
    [0.707, -0.707, 0.0, 0.0]
    """
    deviation, size, squares = centred(reward, group_id, num_groups)
    std = jnp.sqrt(squares / jnp.maximum(size - 1, 1))
    return deviation / (std + epsilon)


def dr_grpo(reward: jax.Array, group_id: jax.Array, num_groups: int) -> jax.Array:
    """GRPO without the deviation, `R − mean_g`; float[M], in units of the reward.

    Arguments as `grpo`. Hard and easy groups are no longer blown up by their small deviations.

    References:
      Dr. GRPO, arXiv 2503.20783, section 3.2.
    """
    return centred(reward, group_id, num_groups)[0]


def rloo(reward: jax.Array, group_id: jax.Array, num_groups: int) -> jax.Array:
    """Leave-one-out, `R − mean of the group's others`; float[M], in units of the reward.

    Arguments as `grpo`. Equal to `n/(n − 1)` times `dr_grpo`, hence unbiased.

    References:
      Back to Basics, arXiv 2402.14740, section 3.
    """
    deviation, size, _ = centred(reward, group_id, num_groups)
    return deviation * size / jnp.maximum(size - 1, 1)


def reinforce_plus_plus(
    reward: jax.Array, group_id: jax.Array, num_groups: int, *, epsilon: float = 1e-6
) -> jax.Array:
    """Rewards whitened over the whole batch, `(R − mean) / (std + ε)`; float[M], in deviations.

    Args:
      reward: float[M], of the global batch: of all devices.
      group_id: int32[M]; tells padding only.
      num_groups: static.
      epsilon: added to the sample deviation (ddof 1), in units of the reward.

    Returns:
      The advantages, a constant in gradients; exactly 0 where all rewards are equal. Nothing is
      compared within groups.

    References:
      REINFORCE++, arXiv 2501.03262, section 3.
    """
    _, _, present = _present(reward, group_id, num_groups)
    return grpo(reward, jnp.where(present, 0, 1), 1, epsilon=epsilon)


def reinforce_plus_plus_baseline(
    reward: jax.Array, group_id: jax.Array, num_groups: int, *, epsilon: float = 1e-6
) -> jax.Array:
    """Deviations from the group's mean over their deviation in the batch; float[M].

        (R − mean_g) / (std of R − mean_g over the batch + ε)

    Arguments as `reinforce_plus_plus`. The mean of the deviations is 0 already: subtracting its
    rounded value again would lose the exact 0 of a group of equal rewards.

    References:
      REINFORCE++, arXiv 2501.03262, section 3.
    """
    deviation, size, _ = centred(reward, group_id, num_groups)
    count = jnp.sum(size > 0)
    std = jnp.sqrt(jnp.sum(deviation**2) / jnp.maximum(count - 1, 1))
    return deviation / (std + epsilon)


def leave_one_out_max(reward: jax.Array, group_id: jax.Array, num_groups: int) -> jax.Array:
    """Only what a group's best sample adds counts, `R_max − R_second`; float[M].

    Arguments as `grpo`. The group is scored by its best member, so all but a single best one are
    replaceable and get 0; so does everyone where two share the best reward.

    References:
      The leave-one-out form of a group's maximum: arXiv 2503.19595, section 3.
    """
    reward, group_id, present = _present(reward, group_id, num_groups)
    best = _of_group(segments.segment_max, reward, group_id, num_groups)
    is_best = present & (reward == best)
    ties = _of_group(segments.segment_sum, is_best.astype(jnp.int32), group_id, num_groups)
    # Measured down from the best, so that a group without a second reads an exact 0.
    gap = jnp.where(is_best, -jnp.inf, reward - best)
    second = _of_group(segments.segment_max, gap, group_id, num_groups)
    return jnp.where(is_best & (ties == 1), -second, 0)


ESTIMATORS: Mapping[str, Estimator] = {
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "rloo": rloo,
    "reinforce_plus_plus": reinforce_plus_plus,
    "reinforce_plus_plus_baseline": reinforce_plus_plus_baseline,
    "leave_one_out_max": leave_one_out_max,
}
"""Estimators from one reward a trajectory, by name."""

WITHIN_GROUPS = ("grpo", "dr_grpo", "rloo", "reinforce_plus_plus_baseline", "leave_one_out_max")
"""Those that compare a trajectory with the others of its group, and give 0 where there are none."""


def gae(
    reward: jax.Array,
    value: jax.Array,
    mask: jax.Array,
    trajectory_id: jax.Array | None = None,
    *,
    discount: ArrayLike,
    trace: ArrayLike,
) -> jax.Array:
    """Generalised advantage estimation along each row; float[B, T].

        δ_t = R_t + γ V_{t+1} − V_t,   Â_t = δ_t + γλ Â_{t+1}

    Args:
      reward: float[B, T], of each token.
      value: float[B, T], the value head's prediction before the token.
      mask: bool[B, T]; other tokens are passed over: they neither discount nor bootstrap.
      trajectory_id: int32[B, T] where rows hold several trajectories; None where each is one.
      discount: `γ`, a probability; traced.
      trace: `λ`, a probability; traced.

    Returns:
      The advantages, float32 or wider, a constant in gradients; 0 at masked tokens. The value after
      a trajectory's last token is 0: trajectories are episodes. `Â + V` is the value head's target.

    References:
      arXiv 1506.02438, eq. 16.
    """
    dtype = jnp.promote_types(jnp.result_type(reward, value), jnp.float32)
    reward = jnp.where(mask, jax.lax.stop_gradient(reward).astype(dtype), 0)
    value = jnp.where(mask, jax.lax.stop_gradient(value).astype(dtype), 0)
    if trajectory_id is None:
        trajectory_id = jnp.zeros(reward.shape, jnp.int32)

    def step(
        later: tuple[jax.Array, jax.Array, jax.Array], now: tuple[jax.Array, ...]
    ) -> tuple[tuple[jax.Array, jax.Array, jax.Array], jax.Array]:
        next_value, next_advantage, next_id = later
        reward, value, mask, this_id = now
        same = this_id == next_id
        delta = reward + discount * jnp.where(same, next_value, 0) - value
        advantage = delta + discount * trace * jnp.where(same, next_advantage, 0)
        here = (value, advantage, this_id)
        kept = tuple(jnp.where(mask, new, old) for new, old in zip(here, later, strict=True))
        return (kept[0], kept[1], kept[2]), jnp.where(mask, advantage, 0)

    # Zeros made of the data, so that inside `shard_map` the carry varies as the rows do.
    zero = jnp.zeros_like(reward[:, 0])
    columns = tuple(x.T for x in (reward, value, mask, trajectory_id))
    _, advantage = jax.lax.scan(
        step, (zero, zero, jnp.zeros_like(trajectory_id[:, 0])), columns, reverse=True
    )
    return advantage.T


def _present(
    reward: jax.Array, group_id: jax.Array, num_groups: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Rewards as constants in float32 or wider, 0 at padding; ids made safe; and who is real."""
    present = (group_id >= 0) & (group_id < num_groups)
    dtype = jnp.promote_types(jnp.result_type(reward), jnp.float32)
    reward = jnp.where(present, jax.lax.stop_gradient(jnp.asarray(reward, dtype)), 0)
    # A negative id would wrap to the last group.
    return reward, jnp.where(present, group_id, num_groups), present


def _of_group(
    reduce: Callable[..., jax.Array], values: jax.Array, group_id: jax.Array, num_groups: int
) -> jax.Array:
    """Reduces values over each group and reads the result at its members; [M]."""
    return segments.spread(reduce(values, group_id, num_groups), group_id)
