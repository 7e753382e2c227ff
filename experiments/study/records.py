"""The runs that were made: one JSON object a line, in a file a figure."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments.study.settings import PINNED, Setting
from fiberjax.gates import GATES

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


def read(*paths: Path) -> list[Record]:
    """All runs of files and of folders, of every figure: one that two share is made once.

    Options that a record does not name are filled in from `PINNED`.
    """
    return [_whole(record) for file in files(*paths) for record in _lines(file)]


def files(*paths: Path) -> list[Path]:
    """Files that exist, and those of folders, each called as its figure."""
    found = [sorted(path.glob("*.jsonl")) if path.is_dir() else [path] for path in paths]
    return [file for group in found for file in group if file.exists()]


def find(records: Iterable[Record], setting: Setting) -> Record | None:
    """The run of a setting that was made last; None if it was not made.

    Args:
      records: from `read`.
      setting: which run. Its gate is the preset of today with the setting's overrides, and the
        run's must have had the same numbers, wherever they stood. Options of a gate that a record
        does not have are newer than it, and by default do what was done before.
    """
    wanted, gate, found = _but_gate(setting.identity()), _whole_gate(setting.numbers()), None
    for record in records:
        if _but_gate(record["setting"]) == wanted and _whole_gate(record["gate"]) == gate:
            found = record
    return found


def _whole_gate(gate: Mapping[str, Any]) -> dict[str, Any]:
    """All numbers and options of a gate: what it does not name has its default."""
    spec = GATES[gate["name"]]
    unnamed: dict[str, Any] = {"pessimistic": False, "dual_clip": None, "recovery": False}
    for options in (spec.budgets, spec.options):
        unnamed |= {name: given.default for name, given in options.items() if name != "budgets"}
    return unnamed | _in_pairs(gate)


def _in_pairs(gate: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a gate with every level's budget as plus and minus."""
    levels = {
        name: [level["budget"]] * 2 if isinstance(level["budget"], float) else level["budget"]
        for name, level in gate.get("levels", {}).items()
    }
    return {**gate, "levels": levels} if levels else dict(gate)


def _but_gate(identity: Mapping[str, Any]) -> dict[str, Any]:
    """An identity without what its gate's numbers say already."""
    options = identity["options"].items()
    return {**identity, "options": {k: v for k, v in options if not k.startswith("gate.")}}


def measure(record: Record, start: str = "mean@") -> str:
    """The name of a held-out measure, with its number of samples."""
    return next(
        name for name in record["held_out"][0] if name.startswith(start) and "by" not in name
    )


def last(record: Record, start: str = "mean@") -> float | None:
    """A held-out measure after the last iteration; None where it is not finite."""
    return record["held_out"][-1][measure(record, start)]


def shares(record: Record, form: str, iterations: int) -> list[float]:
    """What a replay multiplies the learning rate by, a number an iteration.

    Args:
      record: of the run that is replayed.
      form: "sequence" or "mean".
      iterations: that are needed.

    Raises:
      ValueError: the run has no shares, or ended before.
    """
    values = record["metrics"].get("actor/open_share", [])[:iterations]
    if len(values) < iterations or None in values:
        raise ValueError(
            f"{record['method']} is to be replayed, and has no actor/open_share of "
            f"{iterations} iterations"
        )
    return values if form == "sequence" else [sum(values) / len(values)] * iterations


def _whole(record: Record) -> Record:
    """The record with the options that were not named when it was made."""
    setting = record["setting"]
    return {**record, "setting": {**setting, "options": {**PINNED, **setting["options"]}}}


def _lines(path: Path) -> Iterator[Record]:
    """The runs of a file; a line that a kill tore is left out."""
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue
