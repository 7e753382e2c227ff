"""Verifiers: (prompt, answer, completion) -> reward, total on every string.

A reward is a finite number; those of the verifiers here are 1.0 and 0.0. A verifier never raises
and takes time linear in the completion, whatever the completion holds.
"""

import re
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import numpy.typing as npt

Verifier = Callable[[str, str, str], float]

WORKED_DELIMITER = "#"
NUMERIC_DELIMITER = "####"

# ASCII digits only: `\d` and `int` accept the digits of every script.
_NUMBER = re.compile(
    r"[$]?(?P<sign>[+-]?)[$]?"
    r"(?P<whole>[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)?"
    r"(?:[.](?P<decimals>[0-9]*)|/(?P<denominator>[0-9]+))?"
)
_LONGEST_NUMBER = 64
_LARGEST_REWARD = float(np.finfo(np.float32).max)


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


def final_answer(completion: str, *, delimiter: str = WORKED_DELIMITER) -> str | None:
    """Returns what follows the delimiter, or None unless the delimiter occurs exactly once.

    A completion that names several answers names none, so listing guesses earns nothing.

    Example:
      >>> final_answer("7+9+0=16,1#16")
      '16'
      >>> final_answer("#15#16") is None
      True
    """
    parts = completion.split(delimiter, 2)
    return parts[1] if len(parts) == 2 else None


def exact(prompt: str, answer: str, completion: str) -> float:
    """Returns 1.0 if completion and answer are the same text, surrounding white space aside."""
    del prompt
    return float(completion.strip() == answer.strip())


def parse_number(text: str) -> Fraction | None:
    """Returns the exact value of an integer, decimal or fraction, or None.

    Takes an optional sign, `$`, commas that group thousands, and one closing full stop. No
    exponents, no words, no digits outside ASCII, at most 64 characters.

    Example:
      >>> parse_number("$1,250.50"), parse_number("-3/6"), parse_number("12 apples")
      (Fraction(2501, 2), Fraction(-1, 2), None)
    """
    text = text.strip()
    if not text or len(text) > _LONGEST_NUMBER:
        return None
    match = _NUMBER.fullmatch(text)
    if match is None or text.count("$") > 1:
        return None
    whole, decimals, denominator = match["whole"], match["decimals"], match["denominator"]
    if whole is None and not decimals:
        return None
    value = Fraction(whole.replace(",", "")) if whole is not None else Fraction(0)
    if decimals:
        value += Fraction(int(decimals), 10 ** len(decimals))
    if denominator is not None:
        if whole is None or int(denominator) == 0:
            return None
        value /= int(denominator)
    return -value if match["sign"] == "-" else value


def numeric_answer(text: str) -> Fraction | None:
    """Returns the number after the last `####`, or the whole text where there is no `####`."""
    return parse_number(text.rsplit(NUMERIC_DELIMITER, 1)[-1])


def numeric(prompt: str, answer: str, completion: str) -> float:
    """Returns 1.0 if both texts end in the same number, compared exactly.

    The number of a text is what follows its last `####`; a text without one must be a number as
    a whole. So `#### 0.5`, `#### 1/2` and `.50` agree, and only the last of several counts.
    """
    del prompt
    expected, found = numeric_answer(answer), numeric_answer(completion)
    return float(expected is not None and expected == found)
