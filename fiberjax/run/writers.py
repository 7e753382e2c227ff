"""Where the scalars of a run are written: lines of JSON, TensorBoard events, an offline W&B run.

    config.writers = ("jsonl", "tensorboard")

`open_writers` gives one writer that checks every row and hands it to each of those named. What a
run that was killed wrote after its last checkpoint is dropped or hidden when it resumes, so that
files and charts are those of a run that was never killed. `flush` comes before a checkpoint: what
led to it is never lost.
"""

import contextlib
import importlib.util
import json
import math
import os
import re
import secrets
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol, Self

import numpy as np
from tensorboardX import record_writer, summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from fiberjax import disk, storage
from fiberjax.run import refused
from fiberjax.run.checkpoints import aside
from fiberjax.run.metrics import METRICS_FILE, read_rows


class MetricWriter(Protocol):
    """What takes the scalars of each step; made by `(directory, resume_step)`."""

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Takes one step's scalars, plain floats by name; steps never go back."""

    def write_text(self, step: int, name: str, text: str) -> None:
        """Takes a text in Markdown, of a step; a writer may have no place for it."""

    def flush(self) -> None:
        """Has all of it on the disk when it returns."""

    def close(self) -> None:
        """Writes out what is left; no call follows."""


class JsonlWriter:
    """`metrics.jsonl`, one JSON object a line with its `step`.

    JSON has no NaN or infinity: such values are written as the strings `"NaN"`, `"Infinity"` and
    `"-Infinity"`, which `read_metrics` turns back into floats. Every line is flushed as it is
    written, so a kill tears at most the last one. In a bucket, where nothing is appended, the whole
    is put every so often, and by `flush`.
    """

    def __init__(self, directory: Path, resume_step: int | None):
        path = directory / METRICS_FILE
        if resume_step is not None and path.exists():
            _keep_steps(path, resume_step)
        elif path.exists() and storage.size(path) > 0:
            aside(path, directory / "metrics.before")
        self._lines: BinaryIO | storage.Growing
        if storage.remote(path):
            before = path.read_bytes() if resume_step is not None and path.exists() else b""
            self._lines = storage.Growing(path, before)
            self._lines.flush()
        else:
            self._lines = path.open("wb" if resume_step is None else "ab")

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes one line."""
        row = {"step": step} | {name: _to_json(value) for name, value in scalars.items()}
        self._lines.write((json.dumps(row, allow_nan=False) + "\n").encode())
        if not isinstance(self._lines, storage.Growing) or self._lines.due:
            self._lines.flush()

    def write_text(self, step: int, name: str, text: str) -> None:
        """Writes nothing: the file holds numbers alone."""

    def flush(self) -> None:
        """Has the lines on the disk."""
        self._lines.flush()
        if not isinstance(self._lines, storage.Growing):
            os.fsync(self._lines.fileno())

    def close(self) -> None:
        """Closes the file."""
        self._lines.close()


class _EventsInBucket:
    """How the events of a run are written to `gs://…`; by the package's own interface for that."""

    def open(self, path: str) -> storage.Growing:
        return storage.Growing(storage.place(path))

    def directory_check(self, path: str) -> None:
        """A bucket has no folders to make."""


record_writer.register_writer_factory("gs", _EventsInBucket())


class TensorBoardWriter:
    """TensorBoard event files; values that are not finite are left out.

    A tag holds letters, digits and `-_./` alone, with `_` for what else a name has. Of names that
    would have one tag, those after the first get a digest of theirs behind it.
    """

    FLUSH_SECONDS = 10.0

    def __init__(self, directory: Path, resume_step: int | None):
        # No two starts share a file. They are read by name, whatever the clock says: a later one
        # has a larger number, and those of earlier versions, without a number, come first.
        number = len(storage.matching(directory, "events.*"))
        self._events = EventsWriter(str(directory / f"events.part{number:06d}"), "")
        self._flushed, self._seconds = time.monotonic(), self.FLUSH_SECONDS
        # TensorBoard hides what older event files hold from the purged step on.
        first = 0 if resume_step is None else resume_step + 1
        self._tags: dict[str, str] = {}
        self._write(Event(step=first, session_log=SessionLog(status=SessionLog.START)))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds one event a scalar."""
        for name, value in scalars.items():
            if math.isfinite(value):
                self._write(Event(step=step, summary=summary.scalar(self._tag(name), value)))
        if time.monotonic() - self._flushed > self._seconds:
            self.flush()

    def _tag(self, name: str) -> str:
        """The tag of a name, which no other name of the run has."""
        tag = re.sub(r"[^-/\w.]", "_", name).lstrip("/")
        if self._tags.setdefault(tag, name) != name:
            tag = f"{tag}-{zlib.crc32(name.encode('utf-8', 'surrogatepass')):08x}"
        return tag

    def write_text(self, step: int, name: str, text: str) -> None:
        """Adds it to the tab of texts."""
        self._write(Event(step=step, summary=summary.text(name, text)))

    def flush(self) -> None:
        """Has the events on the disk."""
        began = time.monotonic()
        self._events.flush()
        self._flushed = time.monotonic()
        # In a bucket all of them are put again.
        self._seconds = max(self.FLUSH_SECONDS, 20 * (self._flushed - began))

    def close(self) -> None:
        """Flushes and closes the events."""
        try:
            self._events.close()
        except OSError:
            # It closes nothing where it cannot flush.
            with contextlib.suppress(OSError):
                self._events._py_recordio_writer.close()
            raise

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._events.write_event(event)


class WandbWriter:
    """A Weights & Biases run in `wandb/` of the run folder, offline: nothing is sent anywhere.

    `wandb sync --append` uploads the folders `wandb/offline-run-*`, one for each time that the run
    was started, in their order; they are one run by the id in `wandb/run_id`. The server keeps the
    first value of a step that it is given twice: a resumed run repeats them.
    """

    def __init__(self, directory: Path, resume_step: int | None):
        import wandb

        kept = directory / "wandb" / "run_id"
        if resume_step is None or not kept.exists():
            kept.parent.mkdir(exist_ok=True)
            kept.write_text(secrets.token_hex(4))
        self._run = wandb.init(
            project="fiberjax",
            id=kept.read_text(),
            name=directory.resolve().name,
            dir=str(directory),
            mode="offline",
            settings=wandb.Settings(console="off", silent=True),
        )

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Logs one row."""
        self._run.log(dict(scalars), step=step)

    def write_text(self, step: int, name: str, text: str) -> None:
        """Logs nothing: numbers alone may leave the machine."""

    def flush(self) -> None:
        """Leaves it to the package, which writes by itself."""

    def close(self) -> None:
        """Ends the run."""
        self._run.finish()


WRITERS: Mapping[str, Callable[[Path, int | None], MetricWriter]] = {
    "jsonl": JsonlWriter,
    "tensorboard": TensorBoardWriter,
    "wandb": WandbWriter,
}
"""Writers by the names of `options.WRITERS`."""


def check(names: Sequence[str], directory: Path) -> None:
    """Refuses a writer whose package is missing, or that does not write into such a folder.

    Raises:
      ValueError: says how to install it, or what was expected.
    """
    if "wandb" in names:
        storage.on_disk(directory, "config.writers names 'wandb', and the run folder")
    if "wandb" in names and importlib.util.find_spec("wandb") is None:
        raise ValueError(
            "config.writers names 'wandb', which is not installed: it is the extra 'wandb', as in "
            "uv sync --extra wandb"
        )


class CheckedWriter:
    """Hands every row to several writers, once it is known to be one.

    Args:
      writers: closed with this one, the last first.
      last_step: the last step written so far; -1 for none.
      directory: that they write into.
    """

    def __init__(self, writers: Sequence[MetricWriter], last_step: int, directory: Path):
        self._writers = writers
        self._directory = directory
        self._last_step = last_step
        self._stack = contextlib.ExitStack()
        for writer in writers:
            self._stack.callback(writer.close)

    def write(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Writes one step's scalars.

        Args:
          step: at least the step of the call before; two calls of one step are read as one row.
          scalars: metric values by name: Python numbers or arrays of shape [].

        Raises:
          ValueError: the step goes back, or a value is not one real number.
        """
        if step < self._last_step:
            raise ValueError(f"step {step} comes after step {self._last_step}: steps never go back")
        values = {name: _as_float(name, value) for name, value in scalars.items()}
        self._last_step = step
        with self._writing():
            for writer in self._writers:
                writer.write(int(step), values)

    def write_text(self, step: int, name: str, text: str) -> None:
        """Writes a text of a step, in Markdown, to the writers that have a place for it."""
        with self._writing():
            for writer in self._writers:
                writer.write_text(int(step), name, text)

    def flush(self) -> None:
        """Has all that was written on the disk when it returns."""
        with self._writing():
            for writer in self._writers:
                writer.flush()

    def close(self) -> None:
        """Closes all writers; further writes are an error of the caller."""
        with self._writing():
            self._stack.close()

    def _writing(self) -> contextlib.AbstractContextManager[None]:
        return disk.writing("the metrics", self._directory)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def open_writers(
    directory: str | os.PathLike[str],
    *,
    resume_step: int | None,
    names: Sequence[str] = ("jsonl", "tensorboard"),
    enabled: bool = True,
) -> CheckedWriter:
    """The writer of a run; a context manager.

    Write the metrics of step k before saving the checkpoint of step k, or a resumed run lacks them.

    Args:
      directory: the run folder, made where missing.
      resume_step: the last step of the checkpoint the run continues from: rows of later steps,
        left by the killed run, are dropped. None starts over; the rows that are there are kept in
        `metrics.before/`.
      names: keys of `WRITERS`.
      enabled: False on every process but the first: rows are checked, nothing is made or written.

    Raises:
      ValueError: `resume_step` is negative.
      Unreadable: the file to continue is corrupt.
      NoRoom: the disk is full.
    """
    if resume_step is not None and resume_step < 0:
        raise ValueError(f"resume_step must be None or at least 0, got {resume_step}")
    opened, folder = [], storage.place(directory)
    if enabled:
        with disk.writing("the metrics", folder), refused.reading():
            if not storage.remote(folder):
                folder.mkdir(parents=True, exist_ok=True)
            opened = [WRITERS[name](folder, resume_step) for name in names]
    return CheckedWriter(opened, -1 if resume_step is None else resume_step, folder)


def _as_float(name: str, value: Any) -> float:
    if name == "step":
        raise ValueError("a metric cannot be called 'step': that is the number of the row")
    try:
        if np.shape(value) != () or isinstance(value, str):
            raise TypeError
        return float(value)
    except TypeError:
        raise ValueError(f"metric {name} must be one real number, got {value!r}") from None


def _to_json(value: float) -> float | str:
    if math.isfinite(value):
        return value
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def _keep_steps(file: Path, last: int) -> None:
    """Rewrites a file with its rows up to step `last`; the old file or the new, never a half."""
    lines = file.read_bytes().decode("utf-8", "replace").splitlines()
    rows = read_rows(file)
    kept = [line for (step, _), line in zip(rows, lines, strict=False) if step <= last]
    storage.write(file, "".join(line + "\n" for line in kept))
