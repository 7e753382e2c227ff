import numpy as np
import pytest

from fiberjax.tasks.curriculum import (
    domain_probabilities,
    log_prompt_weights,
    prompt_weights,
    target_pass_rate,
    updated_pass_rate,
)

NAN = np.nan


def test_target_moves_linearly_and_stays_at_the_end():
    steps = (0, 25, 50, 100, 150)
    targets = [target_pass_rate(step, 100) for step in steps]
    np.testing.assert_allclose(targets, [0.8, 0.65, 0.5, 0.2, 0.2], rtol=1e-15)
    assert target_pass_rate(1, 4, start=0.0, end=1.0) == 0.25
    with pytest.raises(ValueError, match="total is 0"):
        target_pass_rate(0, 0)


def test_weights_by_hand():
    # (p − μ)/σ is −2, −1, 0, 1, then a solved and an untried prompt.
    weight = prompt_weights(np.array([0.2, 0.35, 0.5, 0.65, 1.0, NAN]), 0.5)
    e = np.exp
    np.testing.assert_allclose(weight, [e(-2.0), e(-0.5), 1, e(-0.5), 0, 1], rtol=1e-12)
    np.testing.assert_allclose(prompt_weights(np.array([0.0]), 0.8), 6.66e-7, rtol=1e-3)
    np.testing.assert_allclose(prompt_weights(np.array([0.5]), 0.8, sigma=0.3), e(-0.5))
    assert prompt_weights(np.array([1.0]), 1.0)[0] == 0.0
    # Far from a narrow target the weight underflows, its logarithm does not.
    assert log_prompt_weights(np.array([0.0]), 0.8, sigma=0.01)[0] == pytest.approx(-3200)
    with pytest.raises(ValueError, match="sigma is 0"):
        prompt_weights(np.array([0.5]), 0.5, sigma=0)
    with pytest.raises(ValueError, match=r"outside \[0, 1\]"):
        prompt_weights(np.array([1.5]), 0.5)


def test_domains_are_balanced_by_the_square_root_of_their_counts():
    np.testing.assert_allclose(domain_probabilities([1, 4, 9]), [1 / 6, 2 / 6, 3 / 6])
    np.testing.assert_allclose(domain_probabilities([16, 0]), [1, 0])
    np.testing.assert_allclose(
        domain_probabilities([1, 4, 9], [None, 0.4, None]), [0.15, 0.4, 0.45]
    )
    np.testing.assert_allclose(domain_probabilities([1, 4, 9], [0.2, 0.3, 0.5]), [0.2, 0.3, 0.5])
    np.testing.assert_allclose(domain_probabilities([1, 4, 9], [0.0, None, None]), [0, 0.4, 0.6])
    # What an exhausted domain leaves is spread in proportion.
    np.testing.assert_allclose(domain_probabilities([0, 4, 9], [0.5, None, None]), [0, 0.4, 0.6])
    np.testing.assert_allclose(domain_probabilities([1, 0], [0.25, None]), [1, 0])


@pytest.mark.parametrize(
    ("counts", "overrides", "message"),
    [
        ([0, 0], None, "no domain can be drawn from"),
        ([1, 1], [0.7, 0.7], "sum at most 1"),
        ([1, 1], [0.2, 0.2], "exactly 1 where every domain has one"),
        ([1, 1], [-0.1, None], r"values in \[0, 1\]"),
        ([0, 1], [None, 0.0], "no domain can be drawn from"),
        ([1, 1], [None], "1 overrides for 2 domains"),
        ([1, 1], [float("nan"), None], "not a number"),
    ],
)
def test_impossible_domain_probabilities(counts, overrides, message):
    with pytest.raises(ValueError, match=message):
        domain_probabilities(counts, overrides)


def test_pass_rates_follow_the_rollouts():
    before = np.array([NAN, 0.5, 0.25, NAN])
    passed = np.array([[1, 0, 0, 0], [1, 1, 1, 1], [0, 0, 1, 1]], bool)
    after = updated_pass_rate(before, np.array([0, 1, 0]), passed, rate=0.5)
    # Row 0 is seen for the first time, twice: 3 of 8. Row 1 goes half the way from .5 to 1.
    np.testing.assert_array_equal(after, [0.375, 0.75, 0.25, NAN])
    np.testing.assert_array_equal(before, [NAN, 0.5, 0.25, NAN])
    np.testing.assert_array_equal(
        updated_pass_rate(before, np.array([3]), np.array([[True]]), rate=1.0), [NAN, 0.5, 0.25, 1]
    )


@pytest.mark.parametrize(
    ("index", "passed", "rate", "message"),
    [
        ([0, 1], [[True]], 0.5, r"shape \(2,\) and passed \(1, 1\)"),
        ([0], [True], 0.5, r"shape \(1,\) and passed \(1,\)"),
        ([4], [[True]], 0.5, "outside the table of 4"),
        ([-1], [[True]], 0.5, "outside the table of 4"),
        ([0], [[0.5]], 0.5, "passed is float64, expected bool"),
        ([0], [[True]], 0.0, r"rate is 0\.0, expected a number in \(0, 1\]"),
        ([0], [[True]], 1.5, r"rate is 1\.5"),
    ],
)
def test_impossible_observations(index, passed, rate, message):
    with pytest.raises(ValueError, match=message):
        updated_pass_rate(np.full(4, NAN), np.array(index), np.array(passed), rate=rate)
