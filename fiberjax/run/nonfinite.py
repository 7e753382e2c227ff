"""Updates that were not finite: left out and counted, their batches kept, a run of them stopped.

The compiled step leaves the state as it was where a loss or a gradient is not finite
(`train.update`). Here is what follows: under `config.training.nonfinite = "skip"` the run goes on
with the next update, and stops, saved, once `MOST` updates in a row were left out; under "stop" it
ends at the first one and saves nothing of that iteration. So does any run whose parameters or
moments are no longer finite, which a finite gradient hardly ever does: its checkpoints are from
before.

A run folder holds `nonfinite/` with two files of each such update, `000012-3.json` and
`000012-3.npz` for the third update of iteration 12. The first says which terms were not finite, all
metrics of the update, and the domains and prompts of its batch; the second has the arrays of the
batch by their paths, this process's rows of them, as `replayed` reads them back.
"""

import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from fiberjax import storage
from fiberjax.experiment import Experiment
from fiberjax.finite import NotFinite
from fiberjax.parallel import mesh
from fiberjax.train.batch import Batch

FOLDER = "nonfinite"
MOST = 5
"""Updates in a row that are left out before the run stops."""
KEPT = 20
"""Updates whose batches a run folder keeps, the first ones."""


class Made(NamedTuple):
    """One update of an iteration, as it was made or left out.

    Attributes:
      terms: what was not finite; () where the update was made.
      metrics: of the update alone; numbers by name. {} of one that was made and is not kept.
      batch: that it was of.
      prompt_index: int[groups], the prompts of the batch, of all processes.
      minibatch: which of the rollouts' optimizer batches it is.
    """

    terms: tuple[str, ...]
    metrics: Mapping[str, float]
    batch: Batch
    prompt_index: np.ndarray
    minibatch: int


class NonFinite:
    """Counts the updates that were left out, and keeps their batches.

    Attributes:
      problem: why the run is to stop, saved; None where it goes on.
    """

    def __init__(self, experiment: Experiment):
        """Begins with none; `experiment.training.nonfinite` says what follows of one."""
        self.problem: str | None = None
        self._experiment = experiment
        self._in_a_row = 0
        self._told = ""
        self._lost = ""

    def observe(self, directory: Path, iteration: int, updates: Sequence[Made]) -> None:
        """Takes the updates of an iteration, in their order.

        Args:
          directory: the run folder.
          iteration: counted from 1.
          updates: all of them.
        """
        self._told = ""
        for number, made in enumerate(updates, start=1):
            self._in_a_row = self._in_a_row + 1 if made.terms else 0
            if made.terms:
                kept = _keep(self._experiment, directory / FOLDER, iteration, number, made)
                told = f"update {number} of iteration {iteration} is not finite in "
                told += f"{', '.join(made.terms)}; {kept}"
                self._told = self._told or told
                if "state" in made.terms:
                    self._lost = self._lost or told
                elif jax.process_index() == 0:
                    print(f"{told}; the parameters stay as they were")
            if self._in_a_row >= MOST:
                self.problem = (
                    f"{self._in_a_row} updates in a row were not finite, the last of them update "
                    f"{number} of iteration {iteration}, in {', '.join(made.terms)}. The run is "
                    "saved with the parameters from before them, and the same command goes on "
                    "with it; a smaller config.optimizer.learning_rate may help"
                )

    def check(self) -> None:
        """Ends a run whose state is lost, or whose config says so at an update that was not finite.

        Raises:
          NotFinite: names the update and its terms.
        """
        if self._lost:
            raise NotFinite(
                f"{self._lost}: parameters or moments of the optimizer hold a NaN or an infinity, "
                "and nothing of this iteration is saved. The run goes on from the checkpoint "
                "before it; take a smaller config.optimizer.learning_rate"
            )
        if self._told and self._experiment.training.nonfinite == "stop":
            raise NotFinite(
                f"{self._told}. config.training.nonfinite is 'stop': nothing of this iteration is "
                "saved"
            )

    def get_state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"in_a_row": self._in_a_row}

    def set_state(self, state: Mapping[str, Any] | None) -> None:
        """Goes on from a checkpoint; after a stop, or of an earlier version, it counts anew."""
        found = 0 if state is None else int(state["in_a_row"])
        self._in_a_row = found if found < MOST else 0


def _keep(experiment: Experiment, folder: Path, iteration: int, number: int, made: Made) -> str:
    """Writes what is kept of an update; says in a clause where."""
    # Of a later iteration than the run goes on from, a file is written again, and alike.
    path = folder / f"{iteration:06d}-{number}.json"
    if not path.exists() and len(storage.matching(folder, "*.json")) >= KEPT:
        return f"{folder} holds {KEPT} such updates already"
    arrays = _arrays(made.batch)
    examples = experiment.examples
    asked = [
        {
            "prompt_index": int(index),
            "domain": examples.domains[examples.domain_of(int(index))].name,
            "prompt": examples[int(index)].prompt,
        }
        for index in made.prompt_index
    ]
    said = {
        "iteration": iteration,
        "update": number,
        "not_finite": list(made.terms),
        "arrays_not_finite": [
            name
            for name, of in arrays.items()
            if np.issubdtype(of.dtype, np.floating) and not np.isfinite(of).all()
        ],
        "metrics": {
            name: value if math.isfinite(value) else str(value)
            for name, value in made.metrics.items()
        },
        "prompts": asked,
    }
    try:
        written = io.BytesIO()
        np.savez_compressed(written, **arrays)  # type: ignore[arg-type]
        storage.write(_npz(path), written.getvalue())
        if jax.process_index() == 0:
            storage.write(path, json.dumps(said, indent=1) + "\n")
    except OSError as error:  # What is kept for looking at must not end the run.
        return f"its batch cannot be kept ({error})"
    return f"{path} says of which prompts"


def _npz(path: Path) -> Path:
    """Where a process has its rows, beside the JSON."""
    process = f"-process{jax.process_index()}" if jax.process_count() > 1 else ""
    return path.with_name(f"{path.stem}{process}.npz")


def _arrays(batch: Batch) -> dict[str, np.ndarray]:
    """The arrays of a batch by path, this process's rows."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(batch)
    return {_name(path): mesh.local_values(leaf) for path, leaf in leaves}


def replayed(path: Path, like: Batch) -> Batch:
    """A kept batch as the step reads it, on the devices of another of the same run.

    Args:
      path: of the npz file.
      like: a batch of one process that was cut alike, whose arrays are not read.

    Raises:
      ValueError: the file does not hold such a batch.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    named = {_name(at): leaf for at, leaf in leaves}
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as kept:
        arrays = dict(kept)
    found, expected = ({name: x.shape for name, x in of.items()} for of in (arrays, named))
    if found != expected:
        raise ValueError(f"{path} holds arrays {found}, expected {expected}")
    put = [jax.device_put(arrays[name], leaf.sharding) for name, leaf in named.items()]
    return jax.tree_util.tree_unflatten(structure, put)


def _name(path: tuple[Any, ...]) -> str:
    """A path within a batch as `layout.mask`."""
    return jax.tree_util.keystr(path, simple=True, separator=".")
