"""Learning curves and collapse maps, as PNG files; no cell without a run is drawn.

Colours are Okabe and Ito's, told apart with every common colour blindness; dashes tell further
methods apart, and maps go from light to dark, so that both are legible in grey.
"""

import itertools
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import LogLocator

from experiments.study import summary
from experiments.study.settings import Place, told, value_told
from experiments.study.summary import Cell
from fiberjax.run.plots import HEADING, finish

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES: tuple[Any, ...] = ("-", "--", (0, (1, 1)))
MAP = LinearSegmentedColormap.from_list("study", ("#F4F8FC", "#9DC6E3", "#1B5E9B", "#0B2A50"))
GREY = "#BDBDBD"
DPI = 130

LETTERS = 14
"""Of a legend, in an inch."""

LEGEND_ROW = 0.2
"""Inches that a row of a legend takes."""

TOGETHER = 7
"""Methods that one panel holds; more get a panel each, with the others in grey behind."""

DRIFT = "actor/ppo_kl_k3"
DRIFT_TOLD = "KL (k3) from sampling to current, mean over iterations, nats / token (log)"

QUANTITIES = (
    ("learning", None, "Held-out mean@4", "mean over prompts", "linear"),
    ("kl", DRIFT, "KL (k3), sampling to current", "nats / token (log)", "log"),
)
"""What curves are drawn of: file, metric (None: the evaluations), heading, unit, scale."""


def curves(cells: Sequence[Cell], stem: Path) -> list[Path]:
    """Draws learning curves and those of the KL; the files `<stem>_learning.png`, `<stem>_kl.png`.

    A line is the mean over seeds as far as all of them have it, a band their range.
    """
    methods = list(dict.fromkeys(cell.method for cell in cells))
    places = list(dict.fromkeys(cell.place for cell in cells))
    styles = {
        method: (COLOURS[i % len(COLOURS)], DASHES[i // len(COLOURS) % len(DASHES)])
        for i, method in enumerate(methods)
    }
    apart = len(methods) > TOGETHER and len(places) == 1
    files = []
    for name, metric, heading, unit, scale in QUANTITIES:
        panels: list[tuple[str, list[Cell], list[Cell]]] = (
            [(m, [c for c in cells if c.method == m], list(cells)) for m in methods]
            if apart
            else [(told(place), [c for c in cells if c.place == place], []) for place in places]
        )
        figure, grid = _grid(len(panels), 4 if apart else _across(places))
        for axes, (title, front, behind) in zip(grid, panels, strict=True):
            for cell in behind:
                _line(axes, cell, metric, scale, GREY, "-", band=False)
            for cell in front:
                colour, dashes = (COLOURS[0], "-") if apart else styles[cell.method]
                _line(axes, cell, metric, scale, colour, dashes, band=True)
            finish(axes, title, unit, scale, "iteration")
        _align(grid, scale)
        figure.suptitle(f"{heading}; bands: range over seeds", x=0.01, ha="left", fontsize=11)
        shown: list[Any]
        if apart:
            shown = [
                grid[0].plot([], [], color=COLOURS[0], lw=1.8)[0],
                grid[0].plot([], [], color=GREY, lw=0.8)[0],
            ]
            names = ["the method of the panel", "all others"]
        else:
            by_name = {
                label: line
                for axes in grid
                for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
            }
            names = [method for method in methods if method in by_name]
            shown = [by_name[method] for method in names]
        # As many names beside each other as the figure is wide, and room for the rows of them.
        letters = max(map(len, names)) + 8
        columns = max(1, min(len(names), int(figure.get_figwidth() * LETTERS / letters)))
        rows = math.ceil(len(names) / columns)
        figure.set_figheight(figure.get_figheight() + LEGEND_ROW * max(rows - 2, 0))
        figure.legend(
            shown,
            names,
            loc="outside lower center",
            ncols=columns,
            frameon=False,
            fontsize=8.5,
        )
        files.append(_save(figure, stem.with_name(f"{stem.name}_{name}.png")))
    return files


def collapse_map(cells: Sequence[Cell], path: Path) -> Path | None:
    """Draws method × place: held-out mean@k at the end as colour and number; None without an axis.

    Blank where there is no run. A figure of two axes has a panel for every value of the second.
    A dagger marks cells in which a seed collapsed.
    """
    axis_names = list(dict.fromkeys(name for cell in cells for name, _ in cell.place))
    if not axis_names:
        return None
    methods = list(dict.fromkeys(cell.method for cell in cells))
    first, second = axis_names[0], axis_names[1:]
    values = sorted({dict(cell.place)[first] for cell in cells})
    panels = sorted({tuple((name, dict(cell.place)[name]) for name in second) for cell in cells})
    # Room for the methods' names beside the cells.
    width = max(1.9, max(map(len, methods)) / LETTERS) + 0.75 * len(values)
    figure, grid = _grid(len(panels), min(3, len(panels)), width, 1.1 + 0.38 * len(methods))
    image = None
    for axes, panel in zip(grid, panels, strict=True):
        table = np.full((len(methods), len(values)), np.nan)
        for cell in cells:
            place = dict(cell.place)
            if tuple((name, place[name]) for name in second) != panel:
                continue
            at = methods.index(cell.method), values.index(place[first])
            row = summary.row(cell)
            table[at] = row.after.value
            axes.text(
                at[1],
                at[0],
                f"{row.after.value:.2f}" + ("†" if row.collapsed else ""),
                ha="center",
                va="center",
                fontsize=9,
                color="white" if row.after.value > 0.5 else "black",
            )
        image = axes.imshow(np.ma.masked_invalid(table), cmap=MAP, vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(len(values)), [value_told(value) for value in values], fontsize=9)
        axes.set_yticks(range(len(methods)), methods, fontsize=9)
        axes.set_xlabel(first, fontsize=9)
        axes.set_title(told(panel), loc="left", **HEADING)
        axes.tick_params(length=0)
        # White lines between cells: a blank one is no cell.
        axes.set_xticks(np.arange(len(values) + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(len(methods) + 1) - 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=2)
        for side in axes.spines.values():
            side.set_visible(False)
        axes.tick_params(which="minor", length=0)
    assert image is not None
    bar = figure.colorbar(image, ax=grid, fraction=0.05, pad=0.02)
    bar.set_label("held-out mean@4 at the end\n† a seed collapsed; blank: no run", fontsize=8.5)
    bar.ax.tick_params(labelsize=8.5)
    return _save(figure, path)


def drift_and_end(cells: Sequence[Cell], path: Path) -> Path:
    """Draws where runs end against how far they drift: a point a run, a colour a method.

    Hollow points are runs whose optimizer has no momentum. Runs that did not drift, or never
    finitely, have no place on the axis.
    """
    methods = list(dict.fromkeys(cell.method for cell in cells))
    figure, (axes,) = _grid(1, 1, 7.0, 4.2)
    for method, colour in zip(methods, itertools.cycle(COLOURS), strict=False):
        runs = [run for cell in cells if cell.method == method for run in cell.runs]
        marker = "o" if methods.index(method) < len(COLOURS) else "s"
        for still in (False, True):
            points = [
                (statistics.fmean(drift), summary.evaluations(run)[-1])
                for run in runs
                if (run["setting"]["options"]["optimizer.b1"] == 0) == still
                and any(drift := summary.finite(run, DRIFT))
            ]
            axes.plot(
                *zip(*points, strict=True) if points else ((), ()),
                marker,
                color=colour,
                markerfacecolor="none" if still else colour,
                markersize=5.5,
                label=None if still else method,
            )
    finish(axes, "Held-out mean@4 at the end", "mean over prompts", "linear", DRIFT_TOLD)
    axes.set_xscale("log")
    axes.set_ylim(0, 1)
    axes.plot([], [], "o", color="black", markerfacecolor="none", label="no momentum")
    figure.legend(loc="outside right upper", frameon=False, fontsize=8.5)
    return _save(figure, path)


def _across(places: Sequence[Place]) -> int:
    """Panels in a row: of two axes the values of the second."""
    if len(places[0]) == 2:
        return len({place[1] for place in places})
    return min(3, math.ceil(math.sqrt(len(places))))


def _line(
    axes: Axes,
    cell: Cell,
    metric: str | None,
    scale: str,
    colour: str,
    dashes: Any,
    *,
    band: bool,
) -> None:
    """One cell: the mean over its seeds, and their range; a cross where a run was not finite."""
    at, values = summary.curve(cell.runs, metric)
    if scale == "log" and len(at):  # A k3 of 0 has no place there.
        use = (values > 0).all(axis=0)
        at, values = at[use], values[:, use]
    if not len(at):
        return
    middle = np.exp(np.log(values).mean(axis=0)) if scale == "log" else values.mean(axis=0)
    label = cell.method if band else "_behind"
    axes.plot(at, middle, color=colour, linestyle=dashes, lw=1.8 if band else 0.8, label=label)
    if band:
        axes.fill_between(
            at, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.15, linewidth=0
        )
        if any(run["collapsed"] is not None for run in cell.runs):
            axes.plot(at[-1], middle[-1], "x", color=colour, markersize=7)


def _align(grid: Sequence[Axes], scale: str) -> None:
    """The same limits for all panels."""
    limits = [axes.get_ylim() for axes in grid]
    low, high = min(low for low, _ in limits), max(high for _, high in limits)
    right = max(axes.get_xlim()[1] for axes in grid)
    for axes in grid:
        axes.set_xlim(0, right)
        axes.set_ylim((low, high) if scale == "log" else (0, max(high, 0.1)))
        if scale == "log":
            steps = (1.0, 2.0, 5.0) if high / low < 300 else (1.0,)
            axes.yaxis.set_major_locator(LogLocator(subs=steps))


def _grid(
    count: int, across: int, width: float | None = None, height: float | None = None
) -> tuple[Figure, list[Axes]]:
    """A figure with `count` axes in rows of `across`; one alone is larger."""
    across = max(across, 1)
    down = math.ceil(count / across)
    width = width or (5.6 if count == 1 else 3.4)
    height = height or (4.2 if count == 1 else 2.5)
    layout = ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.08)
    figure = Figure(figsize=(width * across + 0.9, height * down + 0.5), layout=layout)
    figure.set_facecolor("white")
    return figure, [figure.add_subplot(down, across, i + 1) for i in range(count)]


def _save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)
    return path
