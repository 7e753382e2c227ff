"""Rewards: what a completion is paid, and the table of the verifiers that ship.

base         what a reward is
marked       where a completion says what its answer is
notation     how numbers are written, as plain text
numbers      the one number that a text names
texts        the verifiers of texts, numbers, choices and JSON
strict       numbers in one strict form
expressions  what a text gives as a mathematical expression
symbolic     such expressions compared by what they say
patterns     the form of a whole completion
reasoning    problems of reasoning-gym, by its scorers
workers      rewards in processes of their own, with limits; `worker` is such a process
shaping      what length and truncation do to rewards
combined     sums of several, by config
"""

from collections.abc import Callable, Mapping
from typing import Any

from fiberjax.tasks.rewards import strict, texts
from fiberjax.tasks.rewards.base import (
    Case,
    Verifier,
    extracted,
    passes,
    reward_of,
    rewards_of,
    tells,
    verifier_of,
)
from fiberjax.tasks.rewards.combined import combine, isolated_in, names_of
from fiberjax.tasks.rewards.expressions import expression_of
from fiberjax.tasks.rewards.marked import (
    WORKED_DELIMITER,
    answer_element,
    final_answer,
    marked_answer,
)
from fiberjax.tasks.rewards.worker import Target
from fiberjax.tasks.rewards.workers import Isolated, Limits, close_all


def _of_reasoning_gym(name: str, function: str) -> Isolated:
    return Isolated(
        name,
        Target("fiberjax.tasks.rewards.reasoning", "", function),
        told=answer_element,
        needs=("reasoning_gym", "reasoning"),
    )


SHIPPED: Mapping[str, Verifier] = {
    "exact": texts.exact,
    "number": texts.number,
    "last_number": texts.last_number,
    "numeric": texts.number,
    "strict_number": strict.strict_number,
    "choice": texts.choice,
    "json": texts.same_json,
    "math": Isolated(
        "math",
        Target("fiberjax.tasks.rewards.symbolic", "", "math"),
        told=expression_of,
        needs=("math_verify", "math"),
    ),
    "reasoning_gym": _of_reasoning_gym("reasoning_gym", "solved"),
    "reasoning_gym_score": _of_reasoning_gym("reasoning_gym_score", "score"),
}
"""By name; "numeric" is what "number" was called before. Each family adds its own."""

READERS: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    **dict.fromkeys(("number", "last_number", "numeric"), ("name one number", texts.number_of)),
    "strict_number": ("end in a number", strict.strict_answer),
    "choice": ("name the letter of a choice", texts.choice_of),
    "json": ("hold one JSON value", texts.json_of),
    "math": ("give one number, expression or word", expression_of),
}
"""What an answer of the data must do for a verifier, and what reads it, None where it does not."""

__all__ = [
    "READERS",
    "SHIPPED",
    "WORKED_DELIMITER",
    "Case",
    "Isolated",
    "Limits",
    "Target",
    "Verifier",
    "close_all",
    "combine",
    "expression_of",
    "extracted",
    "final_answer",
    "isolated_in",
    "marked_answer",
    "names_of",
    "passes",
    "reward_of",
    "rewards_of",
    "tells",
    "verifier_of",
]
