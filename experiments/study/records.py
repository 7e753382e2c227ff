"""The runs that were made: one JSON object a line, in a file a figure."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.study.settings import Setting

Record = Mapping[str, Any]
"""What `Laboratory.run` gives, with the `commit` of the code."""


def append(path: Path, record: Record) -> None:
    """Adds a run to a file in one write; what a kill left of a line before stays by itself."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(record, allow_nan=False) + "\n"
    if path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n"):
        line = "\n" + line
    with path.open("a", encoding="utf-8") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def read(folder: Path) -> list[Record]:
    """All runs of a folder, of every figure: one that two figures share is made once."""
    return [record for path in sorted(folder.glob("*.jsonl")) for record in _lines(path)]


def find(records: Sequence[Record], setting: Setting, gate: Mapping[str, Any]) -> Record | None:
    """The run of a setting; None if it was not made, or with other numbers of the gate.

    Args:
      records: from `read`.
      setting: which run.
      gate: all options of its gate today, as JSON. Options that a record does not have are newer
        than it, and by default do what was done before.
    """
    wanted = setting.identity()
    for record in records:
        if record["setting"] == wanted and all(
            name in gate and gate[name] == value for name, value in record["gate"].items()
        ):
            return record
    return None


def _lines(path: Path) -> Iterator[Record]:
    """The runs of a file; a line that a kill tore is left out."""
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue
