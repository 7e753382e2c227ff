"""Orbax checkpoints of a run: the train state on devices, and what the host must remember."""

import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, LatestN

BEST = "best"
"""In what the host remembers: iterations finished in the best checkpoint."""


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

    Saving is asynchronous: it returns once the arrays are copied, and writing goes on behind. A
    process killed while writing leaves the previous checkpoint the latest.
    """

    def __init__(self, directory: str | Path, *, keep: int):
        """Opens the directory, made if absent.

        Args:
          directory: where the checkpoints lie, one folder each.
          keep: how many of the latest to keep, beside the best one that `save` names.
        """
        if keep < 1:
            raise ValueError(f"checkpoint.keep must be at least 1; got {keep}")
        self._directory = Path(directory).absolute()
        self._best = _Best()
        policy = AnyPreservationPolicy([LatestN(keep), self._best])
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(preservation_policy=policy),
            item_names=("state", "host"),
        )

    def latest(self) -> int | None:
        """Iterations finished in the newest checkpoint, or None."""
        return self._manager.latest_step()

    def best(self) -> int:
        """Iterations finished in the best checkpoint, as the newest one names it.

        Raises:
          ValueError: there is none.
        """
        newest, found = self.latest(), None
        if newest is not None:
            only_host = ocp.args.Composite(host=ocp.args.JsonRestore())
            found = self._manager.restore(newest, args=only_host)["host"].get(BEST)
        if found is None:
            raise ValueError(
                f"{self._directory} holds no best checkpoint: config.checkpoint.best named no "
                "metric, or the run has not measured it yet"
            )
        return int(found)

    def save(
        self, iteration: int, state: Any, host: dict[str, Any], best: int | None = None
    ) -> None:
        """Saves; the state may be donated as soon as this returns.

        Args:
          iteration: iterations finished.
          state: the train state.
          host: what else is restored, a JSON-like dictionary.
          best: iterations finished in the best checkpoint, which is kept; this one or an earlier
            one. None for none.
        """
        self._best.iteration = best
        if best is not None:
            host = host | {BEST: best}
        self._manager.save(
            iteration,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), host=ocp.args.JsonSave(host)
            ),
        )

    def restore(self, abstract_state: Any, iteration: int | None = None) -> Restored | None:
        """Reads the newest checkpoint onto the shardings of `abstract_state`; None without one.

        The mesh may differ from the one that saved.

        Args:
          abstract_state: shapes, each leaf with its sharding.
          iteration: that of an older checkpoint; None for the newest.

        Raises:
          ValueError: there is none of that iteration, or it does not hold a state of these shapes.
        """
        kept = sorted(self._manager.all_steps())
        if iteration is not None and iteration not in kept:
            raise ValueError(
                f"{self._directory} holds no checkpoint of iteration {iteration}; there are "
                f"{', '.join(map(str, kept)) if kept else 'none'}"
            )
        iteration = self.latest() if iteration is None else iteration
        if iteration is None:
            return None
        try:
            items = self._manager.restore(
                iteration,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(abstract_state), host=ocp.args.JsonRestore()
                ),
            )
        except (ValueError, KeyError, FileNotFoundError) as error:
            raise ValueError(
                f"checkpoint {self._directory / str(iteration)} does not hold the state that this "
                f"config describes: {error}"
            ) from error
        return Restored(iteration, items["state"], items["host"])

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._manager.wait_until_finished()
        self._manager.close()


def exists(directory: str | Path) -> bool:
    """Whether `save_first` kept something in a directory; the same on all processes."""
    return bool(_agreed(Path(directory).is_dir()))


def read(directory: str | Path, abstract_state: Any) -> Restored:
    """What `save_first` kept in a directory, on the shardings of `abstract_state`.

    Raises:
      ValueError: the directory holds no checkpoint, or not one of these shapes.
    """
    with Checkpoints(directory, keep=1) as saved:
        found = saved.restore(abstract_state)
    if found is None:
        raise ValueError(f"{str(directory)!r} holds no checkpoint")
    return found


def save_first(directory: str | Path, iteration: int, state: Any, host: dict[str, Any]) -> bool:
    """Saves a single checkpoint in a directory of its own, unless another process was first.

    It is written beside the directory and renamed when it is whole, so that runs that save the same
    at once do not meet, and none finds half of it. All processes of a run take part.

    Returns:
      Whether it is this one that is kept; otherwise the other is, whole.
    """
    directory = Path(directory).absolute()
    token = _agreed(secrets.randbits(31))
    making = directory.with_name(f"{directory.name}.making-{token:08x}")
    try:
        with Checkpoints(making, keep=1) as saved:
            saved.save(iteration, state, host)
        multihost_utils.sync_global_devices("checkpoint is whole")
        return bool(_agreed(jax.process_index() == 0 and _renamed(making, directory)))
    finally:
        if jax.process_index() == 0:
            shutil.rmtree(making, ignore_errors=True)


def _renamed(source: Path, target: Path) -> bool:
    """Renames a folder; False where the target holds something already."""
    try:
        source.rename(target)
    except OSError:
        if not target.is_dir():
            raise
        return False
    return True


def _agreed(value: int) -> int:
    """The first process's value, on all of them."""
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))
