"""Pictures of replays, sweeps and unfoldings, as PNG files.

Colours are those of `run.plots`, told apart with every common colour blindness, and dashes, markers
or written numbers say the same again; maps go from light to dark. Every panel has its legend, or
names on its axis.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator

from fiberjax.analysis.drift import SIDES
from fiberjax.analysis.style import beyond_budget
from fiberjax.run.plots import (
    COLOURS,
    DASHES,
    GREY,
    HEADING,
    MARKERS,
    finish,
    legend,
    literal,
)

# What is drawn imports this module, and so has no type here.
Replay: TypeAlias = Any
Sweep: TypeAlias = Any
Unfold: TypeAlias = Any
DPI = 130

_PLAIN = FuncFormatter(lambda value, _: f"{value:g}")
"""Numbers of an axis, each written whole."""

_MAP = LinearSegmentedColormap.from_list(
    "cosine", ("#8C3A00", "#D55E00", "#F7F7F7", "#56A0D3", "#0B2A50")
)

_BARS: tuple[tuple[str, str, str], ...] = (
    ("coefficient_norm", "Coefficients over ungated", "‖c‖ / ‖c°‖"),
    ("cosine", "Coefficients along ungated", "cosine"),
    ("gradient_norm", "Gradient over ungated", "‖g‖ / ‖g°‖"),
    ("gradient_cosine", "Gradient along ungated", "cosine"),
    ("effective_tokens", "Tokens that carry it", "share of tokens"),
    ("vanished", "Tokens without a push", "share of those pushed"),
    ("turned", "Tokens pushed the other way", "share of those pushed"),
)
_BEYOND = 3.0
"""Coefficients over those of a log ratio of 0: further ones stand at the edge, as open marks."""

_OF_NORMS = ("coefficient_norm", "gradient_norm")


def plot_replay(replay: Replay, folder: Path) -> tuple[Path, ...]:
    """Draws what differs between objectives; the files.

    `objectives.png`: the columns of the table, a bar an objective. `clipped.png`: tokens clipped by
    level. `cosines.png`: of any two objectives. `weights.png`, where log ratios differ from 0: what
    each objective makes of a token of each log ratio. `steps.png`, with a policy: KL and reward
    after the step.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [
        _save(_objectives(replay), folder / "objectives.png"),
        _save(_clipped(replay), folder / "clipped.png"),
        _save(_cosines(replay), folder / "cosines.png"),
    ]
    mask = np.asarray(replay.batch.layout.mask)
    if np.abs((replay.log_prob - replay.batch.old_log_prob)[mask]).max(initial=0.0) > 1e-5:
        files.append(_save(_weights(replay), folder / "weights.png"))
    if replay.gradient_cosines is not None:
        files.append(_save(_steps(replay), folder / "steps.png"))
    return tuple(files)


def plot_sweep(sweep: Sweep, folder: Path) -> tuple[Path, ...]:
    """Draws a sweep as `sweep.png`: what is left of the gradient, and what is clipped; the file."""
    folder.mkdir(parents=True, exist_ok=True)
    rows, x = sweep.rows, sweep.values[:, 0]
    order = np.argsort(x)
    through = sweep.replay.gradient_cosines is not None
    figure, grid = _grid(2 + through, 2 + through, width=4.4, height=3.5)
    whole = sweep.replay.rows[0]
    kept = {
        "‖c‖ / ‖c°‖": [row.coefficient_norm / max(whole.coefficient_norm, 1e-30) for row in rows],
        "cosine of c, c°": [row.cosine for row in rows],
        "tokens that carry it": [row.effective_tokens for row in rows],
    }
    if through:
        norm = max(whole.gradient_norm or 0.0, 1e-30)
        kept["‖g‖ / ‖g°‖"] = [(row.gradient_norm or 0.0) / norm for row in rows]
        kept["cosine of g, g°"] = [row.gradient_cosine or 0.0 for row in rows]
    _lines(grid[0], x[order], {n: np.array(of)[order] for n, of in kept.items()})
    _name(grid[0], "What is left of the gradient", "of ungated, or share", sweep)
    levels = dict.fromkeys(level for row in rows for level in row.clipped if level != "any")
    any_level = np.array([row.clipped["any"] for row in rows])[order]
    grid[1].plot(x[order], any_level, color="black", lw=3.5, alpha=0.25, label="any of them")
    clipped = {level: np.array([row.clipped[level] for row in rows])[order] for level in levels}
    _lines(grid[1], x[order], clipped)
    _name(grid[1], "Tokens clipped, by level", "share of tokens", sweep)
    _from_nothing(grid[1], any_level)
    if through:
        after = {"KL after the step": np.array([row.kl for row in rows], np.float64)[order]}
        _lines(grid[2], x[order], after)
        grid[2].axhline(sweep.replay.before.kl, color=GREY, linestyle="--", label="KL before")
        _name(grid[2], "A step of one length", "nats / token", sweep)
        grid[2].yaxis.set_major_formatter(_PLAIN)
    for axes in grid:
        legend(axes, across=3)
    return (_save(figure, folder / "sweep.png"),)


def plot_unfold(unfold: Unfold, folder: Path) -> tuple[Path, ...]:
    """Draws an unfolding as `unfold.png`: a panel a level, drift against budget; the file."""
    folder.mkdir(parents=True, exist_ok=True)
    series = unfold.series
    count = len(unfold.drift) + 3
    figure, grid = _grid(count, min(count, 3), width=4.4, height=3.4)
    steps = np.arange(len(series["kl"]))
    for axes, (level, of) in zip(grid, unfold.drift.items(), strict=False):
        for side in range(2):
            colour, sign = COLOURS[side], 1 - 2 * side
            for name, dashes in (("largest", "-"), ("median", "--")):
                label = f"{name}, {SIDES[side]}"
                # Below 0 a cell has drifted the other way.
                shown = sign * np.maximum(of[name][:, side], 0)
                axes.plot(steps, shown, color=colour, linestyle=dashes, lw=1.8, label=label)
            budget = of["budget"][:, side]
            if np.isfinite(budget).any():
                name = "budget" if side == 0 else "_budget"
                axes.plot(steps, sign * budget, color="black", ls=(0, (1, 1)), lw=1.6, label=name)
        axes.axhline(0, color=GREY, linewidth=0.7)
        finish(axes, f"Drift of each {literal(level)}", "nats, down below 0", "linear")
        axes.yaxis.set_major_formatter(_PLAIN)
        budgets = of["budget"][np.isfinite(of["budget"])]
        if budgets.size:
            beyond_budget(axes, float(budgets.max()))
        legend(axes, across=3)
    left = grid[len(unfold.drift) :]
    levels = {n.removeprefix("clipped/"): of for n, of in series.items() if n.startswith("clipped")}
    any_level = levels.pop("any")
    left[0].plot(steps, any_level, color="black", lw=3.5, alpha=0.25, label="any of them")
    _lines(left[0], steps, levels, markers=False)
    finish(left[0], "Tokens clipped, by level", "share of tokens", "linear")
    _from_nothing(left[0], any_level)
    _lines(left[1], steps, {"KL (k3), old to current": series["kl"]}, markers=False)
    finish(left[1], "KL from the policy that drew", "nats / token", "linear")
    left[1].yaxis.set_major_formatter(_PLAIN)
    shares = {"share of step open": series["open_share"], "ESS, trajectories": series["effective"]}
    if "reward" in series:
        shares["reward, reweighted"] = series["reward"]
    _lines(left[2], steps, shares, markers=False)
    finish(left[2], "Open share, reward, sample size", "share, or reward", "linear")
    for axes in left:
        legend(axes, across=3)
    space = "a table of logits" if unfold.space == "logits" else "the policy's parameters"
    title = f"{literal(unfold.label)}, step by step on one batch, in {space}"
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    return (_save(figure, folder / "unfold.png"),)


def _objectives(replay: Replay) -> Figure:
    """Bars of the table's columns, an objective a row; grey is ungated."""
    through = replay.gradient_cosines is not None
    panels = [panel for panel in _BARS if through or not panel[0].startswith("gradient")]
    whole, rows = replay.rows[0], replay.rows
    across = 4 if through else 3
    height = 1.1 + 0.3 * len(rows)
    figure, grid = _grid(len(panels), across, width=3.6, height=height, names=True)
    place = np.arange(len(rows))
    for index, (axes, (name, title, unit)) in enumerate(zip(grid, panels, strict=True)):
        values = np.array([getattr(row, name) for row in rows], np.float64)
        if name in _OF_NORMS:
            values = values / max(float(getattr(whole, name)), 1e-30)
        colours = [GREY, *[COLOURS[0]] * (len(rows) - 1)]
        axes.barh(place, values, color=colours, height=0.66)
        for at, value in zip(place, values, strict=True):
            side = "left" if value >= 0 else "right"
            axes.annotate(
                f"{value:.2g}",
                (value, at),
                xytext=(3 if value >= 0 else -3, 0),
                textcoords="offset points",
                va="center",
                ha=side,
                fontsize=8,
            )
        labelled = index % across == 0
        _finish_bars(axes, title, unit, [row.label for row in rows] if labelled else None)
        low, high = min(values.min(), 0.0), max(values.max(), 0.0)
        room = 0.16 * max(high - low, 1e-9)
        axes.set_xlim(low - (1.3 * room if low < 0 else 0), high + room)
    return figure


def _clipped(replay: Replay) -> Figure:
    """Bars by level: which one clips, of each objective that has it."""
    rows = replay.rows[1:]
    order = ("token", *replay.batch.layout.levels)
    found = dict.fromkeys(level for row in rows for level in row.clipped if level != "any")
    levels = sorted(found, key=lambda of: order.index(of) if of in order else len(order))
    figure, (axes,) = _grid(
        1, 1, width=7.0, height=1.3 + 0.2 * sum(len(row.clipped) for row in rows)
    )
    middles, at = [], 0.0
    for row in rows:
        own = [level for level in levels if level in row.clipped]
        middles.append(at + (len(own) - 1) / 2)
        for level in own:
            k, value = levels.index(level), row.clipped[level]
            axes.barh(
                at,
                value,
                0.85,
                color=COLOURS[k % len(COLOURS)],
                hatch=(None, "//", "..", "xx", "\\\\")[k % 5],
                edgecolor="white",
            )
            axes.text(value + 0.006, at, f"{value:.2g}", va="center", fontsize=7.5)
            at += 1
        at += 0.7
    for k, level in enumerate(levels):  # In the order of levels, whichever objective came first.
        hatch = (None, "//", "..", "xx", "\\\\")[k % 5]
        axes.barh(
            0, 0, color=COLOURS[k % len(COLOURS)], hatch=hatch, edgecolor="white", label=level
        )
    _finish_bars(axes, "Tokens clipped, by level", "share of tokens", [row.label for row in rows])
    axes.set_yticks(middles, [_broken(literal(row.label)) for row in rows], fontsize=8.5)
    axes.set_xlim(0, 1.06)
    legend(axes, across=5)
    return figure


def _cosines(replay: Replay) -> Figure:
    """The cosines of any two objectives, written out: of coefficients and through the policy."""
    tables = [("Cosine of coefficients", replay.cosines)]
    if replay.gradient_cosines is not None:
        tables.append(("Cosine of gradients, through the policy", replay.gradient_cosines))
    labels = [_broken(literal(label)) for label in replay.labels]
    count = len(labels)
    figure, grid = _grid(
        len(tables), len(tables), width=2.6 + 0.52 * count, height=1.9 + 0.46 * count
    )
    for axes, (title, table) in zip(grid, tables, strict=True):
        image = axes.imshow(table, vmin=-1, vmax=1, cmap=_MAP)
        for i in range(count):
            for j in range(count):
                dark = abs(table[i, j]) > 0.6
                colour = "white" if dark else "black"
                text = f"{table[i, j]:.2f}"
                axes.text(j, i, text, ha="center", va="center", fontsize=8, color=colour)
        axes.set_xticks(range(count), labels, rotation=40, ha="right", fontsize=8.5)
        axes.set_yticks(range(count), labels, fontsize=8.5)
        axes.set_title(title, loc="left", **HEADING)
        axes.tick_params(length=0)
        for side in axes.spines.values():
            side.set_visible(False)
        bar = figure.colorbar(image, ax=axes, shrink=0.8, aspect=25)
        bar.ax.tick_params(labelsize=8)
        bar.set_label("cosine", fontsize=8.5)
    return figure


def _weights(replay: Replay) -> Figure:
    """What each objective makes of a token: its coefficient over that of a log ratio of 0."""
    mask = np.asarray(replay.batch.layout.mask)
    drift = (replay.log_prob - replay.batch.old_log_prob)[mask].astype(np.float64)
    credit = np.asarray(replay.batch.credit)[mask].astype(np.float64)
    plain = replay.coefficients[replay.labels[0]][mask].astype(np.float64)
    pushed = (credit != 0) & (plain != 0)
    at_zero = plain[pushed] / np.exp(np.clip(drift[pushed], -30, 30))  # μ Â
    labels = replay.labels[1:]
    figure, grid = _grid(len(labels), min(len(labels), 3), width=4.2, height=3.2)
    reach = float(np.quantile(np.abs(drift[pushed]), 0.995))
    weights = {
        label: replay.coefficients[label][mask].astype(np.float64)[pushed] / at_zero
        for label in labels
    }
    everything = np.concatenate(list(weights.values()))
    low, high = np.quantile(everything, [0.005, 0.995])
    low, high = max(min(low, -0.1), -_BEYOND), min(max(high, 1.5), _BEYOND)
    line = np.linspace(-reach, reach, 100)
    for axes, label in zip(grid, labels, strict=True):
        axes.plot(line, np.exp(line), color=GREY, linestyle="--", lw=1.2, label="ungated")
        for index, (sign, name) in enumerate(((1, "Â > 0"), (-1, "Â < 0"))):
            of = np.sign(credit[pushed]) == sign
            x, y = drift[pushed][of], weights[label][of]
            beyond = (y < low) | (y > high)
            look: dict[str, Any] = {"color": COLOURS[index], "marker": MARKERS[2 * index]}
            axes.scatter(x[~beyond], y[~beyond], s=9, alpha=0.55, lw=0, label=name, **look)
            if beyond.any():
                look = {"edgecolors": COLOURS[index], "marker": MARKERS[2 * index]}
                at = np.clip(y[beyond], low, high)
                label_ = f"{name}, to {y[np.abs(y).argmax()]:.2g}"
                axes.scatter(x[beyond], at, s=22, facecolors="none", label=label_, **look)
        finish(axes, literal(label), "c / (μ Â)", "linear", along="log ratio of the token, nats")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
        axes.set_xlim(-1.05 * reach, 1.05 * reach)
        pad = 0.05 * (high - low)
        axes.set_ylim(low - pad, high + pad)
        legend(axes, across=3)
    return figure


def _steps(replay: Replay) -> Figure:
    """Bars of the KL and the reward after a step of one length along each objective's gradient."""
    before, rows = replay.before, replay.rows
    panels = [("KL (k3), old to moved policy", "nats / token", "kl", before.kl)]
    if before.reward is not None:
        panels.append(("Reward, importance-weighted", "reward", "reward", before.reward))
    title, unit = "Effective sample size of the weights", "share of trajectories"
    panels.append((title, unit, "effective", before.effective))
    height = 1.2 + 0.3 * len(rows)
    figure, grid = _grid(len(panels), len(panels), width=3.9, height=height, names=True)
    place = np.arange(len(rows))
    for index, (axes, (title, unit, name, start)) in enumerate(zip(grid, panels, strict=True)):
        values = np.array([getattr(row, name) for row in rows], np.float64)
        axes.barh(place, values, color=[GREY, *[COLOURS[0]] * (len(rows) - 1)], height=0.66)
        wide = 1.18 * max(values.max(), start, 1e-9)
        for at, value in zip(place, values, strict=True):
            # Behind the line where the line would run through it.
            end = start if value < start < value + 0.15 * wide else value
            axes.annotate(
                *(f"{value:.3g}", (end, at)),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
        labels = [row.label for row in rows] if index == 0 else None
        _finish_bars(axes, title, unit, labels)
        axes.axvline(start, color=COLOURS[1], linestyle="--", lw=1.6, label="before the step")
        axes.set_xlim(0, wide)
        legend(axes, across=3)
    figure.suptitle(
        "After a step of one length along each gradient", fontsize=11, x=0.01, ha="left"
    )
    return figure


def _grid(
    count: int, across: int, *, width: float, height: float, names: bool = False
) -> tuple[Figure, list[Axes]]:
    """A figure with so many axes in rows; `names` leaves room for those at the left."""
    down = math.ceil(count / across)
    layout = ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.08)
    figure = Figure(figsize=(width * across + 1.2 * names, height * down), layout=layout)
    figure.set_facecolor("white")
    return figure, [figure.add_subplot(down, across, i + 1) for i in range(count)]


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=DPI)
    return path


def _lines(axes: Axes, x: np.ndarray, series: Any, *, markers: bool = True) -> None:
    """Lines of a name each, told apart by colour and by dashes or markers."""
    for index, (name, values) in enumerate(series.items()):
        axes.plot(
            x,
            values,
            color=COLOURS[index % len(COLOURS)],
            linestyle=DASHES[index % len(DASHES)],
            marker=MARKERS[index % len(MARKERS)] if markers else None,
            markersize=4.5,
            linewidth=1.7,
            label=literal(name),
        )


def _from_nothing(axes: Axes, shares: np.ndarray) -> None:
    """The axis of shares from 0 to the largest: a few clipped tokens must be seen."""
    top = max(float(np.max(shares)), 1e-3)
    axes.set_ylim(-0.03 * top, 1.08 * top)


def _name(axes: Axes, title: str, unit: str, sweep: Sweep) -> None:
    """Names an axes of a sweep, whose budgets run along a logarithmic axis where they are far."""
    values = sweep.values[:, 0]
    same = np.array_equal(values, sweep.values[:, 1])
    along = f"{sweep.budget} budget of {literal(sweep.label)}" + ("" if same else ", plus")
    finish(axes, title, unit, "linear", along=along)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    if values.min() > 0 and values.max() / values.min() > 8:
        axes.set_xscale("log")


def _finish_bars(axes: Axes, title: str, unit: str, labels: Sequence[str] | None) -> None:
    finish(axes, title, "", "linear", along=unit)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4))
    count = len(axes.patches) if labels is None else len(labels)
    axes.set_yticks(range(count), ["" for _ in range(count)])
    if labels is not None:
        axes.set_yticks(range(count), [_broken(literal(label)) for label in labels], fontsize=8.5)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.axvline(0, color="black", linewidth=0.8)


def _broken(label: str) -> str:
    """A long label on several lines, at most 22 letters each where words allow."""
    lines = [""]
    for word in label.split(" "):
        if lines[-1] and len(lines[-1]) + len(word) > 22:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)
