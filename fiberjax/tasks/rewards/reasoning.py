"""Completions of reasoning-gym's problems, by the scorer of their data set.

Scorers parse what a policy wrote, some of them with sympy, so this runs in workers alone. They need
the problem as its data set made it, which `row` brings.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any


def answer_of(completion: str) -> str:
    """What the last `<answer>` element holds, else the whole text; white space aside.

    An element that is not closed holds nothing.

    >>> answer_of("so <answer> 12 </answer>."), answer_of(" 12"), answer_of("<answer>12")
    ('12', '12', '')
    """
    _, opened, rest = completion.rpartition("<answer>")
    if not opened:
        return completion.strip()
    inside, closed, _ = rest.partition("</answer>")
    return inside.strip() if closed else ""


def score(prompt: str, answer: str, completion: str, row: Mapping[str, Any]) -> float:
    """What the data set's own scorer gives, from 0 to 1; 0.0 for an empty answer.

    Many give something for an answer that contains the right one, or has its form.
    """
    del prompt, answer
    found = answer_of(completion)
    if not found:
        return 0.0
    entry = row["reasoning_gym"]
    return float(_scorer(entry["metadata"]["source_dataset"])(found, entry))


def solved(prompt: str, answer: str, completion: str, row: Mapping[str, Any]) -> float:
    """1.0 for what the scorer gives its full score, and 0.0 else."""
    return float(score(prompt, answer, completion, row) >= 1.0)


score.extract = solved.extract = answer_of  # type: ignore[attr-defined]


@functools.lru_cache
def _scorer(name: str) -> Callable[[str, Mapping[str, Any]], float]:
    from reasoning_gym.factory import get_score_answer_fn

    return get_score_answer_fn(name)
