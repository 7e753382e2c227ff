"""The best value of a metric, and when too many came after it."""

import math

import pytest

from fiberjax import options
from fiberjax.run.best import Best, EarlyStop

METRIC = "evaluation/mean@4/overall"


def observed(best, values):
    """Which values were the best when they came; iterations are counted from 1, None is no row."""
    rows = [{} if value is None else {METRIC: value} for value in values]
    return [best.observe(iteration, row) for iteration, row in enumerate(rows, start=1)]


def test_only_what_is_better_by_more_than_min_delta_is_the_best():
    values = [0.5, None, 0.5, 0.59, 0.61, 0.2, 0.72]
    best = Best(METRIC, "max", min_delta=0.1)
    assert observed(best, values) == [True, False, False, False, True, False, True]
    assert (best.iteration, best.value, best.since) == (7, 0.72, 0)
    # Rows without the metric count for nothing.
    assert observed(best, [None, 0.7, None]) == [False] * 3 and best.since == 1


def test_the_smaller_may_be_better_and_is_below_0_too():
    best = Best(METRIC, "min")
    assert observed(best, [-1.0, -1.0, -1.5, 2.0]) == [True, False, True, False]
    assert best.value == -1.5


def test_what_is_not_finite_is_never_the_best():
    best = Best(METRIC, "max")
    assert observed(best, [math.nan, math.inf, -3.0, math.inf, math.nan]) == [
        *(False, False, True, False, False)
    ]
    assert (best.iteration, best.since) == (3, 2)


def test_nothing_is_followed_without_a_metric():
    assert not Best("", "max").observe(1, {METRIC: 1.0})


def rule(**changed):
    values = {"metric": METRIC, "patience": 2, "min_delta": 0.0, "mode": "max"}
    return options.parse(options.Stop, values | changed, "config.stop")


def test_a_run_stops_when_patience_is_at_an_end():
    stop = EarlyStop(rule())
    observed(stop, [0.3, 0.4, 0.4])
    assert not stop.reached
    observed(stop, [None, None])
    assert not stop.reached
    observed(stop, [0.1])
    assert stop.reached
    assert str(stop) == (
        f"config.stop: {METRIC} was best at 0.4 after iteration 2, and 2 values since are not "
        "better by 0"
    )
    never = EarlyStop(rule())
    observed(never, [math.nan] * 2)
    assert never.reached and "was never finite" in str(never)


def test_a_rule_without_a_metric_never_stops():
    stop = EarlyStop(rule(metric=""))
    observed(stop, [1.0] * 9)
    assert not stop.reached


def test_the_state_is_that_of_its_rule():
    first = EarlyStop(rule())
    observed(first, [0.3, 0.2, 0.1])
    again = EarlyStop(rule())
    again.set_state(first.get_state())
    assert again.reached and str(again) == str(first)
    patient = EarlyStop(rule(patience=3))  # Counts on from where it was.
    patient.set_state(first.get_state())
    assert not patient.reached and patient.since == 2
    other = EarlyStop(rule(min_delta=0.1))
    other.set_state(first.get_state())
    assert other.iteration is None and not other.reached
    other.set_state(None)
    assert other.iteration is None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"patience": 0}, "patience must be positive; got 0"),
        ({"min_delta": -0.1}, "min_delta must be at least 0; got -0.1"),
        ({"mode": "best"}, "mode must be one of max, min; got 'best'"),
    ],
)
def test_bad_rules_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        rule(**changed)
