"""A user's own prompts: one JSONL or Parquet file, checked row by row before anything compiles."""

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from fiberjax.tasks.domains import Domain
from fiberjax.tasks.examples import SPLITS, Example, Split, split_of_text
from fiberjax.tasks.families import VERIFIERS
from fiberjax.tasks.rewards import READERS, Verifier, combine, names_of, passes, reward_of

_REQUIRED = ("prompt", "answer")
_OPTIONAL = ("domain", "solution")

Columns = Mapping[str, str | Sequence[str]]


def read_file(
    path: str | os.PathLike[str],
    *,
    split: Split | None = None,
    columns: Columns | None = None,
    verifier: str | Mapping[str, str] = "exact",
    keep: Sequence[str] = (),
    verifiers: Mapping[str, Verifier] = VERIFIERS,
    pass_threshold: float = 1.0,
) -> tuple[Domain, ...]:
    r"""Returns the domains of a file, in order of first appearance.

    A row holds texts: ``prompt``, ``answer``, optionally ``domain`` (the file's stem where it is
    missing) and ``solution`` (the answer where it is missing).

    Args:
      path: a ``.jsonl`` or ``.parquet`` file.
      split: keep one split only: a tenth of the prompts, chosen by their hash, is ``"test"``.
        None keeps every row.
      columns: where a field is found if not under its own name, e.g. ``{"prompt": "question"}``;
        several columns are joined by a space: ``{"prompt": ("Body", "Question")}``.
      verifier: a name of ``verifiers`` or a sum of them, such as ``"number + 0.1*format"``, for all
        domains or by domain (``"exact"`` for the rest). ``"number"`` reads GSM8K and SVAMP answers.
      keep: columns kept as ``Example.columns``: texts, whole numbers or truth values.
      verifiers: the table of names; ``tasks.VERIFIERS`` by default.
      pass_threshold: the least reward that a row's own solution must earn.

    Raises:
      ValueError: names the file, and the row (counted from 1) where there is one.
    """
    path = Path(path)
    fields = _fields(columns)
    if split is not None and split not in SPLITS:
        raise ValueError(f"split is {split!r}, expected one of {', '.join(SPLITS)}, or None")
    by_domain: dict[str, list[Example]] = {}
    verify_of: dict[str, Verifier] = {}
    num_rows = 0
    for number, row in _rows(path):
        num_rows += 1
        where = f"{path.name}, row {number}"
        example = _example(row, fields, default_domain=path.stem, where=where)
        kept = tuple((column, _label(row, column, where)) for column in keep)
        example = dataclasses.replace(example, columns=kept, where=where)
        if example.domain not in verify_of:
            verify_of[example.domain] = _verifier(verifier, verifiers, example.domain)
        _check_answer(
            example,
            verify_of[example.domain],
            names_of(_expression(verifier, example.domain)),
            pass_threshold,
        )
        if split is None or split_of_text(example.prompt) == split:
            by_domain.setdefault(example.domain, []).append(example)
    if num_rows == 0:
        raise ValueError(f"{path}: the file has no rows")
    if not by_domain:
        raise ValueError(f"{path}: none of its {num_rows} rows falls into split {split!r}")
    if not isinstance(verifier, str):
        for name in verifier:
            if name not in verify_of:
                raise ValueError(
                    f"verifier names domain {name!r}, {path.name} has {', '.join(verify_of)}"
                )
    return tuple(
        Domain(name, tuple(examples), verify_of[name]) for name, examples in by_domain.items()
    )


def read_pairs(path: str | os.PathLike[str]) -> list[tuple[str, str]]:
    """Returns the prompt and the solution of every row of a file, the answer for want of one.

    Raises:
      ValueError: names the file, and the row (counted from 1) where there is one.
    """
    path = Path(path)
    pairs = []
    for number, row in _rows(path):
        where = f"{path.name}, row {number}"
        example = _example(row, _fields(None), default_domain=path.stem, where=where)
        pairs.append((example.prompt, example.solution))
    return pairs


def _fields(columns: Columns | None) -> dict[str, tuple[str, ...]]:
    """Returns the columns that each field is joined from."""
    fields: dict[str, tuple[str, ...]] = {name: (name,) for name in _REQUIRED + _OPTIONAL}
    for name, source in ({} if columns is None else columns).items():
        if name not in fields:
            raise ValueError(f"columns names {name!r}, expected one of {', '.join(fields)}")
        fields[name] = (source,) if isinstance(source, str) else tuple(source)
        if not fields[name]:
            raise ValueError(f"columns gives no column for {name!r}")
    return fields


def _verifier(
    verifier: str | Mapping[str, str], verifiers: Mapping[str, Verifier], domain: str
) -> Verifier:
    return combine(_expression(verifier, domain), verifiers)


def _expression(verifier: str | Mapping[str, str], domain: str) -> str:
    return verifier if isinstance(verifier, str) else verifier.get(domain, "exact")


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Yields (row number from 1, row); the number is the line of a JSONL file."""
    if path.suffix not in (".jsonl", ".parquet"):
        raise ValueError(f"{path}: the file ends in {path.suffix!r}, expected .jsonl or .parquet")
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    return _jsonl_rows(path) if path.suffix == ".jsonl" else _parquet_rows(path)


def _jsonl_rows(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            # Editors leave a byte order mark at the start and empty lines at the end.
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode())
            except UnicodeDecodeError:
                raise ValueError(f"{path.name}, row {number}: not UTF-8 text") from None
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path.name}, row {number}: invalid JSON ({error})") from None
            yield number, row


def _parquet_rows(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path.name}: not a readable Parquet file ({error})") from None


def _example(
    row: Any, fields: Mapping[str, tuple[str, ...]], *, default_domain: str, where: str
) -> Example:
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected an object of named fields, got {_shown(row)}")
    values = {name: _text(row, name, sources, where) for name, sources in fields.items()}
    for name in _REQUIRED:
        if not values[name]:
            found = ", ".join(map(str, row))
            raise ValueError(
                f"{where}: no {name} (looked for {' and '.join(fields[name])}; the row has {found})"
            )
    prompt, answer = str(values["prompt"]), str(values["answer"])
    domain = values["domain"] if values["domain"] else default_domain
    solution = values["solution"] if values["solution"] else answer
    return Example(prompt, answer, solution, domain)


def _text(row: dict, name: str, sources: tuple[str, ...], where: str) -> str | None:
    """Returns a field's text, or None where a column is missing, null or blank."""
    parts = []
    for source in sources:
        value = row.get(source)
        if value is None:
            return None
        if not isinstance(value, str):
            column = name if source == name else f"{name} (column {source!r})"
            raise ValueError(f"{where}: {column} is {_shown(value)}, expected text")
        parts.append(value)
    text = " ".join(parts)
    return text if text.strip() else None


def _label(row: dict, column: str, where: str) -> str:
    """Returns what a row says in a column that groups rows, as text."""
    value = row.get(column)
    if not isinstance(value, str | int) or value == "":
        raise ValueError(
            f"{where}: column {column!r} is {_shown(value)}, expected a text or a whole number"
        )
    return str(value)


def _check_answer(
    example: Example, verify: Verifier, names: Sequence[str], pass_threshold: float
) -> None:
    """Refuses a row that no completion, or not its own solution, could solve."""
    for name in names:
        what, read = READERS.get(name, ("", None))
        if read is not None and read(example.answer) is None:
            raise ValueError(
                f"{example.where}: the answer {_shown(example.answer)} does not {what}, as the "
                f"verifier {name!r} needs it"
            )
    if example.solution == example.answer:
        return
    reward = reward_of(verify, example.domain, example.prompt, example.answer, example.solution)
    if not passes(reward, pass_threshold):
        raise ValueError(
            f"{example.where}: the verifier does not accept the row's own solution "
            f"{_shown(example.solution)} for the answer {_shown(example.answer)}"
        )


def _shown(value: object) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:59] + '…'}"
