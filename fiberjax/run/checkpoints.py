"""Orbax checkpoints of a run: the train state on devices, and what the host must remember."""

from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import orbax.checkpoint as ocp


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


class Checkpoints:
    """Saves and restores in one directory; a context manager that waits for the last save.

    Saving is asynchronous: it returns once the arrays are copied, and writing goes on behind. A
    process killed while writing leaves the previous checkpoint the latest.
    """

    def __init__(self, directory: str | Path, *, keep: int):
        """Opens the directory, made if absent.

        Args:
          directory: where the checkpoints lie, one folder each.
          keep: how many of the latest to keep.
        """
        if keep < 1:
            raise ValueError(f"checkpoint.keep must be at least 1; got {keep}")
        self._directory = Path(directory).absolute()
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(max_to_keep=keep),
            item_names=("state", "host"),
        )

    def latest(self) -> int | None:
        """Iterations finished in the newest checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, iteration: int, state: Any, host: dict[str, Any]) -> None:
        """Saves; the state may be donated as soon as this returns."""
        self._manager.save(
            iteration,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), host=ocp.args.JsonSave(host)
            ),
        )

    def restore(self, abstract_state: Any) -> Restored | None:
        """Reads the newest checkpoint onto the shardings of `abstract_state`; None without one.

        The mesh may differ from the one that saved.

        Raises:
          ValueError: the checkpoint does not hold a state of these shapes.
        """
        iteration = self.latest()
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
