"""The best value that a metric has had: it keeps the best checkpoint, and stops a run early.

A value that is not finite is never the best. Iterations whose row lacks the metric, as those
between two evaluations do, count for nothing.
"""

import math
from collections.abc import Mapping
from typing import Any

from fiberjax.options import Stop


class Best:
    """Follows a metric from iteration to iteration.

    Attributes:
      iteration: iterations finished at the best value; None before there was one.
      value: the best one.
      since: how many values came after it.
    """

    def __init__(self, metric: str, mode: str, min_delta: float = 0.0):
        """Begins with none.

        Args:
          metric: its name in a row; "" follows nothing.
          mode: "max" or "min": which is better.
          min_delta: by how much a value must be better than the best one to take its place.
        """
        self.iteration: int | None = None
        self.value = 0.0
        self.since = 0
        self._metric, self._min_delta = metric, min_delta
        self._rule = {"metric": metric, "mode": mode, "min_delta": min_delta}
        self._sign = 1.0 if mode == "max" else -1.0

    def observe(self, iteration: int, scalars: Mapping[str, float]) -> bool:
        """Takes the row of an iteration; whether its value is the best.

        Args:
          iteration: iterations finished.
          scalars: its metrics by name.
        """
        value = scalars.get(self._metric)
        if value is None:
            return False
        gain = self._sign * (value - self.value)
        if math.isfinite(value) and (self.iteration is None or gain > self._min_delta):
            self.iteration, self.value, self.since = iteration, float(value), 0
            return True
        self.since += 1
        return False

    def get_state(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON values."""
        found = {"iteration": self.iteration, "value": self.value, "since": self.since}
        return found | {"rule": self._rule}

    def set_state(self, state: Mapping[str, Any] | None) -> None:
        """Goes on from a checkpoint; begins anew where it has none, or one of another rule."""
        if state is not None and state["rule"] == self._rule:
            self.iteration, self.value = state["iteration"], float(state["value"])
            self.since = int(state["since"])


class EarlyStop(Best):
    """The best value of what `config.stop` names, and whether too many came after it."""

    def __init__(self, rule: Stop):
        """Begins with none; see `options.Stop`."""
        super().__init__(rule.metric, rule.mode, rule.min_delta)
        self._stop = rule

    @property
    def reached(self) -> bool:
        """Whether the run is to stop."""
        return bool(self._stop.metric) and self.since >= self._stop.patience

    def __str__(self) -> str:
        best = "was never finite"
        if self.iteration is not None:
            best = f"was best at {self.value:.4g} after iteration {self.iteration}"
        return (
            f"config.stop: {self._stop.metric} {best}, and {self.since} values since are not "
            f"better by {self._stop.min_delta:g}"
        )
