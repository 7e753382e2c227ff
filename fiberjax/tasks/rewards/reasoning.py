"""Completions of reasoning-gym's problems, by the scorer of their data set.

Scorers parse what a policy wrote, some of them with sympy, so this runs in workers alone. They need
the problem as its data set made it, which `row` brings.
"""

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from fiberjax.tasks.rewards.marked import answer_element

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Of the syntax of what it imports.
    try:
        from reasoning_gym.factory import get_score_answer_fn
    except ModuleNotFoundError:  # The extra: `combine` refuses the verifier by its name before.
        get_score_answer_fn = None


def score(prompt: str, answer: str, completion: str, row: Mapping[str, Any]) -> float:
    """What the data set's own scorer gives, from 0 to 1; 0.0 for an empty answer.

    Many give something for an answer that contains the right one, or has its form.
    """
    del prompt, answer
    found = answer_element(completion)
    if not found:
        return 0.0
    entry = row["reasoning_gym"]
    return float(_scorer(entry["metadata"]["source_dataset"])(found, entry))


def solved(prompt: str, answer: str, completion: str, row: Mapping[str, Any]) -> float:
    """1.0 for what the scorer gives its full score, and 0.0 else."""
    return float(score(prompt, answer, completion, row) >= 1.0)


@functools.lru_cache
def _scorer(name: str) -> Callable[[str, Mapping[str, Any]], float]:
    return get_score_answer_fn(name)
