"""From rollouts to optimizer batches of whole prompt groups, on the mesh.

Each process cuts the rows it holds; the tables above the trajectories are those of all processes.
"""

from typing import Any

import numpy as np
from jax.sharding import Mesh

from fiberjax.layout import STATE, TRAJECTORY, TURN, Layout, make_layout, state_ids
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
    turns: int = 1,
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
      turns: of the policy in a trajectory, at most.
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
        layout = _batch_layout(
            device_mesh,
            rollouts,
            chosen,
            levels,
            prompt_index,
            num_minibatches,
            j,
            turns=turns,
            states=states,
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
            fewer = packing.choose(
                device_mesh, batch.segment_ids, mask.shape[1], pack_micro_batches
            )
            if fewer is not None:
                batch = packing.pack(batch, fewer, len(mesh.local_shards(device_mesh)))
        batches.append(mesh.place(device_mesh, batch, batch_specs(batch)))
    return batches


def whole_layout(
    mask: np.ndarray,
    levels: Levels,
    prompt_index: np.ndarray,
    *,
    turn: np.ndarray | None = None,
    turns: int = 1,
    state_id: np.ndarray | None = None,
) -> Layout:
    """The layout of a batch of whole prompt groups, on the host, as one device would have it.

    Args:
      mask: bool[B, T], the policy's tokens.
      levels: which prompts share a cell, and whether turns are cells.
      prompt_index: int[G], each group's prompt; a group has B/G rows.
      turn: int[B, T], which of its trajectory's turns each token is of; read where turns are cells.
      turns: of a trajectory at most, so that tables keep their size.
      state_id: of `state_ids`, where the gate couples states.
    """
    rows = np.arange(len(mask))
    finest, tables, cell_id = TRAJECTORY, {}, None
    if levels.turns:
        assert turn is not None
        finest, tables = TURN, {TRAJECTORY: np.repeat(rows, turns)}
        cell_id = rows[:, None] * turns + turn
    tables |= levels.tables(prompt_index, len(mask) // len(prompt_index))
    return make_layout(
        mask,
        tables,
        cell_id=cell_id,
        finest=finest,
        num_cells=levels.num_cells,
        # Above the trajectory tables are whole on every device: only its own sums cross them.
        axis_names={name: mesh.ROW_AXES for name in (*levels.names[:1], STATE)},
        state_id=state_id,
    )


def _batch_layout(
    device_mesh: Mesh,
    rollouts: Rollouts,
    chosen: np.ndarray,
    levels: Levels,
    prompt_index: np.ndarray,
    num_minibatches: int,
    j: int,
    *,
    turns: int,
    states: bool,
) -> Layout:
    """The layout of minibatch j: this process's rows, and the tables that all processes share."""
    columns = rollouts.mask.shape[1]

    def gathered(of: np.ndarray) -> np.ndarray:
        return mesh.gather(device_mesh, of[chosen])

    groups, size = len(prompt_index), rollouts.group_size
    processes = groups * size // (int(chosen.sum()) * num_minibatches)
    in_batch = np.arange(groups) % (groups // processes) % num_minibatches == j
    mask = gathered(rollouts.mask)
    state_id = None
    if states:
        row = np.arange(len(mask))
        # What was said between turns is part of the prefix, and so of the state.
        said = gathered(rollouts.segment_ids[:, -columns:]) != 0
        trajectory = np.broadcast_to(row[:, None], mask.shape)
        tokens = gathered(rollouts.tokens[:, -columns:])
        state_id = state_ids(tokens, said, row // size, trajectory)
    layout = whole_layout(
        mask,
        levels,
        prompt_index[in_batch],
        turn=gathered(rollouts.turn) if levels.turns else None,
        turns=turns,
        state_id=state_id,
    )
    return shardings.local_layout(device_mesh, layout)
