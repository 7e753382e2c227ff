"""The table of an evaluation: its rows, what it refuses, and how it is written."""

import io

import numpy as np
import pytest
from rich.console import Console

from fiberjax.run import evaluation, statistics

NAMES = ("sort", "addition")


def _table():
    rng = np.random.default_rng(0)
    domain = np.repeat([0, 1], [100, 300])
    before = rng.random((400, 4)) < 0.3
    after = rng.random((400, 4)) < np.where(domain == 0, 0.8, 0.3)[:, None]
    scores = [
        {"mean@4": statistics.mean_at_k(c), "pass@4": statistics.pass_at_k(c, 4)}
        for c in (before, after)
    ]
    return evaluation.compare(*scores, domain, names=NAMES), scores, domain


def test_compare_gives_a_row_for_every_domain_and_the_mean_over_domains():
    table, scores, domain = _table()
    assert [(r.domain, r.measure, r.prompts) for r in table.rows] == [
        ("sort", "mean@4", 100),
        ("addition", "mean@4", 300),
        ("overall", "mean@4", 400),
        ("sort", "pass@4", 100),
        ("addition", "pass@4", 300),
        ("overall", "pass@4", 400),
    ]
    row = table.row("sort", "mean@4")
    assert row.before.value == pytest.approx(scores[0]["mean@4"][domain == 0].mean())
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
