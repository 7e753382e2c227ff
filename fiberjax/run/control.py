"""Budgets or steps that follow the run: annealed, or held to a KL or an effective sample size.

A control multiplies every width of the gate (`Gate.widths`) by one factor `f`, from iteration to
iteration, so that the proportions between levels stay as they were set; or every update, so that a
learning rate need not be searched for. To second order both the KL
of a policy from the one that sampled and the loss of effective sample size grow with the square of
the drift, so the factor moves by the root of what is missing:

    f ← f · (target / KL)^(gain/2)        f ← f · ((1 − target) / (1 − ESS))^(gain/2)

by no more than a factor 2 an iteration, and within `[1/largest, largest]`. Ours.
"""

import math
from collections.abc import Mapping
from typing import Any

from fiberjax.options import Control

KL = "actor/ppo_kl_k3"
EFFECTIVE_SAMPLE_SIZE = "is_ratio/effective_sample_size/trajectory"
FASTEST = math.log(2)
"""The most that the logarithm of the factor moves in an iteration."""


class Controller:
    """The factor of the budgets or steps, iteration by iteration.

    Attributes:
      factor: of the iteration to come.
    """

    def __init__(self, options: Control, iterations: int):
        """Begins at a factor of 1.

        Args:
          options: which control, and what it aims at.
          iterations: of the whole run, which `anneal` ends with.
        """
        self.factor = 1.0
        self._options = options
        self._iterations = iterations

    def observe(self, iteration: int, scalars: Mapping[str, float]) -> None:
        """Sets the factor of the next iteration.

        Args:
          iteration: that has ended, counted from 0.
          scalars: its metrics by name. A measure that is not finite, or at the bound that it cannot
            pass (no drift at all), moves the factor as far as an iteration may. An iteration that
            made no update has no measure, and leaves the factor.
        """
        options = self._options
        if options.kind == "anneal":
            done = min((iteration + 1) / max(self._iterations - 1, 1), 1.0)
            self.factor = 1.0 + (options.end - 1.0) * done
        elif options.kind == "kl" and KL in scalars:
            self.factor = moved(self.factor, scalars[KL], options.target, options)
        elif options.kind == "effective_sample_size" and EFFECTIVE_SAMPLE_SIZE in scalars:
            lost = 1.0 - scalars[EFFECTIVE_SAMPLE_SIZE]
            self.factor = moved(self.factor, lost, 1.0 - options.target, options)

    def get_state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"factor": self.factor}

    def set_state(self, state: Mapping[str, Any] | None) -> None:
        """Goes on from a checkpoint; None is one of before there were controls."""
        self.factor = 1.0 if state is None else float(state["factor"])


def moved(factor: float, drift: float, target: float, options: Control) -> float:
    """The factor after an iteration that drifted so far.

    Args:
      factor: before it.
      drift: what was measured, in the units of the target.
      target: what it is to be.
      options: gain and bounds.

    Returns:
      A factor in `[1/largest, largest]`: smaller where the drift was too large, or not finite.

    >>> options = Control("budgets", "kl", target=0.01, gain=1.0, end=1.0, largest=100.0)
    >>> moved(1.0, 0.02, 0.01, options)  # Half the KL: a root of a half of the drift.
    0.7071067811865476
    >>> moved(1.0, 0.0, 0.01, options), moved(1.0, float("nan"), 0.01, options)
    (2.0, 0.5)
    """
    if not math.isfinite(drift):
        step = -FASTEST
    elif drift <= 0:
        step = FASTEST
    else:
        step = options.gain * math.log(target / drift) / 2
    bounded = factor * math.exp(min(max(step, -FASTEST), FASTEST))
    return min(max(bounded, 1 / options.largest), options.largest)
