"""Countdown: reach a target with given numbers and + - * /; many right answers."""

import dataclasses
from collections.abc import Callable
from fractions import Fraction
from typing import Annotated, ClassVar

import numpy as np

from fiberjax.bounds import AT_LEAST_1, Range
from fiberjax.tasks.examples import Example, Family, draw_size

_LONGEST_EXPRESSION = 128
_MOST_DIGITS = 6
_DEEPEST = 16
# Drawing stops with an error once this many expressions in a row miss the targets.
_MOST_DRAWS = 5_000

_OPERATIONS: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
}


class _Refused(Exception):
    """The text is no expression of the grammar, or leaves its bounds."""


class _Parser:
    """Recursive descent over `sum = product (+|- product)*`, with the numbers it met.

    Bounded in length, digits per number and depth of parentheses, so that time and the size of
    every intermediate value are bounded too.
    """

    def __init__(self, text: str):
        if len(text) > _LONGEST_EXPRESSION:
            raise _Refused
        self.text = text.replace(" ", "")
        self.position = 0
        self.numbers: list[int] = []

    def peek(self) -> str:
        return self.text[self.position : self.position + 1]

    def chain(self, operators: str, operand: Callable[[int], Fraction], depth: int) -> Fraction:
        value = operand(depth)
        while self.peek() and self.peek() in operators:
            operator = self.peek()
            self.position += 1
            right = operand(depth)
            if operator == "/" and right == 0:
                raise _Refused
            value = _OPERATIONS[operator](value, right)
        return value

    def sum(self, depth: int) -> Fraction:
        return self.chain("+-", self.product, depth)

    def product(self, depth: int) -> Fraction:
        return self.chain("*/", self.atom, depth)

    def atom(self, depth: int) -> Fraction:
        if self.peek() == "(":
            if depth == _DEEPEST:
                raise _Refused
            self.position += 1
            value = self.sum(depth + 1)
            if self.peek() != ")":
                raise _Refused
            self.position += 1
            return value
        start = self.position
        # `"" in "0123456789"` is true, hence the first test.
        while self.peek() and self.peek() in "0123456789":
            self.position += 1
        digits = self.text[start : self.position]
        if not digits or len(digits) > _MOST_DIGITS:
            raise _Refused
        self.numbers.append(int(digits))
        return Fraction(int(digits))


def evaluate(text: str) -> tuple[Fraction, list[int]] | None:
    """Returns an expression's exact value and the numbers it uses, or None if it is none.

    The grammar: non-negative integers of at most 6 ASCII digits, `+ - * /`, parentheses at most
    16 deep, ASCII spaces anywhere, at most 128 characters. No unary signs, no division by zero.

    Example:
      >>> evaluate("8/(3-8/3)")
      (Fraction(24, 1), [8, 3, 8, 3])
      >>> evaluate("2**9") is None
      True
    """
    try:
        parser = _Parser(text)
        value = parser.sum(0)
    except _Refused:
        return None
    return (value, parser.numbers) if parser.position == len(parser.text) else None


@dataclasses.dataclass(frozen=True)
class Countdown(Family):
    """Prompt ``C:3,7,8>24=``; any expression that uses each number exactly once and reaches 24.

    Attributes:
      min_numbers: fewest numbers of a problem.
      max_numbers: most numbers of a problem.
      max_number: largest number given.
      max_target: largest target.
    """

    name: ClassVar[str] = "countdown"
    description: ClassVar[str] = "Reach a target with the given numbers, each used exactly once."

    largest: ClassVar[int] = 12  # Numbers that an expression of the longest kind can hold.

    min_numbers: Annotated[int, AT_LEAST_1] = 2
    max_numbers: Annotated[int, AT_LEAST_1] = 3
    max_number: Annotated[int, Range("[1, 999999]")] = 9
    max_target: Annotated[int, Range("[1, 999999]")] = 30

    def generate(self, rng: np.random.Generator, difficulty: int = 0) -> Example:
        """Returns one example, solvable by construction; its answer is the target.

        Raises:
          ValueError: as `draw_size`; or expressions of these numbers do not reach the targets.
        """
        count = draw_size(rng, self, self.min_numbers, self.max_numbers, difficulty)
        for _ in range(_MOST_DRAWS):
            numbers = [int(n) for n in rng.integers(1, self.max_number + 1, count)]
            value, expression = _random_expression(rng, numbers)
            if value.denominator == 1 and 1 <= value <= self.max_target:
                prompt = f"C:{','.join(map(str, numbers))}>{value}="
                return Example(prompt, str(value), expression, self.name)
        raise ValueError(
            f"countdown: {_MOST_DRAWS} expressions of {count} numbers up to max_number = "
            f"{self.max_number} in a row are no whole number from 1 to max_target = "
            f"{self.max_target}"
        )

    def verify(self, prompt: str, answer: str, completion: str) -> float:
        """Returns 1.0 for an expression that uses each number once and equals the answer."""
        result = evaluate(completion)
        if result is None:
            return 0.0
        value, used = result
        given = prompt.partition(":")[2].partition(">")[0].split(",")
        return float(str(value) == answer and sorted(map(str, used)) == sorted(given))

    def canonical(self, prompt: str) -> str:
        """Returns the prompt with its numbers in order."""
        numbers, _, target = prompt.partition(":")[2].partition(">")
        return f"C:{','.join(sorted(numbers.split(',')))}>{target}"


def _random_expression(rng: np.random.Generator, numbers: list[int]) -> tuple[Fraction, str]:
    """Joins the numbers in random pairs; returns the value and its text, parentheses as needed."""
    # (value, text, binding strength of the outermost operator)
    parts = [(Fraction(n), str(n), 3) for n in numbers]
    while len(parts) > 1:
        left = parts.pop(int(rng.integers(len(parts))))
        right = parts.pop(int(rng.integers(len(parts))))
        operator = "+-*/"[int(rng.integers(4))]
        if operator == "/" and (right[0] == 0 or left[0] % right[0] != 0):
            operator = "+"
        strength = 1 if operator in "+-" else 2
        left_text = left[1] if left[2] >= strength else f"({left[1]})"
        # The right operand of - and / needs them at equal strength too.
        tight = right[2] > strength or (right[2] == strength and operator in "+*")
        right_text = right[1] if tight else f"({right[1]})"
        value = _OPERATIONS[operator](left[0], right[0])
        parts.append((value, f"{left_text}{operator}{right_text}", strength))
    return parts[0][0], parts[0][1]
