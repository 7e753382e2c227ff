"""Which metric tells of a collapse first: when each leaves the band of runs that do not collapse.

The band of a metric reaches from the least to the largest value of any iteration of a healthy run.
What a warning is worth shows in the healthy runs too: each is held against the band of the others.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments.study import summary
from experiments.study.records import Record

FALL = 0.1
"""The reward has begun to fall for good where it stays this part below its best so far."""

HEALTHY = 3
"""Runs that do not collapse, without which there is no band."""

OUTCOME = ("reward/", "curriculum/")
"""Metrics that are the collapse itself, or are set."""


class Warning(NamedTuple):
    """How a metric warns.

    Attributes:
      metric: its name.
      warned: collapsing runs in which it left the band, no later than the reward fell for good.
      of: collapsing runs that have it.
      iteration: at which it first left, in the median over the runs that it warned in.
      lead: iterations from there to the fall of the reward, in the median over the same.
      false: part of the healthy runs that leave the band of the others.
    """

    metric: str
    warned: int
    of: int
    iteration: float
    lead: float
    false: float


def warnings(runs: Sequence[Record]) -> list[Warning]:
    """The metrics that warn at all, the best first: most runs, then fewest false alarms, then lead.

    Args:
      runs: of one figure. There is nothing to tell without a collapse or with fewer than `HEALTHY`
        runs that have the metric and do not collapse.
    """
    healthy = [run for run in runs if not summary.collapsed(run)]
    fallen = [run for run in runs if summary.collapsed(run)]
    names = sorted({name for run in fallen for name in run["metrics"]})
    found = []
    for name in names:
        sound = [values for run in healthy if (values := summary.finite(run, name))]
        if name.startswith(OUTCOME) or len(sound) < HEALTHY:
            continue
        having = [run for run in fallen if name in run["metrics"]]
        exits = [(leaves(run["metrics"][name], sound), falls(run)) for run in having]
        warned = [(at, fall) for at, fall in exits if at is not None and at <= fall]
        if not warned:
            continue
        others = [sound[:i] + sound[i + 1 :] for i in range(len(sound))]
        false = [leaves(own, rest) is not None for own, rest in zip(sound, others, strict=True)]
        found.append(
            Warning(
                name,
                len(warned),
                len(having),
                float(np.median([at for at, _ in warned])),
                float(np.median([fall - at for at, fall in warned])),
                float(np.mean(false)),
            )
        )
    return sorted(found, key=lambda of: (-of.warned / of.of, of.false, -of.lead))


def leaves(values: Sequence[float | None], band: Sequence[Sequence[float]]) -> int | None:
    """The first iteration, from 1, at which a metric is outside the band or not finite.

    Args:
      values: of the metric by iteration; None where it is not finite.
      band: values by iteration of each run that the band is made of.
    """
    low, high = min(map(min, band)), max(map(max, band))
    for iteration, value in enumerate(values, start=1):
        if value is None or not low <= value <= high:
            return iteration
    return None


def falls(run: Record) -> int:
    """The iteration, from 1, from which the train reward stays `FALL` below its best so far.

    One after the last where it does not: the evaluation alone saw the collapse.
    """
    rewards = [-np.inf if value is None else value for value in run["metrics"]["reward/mean"]]
    low = np.array(rewards) < (1 - FALL) * np.maximum.accumulate(rewards)
    above = np.flatnonzero(~low)
    return int(above[-1]) + 2
