r"""Mathematical expressions compared by what they say: `math`, on math-verify and sympy.

Both may take any time and memory for a text that asks for it, so this runs in workers alone. Where
the answer is a number, `number` decides: `12*34` is no answer where 408 is. Elsewhere a completion
must give one expression (`expressions`) that is worth the same; a list is an answer only where the
answer is that list, values that are named are compared in their order, letters alone as they are
spelled, a solved inequality is the interval that it says, and an expression that stands in the
prompt is none unless it is written as the answer is.
"""

import functools
import logging
import re
from typing import Any

import sympy
from math_verify import LatexExtractionConfig, parse, verify
from sympy import preorder_traversal

from fiberjax.tasks.rewards.expressions import (
    expression_of,
    hedges,
    in_order,
    is_text,
    kind_of_bracket,
    repeats,
    same_text,
    spelled,
)
from fiberjax.tasks.rewards.texts import number, number_of

logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # It says what it cannot read.

_MEMBER = re.compile(r"^\s*[A-Za-z]\s*\\in(?![A-Za-z])|^\s+|\s+$")
_READ = (LatexExtractionConfig(boxed_match_priority=0),)


def math(prompt: str, answer: str, completion: str) -> float:
    """1.0 if completion and answer give the same number, text or expression."""
    if number_of(answer) is not None:
        return number(prompt, answer, completion)
    expected, found = expression_of(answer), expression_of(completion)
    if expected is None or found is None:
        return 0.0
    if spelled(found) == spelled(expected):
        return 1.0
    if hedges(found) - hedges(expected) or repeats(prompt, found):
        return 0.0
    if is_text(expected):
        return float(same_text(expected, found))
    expected, found = in_order(expected, found)
    kinds = {kind_of_bracket(expected), kind_of_bracket(found)} - {""}
    if len(kinds) == 2:
        return 0.0
    golds, answers = _read(expected), _read(found)
    regions = _region(golds), _region(answers)
    if _relational(golds) != _relational(answers) and None not in regions:
        return float(regions[0] == regions[1])
    if _endless(answers) and not _endless(golds):
        return 0.0  # Compared as a number, |∞| would be worth anything.
    # Limits of time are the worker's: those of math-verify are signals.
    return float(verify(golds, answers, timeout_seconds=None) and _close(golds, answers))


def _relational(parsed: list[Any]) -> bool:
    """Whether it is an inequality, or several at once."""
    return bool(parsed) and isinstance(parsed[0], sympy.Rel | sympy.And | sympy.Or)


def _region(parsed: list[Any]) -> sympy.Set | None:
    """The interval, or the union of some, that is meant; of inequalities, only solved ones."""
    of = parsed[0] if parsed else None
    if isinstance(of, sympy.Interval | sympy.Union):
        return of
    if of is None or not _relational(parsed) or len(of.free_symbols) != 1:
        return None
    return of.as_set() if all(map(_solved, of.atoms(sympy.Rel))) else None


def _solved(of: sympy.Rel) -> bool:
    """Whether an inequality has a variable on one side and a constant on the other."""
    sides = sorted(of.args, key=lambda side: side.is_Symbol)
    ordered = not isinstance(of, sympy.Eq | sympy.Ne)
    return ordered and sides[1].is_Symbol and not sides[0].free_symbols


def _endless(parsed: list[Any]) -> bool:
    """Whether something infinite, or no number at all, is in it, or comes out of a part of it."""
    limits = (sympy.oo, -sympy.oo, sympy.zoo, sympy.nan)
    return any(
        of.has(*limits)
        or any(_constant(part) and part.evalf().has(*limits) for part in preorder_traversal(of))
        for of in parsed
        if hasattr(of, "has")
    )


def _constant(of: Any) -> bool:
    """Whether something is an expression without a variable."""
    return isinstance(of, sympy.Expr) and not of.free_symbols


def _close(golds: list[Any], answers: list[Any]) -> bool:
    """Whether constants are worth the same, by their values; True where they are no constants."""
    gold, answer = _value(golds), _value(answers)
    return (
        gold is None or answer is None or gold == answer or abs(gold - answer) <= 1e-5 * abs(gold)
    )


def _value(parsed: list[Any]) -> complex | None:
    """What constants are worth; of an equation, the side that is one."""
    for of in parsed:
        sides = of.args if isinstance(of, sympy.Equality) else (of,)
        constants = [side for side in sides if _constant(side)]
        if len(constants) == 1:
            try:
                return complex(constants[0].evalf())
            except (TypeError, ValueError, ArithmeticError):
                return None
    return None


@functools.lru_cache(256)  # An answer is compared with every sample of its prompt.
def _read(text: str) -> list[Any]:
    r"""What math-verify makes of an expression; without its dollars, which a box does not have."""
    text = _MEMBER.sub("", text.replace("$", ""))
    return parse(f"\\boxed{{{text}}}", extraction_config=_READ, parsing_timeout=None)
