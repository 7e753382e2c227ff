"""What a reward is: a function (prompt, answer, completion) -> float, total on every string.

A reward is a finite number; most of those here are 1.0 or 0.0. A verifier never raises and takes
time linear in the completion, whatever the completion holds.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Verifier = Callable[[str, str, str], float]
"""`(prompt, answer, completion) -> reward`."""

Extract = Callable[[str], str | None]
"""A completion -> what is taken for its answer; None where there is nothing."""

_LARGEST_REWARD = float(np.finfo(np.float32).max)


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


def reward_of(verify: Verifier, domain: str, prompt: str, answer: str, completion: str) -> float:
    """Returns the reward of a completion, checked; a truth value is 1.0 or 0.0.

    Args:
      verify: of the domain.
      domain: its name, for errors.
      prompt: what was asked.
      answer: what is right.
      completion: what the policy wrote.

    Raises:
      ValueError: the verifier returned something else than a number that is finite in float32;
        names the domain, the prompt and what it returned.
    """
    value = verify(prompt, answer, completion)
    number = np.asarray(value)
    if (
        number.ndim == 0
        and number.dtype.kind in "buif"
        and abs(float(number)) <= _LARGEST_REWARD  # False for NaN.
    ):
        return float(number)
    raise ValueError(
        f"the verifier of domain {domain!r} returned {value!r} for the prompt {prompt!r} and the "
        f"completion {completion!r}; expected a finite number"
    )


def passes(rewards: npt.ArrayLike, threshold: float) -> npt.NDArray[np.bool_]:
    """Returns which completions pass, bool, in the shape of their rewards: reward ≥ threshold.

    Compared in float32, as rewards are kept: 0.9 passes at a threshold of 0.9.
    """
    return np.asarray(rewards, np.float32) >= np.float32(threshold)
