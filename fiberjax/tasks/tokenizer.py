"""A published model's tokenizer as a vocabulary: its control tokens, its chat, its stop strings.

What a data row says never becomes a control token: text is encoded by a copy of the tokenizer that
knows none, and only what the chat template itself wrote is looked through for them.
"""

import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from fiberjax.tasks.chat import Frame, Piece
from fiberjax.tasks.vocabulary import UNKNOWN, before_end, only_message, shorten

Frames = Callable[[tuple[str, ...]], Frame]
"""From who says the messages of a row to the chat around them."""

ReplyFrame = Callable[[str], Frame]
"""From who answers to the chat around what is said, from the end of one turn to the next turn."""

# Continues a text: what follows it is encoded as no beginning is. Never part of a prompt.
_ANCHOR = "\N{BLACK DIAMOND SUIT}fiberjax-anchor\N{BLACK DIAMOND SUIT}"


class PublishedVocabulary:
    """A tokenizer of the `tokenizers` library, with the control tokens and the chat of a model.

    Args:
      tokenizer: a `tokenizers.Tokenizer`; what it asks for of padding and truncation is left out.
      pad_id: the padding.
      end_ids: what ends a completion, the one that solutions are taught with first.
      begin_ids: before a prompt that is not framed.
      frames: from who says the messages of a row to the chat around them, which is made once; None
        encodes prompts as they are.
      stop: texts that end a completion, which then ends before them.
      turn_ends: whether the token that the frame ends an answer with ends a completion too.
      reply_frame: of what is said between two turns; None where nothing stands around it.
      rows: of the embedding, 0 where it is not known. A special token beyond them that is none of
        the above counts as absent, as those of pictures do in models of text.

    Raises:
      ValueError: another token is beyond the rows; names it.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        pad_id: int,
        end_ids: tuple[int, ...],
        begin_ids: tuple[int, ...] = (),
        frames: Frames | None = None,
        stop: tuple[str, ...] = (),
        turn_ends: bool = True,
        reply_frame: ReplyFrame | None = None,
        rows: int = 0,
    ):
        import tokenizers

        description = json.loads(tokenizer.to_str())
        description |= {"padding": None, "truncation": None}
        self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(description))
        by_id = {i: token for token, i in tokenizer.get_vocab(with_added_tokens=True).items()}
        named = {*end_ids, *begin_ids, pad_id}
        self._ids = frozenset(by_id)
        self._rows = rows or 1 + max(self._ids)
        special = {token["id"] for token in description["added_tokens"] if token["special"]}
        for i in sorted(self._ids - (special - named)):
            self._check_row(i, by_id[i])
        # Ids may have gaps: their number is not where they end.
        self.size = 1 + max(i for i in self._ids if i < self._rows)
        self.pad_id, self.begin_ids = pad_id, begin_ids
        self._control: dict[int, str] = {i: by_id[i] for i in named if i in by_id}
        for token in description["added_tokens"]:
            token["special"] = token["special"] or token["id"] in named
            if token["special"]:
                self._control[token["id"]] = token["content"]
        self._split = _splitter([t for t in description["added_tokens"] if t["special"]])
        # Text alone: special tokens are not looked for.
        self._plain = tokenizers.Tokenizer.from_str(json.dumps(description))
        self._plain.encode_special_tokens = True
        self._plain.add_tokens([tokenizers.AddedToken(_ANCHOR, normalized=False)])
        self.stop = stop
        self.stop_ids = tuple(
            token
            for token in sorted(self._ids - self._control.keys() if stop else ())
            if any(text in self._decode([token]) for text in stop)
        )
        self.end_ids = tuple(dict.fromkeys(end_ids))
        self._frames, self._reply_frame = frames, reply_frame
        # The most common: the row is what a user says.
        self.frame = frame = None if frames is None else frames(("user",))
        if frame is not None:
            turn = self._split(frame.after_turn)
            if turn_ends and turn and isinstance(turn[0], int):
                self._check_row(turn[0], self._control[turn[0]])
                # What the template ends an answer with is what the model does.
                self.end_ids = tuple(dict.fromkeys((turn[0], *end_ids)))
        self._runs: dict[tuple[str, ...], list[tuple[list[int], list[Piece]]]] = {}
        self._reply_runs: dict[str, list[tuple[list[int], list[Piece]]]] = {}

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text; what spells a control token is text like any other.

        Raises:
          ValueError: the tokenizer has no way to say it but by a control token.
        """
        return self._encode(text, first=self.frame is None)

    def _check_row(self, token: int, text: str) -> None:
        """Refuses a token that the embedding has no row for."""
        if token >= self._rows:
            raise ValueError(
                f"the tokenizer's {shorten(text)!r} has the id {token}, expected one below "
                f"{self._rows}, the rows of the embedding"
            )

    def _encode(self, text: str, *, first: bool) -> list[int]:
        """The ids of a text that begins a sequence, or goes on after a token."""
        encoded = self._plain.encode(text if first else _ANCHOR + text, add_special_tokens=False)
        ids: list[int] = encoded.ids if first else encoded.ids[1:]
        control = next((token for token in ids if token in self._control), None)
        if control is not None:
            raise ValueError(
                f"{shorten(text)!r} encodes to the special token {self._control[control]!r}; "
                "expected text without special tokens"
            )
        return ids

    def encode_prompt(self, text: str) -> list[int]:
        """Returns the ids of a prompt, in its chat where there is one, else after its beginning."""
        if self.frame is None:
            return [*self.begin_ids, *self._encode(text, first=True)]
        return self.encode_chat((("user", text),))

    def encode_chat(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        """Returns the ids of a chat; without a template, of the one message that there may be.

        Args:
          messages: pairs of a role and what it says; the last is the user's.

        Raises:
          ValueError: there are several and no template, or it cannot write them.
        """
        roles = tuple(role for role, _ in messages)
        texts = [text for _, text in messages]
        if self._frames is None:
            return self.encode_prompt(only_message(messages))
        if roles not in self._runs:
            self._runs[roles] = self._encoded_runs(self._frames(roles))
        return self._filled(self._runs[roles], texts)

    def encode_reply(self, text: str, role: str = "user") -> list[int]:
        """Returns the ids of what another says between two turns, in its chat where there is one.

        Raises:
          ValueError: as `encode`, or the template has no such role.
        """
        if self._reply_frame is None:
            return self._encode(text, first=False) if text else []
        if role not in self._reply_runs:
            frame = self._reply_frame(role)
            self._reply_runs[role] = self._encoded_runs(frame, first=False)
        return self._filled(self._reply_runs[role], [text], first=False)

    def decode_reply(self, ids: Sequence[int], role: str = "user") -> str:
        """Returns the text of a reply; what the chat writes around it is left out."""
        text = self._decode(ids)
        if self._reply_frame is None:
            return text
        pieces = self._reply_frame(role).pieces
        at = next(index for index, piece in enumerate(pieces) if piece.row is not None)
        before, after = ("".join(p.text for p in of) for of in (pieces[:at], pieces[at + 1 :]))
        # The end of the turn before may not be among the ids.
        start = next(k for k in range(len(before) + 1) if text.startswith(before[k:]))
        return text[len(before) - start :].removesuffix(after)

    def _filled(
        self,
        runs: list[tuple[list[int], list[Piece]]],
        texts: Sequence[str],
        *,
        first: bool = True,
    ) -> list[int]:
        """The ids of runs with the row's messages in them; `first` where they begin a sequence."""
        ids: list[int] = []
        for encoded, pieces in runs:
            ids += encoded
            run = "".join(piece.said(texts) for piece in pieces)
            ids += self._encode(run, first=first and not ids) if run else []
        return ids

    def _encoded_runs(
        self, frame: Frame, *, first: bool = True
    ) -> list[tuple[list[int], list[Piece]]]:
        """Ids that all prompts share, and the pieces that follow them and hold the prompt.

        Between two control tokens, what the template and what people say is one text, as it is for
        a tokenizer that reads the whole. `first` where the frame begins a sequence.
        """
        runs: list[tuple[list[int], list[Piece]]] = []
        ids: list[int] = []
        run: list[Piece] = []

        def close() -> None:
            nonlocal ids, run
            if any(piece.row is not None for piece in run):
                runs.append((ids, run))
                ids = []
            elif run:
                said = "".join(piece.said(()) for piece in run)
                begins = first and not ids and not runs
                ids = ids + self._encode(said, first=begins) if said else ids
            run = []

        for piece in frame.pieces:
            for part in self._split(piece.text) if piece.own else [piece]:
                if isinstance(part, int):
                    self._check_row(part, self._control[part])
                    close()
                    ids = [*ids, part]
                else:
                    run.append(Piece(part) if isinstance(part, str) else part)
        close()
        return [*runs, (ids, [])]

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text before the first end of sequence, and before a stop string.

        Special tokens are decoded as their text, ids without a token as U+FFFD, wherever they
        stand: callers cut prompts and padding themselves.
        """
        text = self._decode(before_end(self.end_ids, ids))
        found = [text.index(stop) for stop in self.stop if stop in text]
        return text[: min(found)] if found else text

    def _decode(self, ids: Iterable[int]) -> str:
        runs = itertools.groupby(ids, self._ids.__contains__)
        return "".join(
            self._tokenizer.decode(list(run), skip_special_tokens=False)
            if known
            else UNKNOWN * len(list(run))
            for known, run in runs
        )

    def stop_length(self, ids: Sequence[int]) -> int | None:
        """Returns the number of tokens with which a stop string is complete; None without one."""
        drawn = list(before_end(self.end_ids, ids))

        def stops(count: int) -> bool:
            text = self._decode(drawn[:count])
            return any(stop in text for stop in self.stop)

        if not self.stop or not stops(len(drawn)):
            return None
        low, high = 1, len(drawn)
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if stops(middle) else (middle + 1, high)
        return low


def _splitter(special: Sequence[Mapping[str, Any]]) -> Any:
    """A function from a text to its parts, special tokens by their ids.

    As `tokenizers` looks for them: leftmost first, the longest of those, with the space that a
    token takes in.
    """
    ids = {token["content"]: token["id"] for token in special}
    takes = {token["content"]: token for token in special}
    written = [
        (r"\s*" if takes[content]["lstrip"] else "")
        + re.escape(content)
        + (r"\s*" if takes[content]["rstrip"] else "")
        for content in sorted(ids, key=len, reverse=True)
    ]
    pattern = re.compile(f"({'|'.join(written)})") if written else None

    def split(text: str) -> list[int | str]:
        if pattern is None:
            return [text] if text else []
        parts: list[int | str] = []
        for index, part in enumerate(pattern.split(text)):
            if index % 2:
                parts.append(ids[part] if part in ids else ids[part.strip()])
            elif part:
                parts.append(part)
        return parts

    return split
