"""Rewards: what a completion is paid, and the table of the verifiers that ship.

base      what a reward is
marked    where a completion says what its answer is
numbers   the one number that a text names
texts     the verifiers of texts, numbers, choices and JSON
strict    numbers in one strict form
combined  sums of several, by config
"""

from collections.abc import Callable, Mapping
from typing import Any

from fiberjax.tasks.rewards import strict, texts
from fiberjax.tasks.rewards.base import Verifier, extracted, passes, reward_of
from fiberjax.tasks.rewards.combined import combine, names_of
from fiberjax.tasks.rewards.marked import WORKED_DELIMITER, final_answer, marked_answer

SHIPPED: Mapping[str, Verifier] = {
    "exact": texts.exact,
    "number": texts.number,
    "last_number": texts.last_number,
    "numeric": texts.number,
    "strict_number": strict.strict_number,
    "choice": texts.choice,
    "json": texts.same_json,
}
"""By name; "numeric" is what "number" was called before. Each family adds its own."""

READERS: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    **dict.fromkeys(("number", "last_number", "numeric"), ("name one number", texts.number_of)),
    "strict_number": ("end in a number", strict.strict_answer),
    "choice": ("be the letter of a choice", texts.choice_of),
    "json": ("be JSON", texts.json_of),
}
"""What an answer of the data must do for a verifier, and what reads it, None where it does not."""

__all__ = [
    "READERS",
    "SHIPPED",
    "WORKED_DELIMITER",
    "Verifier",
    "combine",
    "extracted",
    "final_answer",
    "marked_answer",
    "names_of",
    "passes",
    "reward_of",
]
