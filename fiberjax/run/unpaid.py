"""Notices a run that nothing pays: rewards without a difference teach nothing, however long.

A group whose rewards are all equal has advantages of exactly 0, and so a gradient of 0. Where the
first iterations have no other groups, or every completion of a domain got 0, something is likely
wrong with the reward or the prompts, and the run says so instead of going on for hours.
"""

from collections.abc import Mapping
from typing import Any

from fiberjax.experiment import Experiment

LONGEST = 60
"""Characters of an answer that are shown."""

CUT = 0.5
"""From this share of cut answers on, that is the likely cause."""


class Unpaid:
    """Counts what the first iterations were paid.

    Args:
      experiment: of the run; `training.unpaid_iterations` is how many iterations are looked at, 0
        for none.
    """

    def __init__(self, experiment: Experiment):
        self._experiment = experiment
        self._limit = experiment.training.unpaid_iterations
        self._seen = 0
        self._spread = False
        self._paid: dict[str, bool] = {}
        self._cut: list[float] = []
        self._failed = 0.0

    def observe(self, iteration: int, scalars: Mapping[str, float]) -> str | None:
        """What is wrong, once the first iterations are over; None where nothing is.

        Args:
          iteration: counted from 0.
          scalars: its metrics.
        """
        if iteration >= self._limit or iteration != self._seen:
            return None  # Judged, or not seen from the first on.
        self._seen += 1
        self._spread |= bool(scalars["frac_reward_zero_std"] < 1)
        self._cut.append(float(scalars["response_length/clip_ratio"]))
        self._failed += float(scalars.get("verifier/failed", 0))
        for name in self._experiment.domain_names:
            if f"reward/{name}" in scalars:
                paid = bool(scalars[f"reward/{name}"] != 0)
                self._paid[name] = self._paid.get(name, False) or paid
        if iteration + 1 < self._limit:
            return None
        wrong = self._wrong()
        return wrong and f"{wrong} The run is saved, and the same command goes on with it"

    def at_end(self) -> str | None:
        """What is wrong with a run that was over before its first iterations were, if anything."""
        return self._wrong() if 0 < self._seen < self._limit else None

    def get_state(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON values."""
        found = {"seen": self._seen, "spread": self._spread, "paid": dict(self._paid)}
        return found | {"cut": list(self._cut), "failed": self._failed}

    def set_state(self, state: Mapping[str, Any] | None) -> None:
        """Goes on from a checkpoint; one without it, of an earlier version, is not judged."""
        if state is not None:
            self._seen, self._spread = int(state["seen"]), bool(state["spread"])
            self._paid, self._cut = dict(state["paid"]), list(state["cut"])
            self._failed = float(state["failed"])

    def _wrong(self) -> str | None:
        """What the iterations so far were not paid for, if anything."""
        unpaid = [name for name, paid in self._paid.items() if not paid]
        if self._spread and not unpaid:
            return None
        what = f"no completion of {', '.join(map(repr, unpaid))} was paid anything"
        if not self._spread:
            what = "the rewards of every prompt group were all equal, so that nothing was learned"
        iterations = "iteration" if self._seen == 1 else f"{self._seen} iterations"
        return f"in the first {iterations} {what}. {self._cause(unpaid)}"

    def _cause(self, unpaid: list[str]) -> str:
        """The likely cause, and what to look at."""
        tasks = self._experiment.tasks
        if self._failed > 0:
            return f"Rewards failed for {self._failed:.0f} completions, which are paid 0."
        cut = sum(self._cut) / len(self._cut)
        if cut >= CUT:
            return (
                f"{cut:.0%} of the answers were cut at config.window.completion = "
                f"{self._experiment.window.completion} tokens: they may need more."
            )
        if not unpaid:
            return "The prompts may be too easy or too hard for this policy, or samples too few."
        example = next(of for of in self._experiment.train if of.name == unpaid[0]).source[0]
        answer = (
            example.answer if len(example.answer) <= LONGEST else example.answer[:LONGEST] + "…"
        )
        verifier = dict(tasks.verifiers).get(unpaid[0], tasks.verifier)
        reads = f"config.tasks.verifier = {verifier!r}" if tasks.file else "the family's own"
        if tasks.file and verifier == "auto":
            reads += ": the layout's, or exact"
        return (
            f"Their verifier ({reads}) looks for answers such as {answer!r}: see what it makes of "
            "a completion, and whether the prompt asks for that form."
        )
