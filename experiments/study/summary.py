"""What runs say together: the seeds of a method at one place of a figure, and their numbers."""

import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments.study import records
from experiments.study.records import Record
from experiments.study.settings import Place, Setting, told
from fiberjax.run.statistics import Interval, real_interval

LOST = 0.1
"""A run has collapsed that ends this part below its best evaluation, that of the start included."""


class Cell(NamedTuple):
    """The runs of a method at one place of a figure.

    Attributes:
      method: its name in the figure.
      place: where it stands on the figure's axes.
      runs: one a seed, at least one.
    """

    method: str
    place: Place
    runs: tuple[Record, ...]


class Row(NamedTuple):
    """A cell's numbers, over its seeds.

    Attributes:
      before: held-out mean@k at the start.
      after: the same at the end, with Student's 95 % interval; infinite limits for one seed.
      passed: held-out pass@k at the end.
      kl: least and largest k3 of an iteration, nats a token; None if never finite.
      open_share: mean over iterations; None where steps are whole.
      reward: mean over seeds of the best iteration's train reward, and of the last one's.
      collapsed: seeds that did.
    """

    before: float
    after: Interval
    passed: float
    kl: tuple[float, float] | None
    open_share: float | None
    reward: tuple[float, float]
    collapsed: int


def cells(settings: Sequence[Setting], made: Sequence[Record]) -> list[Cell]:
    """The cells of a figure that have runs, in its order; the newest run of each seed."""
    found: dict[tuple[str, Place], list[Record]] = {}
    for setting in settings:
        run = records.find(made, setting)
        runs = found.setdefault((setting.method, tuple(setting.axis.items())), [])
        if run is not None and run not in runs:
            runs.append(run)
    return [Cell(method, place, tuple(runs)) for (method, place), runs in found.items() if runs]


def row(cell: Cell) -> Row:
    """The numbers of a cell."""
    kl = [value for run in cell.runs for value in finite(run, "actor/ppo_kl_k3")]
    share = [value for run in cell.runs for value in finite(run, "actor/open_share")]
    rewards = [finite(run, "reward/mean") for run in cell.runs]
    return Row(
        before=statistics.fmean(evaluations(run)[0] for run in cell.runs),
        after=real_interval(np.array([evaluations(run)[-1] for run in cell.runs])),
        passed=statistics.fmean(records.last(run, "pass@") or 0.0 for run in cell.runs),
        kl=(min(kl), max(kl)) if kl else None,
        open_share=statistics.fmean(share) if share else None,
        reward=(
            statistics.fmean(max(values) for values in rewards),
            statistics.fmean(values[-1] for values in rewards),
        ),
        collapsed=sum(map(collapsed, cell.runs)),
    )


class Duel(NamedTuple):
    """One method against another over the places where both have runs of the same seeds.

    Attributes:
      difference: mean over places of the mean difference over seeds, of held-out mean@k at the end,
        with Student's 95 % interval over places.
      places: how many.
      pairs: runs of one place and seed.
      won: places where the mean difference is above 0.
      worst: the least mean difference of a place, and the place.
    """

    difference: Interval
    places: int
    pairs: int
    won: int
    worst: tuple[float, str]


def duel(grid: Mapping[str, Sequence[Cell]], ours: str, other: str) -> Duel | None:
    """One method against another; None where they never met.

    Args:
      grid: name of a figure -> its cells. A run that two figures share counts in the first.
      ours: a method.
      other: the one whose numbers are taken from it.
    """
    gains: dict[str, list[float]] = {}
    seen: list[Record] = []
    for figure, found in grid.items():
        by_place = {(cell.method, cell.place): _by_seed(cell) for cell in found}
        for (method, place), runs in by_place.items():
            others = by_place.get((other, place), {})
            if method != ours:
                continue
            name = ", ".join([figure, told(place)] if place else [figure])
            for seed in sorted(runs.keys() & others.keys()):
                if runs[seed] in seen:
                    continue
                seen.append(runs[seed])
                gain = evaluations(runs[seed])[-1] - evaluations(others[seed])[-1]
                gains.setdefault(name, []).append(gain)
    if not gains:
        return None
    means = {place: statistics.fmean(values) for place, values in gains.items()}
    worst = min(means, key=means.__getitem__)
    return Duel(
        difference=real_interval(np.array(list(means.values()))),
        places=len(means),
        pairs=sum(map(len, gains.values())),
        won=sum(value > 0 for value in means.values()),
        worst=(means[worst], worst),
    )


def pairs(cells: Sequence[Cell], ours: str, other: str) -> list[float]:
    """One method less another in held-out mean@k at the end, for every place and seed of both."""
    runs = {(cell.method, cell.place): _by_seed(cell) for cell in cells}
    return [
        evaluations(run)[-1] - evaluations(runs[other, place][seed])[-1]
        for (method, place), of in runs.items()
        if method == ours
        for seed, run in of.items()
        if seed in runs.get((other, place), {})
    ]


def _by_seed(cell: Cell) -> dict[int, Record]:
    return {run["setting"]["seed"]: run for run in cell.runs}


def collapsed(run: Record) -> bool:
    """Whether a run was not finite, or lost much of what it could; see `LOST`."""
    values = evaluations(run)
    return run["collapsed"] is not None or values[-1] < (1 - LOST) * max(values)


def evaluations(run: Record) -> list[float]:
    """Held-out mean@k, start first; 0 where parameters that are not finite answer nothing."""
    name = records.measure(run)
    return [0.0 if at[name] is None else at[name] for at in run["held_out"]]


def finite(run: Record, metric: str) -> list[float]:
    """The finite values of a metric by iteration; none where it was not recorded."""
    return [value for value in run["metrics"].get(metric, []) if value is not None]


def curve(runs: Sequence[Record], metric: str | None) -> tuple[np.ndarray, np.ndarray]:
    """A quantity by iteration as far as all runs have it; `([n], [runs, n])`.

    Args:
      runs: of one cell.
      metric: its name; None for the held-out mean@k.

    Returns:
      The iterations and the values; empty where a run does not have the metric.
    """
    by_run: list[Mapping[int, float]] = []
    for run in runs:
        if metric is None:
            at = [int(row["iteration"]) for row in run["held_out"]]
            by_run.append(dict(zip(at, evaluations(run), strict=True)))
        else:
            values = enumerate(run["metrics"].get(metric, []), start=1)
            by_run.append({at: value for at, value in values if value is not None})
    shared = sorted(set.intersection(*(set(of) for of in by_run)))
    return np.array(shared), np.array([[of[at] for at in shared] for of in by_run])
