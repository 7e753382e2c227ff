"""The tokenizer of a published model: `AutoTokenizer`'s, its ends of sequence, its chat template.

A folder is parsed and nothing in it is executed, but for the chat template, which runs apart
(`tasks.chat`). What a data row says never becomes a control token: text is encoded by a copy of the
tokenizer that knows none, and only what the template itself wrote is looked through for them.
"""

import itertools
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fiberjax import options
from fiberjax.tasks.chat import Frame, Piece, make_frame
from fiberjax.tasks.files import read_pairs
from fiberjax.tasks.vocabulary import UNKNOWN, before_end, shorten

# Any of these makes a tokenizer; without one, some classes would come up empty.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json", "spiece.model")
# Continues a text: what follows it is encoded as no beginning is. Never part of a prompt.
_ANCHOR = "\N{BLACK DIAMOND SUIT}fiberjax-anchor\N{BLACK DIAMOND SUIT}"


class PublishedVocabulary:
    """A tokenizer of the `tokenizers` library, with the control tokens and the chat of a model.

    Args:
      tokenizer: a `tokenizers.Tokenizer`; what it asks for of padding and truncation is left out.
      pad_id: the padding.
      end_ids: what ends a completion, the one that solutions are taught with first.
      begin_ids: before a prompt that is not framed.
      frame: the chat around a prompt; None encodes prompts as they are.
      stop: texts that end a completion, which then ends before them.
      turn_ends: whether the token that the frame ends an answer with ends a completion too.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        pad_id: int,
        end_ids: tuple[int, ...],
        begin_ids: tuple[int, ...] = (),
        frame: Frame | None = None,
        stop: tuple[str, ...] = (),
        turn_ends: bool = True,
    ):
        import tokenizers

        description = json.loads(tokenizer.to_str())
        description |= {"padding": None, "truncation": None}
        self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(description))
        by_id = {i: token for token, i in tokenizer.get_vocab(with_added_tokens=True).items()}
        named = {*end_ids, *begin_ids, pad_id}
        self._ids = frozenset(by_id)
        # Ids may have gaps: their number is not where they end.
        self.size = 1 + max(self._ids)
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
        self.frame = frame
        if frame is not None:
            turn = self._split(frame.after_turn)
            if turn_ends and turn and isinstance(turn[0], int):
                # What the template ends an answer with is what the model does.
                self.end_ids = tuple(dict.fromkeys((turn[0], *end_ids)))
            self._runs = self._encoded_runs(frame)

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text; what spells a control token is text like any other.

        Raises:
          ValueError: the tokenizer has no way to say it but by a control token.
        """
        return self._encode(text, first=self.frame is None)

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
        ids: list[int] = []
        for encoded, pieces in self._runs:
            ids += encoded
            run = "".join(piece.said(text) for piece in pieces)
            ids += self._encode(run, first=not ids) if run else []
        return ids

    def _encoded_runs(self, frame: Frame) -> list[tuple[list[int], list[Piece]]]:
        """Ids that all prompts share, and the pieces that follow them and hold the prompt.

        Between two control tokens, what the template and what people say is one text, as it is for
        a tokenizer that reads the whole.
        """
        runs: list[tuple[list[int], list[Piece]]] = []
        ids: list[int] = []
        run: list[Piece] = []

        def close() -> None:
            nonlocal ids, run
            if any(piece.row for piece in run):
                runs.append((ids, run))
                ids = []
            elif run:
                said = "".join(piece.said("") for piece in run)
                ids = ids + self._encode(said, first=not ids and not runs) if said else ids
            run = []

        for piece in frame.pieces:
            for part in self._split(piece.text) if piece.own else [piece]:
                if isinstance(part, int):
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


class _Said(NamedTuple):
    """What the files of a folder say, and the tokenizer."""

    tokenizer: Any
    config: Mapping[str, Any]
    generation: Mapping[str, Any]


def context_length(model: options.Model) -> int | None:
    """Positions that the model was made for; None where its folder does not say.

    Raises:
      ValueError: its config.json cannot be read.
    """
    if "context" in model.overrides:
        return model.overrides["context"]
    if not model.folder:
        return None
    found = _said_in(_read(Path(model.folder) / "config.json"), "max_position_embeddings")
    return found if type(found) is int and found > 0 else None


def read_vocabulary(model: options.Model) -> PublishedVocabulary:
    """The tokenizer of a model's folder, or of the folder or file that stands in for it.

    Raises:
      ValueError: there is none, or it, its template or its control tokens are not as expected;
        names the folder.
    """
    path = model.folder if model.tokenizer == "auto" else model.tokenizer
    try:
        return _vocabulary(model, Path(path))
    except ValueError as error:
        option = "folder" if model.tokenizer == "auto" else "tokenizer"
        raise ValueError(f"config.model.{option} = {path!r}: {error}") from None


def _vocabulary(model: options.Model, path: Path) -> PublishedVocabulary:
    folder = path if path.is_dir() else path.parent
    said = _Said(
        _tokenizer(path), _read(folder / "config.json"), _read(folder / "generation_config.json")
    )
    backend = said.tokenizer.backend_tokenizer
    size = 1 + max(backend.get_vocab(with_added_tokens=True).values())
    overrides = model.overrides
    end_ids = _ends(said, size)
    if "end" in overrides:
        end_ids = tuple(_id(backend, token) for token in overrides["end"])
    if not end_ids:
        raise ValueError(
            "nothing says what ends a completion: neither generation_config.json nor config.json "
            "has an eos_token_id, nor the tokenizer an eos_token"
        )
    begin_ids = _begin(said.tokenizer)
    if "begin" in overrides:
        begin_ids = (_id(backend, overrides["begin"]),) if overrides["begin"] else ()
    pad_id = _id(backend, overrides["pad"]) if "pad" in overrides else _pad(said, size, end_ids)
    return PublishedVocabulary(
        backend,
        pad_id=pad_id,
        end_ids=end_ids,
        begin_ids=begin_ids,
        frame=_frame(model, said.tokenizer),
        stop=model.stop,
        turn_ends="end" not in overrides,
    )


def _tokenizer(path: Path) -> Any:
    """The folder's tokenizer, as transformers reads it; nothing is downloaded or executed."""
    if path.is_dir() and not any((path / name).is_file() for name in TOKENIZER_FILES):
        raise ValueError(f"it holds no tokenizer ({', '.join(TOKENIZER_FILES)})")
    if not path.exists():
        raise ValueError("it does not exist")
    transformers = _transformers()
    try:
        if path.is_dir():
            found = transformers.AutoTokenizer.from_pretrained(
                str(path), local_files_only=True, trust_remote_code=False
            )
        else:
            found = transformers.PreTrainedTokenizerFast(tokenizer_file=str(path))
    except Exception as error:  # Whatever a broken file makes the library raise.
        told = " ".join(str(error).split())
        raise ValueError(
            f"its tokenizer cannot be read ({type(error).__name__}: {shorten(told, 200)})"
        ) from None
    if not getattr(found, "is_fast", False):
        raise ValueError(
            f"its tokenizer is a {type(found).__name__}, which the tokenizers library does not "
            "run: expected a tokenizer.json"
        )
    return found


def _transformers() -> Any:
    """transformers, which takes seconds to import and is needed for published models alone."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # It says that torch is missing.
    try:
        import transformers
    except ImportError as error:
        raise ValueError(
            f"a published model needs the `hf` extra: transformers ({error})"
        ) from None
    return transformers


def _read(path: Path) -> dict[str, Any]:
    """A JSON file of a folder; {} where there is none."""
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path.name} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path.name} is not an object")
    return values


def _said_in(config: Mapping[str, Any], name: str) -> Any:
    """A value of a config.json, or of the part that is about text."""
    text = config.get("text_config")
    return config.get(name, text.get(name) if isinstance(text, dict) else None)


def _ends(said: _Said, size: int) -> tuple[int, ...]:
    """All ends of sequence, the tokenizer's own first where it is among them."""
    own = said.tokenizer.eos_token_id
    for found in (
        said.generation.get("eos_token_id"),
        _said_in(said.config, "eos_token_id"),
        own,
    ):
        ids: list[Any] = list(found) if isinstance(found, list) else [found]
        if found is None or not ids:
            continue
        for token in ids:
            if type(token) is not int or not 0 <= token < size:
                raise ValueError(f"eos_token_id {token!r} is no token of its tokenizer ({size})")
        return tuple(sorted(ids, key=lambda token: token != own))
    return ()


def _pad(said: _Said, size: int, end_ids: tuple[int, ...]) -> int:
    """The padding; where nothing says it, an end: a mask decides what is padding."""
    for found in (
        said.tokenizer.pad_token_id,
        said.generation.get("pad_token_id"),
        _said_in(said.config, "pad_token_id"),
    ):
        if type(found) is int and 0 <= found < size:
            return found
    return end_ids[0]


def _begin(tokenizer: Any) -> tuple[int, ...]:
    """What the tokenizer puts before a text."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a", add_special_tokens=True)["input_ids"]
    at = next((k for k in range(len(whole)) if whole[k : k + len(bare)] == bare), 0)
    return tuple(whole[:at])


def _id(tokenizer: Any, token: str) -> int:
    found = tokenizer.token_to_id(token)
    if found is None:
        raise ValueError(f"config.model.overrides: the tokenizer has no token {token!r}")
    return found


def _frame(model: options.Model, tokenizer: Any) -> Frame | None:
    """The chat around a prompt, as the options and the tokenizer's template have it."""
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if model.chat == "off" or (model.chat == "auto" and template is None):
        asked = [name for name in ("system", "examples") if getattr(model, name)]
        asked += ["thinking"] * (model.thinking != "auto")
        if asked:
            raise ValueError(
                f"config.model.{asked[0]} needs a chat, and "
                + (
                    "config.model.chat is 'off'"
                    if model.chat == "off"
                    else "it has no chat template"
                )
            )
        return None
    if template is None:
        raise ValueError("config.model.chat is 'on', and it has no chat template")
    variables = {
        name: str(token)
        for name, token in tokenizer.special_tokens_map.items()
        if isinstance(token, str)
    }
    return make_frame(
        template,
        variables,
        system=model.system,
        examples=_examples(model),
        thinking=model.thinking,
    )


def _examples(model: options.Model) -> list[tuple[str, str]]:
    """Pairs of what is asked and what is answered, those of files read."""
    found: list[tuple[str, str]] = []
    for each in model.examples:
        found += read_pairs(each) if isinstance(each, str) else [(each[0], each[1])]
    return found
