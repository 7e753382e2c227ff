"""Text to token ids and back: what a tokenizer must do, and one of characters.

Text and control are kept apart both ways. No text encodes to a special token, so no data can end a
prompt or begin another; and whatever a policy drew decodes to something, so no verifier takes a
completion with special tokens in it for the same completion without them.
"""

import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Protocol

# Every character the procedural families write.
DEFAULT_CHARACTERS = "0123456789abcdefghijklmnopqrstRSBMACTL+-*/%=()[]{}<>,:;#"

UNKNOWN = "\N{REPLACEMENT CHARACTER}"


class Vocabulary(Protocol):
    """What the rest of the package asks of a tokenizer.

    Attributes:
      size: one more than the largest id; not every id below it need have a token.
      pad_id: padding; what is padding a mask decides, so it may be an end too.
      end_ids: every token that ends a completion, the one that solutions are taught with first.
      stop_ids: further tokens that end one, whose own text completes a stop string.
    """

    @property
    def size(self) -> int:
        """One more than the largest id."""

    @property
    def pad_id(self) -> int:
        """The id of padding."""

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The ids that end a completion, at least one."""

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The ids whose text has a stop string within."""

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text; ValueError where one would be a special token's."""

    def encode_prompt(self, text: str) -> list[int]:
        """Returns the ids of a prompt with all that stands around it; ValueError as `encode`."""

    def encode_chat(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        """Returns the ids of a chat, pairs of a role and a text; ValueError as `encode`."""

    def encode_reply(self, text: str, role: str = "user") -> list[int]:
        """Returns the ids of what another says between two turns; ValueError as `encode`.

        They begin where a turn ends, with its end where a chat writes one, and end where the next
        begins.
        """

    def decode_reply(self, ids: Sequence[int], role: str = "user") -> str:
        """Returns the text of a reply, without what stands around it; defined for every id."""

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text before the first end of sequence; defined for every id.

        Every id before it counts, special tokens and ids without a token too, wherever they stand:
        callers cut what is no part of the text, a prompt and the padding on either side.
        """

    def stop_length(self, ids: Sequence[int]) -> int | None:
        """Returns the number of tokens with which a stop string is complete; None without one."""


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
    end_ids = (2,)
    stop_ids = ()

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
                f"character {error.args[0]!r} of {shorten(text)!r} is not in the vocabulary "
                f"{self.characters!r}"
            ) from None

    def encode_prompt(self, text: str) -> list[int]:
        """Returns the ids of a text, begin of sequence first."""
        return [self.bos_id, *self.encode(text)]

    def encode_chat(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        """Returns the ids of the one message that there may be; ValueError for several."""
        return self.encode_prompt(only_message(messages))

    def encode_reply(self, text: str, role: str = "user") -> list[int]:
        """Returns the ids of a text between two begins of sequence."""
        del role
        return [self.bos_id, *self.encode(text), self.bos_id]

    def decode_reply(self, ids: Sequence[int], role: str = "user") -> str:
        """Returns the text between the begins of sequence."""
        del role
        return self.decode(token for token in ids if token != self.bos_id)

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text before the first end of sequence.

        Padding, begin of sequence and ids outside the vocabulary become U+FFFD, wherever they
        stand: callers cut prompts and padding themselves.
        """
        return "".join(
            self.characters[token - 3] if 3 <= token < self.size else UNKNOWN
            for token in before_end(self.end_ids, ids)
        )

    def stop_length(self, ids: Sequence[int]) -> int | None:
        """Returns None: there are no stop strings."""
        del ids
        return None


def before_end(end_ids: Collection[int], ids: Iterable[int]) -> Iterator[int]:
    """The ids before the first end of sequence."""
    return itertools.takewhile(lambda token: token not in end_ids, map(int, ids))


def only_message(messages: Sequence[tuple[str, str]]) -> str:
    """What the one message of a chat says, where no template could write several.

    Raises:
      ValueError: there are several.
    """
    if len(messages) > 1:
        raise ValueError(
            f"the prompt is a chat of {', '.join(role for role, _ in messages)}, which needs a "
            "chat template: that of config.model.folder, or of config.model.tokenizer"
        )
    return messages[0][1]


def shorten(text: str, limit: int = 60) -> str:
    """A text for errors."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
