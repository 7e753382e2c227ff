"""The policy of any checkpoint of a run, onto whatever devices are there."""

import copy
import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from fiberjax import experiment, options, storage
from fiberjax.experiment import Experiment
from fiberjax.parallel import mesh
from fiberjax.run import identity, loop
from fiberjax.run.kept import Kept
from fiberjax.tasks.loading import no_domains
from fiberjax.train.checks import check_rows
from fiberjax.train.forward import make_log_probs
from fiberjax.train.rollout import positions_of

ALONE = {"data": 1, "fsdp": 1, "sequence": 1, "tensor": 1}


@dataclasses.dataclass(frozen=True, eq=False)
class Policy:
    """A policy as a run saved it.

    Attributes:
      iteration: that it was saved after; 0 is the start.
      config: of the run.
      experiment: that it is built from, on the devices that it was read onto. It has neither the
        run's data nor its gate, levels and plugins.
      params: its parameters, those of adapters among them.
    """

    iteration: int
    config: ConfigDict
    experiment: Experiment
    params: Any

    def log_prob(self, kept: Kept) -> np.ndarray:
        """What it gives each token of kept rollouts, float32[R, C], nats; 0 off the mask.

        By the program that makes the old log-probabilities of an iteration: on the same devices,
        those of the policy that drew the rollouts are `kept.old_log_prob` bit for bit, but for a
        run that replays routes, as each policy chooses its experts by itself here.

        Args:
          kept: with tokens, and the prompts' tokens.

        Raises:
          ValueError: it has neither, or tokens that this policy does not know.
        """
        rows, mask, places = rows_of(kept, self.experiment)
        temperature = self.experiment.knobs.temperature
        found, _ = self._log_probs(self.params, rows, mask, temperature)()
        columns = kept.mask.shape[1]
        return np.where(kept.mask, found[places, :columns], np.float32(0))

    @functools.cached_property
    def _log_probs(self) -> Callable:
        training = self.experiment.training
        return make_log_probs(
            self.experiment.policy,
            self.experiment.mesh,
            training.chunk,
            training.micro_batches * training.minibatches,
            packed=training.packing,
        )


def load_policy(
    run: str | os.PathLike[str],
    iteration: loop.Wanted = None,
    *,
    devices: Sequence[Any] | None = None,
) -> Policy:
    """The policy of a run's checkpoint.

        policy = fj.load_policy("runs/quickstart", 20)
        kept = fj.load_rollouts("runs/quickstart", 21)
        log_prob = policy.log_prob(kept)

    It lies on the mesh of the run's config where that fits the devices and their number divides the
    batches, else split over all of them, else on the first. The data is not read, unless adapters
    of a warm start need their base.

    Args:
      run: the run folder.
      iteration: of the checkpoint, 0 for what the run started from; "best" for the best one by
        `config.checkpoint.best`; None for the newest.
      devices: all by default.

    Raises:
      ValueError: the folder holds no run, or no such checkpoint, or one that is damaged.
    """
    directory = storage.place(run)
    if iteration is not None and iteration != "best" and type(iteration) is not int:
        raise ValueError(f"iteration must be a number, 'best' or None; got {iteration!r}")
    config = identity.read_config(directory)
    start = iteration == 0
    bare, load_data = without_data(config, start=start)
    devices = jax.devices() if devices is None else list(devices)
    bare.mesh, devices = _placed(bare, devices)
    built = experiment.from_config(bare, devices, load_data)
    if start:
        return Policy(0, config, built, loop.first_params(built))
    saved = loop.saved_policy(built, directory, iteration)
    params = built.whole(saved.trained, saved.base.params)
    return Policy(saved.iteration, config, built, params)


def without_data(
    config: ConfigDict, *, start: bool = False
) -> tuple[ConfigDict, experiment.LoadData | None]:
    """A config of the same policy and optimizer without the rest of its run, and what loads data.

    No data set is built, no file of prompts read, no plugin imported for the gate, the advantages,
    the rewards or the environment that it brings: but where the base of adapters, or the start, is
    found by what it was taught.

    Args:
      config: of a run, completed to one of today; not changed.
      start: whether the parameters that the run started from are wanted.
    """
    config = copy.deepcopy(config)
    config.gate = ConfigDict({"name": "importance"})
    config.control.kind = "none"
    config.update({"levels": (("group", ""),), "advantage": "grpo"})
    if (start or config.lora.rank > 0) and config.warm_start.steps > 0:
        return config, None
    config.plugins = ()
    config.turns.environment = ""
    return config, no_domains


def _placed(config: ConfigDict, devices: Sequence[Any]) -> tuple[ConfigDict, Sequence[Any]]:
    """The first mesh that fits devices and batches, and the devices that it takes."""
    sections = (options.Rollout, options.Training, options.WarmStart, options.Evaluation)
    names = ("rollout", "training", "warm_start", "evaluation")
    batches: list[Any] = [
        options.parse(of, config[name], f"config.{name}")
        for of, name in zip(sections, names, strict=True)
    ]
    wanted: tuple[tuple[Mapping[str, int], Sequence[Any]], ...] = (
        (config.mesh.to_dict(), devices),
        (ALONE | {"fsdp": len(devices)}, devices),
    )
    for sizes, on in wanted:
        try:
            check_rows(mesh.make_mesh(sizes, on), *batches)
        except ValueError:
            continue
        return ConfigDict(dict(sizes)), on
    return ConfigDict(ALONE), devices[:1]


def rows_of(
    kept: Kept, built: Experiment
) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], np.ndarray, np.ndarray]:
    """Kept rollouts as the policy reads them, at their places in the global batch.

    Args:
      kept: with tokens, and the prompts' tokens.
      built: says the window, and how rows divide.

    Returns:
      Tokens, positions and segment ids, int32[B, P + C]; the mask, bool[B, C]; and the row of each
      trajectory. What was left out of the loss is left out here.

    Raises:
      ValueError: it has no tokens, or some that this policy does not know.
    """
    if kept.prompt_tokens is None:
        raise ValueError("the rollouts have no tokens of prompts: expected prompt_tokens")
    training = built.training
    unit = mesh.row_shards(built.mesh) * training.micro_batches * training.minibatches
    count = max(kept.meta.get("rows", 0), int(kept.row.max(initial=0)) + 1)
    count = -(-count // unit) * unit
    before = max([built.window.prompt, *map(len, kept.prompt_tokens)])
    columns = max(built.window.completion, kept.mask.shape[1])
    before += -(before + columns) % (2 * built.mesh.shape["sequence"])
    tokens = np.zeros((count, before + columns), np.int32)
    real = np.zeros(tokens.shape, bool)
    mask = np.zeros((count, columns), bool)
    for row, place in enumerate(kept.row):
        length = int(np.flatnonzero(kept.mask[row])[-1]) + 1 if kept.mask[row].any() else 0
        prompt = kept.prompt_tokens[row] if length else kept.prompt_tokens[row][:0]
        tokens[place, before - len(prompt) : before] = prompt
        tokens[place, before : before + length] = kept.tokens[row, :length]
        real[place, before - len(prompt) : before + length] = True
        mask[place, :length] = kept.mask[row, :length]
    known = built.policy.vocab_size
    if tokens.min() < 0 or tokens.max() >= known:
        raise ValueError(
            f"the rollouts have tokens from {tokens.min()} to {tokens.max()}; the policy knows "
            f"0 to {known - 1}"
        )
    return (tokens, positions_of(real), real.astype(np.int32)), mask, kept.row
