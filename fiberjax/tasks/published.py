"""What the folder of a published model says of its tokens, its chat and its context.

A folder is parsed and nothing in it is executed, but for the chat template, which runs apart
(`tasks.chat`).
"""

import contextlib
import functools
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fiberjax import options, storage
from fiberjax.bounds import named, shown
from fiberjax.tasks.chat import Frame, after_answer, make_frame
from fiberjax.tasks.files import read_pairs
from fiberjax.tasks.tokenizer import Frames, PublishedVocabulary, ReplyFrame
from fiberjax.tasks.vocabulary import shorten

# Any of these makes a tokenizer; without one, some classes would come up empty.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json", "spiece.model")

LARGEST = 2**24
"""Above the ids of tokens."""


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
    found = _said_in(_read(storage.local(model.folder) / "config.json"), "max_position_embeddings")
    return found if type(found) is int and found > 0 else None


def read_vocabulary(model: options.Model, rows: int = 0) -> PublishedVocabulary:
    """The tokenizer of a model's folder, or of the folder or file that stands in for it.

    Args:
      model: the options.
      rows: of the embedding, 0 where it is not known; see `PublishedVocabulary`.

    Raises:
      ValueError: there is none, or it, its template or its control tokens are not as expected;
        names the folder.
    """
    path = model.folder if model.tokenizer == "auto" else model.tokenizer
    option = "folder" if model.tokenizer == "auto" else "tokenizer"
    try:
        return _vocabulary(model, storage.local(path), rows)
    except ValueError as error:
        with named("config.model"):
            raise ValueError(f"config.model.{option} = {path!r}: {error}") from None


def _vocabulary(model: options.Model, path: Path, rows: int) -> PublishedVocabulary:
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
    frames, reply_frame = _frames(model, said.tokenizer)
    with _readable():
        return PublishedVocabulary(
            backend,
            pad_id=pad_id,
            end_ids=end_ids,
            begin_ids=begin_ids,
            frames=frames,
            stop=model.stop,
            turn_ends="end" not in overrides,
            reply_frame=reply_frame,
            rows=rows,
        )


def _tokenizer(path: Path) -> Any:
    """The folder's tokenizer, as transformers reads it; nothing is downloaded or executed."""
    if path.is_dir() and not any((path / name).is_file() for name in TOKENIZER_FILES):
        raise ValueError(f"it holds no tokenizer ({', '.join(TOKENIZER_FILES)})")
    if not path.exists():
        raise ValueError("it does not exist")
    _check_ids(path / "tokenizer.json" if path.is_dir() else path)
    transformers = _transformers()
    with _readable():
        if not path.is_dir():
            found = transformers.PreTrainedTokenizerFast(tokenizer_file=str(path))
        else:
            try:
                found = transformers.AutoTokenizer.from_pretrained(
                    str(path), local_files_only=True, trust_remote_code=False
                )
            except ValueError as error:  # Of the library, whose advice is not ours.
                raise RuntimeError(error) from None
    if not getattr(found, "is_fast", False):
        raise ValueError(
            f"its tokenizer is a {type(found).__name__}, which the tokenizers library does not "
            "run: expected a tokenizer.json"
        )
    return found


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    """Makes one error of whatever a broken file makes the library raise."""
    try:
        yield
    except ValueError:
        raise
    except BaseException as error:
        # A panic of the library is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        told = " ".join(str(error).split())
        raise ValueError(
            f"its tokenizer cannot be read ({type(error).__name__}: {shorten(told, 200)})"
        ) from None


def _check_ids(path: Path) -> None:
    """Refuses ids that are none, or so large that tables of all up to them do not fit anywhere.

    Raises:
      ValueError: names the token.
    """
    described = _read(path)
    model = described.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    found = list(vocabulary.items()) if isinstance(vocabulary, dict) else []
    added = described.get("added_tokens")
    # Beside the vocabulary's own and not in their place: the library goes through all of them.
    for token in added if isinstance(added, list) else []:
        if isinstance(token, dict):
            found.append((str(token.get("content")), token.get("id")))
    for token, number in found:
        if type(number) is not int or not 0 <= number < LARGEST:
            raise ValueError(
                f"its tokenizer gives {shorten(ascii(token))} the id {shown(number)}: expected a "
                f"whole number below {LARGEST}"
            )


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
    except (OSError, ValueError, RecursionError) as error:
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


def _frames(model: options.Model, tokenizer: Any) -> tuple[Frames, ReplyFrame] | tuple[None, None]:
    """The chat around a row's messages, as the options and the tokenizer's template have it.

    And around what is said between two turns; (None, None) without a chat.
    """
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
        return None, None
    if template is None:
        raise ValueError("config.model.chat is 'on', and it has no chat template")
    variables = {
        name: str(token)
        for name, token in tokenizer.special_tokens_map.items()
        if isinstance(token, str)
    }
    examples = _examples(model)
    make = functools.partial(
        make_frame, template, variables, system=model.system, thinking=model.thinking
    )

    @functools.cache
    def around(roles: tuple[str, ...]) -> Frame:
        return make(examples=examples, roles=roles)

    @functools.cache
    def between(role: str) -> Frame:
        # Behind any answer of a chat.
        return after_answer(make(examples=[*examples, ("a", "b")], roles=(role,)))

    return around, between


def _examples(model: options.Model) -> list[tuple[str, str]]:
    """Pairs of what is asked and what is answered, those of files read."""
    found: list[tuple[str, str]] = []
    for each in model.examples:
        found += read_pairs(each) if isinstance(each, str) else [(each[0], each[1])]
    return found
