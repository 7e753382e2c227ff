"""Pictures of hierarchies: their cells, what couples what, what each level and each budget does.

Tokens stand from left to right, trajectory after trajectory in the layout's order, padding left
out; thin lines separate trajectories. Every number is the library's own.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from fiberjax import objective, probes
from fiberjax.analysis.style import (
    BLACK,
    COLOURS,
    Picture,
    colour_bar,
    finish,
    grid,
    heat_map,
)
from fiberjax.gates.configured import ConfiguredGate
from fiberjax.layout import TRAJECTORY, Layout

TOKEN = "token"


def cell_ids(layout: Layout) -> dict[str, np.ndarray]:
    """The cell of every real token at every level, by level, finest first; each int[N]."""
    mask, of_tokens = np.asarray(layout.mask), layout.token_cells()
    rows = np.arange(mask.shape[0])[:, None] if of_tokens is None else np.asarray(of_tokens)
    ids = np.broadcast_to(rows, mask.shape)[mask]
    found = {layout.levels[0]: ids}
    for level, parents in zip(layout.levels[1:], layout.parents, strict=True):
        found[level] = ids = np.asarray(parents)[ids]
    return found


def cells(layout: Layout) -> Picture:
    """The cells of each level over the tokens that they hold, coarsest level above."""
    ids = cell_ids(layout)
    picture, ((axes,),) = grid(1, 1, height=0.6 + 0.38 * len(ids))
    for row, of in enumerate(ids.values()):
        edges = np.flatnonzero(np.diff(of)) + 1
        starts, ends = np.r_[0, edges], np.r_[edges, of.size]
        for start, end in zip(starts, ends, strict=True):
            cell = int(of[start])
            shade = COLOURS[row % len(COLOURS)]
            alpha = 0.75 if cell % 2 else 0.35
            axes.barh(row, end - start - 0.15, 0.82, start, color=shade, alpha=alpha)
            if end - start > 0.02 * of.size:
                axes.text((start + end) / 2, row, str(cell), ha="center", va="center", fontsize=8)
    finish(axes, "Cells of each level; the number is the cell's", x="token")
    axes.set_yticks(range(len(ids)), list(ids))
    axes.grid(visible=False)
    axes.set_xlim(0, np.asarray(layout.mask).sum())
    return picture


def couplings(
    gates: Mapping[str, ConfiguredGate],
    log_ratios: Mapping[str, np.ndarray],
    layout: Layout,
    *,
    linear: float = 0.03,
    bound: float = 1.5,
) -> Picture:
    """Jacobians `∂ log G/∂ℓ`: a row of panels for each gate, a column for each state of the policy.

    Args:
      gates: by the label to show them under.
      log_ratios: float of the layout's shape, nats, by the label to show them under.
      layout: where the tokens stand; few of them, for costs grow with their square.
      linear: colours are logarithmic beyond ± this.
      bound: where they end.
    """
    mask = np.asarray(layout.mask).ravel()
    edges = _edges(layout)
    picture, axes = grid(len(gates), len(log_ratios), height=3.3)
    good = jnp.ones(layout.mask.shape)

    @jax.jit
    def jacobian(gate: ConfiguredGate, log_ratio: jax.Array) -> jax.Array:
        return probes.jacobian(gate.structure, log_ratio, good, layout, gate.budgets)

    for row, (name, gate) in zip(axes, gates.items(), strict=True):
        for ax, (place, log_ratio) in zip(row, log_ratios.items(), strict=True):
            shown = np.asarray(jacobian(gate, jnp.asarray(log_ratio)))[np.ix_(mask, mask)]
            image = heat_map(
                ax, shown, f"{name}: {place}", bound=bound, linear=linear, across=edges, down=edges
            )
            ax.set_aspect("equal")
            ax.set(xticks=[], yticks=[])
    for ax in axes[-1]:
        ax.set_xlabel("token j, whose log ratio moves", fontsize=9)
    for ax in axes[:, 0]:
        ax.set_ylabel("token i, whose ratio follows", fontsize=9)
    colour_bar(picture, image, axes, f"∂ log Gᵢ/∂ℓⱼ, logarithmic beyond ±{linear:g}")
    return picture


def attribution(
    gate: ConfiguredGate, log_ratio: ArrayLike, advantage: ArrayLike, layout: Layout
) -> Picture:
    """The gradient with every gate open, what each level adds to it, and the sum, by token.

    Args:
      gate: a hierarchy.
      log_ratio: float of the layout's shape, nats.
      advantage: float of the same shape.
      layout: where the tokens stand.

    Raises:
      ValueError: the gate is no hierarchy.
    """

    @jax.jit
    def added(log_ratio: jax.Array, advantage: jax.Array) -> dict[str, jax.Array]:
        return probes.attribution(gate.structure, log_ratio, advantage, layout, gate.budgets)

    parts = added(jnp.asarray(log_ratio), jnp.asarray(advantage))
    order = [name for name in ("open", *reversed(layout.levels), TOKEN) if name in parts]
    shown = [parts[name] for name in order]  # A jitted function sorts a dict's keys.
    mask = np.asarray(layout.mask)
    rows = np.stack([np.asarray(part)[mask] for part in (*shown, sum(shown))])
    bound = float(np.abs(rows).max())
    picture, ((axes,),) = grid(1, 1, height=3.2)
    edges = _edges(layout)
    image = heat_map(
        axes,
        rows,
        "What each level adds to the gradient",
        bound=bound,
        linear=bound / 20,
        across=edges,
    )
    axes.axhline(len(order) - 0.5, color=BLACK, lw=1.4)
    axes.set_yticks(range(len(rows)), [*order, "sum"])
    axes.set_xlabel("token", fontsize=9)
    colour_bar(picture, image, axes, "∂J/∂ℓ")
    return picture


def sweep(
    gate: ConfiguredGate,
    level: str,
    budgets: ArrayLike,
    log_ratio: ArrayLike,
    advantage: ArrayLike,
    layout: Layout,
) -> np.ndarray:
    """The coefficient of every token under other budgets of one level; float[budgets, ...].

    One compiled program for all of them, and for the other levels' too: budgets are traced.

    Args:
      gate: a hierarchy.
      level: whose budget moves, in both channels.
      budgets: float[budgets], nats.
      log_ratio: float of the layout's shape, nats.
      advantage: float of the same shape.
      layout: where the tokens stand.

    Raises:
      ValueError: the gate has no such level; names those it has.
    """
    own = gate.budgets.get("budgets", {})
    if level not in own:
        raise ValueError(f"gate {gate.structure.name!r} has no level {level!r}: {tuple(own)}")
    tried = np.asarray(budgets, np.float32)
    stacked = jax.tree.map(lambda b: np.broadcast_to(b, (tried.size, *np.shape(b))), gate)
    stacked.budgets["budgets"][level] = np.repeat(tried[:, None], 2, axis=1)
    given = (jnp.asarray(log_ratio), jnp.asarray(advantage), layout)
    return np.asarray(_swept(stacked, *given))


def budget_sweeps(
    gate: ConfiguredGate,
    log_ratio: ArrayLike,
    advantage: ArrayLike,
    layout: Layout,
    *,
    levels: Sequence[str] = (),
    factor: float = 30.0,
    steps: int = 61,
) -> Picture:
    """One panel a level: how every token's coefficient changes as that level's budget alone moves.

    Args:
      gate: a hierarchy, at the budgets that are drawn as a line.
      log_ratio: float of the layout's shape, nats.
      advantage: float of the same shape.
      layout: where the tokens stand.
      levels: to draw; the gate's own where there are none, finest first.
      factor: from the smallest budget to the gate's own, and from there to the largest.
      steps: budgets of a panel.
    """
    mask = np.asarray(layout.mask)
    given = (jnp.asarray(log_ratio), jnp.asarray(advantage), layout)
    before = np.asarray(_coefficients(gate, *given))[mask]
    names = tuple(levels) or tuple(gate.budgets["budgets"])
    changes = {}
    for level in names:
        own = float(np.max(gate.budgets["budgets"][level]))
        tried = own * np.geomspace(1 / factor, factor, steps)
        changes[level] = tried, sweep(gate, level, tried, *given)[:, mask] - before
    bound = max(float(np.abs(change).max()) for _, change in changes.values()) or 1.0
    picture, axes = grid(len(names), 1, height=2.1, sharex=True)
    for (ax,), (level, (tried, change)) in zip(axes, changes.items(), strict=True):
        title = f"The budget of a {level} moves, the others stay"
        image = heat_map(ax, change, title, bound=bound, linear=bound / 50, across=_edges(layout))
        ax.invert_yaxis()
        ax.axhline(steps // 2, color=BLACK, lw=1.2, ls="--")
        ticks = np.linspace(0, steps - 1, 5).round().astype(int)
        ax.set_yticks(ticks, [f"{tried[tick]:.2g}" for tick in ticks])
        ax.set_ylabel("budget, nats", fontsize=9)
    axes[-1, 0].set_xlabel("token", fontsize=9)
    colour_bar(picture, image, axes, "change of the coefficient ∂J/∂ℓ")
    return picture


def touched(
    gate: ConfiguredGate,
    other: ConfiguredGate,
    log_ratio: ArrayLike,
    advantage: ArrayLike,
    layout: Layout,
) -> dict[str, tuple[int, int]]:
    """What another gate changes: by level, the cells with a token whose coefficient differs.

    Args:
      gate: to start from.
      other: to compare with, such as `gate.replace(group=0.1)`.
      log_ratio: float of the layout's shape, nats.
      advantage: float of the same shape.
      layout: where the tokens stand.

    Returns:
      By "token" and each level a tuple: how many are touched, of how many.
    """
    mask = np.asarray(layout.mask)
    given = (jnp.asarray(log_ratio), jnp.asarray(advantage), layout)
    first, second = (np.asarray(_coefficients(of, *given))[mask] for of in (gate, other))
    changed = ~np.isclose(first, second, rtol=1e-5, atol=1e-9)
    found = {TOKEN: (int(changed.sum()), int(changed.size))}
    for level, ids in cell_ids(layout).items():
        found[level] = (np.unique(ids[changed]).size, np.unique(ids).size)
    return found


def touched_table(
    gate: ConfiguredGate,
    other: ConfiguredGate,
    log_ratio: ArrayLike,
    advantage: ArrayLike,
    layout: Layout,
) -> str:
    """What `touched` finds, as Markdown; arguments as there."""
    lines = ["| level | touched | of |", "|---|---:|---:|"]
    for level, (some, of) in touched(gate, other, log_ratio, advantage, layout).items():
        lines.append(f"| {level} | {some} | {of} |")
    return "\n".join(lines)


_coefficients = jax.jit(objective.coefficients)
_swept = jax.jit(jax.vmap(objective.coefficients, in_axes=(0, None, None, None)))


def _edges(layout: Layout) -> list[int]:
    """The places among the real tokens where another trajectory begins."""
    ids = cell_ids(layout)[TRAJECTORY]
    return (np.flatnonzero(np.diff(ids)) + 1).tolist()
