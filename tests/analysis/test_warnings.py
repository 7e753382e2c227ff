"""Every warning is given for a series that deserves it, and for none like it that does not."""

import re
from pathlib import Path

import numpy as np
import pytest

import fiberjax
from fiberjax.analysis.warnings import CHECKS, budgets, warnings

BUDGET = {"gate.levels.trajectory.budget": [0.1, 0.05]}
PLUS, MINUS = "gate/held/trajectory/plus", "gate/held/trajectory/minus"
OVERALL = "evaluation/mean@4/overall"


def columns(**given):
    """Metrics of as many iterations as their values, from 1; names with `/` as a dict in `of`."""
    values = {name: np.array(of, float) for name, of in given.pop("of", {}).items()}
    length = max(map(len, values.values()), default=0)
    assert all(len(of) == length for of in values.values())
    return {"step": np.arange(1, length + 1)} | values


def held_out(ends, reward, high=0.05):
    """Held-out means at the first and at some later iterations, and the reward of training."""
    known = np.array([np.nan if value is None else value for value in ends], float)
    of = {OVERALL: known, f"{OVERALL}/low": known - 0.05, f"{OVERALL}/high": known + high}
    return of | {"reward/mean": reward}


# By name: metrics that deserve the warning with the iteration that it names, and some that do not.
CASES = {
    "updates that were not finite": (
        ({"actor/skipped_updates": [0, 0, 2, 0]}, 3),
        [{"actor/skipped_updates": [0, 0, 0, 0]}],
    ),
    "no gradient": (
        ({"actor/grad_norm": [1, 0, 0, 0, 2]}, 2),
        [{"actor/grad_norm": [1, 0, 0, 2, 0, 0]}],
    ),
    "a domain that is never paid": (
        ({"reward/sort": [0, 0, 0], "reward/mean": [0.2, 0.3, 0.4]}, 1),
        [{"reward/sort": [0, 0.1, 0]}, {"reward/mean": [0, 0, 0], "reward/std": [0, 0, 0]}],
    ),
    "reward fell": (
        ({"reward/mean": [0.1, 0.6, 0.7, 0.8, 0.2, 0.1, 0.1, 0.1]}, 4),
        [{"reward/mean": [0.1, 0.6, 0.7, 0.8, 0.5, 0.4, 0.4, 0.5]}, {"reward/mean": [0.0] * 8}],
    ),
    "no spread in groups": (
        ({"frac_reward_zero_std": [0.1] * 9 + [0.9, 0.8, 0.8]}, 10),
        [{"frac_reward_zero_std": [0.9] * 9 + [0.9, 0.7, 0.5]}],
    ),
    "entropy falling fast": (
        ({"actor/entropy": [1.0, 0.9, 0.4, 0.4]}, 3),
        [
            {"actor/entropy": list(np.geomspace(1.0, 0.1, 25))},  # As far, but slowly.
            {"actor/entropy": [0.09, 0.01, 0.01]},
        ],
    ),
    "a budget exceeded for long": (
        ({PLUS: [0, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2]}, 2),
        [
            {PLUS: [0.2, 0.2, 0.2, 0.2, 0.05, 0.2, 0.2]},
            {PLUS: [0.2] * 6, "gate/budget_factor": [3.0] * 6},  # Of wider budgets.
            {"gate/held/group/plus": [9.0] * 6},  # Of a level without one.
            {"gate/channel/trajectory/plus": [9.0] * 6},  # Which no budget bounds.
        ],
    ),
    "far from the policy that sampled": (
        ({"actor/ppo_kl_k3": [0.01, 0.01, 0.2, 0.2, 0.3]}, 3),
        [{"actor/ppo_kl_k3": [0.5, 0.01, 0.02, 0.02]}],
    ),
    "small effective sample size": (
        ({"is_ratio/effective_sample_size/trajectory": [0.9] + [0.1] * 5}, 2),
        [{"is_ratio/effective_sample_size/trajectory": [0.9] + [0.1, 0.1, 0.4] * 2}],
    ),
    "the gate is shut": (
        ({"actor/pg_clipfrac": [0.1, 0.96, 0.97, 0.98]}, 2),
        [{"actor/pg_clipfrac": [0.98, 0.98, 0.5, 0.98]}],
    ),
    "sampler and trainer disagree": (
        ({"mismatch/log_prob_abs_mean": [0.001, 0.03, 0.05, 0.04]}, 2),
        [
            {"mismatch/log_prob_abs_mean": [0.9, 0.008, 0.01, 0.01]},
            {"mismatch/log_prob_abs_mean": [0.001, 0.03, 0.05, 0.04], "rollout/lag": [0, 1, 1, 1]},
        ],
    ),
    "many responses are cut off": (
        ({"response_length/clip_ratio": [0.0, 0.4, 0.3, 0.3]}, 2),
        [{"response_length/clip_ratio": [0.9, 0.2, 0.1, 0.0]}],
    ),
    "held-out falls while training rises": (
        (held_out([0.3, None, 0.6, None, None, 0.4], [0.2, 0.3, 0.4, 0.6, 0.7, 0.8]), 3),
        [
            held_out([0.3, None, 0.6, None, None, 0.58], [0.2, 0.3, 0.4, 0.6, 0.7, 0.8]),
            held_out([0.3, None, 0.6, None, None, 0.4], [0.9, 0.8, 0.6, 0.4, 0.3, 0.2]),
        ],
    ),
    "rewards that failed": (
        ({"verifier/failed": [0, 3, 0, 1]}, 2),
        [{"verifier/failed": [0, 0, 0, 0]}],
    ),
}


def names(of, options=BUDGET):
    return {one.check.name: one.seen for one in warnings(columns(of=of), options)}


def test_every_check_has_a_case():
    assert [check.name for check in CHECKS] == list(CASES)
    assert all(check.cause and check.remedy for check in CHECKS)


@pytest.mark.parametrize("name", CASES)
def test_a_warning_is_given_where_it_is_deserved_and_nowhere_else(name):
    (triggering, iteration), sound = CASES[name]
    found = names(triggering)
    assert name in found and found[name].iteration == iteration and found[name].text
    for of in sound:
        assert name not in names(of)
    # Neither of a run that has just begun, nor of one that does not have the metric.
    assert names({}) == {} and names({"reward/mean": [0.5]}) == {}
    values = {key: np.full(6, np.nan) for key in triggering}
    assert names(values) == {}


def test_downward_drift_has_a_budget_of_its_own():
    assert "a budget exceeded for long" in names({MINUS: [0.07] * 5})
    assert "a budget exceeded for long" not in names({PLUS: [0.07] * 5})
    assert "a budget exceeded for long" not in names({MINUS: [0.07] * 5}, options={})
    for budget in (0.2, [0.2]):
        found = budgets({"gate.levels.group.budget": budget, "gate.epsilon": 0.1})
        assert found == {"group": (0.2, 0.2)}
    assert budgets(BUDGET | {"gate.budget_scale": "noise"}) == {}


def test_every_warning_has_its_section_in_the_guide():
    guide = Path(fiberjax.__path__[0]).parent / "docs" / "troubleshooting.md"
    text = guide.read_text(encoding="utf-8")
    headings = {match.replace("`", "") for match in re.findall(r"(?m)^### (.*)$", text)}
    for check in CHECKS:
        assert check.section in headings, check.name
        assert f"| {check.name} |" in text, check.name
