import io
import itertools

import numpy as np
import pytest
from rich.console import Console

from fiberjax import evaluation

NAMES = ("sort", "addition")


def test_mean_at_k():
    correct = np.array([[True, False, False, True], [False] * 4])
    np.testing.assert_array_equal(evaluation.mean_at_k(correct), [0.5, 0.0])


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_pass_at_k_is_the_mean_over_all_choices_of_k_samples(n):
    right = np.arange(n + 1)
    correct = np.arange(n) < right[:, None]
    for k in range(1, n + 1):
        choices = list(itertools.combinations(range(n), k))
        expected = [np.mean([row[list(c)].any() for c in choices]) for row in correct]
        np.testing.assert_allclose(evaluation.pass_at_k(correct, k), expected, rtol=1e-12)


def test_pass_at_k_survives_many_samples():
    correct = np.zeros((2, 20_000))
    correct[0, :10_000] = 1
    correct[1, 0] = 1
    np.testing.assert_allclose(evaluation.pass_at_k(correct, 10_000), [1.0, 0.5])


def test_pass_at_1_is_mean_at_k():
    correct = np.random.default_rng(0).random((50, 6)) < 0.4
    np.testing.assert_allclose(
        evaluation.pass_at_k(correct, 1), evaluation.mean_at_k(correct), rtol=1e-12
    )


def test_pass_at_k_refuses():
    with pytest.raises(ValueError, match="1 <= k <= 4"):
        evaluation.pass_at_k(np.ones((3, 4)), 5)
    with pytest.raises(ValueError, match="k = 0"):
        evaluation.pass_at_k(np.ones((3, 4)), 0)
    with pytest.raises(ValueError, match="0 or 1"):
        evaluation.pass_at_k(np.full((3, 4), 0.5), 1)


@pytest.mark.parametrize(
    ("answers", "correct", "expected"),
    [
        (["7", "7", "8"], [1, 1, 0], 1.0),
        (["8", "8", "7"], [0, 0, 1], 0.0),
        (["7", "8", "9", "9", "7"], [1, 0, 0, 0, 1], 0.5),
        (["1", "2", "3"], [0, 1, 0], 1 / 3),
        (["", "", "", "7"], [0, 0, 0, 1], 1.0),
        (["", ""], [0, 0], 0.0),
        # Two right answers that differ (countdown) split their votes.
        (["1+2", "2+1", "4", "4"], [1, 1, 0, 0], 0.0),
    ],
)
def test_maj_at_k(answers, correct, expected):
    assert evaluation.maj_at_k([answers], np.array([correct])) == pytest.approx([expected])


def test_scores_are_checked():
    with pytest.raises(ValueError, match=r"\[prompts, k\]"):
        evaluation.mean_at_k(np.ones(4))
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        evaluation.mean_at_k(np.full((2, 2), 1.5))
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        evaluation.interval(np.array([0.1, np.nan]))
    with pytest.raises(ValueError, match="answers"):
        evaluation.maj_at_k([["1"]], np.ones((1, 2)))


def test_interval_of_zeros_and_ones_is_wilsons():
    # Published: 81 of 263 (Newcombe 1998, Table I, method 3).
    estimate = evaluation.interval(np.arange(263) < 81)
    np.testing.assert_allclose(estimate, [81 / 263, 0.2553, 0.3662], atol=5e-5)
    low, high = evaluation.interval(np.zeros(20))[1:]
    assert low == 0 and high == pytest.approx(0.1611, abs=5e-5)


def test_difference_is_newcombes():
    # Both right 36, gained 2, lost 12, neither 0: his method without continuity correction.
    before = np.repeat([1, 0, 1, 0], [36, 2, 12, 0])
    after = np.repeat([1, 1, 0, 0], [36, 2, 12, 0])
    estimate = evaluation.difference(before, after)
    x, y = evaluation.interval(before), evaluation.interval(after)
    rho = np.corrcoef(before, after)[0, 1]
    a, b = y.value - y.low, x.high - x.value
    assert estimate.value == pytest.approx(-0.2)
    assert estimate.low == pytest.approx(-0.2 - np.sqrt(a * a - 2 * rho * a * b + b * b))
    swapped = evaluation.difference(after, before)
    np.testing.assert_allclose(swapped, [0.2, -estimate.high, -estimate.low])


def test_pairing_narrows_the_interval():
    rng = np.random.default_rng(0)
    before = rng.random(400)
    after = np.clip(before + 0.05, 0, 1)
    paired = evaluation.difference(before, after)
    unpaired = evaluation.difference(before, rng.permutation(after))
    assert paired.high - paired.low < 0.2 * (unpaired.high - unpaired.low)


def test_nothing_changed_still_has_a_width():
    estimate = evaluation.difference(np.ones(30), np.ones(30))
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
        _, low, high = evaluation.interval(before)
        hits += low <= first <= high
        _, low, high = evaluation.difference(before, after)
        paired_hits += low <= second - first <= high
    # Four standard errors of a 95 % rate below, and not absurdly wide.
    assert 0.915 <= hits / trials <= 0.99
    assert 0.915 <= paired_hits / trials <= 0.99


def test_overall_interval_covers_the_mean_of_domains():
    rng = np.random.default_rng(1)
    rates, trials, hits = np.array([0.05, 0.5, 0.9]), 1000, 0
    for _ in range(trials):
        parts = [
            evaluation.interval(rng.random(n) < p) for n, p in zip((30, 90, 60), rates, strict=True)
        ]
        _, low, high = evaluation.mean_of(parts)
        hits += low <= rates.mean() <= high
    assert 0.925 <= hits / trials <= 0.98


def _table():
    rng = np.random.default_rng(0)
    domain = np.repeat([0, 1], [100, 300])
    before = rng.random((400, 4)) < 0.3
    after = rng.random((400, 4)) < np.where(domain == 0, 0.8, 0.3)[:, None]
    scores = [
        {"mean@4": evaluation.mean_at_k(c), "pass@4": evaluation.pass_at_k(c, 4)}
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
    summary = evaluation.summarize(scores[1]["mean@4"], domain, names=NAMES)
    assert summary == {r.domain: r.after for r in table.rows if r.measure == "mean@4"}


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
        evaluation.difference(np.ones(3), np.ones(4))
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
