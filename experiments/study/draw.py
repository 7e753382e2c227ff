r"""Writes the tables of the runs that were made, and draws them.

    python -m experiments.study.draw
    python -m experiments.study.draw --page=/tmp/study.md more/results/*.jsonl

Reads the results that are named, by default all of `experiments/study/results`, and draws the
figures whose files they are. Makes no run, and leaves out what was not made.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from absl import app, flags

from experiments.study import early_warning, halving, pictures, records, summary
from experiments.study.figures import ALONE, FIGURES, MORE, SHORTER, SIX
from experiments.study.records import Record
from experiments.study.settings import SEEDS, Setting, told, value_told
from experiments.study.summary import Cell
from fiberjax.run.statistics import real_interval

ROOT = Path(__file__).parents[2]
PAGE = flags.DEFINE_string("page", str(ROOT / "docs" / "study_tables.md"), "What is written.")
IMAGES = flags.DEFINE_string(
    "images", "images/study", "Where pictures go, seen from the page's folder."
)

WARNINGS = 8
"""Metrics in a table of early warnings."""

OURS = SIX[5].method

GRID = (
    *("tuned", "rates", "own_rates", "updates", "staleness"),
    *("noise", "eight_bits", "experts", "length", "domains", "low_entropy"),
)
"""The figures that are axes: every method with tuned budgets at each place."""

DRIFTING = ("tuned", "rates", "own_rates", "momentum", "room")
"""The figures of 32 updates a batch that differ in gate, share, rate and momentum alone."""

TOO_HIGH = {"tuned": 3e-3, "room": 0.0, "staleness": 3e-3}
"""Figures of `levels` that are at rates too high -> the least such rate."""

HEAD = """# The runs of the study

Written by `python -m experiments.study.draw`; do not edit. `experiments/study/README.md` says what
a run is.

* *mean@k*, *pass@k*: on held-out prompts, mean over domains; after the last iteration, with
  Student's 95 % interval over seeds. One seed has none, and two say little.
* *KL*: k3 from the policy that sampled to the one being trained; the least and the largest of an
  iteration, nats a token.
* *open*: the share of a step that the gate left open, where it was recorded.
* *reward*: in training; the best iteration and the last, mean over seeds.
* *collapsed*: seeds that were not finite, or ended more than {lost:.0%} below their best
  evaluation.
"""


def page(names: Sequence[str], made: Sequence[Record], images: Path, folder: Path) -> str:
    """The page of figures, of each the runs that there are; their pictures are written.

    Args:
      names: of the figures.
      made: from `records.read`; those of other figures too, which they may share.
      images: where pictures go.
      folder: of the page, which links to them.
    """
    parts = [HEAD.format(lost=summary.LOST)]
    by_figure: dict[str, Sequence[Cell]] = {}
    drifting: list[Cell] = []
    high: list[list[Cell]] = []
    for name, figure in FIGURES.items():
        settings = [
            setting
            for stage in (1, 2)
            for setting in figure(stage, lambda setting: records.find(made, setting))
        ]
        cells = summary.cells(settings, made)
        if name in GRID:
            by_figure[name] = cells
        if name in DRIFTING and name in names:
            drifting += cells
        if name in TOO_HIGH and name in names:
            least = TOO_HIGH[name]
            high.append([cell for cell in cells if float(dict(cell.place)["η"]) >= least])
        if name in names and cells:
            told = (figure.__doc__ or "").partition("\n")[0]
            parts += [f"## {name}", told, table(cells)]
            parts += _pictures(name, cells, images, folder) if name != "budgets" else _chosen(made)
            parts += [*_missing(settings, cells), *warned(cells)]
    parts[1:1] = [*duels(by_figure), *levels(high), *_drift(drifting, images, folder)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def duels(grid: Mapping[str, Sequence[Cell]]) -> list[str]:
    """Ours against every other method over all axes, as Markdown; none where there is nothing."""
    methods = dict.fromkeys(cell.method for cells in grid.values() for cell in cells)
    found = {name: summary.duel(grid, OURS, name) for name in methods if name != OURS}
    lines = [
        "| against | places | runs in pairs | mean difference | ahead at | worst |",
        "|---|---|---|---|---|---|",
        *(
            f"| {name} | {of.places} | {of.pairs} "
            f"| {of.difference if of.places > 1 else f'{of.worst[0]:.3f}'} "
            f"| {of.won} of {of.places} | {of.worst[0]:+.3f} ({of.worst[1]}) |"
            for name, of in found.items()
            if of is not None
        ),
    ]
    told = (
        f"*{OURS}* less another method, of held-out mean@k at the end, at every place of "
        f"{', '.join(grid)} where both have runs of the same seeds: mean over places of the means "
        "over seeds, with Student's 95 % interval over places."
    )
    return ["## Over the grid", told, "\n".join(lines)] if len(lines) > 2 else []


def levels(high: Sequence[Sequence[Cell]]) -> list[str]:
    """What ours has over its trajectory level alone, and over GSPO, where the rate is too high.

    Over that level at a lower rate too: are levels worth more than the shorter step?
    """
    lines = []
    for other in (ALONE.method, SHORTER.method, MORE[0].method):
        gains = [gain for cells in high for gain in summary.pairs(cells, OURS, other)]
        if gains:
            lines.append(
                f"| {other} | {len(gains)} | {real_interval(np.array(gains))} "
                f"| {sum(gain > 0 for gain in gains)} |"
            )
    if not lines:
        return []
    told = (
        f"*{OURS}* less another method, a pair of runs of one seed at a time, of "
        f"{', '.join(TOO_HIGH)}; Student's 95 % interval over the pairs."
    )
    head = "| against | pairs | mean difference | ahead in |\n|---|---|---|---|\n"
    return ["## Where the rate is too high", told, head + "\n".join(lines)]


def _drift(cells: Sequence[Cell], images: Path, folder: Path) -> list[str]:
    """Where runs end against how far they drift; none without runs."""
    if not cells:
        return []
    path = os.path.relpath(pictures.drift_and_end(cells, images / "drift.png"), folder)
    told = f"Every run of {', '.join(DRIFTING)}: its end, against how far it drifted on the way."
    return ["## How far, and where it ends", told, f"![end against drift]({path})"]


def table(cells: Sequence[Cell]) -> str:
    """The numbers of a figure as Markdown, a line a cell."""
    places = list(dict.fromkeys(name for cell in cells for name, _ in cell.place))
    some = cells[0].runs[0]
    measures = [records.measure(some), records.measure(some, "pass@")]
    head = ["method", *places, "seeds", f"{measures[0]} before", "after", f"{measures[1]} after"]
    head += ["KL", "open", "reward best", "last", "collapsed"]
    lines = [head, ["---"] * len(head)]
    for cell in cells:
        row, place = summary.row(cell), dict(cell.place)
        value, low, high = row.after
        alone = len(cell.runs) == 1
        lines.append(
            [
                cell.method,
                *(value_told(place[name]) if name in place else "" for name in places),
                str(len(cell.runs)),
                f"{row.before:.3f}",
                f"{value:.3f}" if alone else f"{value:.3f} [{low:.3f}, {high:.3f}]",
                f"{row.passed:.3f}",
                "" if row.kl is None else f"{row.kl[0]:.2g} to {row.kl[1]:.2g}",
                "" if row.open_share is None else f"{row.open_share:.2f}",
                f"{row.reward[0]:.3f}",
                f"{row.reward[1]:.3f}",
                f"{row.collapsed} of {len(cell.runs)}" if row.collapsed else "no",
            ]
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def warned(cells: Sequence[Cell]) -> list[str]:
    """The metrics that told of a collapse first, as Markdown; none where there is none to tell."""
    runs: list[Record] = []
    for cell in cells:
        runs += [run for run in cell.runs if run not in runs]
    found = early_warning.warnings(runs)[:WARNINGS]
    if not found:
        return []
    lines = [
        "| metric | warned | at iteration | iterations before the reward fell | false alarms |",
        "|---|---|---|---|---|",
        *(
            f"| `{of.metric}` | {of.warned} of {of.of} | {of.iteration:g} | {of.lead:g} "
            f"| {of.false:.0%} |"
            for of in found
        ),
    ]
    fallen = sum(map(summary.collapsed, runs))
    told = (
        f"What left the band of the {len(runs) - fallen} runs that did not collapse first, in the "
        f"{fallen} that did (medians; false alarms: each healthy run against the others' band):"
    )
    return [told, "\n".join(lines)]


def _pictures(name: str, cells: Sequence[Cell], images: Path, folder: Path) -> list[str]:
    files = pictures.curves(cells, images / name)
    mapped = pictures.collapse_map(cells, images / f"{name}_map.png")
    titles = ["learning curves", "KL", "where it collapses"]
    return [
        f"![{name}: {title}]({os.path.relpath(path, folder)})"
        for title, path in zip(titles, [*files, mapped], strict=True)
        if path is not None
    ]


def _chosen(made: Sequence[Record]) -> list[str]:
    """The budgets that the tuning chose."""
    best = halving.chosen(lambda setting: records.find(made, setting))
    return [f"Chosen: {'; '.join(setting.method for setting in best.values())}."] if best else []


def _missing(settings: Sequence[Setting], cells: Sequence[Cell]) -> list[str]:
    """Says what has no run, and what has fewer than five seeds."""
    there = {(cell.method, cell.place) for cell in cells}
    absent: dict[str, list[str]] = {}
    for setting in settings:
        place = tuple(setting.axis.items())
        if (setting.method, place) not in there:
            places = absent.setdefault(setting.method, [])
            if place and told(place) not in places:
                places.append(told(place))
    lines = []
    if absent:
        names = [f"{method} ({'; '.join(at)})" if at else method for method, at in absent.items()]
        lines.append(f"No run yet: {'; '.join(names)}.")
    few = sum(len(cell.runs) < len(SEEDS) for cell in cells)
    if few:
        lines.append(f"{few} of {len(cells)} lines have fewer than {len(SEEDS)} seeds.")
    return lines


def main(argv: list[str]) -> None:
    """Reads, writes, draws."""
    named = [Path(name) for name in argv[1:]] or [Path(__file__).parent / "results"]
    made = records.read(*named)
    if not made:
        raise app.UsageError(f"no runs in {', '.join(map(str, named))}")
    names = [file.stem for file in records.files(*named)]
    out = Path(PAGE.value)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page(names, made, out.parent / IMAGES.value, out.parent), encoding="utf-8")
    print(f"{len(made)} runs in {out}")


if __name__ == "__main__":
    app.run(main)
