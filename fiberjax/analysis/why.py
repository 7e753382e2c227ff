"""Why a token's gradient is what it is: the chain of its gates in words, with their numbers.

A chain begins with the coefficient that every gate open would leave, says for each level, coarsest
first, what stood against which budget and what that took, then the same for the token itself, and
ends with what is left. Of a gate without levels it is the gate's measure against its bound.
"""

from typing import NamedTuple

import numpy as np

from fiberjax.analysis import measures
from fiberjax.analysis.measures import number, signed
from fiberjax.analysis.stages import COMPOSITION, GATE, OPEN, TOKEN
from fiberjax.analysis.tokens import IDLE, MOVED, STRONGER, TURNED, VANISHED, WEAKER, Level, Tokens
from fiberjax.gates import aggregate, silent

LEFT = "left"
"""The step that says what is left of the coefficient."""


ROUNDING = 1e-5
"""Changes below this share of the open coefficient are the rounding of float32, and not told."""


class Step(NamedTuple):
    """One step of the chain.

    Attributes:
      part: a key of `Tokens.parts`, or `LEFT`.
      text: what happened, a sentence or two.
      shut: whether a gate was closed to the token there.
    """

    part: str
    text: str
    shut: bool


def why(tokens: Tokens, row: int, column: int) -> list[Step]:
    """The chain of one token's gates; a list of `Step`.

    Args:
      tokens: of `tokens.look`.
      row: the trajectory.
      column: the token, behind the prompt.

    Raises:
      ValueError: there is no such token, or the loss does not count it.

    >>> from fiberjax.analysis.tokens import look
    >>> from fiberjax.run.kept import from_arrays
    >>> old = np.full((1, 2), -1.0)
    >>> kept = from_arrays(
    ...     log_prob=old + 0.3, old_log_prob=old, mask=old < 0, advantage=np.array([1.0])
    ... )
    >>> for step in why(look(kept, "ppo"), 0, 0):
    ...     print(step.text)
    Log ratio +0.3 nats (ratio 1.35), advantage +1: with every gate open +0.675, a push up.
    Its ratio is 1.35, allowed is at most 1.2: beyond.
    Nothing is left: the gradient vanished.
    """
    rows, columns = tokens.kept.mask.shape
    if not (0 <= row < rows and 0 <= column < columns and tokens.kept.mask[row, column]):
        raise ValueError(f"row {row}, column {column} is no token that the loss counts")
    return Chains(tokens).of(row, column)


class Chains:
    """The chains of all tokens; measures of the gate are made once."""

    def __init__(self, tokens: Tokens):
        """Measures every token of `tokens.look`."""
        self._tokens = tokens
        there = np.unique(tokens.kept.minibatch[tokens.kept.mask.any(axis=1)]).tolist()
        self._measures = {n: [] if tokens.levels else measures.of(tokens, n) for n in there}
        self._hold = dict(tokens.gate.structure.options).get("base_gate") == "hold"
        self._silent = tokens.gate.structure.spec.settings is silent.SilentHierarchy
        self._coarsest = next(reversed(tokens.levels), None)

    def of(self, row: int, column: int) -> list[Step]:
        """The chain of one token that the loss counts; see `why`."""
        steps = [Step(OPEN, self._began(row, column), False)]
        for part in list(self._tokens.parts)[1:]:
            if part in self._tokens.levels:
                level = self._silent_level if self._silent else self._level
                text, shut = level(part, row, column)
            elif part == GATE:
                text, shut = self._gate(row, column)
            elif part == TOKEN:
                own = self._silent_own if self._silent else self._own
                text, shut = own(row, column)
            else:
                text, shut = self._composition(row, column)
            took = float(self._tokens.parts[part][row, column])
            if part != GATE and abs(took) > ROUNDING * abs(self._tokens.parts[OPEN][row, column]):
                whose = "" if shut or part == COMPOSITION else ", by what closed beside it"
                text += f" Changes the coefficient by {signed(took)}{whose}."
            steps.append(Step(part, text, bool(shut)))
        return [*steps, Step(LEFT, self._left(row, column), False)]

    def _began(self, row: int, column: int) -> str:
        tokens, at = self._tokens, (row, column)
        log_ratio, advantage = float(tokens.log_ratio[at]), float(tokens.kept.advantage[at])
        text = f"Log ratio {signed(log_ratio)} nats (ratio {number(float(np.exp(log_ratio)))}), "
        text += f"advantage {signed(advantage)}"
        if tokens.kept.sample_weight is not None:
            text += f" times a sample weight of {number(float(tokens.kept.sample_weight[at]))}"
        push = float(tokens.parts[OPEN][at])
        towards = f", a push {_way(push)}" if push else ", no push"
        return f"{text}: with every gate open {signed(push)}{towards}."

    def _level(self, name: str, row: int, column: int) -> tuple[str, bool]:
        """One level of a hierarchy."""
        level, what = self._tokens.levels[name], "drift" if name == self._coarsest else "own part"
        said, shut = [], False
        for c in (0, 1):
            held, budget, place = (of[row, column, c] for of in _read(level))
            text = f"{_WAYS[c]} {number(float(held))} of {number(float(budget))} nats"
            if place != aggregate.OPEN:
                shut = True
                text += f", {self._beyond(int(place), int(level.size[row, column, c]))}"
            said.append(text)
        return f"Its {name}'s {what} of the drift, {said[0]}; {said[1]}.".replace(
            "drift of the drift", "drift"
        ), shut

    def _beyond(self, place: int, size: int) -> str:
        if self._hold:
            return "held at its budget"
        if place == aggregate.ZEROED:
            return "so far beyond that its gate gives 0"
        return f"in rollback: every further nat gives back {size}"

    def _silent_level(self, name: str, row: int, column: int) -> tuple[str, bool]:
        """One level of a silent hierarchy."""
        level, c = self._tokens.levels[name], int(self._tokens.kept.advantage[row, column] < 0)
        held, budget, place = (of[row, column, c] for of in _read(level))
        return _asked(f"Its {name}", float(held), float(budget), c), place != aggregate.OPEN

    def _own(self, row: int, column: int) -> tuple[str, bool]:
        """The token's own gate in a hierarchy."""
        tokens, at = self._tokens, (row, column)
        assert tokens.own is not None and tokens.own_budget is not None
        own, budget = float(tokens.own[at]), float(tokens.own_budget[at])
        text = f"The token's own drift, {number(own)} nats beyond its channel's mean, is "
        if abs(own) > budget:
            return text + f"over its budget of {number(budget)}: clipped.", True
        text += f"within its budget of {number(budget)}"
        if tokens.changed[TOKEN][at]:
            return text + "; the mean of the other channel is over it: clipped.", True
        return text + ".", False

    def _silent_own(self, row: int, column: int) -> tuple[str, bool]:
        """The token's own gate in a silent hierarchy."""
        tokens, at = self._tokens, (row, column)
        assert tokens.own is not None and tokens.own_budget is not None
        c = int(tokens.kept.advantage[at] < 0)
        own, budget = float(tokens.own[at]) * (1 - 2 * c), float(tokens.own_budget[at])
        text = _asked("The token", own, budget, c)
        if own <= budget and tokens.changed[TOKEN][at]:
            cap = float(tokens.gate.budgets["weight_cap"])
            return f"{text} Its weight is held at {number(cap)}.", True
        return text, own > budget

    def _composition(self, row: int, column: int) -> tuple[str, bool]:
        structure, at = self._tokens.gate.structure, (row, column)
        least = ROUNDING * abs(self._tokens.parts[OPEN][at])
        took = bool(abs(self._tokens.parts[COMPOSITION][at]) > least)
        names = [
            *(("the pessimistic composition",) if structure.pessimistic else ()),
            *(("the dual clip",) if self._tokens.gate.budgets["dual_clip"] is not None else ()),
            *(("the recovery",) if structure.recovery else ()),
        ]
        who = " or ".join(names)
        return f"{who[0].upper()}{who[1:]} {'replaces' if took else 'leaves'} what it got.", took

    def _gate(self, row: int, column: int) -> tuple[str, bool]:
        tokens, at = self._tokens, (row, column)
        said = [measure.text(at) for measure in self._measures[int(tokens.kept.minibatch[row])]]
        shut = any(bool(of[at]) for of in tokens.changed.values())
        if not said:
            levels = [level for level, of in tokens.changed.items() if of[at]]
            told = f"changes it at {' and '.join(levels)}" if levels else "leaves it"
            said = [f"The gate {tokens.gate.structure.name} {told}."]
        return " ".join(said), shut

    def _left(self, row: int, column: int) -> str:
        """What is left of the coefficient, and where it was lost or turned."""
        tokens, at = self._tokens, (row, column)
        fate, left = int(tokens.fate[at]), float(tokens.coefficient[at])
        began = float(tokens.parts[OPEN][at])
        if fate == IDLE:
            return "There was no push, and there is none."
        if fate == MOVED:
            return f"Left is {signed(left)}, all of it by others: through what this token drifts."
        if fate == VANISHED:
            return f"Nothing is left: the gradient vanished{self._where(row, column)}."
        if fate == TURNED:
            where = self._where(row, column)
            return f"Left is {signed(left)}, a push {_way(left)}: the gradient turned{where}."
        share = f"{number(100 * left / began)} % of it"
        kept = share if fate in (WEAKER, STRONGER) else "all of it"
        return f"Left is {signed(left)}, {kept}."

    def _where(self, row: int, column: int) -> str:
        """The first part after which nothing of the first sign was left, but for the end."""
        tokens, at = self._tokens, (row, column)
        if GATE in tokens.parts:
            return ""
        values = np.array([float(of[at]) for of in tokens.parts.values()])
        after = np.cumsum(values)
        gone = after * after[0] <= 1e-6 * after[0] ** 2
        # From there on it never came back.
        back = np.flatnonzero(~gone)
        name = list(tokens.parts)[int(back[-1]) + 1]
        return {TOKEN: " at the token itself", COMPOSITION: " at the end"}.get(
            name, f" at its {name}"
        )


_WAYS = ("up", "down")


def _read(level: Level) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return level.held, level.budget, level.place


def _asked(who: str, moved: float, budget: float, c: int) -> str:
    """How far something has moved in the direction that the advantage asks for."""
    if moved > budget:
        return (
            f"{who} has moved {number(moved)} nats {_WAYS[c]}, as the advantage asks, beyond its "
            f"budget of {number(budget)}: closed."
        )
    if moved < 0:
        return f"{who} has moved {number(-moved)} nats back, {_WAYS[1 - c]}: never closed."
    return f"{who} has moved {number(moved)} of {number(budget)} nats {_WAYS[c]}: open."


def _way(push: float) -> str:
    return "up" if push > 0 else "down"
