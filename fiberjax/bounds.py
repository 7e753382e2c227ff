"""What an option takes, declared beside its field and checked by its type.

    learning_rate: Annotated[float, POSITIVE]

Programs compute in float32 and count in int32. So a number counts as what it is after the cast: a
float that becomes infinite is none, and one that becomes 0 is not positive.
"""

import contextlib
import dataclasses
import math
import re
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

_INTERVAL = re.compile(r"([\[(])([^,]+), ([^,]+)([\])])")
_INT32 = 2**31
# Mappings and tuples within each other: what says more is no option, and recursion must end.
_DEEPEST = 32
# Of a name: names stand in errors.
_LONGEST = 200
_LONGEST_ERROR = 2000


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers that a field takes; for a tuple of numbers, each of them.

    Attributes:
      interval: as it is written in mathematics, such as `(0, 1]` or `[1, inf)`.

    >>> Range("(0, 1]").refusal("top_p", 0.0), Range("[1, inf)").refusal("samples", 3)
    ('top_p must be in (0, 1]; got 0.0', None)
    """

    interval: str

    def refusal(self, name: str, value: Any) -> str | None:
        """Why a number is refused; None where it is not."""
        number = as_float32(value) if isinstance(value, float) else value
        left, low, high, right = self._parts
        above = number > low or (left == "[" and number == low)
        below = number < high or (right == "]" and number == high)
        if above and below:
            return None
        one = isinstance(value, float) and (left, low, high) == ("[", 1, math.inf)
        expected = "at least 1" if one else self.expected
        return f"{name} must be {expected}; got {shown(value)}"

    @property
    def expected(self) -> str:
        """The interval in words, as after "must be"."""
        left, low, high, _ = self._parts
        if high < math.inf or low == -math.inf:
            return f"in {self.interval}"
        if (left, low) in (("(", 0), ("[", 1)):
            return "positive"
        return f"{'at least' if left == '[' else 'above'} {low:g}"

    @property
    def _parts(self) -> tuple[str, float, float, str]:
        found = _INTERVAL.fullmatch(self.interval)
        assert found is not None, self.interval
        return found[1], float(found[2]), float(found[3]), found[4]


@dataclasses.dataclass(frozen=True)
class Length:
    """How many characters a text has, or elements a tuple."""

    least: int
    most: int

    def refusal(self, name: str, value: Any) -> str | None:
        """Why it is refused; None where it is not."""
        if self.least <= len(value) <= self.most:
            return None
        what = "characters" if isinstance(value, str) else "elements"
        expected = f"{self.least} to {self.most} {what} long"
        return f"{name} must be {'not empty' if not value else expected}; got {shown(value)}"


POSITIVE = Range("(0, inf)")
AT_LEAST_0 = Range("[0, inf)")
AT_LEAST_1 = Range("[1, inf)")
FRACTION = Range("[0, 1]")
NOT_EMPTY = Length(1, 4096)


def check(section: Any) -> None:
    """Refuses a dataclass whose fields hold what `check_values` refuses."""
    check_values(
        section, {of.name: getattr(section, of.name) for of in dataclasses.fields(section)}
    )


def check_values(section: Any, values: Mapping[str, Any]) -> None:
    """Refuses a value out of the bounds that its field declares, or a number that is none.

    Args:
      section: a dataclass, or one of its kind.
      values: of its fields.

    Raises:
      ValueError: names the field, its value and what was expected.
    """
    for field in dataclasses.fields(section):
        value = values[field.name]
        check_sound(value, field.name)
        for bound in typing.get_args(field.type)[1:]:
            if not isinstance(bound, Range | Length):
                continue
            each = value if isinstance(value, tuple) and isinstance(bound, Range) else (value,)
            for one in each:
                refused = bound.refusal(field.name, one)
                if refused:
                    raise ValueError(refused)


def check_sound(value: Any, path: str, depth: int = 0) -> None:
    """Refuses what no option can be, however deep in tuples and sections it stands.

    Raises:
      ValueError: a float that is not finite as float32, an int beyond int32, or a text that is no
        UTF-8 or holds the character 0; names the path.
    """
    if depth > _DEEPEST:
        raise ValueError(f"{path} must be at most {_DEEPEST} sections deep")
    if isinstance(value, float | np.floating):
        if not math.isfinite(as_float32(value)):
            raise ValueError(f"{path} must be finite; got {shown(value)}")
    elif isinstance(value, int) and not isinstance(value, bool):
        if not -_INT32 <= value < _INT32:
            raise ValueError(f"{path} must be at least -2³¹ and below 2³¹; got {shown(value)}")
    elif isinstance(value, str):
        _check_text(value, path)
    elif isinstance(value, tuple | list):
        for index, each in enumerate(value):
            check_sound(each, f"{path}[{index}]", depth + 1)
    elif isinstance(value, Mapping) or hasattr(value, "items"):
        for name, each in value.items():
            if not isinstance(name, str) or len(name) > _LONGEST:
                raise ValueError(
                    f"{path} must have texts of up to {_LONGEST} characters for names; got "
                    f"{shown(name)}"
                )
            _check_text(name, path)
            check_sound(each, f"{path}.{name}", depth + 1)


@contextlib.contextmanager
def named(path: str) -> Iterator[None]:
    """Makes of every `ValueError` from within one line, not too long, that names a path.

    Args:
      path: put before an error that names no option.
    """
    try:
        yield
    except ValueError as error:
        told = " ".join(str(error).split("\n"))
        if len(told) > _LONGEST_ERROR:
            told = f"{told[: _LONGEST_ERROR // 2]} … {told[-_LONGEST_ERROR // 4 :]}"
        said = "config." in told or told.startswith(("config:", f"{path}.", f"{path}:"))
        raise ValueError(told if said else f"{path}: {told}") from None


def base_type(kind: Any) -> Any:
    """The type of a field without its bounds."""
    return typing.get_args(kind)[0] if typing.get_origin(kind) is typing.Annotated else kind


def as_float32(value: Any) -> float:
    """A number as programs have it; infinite where float32 is too small for it."""
    with np.errstate(over="ignore"):
        try:
            return float(np.float32(value))
        except OverflowError:  # An int beyond any float.
            return math.inf if value > 0 else -math.inf


def shown(value: Any, limit: int = 80) -> str:
    """A value for errors, on one line and in short."""
    if isinstance(value, int) and value.bit_length() > 64:
        return f"a number of {value.bit_length()} bits"
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    text = " ".join(text.split("\n"))
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _check_text(text: str, path: str) -> None:
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"{path} must be text without NUL and halves of pairs; got {text!a}")
