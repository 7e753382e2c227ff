"""From rollouts to optimizer batches of whole prompt groups, on the mesh.

Each process cuts the rows it holds; the tables above the trajectories are those of all processes.
"""

from typing import Any

import numpy as np
from jax.sharding import Mesh

from fiberjax.layout import STATE, Layout, make_layout, state_ids
from fiberjax.parallel import mesh, shardings
from fiberjax.tasks.levels import Levels
from fiberjax.train import packing
from fiberjax.train.batch import Batch, batch_specs
from fiberjax.train.rollout import Rollouts


def make_batches(
    device_mesh: Mesh,
    rollouts: Rollouts,
    *,
    advantage: np.ndarray,
    old_log_prob: np.ndarray,
    reference_log_prob: np.ndarray,
    sample_weight: np.ndarray,
    num_minibatches: int,
    levels: Levels,
    routes: np.ndarray | None = None,
    states: bool = False,
    pack_micro_batches: int = 0,
) -> list[Batch]:
    """Cuts rollouts into optimizer batches of whole prompt groups, on the mesh.

    Batch j takes this process's groups j, n + j, 2n + j, ...: prompts are drawn in random order, so
    every batch holds every domain in proportion, on every process.

    Args:
      device_mesh: from `mesh.make_mesh`.
      rollouts: this process's rows.
      advantage: float32[R].
      old_log_prob: float32[R, C], nats.
      reference_log_prob: float32[R, C], nats.
      sample_weight: float32[R, C].
      num_minibatches: n, divides the groups of a process.
      levels: which prompts share a cell.
      routes: integer[R, P + C, L, k], the experts to replay; None replays none.
      pack_micro_batches: packs several trajectories into a row; a micro-batch keeps the rows it
        has when the unpacked batch is split into this many. 0 leaves one trajectory a row.
      states: whether the gate couples the tokens of a state, so that the layout must name them.

    Returns:
      n batches of one static shape.
    """
    size = rollouts.group_size
    group = np.arange(len(rollouts.tokens)) // size
    prompt_index = mesh.gather(device_mesh, rollouts.prompts.prompt_index)
    batches = []
    for j in range(num_minibatches):
        chosen = group % num_minibatches == j
        mask = rollouts.mask[chosen]
        completion = rollouts.tokens[chosen, -mask.shape[1] :] if states else None
        layout = _batch_layout(
            device_mesh, mask, completion, size, levels, prompt_index, num_minibatches, j
        )
        by_token: Any = np.repeat(advantage[chosen, None], mask.shape[1], axis=1)
        batch = Batch(
            tokens=rollouts.tokens[chosen],
            positions=rollouts.positions[chosen],
            segment_ids=rollouts.segment_ids[chosen],
            layout=layout,
            advantage=by_token,
            old_log_prob=old_log_prob[chosen],
            reference_log_prob=reference_log_prob[chosen],
            sample_weight=sample_weight[chosen],
            routes=None if routes is None else routes[chosen],
        )
        if pack_micro_batches:
            batch = pack_rows(device_mesh, batch, pack_micro_batches)
        batches.append(mesh.place(device_mesh, batch, batch_specs(batch)))
    return batches


def pack_rows(device_mesh: Mesh, batch: Batch, micro_batches: int) -> Batch:
    """This process's rows of a batch, packed into as many rows a shard as on all processes.

    A batch that needs all its rows stays as it is: columns of prompts then cost no logits.
    """
    shards = len(mesh.local_shards(device_mesh))
    needed = np.full(shards, packing.rows_needed(batch, shards))
    rows = len(batch.tokens) // shards
    most = int(mesh.gather(device_mesh, needed).max())
    size = packing.bucket(most, rows, rows // micro_batches)
    if size == rows:
        return batch
    return packing.pack(batch, rows=size, shards=shards)


def _batch_layout(
    device_mesh: Mesh,
    mask: np.ndarray,
    completion: np.ndarray | None,
    group_size: int,
    levels: Levels,
    prompt_index: np.ndarray,
    num_minibatches: int,
    j: int,
) -> Layout:
    """The layout of minibatch j: this process's rows, and the tables that all processes share.

    Given the completions' tokens, it names the states they were sampled in.
    """
    groups = len(prompt_index)
    processes = groups * group_size // (len(mask) * num_minibatches)
    in_batch = np.arange(groups) % (groups // processes) % num_minibatches == j
    mask = mesh.gather(device_mesh, mask)
    row = np.arange(len(mask))
    states = None
    if completion is not None:
        completion = mesh.gather(device_mesh, completion)
        trajectory = np.broadcast_to(row[:, None], mask.shape)
        states = state_ids(completion, mask, row // group_size, trajectory)
    layout = make_layout(
        mask,
        levels.tables(prompt_index[in_batch], group_size),
        num_cells=levels.num_cells,
        # Above the trajectory tables are whole on every device: only its own sums cross them.
        axis_names={name: mesh.ROW_AXES for name in (*levels.names[:1], STATE)},
        state_id=states,
    )
    return shardings.local_layout(device_mesh, layout)
