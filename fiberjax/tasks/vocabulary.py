"""Text to token ids and back: a character vocabulary, and one read from a tokenizer file.

Text and control are kept apart both ways. No text encodes to a special token, so no data can end a
prompt or begin another; and whatever a policy drew decodes to something, so no verifier takes a
completion with special tokens in it for the same completion without them.
"""

import itertools
import os
from collections.abc import Iterable, Iterator
from typing import Protocol

# Every character the procedural families write.
DEFAULT_CHARACTERS = "0123456789abcdefghijklmnopqrstRSBMACTL+-*/%=()[]{}<>,:;#"

_UNKNOWN = "\N{REPLACEMENT CHARACTER}"


class Vocabulary(Protocol):
    """What the rest of the package asks of a tokenizer.

    Attributes:
      size: one more than the largest id; not every id below it need have a token.
      pad_id: padding; never inside a sequence.
      bos_id: starts every prompt, or None if the model has no such token.
      eos_id: ends every completion; differs from ``pad_id``.
    """

    @property
    def size(self) -> int:
        """One more than the largest id."""

    @property
    def pad_id(self) -> int:
        """The id of padding."""

    @property
    def bos_id(self) -> int | None:
        """The id that starts a prompt, or None."""

    @property
    def eos_id(self) -> int:
        """The id that ends a completion."""

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text; ValueError where one would be a special token's."""

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text before the first end of sequence; defined for every id.

        Every id before it counts, special tokens and ids without a token too, wherever they stand:
        callers cut what is no part of the text, a prompt and the padding on either side.
        """


class CharVocabulary:
    """One id per character after pad (0), begin (1) and end of sequence (2).

    Example:
      >>> vocabulary = CharVocabulary("abc")
      >>> vocabulary.encode("cab")
      [5, 3, 4]
      >>> vocabulary.decode([5, 3, 4, 2, 0, 0])
      'cab'
      >>> vocabulary.decode([5, 0, 4])
      'c�b'
    """

    pad_id = 0
    bos_id = 1
    eos_id = 2

    def __init__(self, characters: str = DEFAULT_CHARACTERS):
        repeated = sorted({c for c in characters if characters.count(c) > 1})
        if not characters or repeated:
            raise ValueError(
                f"a vocabulary needs distinct characters, got {characters!r}"
                + (f" with {repeated} repeated" if repeated else "")
            )
        self.characters = characters
        self.size = 3 + len(characters)
        self._id_of = {character: 3 + i for i, character in enumerate(characters)}

    def encode(self, text: str) -> list[int]:
        """Returns one id per character.

        Raises:
          ValueError: a character outside the vocabulary.
        """
        try:
            return [self._id_of[character] for character in text]
        except KeyError as error:
            raise ValueError(
                f"character {error.args[0]!r} of {_shorten(text)!r} is not in the vocabulary "
                f"{self.characters!r}"
            ) from None

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text before the first end of sequence.

        Padding, begin of sequence and ids outside the vocabulary become U+FFFD, wherever they
        stand: callers cut prompts and padding themselves.
        """
        return "".join(
            self.characters[token - 3] if 3 <= token < self.size else _UNKNOWN
            for token in _before(self.eos_id, ids)
        )


class HFVocabulary:
    """A ``tokenizers`` file (``tokenizer.json``) behind the same interface.

    Needs the ``hf`` extra. Nothing is downloaded. Padding and truncation that the file asks for are
    left out: windows are the caller's.

    Args:
      path: the tokenizer file.
      pad_token: text of the padding token, e.g. ``"<|endoftext|>"``.
      eos_token: text of the end-of-sequence token; must not be the padding token.
      bos_token: text of the begin-of-sequence token, or None for models without one.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        pad_token: str,
        eos_token: str,
        bos_token: str | None = None,
    ):
        try:
            import tokenizers
        except ImportError as error:
            raise ValueError("HFVocabulary needs the `hf` extra: tokenizers") from error
        if not os.path.isfile(path):
            raise ValueError(f"tokenizer file {os.fspath(path)!r} does not exist")
        if pad_token == eos_token:
            raise ValueError(f"pad_token and eos_token are both {pad_token!r}, they must differ")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(os.fspath(path))
        except Exception as error:  # The library raises bare Exception.
            raise ValueError(f"{os.fspath(path)!r} is not a tokenizer file ({error})") from None
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.pad_id = self._special(pad_token)
        self.eos_id = self._special(eos_token)
        self.bos_id = None if bos_token is None else self._special(bos_token)
        added = self._tokenizer.get_added_tokens_decoder()
        self._control = {i: token.content for i, token in added.items() if token.special}
        named = (pad_token, eos_token, bos_token)
        self._control |= {self._special(token): token for token in named if token is not None}
        self._ids = frozenset(self._tokenizer.get_vocab(with_added_tokens=True).values())
        # Ids may have gaps: their number is not where they end.
        self.size: int = 1 + max(self._ids)

    def _special(self, token: str) -> int:
        token_id = self._tokenizer.token_to_id(token)
        if token_id is None:
            raise ValueError(f"the tokenizer has no token {token!r}")
        return token_id

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text.

        Raises:
          ValueError: a text that spells a special token, or needs one for what the tokenizer does
            not know.
        """
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        control = next((token for token in ids if token in self._control), None)
        if control is not None:
            raise ValueError(
                f"{_shorten(text)!r} encodes to the special token {self._control[control]!r}; "
                "expected text without special tokens"
            )
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text before the first end of sequence.

        Special tokens are decoded as their text, ids without a token as U+FFFD, wherever they
        stand: callers cut prompts and padding themselves.
        """
        runs = itertools.groupby(_before(self.eos_id, ids), self._ids.__contains__)
        return "".join(
            self._tokenizer.decode(list(run), skip_special_tokens=False)
            if known
            else _UNKNOWN * len(list(run))
            for known, run in runs
        )


def _before(eos_id: int, ids: Iterable[int]) -> Iterator[int]:
    """The ids before the first end of sequence."""
    return itertools.takewhile(lambda token: token != eos_id, map(int, ids))


def _shorten(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def prompt_ids(vocabulary: Vocabulary, prompt: str) -> list[int]:
    """Returns the ids of a prompt, begin of sequence first where the vocabulary has one."""
    start = [] if vocabulary.bos_id is None else [vocabulary.bos_id]
    return start + vocabulary.encode(prompt)
