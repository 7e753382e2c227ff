"""One budget of an objective, swept over many values on identical data; nothing compiles again."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from fiberjax.analysis import batch as batches
from fiberjax.analysis.objectives import RUN, Asked, Objective
from fiberjax.analysis.replay import STEP, Replay, Row, replay
from fiberjax.bounds import shown
from fiberjax.run.kept import Kept
from fiberjax.run.shown import visible


@dataclasses.dataclass(frozen=True, eq=False)
class Sweep:
    """What an objective makes of the rollouts at each value of a budget.

    Attributes:
      label: of the objective.
      budget: the name of the level or option.
      values: float64[n, 2], up and down; both alike where the budget is one number.
      replay: of the values in their order, behind plain importance ratios.
    """

    label: str
    budget: str
    values: np.ndarray
    replay: Replay

    @property
    def rows(self) -> tuple[Row, ...]:
        """Of each value, in their order."""
        return self.replay.rows[1:]

    def print(self, console: Console | None = None) -> None:
        """Prints the table on a console, the terminal where None."""
        console = Console() if console is None else console
        console.print(Text(visible(f"{self.label}: {self.budget} swept")))
        self.replay.print(console)

    def to_json(self) -> str:
        """The values and the rows as JSON, the rows as those of a replay."""
        found = json.loads(self.replay.to_json())
        found |= {"label": self.label, "budget": self.budget, "values": self.values.tolist()}
        return json.dumps(found, indent=1, allow_nan=False)

    def plot(self, folder: str | Path) -> tuple[Path, ...]:
        """Draws the sweep into a folder, made where missing; the PNG files."""
        from fiberjax.analysis import pictures

        return pictures.plot_sweep(self, Path(folder))


def sweep(
    kept: Kept,
    asked: Asked,
    budget: str,
    values: Sequence[Any],
    *,
    policy: Any = None,
    weighting: str | None = None,
    minibatch: int | None = None,
    step: float = STEP,
) -> Sweep:
    """Sweeps a budget of one objective on identical data; a `Sweep`.

    Args:
      kept: of `load_rollouts` or `from_arrays`.
      asked: the objective, as one of those of `replay`.
      budget: a level of a hierarchy, or a number of the gate such as `clip_high` or `epsilon`.
      values: numbers, or pairs plus and minus where it is a level's.
      policy: as `replay` takes it, and all that follow.
      weighting: of tokens.
      minibatch: an optimizer batch alone.
      step: length of the step that each would take.

    Raises:
      ValueError: as `replay`; or what is swept is no traced number of the gate, or a value is none.
    """
    named = asked if isinstance(asked, dict) else [asked]
    chosen = batches.chosen(kept, named, weighting)
    label, objective = list(chosen.items())[-1]
    levels = tuple(objective.gate.budgets.get("budgets", {}))
    numbers = tuple(
        name for name, of in objective.gate.budgets.items() if name != "budgets" and of is not None
    )
    if budget not in (*levels, *numbers):
        raise ValueError(
            f"objective {label!r} has no budget {budget!r} to sweep; choose from "
            f"{(*levels, *numbers)}"
        )
    if isinstance(values, str) or len(values) == 0:
        raise ValueError(f"values = {shown(values)}: expected numbers to sweep {budget!r} over")
    swept = {
        f"{budget}={_text(value)}": Objective(
            objective.gate.replace(**{budget: value}),
            objective.weighting,
            objective.constant_length,
        )
        for value in values
    }
    found = replay(kept, swept, policy=policy, weighting=weighting, minibatch=minibatch, step=step)
    pairs = np.array([np.broadcast_to(np.asarray(value, np.float64), 2) for value in values])
    return Sweep("the run's own gate" if label == RUN else label, budget, pairs, found)


def _text(value: Any) -> str:
    return "/".join(f"{part:.9g}" for part in np.atleast_1d(np.asarray(value, np.float64)))
