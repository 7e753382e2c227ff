"""Sums of rewards: `"number + 0.1*format"` in a config is a verifier like any other."""

import dataclasses
import importlib.util
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fiberjax.tasks.rewards.base import Case, Failed, Verifier, extracted, tells, values_of
from fiberjax.tasks.rewards.workers import Isolated

_TERM = re.compile(r"(?:([^*]+)\*)?([A-Za-z_./][A-Za-z0-9_.:/-]*)")


@dataclasses.dataclass(frozen=True)
class Sum:
    """Σ weight × reward, as a verifier.

    Attributes:
      terms: pairs of a weight and a verifier.
    """

    terms: tuple[tuple[float, Verifier], ...]

    def __call__(self, prompt: str, answer: str, completion: str) -> Any:
        """Of one completion; 0.0 where a term failed."""
        return math.fsum(
            weight * float(verify(prompt, answer, completion)) for weight, verify in self.terms
        )

    def many(self, cases: Sequence[Case]) -> list[Any]:
        """Of several completions; where a term is `Failed`, so is the sum, and else no number."""
        columns = [(weight, values_of(verify, cases)) for weight, verify in self.terms]
        return [
            _total([(weight, values[index]) for weight, values in columns])
            for index in range(len(cases))
        ]

    def tells(self) -> bool:
        """Whether a term says what it takes for the answer."""
        return any(tells(verify) for _, verify in self.terms)

    def extract(self, completion: str) -> str | None:
        """What the first term that says anything takes for the answer."""
        found = (extracted(verify, completion) for _, verify in self.terms)
        return next((answer for answer in found if answer is not None), None)


def _total(terms: Sequence[tuple[float, Any]]) -> Any:
    """A sum of values; the first that is none, as it is."""
    for _, value in terms:
        if isinstance(value, Failed | str) or value is None:
            return value
    return math.fsum(weight * float(value) for weight, value in terms)


def combine(expression: str, table: Mapping[str, Verifier]) -> Verifier:
    """The verifier of a name, or of a weighted sum of names.

    Args:
      expression: names joined by "+", each with a weight and "*" before it, or none for 1.
      table: verifiers by name.

    Returns:
      `(prompt, answer, completion) -> Σ weight × reward`; the entry itself for a name alone.

    Raises:
      ValueError: it is not of this form, a weight is not finite, a name is not in the table, or
        needs an extra that is not installed.

    >>> half = combine("0.5*same + 2*other", {"same": lambda *_: 1.0, "other": lambda *_: 0.25})
    >>> half("", "", "")
    1.0
    """
    terms = tuple(_term(term.strip(), expression, table) for term in expression.split("+"))
    if len(terms) == 1 and terms[0][0] == 1:
        return terms[0][1]
    return Sum(terms)


def names_of(expression: str) -> tuple[str, ...]:
    """The names in a sum, in its order; unchecked.

    >>> names_of("number + 0.1*format")
    ('number', 'format')
    """
    return tuple(term.rpartition("*")[2].strip() for term in expression.split("+"))


def isolated_in(verify: Verifier) -> list[Isolated]:
    """What of a verifier runs in workers."""
    parts = [of for _, of in verify.terms] if isinstance(verify, Sum) else [verify]
    return [part for part in parts if isinstance(part, Isolated)]


def _term(term: str, expression: str, table: Mapping[str, Verifier]) -> tuple[float, Verifier]:
    """The weight and the verifier of one term."""
    found = _TERM.fullmatch(term)
    try:
        weight = 1.0 if found is None or found[1] is None else float(found[1])
    except ValueError:
        weight = math.nan
    if found is None or not math.isfinite(weight):
        raise ValueError(
            f"verifier {expression!r}: expected a name, or a sum such as 'number + 0.1*format' "
            "with finite weights"
        )
    name = found[2]
    if name not in table:
        raise ValueError(f"unknown verifier {name!r}, expected one of {', '.join(table)}")
    verify = table[name]
    if isinstance(verify, Isolated) and verify.needs:
        module, extra = verify.needs
        if importlib.util.find_spec(module) is None:
            raise ValueError(
                f"verifier {name!r} needs the extra {extra!r}, which is not installed: "
                f"uv sync --inexact --extra {extra}"
            )
    return weight, verify
