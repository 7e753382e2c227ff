import itertools

import numpy as np
import pytest

from fiberjax.run import statistics


def test_mean_at_k():
    correct = np.array([[True, False, False, True], [False] * 4])
    np.testing.assert_array_equal(statistics.mean_at_k(correct), [0.5, 0.0])


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_pass_at_k_is_the_mean_over_all_choices_of_k_samples(n):
    right = np.arange(n + 1)
    correct = np.arange(n) < right[:, None]
    for k in range(1, n + 1):
        choices = list(itertools.combinations(range(n), k))
        expected = [np.mean([row[list(c)].any() for c in choices]) for row in correct]
        np.testing.assert_allclose(statistics.pass_at_k(correct, k), expected, rtol=1e-12)


def test_pass_at_k_survives_many_samples():
    correct = np.zeros((2, 20_000))
    correct[0, :10_000] = 1
    correct[1, 0] = 1
    np.testing.assert_allclose(statistics.pass_at_k(correct, 10_000), [1.0, 0.5])


def test_pass_at_1_is_mean_at_k():
    correct = np.random.default_rng(0).random((50, 6)) < 0.4
    np.testing.assert_allclose(
        statistics.pass_at_k(correct, 1), statistics.mean_at_k(correct), rtol=1e-12
    )


def test_pass_at_k_refuses():
    with pytest.raises(ValueError, match="1 <= k <= 4"):
        statistics.pass_at_k(np.ones((3, 4)), 5)
    with pytest.raises(ValueError, match="k = 0"):
        statistics.pass_at_k(np.ones((3, 4)), 0)
    with pytest.raises(ValueError, match="0 or 1"):
        statistics.pass_at_k(np.full((3, 4), 0.5), 1)


def test_values_are_checked():
    with pytest.raises(ValueError, match=r"rewards must be \[prompts, k\]"):
        statistics.mean_at_k(np.ones(4))
    with pytest.raises(ValueError, match="rewards must be finite"):
        statistics.mean_at_k(np.array([[1.0, np.nan]]))
    for bad in (1.5, -0.1):
        with pytest.raises(ValueError, match=r"\[0, 1\]"):
            statistics.interval(np.array([0.1, bad]))
        with pytest.raises(ValueError, match=r"\[0, 1\]"):
            statistics.difference(np.array([0.1, bad]), np.array([0.1, 0.2]))
    for estimate in (statistics.interval, statistics.real_interval):
        with pytest.raises(ValueError, match="finite"):
            estimate(np.array([0.1, np.nan]))
        with pytest.raises(ValueError, match="one value a prompt"):
            estimate(np.array([]))


def test_means_are_of_any_rewards():
    rewards = np.array([[0.5, -3.5], [12.0, 0.0]])
    np.testing.assert_array_equal(statistics.mean_at_k(rewards), [-1.5, 6.0])


def test_interval_without_bounds_is_students():
    # Student (1908), section 9: additional hours of sleep by the second drug over the first.
    gained = np.array([1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4])
    estimate = statistics.real_interval(gained)
    # t = 2.262 at nine degrees of freedom, s = 1.2300.
    np.testing.assert_allclose(estimate, [1.58, 0.7001, 2.4599], atol=1e-4)
    shifted = statistics.real_interval(10 * gained - 50)
    np.testing.assert_allclose(shifted, 10 * np.array(estimate) - 50)


def test_one_value_says_nothing_of_its_spread():
    estimate = statistics.real_interval(np.array([-2.0]))
    assert estimate == (-2.0, -np.inf, np.inf) and not estimate.excludes_zero


def test_interval_of_zeros_and_ones_is_wilsons():
    # Published: 81 of 263 (Newcombe 1998, Table I, method 3).
    estimate = statistics.interval(np.arange(263) < 81)
    np.testing.assert_allclose(estimate, [81 / 263, 0.2553, 0.3662], atol=5e-5)
    low, high = statistics.interval(np.zeros(20))[1:]
    assert low == 0 and high == pytest.approx(0.1611, abs=5e-5)


def test_difference_is_newcombes():
    # Both right 36, gained 2, lost 12, neither 0: his method without continuity correction.
    before = np.repeat([1, 0, 1, 0], [36, 2, 12, 0])
    after = np.repeat([1, 1, 0, 0], [36, 2, 12, 0])
    estimate = statistics.difference(before, after)
    x, y = statistics.interval(before), statistics.interval(after)
    rho = np.corrcoef(before, after)[0, 1]
    a, b = y.value - y.low, x.high - x.value
    assert estimate.value == pytest.approx(-0.2)
    assert estimate.low == pytest.approx(-0.2 - np.sqrt(a * a - 2 * rho * a * b + b * b))
    swapped = statistics.difference(after, before)
    np.testing.assert_allclose(swapped, [0.2, -estimate.high, -estimate.low])


def test_pairing_narrows_the_interval():
    rng = np.random.default_rng(0)
    before = rng.random(400)
    after = np.clip(before + 0.05, 0, 1)
    paired = statistics.difference(before, after)
    unpaired = statistics.difference(before, rng.permutation(after))
    assert paired.high - paired.low < 0.2 * (unpaired.high - unpaired.low)


def test_nothing_changed_still_has_a_width():
    estimate = statistics.difference(np.ones(30), np.ones(30))
    assert estimate.low < 0 == estimate.value < estimate.high
    assert not estimate.excludes_zero


@pytest.mark.parametrize("shape", [(2.0, 3.0), (0.3, 5.0)])
@pytest.mark.parametrize(("prompts", "k"), [(40, 1), (40, 4), (500, 1), (500, 4)])
def test_intervals_cover_at_the_stated_rate(prompts, k, shape):
    rng = np.random.default_rng(7)
    first = shape[0] / sum(shape)
    second = first + 0.3 * (1 - first)
    trials, hits, paired_hits = 600, 0, 0
    for _ in range(trials):
        rate = rng.beta(*shape, prompts)
        before = rng.binomial(k, rate) / k
        after = rng.binomial(k, rate + 0.3 * (1 - rate)) / k
        _, low, high = statistics.interval(before)
        hits += low <= first <= high
        _, low, high = statistics.difference(before, after)
        paired_hits += low <= second - first <= high
    # Four standard errors of a 95 % rate below, and not absurdly wide.
    assert 0.915 <= hits / trials <= 0.99
    assert 0.915 <= paired_hits / trials <= 0.99


@pytest.mark.parametrize("draw", ["normal", "shaped", "length"])
@pytest.mark.parametrize(("prompts", "k"), [(40, 1), (40, 4), (500, 1)])
def test_intervals_of_real_rewards_cover_at_the_stated_rate(prompts, k, draw):
    """Normal; right or wrong with a part for the form, and less for a wrong one; minus a length."""
    rng = np.random.default_rng(3)

    def rewards(gain):
        shape = (prompts, k)
        if draw == "normal":
            return rng.normal(gain, 2.0, shape), gain
        if draw == "shaped":
            right = 0.4 + gain
            return np.where(rng.random(shape) < right, 1.2, -0.8), 2 * right - 0.8
        return gain - rng.gamma(4.0, 1.0, shape), gain - 4.0

    trials, hits, paired_hits = 600, 0, 0
    for _ in range(trials):
        (before, first), (after, second) = rewards(0.0), rewards(0.1)
        x, y = statistics.mean_at_k(before), statistics.mean_at_k(after)
        _, low, high = statistics.real_interval(x)
        hits += low <= first <= high
        _, low, high = statistics.real_interval(y - x)
        paired_hits += low <= second - first <= high
    assert 0.915 <= hits / trials <= 0.99
    assert 0.915 <= paired_hits / trials <= 0.99


def test_overall_interval_covers_the_mean_of_domains():
    rng = np.random.default_rng(1)
    rates, trials, hits = np.array([0.05, 0.5, 0.9]), 1000, 0
    for _ in range(trials):
        parts = [
            statistics.interval(rng.random(n) < p) for n, p in zip((30, 90, 60), rates, strict=True)
        ]
        _, low, high = statistics.mean_of(parts)
        hits += low <= rates.mean() <= high
    assert 0.925 <= hits / trials <= 0.98
