"""The procedural domains: short-answer families here, and the table of them all."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, ClassVar

import numpy as np

from fiberjax.bounds import AT_LEAST_1, FRACTION, Length, Range, shown
from fiberjax.tasks import rewards
from fiberjax.tasks.calculation import Calculation
from fiberjax.tasks.countdown import Countdown
from fiberjax.tasks.examples import Example, Family, draw_size
from fiberjax.tasks.worked import Addition, RunningSum, Selection


@dataclasses.dataclass(frozen=True)
class Reverse(Family):
    """Prompt ``R:fkbcae=``, answer ``eacbkf``.

    Attributes:
      min_length: fewest letters.
      max_length: most letters.
      letters: alphabet drawn from.
    """

    name: ClassVar[str] = "reverse"
    description: ClassVar[str] = "Write a string of letters backwards."

    min_length: Annotated[int, AT_LEAST_1] = 4
    max_length: Annotated[int, AT_LEAST_1] = 8
    letters: Annotated[str, Length(1, 1000)] = "abcdefghij"

    def generate(self, rng: np.random.Generator, difficulty: int = 0) -> Example:
        """Returns one example."""
        length = draw_size(rng, self, self.min_length, self.max_length, difficulty)
        text = "".join(self.letters[i] for i in rng.integers(0, len(self.letters), length))
        return Example(f"R:{text}=", text[::-1], text[::-1], self.name)


@dataclasses.dataclass(frozen=True)
class Sort(Family):
    """Prompt ``S:52814=``, answer ``12458``.

    Attributes:
      min_length: fewest symbols.
      max_length: most symbols.
      symbols: alphabet drawn from, in its order.
    """

    name: ClassVar[str] = "sort"
    description: ClassVar[str] = "Sort digits."

    min_length: Annotated[int, AT_LEAST_1] = 4
    max_length: Annotated[int, AT_LEAST_1] = 8
    symbols: Annotated[str, Length(1, 1000)] = "0123456789"

    def generate(self, rng: np.random.Generator, difficulty: int = 0) -> Example:
        """Returns one example."""
        length = draw_size(rng, self, self.min_length, self.max_length, difficulty)
        indices = rng.integers(0, len(self.symbols), length)
        text = "".join(self.symbols[i] for i in indices)
        answer = "".join(self.symbols[i] for i in sorted(indices))
        return Example(f"S:{text}=", answer, answer, self.name)

    def canonical(self, prompt: str) -> str:
        """Returns the prompt with its symbols in order, so that no test answer is ever taught."""
        return prompt[:2] + "".join(sorted(prompt[2:-1])) + prompt[-1:]


@dataclasses.dataclass(frozen=True)
class Brackets(Family):
    """Prompt ``B:([]{<=``, answer ``>})``: close what is open, innermost first.

    Attributes:
      min_length: fewest brackets in the prompt.
      max_length: most brackets in the prompt.
      close_probability: chance that a bracket of the prompt closes the innermost open one.
    """

    name: ClassVar[str] = "brackets"
    description: ClassVar[str] = "Close the open brackets."

    min_length: Annotated[int, AT_LEAST_1] = 6
    max_length: Annotated[int, AT_LEAST_1] = 12
    close_probability: Annotated[float, FRACTION] = 0.3

    def generate(self, rng: np.random.Generator, difficulty: int = 0) -> Example:
        """Returns one example with at least one bracket left open."""
        length = draw_size(rng, self, self.min_length, self.max_length, difficulty)
        text, closers = "", ""
        for position in range(length):
            # A last bracket that leaves nothing open would leave nothing to answer.
            may_close = len(closers) > (1 if position == length - 1 else 0)
            if may_close and rng.random() < self.close_probability:
                text, closers = text + closers[-1], closers[:-1]
            else:
                kind = int(rng.integers(4))
                text, closers = text + "([{<"[kind], closers + ")]}>"[kind]
        return Example(f"B:{text}=", closers[::-1], closers[::-1], self.name)


@dataclasses.dataclass(frozen=True)
class Modular(Family):
    """Prompt ``M:(47*38+5)%7=``, answer one digit: a control that is memorised, not worked out.

    Attributes:
      digits: digits of the two factors.
      moduli: moduli drawn from, each in 2..10.
    """

    name: ClassVar[str] = "modular"
    description: ClassVar[str] = "Remainder of a product plus a term; one-digit answers."

    largest: ClassVar[int] = 18  # Digits of a factor that numpy can draw.

    digits: Annotated[int, AT_LEAST_1] = 1
    moduli: Annotated[tuple[int, ...], Length(1, 9), Range("[2, 10]")] = (3, 4, 6, 7, 8, 9)

    def generate(self, rng: np.random.Generator, difficulty: int = 0) -> Example:
        """Returns one example."""
        digits = draw_size(rng, self, self.digits, self.digits, difficulty)
        a, b = (int(n) for n in rng.integers(10 ** (digits - 1), 10**digits, 2))
        c = int(rng.integers(0, 100))
        modulus = self.moduli[int(rng.integers(len(self.moduli)))]
        answer = str((a * b + c) % modulus)
        return Example(f"M:({a}*{b}+{c})%{modulus}=", answer, answer, self.name)

    def canonical(self, prompt: str) -> str:
        """Returns the prompt with its factors in order."""
        factors, plus, rest = prompt[3:].partition("+")
        return prompt[:3] + "*".join(sorted(factors.split("*"))) + plus + rest


FAMILIES: dict[str, type[Family]] = {
    family.name: family
    for family in (
        Reverse,
        Sort,
        Brackets,
        Modular,
        Countdown,
        Addition,
        RunningSum,
        Selection,
        Calculation,
    )
}

VERIFIERS: dict[str, rewards.Verifier] = {
    **rewards.SHIPPED,
    **{name: family().verify for name, family in FAMILIES.items()},
}


def make_family(name: str, knobs: Mapping[str, object] | None = None) -> Family:
    """Returns a family with some of its knobs set.

    Raises:
      ValueError: unknown family or knob, or a knob of the wrong type.

    Example:
      >>> make_family("reverse", {"max_length": 6})
      Reverse(min_length=4, max_length=6, letters='abcdefghij')
    """
    if name not in FAMILIES:
        raise ValueError(f"unknown domain {name!r}, expected one of {', '.join(FAMILIES)}")
    family = FAMILIES[name]
    fields = {field.name: field for field in dataclasses.fields(family)}
    values = dict(knobs) if knobs is not None else {}
    for knob, value in values.items():
        if knob not in fields:
            raise ValueError(
                f"domain {name!r} has no knob {knob!r}, expected one of {', '.join(fields)}"
            )
        kind = type(fields[knob].default)
        if kind is tuple and isinstance(value, list):
            value = values[knob] = tuple(value)
        if type(value) is not kind:
            raise ValueError(f"knob {name}.{knob} is {shown(value)}, expected {kind.__name__}")
        if isinstance(value, tuple) and any(type(each) is not int for each in value):
            raise ValueError(f"knob {name}.{knob} is {shown(value)}, expected whole numbers")
    try:
        return family(**values)
    except ValueError as error:
        raise ValueError(f"domain {name!r}: {error}") from None
