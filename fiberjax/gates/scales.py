"""What budgets of levels are measured in: nats, the noise of a mean, or how far rewards part.

    none         C, the same for every cell of a level
    noise        C / √nₖ            a cell of `nₖ` children (tokens, for the finest)
    dispersion   C · mean |Â|       over the cell, for levels above the trajectory

A mean of `n` numbers strays by `1/√n` for no reason of its own; `silent.drift_noise` says how far.
A budget far below that makes a level a test of sign: half of all cells that did not drift are
closed, and those that moved back go on.

Dispersion is the authors', from research code that they published after FiberPO: where the samples
of a prompt are rewarded alike there is nothing to learn, and nothing may drift; where they part,
more may. With advantages `R − R̄` of the prompt's group (`dr_grpo`) a group's factor is their mean
`|R − R̄|`; divided by the group's deviation (`grpo`) it is `2√(p(1 − p))` where a share `p` of many
samples is right. Levels above have the mean of their children, not the dispersion around a mean of
their own, which advantages do not tell (`levelwise.dispersion` does, from rewards). A trajectory
alone does not disperse, and keeps its budget.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from fiberjax.gates.channels import per_channel
from fiberjax.layout import TRAJECTORY, Layout

SCALES = ("none", "noise", "dispersion")


class Held(NamedTuple):
    """What the cells of every gated level hold against their budgets.

    Attributes:
      layout: of the gated levels alone.
      drift: for each of them float[S_k, 2], up and down: beyond its budget a cell is closed.
      budgets: for each of them float[2] or [S_k, 2], plus and minus, in the unit of the drift.
    """

    layout: Layout
    drift: tuple[jax.Array, ...]
    budgets: tuple[jax.Array, ...]


def factors(
    scale: str, advantage: jax.Array, layout: Layout, levels: Sequence[str]
) -> dict[str, jax.Array]:
    """What the budget of every cell is multiplied by; float[S_k] for each level that has a factor.

    Args:
      scale: static, one of `SCALES`.
      advantage: float[...] of the tokens, exactly 0 at padding; read by "dispersion".
      layout: where the tokens stand, with all its levels.
      levels: static, those that have budgets, finest first; children are counted among these.

    Returns:
      Constants in gradients; nothing of a level whose budgets are in nats.

    >>> import numpy as np
    >>> from fiberjax.layout import make_layout
    >>> layout = make_layout(np.ones((4, 1), bool), {"group": np.array([0, 0, 1, 1])})
    >>> advantage = jnp.array([[0.5], [-0.5], [0.0], [0.0]])
    >>> factors("dispersion", advantage, layout, layout.levels)["group"].tolist()
    [0.5, 0.0]
    """
    if scale == "noise":
        children = layout.select(levels).sizes
        counts = (jnp.maximum(size, 1).astype(advantage.dtype) for size in children)
        return {level: 1 / jnp.sqrt(n) for level, n in zip(levels, counts, strict=True)}
    if scale == "dispersion":
        means = layout.means(jnp.abs(jax.lax.stop_gradient(advantage)))
        above = layout.index(TRAJECTORY) + 1
        return dict(zip(layout.levels[above:], means[above:], strict=True))
    return {}


def per_cell(
    budgets: Mapping[str, ArrayLike | tuple[ArrayLike, ArrayLike]],
    scale: str,
    advantage: jax.Array,
    layout: Layout,
) -> tuple[Layout, tuple[jax.Array, ...]]:
    """The levels that have budgets, and these in nats; a layout, float[2] or [S_k, 2] for each.

    Args:
      budgets: by level, as a hierarchy has them.
      scale: static, one of `SCALES`.
      advantage: float[...] of the tokens, exactly 0 at padding.
      layout: where the tokens stand, with all its levels.

    Raises:
      ValueError: a level that the layout lacks, or no level at all.
    """
    for level in budgets:
        layout.index(level)
    gated = layout.select([level for level in layout.levels if level in budgets])
    factor = factors(scale, advantage, layout, gated.levels)
    pairs = []
    for level in gated.levels:
        pair = per_channel(budgets[level], advantage.dtype)
        if level in factor:  # An open level is open, whatever its factor: ∞ · 0 is NaN.
            pair = jnp.where(jnp.isinf(pair), pair, pair * factor[level][:, None])
        pairs.append(pair)
    return gated, tuple(pairs)
