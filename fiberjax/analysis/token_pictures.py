"""Pictures of kept rollouts under a gate: a whole batch, and one trajectory token by token."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from fiberjax.analysis.style import (
    BLACK,
    COLOURS,
    GREY,
    SHADES,
    Picture,
    colour_bar,
    finish,
    grid,
    heat_map,
)
from fiberjax.analysis.tokens import FATES, IDLE, OPEN, Tokens
from fiberjax.gates.silent import SilentHierarchy
from fiberjax.run.kept import Kept
from fiberjax.run.plots import literal

FULLEST = 100.0
"""Times its budget. How full one of 0 is drawn that holds something."""

HATCHES = ("", "///", "\\\\\\", "xxx", "...", "++")


def batch(tokens: Tokens) -> Picture:
    """A batch: the log ratio of every token, its coefficient, and how many of each fate there are.

    Rows are trajectories in the batch's order, thin lines part prompt groups, padding is grey.

    Args:
      tokens: of `tokens.look`.
    """
    kept, mask = tokens.kept, tokens.kept.mask
    columns = int(np.where(mask, np.arange(mask.shape[1]) + 1, 0).max())
    picture, ((left, middle, right),) = grid(
        1, 3, width=11, height=4.4, width_ratios=(1.0, 1.0, 0.9)
    )
    for axes, values, title, label in (
        (left, tokens.log_ratio, "How far each token drifted", "log ratio, nats"),
        (middle, tokens.coefficient, "Its gradient under the gate", "∂J/∂ log π"),
    ):
        shown = np.where(mask, values, np.nan)[:, :columns]
        bound = float(np.quantile(np.abs(values[mask]), 0.98)) or float(np.abs(values).max()) or 1.0
        image = heat_map(axes, shown, title, bound=bound, down=_group_edges(kept))
        axes.set_xlabel("token", fontsize=9)
        axes.set_ylabel("trajectory", fontsize=9)
        colour_bar(picture, image, axes, label)
    fates = [number for number in range(len(FATES)) if number != IDLE]
    signs = (("advantage > 0", kept.advantage > 0), ("< 0", kept.advantage < 0))
    for number, (label, of) in enumerate(signs):
        counts = [int(((tokens.fate == fate) & mask & of).sum()) for fate in fates]
        place = np.arange(len(fates)) + (number - 0.5) * 0.4
        bars = right.barh(
            place, counts, 0.38, color=COLOURS[number], hatch=HATCHES[number], edgecolor="white"
        )
        right.bar_label(bars, fontsize=8, padding=2)
        bars.set_label(label)
    right.set_yticks(range(len(fates)), [FATES[fate] for fate in fates])
    right.invert_yaxis()
    right.margins(x=0.18)
    finish(right, "What became of it", x="tokens", legend="best")
    right.grid(visible=False, axis="y")
    return picture


def trajectory(tokens: Tokens, row: int, texts: Sequence[str] = ()) -> Picture:
    """One trajectory: drift of its tokens, what its gradient is made of, how full budgets are.

    Args:
      tokens: of `tokens.look`.
      row: which one.
      texts: of each of its tokens; their numbers by default.

    Raises:
      ValueError: there is no such row, or none of its tokens count.
    """
    mask = tokens.kept.mask
    if not 0 <= row < len(mask) or not mask[row].any():
        raise ValueError(
            f"row {row!r} has no token that counts; {int(mask.any(axis=1).sum())} of "
            f"{len(mask)} rows have"
        )
    columns = np.flatnonzero(mask[row])
    place = np.arange(len(columns))
    names = [literal(text) for text in texts] or [str(column) for column in columns]
    advantage = float(tokens.kept.advantage[row, columns[0]])
    down = 3 if tokens.levels else 2
    width = min(max(6.0, 2.6 + 0.5 * len(columns)), 14.0)
    picture, axes = grid(down, 1, width=width, height=2.3)
    (upper,), (middle,), *rest = axes
    upper.bar(place, tokens.log_ratio[row, columns], 0.6, color=SHADES[1], label="log ratio")
    drift = tokens.drift()[row, 2]
    upper.axhline(drift, color=BLACK, lw=1.2, ls="--", label=f"trajectory's mean {drift:+.3f}")
    upper.axhline(0, color=GREY, lw=0.8)
    finish(upper, f"Trajectory {row}, advantage {advantage:+.2f}: drift", y="nats")
    _parts(middle, tokens, row, columns)
    for ax in (upper, middle):
        ax.set_xticks(place, names)
        ax.grid(visible=False, axis="x")
        ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8)
    if rest:
        _budgets(rest[0][0], tokens, row, columns)
    return picture


def _parts(axes: Axes, tokens: Tokens, row: int, columns: np.ndarray) -> None:
    """The open coefficient and what each gate took of it as bars side by side, and what is left."""
    place = np.arange(len(columns))
    width = 0.84 / len(tokens.parts)
    for number, (name, of) in enumerate(tokens.parts.items()):
        axes.bar(
            place - 0.42 + (number + 0.5) * width,
            of[row, columns],
            width,
            color=GREY if name == OPEN else COLOURS[(number - 1) % len(COLOURS)],
            hatch=HATCHES[number % len(HATCHES)],
            edgecolor="white",
            linewidth=0.3,
            label="every gate open" if name == OPEN else f"{name} adds",
        )
    axes.plot(
        place,
        tokens.coefficient[row, columns],
        "D",
        color=BLACK,
        ms=5,
        mfc="white",
        label="what is left",
    )
    axes.axhline(0, color=GREY, lw=0.8)
    finish(axes, "What its gradient is made of", y="∂J/∂ log π")


def _budgets(axes: Axes, tokens: Tokens, row: int, columns: np.ndarray) -> None:
    """What each level holds against its budget, as a share of it.

    Of a hierarchy both channels can be over it; of a silent one only drift as the advantage asks.
    """
    levels, first = list(tokens.levels), (row, columns[0])
    sides = {0: "drift up", 1: "drift down"}
    if tokens.gate.structure.spec.settings is SilentHierarchy:
        asked = int(tokens.kept.advantage[first] < 0)
        sides = {asked: f"{sides[asked]}, as the advantage asks"}
    for number, label in sides.items():
        filled = []
        for level in levels:
            of = tokens.levels[level]
            held, budget = float(of.held[first][number]), float(of.budget[first][number])
            # A budget of 0 is full of anything: as far as the axis goes.
            filled.append(held / budget if budget > 0 else np.sign(held) * FULLEST)
        place = np.arange(len(levels)) + (number - 0.5) * 0.4 * (len(sides) > 1)
        axes.barh(
            place,
            filled,
            0.38,
            color=COLOURS[number],
            hatch=HATCHES[number],
            edgecolor="white",
            label=label,
        )
    axes.axvline(1, color=BLACK, lw=1.2, ls="--", label="the budget")
    axes.axvline(0, color=GREY, lw=0.8)
    axes.set_xscale("symlog", linthresh=1, linscale=0.5)
    low, high = axes.get_xlim()
    ticks = [of for of in (-100, -30, -10, -3, -1, 0, 1, 3, 10, 30, 100) if low <= of <= high]
    axes.set_xticks(ticks, [f"{of:g}".replace("-", "−") for of in ticks])
    axes.minorticks_off()
    finish(axes, "How full the budgets of its cells are", x="share of the budget")
    axes.set_yticks(range(len(levels)), levels)
    axes.grid(visible=False, axis="y")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8)


def _group_edges(kept: Kept) -> list[int]:
    """The rows before which another prompt group begins; none where rows are of no groups."""
    if "group" not in kept.layout.levels:
        return []
    layout = kept.layout
    ids = np.arange(len(np.asarray(layout.sizes[layout.index("trajectory")])))
    for k in range(layout.index("trajectory"), layout.index("group")):
        ids = np.asarray(layout.parents[k])[ids]
    return (np.flatnonzero(np.diff(ids)) + 1).tolist()


def most_changed(tokens: Tokens) -> tuple[int, int]:
    """The row of whose tokens the gate changes most, and that one of them; the first of equals.

    By what lies between the coefficient and that of open gates, times the length of the row: under
    most weightings tokens of a short one weigh more.
    """
    mask = tokens.kept.mask
    taken = np.where(mask, np.abs(tokens.coefficient - tokens.parts[OPEN]), 0)
    row = int(np.argmax(taken.sum(axis=1) * mask.sum(axis=1)))
    return row, int(np.argmax(np.where(mask[row], taken[row], -1)))
