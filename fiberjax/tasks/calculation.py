"""Products that are hard to do in the head, and a calculator that may be asked."""

import dataclasses
from typing import Annotated, ClassVar

import numpy as np

from fiberjax.bounds import AT_LEAST_1, FRACTION
from fiberjax.tasks.environments import SEPARATOR
from fiberjax.tasks.examples import Example, Family, draw_size


@dataclasses.dataclass(frozen=True)
class Calculation(Family):
    """Prompt ``calc:47*38=``, answer ``1786``, which the environment "calculator" knows.

    A solution that calls it has two turns, ``<calc>47*38</calc>`` and, after the reply, the answer.

    Attributes:
      digits: of the two factors.
      calls: share of the solutions that call the calculator; needs the environment.
    """

    name: ClassVar[str] = "calculation"
    description: ClassVar[str] = "Products of two numbers, with or without a calculator."

    digits: Annotated[int, AT_LEAST_1] = 2
    calls: Annotated[float, FRACTION] = 0.0

    def generate(self, rng: np.random.Generator, difficulty: int = 0) -> Example:
        """Returns one example."""
        digits = draw_size(rng, self, self.digits, self.digits, difficulty)
        a, b = (int(n) for n in rng.integers(10 ** (digits - 1), 10**digits, 2))
        answer = str(a * b)
        called = f"<calc>{a}*{b}</calc>{SEPARATOR}" if rng.random() < self.calls else ""
        return Example(f"calc:{a}*{b}=", answer, called + answer, self.name)

    def verify(self, prompt: str, answer: str, completion: str) -> float:
        """Returns 1.0 if the last turn is the answer."""
        del prompt
        return float(completion.rpartition(SEPARATOR)[2] == answer)

    def canonical(self, prompt: str) -> str:
        """Returns the prompt with its factors in order."""
        return "calc:" + "*".join(sorted(prompt[5:-1].split("*"))) + "="
