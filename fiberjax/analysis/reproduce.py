"""Whether a run's updates can be made again: its own program on its kept rollouts.

From the checkpoint before an iteration, the very step of the run is compiled again and given the
batches that the kept rollouts make, update after update, and every metric is compared with the one
that was logged. On the devices that trained, of one mesh, numbers are equal bit for bit; elsewhere
they differ by rounding.
"""

import dataclasses
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fiberjax import experiment as experiments
from fiberjax.analysis.replay import jsonable
from fiberjax.experiment import Experiment
from fiberjax.run import identity, migrations
from fiberjax.run.base import make_base
from fiberjax.run.checkpoints import Checkpoints
from fiberjax.run.kept import Kept
from fiberjax.run.kept_files import kept_iterations, load_rollouts
from fiberjax.run.measured import joined
from fiberjax.run.policies import rows_of
from fiberjax.run.shown import visible
from fiberjax.run.warm_start import starting_params
from fiberjax.tasks import PromptBatch
from fiberjax.train.batch import Batch
from fiberjax.train.diagnose import make_diagnose
from fiberjax.train.minibatches import make_batches
from fiberjax.train.rollout import Rollouts
from fiberjax.train.update import TrainState, make_step

TOLERANCE = 1e-3
"""Relative difference up to which a number is rounded alike elsewhere; see `Reproduction.close`."""

SMALL = 1e-5
"""Below, numbers are compared by their difference: they are what is left of larger ones."""

SHOWN = ("actor/grad_norm", "actor/pg_loss", "actor/pg_clipfrac", "gate/clip_fraction/")
"""What `print` shows of each update, names or their beginnings."""


class Compared(NamedTuple):
    """A metric of an update, as it was logged and as it was made again."""

    update: int
    minibatch: int
    name: str
    logged: float
    replayed: float

    @property
    def equal(self) -> bool:
        """Whether they are the same number, bit for bit; NaN equals itself."""
        return self.logged == self.replayed or (
            math.isnan(self.logged) and math.isnan(self.replayed)
        )

    @property
    def difference(self) -> float:
        """Their distance, over the larger of the two and `SMALL`; 0 where they are equal."""
        if self.equal:
            return 0.0
        size = max(abs(self.logged), abs(self.replayed), SMALL)
        distance = abs(self.logged - self.replayed) / size
        return distance if math.isfinite(distance) else math.inf


@dataclasses.dataclass(frozen=True, eq=False)
class Reproduction:
    """The updates of an iteration, made again.

    Attributes:
      iteration: counted from 1.
      compared: every metric of every update, in their order.
    """

    iteration: int
    compared: tuple[Compared, ...]

    @property
    def bitwise(self) -> bool:
        """Whether every metric is equal bit for bit."""
        return all(each.equal for each in self.compared)

    @property
    def largest(self) -> float:
        """The largest relative difference."""
        return max((each.difference for each in self.compared), default=0.0)

    @property
    def close(self) -> bool:
        """Whether no metric of the first update differs by more than `TOLERANCE`.

        Later ones start from parameters that have been rounded otherwise before.
        """
        return all(each.difference <= TOLERANCE for each in self.compared if each.update == 0)

    def words(self) -> str:
        """In a line."""
        equal, count = sum(each.equal for each in self.compared), len(self.compared)
        updates = 1 + max((each.update for each in self.compared), default=-1)
        told = f"iteration {self.iteration}: {equal} of {count} metrics of {updates} updates are"
        if self.bitwise:
            return f"{told} equal bit for bit"
        worst = max(self.compared, key=lambda each: each.difference)
        return (
            f"{told} equal bit for bit; the largest relative difference is {self.largest:.2g}, of "
            f"{worst.name} in update {worst.update}"
        )

    def print(self, console: Console | None = None) -> None:
        """Prints the main metrics of each update on a console, the terminal where None."""
        console = Console() if console is None else console
        table = Table(box=None, pad_edge=False)
        for name in ("update", "batch"):
            table.add_column(name)
        table.add_column("metric", no_wrap=True)
        for name in ("logged", "replayed", "difference"):
            table.add_column(name, justify="right")
        for each in self.compared:
            if each.name.startswith(SHOWN):
                told = "bitwise" if each.equal else f"{each.difference:.1e}"
                numbers = (f"{each.logged:.6g}", f"{each.replayed:.6g}", told)
                table.add_row(
                    str(each.update), str(each.minibatch), Text(visible(each.name)), *numbers
                )
        console.print(table)
        console.print(Text(self.words()))

    def to_json(self) -> str:
        """All metrics as JSON; what is not finite is a text there."""
        found = {
            "iteration": self.iteration,
            "bitwise": self.bitwise,
            "largest": self.largest,
            "compared": [each._asdict() for each in self.compared],
        }
        return json.dumps(jsonable(found), indent=1, allow_nan=False)


def reproduce(
    run: str | os.PathLike[str], iteration: int | None = None, *, devices: Any = None
) -> Reproduction:
    """Makes the updates of a kept iteration again; a `Reproduction`.

    Args:
      run: the run folder.
      iteration: counted from 1; None for the newest that can be: its rollouts are kept, and a
        checkpoint of the iteration before.
      devices: of the mesh; as many as the run's config needs by default.

    Raises:
      ValueError: the rollouts are not kept, or no checkpoint of the iteration before is; or the
        run replays the experts of its tokens, which are not kept.
    """
    directory = Path(run)
    kept = load_rollouts(directory, _newest(directory) if iteration is None else iteration)
    iteration = int(kept.meta["iteration"])
    built = experiments.from_config(*_fitted(_config(directory, kept), devices))
    if built.training.router_replay:
        raise ValueError(
            "config.training.router_replay = True: the experts of each token are not kept, so that "
            "these updates cannot be made again"
        )
    base = make_base(built)
    state = _state(built, base.params, directory, iteration - 1)
    batches = batches_of(built, kept)
    step = make_step(
        *(built.policy, built.mesh, built.gate, built.optimizer, built.step),
        jax.tree.map(lambda leaf: leaf.sharding, built.abstract_state()),
    )
    diagnose = make_diagnose(built.mesh, built.gate)
    of_budgets = built.control.of == "budgets"
    knobs = built.knobs_at(float(kept.meta["budget_factor" if of_budgets else "step_factor"]))
    adapted = None if built.lora is None else base.params
    found: list[Compared] = []
    for number, update in enumerate(kept.meta["updates"]):
        minibatch = int(update["minibatch"])
        fresh = np.bool_(built.training.scored and number == 0)
        result = step(state, batches[minibatch], knobs, adapted, fresh)
        state, metrics = result[:2]
        if built.step.log_prob:  # Of what is kept the run has looked at every update.
            metrics |= diagnose(result[2], batches[minibatch], knobs)
        made = joined([metrics])
        found += [
            Compared(number, minibatch, name, float(logged), made[name])
            for name, logged in update["metrics"].items()
        ]
    return Reproduction(iteration, tuple(found))


def _newest(directory: Path) -> int | None:
    """The newest iteration that can be made again; the newest that is kept where none can."""
    saved = directory / "checkpoints"
    there = {int(of.name) for of in saved.glob("*") if of.name.isascii() and of.name.isdigit()}
    can = [of for of in kept_iterations(directory) if of == 1 or of - 1 in there]
    return can[-1] if can else None


def _config(directory: Path, kept: Kept) -> ConfigDict:
    """The config that the iteration was made with, which the run may have changed since."""
    if kept.meta.get("config_version") == migrations.VERSION:
        return ConfigDict(kept.meta["config"])
    return identity.read_config(directory)


def _fitted(config: ConfigDict, devices: Sequence[Any] | None) -> tuple[ConfigDict, list[Any]]:
    """The run's mesh on the devices that are there, or one device where it has no room.

    Args:
      config: of the run; its mesh is changed where it has no room.
      devices: to choose from; all by default.
    """
    there = list(jax.devices() if devices is None else devices)
    sizes = [int(size) for size in config.mesh.values()]
    if min(sizes) < 0:
        return config, there
    if math.prod(sizes) > len(there):
        config.mesh = ConfigDict(dict.fromkeys(config.mesh, 1))
        return config, there[:1]
    return config, there[: math.prod(sizes)]


def _state(built: Experiment, base: Any, directory: Path, iteration: int) -> TrainState:
    """The train state after an iteration; after none, the one that the run started from."""
    shapes = built.abstract_state()
    if iteration == 0:
        start = starting_params(built) if built.lora is None else base
        shardings = jax.tree.map(lambda leaf: leaf.sharding, shapes)
        return jax.jit(built.fresh_state, out_shardings=shardings)(start)
    folder = directory / "checkpoints"
    if not folder.is_dir():
        raise ValueError(f"{str(directory)!r} holds no checkpoint of a run")
    with Checkpoints(folder, keep=built.checkpoint.keep) as saved:
        found = saved.restore(shapes, iteration)
    assert found is not None
    return found.state


def batches_of(built: Experiment, kept: Kept) -> list[Batch]:
    """The optimizer batches that the run made of these rollouts, all minibatches in order.

    Args:
      built: the run's experiment.
      kept: its rollouts, of `load_rollouts`.
    """
    total, row = int(kept.meta["rows"]), kept.row
    size = built.rollout.samples
    (tokens, positions, segment_ids), mask, _ = rows_of(kept, built)

    def whole(of: np.ndarray | None, fill: float = 0) -> np.ndarray:
        """Rows in their places of the global batch."""
        assert of is not None
        table = np.full((total, *of.shape[1:]), fill, of.dtype)
        table[row] = of
        return table

    def or_else(of: np.ndarray | None, fill: float) -> np.ndarray:
        shape = (total, kept.mask.shape[1])
        return np.full(shape, fill, np.float32) if of is None else whole(of, fill)

    prompts = whole(kept.table["prompt_index"].to_numpy())[::size]
    none = np.zeros(total, np.int32)
    blank = np.zeros((total, kept.mask.shape[1]), np.float32)
    rollouts = Rollouts(
        tokens=tokens,
        positions=positions,
        segment_ids=segment_ids,
        mask=mask,
        turn=whole(kept.turn),
        finished=none.astype(bool),
        sampler_log_prob=blank,
        log_kept=blank,
        reward=none.astype(np.float32),
        replies_cut=none,
        prompts=PromptBatch(
            tokens=np.zeros((len(prompts), built.window.prompt), np.int32),
            mask=np.zeros((len(prompts), built.window.prompt), bool),
            prompt_index=prompts.astype(np.int64),
            domain=np.zeros(len(prompts), np.int64),
            prompts=[""] * len(prompts),
            answers=[""] * len(prompts),
        ),
        texts=[],
    )
    return make_batches(
        built.mesh,
        rollouts,
        # The same for all tokens of a trajectory.
        advantage=whole(_first(kept.advantage, kept.mask)),
        old_log_prob=whole(kept.old_log_prob),
        reference_log_prob=or_else(kept.reference_log_prob, 0),
        sample_weight=or_else(kept.sample_weight, 1),
        num_minibatches=built.training.minibatches,
        levels=built.levels,
        turns=built.turns.limit,
        pack_micro_batches=built.training.micro_batches if built.training.packing else 0,
        states=built.couples_states,
    )


def _first(of: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The value at each row's first token that counts, 0 without one; [R]."""
    rows = np.arange(len(mask))
    return np.where(mask.any(axis=1), of[rows, mask.argmax(axis=1)], np.float32(0))
