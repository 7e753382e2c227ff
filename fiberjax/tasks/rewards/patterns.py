"""Whether a whole completion has a form: a regular expression in time linear in the text.

The engine is RE2, as Arrow has it: no pattern and no text makes it slow, and what it could only do
slowly, lookaround and references back, it refuses.
"""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from fiberjax.tasks.rewards.base import Case


class Pattern:
    r"""A verifier: 1.0 where the pattern matches the whole completion; `.` matches line ends too.

    >>> Pattern(r"<think>.*</think>\s*\S.*")("", "", "<think>1+1\nis 2</think> 2")
    1.0

    Raises:
      ValueError: RE2 does not take the pattern.
    """

    def __init__(self, pattern: str):
        self._pattern = rf"\A(?s:{pattern})\z"
        try:
            self._match([""])
        except pa.ArrowInvalid as error:
            raise ValueError(
                f"{pattern!r} is no regular expression of RE2, which has neither lookaround nor "
                f"references back: {error}"
            ) from None

    def __call__(self, prompt: str, answer: str, completion: str) -> float:
        """Of one completion."""
        return self._match([completion])[0]

    def many(self, cases: Sequence[Case]) -> list[Any]:
        """Of several completions."""
        return self._match([case.completion for case in cases])

    def _match(self, texts: Sequence[str]) -> list[float]:
        # Half a surrogate is no UTF-8.
        held = pa.array([text.encode("utf-8", "replace").decode() for text in texts], pa.string())
        found = pc.match_substring_regex(held, pattern=self._pattern)
        return [float(matched) for matched in found.to_pylist()]
