"""What is sampled before it is trained on: batches that wait, and how a checkpoint holds them.

Under `config.rollout.lag` = L the batch of iteration t is sampled by the policy of iteration
max(0, t − L), so that up to L batches, sampled and rewarded, wait when an iteration begins. A
checkpoint holds these batches and not the policies that drew them: they are smaller, and nothing is
drawn twice. What waits is on the host; a resumed run goes on with the same numbers.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding

from fiberjax.experiment import Experiment
from fiberjax.parallel import mesh
from fiberjax.tasks import prompt_batch
from fiberjax.train.rollout import Rollouts, texts_of

TABLES = tuple(
    field.name for field in dataclasses.fields(Rollouts) if field.name not in ("prompts", "texts")
)
PROMPT = "prompt_index"


class Drawn(NamedTuple):
    """A batch that was sampled and rewarded. Rows are this process's where nothing else is said.

    Attributes:
      iteration: that trains on it, counted from 0.
      version: iterations finished by the policy that sampled it.
      rollouts: the batch.
      first: what was drawn first: the batch, or under `rollout.resample` what it is chosen from.
      credit: float32[rows of all processes], what advantages are made of.
      present: bool[rows of all processes], which ones hold a completion that counts.
      completions: that were sampled, on all processes.
      metrics: of the rollouts; numbers by name.
    """

    iteration: int
    version: int
    rollouts: Rollouts
    first: Rollouts
    credit: np.ndarray
    present: np.ndarray
    completions: int
    metrics: Mapping[str, float]


def to_host(waiting: Sequence[Drawn], placed: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What waits as JSON, beside its arrays: `of_host` reads it.

    Args:
      waiting: in the order of their iterations.
      placed: of `to_arrays`.
    """
    return [
        {
            "iteration": drawn.iteration,
            "version": drawn.version,
            "completions": drawn.completions,
            "metrics": dict(drawn.metrics),
            "arrays": {
                of: {name: [list(x.shape), str(x.dtype)] for name, x in tables.items()}
                for of, tables in arrays.items()
            },
        }
        for drawn, arrays in zip(waiting, placed, strict=True)
    ]


def to_arrays(experiment: Experiment, waiting: Sequence[Drawn]) -> list[dict[str, Any]]:
    """What waits as arrays on the mesh: rows split over the devices, as a batch's."""
    made = []
    for drawn in waiting:
        tables = {"batch": _tables(drawn.rollouts)}
        if drawn.first is not drawn.rollouts:
            tables["first"] = _tables(drawn.first)
        placed = {of: mesh.place(experiment.mesh, rows, mesh.ROWS) for of, rows in tables.items()}
        paid = {"credit": drawn.credit, "present": drawn.present}
        made.append(placed | {"paid": mesh.place(experiment.mesh, paid, mesh.REPLICATED)})
    return made


def abstract(experiment: Experiment, host: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Shapes of the arrays that `to_host` tells of, each with its sharding."""

    def shape(of: str, said: Any) -> jax.ShapeDtypeStruct:
        spec = mesh.REPLICATED if of == "paid" else mesh.ROWS
        sharding = NamedSharding(experiment.mesh, spec)
        return jax.ShapeDtypeStruct(tuple(said[0]), np.dtype(said[1]), sharding=sharding)

    return [
        {
            of: {name: shape(of, said) for name, said in tables.items()}
            for of, tables in entry["arrays"].items()
        }
        for entry in host
    ]


def of_host(
    experiment: Experiment, host: Sequence[Mapping[str, Any]], arrays: Sequence[Mapping[str, Any]]
) -> tuple[Drawn, ...]:
    """What waited when a checkpoint was saved.

    Args:
      experiment: of the run.
      host: from `to_host`.
      arrays: of the shapes of `abstract`.
    """
    waiting = []
    for entry, placed in zip(host, arrays, strict=True):
        batch = _rollouts(experiment, placed["batch"])
        first = _rollouts(experiment, placed["first"]) if "first" in placed else batch
        paid = {name: np.asarray(of.addressable_data(0)) for name, of in placed["paid"].items()}
        waiting.append(
            Drawn(
                entry["iteration"],
                entry["version"],
                batch,
                first,
                paid["credit"],
                paid["present"],
                entry["completions"],
                entry["metrics"],
            )
        )
    return tuple(waiting)


def _tables(rollouts: Rollouts) -> dict[str, np.ndarray]:
    tables = {name: getattr(rollouts, name) for name in TABLES}
    tables[PROMPT] = rollouts.prompts.prompt_index.astype(np.int32)
    return {name: table for name, table in tables.items() if table is not None}


def _rollouts(experiment: Experiment, placed: Mapping[str, jax.Array]) -> Rollouts:
    tables = {name: mesh.local_values(array) for name, array in placed.items()}
    index = tables.pop(PROMPT).astype(np.int64)
    width = experiment.window.prompt
    behind = tables["tokens"][:, width:]
    texts = texts_of(
        experiment.turns, experiment.vocabulary, behind, tables["mask"], tables["turn"]
    )
    prompts = prompt_batch(experiment.examples, index, width)
    return Rollouts(**tables, prompts=prompts, texts=texts)
