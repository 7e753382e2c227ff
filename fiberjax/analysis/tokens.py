"""What a gate does to every token of kept rollouts, and what each of its levels takes.

The number that counts is the coefficient, the objective's gradient in a token's log-probability,

    cᵢ = ∂J/∂ log π_θ(i) = c°ᵢ + Σₖ takenₖ,ᵢ

`c°` is the coefficient with every gate open; then the gates close one after the other, coarsest
level first and tokens last, and what changes is what each took. A gate without levels takes all of
it at once. The parts add up to the coefficient exactly: they are differences, in float64, of
gradients in float32.

Gates see one optimizer batch at a time, as they do in training: cells above the trajectory hold
what the batch holds of them.
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from fiberjax import diagnostics
from fiberjax.analysis.batch import chosen, seen
from fiberjax.analysis.objectives import Asked
from fiberjax.analysis.stages import OPEN, TOKEN, numbers, part_names
from fiberjax.gates.configured import ConfiguredGate
from fiberjax.run.kept import Kept

FATES = ("idle", "kept", "weaker", "stronger", "vanished", "turned", "moved by others")
"""What became of a token's coefficient against the open gates': both 0; the same within 1 %; less;
more; 0; of the other sign; not 0 where it was 0."""
IDLE, KEPT, WEAKER, STRONGER, VANISHED, TURNED, MOVED = range(len(FATES))

LABEL = "looked at"

WHOLE, SOME, ALL = "open", "some tokens changed", "all tokens changed"
"""Regimes of a trajectory under a gate without channels."""


@dataclasses.dataclass(frozen=True, eq=False)
class Level:
    """What one level of a hierarchy holds against its budgets, read at every token.

    The last axis are the two directions: of the channels plus and minus of a hierarchy; of a silent
    one up and down, in which only the direction that a token's advantage asks for can close it.

    Attributes:
      drift: float32[R, C, 2], nats: mean drift of the token's cell.
      held: float32[R, C, 2], nats: what is held against the budget, the cell's own part of it.
      budget: float32[R, C, 2], nats.
      place: int8[R, C, 2]: on which piece of its gate, `aggregate.OPEN`, `ROLLBACK` or `ZEROED`.
      size: int32[R, C, 2], children of the cell; of the exact bundle those of each channel.
    """

    drift: np.ndarray
    held: np.ndarray
    budget: np.ndarray
    place: np.ndarray
    size: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Tokens:
    """Every token's numbers under a gate; arrays over [R, C], 0 off the mask.

    Attributes:
      kept: the rollouts.
      gate: the gate.
      log_ratio: float32, nats.
      gated_ratio: float32, what the gate makes of the ratios; 1 off the mask.
      coefficient: float32: the objective's gradient in the token's log-probability.
      parts: float64 by name, in this order: "open", then what each level took, the coarsest first,
        and "token"; of a gate without levels "open" and "gate". They add up to the coefficient.
      changed: bool by level: where the level's gate changes the token's own row of the Jacobian.
      fate: int8, of `FATES`.
      levels: of a hierarchy, finest first; {} else.
      own: float32, nats: of a hierarchy, the token's own drift; None else.
      own_budget: float32, nats: what that is held to; None else.
      regime: of each trajectory, [R]: of a hierarchy the global and the local one, such as
        "G-II,r L-I"; of other gates one of `WHOLE`, `SOME` and `ALL`.
      entropy: float32, nats, of the policy looked at; None where it is not known.
    """

    kept: Kept
    gate: ConfiguredGate
    log_ratio: np.ndarray
    gated_ratio: np.ndarray
    coefficient: np.ndarray
    parts: dict[str, np.ndarray]
    changed: dict[str, np.ndarray]
    fate: np.ndarray
    levels: dict[str, Level]
    own: np.ndarray | None
    own_budget: np.ndarray | None
    regime: list[str]
    entropy: np.ndarray | None

    @property
    def sampler_gap(self) -> np.ndarray | None:
        """`log π_old − log q` of every token, float32[R, C], nats; None without a sampler's."""
        if self.kept.sampler_log_prob is None:
            return None
        gap = self.kept.old_log_prob - self.kept.sampler_log_prob
        return np.where(self.kept.mask, gap, np.float32(0))

    def drift(self) -> np.ndarray:
        """Mean drift of every trajectory: up, down and on the whole; float32[R, 3], nats."""
        count = np.maximum(self.kept.mask.sum(axis=1), 1).astype(np.float32)
        up, down = (np.maximum(sign * self.log_ratio, 0).sum(axis=1) / count for sign in (1, -1))
        return np.stack([up, down, up - down], axis=1).astype(np.float32)


def look(kept: Kept, asked: Asked, *, entropy: np.ndarray | None = None) -> Tokens:
    """Every token's numbers under an objective; a `Tokens`.

    Args:
      kept: the rollouts; log ratios are 0 where they have no `log_prob`.
      asked: the objective, as `objectives.objectives_of` takes one: the name of a preset, a pair of
        a name and overrides, a gate, or `objectives.RUN` for the run's own.
      entropy: float[R, C], nats, of the policy looked at, if it is known.

    Raises:
      ValueError: there is no such preset, the gate has a level that the rollouts lack, no token
        counts, or entropies are of another shape.

    >>> from fiberjax.run.kept import from_arrays
    >>> drift, mask = np.array([[0.3, 0.1], [0.0, 0.0]]), np.ones((2, 2), bool)
    >>> old = np.full((2, 2), -1.0)
    >>> kept = from_arrays(
    ...     log_prob=old + drift, old_log_prob=old, mask=mask, advantage=np.array([1.0, -1.0])
    ... )
    >>> tokens = look(kept, "ppo")
    >>> [FATES[fate] for fate in tokens.fate.ravel()]
    ['vanished', 'kept', 'kept', 'kept']
    >>> [round(float(part[0, 0]), 3) for part in tokens.parts.values()]
    [0.337, -0.337]
    """
    if entropy is not None and np.shape(entropy) != kept.mask.shape:
        raise ValueError(
            f"entropy has shape {np.shape(entropy)}, the rollouts {kept.mask.shape}: expected one "
            "a token"
        )
    objective = chosen(kept, {LABEL: asked}, None)[LABEL]
    gate, mask = objective.gate, kept.mask
    found: dict[str, Any] = {}
    for number in np.unique(kept.minibatch[mask.any(axis=1)]).tolist():
        batch = seen(kept, {LABEL: objective}, number)
        made = jax.device_get(numbers(objective, kept.log_ratio, batch))
        _scatter(found, made, kept.minibatch == number)
    if not found:
        raise ValueError("no token of these rollouts counts in the loss")
    stages = found["stages"]
    names = part_names(gate, kept.layout.levels)
    wide = np.stack([stages[name].astype(np.float64) for name in names])
    taken = np.diff(wide, axis=0, prepend=np.zeros_like(wide[:1]))
    coefficient = stages[names[-1]]
    ordered = sorted(found["changed"], key=[TOKEN, *kept.layout.levels].index)
    changed = {level: found["changed"][level] & mask for level in ordered}
    return Tokens(
        kept=kept,
        gate=gate,
        log_ratio=kept.log_ratio,
        gated_ratio=np.where(mask, found["gated"], np.float32(1)),
        coefficient=coefficient,
        parts=dict(zip(names, taken, strict=True)),
        changed=changed,
        fate=_fate(stages[OPEN], coefficient),
        levels={
            level: Level(**found["levels"][level])
            for level in kept.layout.levels
            if level in found["levels"]
        },
        own=found["own"].get("drift"),
        own_budget=found["own"].get("budget"),
        regime=_regimes(found["regime"], changed, mask),
        entropy=None if entropy is None else np.where(mask, entropy, 0).astype(np.float32),
    )


def _scatter(found: dict[str, Any], numbers: dict[str, Any], rows: np.ndarray) -> None:
    """Puts the rows of one batch, bool[R], into the arrays of all, in place."""
    for name, of in numbers.items():
        if isinstance(of, dict):
            _scatter(found.setdefault(name, {}), of, rows)
        else:
            whole = found.setdefault(name, np.zeros_like(of))
            whole[rows] = of[rows]


def _fate(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """What became of every coefficient; int8 of their shape, of `FATES`."""
    was, now = np.abs(before), np.abs(after)
    idle, gone = was == 0, now <= 1e-6 * was
    return np.select(
        [
            *(idle & (now == 0), idle, gone, before * after < 0),
            *(now < 0.99 * was, now > 1.01 * was),
        ],
        [IDLE, MOVED, VANISHED, TURNED, WEAKER, STRONGER],
        KEPT,
    ).astype(np.int8)


def _regimes(
    regime: dict[str, np.ndarray], changed: dict[str, np.ndarray], mask: np.ndarray
) -> list[str]:
    """The regime of every trajectory, [R]; "" of one without a token.

    Args:
      regime: "global" and "local", int32[R, C], of a hierarchy; {} else.
      changed: of `Tokens`.
      mask: bool[R, C].
    """
    used = np.asarray(mask.any(axis=1))
    if regime:
        first = mask.argmax(axis=1)
        rows = np.arange(len(mask))
        pairs = (regime[name][rows, first] for name in ("global", "local"))
        return [
            f"{diagnostics.GLOBAL_REGIMES[g]} {diagnostics.LOCAL_REGIMES[l]}" if of else ""
            for g, l, of in zip(*pairs, used, strict=True)
        ]
    count = np.logical_or.reduce(list(changed.values())).sum(axis=1)
    names = np.where(count == 0, WHOLE, np.where(count == mask.sum(axis=1), ALL, SOME))
    return [str(name) if of else "" for name, of in zip(names, used, strict=True)]
