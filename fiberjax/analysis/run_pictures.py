"""A run at a glance, in a notebook: its curves, and what it wrote before and after."""

import os
from collections.abc import Sequence

from fiberjax.analysis.style import Picture, grid
from fiberjax.run import plots, rollouts
from fiberjax.run.metrics import read_metrics
from fiberjax.run.shown import cell, shortened

PANELS = ("curve_mean", "reward", "entropy", "kl", "clip_fraction", "curriculum")
"""Of `plots.PANELS`, drawn where a run has the metrics."""


def curves(
    run: str | os.PathLike[str], panels: Sequence[str] = PANELS, *, across: int = 3
) -> Picture:
    """Some panels of a run's metrics in one picture.

    Args:
      run: the run folder.
      panels: their files' names, of `plots.PANELS`; those without any metric are left out.
      across: panels in a row.

    Raises:
      ValueError: there is no such panel, or the run has the metrics of none.
    """
    known = {panel.file: panel for panel in plots.PANELS}
    for name in panels:
        if name not in known:
            raise ValueError(f"panel {name!r} does not exist; choose from {tuple(known)}")
    columns = read_metrics(run)
    drawn = [known[name] for name in panels if plots.has(known[name], columns)]
    if not drawn:
        raise ValueError(f"{os.fspath(run)} has no metrics of the panels {tuple(panels)}")
    across = min(across, len(drawn))
    picture, axes = grid(-(-len(drawn) // across), across, width=3.9 * across, height=3.0)
    for ax, panel in zip(axes.flat, drawn, strict=False):
        plots.draw(ax, panel, columns)
        if ax.get_legend() is None:
            ax.legend(loc="best", frameon=False, fontsize=8)
    for ax in axes.flat[len(drawn) :]:
        ax.remove()
    return picture


def before_and_after(run: str | os.PathLike[str], *, rows: int = 8) -> str:
    """What a run's policy wrote for the same held-out prompts first and last, as Markdown.

    Args:
      run: the run folder, with its `samples/`.
      rows: at most.

    Raises:
      ValueError: it has no samples of held-out prompts.
    """
    kept = [row for row in rollouts.read(run).to_pylist() if row["split"] == rollouts.HELD_OUT]
    if not kept:
        raise ValueError(f"{os.fspath(run)} has no samples of held-out prompts")
    last = max(row["iteration"] for row in kept)
    first, then = (
        {(row["domain"], row["prompt_index"], row["sample"]): row for row in kept if here(row)}
        for here in (lambda row: row["iteration"] == 0, lambda row: row["iteration"] == last)
    )
    lines = [
        f"| domain | prompt | right | before | reward | after {last} iterations | reward |",
        "|---|---|---|---|---:|---|---:|",
    ]
    for key in [key for key in first if key in then][:rows]:
        old, new = first[key], then[key]
        texts = (old["domain"], old["prompt"], old["answer"], old["completion"])
        domain, prompt, right, before = (cell(shortened(text)) for text in texts)
        after = cell(shortened(new["completion"]))
        paid = f"{old['reward']:g} | {after} | {new['reward']:g}"
        lines.append(f"| {domain} | {prompt} | {right} | {before} | {paid} |")
    return "\n".join(lines)
