"""Sums of rewards: `"number + 0.1*format"` in a config is a verifier like any other."""

import math
import re
from collections.abc import Mapping

from fiberjax.tasks.rewards.base import Verifier, extracted, extracts

_TERM = re.compile(r"(?:([^*]+)\*)?([A-Za-z_][A-Za-z0-9_.:]*)")


def combine(expression: str, table: Mapping[str, Verifier]) -> Verifier:
    """The verifier of a name, or of a weighted sum of names.

    Args:
      expression: names joined by "+", each with a weight and "*" before it, or none for 1.
      table: verifiers by name.

    Returns:
      `(prompt, answer, completion) -> Σ weight × reward`; the entry itself for a name alone.

    Raises:
      ValueError: it is not of this form, a weight is not finite, or a name is not in the table.

    >>> half = combine("0.5*same + 2*other", {"same": lambda *_: 1.0, "other": lambda *_: 0.25})
    >>> half("", "", "")
    1.0
    """
    terms = [_term(term.strip(), expression, table) for term in expression.split("+")]
    if len(terms) == 1 and terms[0][0] == 1:
        return terms[0][1]

    def total(prompt: str, answer: str, completion: str) -> float:
        return math.fsum(weight * float(of(prompt, answer, completion)) for weight, of in terms)

    def answer_of(completion: str) -> str | None:
        found = (extracted(of, completion) for _, of in terms)
        return next((answer for answer in found if answer is not None), None)

    return extracts(answer_of)(total)


def names_of(expression: str) -> tuple[str, ...]:
    """The names in a sum, in its order; unchecked.

    >>> names_of("number + 0.1*format")
    ('number', 'format')
    """
    return tuple(term.rpartition("*")[2].strip() for term in expression.split("+"))


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
    if found[2] not in table:
        raise ValueError(f"unknown verifier {found[2]!r}, expected one of {', '.join(table)}")
    return weight, table[found[2]]
