"""Advantages against NumPy by group, and the cases that break naive ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fiberjax import advantages

GROUPED = [n for n in advantages.ESTIMATORS if n != "reinforce_plus_plus"]


def by_hand(name, reward, group):
    out = np.zeros(len(reward))
    deviations = np.concatenate(
        [reward[group == g] - reward[group == g].mean() for g in set(group)]
    )
    for i, r in enumerate(reward):
        mates = reward[group == group[i]]
        others = np.delete(reward, i)[np.delete(group, i) == group[i]]
        if name == "reinforce_plus_plus":
            out[i] = (r - reward.mean()) / (reward.std(ddof=1) + 1e-6)
        elif len(mates) == 1:
            out[i] = 0
        elif name == "grpo":
            out[i] = (r - mates.mean()) / (mates.std(ddof=1) + 1e-6)
        elif name == "dr_grpo":
            out[i] = r - mates.mean()
        elif name == "rloo":
            out[i] = r - others.mean()
        elif name == "reinforce_plus_plus_baseline":
            scale = np.sqrt((deviations**2).sum() / (len(reward) - 1))
            out[i] = (r - mates.mean()) / (scale + 1e-6)
        else:
            out[i] = max(r - others.max(), 0)
    return out


@pytest.mark.parametrize("name", advantages.ESTIMATORS)
def test_against_numpy(name):
    rng = np.random.default_rng(0)
    group = np.r_[0, rng.integers(1, 5, 20)]
    reward = rng.choice([0.0, 0.5, 1.0], 21) + rng.normal(0, 0.1, 21)
    got = advantages.ESTIMATORS[name](reward.astype(np.float32), group, 5)
    np.testing.assert_allclose(got, by_hand(name, reward, group), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", advantages.ESTIMATORS)
def test_permuting_and_padding_change_nothing_else(name):
    rng = np.random.default_rng(1)
    group, reward = rng.integers(0, 4, 12), rng.normal(size=12).astype(np.float32)
    estimate = advantages.ESTIMATORS[name]
    want = np.asarray(estimate(reward, group, 4))
    order = rng.permutation(12)
    np.testing.assert_allclose(estimate(reward[order], group[order], 4), want[order], atol=1e-5)
    padded = estimate(np.r_[reward, np.nan, np.inf].astype(np.float32), np.r_[group, 4, -1], 4)
    np.testing.assert_allclose(padded, np.r_[want, 0, 0], atol=1e-6)


@pytest.mark.parametrize("name", GROUPED)
@pytest.mark.parametrize("constant", [0.35, 1 / 3, 1e-8, 7e5])
def test_equal_rewards_and_groups_of_one_give_exactly_zero(name, constant):
    """A rounded mean of 0.35s leaves 3e-8, which a deviation of the same size blows up to 1."""
    reward = np.r_[np.full(7, constant), 0.1, 0.9, 0.4].astype(np.float32)
    group = np.r_[np.zeros(7, int), 1, 1, 2]
    got = np.asarray(advantages.ESTIMATORS[name](reward, group, 5))
    np.testing.assert_array_equal(got[:7], 0)
    assert got[9] == 0 and np.all(np.isfinite(got)) and np.any(got[7:9])


def test_ties_for_the_best_give_nothing():
    got = advantages.leave_one_out_max(np.float32([1, 1, 0, 1, 0.25]), np.array([0, 0, 0, 1, 1]), 2)
    np.testing.assert_array_equal(got, [0, 0, 0, 0.75, 0])


def test_gae_against_a_loop_with_gaps_and_packed_trajectories():
    rng = np.random.default_rng(0)
    reward, value = rng.normal(size=(2, 3, 9)).astype(np.float32)
    mask = rng.random((3, 9)) < 0.7
    ids = np.tile([0, 0, 0, 0, 1, 1, 1, 2, 2], (3, 1))
    want = np.zeros((3, 9))
    for b in range(3):
        for trajectory in range(3):
            later, after = 0.0, 0.0
            for t in reversed(np.flatnonzero(mask[b] & (ids[b] == trajectory))):
                delta = reward[b, t] + 0.9 * after - value[b, t]
                later = want[b, t] = delta + 0.9 * 0.8 * later
                after = value[b, t]
    reward, value = (np.where(mask, x, np.nan).astype(np.float32) for x in (reward, value))
    got = jax.jit(advantages.gae)(reward, value, mask, ids, discount=0.9, trace=0.8)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_advantages_are_constants():
    def total(reward):
        return jnp.sum(advantages.grpo(reward, np.array([0, 0, 1]), 2) ** 2)

    np.testing.assert_array_equal(jax.grad(total)(jnp.array([1.0, 0.0, 2.0])), 0)
