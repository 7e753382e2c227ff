"""A run in this process, such as a notebook's: from a config to its folder by one call."""

import dataclasses
import inspect
import os
import runpy
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from fiberjax import experiment, model_folder, storage
from fiberjax.experiment import Experiment, LoadData
from fiberjax.parallel import compiled
from fiberjax.run import identity, loop, metrics
from fiberjax.run.evaluation import EvaluationTable


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
      directory: the run folder.
      table: the evaluation on held-out prompts, before and after.
      experiment: what its config described.
    """

    directory: Path
    table: EvaluationTable
    experiment: Experiment

    def metrics(self) -> dict[str, np.ndarray]:
        """The metrics of every iteration as columns, each [iterations]; see `read_metrics`."""
        return metrics.read_metrics(self.directory)


def run_experiment(
    config: ConfigDict | str | os.PathLike[str],
    workdir: str | os.PathLike[str],
    *,
    devices: Any = None,
    load_data: LoadData | None = None,
) -> Run:
    """Trains as a config says, in this process, or goes on with what is in the folder; a `Run`.

        run = fj.run_experiment("configs/quickstart.py:gspo", "runs/gspo")
        run.table.print()
        run.metrics()["reward/mean"]

    The folder is that of `experiments/train.py`: what one began the other resumes. An interrupt
    (Ctrl-C, a notebook's stop button) during training abandons rollouts, or lets the updates at
    hand finish, and saves; a second one ends at once, and the run stands where it was last saved.
    Either way the same call goes on from there.

    Args:
      config: as `configs/` makes it, or the path of such a file, with the argument of its
        `get_config` after a colon.
      workdir: where the run is kept.
      devices: of the mesh; all by default.
      load_data: gives the training and held-out domains; those of the config by default.

    Raises:
      ValueError: anything wrong in the config, or a folder that holds a run of another one.
      NotFinite: an update was not finite, and the config says to stop.
      KeyboardInterrupt: it was interrupted; says what is saved.
      NoRoom: the disk is full.
    """
    if not isinstance(config, ConfigDict):
        config = load_config(config)
    compiled.keep()
    config = identity.settle(storage.place(workdir), model_folder.with_folder(config))
    built = experiment.from_config(config, devices, load_data)
    table = loop.run(built, storage.place(workdir), config.to_json_best_effort())
    return Run(storage.place(workdir), table, built)


def load_config(path: str | os.PathLike[str]) -> ConfigDict:
    """What the command line's `--config=path` gives before any override; a ConfigDict.

    Args:
      path: of a file that defines `get_config`; what follows a colon is its argument.

    Raises:
      ValueError: there is no such file, or no such function in it, or it takes no argument.
    """
    file, colon, argument = os.fspath(path).partition(":")
    if not Path(file).is_file():
        raise ValueError(f"config {file!r} does not exist in {os.getcwd()}")
    get_config = runpy.run_path(file).get("get_config")
    if not callable(get_config):
        raise ValueError(f"config {file!r} defines no function get_config")
    given = (argument,) if colon else ()
    try:
        inspect.signature(get_config).bind(*given)
    except TypeError as error:
        raise ValueError(f"config {os.fspath(path)!r}: get_config: {error}") from None
    return get_config(*given)
