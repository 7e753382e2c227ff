"""Whether verifiers pay the answers of the data: a wrong form is seen before anything is trained.

An answer is paid where some completion that gives it earns more than an empty one: the row's own
solution, the answer as it stands, or in one of `FORMS`. All rows are looked at; where a verifier
runs in workers, `SAMPLE` of each domain, evenly along its rows.
"""

from collections.abc import Sequence

import numpy as np

from fiberjax import options
from fiberjax.tasks.domains import Domain
from fiberjax.tasks.examples import Example
from fiberjax.tasks.reading.checks import Tell
from fiberjax.tasks.reading.formats import shown
from fiberjax.tasks.rewards import Case, isolated_in, passes, rewards_of
from fiberjax.tasks.rewards.base import Failed, values_of

FORMS = (r"\boxed{{{}}}", "#### {}", "<answer>{}</answer>", "The answer is {}.")
"""How a completion may give an answer, where not as it stands."""

SAMPLE = 256
"""Rows of a domain that are looked at, where its verifier runs in workers."""


def check_rewards(
    tasks: options.Tasks,
    rewards: options.Rewards,
    train: tuple[Domain, ...],
    test: tuple[Domain, ...],
    tell: Tell,
) -> None:
    """Loads the rewards that run in workers, and verifies a file's answers against themselves.

    Raises:
      ValueError: a function cannot be loaded, or most answers of a domain are not paid.
    """
    for domain in train:
        for apart in isolated_in(domain.verify):
            apart.load()
    if tasks.file and rewards.golds != "skip":
        refuse = rewards.golds == "refuse"
        check_golds((*train, *test), tasks.pass_threshold, tell, refuse=refuse)


def check_golds(
    domains: Sequence[Domain], pass_threshold: float, tell: Tell, *, refuse: bool = True
) -> None:
    """Verifies the answers of domains against themselves.

    Args:
      domains: of files.
      pass_threshold: the least reward of a completion that passes.
      tell: is told of answers that are not paid, and where none passes.
      refuse: whether a domain of which less than half is paid is refused.

    Raises:
      ValueError: such a domain; or a solution that its verifier, in workers, does not accept. Names
        counts and the first row.
    """
    for domain in domains:
        apart = bool(isolated_in(domain.verify))
        size = len(domain.source)
        chosen = np.arange(size)
        if apart and size > SAMPLE:
            chosen = np.linspace(0, size - 1, SAMPLE).astype(int)
        rows = [domain.source[int(index)] for index in chosen]
        if apart:
            _check_solutions(domain, rows, pass_threshold)
        best = _best(domain, rows, [[row.solution, *row.answers] for row in rows])
        nothing = _best(domain, rows, [[""] for _ in rows])
        poor = np.flatnonzero(best <= nothing)
        forms = [
            [form.format(answer) for form in FORMS for answer in rows[index].answers]
            for index in poor
        ]
        best[poor] = np.maximum(best[poor], _best(domain, [rows[i] for i in poor], forms))
        unpaid = np.flatnonzero(best <= nothing)
        if len(unpaid):
            _say(domain, rows, unpaid, nothing, refuse, tell)
        elif not passes(best, pass_threshold).any():
            tell(
                f"domain {domain.name!r}: no answer reaches config.tasks.pass_threshold = "
                f"{pass_threshold:g}, the best earns {best.max():g}: pass@k and the curriculum "
                "will count none"
            )


def _say(
    domain: Domain,
    rows: Sequence[Example],
    unpaid: np.ndarray,
    nothing: np.ndarray,
    refuse: bool,
    tell: Tell,
) -> None:
    """Refuses the domain, or tells of its answers that are not paid."""
    first = rows[unpaid[0]]
    told = (
        f"domain {domain.name!r}: {len(unpaid)} of {len(rows)} answers looked at earn no more from "
        f"their own verifier than an empty completion, however they are given ({first.where}: "
        f"{shown(first.answer)} earns {nothing[unpaid[0]]:g}"
    )
    (value,) = values_of(domain.verify, [Case(first.prompt, first.answer, first.answer, first.row)])
    told += f"; it failed: {value.why})" if isinstance(value, Failed) else ")"
    if refuse and 2 * len(unpaid) > len(rows):
        raise ValueError(
            f"{told}: expected a verifier that reads such answers, as config.tasks.verifier, or "
            "config.rewards.golds = 'tell' to go on all the same"
        )
    tell(told)


def _check_solutions(domain: Domain, rows: Sequence[Example], pass_threshold: float) -> None:
    """Refuses a row whose own solution its verifier does not accept."""
    solved = [row for row in rows if row.solution not in row.answers]
    rewards = _best(domain, solved, [[row.solution] for row in solved])
    for index in np.flatnonzero(~passes(rewards, pass_threshold))[:1]:
        row = solved[index]
        raise ValueError(
            f"{row.where}: the verifier does not accept the row's own solution "
            f"{shown(row.solution)} for the answer {shown(row.answer)}"
        )


def _best(
    domain: Domain, rows: Sequence[Example], completions: Sequence[Sequence[str]]
) -> np.ndarray:
    """The best reward of each row's completions for its answers, float32[rows]."""
    cases, whose = [], []
    for index, (row, texts) in enumerate(zip(rows, completions, strict=True)):
        for text in dict.fromkeys(texts):
            for answer in row.answers:
                cases.append(Case(row.prompt, answer, text, row.row))
                whose.append(index)
    best = np.full(len(rows), -np.inf, np.float32)
    if cases:
        np.maximum.at(best, whose, rewards_of(domain.verify, domain.name, cases).reward)
    return best
