"""Run folders as they are found: what is there is read, and what is missing is said.

A run may still be going, have stopped early, be of an earlier version or have lost files: none of
it is an error. A folder that holds no run is.
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fiberjax.run import identity, migrations, provenance, rollouts
from fiberjax.run.evaluation import EvaluationTable
from fiberjax.run.metrics import METRICS_FILE, read_metrics

SAME = ("seed", "checkpoint", "keep", "diagnostics", "writers", "tasks.data_dir")
"""Options, or sections, in which runs of one line may differ: they decide nothing but chance."""


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """What a run folder holds.

    Attributes:
      path: the folder.
      name: its name, or a longer end of its path where runs share that.
      columns: the metrics, each [iterations]; `step` alone before the first.
      config: the options by dotted path, completed to those of today; {} where they cannot be read.
      starts: of `run.json`.
      table: the evaluation before and after; None before the run has ended.
      before: completions at the beginning, by `rollouts.SCHEMA`; None where none are kept.
      after: the newest of the same split.
      missing: a sentence for each thing that is not there, or is not as it should be.
    """

    path: Path
    name: str
    columns: Mapping[str, np.ndarray]
    config: Mapping[str, Any]
    starts: Sequence[Mapping[str, Any]]
    table: EvaluationTable | None
    before: pa.Table | None
    after: pa.Table | None
    missing: tuple[str, ...]

    @property
    def done(self) -> int:
        """Iterations that have metrics; the number of the last one."""
        steps = self.columns["step"]
        return int(steps[-1]) if len(steps) else 0


@dataclasses.dataclass(frozen=True)
class Line:
    """Runs that differ in their seed alone.

    Attributes:
      label: what they are shown as.
      runs: at least one.
    """

    label: str
    runs: tuple[RunFolder, ...]

    def mean(self, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """A metric over the runs: steps, its mean, and the least and the largest; [steps] each.

        A step has the runs that have a finite value there, and is left out where none has.
        """
        values: dict[int, list[float]] = {}
        for run in self.runs:
            if name in run.columns:
                for step, value in zip(run.columns["step"], run.columns[name], strict=True):
                    if np.isfinite(value):
                        values.setdefault(int(step), []).append(float(value))
        steps = sorted(values)
        rows = [(np.mean(values[s]), min(values[s]), max(values[s])) for s in steps]
        mean, low, high = np.array(rows, float).reshape(-1, 3).T
        return np.array(steps), mean, low, high

    def names(self) -> tuple[str, ...]:
        """The metrics that any of the runs has, in their order."""
        found = dict.fromkeys(name for run in self.runs for name in run.columns)
        return tuple(name for name in found if name != "step")


def read_runs(paths: Sequence[str | os.PathLike[str]]) -> tuple[RunFolder, ...]:
    """Reads run folders, each under a name of its own.

    Raises:
      ValueError: there are none, one is named twice, or a folder holds no run.
    """
    folders = [Path(path) for path in paths]
    if not folders:
        raise ValueError("expected at least one run folder")
    resolved = [folder.resolve() for folder in folders]
    for folder, whole in zip(folders, resolved, strict=True):
        if resolved.count(whole) > 1:
            raise ValueError(f"{str(folder)!r} is named more than once")
    found = []
    for folder, whole in zip(folders, resolved, strict=True):
        parts = 1
        while parts < len(whole.parts) and any(
            other != whole and other.parts[-parts:] == whole.parts[-parts:] for other in resolved
        ):
            parts += 1
        found.append(read_run(folder, "/".join(whole.parts[-parts:])))
    return tuple(found)


def read_run(folder: Path, name: str) -> RunFolder:
    """Reads one run folder; see `RunFolder`.

    Raises:
      ValueError: it holds neither metrics nor a config.
    """
    config_file, metrics_file = folder / identity.FILE, folder / METRICS_FILE
    if not config_file.is_file() and not metrics_file.is_file():
        raise ValueError(
            f"{str(folder)!r} is no run folder: expected {METRICS_FILE} and {identity.FILE} in it"
        )
    missing: list[str] = []
    columns = _columns(metrics_file, missing)
    config = _config(folder, missing)
    starts = [start for start in provenance.read(folder) if isinstance(start, dict)]
    if not starts:
        missing.append(f"no {provenance.FILE}: it does not say where and by what it was made")
    table = _table(folder / "evaluation.json", missing)
    before, after = _samples(folder, missing)
    done, planned = len(columns["step"]), config.get("iterations")
    if table is None and done and planned and columns["step"][-1] < planned:
        missing.append(f"iterations {columns['step'][-1] + 1} to {planned}: it has not ended")
    return RunFolder(folder, name, columns, config, starts, table, before, after, tuple(missing))


def lines_of(runs: Sequence[RunFolder]) -> tuple[Line, ...]:
    """Runs that differ in their seed alone together, in their order; see `Line`."""
    groups: dict[str, list[RunFolder]] = {}
    for run in runs:
        # A run without a config is a line of its own.
        key = json.dumps(_deciding(run.config), sort_keys=True) if run.config else str(run.path)
        groups.setdefault(key, []).append(run)
    labels: list[str] = []
    for group in groups.values():
        label = _label([run.name for run in group])
        labels.append(label if label not in labels else f"{label} ({len(labels) + 1})")
    return tuple(
        Line(label, tuple(group)) for label, group in zip(labels, groups.values(), strict=True)
    )


def differences(runs: Sequence[RunFolder]) -> dict[str, tuple[Any, ...]]:
    """The options in which runs differ: dotted path -> the value of each, None where it has none.

    Runs without a readable config have None throughout, and make no difference.
    """
    configs = [run.config for run in runs]
    paths = dict.fromkeys(path for config in configs for path in config)
    found = {}
    for path in paths:
        values = tuple(config.get(path) for config in configs)
        said = [config.get(path) for config in configs if config]
        if any(value != said[0] for value in said):
            found[path] = values
    return found


def flat(config: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """A config by dotted paths.

    >>> flat({"a": {"b": 1, "c": {}}, "d": [2]})
    {'a.b': 1, 'a.c': {}, 'd': [2]}
    """
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{path}{name}.")
        else:
            found[f"{path}{name}"] = dict(value) if isinstance(value, Mapping) else value
    return found


def _deciding(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        path: value
        for path, value in config.items()
        if not any(path == same or path.startswith(f"{same}.") for same in SAME)
    }


def _label(names: Sequence[str]) -> str:
    """What runs of one line are called: what their names begin with, or the first one."""
    if len(names) == 1:
        return names[0]
    alike = [len(set(letters)) == 1 for letters in zip(*names, strict=False)]
    common = names[0][: [*alike, False].index(False)]
    common = common.rstrip("-_./ ").removesuffix("seed").rstrip("-_./ ")
    return f"{common or names[0]}, {len(names)} seeds"


def _columns(file: Path, missing: list[str]) -> dict[str, np.ndarray]:
    none = {"step": np.zeros(0, np.int64)}
    if not file.is_file():
        missing.append(f"no {file.name}: no iteration has ended, or it was removed")
        return none
    try:
        columns = read_metrics(file)
    except (ValueError, OSError) as error:
        missing.append(f"no metrics can be read: {error}")
        return none
    if not len(columns["step"]):
        missing.append(f"{file.name} is empty: no iteration has ended")
    return columns


def _config(folder: Path, missing: list[str]) -> dict[str, Any]:
    file = folder / identity.FILE
    if not file.is_file():
        missing.append(f"no {file.name}: what it was asked to do is not known")
        return {}
    try:
        config = identity.read_config(folder)
        version = json.loads(file.read_text(encoding="utf-8")).get("version", 0)
        found = json.loads(config.to_json_best_effort())
    except (ValueError, OSError, TypeError, AttributeError) as error:
        missing.append(f"its options cannot be read: {error}")
        return {}
    if version != migrations.VERSION:
        missing.append(
            f"options that its version ({version}) did not have: they are shown with what it did"
        )
    return flat(found)


def _table(file: Path, missing: list[str]) -> EvaluationTable | None:
    if not file.is_file():
        missing.append(f"no {file.name}: held-out prompts are evaluated when a run ends")
        return None
    try:
        return EvaluationTable.from_json(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        missing.append(f"{file.name} cannot be read: {error}")
        return None


def _samples(folder: Path, missing: list[str]) -> tuple[pa.Table | None, pa.Table | None]:
    """The first and the newest completions of one split, held-out ones where they are kept."""
    files = rollouts.files_in(folder / rollouts.FOLDER)
    for split in (rollouts.HELD_OUT, rollouts.TRAIN):
        of_split = [file for file in files if file.stem.endswith(f"-{split}")]
        try:
            if len(of_split) > 1:
                return rollouts.read_file(of_split[0]), rollouts.read_file(of_split[-1])
        except (ValueError, OSError) as error:
            missing.append(f"samples cannot be read: {error}")
            return None, None
    missing.append(f"no completions of two times in {rollouts.FOLDER}/")
    return None, None
