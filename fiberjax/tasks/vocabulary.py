"""Text to token ids and back: a character vocabulary, and one read from a tokenizer file."""

import os
from collections.abc import Iterable
from typing import Protocol

# Every character the procedural families write.
DEFAULT_CHARACTERS = "0123456789abcdefghijklmnopqrstRSBMACTL+-*/%=()[]{}<>,:;#"

_UNKNOWN = "\N{REPLACEMENT CHARACTER}"


class Vocabulary(Protocol):
    """What the rest of the package asks of a tokenizer.

    Attributes:
      size: number of ids; every id is in [0, size).
      pad_id: padding; never inside a sequence.
      bos_id: starts every prompt, or None if the model has no such token.
      eos_id: ends every completion; differs from ``pad_id``.
    """

    @property
    def size(self) -> int:
        """The number of ids."""

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
        """Returns the ids of a text, without special tokens."""

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text before the first end of sequence; defined for every id."""


class CharVocabulary:
    """One id per character after pad (0), begin (1) and end of sequence (2).

    Example:
      >>> vocabulary = CharVocabulary("abc")
      >>> vocabulary.encode("cab")
      [5, 3, 4]
      >>> vocabulary.decode([0, 1, 5, 3, 4, 2, 0, 0])
      'cab'
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

        Padding and begin of sequence are dropped at both ends; inside a text they, like ids
        outside the vocabulary, become U+FFFD, so that no verifier mistakes them for nothing.
        """
        before_eos: list[int] = []
        for token in ids:
            if token == self.eos_id:
                break
            before_eos.append(int(token))
        empty = (self.pad_id, self.bos_id)
        start, stop = 0, len(before_eos)
        while start < stop and before_eos[start] in empty:
            start += 1
        while stop > start and before_eos[stop - 1] in empty:
            stop -= 1
        return "".join(
            self.characters[token - 3] if 3 <= token < self.size else _UNKNOWN
            for token in before_eos[start:stop]
        )


class HFVocabulary:
    """A ``tokenizers`` file (``tokenizer.json``) behind the same interface.

    Needs the ``hf`` extra. Nothing is downloaded.

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
        self.size: int = self._tokenizer.get_vocab_size(with_added_tokens=True)
        self.pad_id = self._special(pad_token)
        self.eos_id = self._special(eos_token)
        self.bos_id = None if bos_token is None else self._special(bos_token)

    def _special(self, token: str) -> int:
        token_id = self._tokenizer.token_to_id(token)
        if token_id is None:
            raise ValueError(f"the tokenizer has no token {token!r}")
        return token_id

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text, without special tokens."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text before the first end of sequence; ids that do not exist are dropped."""
        kept = []
        for token in ids:
            if token == self.eos_id:
                break
            if 0 <= token < self.size:
                kept.append(int(token))
        return self._tokenizer.decode(kept, skip_special_tokens=True)


def _shorten(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def prompt_ids(vocabulary: Vocabulary, prompt: str) -> list[int]:
    """Returns the ids of a prompt, begin of sequence first where the vocabulary has one."""
    start = [] if vocabulary.bos_id is None else [vocabulary.bos_id]
    return start + vocabulary.encode(prompt)
