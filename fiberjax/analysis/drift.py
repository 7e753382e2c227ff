"""Drift against budget, level by level: what each gate compares, and with what.

A hierarchy compares the size of its cells' residuals with a budget, in two channels; a silent one
the signed mean drift of its cells, or its residual; GSPO the mean log ratio of a cell with the logs
of its clip range, and PPO, GMPO and their kin the log ratio of each token with theirs. Of other
gates the signed mean drift of every level is told, without a budget.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fiberjax.gates.channels import prepare
from fiberjax.gates.config import Budgets
from fiberjax.gates.configured import ConfiguredGate
from fiberjax.layout import Layout

TOKEN = "token"
"""The level of single tokens, below all of a layout."""

SIDES = ("plus", "minus")
"""The two sides of a drift: up, with a budget for it, and down."""

_OF_RATIOS = ("ppo", "grpo", "dapo", "clip", "gspo", "gspo_token")
"""Gates that clip a ratio at `1 − clip_low` and `1 + clip_high`."""

_OF_LOGS = ("gmpo",)
"""Gates that clip a token's log ratio at `−clip_low` and `clip_high`, nats."""


class Level(NamedTuple):
    """The drift of a level's cells.

    Attributes:
      held: float32[S, 2], nats, up and down: what is compared with the budget.
      budget: float32[2] or [S, 2], nats; None where the gate has none for this level.
      used: bool[S], which cells hold a token.
    """

    held: jax.Array
    budget: jax.Array | None
    used: jax.Array


class Summary(NamedTuple):
    """A level in four numbers a side, each float[2], up and down; nats but for the last.

    Attributes:
      median: over the cells, of what is held against the budget.
      largest: over the cells.
      budget: the median over the cells, where each has its own; NaN without one.
      over: the share of the cells beyond their budget; NaN without one.
    """

    median: np.ndarray
    largest: np.ndarray
    budget: np.ndarray
    over: np.ndarray


def levels(
    gate: ConfiguredGate, log_ratio: jax.Array, advantage: jax.Array, layout: Layout
) -> dict[str, Level]:
    """What a gate compares with its budgets, by level, finest first.

    Args:
      gate: of `fiberjax.gate`.
      log_ratio: float[B, T] or [N], nats.
      advantage: float of the same shape.
      layout: where the tokens stand.
    """
    structure, budgets = gate.structure, gate.budgets
    log_ratio, advantage = prepare(log_ratio, advantage, layout.mask)
    held = structure.held(log_ratio, advantage, layout, budgets)
    if held is not None:
        return {
            name: Level(held.drift[k], held.budgets[k], held.layout.sizes[k] > 0)
            for k, name in enumerate(held.layout.levels)
        }
    if structure.name in (*_OF_RATIOS, *_OF_LOGS):
        options = dict(structure.options)
        pair = _clip_range(structure.name, budgets)
        if "level" not in options or structure.name in _OF_LOGS:
            flat = log_ratio.ravel()
            return {TOKEN: Level(_both(flat), pair, layout.mask.ravel())}
        chosen = layout.select((options["level"],))
        (drift,) = chosen.means(log_ratio)
        return {options["level"]: Level(_both(drift), pair, chosen.sizes[0] > 0)}
    drifts = layout.means(log_ratio)
    return {
        name: Level(_both(drifts[k]), None, layout.sizes[k] > 0)
        for k, name in enumerate(layout.levels)
    }


def summary(level: Level) -> Summary:
    """A level in a few numbers; on the host."""
    held = np.asarray(level.held, np.float64)[np.asarray(level.used)]
    nan = np.full(2, np.nan)
    if level.budget is None:
        return Summary(np.median(held, axis=0), held.max(axis=0), nan, nan)
    budget = np.broadcast_to(np.asarray(level.budget, np.float64), level.held.shape)
    budget = budget[np.asarray(level.used)]
    return Summary(
        np.median(held, axis=0),
        held.max(axis=0),
        np.median(budget, axis=0),
        (held > budget).mean(axis=0),
    )


def _clip_range(name: str, budgets: Budgets) -> jax.Array:
    """The clip range in nats, up and down; float32[2]."""
    low, high = jnp.asarray(budgets["clip_low"]), jnp.asarray(budgets["clip_high"])
    if name in _OF_LOGS:
        return jnp.stack([high, low])
    # At 1 and beyond nothing is clipped below.
    return jnp.stack([jnp.log1p(high), -jnp.log1p(-jnp.minimum(low, 1.0))])


def _both(drift: jax.Array) -> jax.Array:
    """A signed drift as what it is up and down; float[S, 2]."""
    return jnp.stack([drift, -drift], axis=-1)
