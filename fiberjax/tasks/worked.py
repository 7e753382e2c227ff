"""Families whose completions show their work, 32 tokens and more, and end in `#answer`."""

import dataclasses
from typing import Annotated, ClassVar

import numpy as np

from fiberjax.bounds import AT_LEAST_1
from fiberjax.tasks.examples import Example, Family, draw_size
from fiberjax.tasks.rewards import WORKED_DELIMITER, final_answer


@dataclasses.dataclass(frozen=True)
class Worked(Family):
    """A family whose reward reads the text after the one `#` of a completion.

    The steps before it are free: they are taught, not rewarded. No `#`, or more than one, is 0.
    """

    def verify(self, prompt: str, answer: str, completion: str) -> float:
        """Returns 1.0 if the completion has exactly one `#`, and the answer after it."""
        del prompt
        return float(final_answer(completion) == answer)


@dataclasses.dataclass(frozen=True)
class Addition(Worked):
    """Prompt ``A:2347+589=``; columns from the right as ``digit+digit+carry=two digits``.

    Attributes:
      min_digits: fewest digits of the longer operand.
      max_digits: most digits of the longer operand.
    """

    name: ClassVar[str] = "addition"
    description: ClassVar[str] = "Addition, column by column with carries."

    min_digits: Annotated[int, AT_LEAST_1] = 4
    max_digits: Annotated[int, AT_LEAST_1] = 4

    def generate(self, rng: np.random.Generator, difficulty: int = 0) -> Example:
        """Returns one example."""
        digits = draw_size(rng, self, self.min_digits, self.max_digits, difficulty)
        a = _number(rng, digits)
        b = _number(rng, digits)
        steps, carry = [], 0
        for da, db in zip(f"{a}"[::-1], f"{b}"[::-1], strict=True):
            total = int(da) + int(db) + carry
            steps.append(f"{da}+{db}+{carry}={total:02d}")
            carry = total // 10
        answer = str(a + b)
        solution = ",".join(steps) + WORKED_DELIMITER + answer
        return Example(f"A:{a}+{b}=", answer, solution, self.name)

    def canonical(self, prompt: str) -> str:
        """Returns the prompt with its operands in order: a + b is b + a."""
        return _in_order(prompt, "+")


@dataclasses.dataclass(frozen=True)
class RunningSum(Worked):
    """Prompt ``T:3+8+5+9+2+7=``; the total so far, one operand at a time.

    Attributes:
      min_operands: fewest one-digit operands.
      max_operands: most one-digit operands.
    """

    name: ClassVar[str] = "running_sum"
    description: ClassVar[str] = "Sum of one-digit numbers by running totals."

    min_operands: Annotated[int, AT_LEAST_1] = 6
    max_operands: Annotated[int, AT_LEAST_1] = 7

    def generate(self, rng: np.random.Generator, difficulty: int = 0) -> Example:
        """Returns one example."""
        count = draw_size(rng, self, self.min_operands, self.max_operands, difficulty)
        operands = [int(n) for n in rng.integers(1, 10, count)]
        steps, total = [], operands[0]
        for operand in operands[1:]:
            steps.append(f"{total}+{operand}={total + operand}")
            total += operand
        solution = ",".join(steps) + WORKED_DELIMITER + str(total)
        return Example(f"T:{'+'.join(map(str, operands))}=", str(total), solution, self.name)

    def canonical(self, prompt: str) -> str:
        """Returns the prompt with its operands in order."""
        return _in_order(prompt, "+")


@dataclasses.dataclass(frozen=True)
class Selection(Worked):
    """Prompt ``L:528146=``; selection sort as ``smallest:rest`` until nothing is left.

    Attributes:
      min_length: fewest digits.
      max_length: most digits.
    """

    name: ClassVar[str] = "selection"
    description: ClassVar[str] = "Sort digits, showing each step of a selection sort."

    min_length: Annotated[int, AT_LEAST_1] = 6
    max_length: Annotated[int, AT_LEAST_1] = 7

    def generate(self, rng: np.random.Generator, difficulty: int = 0) -> Example:
        """Returns one example."""
        length = draw_size(rng, self, self.min_length, self.max_length, difficulty)
        digits = "".join(str(n) for n in rng.integers(0, 10, length))
        steps, rest = [], digits
        while rest:
            smallest = min(rest)
            rest = rest.replace(smallest, "", 1)
            steps.append(f"{smallest}:{rest}")
        answer = "".join(sorted(digits))
        solution = ",".join(steps) + WORKED_DELIMITER + answer
        return Example(f"L:{digits}=", answer, solution, self.name)

    def canonical(self, prompt: str) -> str:
        """Returns the prompt with its digits in order, so that no test answer is ever taught."""
        return prompt[:2] + "".join(sorted(prompt[2:-1])) + prompt[-1:]


def _number(rng: np.random.Generator, digits: int) -> int:
    """Returns an integer of exactly this many digits, digit by digit (no 64-bit limit)."""
    first = int(rng.integers(1, 10))
    return int(str(first) + "".join(str(n) for n in rng.integers(0, 10, digits - 1)))


def _in_order(prompt: str, separator: str) -> str:
    return prompt[:2] + separator.join(sorted(prompt[2:-1].split(separator))) + prompt[-1:]
