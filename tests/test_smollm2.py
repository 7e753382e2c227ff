"""The prompts of the real model, and the table of its runs."""

from pathlib import Path

import numpy as np
import pytest

from experiments.smollm2 import make_prompts, report
from fiberjax.run.evaluation import compare


@pytest.mark.parametrize("domain", make_prompts.DOMAINS)
def test_prompts_differ_and_their_answers_are_right(domain):
    rows = make_prompts.made(domain, 50)
    assert len({row["prompt"] for row in rows}) == 50
    for row in rows:
        words = row["prompt"].replace("?", " ").replace(",", " ").split()
        numbers = [int(word) for word in words if word.isdecimal()]
        expected = numbers[-1] if domain == "last" else max(numbers)
        assert (row["answer"], row["domain"]) == (str(expected), domain)


def table(after: float):
    """Ten prompts of two domains each; none right before."""
    domain = np.repeat([0, 1], 10)
    right = np.arange(20) % 10 < 10 * after
    before, now = {"mean@1": np.zeros(20)}, {"mean@1": right.astype(float)}
    return compare(before, now, domain, names=("larger", "last"))


def test_the_report_has_a_row_a_run_and_the_mean_of_seeds(tmp_path):
    for name, after in (("grpo-0", 0.2), ("grpo-1", 0.4), ("silent_sequence-0", 0.8)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "evaluation.json").write_text(table(after).to_json())
    (tmp_path / "silent_sequence-1").mkdir()  # Not finished.
    text = report.to_markdown(report.read(tmp_path))
    lines = text.splitlines()
    assert lines[0] == "| gate, seed | larger | last | overall | difference overall |"
    assert lines[2].startswith("| `grpo`, 0 | 0.00 → 0.20 | 0.00 → 0.20 | 0.00 → 0.20 | +0.200 [")
    # Student's interval of .2 and .4: .3 ∓ 12.706 · .1.
    assert (
        "mean of 2** | 0.00 → 0.30 | 0.00 → 0.30 | 0.00 → 0.30 | +0.300 [-0.971, +1.571] |" in text
    )
    assert lines[-1] == (
        "| **`silent_sequence`, mean of 1** | 0.00 → 0.80 | 0.00 → 0.80 | 0.00 → 0.80 | +0.800 |"
    )
    assert len(lines) == 2 + 3 + 2


def test_the_table_goes_between_its_marks():
    page = f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n"
    once = report.between(page, "new")
    assert "old" not in once and once.startswith("before") and once.endswith("after\n")
    assert report.between(once, "new") == once
    with pytest.raises(ValueError, match="no lines"):
        report.between("a page", "new")
    with pytest.raises(ValueError, match="no finished run"):
        report.read(Path("nowhere"))
