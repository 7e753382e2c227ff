"""Keeping rollouts: of which iterations, what of them, and the folder that they go to.

What is kept does not change what is drawn or trained. It is a function of the seed and the
iteration, so that a resumed run writes the same bytes.
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pyarrow as pa

from fiberjax import storage
from fiberjax.experiment import Experiment
from fiberjax.iterations import Iterations, parse
from fiberjax.layout import TRAJECTORY
from fiberjax.parallel import mesh
from fiberjax.run import identity, kept_files, migrations, rollouts
from fiberjax.run.nonfinite import Made
from fiberjax.train.rollout import Rollouts


class Trained(NamedTuple):
    """What an iteration trains on. R rows, those of this process where nothing else is said.

    Attributes:
      rollouts: the batch.
      credit: float32[rows of all processes], what advantages are made of.
      present: bool[rows of all processes], which ones hold a completion that counts.
      advantage: float32[rows of all processes].
      old_log_prob: float32[R, C], nats, of the trainer.
      sampler_log_prob: float32[R, C], nats, before truncation.
      reference_log_prob: float32[R, C], nats; None without a KL term.
      sample_weight: float32[R, C]; None without a correction.
      version: iterations finished by the policy that sampled.
    """

    rollouts: Rollouts
    credit: np.ndarray
    present: np.ndarray
    advantage: np.ndarray
    old_log_prob: np.ndarray
    sampler_log_prob: np.ndarray
    reference_log_prob: np.ndarray | None
    sample_weight: np.ndarray | None
    version: int = 0


def table(experiment: Experiment, trained: Trained, iteration: int) -> pa.Table:
    """What was trained on by `kept_files.SCHEMA`; every process must call it, all get the same.

    Args:
      experiment: of the run.
      trained: by this process.
      iteration: counted from 1.
    """

    def gathered(of: np.ndarray) -> np.ndarray:
        return mesh.gather(experiment.mesh, of)

    drawn = trained.rollouts
    columns, size = drawn.mask.shape[1], drawn.group_size
    tokens, real = gathered(drawn.tokens), gathered(drawn.segment_ids != 0)
    mask = gathered(drawn.mask) & trained.present[:, None]
    rows = np.flatnonzero(real.any(axis=1))  # Others are places without a group.
    said = real[rows, -columns:]
    behind: dict[str, np.ndarray | None] = {
        "completion_tokens": tokens[rows, -columns:],
        "mask": mask[rows],
        "turn": gathered(drawn.turn)[rows],
    }
    numbers = {
        "sampler_log_prob": trained.sampler_log_prob,
        "old_log_prob": trained.old_log_prob,
        "reference_log_prob": trained.reference_log_prob,
        "sample_weight": trained.sample_weight,
    }
    for name, of in numbers.items():
        behind[name] = None if of is None else np.where(mask, gathered(of), 0)[rows]
    behind["advantage"] = np.where(mask, trained.advantage[:, None], 0)[rows]
    found = rollouts.table(
        experiment, drawn, rows, iteration=iteration, split=rollouts.TRAIN
    ).to_pydict()
    prompt = slice(0, -columns)
    found["prompt_tokens"] = _lists(tokens[rows, prompt], real[rows, prompt], pa.int32())
    for name, kind in kept_files.TOKEN_COLUMNS.items():
        of = behind[name]
        found[name] = pa.nulls(len(rows), pa.list_(kind)) if of is None else _lists(of, said, kind)
    found["credit"] = trained.credit[rows].astype(np.float32)
    found["row"] = rows.astype(np.int32)
    found["minibatch"] = (rows // size % experiment.training.minibatches).astype(np.int32)
    cells = _cells(experiment, gathered(drawn.prompts.prompt_index), size)
    found["cells"] = pa.MapArray.from_arrays(
        np.arange(len(rows) + 1, dtype=np.int32) * len(cells),
        pa.array([*cells] * len(rows), pa.string()),
        np.stack([of[rows] for of in cells.values()], axis=1).ravel().astype(np.int32),
    )
    found["policy_version"] = np.full(len(rows), trained.version, np.int32)
    return pa.table(found, schema=kept_files.SCHEMA)


def _lists(of: np.ndarray, real: np.ndarray, kind: pa.DataType) -> pa.ListArray:
    """The real values of each row as a list."""
    ends = np.concatenate([[0], np.cumsum(real.sum(axis=1))]).astype(np.int32)
    return pa.ListArray.from_arrays(ends, pa.array(of[real], kind))


def _cells(experiment: Experiment, prompt_index: np.ndarray, samples: int) -> dict[str, np.ndarray]:
    """Each trajectory's cell, int[rows], by level from the trajectory up."""
    cell = np.arange(len(prompt_index) * samples)
    cells = {TRAJECTORY: cell}
    for name, parent in experiment.levels.tables(prompt_index, samples).items():
        cells[name] = cell = parent[cell]
    return cells


_OLD = ".old"
"""What the names of hidden files end in. No reader of `rollouts/` takes them for one."""


class Folder:
    """The `rollouts/` of a run: a file an iteration, up to a size.

    What it holds after an iteration follows from what it held after the one before. A run that
    goes on from a checkpoint therefore finds what stood there when that was saved: files that have
    made way since are hidden until newer checkpoints can do without them.

    Args:
      directory: of the run.
      iteration: that the run goes on from: files of later ones, which a killed run left, are
        removed, and those that have made way since are back.
      wanted: which iterations are kept.
      limit: bytes that the files may have together before another is written.

    Attributes:
      full: whether a file was left out for the limit.
    """

    def __init__(self, directory: Path, iteration: int, wanted: Iterations, limit: float):
        self.full = False
        self._path = directory / kept_files.FOLDER
        self._wanted = wanted
        self._limit = limit
        # The newest is perhaps not yet whole, or will be found damaged.
        self._checkpoints = (iteration, iteration)
        for later in kept_files.kept_iterations(directory):
            if later > iteration:
                self._file(later).unlink()
        for old in self._hidden():
            if old <= iteration and wanted.chosen(old, iteration):
                storage.move(self._aside(old), self._file(old))
            else:
                self._aside(old).unlink()

    def write(self, iteration: int, rows: pa.Table | None) -> Path | None:
        """Writes an iteration's file, whole or not at all; the one no longer wanted makes way.

        Args:
          iteration: counted from 1.
          rows: of the iteration; None where it trained on nothing.

        Returns:
          The file; None where there are no rows or, which `full` says, the files beside it have
          reached the limit.
        """
        file, old = self._file(iteration), iteration - self._wanted.last
        leaves = 0 < old < iteration and not self._wanted.chosen(old, iteration)
        gone = (file, self._file(old)) if leaves else (file,)
        there = storage.matching(self._path, "*.parquet")
        room = sum(storage.size(of) for of in there if of not in gone) < self._limit
        if rows is not None and room:
            rollouts.write_whole("the kept rollouts", rows, file, write_page_checksum=True)
        elif rows is not None:
            self.full = True
        if leaves and self._file(old) in there:
            if old > self._checkpoints[-1]:  # A run that goes on from there makes it again.
                self._file(old).unlink()
            else:
                storage.move(self._file(old), self._aside(old))
        return file if rows is not None and room else None

    def saved(self, iteration: int) -> None:
        """Does without what no run needs that goes on from this checkpoint or the one before."""
        self._checkpoints = (self._checkpoints[-1], iteration)
        for old in self._hidden():
            if not self._wanted.chosen(old, self._checkpoints[0]):
                self._aside(old).unlink()

    def close(self) -> None:
        """Does without all that is hidden; the run has ended, and its checkpoint is whole."""
        for old in self._hidden():
            self._aside(old).unlink()

    def _file(self, iteration: int) -> Path:
        return self._path / kept_files.name(iteration)

    def _aside(self, iteration: int) -> Path:
        return self._path / f".{kept_files.name(iteration)}{_OLD}"

    def _hidden(self) -> list[int]:
        """The iterations whose files are hidden."""
        there = storage.matching(self._path, f".*.parquet{_OLD}")
        names = (file.name[1:].removesuffix(f".parquet{_OLD}") for file in there)
        return [int(name) for name in names if name.isascii() and name.isdigit()]


class Keeper:
    """Keeps the rollouts of a run; all processes call it alike, and the first one writes."""

    def __init__(
        self, experiment: Experiment, directory: Path, iteration: int, say: Callable[[str], None]
    ):
        """Begins where the run does.

        Args:
          experiment: of the run.
          directory: its folder.
          iteration: that it goes on from.
          say: is told once when `rollouts/` has no room for a file.
        """
        self._experiment = experiment
        self._wanted = parse(experiment.keep.rollouts)
        self._limit = experiment.keep.rollouts_megabytes
        self._say = say
        self._folder: Folder | None = None
        self._config: dict[str, Any] = {}
        self._seconds = 0.0
        if jax.process_index() == 0 and experiment.keep.rollouts:
            self._folder = Folder(directory, iteration, self._wanted, self._limit * 1e6)
            if (directory / identity.FILE).exists():
                config = identity.read_config(directory).to_json_best_effort()
                self._config = json.loads(config)

    def due(self, iteration: int) -> bool:
        """Whether an iteration, counted from 1, is kept."""
        return self._wanted.chosen(iteration)

    def keep(
        self,
        iteration: int,
        trained: Trained | None,
        updates: Sequence[Made],
        *,
        updates_before: int,
        factor: float,
    ) -> None:
        """Keeps what an iteration trained on, and what came of it.

        Args:
          iteration: counted from 1.
          trained: by this process; None where there was nothing.
          updates: in their order, each with its metrics.
          updates_before: made before the iteration.
          factor: of the gate's budgets, or of steps; see `run.control`.
        """
        began = time.monotonic()
        of_budgets = self._experiment.control.of == "budgets"
        rows = None if trained is None else table(self._experiment, trained, iteration)
        if self._folder is not None:
            if trained is not None and rows is not None:
                about = {
                    "iteration": iteration,
                    "levels": self._experiment.levels.of_layout,
                    "rows": len(trained.present),
                    "columns": trained.rollouts.mask.shape[1],
                    "updates": [
                        {"minibatch": made.minibatch, "metrics": _as_json(made.metrics)}
                        for made in updates
                    ],
                    "updates_before": updates_before,
                    "budget_factor": factor if of_budgets else 1.0,
                    **({} if of_budgets else {"step_factor": factor}),
                    "config": self._config,
                    "config_version": migrations.VERSION,
                    "fiberjax_version": metadata.version("fiberjax"),
                }
                rows = kept_files.described(rows, about)
            full = self._folder.full
            self._folder.write(iteration, rows)
            if self._folder.full and not full:
                self._say(
                    f"{kept_files.FOLDER}/ holds {self._limit:g} MB "
                    "(config.keep.rollouts_megabytes): what finds no room there is not kept"
                )
        self._seconds += time.monotonic() - began

    def saved(self, iteration: int) -> None:
        """Is told that a checkpoint was saved after an iteration; it need not be whole yet."""
        if self._folder is not None:
            self._folder.saved(iteration)

    def close(self) -> None:
        """Ends the keeping of a run that has come to its end."""
        if self._folder is not None:
            self._folder.close()

    def seconds(self) -> float:
        """What keeping took since this was last asked."""
        taken, self._seconds = self._seconds, 0.0
        return taken


def _as_json(metrics: Mapping[str, float]) -> dict[str, float | str]:
    return {name: of if math.isfinite(of) else str(of) for name, of in metrics.items()}
