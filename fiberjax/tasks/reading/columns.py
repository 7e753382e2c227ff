"""From a row to what an example needs: which column holds what, and which values are texts."""

import ast
import dataclasses
import decimal
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fiberjax.tasks.reading.formats import shown

REQUIRED = ("prompt", "answer")
FIELDS = (*REQUIRED, "domain", "solution")
ROLES = ("system", "user", "assistant")

# Of a chat that is written as Python has it, more is not parsed.
_MOST_CHARACTERS = 2**20
_PYTHON_CHAT = re.compile(r"\s*\[\s*\{\s*'(role|content)'\s*:.*\}\s*\]\s*", re.DOTALL)

_SHARE_GPT = {"human": "user", "gpt": "assistant"}

Columns = Mapping[str, str | Sequence[str]]
Message = tuple[str, str]
"""A role, one of `ROLES`, and what it says."""


@dataclasses.dataclass(frozen=True)
class Record:
    """What a row says; a field that it does not have is empty.

    Attributes:
      prompt: its text; of a chat, what the last message says.
      messages: the chat; () where the prompt is a text.
      answers: those that are accepted, at least one.
      domain: name of the domain.
      solution: a worked answer.
    """

    prompt: str
    messages: tuple[Message, ...]
    answers: tuple[str, ...]
    domain: str
    solution: str


def fields_of(columns: Columns | None, layout: Columns | None = None) -> dict[str, tuple[str, ...]]:
    """The columns that each field is joined from.

    Args:
      columns: field -> column, or several, also as a text with commas between; "" says nothing.
      layout: the same where `columns` says nothing; a field that it does not name has no column.
        Without one, a field's column is called as the field is.

    Raises:
      ValueError: a field that there is not, or one without columns.
    """
    fields: dict[str, tuple[str, ...]] = {}
    for name in FIELDS:
        source = name if layout is None else layout.get(name, ())
        fields[name] = (source,) if isinstance(source, str) else tuple(source)
    for name, source in ({} if columns is None else columns).items():
        if name not in fields:
            raise ValueError(f"columns names {name!r}, expected one of {', '.join(fields)}")
        if source == "":
            continue
        if not isinstance(source, str | tuple | list):
            raise ValueError(f"columns.{name} is {shown(source)}, expected a column's name")
        fields[name] = (source,) if isinstance(source, str) else tuple(source)
        if not fields[name]:
            raise ValueError(f"columns gives no column for {name!r}")
        for each in fields[name]:
            if not isinstance(each, str) or not each:
                raise ValueError(f"columns.{name} has {each!r}, expected a column's name")
    return fields


def top_columns(paths: Sequence[str]) -> tuple[str, ...]:
    """The columns of a table that dotted paths, or several with commas between, may lead into."""
    each = [of for path in paths for of in (path, *_parts(path))]
    return tuple(dict.fromkeys(name for path in each for name in (path, path.split(".")[0])))


def _parts(path: str) -> tuple[str, ...]:
    """Paths with commas between them."""
    return tuple(part.strip() for part in path.split(",") if part.strip())


def _of_row(row: Mapping[str, Any], paths: tuple[str, ...]) -> tuple[str, ...]:
    """The columns of a field in a row: one with commas in its name, or those between the commas."""
    if len(paths) != 1 or "," not in paths[0] or value_at(row, paths[0]) is not None:
        return paths
    return paths if paths[0] in row else _parts(paths[0])


def record_of(row: Any, fields: Mapping[str, tuple[str, ...]], where: str) -> Record:
    """Reads a row.

    Args:
      row: of a file.
      fields: of `fields_of`.
      where: names the row in errors.

    Raises:
      ValueError: it is no object of named fields, lacks a prompt or an answer, or has a value of
        another kind.
    """
    check_row(row, where)
    fields = {name: _of_row(row, paths) for name, paths in fields.items()}
    prompt, messages, said = _prompt(row, fields["prompt"], where)
    answers = _answers(row, fields["answer"], where)
    for name, found in (("prompt", prompt), ("answer", answers)):
        if not found:
            raise ValueError(
                f"{where}: no {name} (looked for {' and '.join(fields[name])}; the row has "
                f"{_names(row)})"
            )
    return Record(
        prompt=prompt,
        messages=messages,
        answers=answers,
        domain=_domain(row, fields["domain"], where),
        # What a chat ends in is no solution where the layout says that rows have none.
        solution=_joined(row, "solution", fields["solution"], where)
        or (said if fields["solution"] else ""),
    )


def check_row(row: Any, where: str) -> None:
    """Refuses a row that is no object of named fields."""
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected an object of named fields, got {shown(row)}")


def value_at(row: Any, path: str) -> Any:
    """What stands in a column, or at a dotted path into nested ones; None where nothing does.

    A column whose own name has dots in it comes first; the items of a list are numbered from 0.

    Example:
      >>> value_at({"reward_model": {"ground_truth": "4"}}, "reward_model.ground_truth")
      '4'
      >>> value_at({"a.b": 1, "a": {"b": 2}}, "a.b")
      1
    """
    if isinstance(row, dict) and path in row:
        return row[path]
    value = row
    for name in path.split("."):
        if isinstance(value, dict):
            value = value.get(name)
        elif isinstance(value, list) and name.isascii() and name.isdigit():
            value = value[int(name)] if int(name) < len(value) else None
        else:
            return None
    return value


def _names(row: Mapping[str, Any]) -> str:
    """The names of a row's columns, for errors."""
    names = getattr(row, "names", None) or list(row)
    listed = ", ".join(name if name.isprintable() else repr(name) for name in names[:20])
    return f"{listed}, …" if len(names) > 20 else listed or "none"


def _said(name: str, path: str) -> str:
    """A field and where it was looked for."""
    return name if name == path else f"{name} (column {path!r})"


def _text(value: Any, what: str, where: str, expected: str = "text") -> str:
    """A text that every tokenizer can be asked for."""
    if not isinstance(value, str):
        raise ValueError(f"{where}: {what} is {shown(value)}, expected {expected}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where}: {what} is {shown(value)}, whose character {error.start + 1} is half of a "
            "surrogate pair: no text can hold it"
        ) from None
    return value


def _text_or_number(value: Any, what: str, where: str) -> str:
    """A text, or a number as its shortest decimal text: 4, 0.5, and 145 for 145.0."""
    expected = "text or a finite number"
    if isinstance(value, dict) and "item" not in what:
        expected += f"; a dotted path names one within it, such as {_within(what, value)}"
    if isinstance(value, bool) or not isinstance(value, int | float | decimal.Decimal):
        return _text(value, what, where, expected)
    if isinstance(value, int):  # Of any length, beyond what a float holds too.
        return str(value)
    if not math.isfinite(value):
        raise ValueError(f"{where}: {what} is {shown(value)}, expected {expected}")
    if value == int(value):
        return str(int(value))
    exact = decimal.Decimal(repr(value) if isinstance(value, float) else value)
    return format(exact.normalize(), "f")


def _within(what: str, value: Mapping[Any, Any]) -> str:
    """A path into a value, for errors."""
    column = what.partition("column '")[2].partition("'")[0] or what
    return f"{column}.{next(iter(value), 'name')}"


def _joined(row: Any, name: str, paths: Sequence[str], where: str) -> str:
    """A field's text, its columns joined by a space; "" where one is missing, null or blank."""
    parts = []
    for path in paths:
        value = value_at(row, path)
        if value is None:
            return ""
        read = _text if name == "prompt" else _text_or_number
        parts.append(read(value, _said(name, path), where))
    text = " ".join(parts)
    return text if text.strip() else ""


def _prompt(row: Any, paths: tuple[str, ...], where: str) -> tuple[str, tuple[Message, ...], str]:
    """The prompt, its chat, and what a chat's assistant says to it."""
    what = _said("prompt", paths[0])
    value = value_at(row, paths[0])
    if len(paths) == 1:
        value = _chat(value, what, where)
    if len(paths) > 1 or not isinstance(value, list):
        return _joined(row, "prompt", paths, where), (), ""
    messages = [_message(each, f"{what}, message {i}", where) for i, each in enumerate(value, 1)]
    said = ""
    if messages and messages[-1][0] == "assistant":
        said = messages.pop()[1]
    roles = [role for role, _ in messages]
    if "system" in roles[1:]:
        raise ValueError(f"{where}: {what} has a system message that is not the first")
    if not messages or roles[-1] != "user":
        raise ValueError(
            f"{where}: {what} is a chat of {', '.join(roles) or 'no message'}, expected one that "
            "ends in a user's message"
        )
    prompt = messages[-1][1]
    return (prompt if prompt.strip() else ""), tuple(messages), said


def _chat(value: Any, what: str, where: str) -> Any:
    """A chat that is written as text, as a CSV has it; another value as it is.

    That is JSON, or the literals of Python that pandas writes.

    Raises:
      ValueError: it is a chat as Python writes it, and cannot be read.
    """
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    python = _PYTHON_CHAT.fullmatch(value) is not None
    if not python and '"role"' not in value:
        return value
    try:
        if not python:
            chat = json.loads(value)
        elif len(value) <= _MOST_CHARACTERS:
            chat = ast.literal_eval(value.strip())
        else:
            raise ValueError("too long")
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        if python:
            raise ValueError(
                f"{where}: {what} is {shown(value)}, a chat in Python's spelling that cannot be "
                "read: expected JSON"
            ) from None
        return value
    messages = chat and all(
        isinstance(of, dict) and {"role", "content"} <= of.keys() for of in chat
    )
    return chat if messages else value


def _message(value: Any, what: str, where: str) -> Message:
    """A message of a chat: its role and its text."""
    if not isinstance(value, dict):
        raise ValueError(
            f"{where}: {what} is {shown(value)}, expected an object with role and content"
        )
    role, content = value.get("role"), value.get("content")
    if role is None and "from" in value:  # As ShareGPT has it.
        role, content = _SHARE_GPT.get(value["from"], value["from"]), value.get("value")
    if isinstance(content, list) and all(map(_is_text_part, content)):
        content = "".join(part["text"] for part in content)
    if role not in ROLES:
        raise ValueError(f"{where}: {what} has the role {shown(role)}, expected {', '.join(ROLES)}")
    return str(role), _text(content, f"{what}, content", where)


def _is_text_part(part: Any) -> bool:
    """Whether a part of a message is a text, where its content is a list of parts."""
    kind = part.get("type") if isinstance(part, dict) else None
    return kind == "text" and isinstance(part.get("text"), str)


def _answers(row: Any, paths: tuple[str, ...], where: str) -> tuple[str, ...]:
    """The accepted answers: a text or a number, or a list of them; () where there is none."""
    value = value_at(row, paths[0])
    if len(paths) > 1 or not isinstance(value, list):
        text = _joined(row, "answer", paths, where)
        return (text,) if text else ()
    what = _said("answer", paths[0])
    texts = [_text_or_number(each, f"{what}, item {i}", where) for i, each in enumerate(value, 1)]
    for number, text in enumerate(texts, start=1):
        if not text.strip():
            raise ValueError(f"{where}: {what}, item {number} is {shown(text)}, expected an answer")
    return tuple(dict.fromkeys(texts))


def _domain(row: Any, paths: tuple[str, ...], where: str) -> str:
    """The name of a row's domain: a text or a whole number, or several joined; "" for none."""
    parts = []
    for path in paths:
        value = value_at(row, path)
        if value is None:
            return ""
        what = _said("domain", path)
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        parts.append(_text(value, what, where, "text or a whole number"))
        if not parts[-1].isprintable():
            raise ValueError(
                f"{where}: {what} is {shown(value)}, expected a name without control characters"
            )
    name = " ".join(parts)
    return name if name.strip() else ""
