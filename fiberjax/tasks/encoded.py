"""The examples of a run as token ids: every text is encoded once, however many read it."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fiberjax.tasks.domains import Domain, Examples
from fiberjax.tasks.environments import Turns, solved
from fiberjax.tasks.examples import Example
from fiberjax.tasks.vocabulary import Vocabulary

ONE_TURN = Turns()


@dataclasses.dataclass(frozen=True)
class TokenRows:
    """Token ids of many texts, one behind the other.

    Attributes:
      ids: int32[T], all tokens.
      ends: int64[N], where each text ends.
    """

    ids: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> np.ndarray:
        """Returns the tokens of one text, int32[n]."""
        return self.span(index, index + 1)

    def span(self, start: int, stop: int) -> np.ndarray:
        """Returns the tokens of texts ``start`` to ``stop``, one behind the other; int32[n]."""
        return self.ids[self.ends[start - 1] if start > 0 else 0 : self.ends[stop - 1]]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each text, int64[N]."""
        return np.diff(self.ends, prepend=0)


def _rows(rows: Sequence[Sequence[int]], dtype: Any) -> TokenRows:
    ends = np.cumsum([len(row) for row in rows])
    return TokenRows(np.concatenate([np.array(row, dtype) for row in rows]), ends)


def encode_prompt(vocabulary: Vocabulary, example: Example) -> list[int]:
    """Returns the ids of an example's prompt, a text or a chat, with all that stands around it."""
    if example.messages:
        return vocabulary.encode_chat(example.messages)
    return vocabulary.encode_prompt(example.prompt)


class EncodedExamples(Examples):
    """All domains' examples with their tokens, which streams and evaluations share.

    Prompts and solutions are encoded when they are first asked for: a run without a warm start
    needs no solution, and may have some that its vocabulary cannot hold.

    Args:
      domains: where the examples come from.
      vocabulary: tokenizer.
      turns: how an episode goes; solutions may then have several turns.
    """

    def __init__(self, domains: Sequence[Domain], vocabulary: Vocabulary, turns: Turns = ONE_TURN):
        super().__init__(domains)
        self.vocabulary = vocabulary
        self.turns = turns

    @functools.cached_property
    def prompts(self) -> TokenRows:
        """The prompts, with what the vocabulary puts around one.

        Raises:
          ValueError: the vocabulary cannot hold one; names its row.
        """
        rows = self._encoded(lambda example: encode_prompt(self.vocabulary, example))
        return _rows(rows, np.int32)

    @functools.cached_property
    def solutions(self) -> TokenRows:
        """The solutions, without end of sequence; of several turns, with the replies between them.

        Raises:
          ValueError: the vocabulary cannot hold one; names its row.
        """
        return self._solved[0]

    @functools.cached_property
    def written(self) -> TokenRows:
        """Which tokens of the solutions the policy writes, replies being others'; bool."""
        return self._solved[1]

    @functools.cached_property
    def _solved(self) -> tuple[TokenRows, TokenRows]:
        ids, own = zip(
            *self._encoded(lambda example: solved(self.vocabulary, self.turns, example)),
            strict=True,
        )
        return _rows(ids, np.int32), _rows(own, np.bool_)

    def _encoded(self, encode: Callable[[Example], Any]) -> list[Any]:
        rows = []
        for index, example in enumerate(self):
            try:
                rows.append(encode(example))
            except ValueError as error:
                raise ValueError(f"{self.where(index)}: {error}") from None
        return rows

    def where(self, index: int) -> str:
        """Names an example's row in errors: that of its file, or of its domain."""
        domain = self.domain_of(index)
        stated = self[index].where
        row = index - self.offsets[domain]
        return stated if stated else f"domain {self.domains[domain].name!r}, row {row + 1}"

    def check_prompts(self, max_prompt_tokens: int) -> None:
        """Refuses a prompt that the vocabulary or the window cannot hold.

        Raises:
          ValueError: names the row and its length, or the unknown character.
        """
        lengths = self.prompts.lengths
        longer = int(np.sum(lengths > max_prompt_tokens))
        if longer:
            index = int(np.argmax(lengths))
            raise ValueError(
                f"{self.where(index)}: the prompt has {lengths[index]} tokens, the longest of "
                f"{longer} of {len(self)} that are longer than config.window.prompt = "
                f"{max_prompt_tokens}: raise it, or set config.tasks.too_long to 'drop' or "
                "'truncate'"
            )

    def check_solutions(self, max_completion_tokens: int) -> None:
        """Refuses a solution that the vocabulary or the window cannot hold.

        Raises:
          ValueError: names the row and its length, or the unknown character.
        """
        lengths = self.solutions.lengths + 1
        for index in np.flatnonzero(lengths > max_completion_tokens)[:1]:
            raise ValueError(
                f"{self.where(index)}: the solution has {lengths[index]} tokens with its end of "
                f"sequence, the window holds config.window.completion = {max_completion_tokens}"
            )

    def digest(self) -> str:
        """Returns a hash of what the supervised stream teaches: all tokens, in their order.

        The same for other texts, names or tokenizer files that come to the same tokens.
        """
        digest = hashlib.blake2b(digest_size=16)
        eos_id = np.array([self.vocabulary.end_ids[0]])
        for part in (self.prompts, self.solutions):
            digest.update(part.ends.tobytes() + part.ids.tobytes())
        if self.turns.environment is not None:
            digest.update(self.written.ids.tobytes())
        # Flaws are drawn from the tokens of a domain.
        digest.update(np.array(self.offsets).tobytes() + eos_id.tobytes())
        return digest.hexdigest()
