"""From a path to rows: JSONL, JSON, CSV, Parquet and Arrow, gzip of these, folders and globs.

A row is a mapping of named values, as its format gives them. Files are parsed and never executed.
"""

import csv
import dataclasses
import functools
import glob
import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import pyarrow
import pyarrow.ipc
import pyarrow.parquet

from fiberjax import storage

Row = tuple[int, Any]
"""The number of a row, from 1, and what it holds; in JSONL the number is that of the line."""

KINDS = (".jsonl", ".json", ".csv", ".parquet", ".arrow")
_ZIP = ".gz"
# What `datasets` and the hub write beside the rows.
_ABOUT = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
_MOST_FILES = 20_000
_LONGEST_CELL = 2**31 - 1
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})$")
_SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
}
_SEPARATOR = re.compile(r"[-_. ]+")


@dataclasses.dataclass(frozen=True)
class Source:
    """One file of rows.

    Attributes:
      path: of the file.
      name: what its rows are called where they do not say their domain.
      split: "train", "validation" or "test" where a folder's layout says it, else "".
    """

    path: Path
    name: str
    split: str = ""


def shown(value: object, limit: int = 60) -> str:
    """A value for errors: its type and its text in short, control characters escaped."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= limit else text[: limit - 1] + '…'}"


def shown_path(path: str | os.PathLike[str]) -> str:
    """A path for errors, control characters escaped."""
    text = storage.origin(path)
    return text if text.isprintable() else repr(text)


def find_sources(path: str | os.PathLike[str]) -> tuple[Source, ...]:
    """The files that a path stands for: itself, those of a folder, or those of a glob; in order.

    A folder is one that `datasets.save_to_disk` wrote, one as the hub has it, or any other whose
    files are of the known kinds; its rows are called as the folder is.

    Raises:
      ValueError: there is no such file, or none of a known kind.
    """
    path = storage.local(path)
    try:
        folder = path.is_dir()
    except (OSError, ValueError):  # What no file system takes for a path, such as a long text.
        raise ValueError(f"{shown_path(path)[:200]}: no such file") from None
    if folder and _kind(path) is None:
        return _of_folder(path)
    if not path.exists() and glob.has_magic(str(path)):
        found = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
        files = [name for name in found if name.is_file() and not _about(name)]
        if not files:
            raise ValueError(f"{shown_path(path)}: no such file")
        return tuple(
            dataclasses.replace(source, name=_bare(source), split=split_in(stem(source.path)))
            for name in files
            for source in find_sources(name)
        )
    if _kind(path) is None:
        raise ValueError(
            f"{shown_path(path)}: the file ends in {path.suffix!r}, expected {_named(KINDS)}, "
            f"each also with {_ZIP}, or a folder of such files"
        )
    if not path.is_file():
        raise ValueError(f"{shown_path(path)}: no such file")
    return (Source(path, stem(path)),)


def stem(path: Path) -> str:
    """The name of a file without its endings and the number of its shard."""
    kind = _kind(path) or ""
    name = path.name[: len(path.name) - len(kind)]
    return _SHARD.sub("", name)


def missing_shards(sources: Sequence[Source]) -> str:
    """Says which shards of a data set are not among its files; "" where all are, or none says.

    Their names say how many there are: `train-00000-of-00002.parquet`.
    """
    seen: dict[tuple[Path, str, int], set[int]] = {}
    for source in sources:
        kind = _kind(source.path) or ""
        name = source.path.name[: len(source.path.name) - len(kind)]
        shard = _SHARD.search(name)
        if shard is not None:
            key = (source.path.parent, name[: shard.start()], int(shard[2]))
            seen.setdefault(key, set()).add(int(shard[1]))
    lacking = [
        f"{name}: {len(found)} of {count} files"
        for (_, name, count), found in seen.items()
        if len(found) < count
    ]
    return ", ".join(lacking)


def without_split(name: str) -> str:
    """A name without the word for a split: "gsm8k" for "gsm8k_test"."""
    words = [word for word in _SEPARATOR.split(name) if word.lower() not in _SPLIT_WORDS]
    return "-".join(word for word in words if word)


def _bare(source: Source) -> str:
    """What a file of a glob is called: its name but for its split, or else its folder's."""
    name = source.name if not split_in(source.name) else without_split(source.name)
    return name or source.path.resolve().parent.name


def split_in(name: str) -> str:
    """The split that a name says, such as "test" for "gsm8k_test"; "" for none."""
    words = _SEPARATOR.split(name.lower())
    return next((_SPLIT_WORDS[word] for word in reversed(words) if word in _SPLIT_WORDS), "")


def read_rows(path: Path, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """Yields the rows of a file.

    Args:
      path: of a kind that `find_sources` finds.
      columns: those that are wanted. No other column of a Parquet or Arrow file is converted. None
        is all.

    Raises:
      ValueError: names the file, and the row where there is one.
    """
    kind = _kind(path) or ""
    readers: dict[str, Callable[[IO[bytes], str], Iterator[Row]]] = {
        ".jsonl": _lines,
        ".json": _json,
        ".csv": _csv,
        ".parquet": functools.partial(_parquet, columns=columns),
        ".arrow": functools.partial(_arrow, columns=columns),
    }
    read = readers[kind.removesuffix(_ZIP)]
    where = shown_path(path)
    try:
        with path.open("rb") as file:
            if not kind.endswith(_ZIP):
                yield from read(file, where)
                return
            with gzip.open(file) as unzipped:
                # Those two look anywhere in their file.
                seeks = kind.removesuffix(_ZIP) in (".parquet", ".arrow")
                whole = io.BytesIO(unzipped.read() if seeks else b"")
                yield from read(whole if seeks else cast(IO[bytes], unzipped), where)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{where}: not a readable gzip file ({error})") from None
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        names = {".parquet": "Parquet", ".arrow": "Arrow"}
        name = f"{names.get(kind.removesuffix(_ZIP), '')} file".strip()
        raise ValueError(f"{where}: not a readable {name} ({_line(error)})") from None


def _kind(path: Path) -> str | None:
    """The ending that says how a file is read; None for another."""
    endings = (kind + zipped for zipped in ("", _ZIP) for kind in KINDS)
    return next((ending for ending in endings if path.name.endswith(ending)), None)


def _about(path: Path) -> bool:
    """Whether a file tells about rows and holds none, or is a copy that a program keeps."""
    return path.name in _ABOUT or path.name.startswith((".", "cache-"))


def _walked(folder: Path) -> list[Path]:
    """All that lies in a folder and below, in order."""
    found: list[Path] = []
    for here, _, files in os.walk(folder):
        found += [Path(here, name) for name in files]
        if len(found) > _MOST_FILES:
            raise ValueError(
                f"{shown_path(folder)}: the folder has more than {_MOST_FILES} files, expected one "
                "of data alone"
            )
    return sorted(found)


def _of_folder(folder: Path) -> tuple[Source, ...]:
    """The files of a folder and of those within it."""
    found = [
        path
        for path in _walked(folder)
        if path.is_file()
        and _kind(path) is not None
        and not _about(path)
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    if not found:
        raise ValueError(
            f"{shown_path(folder)}: the folder has no file that ends in {_named(KINDS)}"
        )
    name = folder.resolve().name
    return tuple(Source(path, name, _split_of(path, folder)) for path in found)


def _split_of(path: Path, folder: Path) -> str:
    """The split that a file of a folder belongs to: of its own name, else of the nearest folder."""
    parts = [stem(path), *reversed(path.relative_to(folder).parts[:-1])]
    return next((split for split in map(split_in, parts) if split), "")


def _named(kinds: Sequence[str]) -> str:
    return f"{', '.join(kinds[:-1])} or {kinds[-1]}"


def _line(error: BaseException) -> str:
    """What an error says, as one line."""
    return " ".join(str(error).split())[:200]


def _not_finite(text: str) -> float:
    """NaN and the infinities are no JSON; the row that uses one is refused as it is read."""
    return float(text)


def _parsed(text: bytes, where: str, expected: str = "") -> Any:
    try:
        return json.loads(text.decode(), parse_constant=_not_finite)
    except UnicodeDecodeError:
        raise ValueError(f"{where}: not UTF-8 text") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: invalid JSON ({_line(error)}){expected}") from None


def _lines(
    file: IO[bytes], where: str, expected: str = ", expected one object a line"
) -> Iterator[Row]:
    for number, line in enumerate(file, start=1):
        # Editors leave a byte order mark at the start and empty lines at the end.
        line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if line.strip():
            yield number, _parsed(line, f"{where}, row {number}", expected)


def _json(file: IO[bytes], where: str) -> Iterator[Row]:
    """An array of rows; a file that is called so and has one row a line is read as it is."""
    text = file.read().removeprefix(b"\xef\xbb\xbf")
    if not text.lstrip().startswith(b"["):
        yield from _lines(io.BytesIO(text), where, ", expected an array, or one object a line")
        return
    yield from enumerate(_parsed(text, where), start=1)


def _csv(file: IO[bytes], where: str) -> Iterator[Row]:
    number = 0
    csv.field_size_limit(_LONGEST_CELL)
    try:
        with io.TextIOWrapper(file, "utf-8-sig", newline="") as text:
            lines = csv.reader(text, strict=True)
            header = next(lines, [])
            for name in header:
                if header.count(name) > 1:
                    raise ValueError(
                        f"{where}: the header has {name!r}, expected distinct names of columns"
                    )
            for cells in filter(None, lines):
                number += 1
                if len(cells) != len(header):
                    raise ValueError(
                        f"{where}, row {number}: {len(cells)} cells, the header has {len(header)}"
                    )
                named = zip(header, cells, strict=True)
                # One without a name, as of an index that pandas writes, is nobody's.
                yield number, {name: cell for name, cell in named if name.strip()}
    except UnicodeDecodeError:
        raise ValueError(f"{where}, after row {number}: not UTF-8 text") from None
    except csv.Error as error:
        raise ValueError(f"{where}, row {number + 1}: invalid CSV ({error})") from None


def _parquet(file: IO[bytes], where: str, columns: Sequence[str] | None) -> Iterator[Row]:
    with pyarrow.parquet.ParquetFile(file) as parquet:
        schema = parquet.schema_arrow
        wanted = _wanted(schema, columns, where)
        yield from _batches(parquet.iter_batches(columns=wanted), schema, wanted, where)


def _arrow(file: IO[bytes], where: str, columns: Sequence[str] | None) -> Iterator[Row]:
    start = file.read(6)
    file.seek(0)
    if start == b"ARROW1":
        with pyarrow.ipc.open_file(file) as read:
            batches = (read.get_batch(index) for index in range(read.num_record_batches))
            wanted = _wanted(read.schema, columns, where)
            yield from _batches(batches, read.schema, wanted, where)
    else:
        with pyarrow.ipc.open_stream(file) as stream:
            wanted = _wanted(stream.schema, columns, where)
            yield from _batches(iter(stream), stream.schema, wanted, where)


def _wanted(schema: pyarrow.Schema, columns: Sequence[str] | None, where: str) -> list[str]:
    """The names of the columns to convert."""
    names = schema.names
    wanted = [name for name in names if columns is None or name in columns]
    for name in wanted:
        if names.count(name) > 1:
            raise ValueError(f"{where}: two columns are called {name!r}")
    return wanted


class TableRow(dict[str, Any]):
    """A row of a table: the columns that were converted, by name.

    Attributes:
      names: of all columns that there are.
    """

    def __init__(self, values: dict[str, Any], names: Sequence[str]):
        super().__init__(values)
        self.names = names


def _batches(
    batches: Iterator[pyarrow.RecordBatch],
    schema: pyarrow.Schema,
    wanted: Sequence[str],
    where: str,
) -> Iterator[Row]:
    number = 0
    for batch in batches:
        values = {}
        for name in wanted:
            try:
                column = batch.column(batch.schema.get_field_index(name))
                column.validate(full=True)  # What a damaged file says of itself is read unchecked.
                values[name] = _python(column)
            except (ValueError, OverflowError, pyarrow.ArrowException) as error:
                raise ValueError(
                    f"{where}, after row {number}: the column {name!r} cannot be read "
                    f"({_line(error)})"
                ) from None
        for index in range(batch.num_rows):
            number += 1
            yield number, TableRow({name: of[index] for name, of in values.items()}, schema.names)


def _python(column: pyarrow.Array) -> list[Any]:
    """The values of a column; those of float32 as the shortest decimal text of a float32 says."""
    values = column.to_pylist()
    if not _has_float32(column.type):
        return values
    return [_shortest(value, column.type) for value in values]


def _has_float32(of: pyarrow.DataType) -> bool:
    if pyarrow.types.is_dictionary(of):
        return _has_float32(of.value_type)
    narrow = pyarrow.types.is_float32(of) or pyarrow.types.is_float16(of)
    return narrow or any(_has_float32(of.field(k).type) for k in range(of.num_fields))


def _shortest(value: Any, of: pyarrow.DataType) -> Any:
    """A value of a type that has floats of 32 bits or fewer in it: 0.1, not 0.10000000149011612."""
    if pyarrow.types.is_dictionary(of):
        return _shortest(value, of.value_type)
    if isinstance(value, float):
        if pyarrow.types.is_float32(of):
            return float(str(np.float32(value)))
        return float(str(np.float16(value))) if pyarrow.types.is_float16(of) else value
    if isinstance(value, dict):
        return {name: _shortest(part, of.field(name).type) for name, part in value.items()}
    if pyarrow.types.is_map(of) and isinstance(value, list):
        return [(_shortest(key, of.key_type), _shortest(part, of.item_type)) for key, part in value]
    if isinstance(value, list) and of.num_fields == 1:
        return [_shortest(part, of.field(0).type) for part in value]
    return value
