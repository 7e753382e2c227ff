"""Draws the runs of a folder over each other, and puts their held-out table into a page.

    python experiments/smollm2/report.py --runs=runs/smollm2 --page=docs/real_model.md \
        --picture=docs/images/real_model.png

A run's folder is called by its gate and its seed, `grpo-0`; one without an evaluation after
training is left out.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fiberjax.run import plots
from fiberjax.run.evaluation import OVERALL, EvaluationRow, EvaluationTable
from fiberjax.run.statistics import Interval, real_interval

BEGIN, END = "<!-- runs -->", "<!-- end of runs -->"
DRAWN = ("reward/mean", "actor/entropy", "actor/open_share", "actor/ppo_kl_k3")


def main() -> None:
    """Reads, draws and writes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--page", type=Path)
    parser.add_argument("--picture", type=Path)
    given = parser.parse_args()
    tables = read(given.runs)
    text = to_markdown(tables)
    print(text)
    if given.page:
        given.page.write_text(between(given.page.read_text(), text))
    if given.picture:
        runs = {name: given.runs / name for name in tables}
        plots.plot_compare(runs, DRAWN, given.picture)


def read(folder: Path) -> dict[str, EvaluationTable]:
    """The evaluations of finished runs, by the name of their folders.

    Raises:
      ValueError: there is none.
    """
    found = {
        path.parent.name: EvaluationTable.from_json(path.read_text())
        for path in sorted(folder.glob("*-*/evaluation.json"))
    }
    if not found:
        raise ValueError(f"{folder} holds no finished run: no */evaluation.json")
    return found


def to_markdown(tables: Mapping[str, EvaluationTable]) -> str:
    """A row a run, then for each gate the mean of its seeds."""
    (measure,) = next(iter(tables.values())).measures
    names = [row.domain for row in next(iter(tables.values())).rows]
    lines = [
        f"| gate, seed | {' | '.join(names)} | difference overall |",
        "|---" * (2 + len(names)) + "|",
    ]
    by_gate: dict[str, list[EvaluationTable]] = {}
    for name, table in tables.items():
        gate, _, seed = name.rpartition("-")
        by_gate.setdefault(gate, []).append(table)
        rows = [table.row(domain, measure) for domain in names]
        cells = [f"{row.before.value:.2f} → {row.after.value:.2f}" for row in rows]
        change = table.row(OVERALL, measure).difference
        lines.append(f"| `{gate}`, {seed} | {' | '.join(cells)} | {signed(change)} |")
    for gate, of in by_gate.items():
        cells = [_mean([table.row(domain, measure) for table in of]) for domain in names]
        change = real_interval(
            np.array([table.row(OVERALL, measure).difference.value for table in of])
        )
        shown = signed(change) if len(of) > 1 else f"{change.value:+.3f}"
        lines.append(f"| **`{gate}`, mean of {len(of)}** | {' | '.join(cells)} | {shown} |")
    return "\n".join(lines)


def _mean(rows: Sequence[EvaluationRow]) -> str:
    before, after = (
        np.mean([getattr(row, which).value for row in rows]) for which in ("before", "after")
    )
    return f"{before:.2f} → {after:.2f}"


def signed(interval: Interval) -> str:
    """A difference with its limits."""
    return f"{interval.value:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def between(page: str, text: str) -> str:
    """The page with the text between its marks.

    Raises:
      ValueError: the page has no such marks.
    """
    if BEGIN not in page or END not in page:
        raise ValueError(f"the page has no lines {BEGIN} and {END} to write between")
    head, rest = page.split(BEGIN, 1)
    return f"{head}{BEGIN}\n\n{text}\n\n{END}{rest.split(END, 1)[1]}"


if __name__ == "__main__":
    main()
