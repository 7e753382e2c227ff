"""What a reward is: a function (prompt, answer, completion) -> float, total on every string.

A reward is a finite number; most of those here are 1.0 or 0.0. A verifier that ships never raises
and takes time linear in the completion, whatever the completion holds; one that cannot promise that
runs in processes of its own, which may be ended (`workers`), and then has `Failed`.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Verifier = Callable[[str, str, str], float]
"""`(prompt, answer, completion) -> reward`. One that has an attribute `many` is given cases."""

Extract = Callable[[str], str | None]
"""A completion -> what is taken for its answer; None where there is nothing."""

_LARGEST_REWARD = float(np.finfo(np.float32).max)
_LONGEST_SHOWN = 200


class Case(NamedTuple):
    """One completion to be paid.

    Attributes:
      prompt: what was asked.
      answer: what is right.
      completion: what the policy wrote.
      row: the columns of `config.tasks.keep`, by name.
    """

    prompt: str
    answer: str
    completion: str
    row: Mapping[str, Any] = {}


class Failed(NamedTuple):
    """What stands in place of a reward whose function raised, or was ended.

    Attributes:
      why: in one line.
      stops: whether that ends the run; otherwise the completion is paid 0, and counted.
    """

    why: str
    stops: bool


class Rewards(NamedTuple):
    """What completions are paid, in their order.

    Attributes:
      reward: float32[N]; 0 where it failed.
      failed: bool[N].
    """

    reward: npt.NDArray[np.float32]
    failed: npt.NDArray[np.bool_]


def extracts(extract: Extract) -> Callable[[Verifier], Verifier]:
    """Says what a verifier takes for the answer of a completion, as its attribute `extract`."""

    def told(verify: Verifier) -> Verifier:
        verify.__dict__["extract"] = extract
        return verify

    return told


def extracted(verify: Verifier, completion: str) -> str | None:
    """What a verifier takes for the answer of a completion; None where it says nothing of it."""
    extract: Extract | None = getattr(verify, "extract", None)
    return None if extract is None else extract(completion)


def tells(verify: Verifier) -> bool:
    """Whether a verifier says what it takes for the answer."""
    told: Callable[[], bool] | None = getattr(verify, "tells", None)
    return hasattr(verify, "extract") if told is None else told()


@dataclasses.dataclass(frozen=True)
class Form:
    """How a function of the user's own is called, by its signature and its attribute `batched`.

    Attributes:
      row: whether it has a fourth argument `row`.
      batched: whether it takes lists and gives a list.
    """

    row: bool
    batched: bool

    def call(self, function: Callable[..., Any], cases: Sequence[Case]) -> list[Any]:
        """What the function gives for some cases.

        Raises:
          ValueError: a batched function does not give one value a case.
        """
        width = 4 if self.row else 3
        if not self.batched:
            return [function(*case[:width]) for case in cases]
        columns = [list(column) for column in zip(*cases, strict=True)]
        values = list(function(*columns[:width]))
        if len(values) != len(cases):
            raise ValueError(f"gave {len(values)} values for {len(cases)} completions")
        return values


def form_of(function: Callable[..., Any]) -> Form:
    """Reads once how a function is called.

    Raises:
      ValueError: it takes something else than (prompt, answer, completion), and perhaps row.

    >>> form_of(lambda prompt, answer, completion, row: 1.0)
    Form(row=True, batched=False)
    """
    batched = getattr(function, "batched", False)
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # Of a built-in, which does not say.
        return Form(False, batched)
    for row in (True, False):
        try:
            signature.bind(*["prompt", "answer", "completion", "row"][: 4 if row else 3])
        except TypeError:
            continue
        if not row or list(signature.parameters)[3:4] == ["row"]:
            return Form(row, batched)
    raise ValueError(
        f"takes {signature}, expected (prompt, answer, completion) or (prompt, answer, completion, "
        "row)"
    )


@dataclasses.dataclass(frozen=True)
class Called:
    """A function of another form as a verifier, in this process.

    Attributes:
      function: called as `form` says.
      form: of the function.
    """

    function: Callable[..., Any]
    form: Form

    def __call__(self, prompt: str, answer: str, completion: str) -> Any:
        """Of one completion, without a row."""
        return self.many([Case(prompt, answer, completion)])[0]

    def many(self, cases: Sequence[Case]) -> list[Any]:
        """Of several completions."""
        return self.form.call(self.function, cases)


def verifier_of(function: Callable[..., Any]) -> Verifier:
    """A function as a verifier: itself where it takes three texts.

    Raises:
      ValueError: as `form_of`.
    """
    if hasattr(function, "many"):
        return function
    form = form_of(function)
    return Called(function, form) if form.row or form.batched else function


def values_of(verify: Verifier, cases: Sequence[Case]) -> list[Any]:
    """What a verifier gives for some cases, unchecked; `Failed` among them where it may fail."""
    many: Callable[[Sequence[Case]], list[Any]] | None = getattr(verify, "many", None)
    if many is not None:
        return many(cases)
    return [verify(case.prompt, case.answer, case.completion) for case in cases]


def rewards_of(verify: Verifier, domain: str, cases: Sequence[Case]) -> Rewards:
    """Returns the rewards of completions, checked; a truth value is 1.0 or 0.0.

    Args:
      verify: of the domain.
      domain: its name, for errors.
      cases: what is to be paid.

    Raises:
      ValueError: the verifier returned something else than a number that is finite in float32, or
        failed where that ends the run; names the domain, the prompt and the completion.
    """
    reward = np.zeros(len(cases), np.float32)
    failed = np.zeros(len(cases), bool)
    for index, (case, value) in enumerate(zip(cases, values_of(verify, cases), strict=True)):
        if isinstance(value, Failed):
            failed[index] = True
            if value.stops:
                raise ValueError(
                    f"the verifier of domain {domain!r} failed for {_shown(case)}: {value.why} "
                    "(config.rewards.failed = 'zero' counts such completions and pays them 0)"
                )
        else:
            reward[index] = _checked(value, domain, case)
    return Rewards(reward, failed)


def reward_of(verify: Verifier, domain: str, prompt: str, answer: str, completion: str) -> float:
    """The reward of one completion without a row; as `rewards_of`."""
    return float(rewards_of(verify, domain, [Case(prompt, answer, completion)]).reward[0])


def _checked(value: Any, domain: str, case: Case) -> float:
    number = np.asarray(value)
    if (
        number.ndim == 0
        and number.dtype.kind in "buif"
        and abs(float(number)) <= _LARGEST_REWARD  # False for NaN.
    ):
        return float(number)
    raise ValueError(
        f"the verifier of domain {domain!r} returned {value!r} for {_shown(case)}; expected a "
        "finite number"
    )


def _shown(case: Case) -> str:
    prompt, completion = (
        repr(text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "...")
        for text in (case.prompt, case.completion)
    )
    return f"the prompt {prompt} and the completion {completion}"


def passes(rewards: npt.ArrayLike, threshold: float) -> npt.NDArray[np.bool_]:
    """Returns which completions pass, bool, in the shape of their rewards: reward ≥ threshold.

    Compared in float32, as rewards are kept: 0.9 passes at a threshold of 0.9.
    """
    return np.asarray(rewards, np.float32) >= np.float32(threshold)
