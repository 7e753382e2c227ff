"""Pictures of runs and evaluations, as PNG files: one run, several side by side, before and after.

Only matplotlib's objects are used, no pyplot, so nothing global is touched. Metrics a run lacks are
left out of its panels, and panels without any are not drawn.
"""

import fnmatch
import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from fiberjax import storage
from fiberjax.diagnostics import GLOBAL_REGIMES, LOCAL_REGIMES
from fiberjax.run.evaluation import OVERALL, EvaluationTable
from fiberjax.run.metrics import describe, read_metrics
from fiberjax.run.shown import visible
from fiberjax.run.statistics import Interval

# Okabe and Ito's colours, told apart with every common colour blindness; yellow, too pale for
# lines on white, is left out. Dashes tell series apart in print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES: tuple[str | tuple[int, tuple[float, ...]], ...] = (
    *("-", "--", (0, (1, 1.2)), "-."),
    (0, (5, 1.5, 1, 1.5, 1, 1.5)),
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
# From light to dark, so that order reads without colour too.
ORDERED = ("#DCE9F5", "#9DC6E3", "#4F94C7", "#1B5E9B", "#0B2A50")
_REGIME_COLOURS = dict(zip(GLOBAL_REGIMES, ORDERED, strict=True)) | dict(
    zip(LOCAL_REGIMES, ORDERED[::2], strict=True)
)
GREY = "#6F6F6F"
_SHARE_COLOURS = {"untried": "#D9D9D9"} | dict(
    zip(("never", "seldom", "often", "always"), ORDERED[::-1], strict=False)
)
_STACKED = _REGIME_COLOURS | _SHARE_COLOURS
HEADING: dict[str, Any] = {"fontsize": 10.5, "fontweight": "bold"}
_DPI = 130


class Panel(NamedTuple):
    """One picture of a run: which metrics, and how they are drawn.

    Attributes:
      file: name of the PNG, without its ending.
      title: heading.
      unit: label of the vertical axis.
      names: metrics in order; `*` stands for anything.
      kind: lines; a range, whose names are (middle, low, high); areas stacked on each other; or a
        curve of few points, each with the interval from `<name>/low` to `<name>/high`.
      scale: of the vertical axis.
      without: metrics that a pattern leaves out.
      guide: a metric drawn as a thin dashed line for orientation.
    """

    file: str
    title: str
    unit: str
    names: tuple[str, ...]
    kind: Literal["lines", "range", "stack", "curve"] = "lines"
    scale: Literal["linear", "log"] = "linear"
    without: tuple[str, ...] = ()
    guide: str | None = None


PANELS = (
    Panel("reward", "Reward", "mean reward", ("reward/mean",)),
    Panel(
        "pass_rate",
        "Pass rate by domain",
        "probability",
        ("reward/*",),
        without=("reward/mean", "reward/std"),
        guide="curriculum/target",
    ),
    Panel("curve_mean", "Held-out, mean@k", "mean reward", ("evaluation/mean@*/*",), kind="curve"),
    Panel("curve_pass", "Held-out, pass@k", "probability", ("evaluation/pass@*/*",), kind="curve"),
    Panel(
        "curriculum",
        "Prompts by last pass rate",
        "fraction of prompts",
        tuple(f"curriculum/share/{name}" for name in _SHARE_COLOURS),
        kind="stack",
    ),
    Panel(
        "response_length",
        "Response length",
        "tokens",
        ("response_length/mean", "response_length/max"),
    ),
    Panel("turns", "Episodes with a reply", "fraction", ("turns/replied",)),
    Panel("entropy", "Policy entropy", "nats / token", ("actor/entropy",)),
    Panel(
        "kl", "KL, sampling to current policy", "nats / token", ("actor/ppo_kl", "actor/ppo_kl_k3")
    ),
    Panel("kl_reference", "KL, current to reference", "nats / token", ("actor/kl_reference",)),
    Panel(
        "importance_ratio",
        "Importance ratio: mean, range",
        "ratio (log scale)",
        ("is_ratio/mean", "is_ratio/min", "is_ratio/max"),
        kind="range",
        scale="log",
    ),
    Panel(
        "effective_sample_size",
        "Effective sample size by level",
        "fraction of tokens or cells",
        ("is_ratio/effective_sample_size/*",),
    ),
    Panel("grad_norm", "Gradient norm", "norm (log scale)", ("actor/grad_norm",), scale="log"),
    Panel(
        "grad_momentum_cosine",
        "Gradient along momentum",
        "cosine",
        ("actor/grad_momentum_cosine",),
    ),
    Panel("learning_rate", "Learning rate", "learning rate", ("actor/learning_rate",)),
    Panel(
        "clip_fraction", "Clipped tokens by level", "fraction of tokens", ("gate/clip_fraction/*",)
    ),
    Panel(
        "quadrants",
        "Clipped tokens by advantage and drift",
        "fraction of a quadrant",
        ("gate/quadrant/*",),
    ),
    Panel("stopped_updates", "Updates beyond the target KL", "count", ("actor/stopped_updates",)),
    Panel("open_share", "Share of a step left open", "fraction of a step", ("actor/open_share",)),
    Panel(
        "budget_factor",
        "Budgets over those set",
        "factor (log)",
        ("gate/budget_factor",),
        scale="log",
    ),
    Panel(
        "step_factor", "Steps over those set", "factor (log)", ("actor/step_factor",), scale="log"
    ),
    Panel("fiber_residual", "Fiber residual", "nats / token", ("gate/fiber_residual",)),
    Panel(
        "regimes_global",
        "Global regimes",
        "fraction of trajectories",
        tuple(f"gate/regime/{name}" for name in GLOBAL_REGIMES),
        kind="stack",
    ),
    Panel(
        "regimes_local",
        "Local regimes",
        "fraction of trajectories",
        tuple(f"gate/regime/{name}" for name in LOCAL_REGIMES),
        kind="stack",
    ),
    Panel("zero_std", "Groups without signal", "fraction of groups", ("frac_reward_zero_std",)),
    Panel("resample", "Prompts drawn for one kept", "ratio", ("resample/drawn_per_kept",)),
    Panel("batch_fill", "Batch filled with groups", "fraction of groups", ("batch/fill",)),
    Panel(
        "mismatch",
        "Sampler against trainer",
        "|Δ log-prob|, nats (log)",
        ("mismatch/log_prob_abs_mean", "mismatch/log_prob_abs_max"),
        scale="log",
    ),
)
"""What `plot_run` draws, in the order of the overview."""

NOT_DRAWN: Mapping[str, str] = {
    "actor/pg_loss": "near 0 whatever a policy learns: advantages of a group sum to 0",
    "actor/update_norm": "follows the learning rate where the optimizer normalises",
    "actor/pg_clipfrac": "the largest and more of gate/clip_fraction/<level>, which are drawn",
    "actor/drift_over_one": "0 until a run falls apart: seen with the range of is_ratio",
    "reward/std": "follows from the mean where rewards are 0 or 1",
    "verifier/failed": "0 but where a reward runs in workers and fails, which is printed",
    "credit/mean": "reward/mean is drawn; the rest is what length and truncation cost",
    "credit/left_out": "response_length/clip_ratio, where cut responses are left out",
    "response_length/clip_ratio": "seen where the longest response meets the window",
    "resample/prompts_drawn": "seen in resample/drawn_per_kept",
    "resample/prompts_kept": "seen in batch/fill",
    "resample/updates_skipped": "0 but where batch/fill is near 0",
    "batch/reward/mean": "what was kept, which says nothing of the policy: reward/mean does",
    "turns/mean": "seen in turns/replied",
    "turns/replies_cut": "0 where config.turns.reply is wide enough",
    "turns/failed": "0 but where an environment runs in workers and fails, which is printed",
    "rollout/wasted_steps": "of the sampler's loop, not of the policy",
    "rollout/lag": "set by rollout.lag",
    "mismatch/effective_sample_size": "1 where the sampler is the trainer's policy",
    "rollout/kept_mass/mean": "set by top_k and top_p; 1 without them",
    "rollout/kept_mass/min": "set by top_k and top_p; 1 without them",
    "gate/held/<level>/<sign>": "drawn against the budgets in reports",
    "gate/channel/<level>/<sign>": "nats to set budgets by: read for a level, not followed",
    "gate/channel/<level>/<sign>/median": "as the mean",
    "gate/channel/<level>/<sign>/p99": "as the mean",
    "actor/skipped_updates": "0 but where a run falls apart, which is said as it happens",
    "gate/log_ratio_non_finite": "0 of every update that is made",
    "timing/rollout_s": "of the machine, not of the policy",
    "timing/update_s": "of the machine, not of the policy",
    "timing/total_s": "of the machine, not of the policy",
    "timing/compile_s": "of the machine, not of the policy",
    "timing/watching_s": "of the machine, not of the policy",
    "perf/tokens_per_s": "of the machine, not of the policy",
}
"""The metrics without a panel, and why."""


def plot_run(
    metrics_path: str | os.PathLike[str], out_dir: str | os.PathLike[str]
) -> tuple[Path, ...]:
    """Draws a run: a PNG for each panel it has metrics for, and `overview.png` with all of them.

    Thin pale lines are the values, thick ones their running means.

    Args:
      metrics_path: a `metrics.jsonl` or the run folder that holds it.
      out_dir: where to write, made where missing.

    Returns:
      The files written, `overview.png` last.

    Raises:
      ValueError: the metrics are missing, corrupt, or hold nothing that a panel shows.
    """
    columns = read_metrics(metrics_path)
    panels = [panel for panel in PANELS if has(panel, columns)]
    if not panels:
        raise ValueError(f"{metrics_path} holds no metrics to plot yet")
    folder = storage.place(out_dir)
    files = []
    for panel in panels:
        figure, (axes,) = _grid(1, 1, width=6.4, height=4.0)
        draw(axes, panel, columns)
        files.append(_save(figure, folder / f"{panel.file}.png"))
    figure, grid = _grid(len(panels), min(4, math.ceil(math.sqrt(len(panels)))))
    for axes, panel in zip(grid, panels, strict=True):
        draw(axes, panel, columns)
    return (*files, _save(figure, folder / "overview.png"))


def plot_compare(
    runs: Mapping[str, str | os.PathLike[str]],
    keys: str | Sequence[str],
    out: str | os.PathLike[str],
) -> Path:
    """Draws metrics of several runs over each other, one panel a metric; returns the file.

    Args:
      runs: metrics files or run folders by the label to show them under.
      keys: the name of a metric, or several.
      out: the PNG to write.

    Raises:
      ValueError: there is no run or key, a file is missing, or no run has one of the metrics.
    """
    names = (keys,) if isinstance(keys, str) else tuple(keys)
    if not runs or not names:
        raise ValueError(f"expected runs and keys to compare, got {list(runs)} and {list(names)}")
    columns = {label: read_metrics(path) for label, path in runs.items()}
    for name in names:
        if not any(name in run for run in columns.values()):
            raise ValueError(f"none of the runs {list(runs)} has a metric {name!r}")
    across = 2 if len(names) == 4 else min(len(names), 3)
    figure, grid = _grid(len(names), across, width=5.2, height=3.6)
    for axes, name in zip(grid, names, strict=True):
        scale = next((p.scale for p in PANELS if name in p.names), "linear")
        for index, (label, run) in enumerate(columns.items()):
            if name in run:
                _line(axes, run["step"], run[name], label, index, scale, pale=len(columns) <= 3)
        finish(axes, name, describe(name).unit or "value", scale)
        legend(axes)
    return _save(figure, storage.place(out))


def plot_evaluation(table: EvaluationTable, out: str | os.PathLike[str]) -> Path:
    """Draws an evaluation: bars before and after with 95 % intervals; returns the file.

    Above each pair stands the difference, bold where its interval excludes 0.

    Args:
      table: what to draw, one panel a measure.
      out: the PNG to write.

    Raises:
      ValueError: the table has no rows.
    """
    if not table.rows:
        raise ValueError("the evaluation table has no rows")
    most = max(sum(r.measure == measure for r in table.rows) for measure in table.measures)
    count = len(table.measures)
    figure, grid = _grid(count, 1, width=max(5.2, 1.15 * most + 1.2), height=3.6)
    for axes, measure in zip(grid, table.measures, strict=True):
        rows = [row for row in table.rows if row.measure == measure]
        for offset, part, colour in ((-0.2, "before", "#B8B8B8"), (0.2, "after", COLOURS[0])):
            bars = [getattr(row, part) for row in rows]
            values = np.array([bar.value for bar in bars])
            errors = np.array([[b.value - b.low for b in bars], [b.high - b.value for b in bars]])
            # Infinite limits, of a single prompt, are not drawn.
            errors[~np.isfinite(errors)] = np.nan
            axes.bar(
                np.arange(len(rows)) + offset,
                values,
                0.38,
                yerr=np.maximum(errors, 0),
                label=part,
                color=colour,
                error_kw={"elinewidth": 1.2, "capsize": 3, "ecolor": "#303030"},
            )
        for index, row in enumerate(rows):
            axes.text(
                index,
                max(_top(row.before), _top(row.after)) + 0.02,
                f"{row.difference.value:+.2f}",
                ha="center",
                va="bottom",
                fontsize=9,
                fontweight="bold" if row.difference.excludes_zero else "normal",
            )
        if rows[-1].domain == OVERALL and len(rows) > 1:
            axes.axvline(len(rows) - 1.5, color=GREY, linewidth=0.8, linestyle=":")
        finish(axes, f"{measure} on held-out prompts", "mean over prompts", "linear")
        axes.set_xlabel("")
        axes.set_xticks(
            np.arange(len(rows)), [f"{literal(r.domain)}\nn = {r.prompts}" for r in rows]
        )
        if all(0 <= bar.low and bar.high <= 1 for row in rows for bar in (row.before, row.after)):
            axes.set_ylim(0, 1.1)
            axes.set_yticks(np.linspace(0, 1, 6))
        axes.grid(visible=False, axis="x")
        axes.legend(
            frameon=False, fontsize=9, ncols=2, loc="lower right", bbox_to_anchor=(1.0, 0.99)
        )
    return _save(figure, storage.place(out))


def _grid(count: int, across: int, *, width: float = 4.3, height: float = 3.0):
    """A figure with `count` axes in rows of `across`."""
    down = math.ceil(count / across)
    layout = ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.08)
    figure = Figure(figsize=(width * across, height * down), layout=layout)
    figure.set_facecolor("white")
    return figure, [figure.add_subplot(down, across, i + 1) for i in range(count)]


def _save(figure: Figure, path: Path) -> Path:
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=_DPI)
    storage.write(path, drawn.getvalue())
    return path


def _drawable(values: np.ndarray, scale: str) -> np.ndarray:
    """Where values can be drawn: finite, and positive on a logarithmic axis; bool[steps]."""
    finite = np.isfinite(values)
    return finite & (values > 0) if scale == "log" else finite


def has(panel: Panel, columns: Mapping[str, np.ndarray]) -> bool:
    """Whether any metric of a panel is there to be drawn."""
    return bool(_series(panel, columns))


def _series(panel: Panel, columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The columns of a panel that can be drawn, by name."""
    names = [key for name in panel.names for key in columns if fnmatch.fnmatchcase(key, name)]
    if panel.kind == "curve":
        names = [name for name in names if f"{name}/low" in columns]
    return {
        name: columns[name]
        for name in names
        if name not in panel.without and _drawable(columns[name], panel.scale).any()
    }


def draw(axes: Axes, panel: Panel, columns: Mapping[str, np.ndarray]) -> None:
    """Draws a panel of a run's metrics, by name and each [steps], with its labels and legend."""
    series, step = _series(panel, columns), columns["step"]
    if panel.kind == "stack":
        stack(axes, step, series)
    elif panel.kind == "curve":
        _curve(axes, columns, tuple(series))
    elif panel.kind == "range":
        middle, low, high = (series.get(name) for name in panel.names)
        if low is not None and high is not None:
            both = _drawable(low, panel.scale) & _drawable(high, panel.scale)
            axes.fill_between(
                *(step[both], low[both], high[both]),
                color=COLOURS[4],
                alpha=0.35,
                linewidth=0,
                label="smallest to largest",
            )
        if middle is not None:
            _line(axes, step, middle, "mean", 0, panel.scale, pale=False)
        axes.axhline(1.0, color=GREY, linewidth=0.8, linestyle="--", label="1, as sampled")
    else:
        for index, (name, values) in enumerate(series.items()):
            label = literal(_last(name).replace("log_prob_abs_", ""))
            _line(axes, step, values, label, index, panel.scale, pale=len(series) <= 2)
    if panel.guide is not None and panel.guide in columns:
        use = np.isfinite(columns[panel.guide])
        label = panel.guide.replace("/", " ")
        axes.plot(
            step[use], columns[panel.guide][use], color=GREY, lw=1.2, ls=(0, (4, 2)), label=label
        )
    finish(axes, panel.title, panel.unit, panel.scale)
    if panel.kind == "stack":
        axes.set_ylim(0, 1)
        drawn = step[_complete(series)]
        axes.set_xlim(drawn[0], max(drawn[-1], drawn[0] + 1))
    elif panel.kind in ("lines", "curve") and panel.scale == "linear":
        _from_zero(axes, list(series.values()))
    legend(axes)


def _line(
    axes: Axes,
    step: np.ndarray,
    values: np.ndarray,
    label: str,
    index: int,
    scale: str,
    *,
    pale: bool,
) -> None:
    """Draws one series: its running mean, and where `pale` its values behind."""
    use = _drawable(values, scale)
    x, y = step[use], values[use]
    colour = COLOURS[index % len(COLOURS)]
    dashes = DASHES[index % len(DASHES)]  # Five and seven: 35 pairs before one comes again.
    smooth = running_mean(y, scale)
    if pale and smooth is not y:
        axes.plot(x, y, color=colour, linewidth=0.8, alpha=0.3)
    marker = "o" if len(x) == 1 else None
    axes.plot(x, smooth, color=colour, linewidth=1.8, linestyle=dashes, label=label, marker=marker)


def running_mean(values: np.ndarray, scale: str) -> np.ndarray:
    """A centred mean over 1/20 of the run (geometric on a logarithmic axis); same shape."""
    half = len(values) // 40
    if half == 0:
        return values
    y = np.log(values) if scale == "log" else values
    total = np.concatenate([[0.0], np.cumsum(y)])
    index = np.arange(len(y))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(y))
    mean = (total[high] - total[low]) / (high - low)
    return np.exp(mean) if scale == "log" else mean


def stack(axes: Axes, step: np.ndarray, series: Mapping[str, np.ndarray]) -> None:
    """Draws fractions as areas on top of each other (running means), light to dark."""
    use = _complete(series)
    rows = np.nan_to_num(np.stack(list(series.values()))[:, use], posinf=0.0, neginf=0.0)
    rows = np.stack([running_mean(row, "linear") for row in rows])
    names = [name.rpartition("/")[2] for name in series]
    # The colour belongs to the name: a regime that is missing must not shift the others'.
    axes.stackplot(
        step[use], rows, labels=names, colors=[_STACKED[name] for name in names], linewidth=0
    )


def _complete(series: Mapping[str, np.ndarray]) -> np.ndarray:
    """The steps that have any of the series; bool[steps]."""
    return np.any([np.isfinite(values) for values in series.values()], axis=0)


def _curve(axes: Axes, columns: Mapping[str, np.ndarray], names: Sequence[str]) -> None:
    """Draws points joined by lines, each with its interval; the mean over domains thick."""
    for index, name in enumerate(names):
        use = np.isfinite(columns[name])
        x, y = columns["step"][use], columns[name][use]
        low, high = (columns[f"{name}/{end}"][use] for end in ("low", "high"))
        # Infinite limits, of a single prompt, are not drawn.
        low, high = np.where(np.isfinite(low), low, y), np.where(np.isfinite(high), high, y)
        label = _last(name)
        whole = label == OVERALL
        colour = "#000000" if whole else COLOURS[index % (len(COLOURS) - 1)]
        axes.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
        axes.plot(
            x,
            y,
            color=colour,
            linewidth=2.4 if whole else 1.2,
            linestyle=DASHES[0 if whole else index % len(DASHES)],
            marker="o",
            markersize=4 if whole else 2.5,
            label=literal(label),
        )


def _last(name: str) -> str:
    """What of a metric's name says which one of a panel it is; a domain's may have slashes."""
    holes = {"reward": 1, "evaluation": 2}.get(name.partition("/")[0])
    return name.rpartition("/")[2] if holes is None else name.split("/", holes)[-1]


def literal(text: str) -> str:
    """A name out of a file as matplotlib draws it: no formula, and in the legend whatever it is."""
    escaped = visible(text).replace("$", r"\$")
    return f" {escaped}" if escaped.startswith("_") else escaped


def _from_zero(axes: Axes, series: Sequence[np.ndarray]) -> None:
    """Starts the axis at 0 where no value is negative."""
    if all(np.nanmin(np.where(np.isfinite(v), v, np.nan)) >= 0 for v in series):
        axes.set_ylim(bottom=0)


def legend(axes: Axes, across: int | None = None) -> None:
    """Puts the legend between heading and axes, where it hides nothing; none without labels.

    Args:
      axes: has its heading and its lines.
      across: labels beside each other, at most, as many of them as fit; None for all in a row, or
        for three where that is too long.
    """
    handles, labels = axes.get_legend_handles_labels()
    if not labels:
        return
    if across is None and sum(len(label) + 4 for label in labels) <= 50:
        across = len(labels)
    else:
        across = min(across or 3, len(labels))
        while across > 1 and across * (max(map(len, labels)) + 5) > 64:
            across -= 1
    axes.legend(
        handles,
        labels,
        frameon=False,
        fontsize=8,
        loc="lower left",
        bbox_to_anchor=(-0.02, 0.99),
        ncols=across,
        handlelength=1.2,
        handletextpad=0.5,
        columnspacing=1.0,
        labelspacing=0.3,
        borderpad=0.1,
    )
    rows = math.ceil(len(labels) / across)
    axes.set_title(axes.get_title(loc="left"), loc="left", pad=5 + 12 * rows, **HEADING)


def _top(bar: Interval) -> float:
    """Where a bar ends above: its upper limit, if it has one."""
    return bar.high if np.isfinite(bar.high) else bar.value


def finish(axes: Axes, title: str, unit: str, scale: str, along: str = "step") -> None:
    """Labels an axes that has all its data; `along` names what runs from left to right."""
    axes.set_title(title, loc="left", **HEADING)
    axes.set_xlabel(along, fontsize=9)
    axes.set_ylabel(unit, fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    if scale == "log":
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        steps = (1.0, 2.0, 5.0) if high / low < 300 else (1.0,)
        axes.yaxis.set_major_locator(LogLocator(subs=steps))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.tick_params(labelsize=8.5)
    axes.grid(visible=True, color="#E4E4E4", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
