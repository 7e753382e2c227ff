"""The page of an iteration that a run kept: which policy is looked at, under which gate."""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from fiberjax import options
from fiberjax.analysis import blocks, page, tokens
from fiberjax.analysis.objectives import RUN, Asked
from fiberjax.parallel import mesh
from fiberjax.policy.row_parts import in_parts
from fiberjax.run import identity, kept_files, policies
from fiberjax.run.kept import Kept
from fiberjax.run.policies import Policy, load_policy
from fiberjax.tasks.loading import make_vocabulary
from fiberjax.train.batch import Rows
from fiberjax.train.forward import make_forward

FOLDER = "look"


class Looked(NamedTuple):
    """A page that was written.

    Attributes:
      path: its file.
      notes: what it says of itself: which policy, what is not known.
    """

    path: Path
    notes: list[str]


def look(
    run: str | os.PathLike[str],
    iteration: int | None = None,
    *,
    policy: int | None = None,
    gate: Asked = RUN,
    output: str | os.PathLike[str] | None = None,
) -> Looked:
    """Writes the page of an iteration whose rollouts a run kept.

    Args:
      run: the run folder, or one of the files in its `rollouts/`.
      iteration: counted from 1; None for the newest that is kept.
      policy: the iteration of the checkpoint that is looked at; None for the one after the
        iteration's updates where it is kept, else for the policy that drew.
      gate: as `objectives.objectives_of` takes one; the run's own by default.
      output: the page's file; `look/<iteration>.html` of the run by default.

    Raises:
      ValueError: the run keeps no such rollouts, checkpoint or gate; says what there is.
      NoRoom: the disk is full.
    """
    kept = kept_files.load_rollouts(run, iteration)
    iteration = int(kept.meta["iteration"])
    folder = Path(run)
    if folder.is_file():  # One of a run's `rollouts/`.
        folder = folder.resolve().parent.parent
    kept, found, notes = under(kept, folder, policy)
    numbers = tokens.look(kept, gate, entropy=None if found is None else entropy(found, kept))
    texts, told = texts_of(kept, folder)
    left_out = int((~kept.mask.any(axis=1)).sum())
    notes += told
    notes += [f"{left_out} trajectories were left out of the loss."] if left_out else []
    text = page.page(
        numbers,
        title=f"{folder.resolve().name}, iteration {iteration}",
        texts=texts,
        notes=notes,
    )
    path = folder / FOLDER / f"{iteration:06d}.html" if output is None else output
    return Looked(page.write(path, text), notes)


def under(kept: Kept, run: Path, wanted: int | None) -> tuple[Kept, Policy | None, list[str]]:
    """The rollouts under a policy of their run, that policy, and what to say of it.

    Args:
      kept: the rollouts.
      run: the run folder.
      wanted: the checkpoint's iteration; None for that of the rollouts, where it is kept.

    Raises:
      ValueError: the checkpoint that is wanted is not there.
    """
    iteration = int(kept.meta["iteration"])
    try:
        policy = load_policy(run, iteration if wanted is None else wanted, devices=_devices())
    except ValueError as error:
        if wanted is not None:
            raise
        said = f"There is no policy after iteration {iteration} to look at ({error})."
        if kept.log_prob is None:
            said += " Tokens stand as they were drawn: all log ratios are 0, and no gate is closed."
        return kept, None, [said]
    said = f"The policy after iteration {policy.iteration}"
    if policy.iteration == iteration:
        said += ", which has had the updates on these rollouts"
    if policy.iteration == iteration - 1:
        said += ", which drew these rollouts: log ratios are 0 but for rounding"
    return kept.with_log_prob(policy.log_prob(kept)), policy, [f"{said}."]


def texts_of(kept: Kept, run: Path) -> tuple[list[list[str]] | None, list[str]]:
    """The text of every trajectory's tokens; None, and why, where the tokenizer is not there."""
    try:
        config = identity.read_config(run)
        vocabulary = make_vocabulary(
            options.parse(options.Tasks, config.tasks, "config.tasks"),
            options.parse(options.Model, config.model, "config.model"),
        )
    except (OSError, ValueError) as error:
        return None, [f"Tokens are shown by their ids, for the tokenizer cannot be read: {error}"]
    lengths = blocks.lengths(kept)
    ids = (row[:length] for row, length in zip(kept.tokens, lengths, strict=True))
    return [blocks.pieces(vocabulary, of.tolist()) for of in ids], []


def entropy(policy: Policy, kept: Kept) -> np.ndarray:
    """The policy's entropy where each token was drawn, float32[R, C], nats; 0 off the mask."""
    built = policy.experiment
    rows, mask, places = policies.rows_of(kept, built)
    placed = mesh.place(built.mesh, Rows(*rows), mesh.ROWS)
    parts = built.training.micro_batches * built.training.minibatches
    of_rows = _entropies(built.policy, built.mesh, mask.shape[1], built.training.chunk, parts)
    found = of_rows(policy.params, placed, built.knobs.temperature)
    columns = kept.mask.shape[1]
    values = mesh.local_values(found)[places, :columns]
    return np.where(kept.mask, values, np.float32(0))


@functools.lru_cache
def _entropies(
    config: Any, device_mesh: Any, window: int, chunk: int, parts: int
) -> Callable[..., jax.Array]:
    @jax.jit
    def of_rows(params: Any, rows: Rows, temperature: Any) -> jax.Array:
        forward = make_forward(
            config, device_mesh, window, temperature, chunk, entropy_gradient=False
        )
        return in_parts(lambda part: forward(params, part).entropy, rows, parts)

    return of_rows


def _devices() -> list[Any]:
    """One device: a page is no work for more."""
    return jax.devices()[:1]
