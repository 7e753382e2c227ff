"""Which iterations: a text such as "1, every 20, last 2", read and asked."""

import dataclasses
import re

_NUMBER = r"([0-9]{1,9})"
_PART = re.compile(rf"{_NUMBER}|every {_NUMBER}(?: from {_NUMBER})?|last {_NUMBER}")
_EXPECTED = (
    "parts such as '5' (that iteration), 'every 20' (20, 40, ...), 'every 20 from 1' (1, 21, ...) "
    "or 'last 2' (the newest two alone), with commas between, or '' for none"
)


@dataclasses.dataclass(frozen=True)
class Iterations:
    """A choice of iterations, which are counted from 1; see `parse`.

    Attributes:
      listed: by number.
      every: pairs of a distance and the first one.
      last: how many of the newest ones.
    """

    listed: tuple[int, ...] = ()
    every: tuple[tuple[int, int], ...] = ()
    last: int = 0

    def chosen(self, iteration: int, newest: int | None = None) -> bool:
        """Whether an iteration is one of them, when another is the newest; itself by default.

        >>> some = parse("3, every 20 from 1, last 2")
        >>> [n for n in range(1, 31) if some.chosen(n, 30)]
        [1, 3, 21, 29, 30]
        """
        newest = iteration if newest is None else newest
        return (
            iteration in self.listed
            or any(
                iteration >= first and (iteration - first) % distance == 0
                for distance, first in self.every
            )
            or iteration > newest - self.last
        )


def parse(text: str) -> Iterations:
    """Reads a choice of iterations; "" is none.

    Raises:
      ValueError: a part that is none of those expected, or a number below 1.
    """
    listed, every, last = [], [], 0
    for part in text.split(",") if text.strip() else ():
        found = _PART.fullmatch(" ".join(part.split()))
        numbers = [] if found is None else [int(of) for of in found.groups() if of is not None]
        if found is None or min(numbers) < 1:
            raise ValueError(f"must be {_EXPECTED}; got {text!r}")
        if found[1]:
            listed += numbers
        elif found[4]:
            last = max(last, *numbers)
        else:
            every.append((numbers[0], numbers[-1]))
    return Iterations(tuple(listed), tuple(every), last)
