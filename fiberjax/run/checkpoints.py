"""Orbax checkpoints of a run: the train state on devices, and what the host must remember.

When a checkpoint is whole, every process lists the digests of what it wrote (`fiberjax.digests`);
they are checked before it is read. A damaged one is passed over for the newest good one before it,
and set aside as soon as the next is saved.
"""

import json
import re
import secrets
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, LatestN

from fiberjax import buckets, digests, disk, storage
from fiberjax.run.refused import Unreadable
from fiberjax.tasks.vocabulary import shorten

BEST = "best"
"""In what the host remembers: iterations finished in the best checkpoint."""

ITEMS = ("state", "host")
# Of some checkpoints alone: what was sampled before it is trained on.
AHEAD = "ahead"
# Written last where a folder cannot be renamed into its place.
WHOLE = "commit_success.txt"


class Damaged(Unreadable):
    """What is there is not what was saved."""


class Restored(NamedTuple):
    """A checkpoint read back.

    Attributes:
      iteration: iterations finished when it was saved.
      state: the train state, on the shardings asked for.
      host: the JSON-like dictionary saved beside it.
    """

    iteration: int
    state: Any
    host: dict[str, Any]


class _Best:
    """Preserves the best checkpoint, for Orbax: the one of `iteration`."""

    iteration: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Which ones are preserved."""
        del context
        return [checkpoint.step == self.iteration for checkpoint in checkpoints]


class Checkpoints:
    """Saves and restores in one directory; a context manager that waits for the last save.

    Saving is asynchronous: it returns once the arrays are copied to the host, and writing goes on
    behind. On CPUs, where that copy would be a second state beside the one that is trained, it
    returns when all is written. A process killed while writing leaves the previous checkpoint the
    latest.
    """

    def __init__(self, directory: str | Path, *, keep: int, record: Path | None = None):
        """Opens the directory, made if absent.

        Args:
          directory: where the checkpoints lie, one folder each.
          keep: how many of the latest to keep, beside the best one that `save` names.
          record: a file to say what the newest one is, should it vanish; see `recorded`.
        """
        if keep < 1:
            raise ValueError(f"checkpoint.keep must be at least 1; got {keep}")
        self._directory = storage.absolute(directory)
        self._problems: dict[int, str | None] = {}
        self._listing: threading.Thread | None = None
        self._unlisted: OSError | None = None
        self._saving = ""
        self._record = record
        self._tidy = False
        self._committed = threading.Event()
        self._best = _Best()
        self._policy = AnyPreservationPolicy([LatestN(keep), self._best])
        self._manager = self._opened()

    def _opened(self) -> ocp.CheckpointManager:
        # Nothing of any checkpoint is read before its digests are: one that is damaged is an error.
        return ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=self._policy, lightweight_initialize=True
            ),
            item_names=(*ITEMS, AHEAD),
        )

    def latest(self) -> int | None:
        """Iterations finished in the newest checkpoint that is not damaged; None where none is.

        Says in one line which ones are passed over.

        Raises:
          Damaged: there are some, and all are damaged; names them.
        """
        damaged: list[str] = []
        for iteration in sorted(self._manager.all_steps(), reverse=True):
            known = iteration in self._problems
            problem = self._problem(iteration)
            if problem is None:
                if damaged and not known and jax.process_index() == 0:
                    print(
                        f"{self._directory}: {', '.join(damaged)}: checkpoint {iteration}, the "
                        "newest that is good, is read in its place"
                    )
                return iteration
            damaged.append(f"checkpoint {iteration} is damaged ({problem})")
        if damaged:
            raise Damaged(
                f"{self._directory}: {', '.join(damaged)}, and no other is there; nothing was "
                "changed"
            )
        return None

    def best(self) -> int:
        """Iterations finished in the best checkpoint, as the newest one names it.

        Raises:
          ValueError: there is none.
        """
        newest, found = self.latest(), None
        if newest is not None:
            found = self._read(newest, host=ocp.args.JsonRestore())["host"].get(BEST)
        if found is None:
            raise ValueError(
                f"{self._directory} holds no best checkpoint: config.checkpoint.best named no "
                "metric, or the run has not measured it yet"
            )
        return int(found)

    def save(
        self,
        iteration: int,
        state: Any,
        host: dict[str, Any],
        best: int | None = None,
        ahead: Any = None,
    ) -> None:
        """Saves; the state may be donated as soon as this returns.

        Args:
          iteration: iterations finished.
          state: the train state.
          host: what else is restored, a JSON-like dictionary.
          best: iterations finished in the best checkpoint, which is kept; this one or an earlier
            one. None for none.
          ahead: a tree of further arrays, which the method `ahead` restores; None for none.

        Raises:
          NoRoom: the disk is full, which may be seen as late as at the next save, or at the end.
        """
        self._wait()
        self._make_way()
        self._best.iteration = best
        if best is not None:
            host = host | {BEST: best}
        self._saving = f"checkpoint {iteration}"
        items = {"state": ocp.args.StandardSave(state), "host": ocp.args.JsonSave(host)}
        if ahead:
            items[AHEAD] = ocp.args.StandardSave(ahead)
        with disk.writing(self._saving, self._directory):
            self._manager.save(iteration, args=ocp.args.Composite(**items))
        self._problems[iteration] = None
        self._listing = threading.Thread(target=self._list, args=(iteration,), daemon=True)
        self._listing.start()
        if jax.default_backend() == "cpu":
            self._wait()

    def restore(self, abstract_state: Any, iteration: int | None = None) -> Restored | None:
        """Reads the newest checkpoint onto the shardings of `abstract_state`; None without one.

        The mesh may differ from the one that saved.

        Args:
          abstract_state: shapes, each leaf with its sharding.
          iteration: that of an older checkpoint; None for the newest.

        Raises:
          ValueError: there is none of that iteration, or it does not hold a state of these shapes.
          Damaged: it is, or without an iteration all are.
        """
        kept = sorted(self._manager.all_steps())
        if iteration is not None and iteration not in kept:
            raise ValueError(
                f"{self._directory} holds no checkpoint of iteration {iteration}; there are "
                f"{', '.join(map(str, kept)) if kept else 'none'}"
            )
        problem = None if iteration is None else self._problem(iteration)
        if problem is not None:
            raise Damaged(f"checkpoint {self._directory / str(iteration)} is damaged: {problem}")
        iteration = self.latest() if iteration is None else iteration
        if iteration is None:
            return None
        items = self._read(
            iteration,
            state=ocp.args.StandardRestore(abstract_state),
            host=ocp.args.JsonRestore(),
        )
        return Restored(iteration, items["state"], items["host"])

    def ahead(self, iteration: int, abstract: Any) -> Any:
        """The further arrays of a checkpoint, on the shardings of `abstract`."""
        return self._read(iteration, **{AHEAD: ocp.args.StandardRestore(abstract)})[AHEAD]

    def _read(self, iteration: int, **items: Any) -> Any:
        """Items of a checkpoint.

        Raises:
          ValueError: it does not hold them, or what describes them cannot be read.
        """
        told = f"checkpoint {self._directory / str(iteration)} does not hold the state that this "
        told += "config describes: "
        try:
            found = self._manager.restore(iteration, args=ocp.args.Composite(**items))
        except jax.errors.JaxRuntimeError:  # Of the devices, not of what is there.
            raise
        except Exception as error:  # Of a file that has no digest, whatever comes of it.
            shown = shorten(" ".join(str(error).split()), 300)
            raise ValueError(f"{told}{type(error).__name__}: {shown}") from error
        if "host" in items and not isinstance(found["host"], dict):
            raise ValueError(f"{told}expected what the host remembers as an object")
        return found

    def _problem(self, iteration: int) -> str | None:
        """What is wrong with a checkpoint; the same on all processes, which share the reading."""
        if iteration not in self._problems:
            folder, told = self._directory / str(iteration), None
            missing = [item for item in ITEMS if storage.empty(folder / item)]
            try:
                if missing:
                    told = f"{missing[0]} is missing"
                else:
                    share = {"part": jax.process_index(), "parts": jax.process_count()}
                    told = digests.problem(folder, **share)
            except FileNotFoundError:
                if jax.process_index() == 0:
                    print(
                        f"{folder} has no digests, as one of an earlier version or of a run that "
                        "was killed before they were written: it is read unchecked"
                    )
            except OSError as error:
                told = str(error)
            if _any(told is not None):
                self._problems[iteration] = told or "as another host says"
            else:
                self._problems[iteration] = None
        return self._problems[iteration]

    def _list(self, iteration: int) -> None:
        """Lists what this process wrote, once Orbax has put the checkpoint into its place."""
        folder, process = self._directory / str(iteration), jax.process_index()
        remote = storage.remote(folder)

        def whole() -> bool:
            return (folder / WHOLE).exists() if remote else folder.is_dir()

        while not whole():
            if self._committed.wait(2.0 if remote else 0.05) and not whole():
                return  # It came to nothing.
        try:
            own = [
                path
                for path in digests.files_of(folder)
                if _writer(path.relative_to(folder)) == process
            ]
            digests.write(folder, own, process=process)
            if self._record is not None and process == 0:
                storage.write(self._record, json.dumps({"newest": iteration}) + "\n")
        except OSError as error:
            self._unlisted = error

    def _wait(self) -> None:
        """Waits until the last save is whole, with its digests."""
        with disk.writing(self._saving, self._directory):
            try:
                self._manager.wait_until_finished()
            finally:
                self._committed.set()
                if self._listing is not None:
                    self._listing.join()
                    self._listing = None
                self._committed.clear()
            if self._unlisted is not None:
                error, self._unlisted = self._unlisted, None
                raise error

    def _make_way(self) -> None:
        """Moves damaged checkpoints into a folder beside, and removes halves that a kill left."""
        damaged = [of for of, problem in self._problems.items() if problem is not None]
        if self._tidy and not damaged:
            return
        self._tidy = True
        if jax.process_index() == 0:
            beside = self._directory.with_name(f"{self._directory.name}.damaged")
            for iteration in damaged:
                aside(self._directory / str(iteration), beside)
            for half in _halves(self._directory):
                storage.remove_folder(half)
        multihost_utils.sync_global_devices("what was there makes way")
        self._manager.close()
        self._manager = self._opened()
        for iteration in damaged:
            del self._problems[iteration]

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._wait()
        self._manager.close()


def newest(directory: str | Path) -> int:
    """Iterations finished in a directory's newest checkpoint, 0 without one; nothing is opened."""
    directory = storage.place(directory)
    return max(ocp.utils.checkpoint_steps(directory), default=0) if directory.is_dir() else 0


def recorded(record: Path) -> int:
    """Iterations finished in the newest checkpoint that was ever whole, by a record; 0 for none."""
    try:
        return int(json.loads(record.read_text(encoding="utf-8"))["newest"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def exists(directory: str | Path) -> bool:
    """Whether `save_first` kept something in a directory; the same on all processes."""
    return bool(_agreed(_kept(storage.place(directory)) is not None))


def read(directory: str | Path, abstract_state: Any) -> Restored:
    """What `save_first` kept in a directory, on the shardings of `abstract_state`.

    Raises:
      ValueError: it is not of these shapes.
      Damaged: it is, or it is not there.
    """
    kept = _kept(storage.place(directory))
    found = None
    if kept is not None:
        with Checkpoints(kept, keep=1) as saved:
            found = saved.restore(abstract_state)
    if found is None:
        raise Damaged(f"{str(directory)!r} holds no checkpoint")
    return found


def discard(directory: str | Path) -> None:
    """Removes what `save_first` kept, so that it can be made anew; all processes take part."""
    if jax.process_index() == 0:
        directory = storage.place(directory)
        if storage.remote(directory):
            leaving = _kept(directory)
            buckets.drop(_name_of(directory))
            if leaving is not None:
                storage.remove_folder(leaving)
        else:
            # Renamed first: another run finds all of it or nothing.
            leaving = directory.with_name(f"{directory.name}.damaged-{secrets.token_hex(4)}")
            if _renamed(directory, leaving):
                storage.remove_folder(leaving)
    multihost_utils.sync_global_devices("what was damaged is gone")


def aside(path: Path, folder: Path) -> Path:
    """Moves a file or folder into another folder, under its name or a free one; where it is now."""
    if not storage.remote(folder):
        folder.mkdir(parents=True, exist_ok=True)
    target, number = folder / path.name, 1
    while target.exists():
        number += 1
        target = folder / f"{path.name}.{number}"
    storage.move(path, target)
    return target


def save_first(directory: str | Path, iteration: int, state: Any, host: dict[str, Any]) -> bool:
    """Saves a single checkpoint in a directory of its own, unless another process was first.

    It is written beside the directory and renamed when it is whole, so that runs that save the same
    at once do not meet, and none finds half of it. In a bucket it stays where it was written, and
    an object beside it, `.kept`, that only one can create, says where. All processes of a run take
    part.

    Returns:
      Whether it is this one that is kept; otherwise the other is, whole.
    """
    directory = storage.absolute(directory)
    token = _agreed(secrets.randbits(31))
    making = directory.with_name(f"{directory.name}.making-{token:08x}")
    remote, first = storage.remote(directory), False
    try:
        with Checkpoints(making, keep=1) as saved:
            saved.save(iteration, state, host)
        multihost_utils.sync_global_devices("checkpoint is whole")
        if jax.process_index() == 0:
            first = _named(making, directory) if remote else _renamed(making, directory)
        return bool(_agreed(first))
    finally:
        if jax.process_index() == 0 and not (remote and first):
            storage.remove_folder(making)


def _renamed(source: Path, target: Path) -> bool:
    """Renames a folder; False where the target holds something already."""
    try:
        source.rename(target)
    except OSError:
        if not target.is_dir():
            raise
        return False
    return True


def _kept(directory: Path) -> Path | None:
    """The folder that holds what `save_first` kept; None where it kept nothing."""
    if not storage.remote(directory):
        return directory if directory.is_dir() else None
    found = buckets.see(_name_of(directory))
    return None if found is None else directory.with_name(found.content.decode())


def _named(folder: Path, directory: Path) -> bool:
    """Says in a bucket that a folder is a directory's; False where another one is already."""
    made = buckets.put(_name_of(directory), folder.name.encode(), expected=buckets.ABSENT)
    return made is not None


def _name_of(directory: Path) -> Path:
    return directory.with_name(f"{directory.name}.kept")


def _halves(directory: Path) -> list[Path]:
    """Checkpoints that a kill has left in the making."""
    if not storage.remote(directory):
        return list(directory.glob("*.orbax-checkpoint-tmp*"))
    names = buckets.entries(directory)
    folders = {name.partition("/")[0] for name in names if "/" in name}
    return [directory / of for of in sorted(folders) if f"{of}/{WHOLE}" not in names]


def _writer(path: Path) -> int:
    """Which process wrote a file of a checkpoint: 0 where its path names none."""
    for part in path.parts[::-1]:
        found = re.fullmatch(r"(?:ocdbt\.)?process_(\d+)", part)
        if found:
            return int(found[1])
    return 0


def _any(value: bool) -> bool:
    """Whether it is true on some process, on all of them."""
    return bool(np.any(multihost_utils.process_allgather(np.int32(value))))


def _agreed(value: int) -> int:
    """The first process's value, on all of them."""
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))
