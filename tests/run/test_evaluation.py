"""The table of an evaluation: its rows, what it refuses, and how it is written."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from fiberjax.run import evaluation, statistics
from fiberjax.train.rollout import Sampler

NAMES = ("sort", "addition")


def _table():
    rng = np.random.default_rng(0)
    domain = np.repeat([0, 1], [100, 300])
    before = rng.random((400, 4)) < 0.3
    after = rng.random((400, 4)) < np.where(domain == 0, 0.8, 0.3)[:, None]
    measures = [
        {"mean@4": statistics.mean_at_k(c), "pass@4": statistics.pass_at_k(c, 4)}
        for c in (before, after)
    ]
    return evaluation.compare(*measures, domain, names=NAMES), measures, domain


def test_compare_gives_a_row_for_every_domain_and_the_mean_over_domains():
    table, measures, domain = _table()
    assert [(r.domain, r.measure, r.prompts) for r in table.rows] == [
        ("sort", "mean@4", 100),
        ("addition", "mean@4", 300),
        ("overall", "mean@4", 400),
        ("sort", "pass@4", 100),
        ("addition", "pass@4", 300),
        ("overall", "pass@4", 400),
    ]
    row = table.row("sort", "mean@4")
    assert row.before.value == pytest.approx(measures[0]["mean@4"][domain == 0].mean())
    assert row.difference.value == pytest.approx(row.after.value - row.before.value)
    assert row.difference.excludes_zero
    assert not table.row("addition", "mean@4").difference.excludes_zero
    overall = table.row("overall", "mean@4")
    parts = [table.row(name, "mean@4").after.value for name in NAMES]
    assert overall.after.value == pytest.approx(np.mean(parts))


def test_a_domain_without_prompts_has_no_row():
    values = {"mean@1": np.array([0.0, 1.0])}
    table = evaluation.compare(values, values, np.array([0, 2]), names=("a", "b", "c"))
    assert [row.domain for row in table.rows] == ["a", "c", "overall"]


def test_compare_refuses():
    values, domain = {"mean@1": np.array([0.0, 1.0])}, np.array([0, 1])
    with pytest.raises(ValueError, match="measures"):
        evaluation.compare(values, {"pass@1": values["mean@1"]}, domain, names=NAMES)
    with pytest.raises(ValueError, match="shape"):
        evaluation.compare(values, {"mean@1": np.ones(3)}, domain, names=NAMES)
    with pytest.raises(ValueError, match="index the 1 names"):
        evaluation.compare(values, values, domain, names=("a",))
    with pytest.raises(ValueError, match="overall"):
        evaluation.compare(values, values, domain, names=("a", "overall"))
    with pytest.raises(ValueError, match="same prompts"):
        statistics.difference(np.ones(3), np.ones(4))
    with pytest.raises(ValueError, match="no row"):
        _table()[0].row("sort", "mean@5")


def test_json_round_trip_is_exact():
    table = _table()[0]
    assert evaluation.EvaluationTable.from_json(table.to_json()) == table
    for text in ("", "[]", '{"rows": [{"domain": "a"}]}'):
        with pytest.raises(ValueError, match="not an evaluation table"):
            evaluation.EvaluationTable.from_json(text)


def test_markdown_marks_changes_that_exclude_zero():
    lines = _table()[0].to_markdown().splitlines()
    assert len(lines) == 2 + 6
    assert {line.count("|") for line in lines} == {7}
    assert "**+0." in lines[2] and "**" not in lines[3]


def test_printed_table_fits_80_columns():
    stream = io.StringIO()
    _table()[0].print(Console(file=stream, width=80))
    text = stream.getvalue()
    assert "…" not in text and max(map(len, text.splitlines())) <= 80
    assert "addition" in text and "overall" in text and "+0." in text


class Watched:
    """Stands in for a sampler: gives rewards out of a list, and notes what it was asked."""

    def __init__(self, monkeypatch, reward):
        self.reads, self.draws = 0, []
        self.reward = reward
        watched = self

        def read(self, params):
            watched.reads += 1
            return params, watched.reads

        def draw(self, params, prompts, *, samples, stream, step):
            watched.draws.append((params, len(prompts.prompts)))
            rows = len(prompts.prompts) * samples
            return SimpleNamespace(reward=np.resize(np.array(reward, np.float32), rows))

        monkeypatch.setattr(Sampler, "read", read)
        monkeypatch.setattr(Sampler, "__call__", draw)


@pytest.mark.parametrize("phase", ["evaluation", "profile"])
def test_parameters_are_read_once_for_all_batches(build, monkeypatch, phase):
    built = build(evaluation__batch=4, curriculum__profile_samples=1)
    watched = Watched(monkeypatch, [1.0])
    if phase == "evaluation":
        evaluation.evaluate(built, "params", "held out")
        expected = [4] * 3  # 3 domains × 4 prompts.
    else:
        evaluation.profile(built, "params", built.prompt_stream())
        expected = [8] * 15  # 3 domains × 40 prompts.
    assert watched.reads == 1
    assert watched.draws == [(("params", 1), size) for size in expected]


@pytest.mark.parametrize(
    ("threshold", "passed"), [(1.0, [0, 1, 0]), (0.9, [0, 1, 1]), (0.5, [1, 1, 1])]
)
def test_rewards_are_any_numbers_and_pass_at_the_threshold(build, monkeypatch, threshold, passed):
    built = build(tasks__pass_threshold=threshold, evaluation__samples=2)
    # In float32, in which 0.9 lies below 0.9 in float64.
    Watched(monkeypatch, [-3.0, 0.5, 7.0, 0.0, 0.9, -0.1])
    measured = evaluation.evaluate(built, None, "held out").by_name
    # Every batch of four prompts begins anew.
    each = [0, 1, 2, 0] * 3
    np.testing.assert_allclose(measured["mean@2"], np.array([-1.25, 3.5, 0.4])[each], rtol=1e-6)
    np.testing.assert_array_equal(measured["pass@2"], np.array(passed)[each])


def test_the_curriculum_counts_what_passes(build, monkeypatch):
    built = build(curriculum__profile_samples=2, tasks__pass_threshold=0.5)
    Watched(monkeypatch, [-3.0, 0.5, 7.0, 0.0])
    stream = built.prompt_stream()
    evaluation.profile(built, None, stream)
    np.testing.assert_array_equal(stream.pass_rate, 0.5)


def test_measures_beyond_0_and_1_have_intervals_without_bounds():
    rng = np.random.default_rng(0)
    domain = np.repeat([0, 1], [40, 60])
    before, after = ({"mean@4": x, "pass@4": x.copy()} for x in (rng.random(100), rng.random(100)))
    # One value beyond the bounds, of the other domain and afterwards, decides for all of a measure.
    after["mean@4"][99] = -0.5
    table = evaluation.compare(before, after, domain, names=NAMES)
    x, y = (measures["mean@4"][:40] for measures in (before, after))
    row = table.row("sort", "mean@4")
    assert row.before == statistics.real_interval(x)
    assert row.after == statistics.real_interval(y)
    assert row.difference == statistics.real_interval(y - x)
    row = table.row("sort", "pass@4")
    assert row.before == statistics.interval(x) and row.after == statistics.interval(y)
    assert row.difference == statistics.difference(x, y)
    assert evaluation.EvaluationTable.from_json(table.to_json()) == table
