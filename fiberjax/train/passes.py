"""How often an update runs the policy: the cheapest schedule that is exact for its gate.

The gradient is `Σᵢ cᵢ ∇ log π(i)`, and a coefficient `cᵢ` may need log-ratios of tokens far from
its own. With one micro-batch there is no question: one pass forward and one back. With several,
whose activations do not fit together, there are three ways to the same gradient:

    apart   The gate couples tokens within a micro-batch only: one after the other goes forward and
            back once, and its coefficients are those of a batch whose other tokens stand still.
    fresh   No update was made since the old log-probabilities were computed, so that they are the
            policy's own: all coefficients are known before anything runs.
    whole   One pass over everything for the log-ratios, without activations; then forward again,
            and back.

`apart` and `fresh` run the policy forward once, `whole` twice. Which cells a gate couples it says
itself (`Gate.couples`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fiberjax.gates import Gate
from fiberjax.gates.config import TOKEN, Budgets
from fiberjax.layout import STATE, TRAJECTORY, Layout
from fiberjax.policy import TokenOutputs
from fiberjax.policy.row_parts import in_parts, merge_rows, split_rows
from fiberjax.train.batch import Rows
from fiberjax.train.forward import Forward, Replicas

Objective = Callable[[TokenOutputs], tuple[Any, TokenOutputs]]
"""From the policy's outputs over all rows to metrics and the gradient of J in every output."""


class Groups(NamedTuple):
    """Prompt groups, whose rows stand together.

    Attributes:
      level: of the layout, whose cells they are; None where no level's are.
      rows: of a group.
    """

    level: str | None = None
    rows: int = 0


class Split(NamedTuple):
    """How the rows of a batch are cut into micro-batches.

    Attributes:
      parts: n, the number of micro-batches.
      together: rows that are not parted; see `row_parts.split_rows`.
      apart: whether no gate couples tokens of two of them.
    """

    parts: int
    together: int
    apart: bool


def split(
    gate: Gate, budgets: Budgets, layout: Layout, parts: int, shards: int, groups: Groups
) -> Split:
    """How to cut a batch for a gate: between groups where that sets micro-batches apart.

    Args:
      gate: from `gates.from_config`.
      budgets: the gate's; only its structure is read.
      layout: of the whole batch, `[B, T]`, packed or one trajectory a row.
      parts: n, micro-batches; divides B.
      shards: devices that the rows lie on; micro-batches must divide over them.
      groups: which rows of an unpacked batch are one prompt's.

    >>> import numpy as np
    >>> from fiberjax import gates
    >>> from fiberjax.layout import make_layout
    >>> mask = np.ones((8, 3), bool)
    >>> layout = make_layout(mask, {"group": np.arange(8) // 2, "domain": np.zeros(4, int)})
    >>> def of(name, **config):
    ...     gate, budgets = gates.from_config({"name": name, **config}, layout.levels)
    ...     return split(gate, budgets, layout, parts=2, shards=1, groups=Groups("group", 2))
    >>> of("ppo")
    Split(parts=2, together=1, apart=True)
    >>> of("silent", order=("group",), levels={"group": {"budget": 0.1}})
    Split(parts=2, together=2, apart=True)
    >>> of("silent", order=("domain",), levels={"domain": {"budget": 0.1}}).apart
    False
    """
    cell = gate.couples(budgets, layout)
    if cell == TOKEN or (cell in layout.levels and layout.index(cell) <= layout.index(TRAJECTORY)):
        return Split(parts, 1, True)  # No row is parted, and a row holds whole trajectories.
    rows = layout.mask.shape[0]
    packed = rows != layout.sizes[layout.index(TRAJECTORY)].shape[0]
    whole = groups.rows > 0 and not packed and rows % (shards * parts * groups.rows) == 0
    if whole and cell in (groups.level, STATE) and cell is not None:
        return Split(parts, groups.rows, True)
    return Split(parts, 1, False)


def run(
    forward: Forward,
    params: Any,
    rows: Rows,
    objective: Objective,
    cut: Split,
    *,
    old: TokenOutputs,
    fresh: jax.Array | bool = False,
    replicas: Replicas | None = None,
) -> tuple[TokenOutputs, Any, Any]:
    """The policy's outputs over all rows, the metrics, and the *negated* gradient of J.

    Args:
      forward: the policy.
      params: its parameters.
      rows: arrays of `[B, S]`.
      objective: what is maximised.
      cut: from `split`.
      old: the outputs at zero drift, float32[B, T]; its entropies are not read, for J is linear in
        them.
      fresh: whether the log-probabilities of `old` are the policy's own: bool[], traced, or a bool.
      replicas: the policy in replicas whose gradients are joined after the last micro-batch; None
        where there is one.

    Returns:
      The outputs that the gradient was taken at, the objective's metrics of these, and the
      gradient; for every cut the same up to rounding.

    Raises:
      ValueError: the rows do not divide.
    """
    parts, together = cut.parts, cut.together
    if rows[0].shape[0] % parts:
        raise ValueError(f"{rows[0].shape[0]} rows do not divide into {parts} micro-batches")
    if parts == 1:
        outputs, pull = jax.vjp(lambda p: forward(p, rows), params)
        metrics, cotangents = objective(outputs)
        return outputs, metrics, negated(pull(cotangents)[0])

    def parted(outputs: TokenOutputs) -> TokenOutputs:
        return jax.tree.map(lambda x: split_rows(x, parts, together), outputs)

    def with_part(index: jax.Array, outputs: TokenOutputs) -> TokenOutputs:
        """The gradient at one micro-batch, while the others' tokens stand still."""
        all_rows = jax.tree.map(
            lambda others, of: merge_rows(others.at[index].set(of), together), parted(old), outputs
        )
        return jax.tree.map(lambda x: x[index], parted(objective(all_rows)[1]))

    if cut.apart:
        of_part = with_part
    else:

        def first_pass() -> TokenOutputs:
            return in_parts(lambda part: forward(params, part), rows, parts)

        if isinstance(fresh, bool):
            first = old if fresh else first_pass()
        else:
            first = jax.lax.cond(fresh, lambda: old, first_pass)
        known = parted(objective(first)[1])

        def of_part(index: jax.Array, outputs: TokenOutputs) -> TokenOutputs:
            return jax.tree.map(lambda x: x[index], known)

    if replicas is None:
        outputs, gradient = back(forward, params, rows, of_part, parts, together)
    else:
        spread = replicas.spread(params)
        outputs, apart = back(replicas.forward, spread, rows, of_part, parts, together)
        gradient = replicas.joined(apart)
    return outputs, objective(outputs)[0], gradient


def back(
    forward: Forward,
    params: Any,
    rows: Rows,
    cotangents: Callable[[Any, TokenOutputs], TokenOutputs],
    parts: int,
    together: int = 1,
) -> tuple[TokenOutputs, Any]:
    """Runs forward and back once over every micro-batch, and adds their gradients.

    Args:
      forward: the policy.
      params: its parameters.
      rows: arrays of `[B, S]`.
      cotangents: from the number of a micro-batch and its outputs to the gradient of J with respect
        to these.
      parts: micro-batches; divides B.
      together: see `row_parts.split_rows`.

    Returns:
      The outputs over all rows, and the negated gradient.
    """

    def add(total: Any, numbered: tuple[jax.Array, Rows]) -> tuple[Any, TokenOutputs]:
        index, part = numbered
        outputs, pull = jax.vjp(lambda p: forward(p, part), params)
        gradient = pull(cotangents(index, outputs))[0]
        return jax.tree.map(jnp.add, total, gradient), outputs

    numbered = (jnp.arange(parts), jax.tree.map(lambda x: split_rows(x, parts, together), rows))
    total, outputs = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), numbered)
    return jax.tree.map(lambda x: merge_rows(x, together), outputs), negated(total)


def negated(gradient: Any) -> Any:
    """What an optimizer descends along."""
    return jax.tree.map(jnp.negative, gradient)
