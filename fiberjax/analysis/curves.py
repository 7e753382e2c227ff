"""Pictures of runs over iterations, lines of several seeds each with the band between them.

A line's colour and dash are the same in every picture. Only what a picture is asked for is drawn;
each has its legend.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from fiberjax.analysis.runs import Line, RunFolder
from fiberjax.analysis.style import Picture, beyond_budget, grid
from fiberjax.analysis.warnings import budgets
from fiberjax.diagnostics import GLOBAL_REGIMES, LOCAL_REGIMES
from fiberjax.run import plots
from fiberjax.run.metrics import describe
from fiberjax.run.plots import COLOURS, DASHES, GREY, MARKERS, literal

WIDTH = 5.6
"""Inches, of one panel."""


def curve(lines: Sequence[Line], name: str, title: str, unit: str, scale: str) -> Picture | None:
    """One metric over iterations, every line in it; None where no line has it.

    Args:
      lines: of runs.
      name: the metric. One with limits of its own (`<name>/low`) shows them as bars where a line
        has a single run.
      title: heading.
      unit: of the vertical axis.
      scale: "linear" or "log".
    """
    picture, axes = grid(1, 1, width=WIDTH, height=3.4)
    drawn = [_curve(axes[0, 0], line, at, name, scale) for at, line in enumerate(lines)]
    if not any(drawn):
        return None
    plots.finish(axes[0, 0], title, unit, scale, along="iteration")
    _integers(axes[0, 0])
    if scale == "linear" and all((line.mean(name)[2] >= 0).all() for line in lines):
        axes[0, 0].set_ylim(bottom=0)
    plots.legend(axes[0, 0])
    return picture


def by_part(
    lines: Sequence[Line],
    parts: Sequence[tuple[str, str]],
    title: str,
    unit: str,
    *,
    limits: tuple[float, float] | None = None,
) -> Picture | None:
    """Several metrics of each line over iterations, a panel a line on one scale; None of none.

    Args:
      lines: of runs.
      parts: name of a metric and what it is called.
      title: heading.
      unit: of the vertical axis.
      limits: of the vertical axis; None fits the data from 0.
    """
    has = [line for line in lines if any(line.mean(name)[0].size for name, _ in parts)]
    if not has:
        return None
    picture, axes = panels(has)
    for at, line in zip(axes, has, strict=True):
        for index, (name, label) in enumerate(parts):
            step, mean, low, high = line.mean(name)
            if step.size:
                _band(at, step, mean, low, high, index, literal(label))
        plots.finish(at, _titled(title, line, len(lines)), unit, "linear", along="iteration")
        _integers(at)
        plots.legend(at)
    bottom, top = axes[0].get_ylim()  # Of all of them, once all have their data.
    lows = [line.mean(name)[2] for line in has for name, _ in parts]
    positive = all((low >= 0).all() for low in lows)
    axes[0].set_ylim(*(limits or (0.0 if positive else bottom, top)))
    return picture


def regimes(lines: Sequence[Line]) -> Picture | None:
    """Shares of trajectories by regime over iterations, global above local; None of none."""
    kinds = {"Global regimes": GLOBAL_REGIMES, "Local regimes": LOCAL_REGIMES}
    has = [line for line in lines if line.mean("gate/regime/G-I")[0].size]
    if not has:
        return None
    if len(has) == 1:
        picture, axes = grid(1, 2, width=9.2, height=3.2)
        axes = axes.T
    else:
        picture, axes = grid(2, len(has), width=4.6 * len(has), height=2.9)
    for column, line in enumerate(has):
        for row, (title, names) in enumerate(kinds.items()):
            at = axes[row, column]
            found = {f"gate/regime/{name}": line.mean(f"gate/regime/{name}") for name in names}
            series = {name: mean for name, (step, mean, _, _) in found.items() if step.size}
            if not series:
                at.set_axis_off()
                continue
            step = found[next(iter(series))][0]
            plots.stack(at, step, series)
            heading = _titled(title, line, len(lines))
            plots.finish(at, heading, "share of trajectories", "linear", "iteration")
            at.set_ylim(0, 1)
            at.set_xlim(step[0], max(step[-1], step[0] + 1))
            _integers(at)
            plots.legend(at)
    return picture


def drift(line: Line) -> Picture | None:
    """What a line's cells hold against their budgets, a panel a level; None without drift.

    What goes up stands above 0 and what goes down below it, each against its own budget (dashed),
    times `gate/budget_factor` where budgets were controlled. Without levels, or where it was
    not logged, there is the drift `S^±` of every level, which no budget bounds.
    """
    ends = ("/plus", "/minus")
    of = "gate/held/" if any(n.startswith("gate/held/") for n in line.names()) else "gate/channel/"
    names = [name for name in line.names() if name.startswith(of)]
    levels = tuple(dict.fromkeys(name.split("/")[2] for name in names if name.endswith(ends)))
    if not levels:
        return None
    levels = finest_first(levels, line.runs[0])
    limit = budgets(line.runs[0].config) if of == "gate/held/" else {}
    picture, axes = grid(1, len(levels), width=max(WIDTH, 4.0 * len(levels)), height=3.2)
    for at, level in zip(axes[0], levels, strict=True):
        for index, (sign, side) in enumerate((("plus", 1.0), ("minus", -1.0))):
            step, mean, low, high = line.mean(f"{of}{level}/{sign}")
            if not step.size:
                continue
            bounds = (low, high) if side > 0 else (-high, -low)
            _band(at, step, side * mean, *bounds, index, "upward" if side > 0 else "downward")
            if level in limit:
                factor = _factor(line, step)
                edge = side * limit[level][index] * factor
                label = "budget" if index == 0 else None
                at.plot(
                    step, edge, color="black", linewidth=1.2, linestyle=(0, (4, 2)), label=label
                )
        at.axhline(0, color=GREY, linewidth=0.8)
        plots.finish(at, f"Drift, {literal(level)}", "nats", "linear", along="iteration")
        if level in limit:
            beyond_budget(at, max(limit[level]))
        _integers(at)
        plots.legend(at)
    return picture


def finest_first(levels: Sequence[str], run: RunFolder) -> tuple[str, ...]:
    """Names of levels in the order of a run's hierarchy, others behind.

    Args:
      levels: as they are found.
      run: whose options name those above the trajectory.
    """
    named = run.config.get("levels") or ()
    above = [pair[0] for pair in named if isinstance(pair, list | tuple) and pair]
    order = ["token", *(["turn"] if "turn" in above else []), "trajectory", *above]
    return tuple(
        sorted(levels, key=lambda level: order.index(level) if level in order else len(order))
    )


def panels(lines: Sequence[Line]) -> tuple[Picture, list[Axes]]:
    """A picture with a panel a line, beside each other on one vertical scale."""
    across = min(3, len(lines))
    down = -(-len(lines) // across)
    width = WIDTH if across == 1 else 4.6 * across
    picture, axes = grid(down, across, width=width, height=3.3, sharey=True)
    flat = list(axes.flat)
    for empty in flat[len(lines) :]:
        empty.set_axis_off()
    return picture, flat[: len(lines)]


def unit_of(name: str) -> str:
    """The unit of a metric, for an axis."""
    return describe(name).unit or "value"


def _curve(axes: Axes, line: Line, index: int, name: str, scale: str) -> bool:
    step, mean, low, high = line.mean(name)
    if scale == "log":
        use = mean > 0
        step, mean, low, high = step[use], mean[use], low[use], high[use]
        # A seed at 0 has no place on the axis: the band ends a decade below the least mean.
        low = np.maximum(low, mean.min() / 10) if step.size else low
    if not step.size:
        return False
    _band(axes, step, mean, low, high, index, literal(line.label), scale=scale)
    if len(line.runs) == 1 and line.mean(f"{name}/low")[0].size == step.size:
        bounds = [line.mean(f"{name}/{end}")[1] for end in ("low", "high")]
        errors = np.maximum(np.array([mean - bounds[0], bounds[1] - mean]), 0)
        colour = COLOURS[index % len(COLOURS)]
        axes.errorbar(step, mean, errors, fmt="none", ecolor=colour, capsize=2.5, linewidth=1)
    return True


def _band(
    axes: Axes,
    step: np.ndarray,
    mean: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    index: int,
    label: str,
    *,
    scale: str = "linear",
) -> None:
    """A mean over seeds, smoothed over a twentieth of the run, and the band of all seeds."""
    colour, dash = COLOURS[index % len(COLOURS)], DASHES[index % len(DASHES)]
    if (high > low).any():
        axes.fill_between(step, low, high, color=colour, alpha=0.16, linewidth=0)
    smooth = plots.running_mean(mean, scale)
    if smooth is not mean and not (high > low).any():
        axes.plot(step, mean, color=colour, linewidth=0.7, alpha=0.35)
    mark = MARKERS[index % len(MARKERS)] if len(step) <= 12 else None
    axes.plot(
        *(step, smooth),
        color=colour,
        linestyle=dash,
        linewidth=1.8,
        marker=mark,
        markersize=4,
        label=label,
    )


def _factor(line: Line, step: np.ndarray) -> np.ndarray:
    at, factor, _, _ = line.mean("gate/budget_factor")
    return np.interp(step, at, factor) if at.size else np.ones(len(step))


def _titled(title: str, line: Line, count: int) -> str:
    return title if count == 1 else f"{title}: {literal(line.label)}"


def _integers(axes: Axes) -> None:
    """Room around a single iteration, where the axis would have fractions."""
    low, high = axes.get_xlim()
    if high - low < 1:
        middle = round((low + high) / 2)
        axes.set_xlim(middle - 1, middle + 1)
