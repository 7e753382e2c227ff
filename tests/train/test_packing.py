"""Packed equals unpacked, in value and gradient; sequences in one row never see each other."""

import dataclasses
import functools

import chex
import jax
import numpy as np
import pytest
from small_step import CONFIG, GATE, KNOBS, OPTIONS, ROWS, make_batch

from fiberjax.parallel import mesh
from fiberjax.policy import TokenOutputs, init
from fiberjax.train import packing, passes
from fiberjax.train.batch import batch_specs
from fiberjax.train.forward import make_forward
from fiberjax.train.update import objective_gradient


def gradient_of(batch, shape=(1, 1, 1), options=OPTIONS):
    """Metrics and the gradient of the loss on a mesh of this shape."""
    count = int(np.prod(shape))
    device_mesh = mesh.make_mesh(dict(zip(mesh.AXES, shape, strict=True)), jax.devices()[:count])
    params = init(CONFIG, jax.random.key(0))

    @jax.jit
    def compute(params, batch, knobs):
        forward = make_forward(
            CONFIG,
            device_mesh,
            batch.layout,
            knobs.temperature,
            options.chunk,
            entropy_gradient=options.entropy_bonus,
        )
        rows = (batch.tokens, batch.positions, batch.segment_ids)
        _, metrics, gradient = passes.run(
            forward,
            params,
            rows,
            lambda outputs: objective_gradient(device_mesh, GATE, options, outputs, batch, knobs),
            passes.Split(options.num_micro_batches, 1, apart=False),
            old=TokenOutputs(batch.old_log_prob, batch.old_log_prob),
        )
        return metrics, gradient

    placed = mesh.place(device_mesh, batch, batch_specs(batch))
    return jax.device_get(compute(params, placed, KNOBS))


@functools.cache
def unpacked():
    return gradient_of(make_batch())


def test_packed_equals_unpacked():
    batch = make_batch()
    rows = packing.rows_needed(batch, 1)
    assert rows < len(batch.tokens)
    packed = packing.pack(batch, rows=rows)
    # Somewhere three sequences share a row.
    assert packed.segment_ids.max() >= 2
    chex.assert_trees_all_close(gradient_of(packed), unpacked(), rtol=2e-4, atol=2e-6)


def test_sequences_that_see_each_other_give_another_answer():
    batch = make_batch()
    packed = packing.pack(batch, rows=packing.rows_needed(batch, 1))
    one = dataclasses.replace(
        packed, segment_ids=(packed.segment_ids != 0).astype(np.int32)
    )  # Attention crosses sequences.
    cell_id = np.where(packed.layout.mask, 0, ROWS).astype(np.int32)
    joined = dataclasses.replace(  # The gate takes a row for one trajectory.
        packed, layout=dataclasses.replace(packed.layout, cell_id=cell_id)
    )
    for wrong in (one, joined):
        with pytest.raises(AssertionError):
            chex.assert_trees_all_close(gradient_of(wrong), unpacked(), rtol=2e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape", [pytest.param((4, 1, 1), marks=pytest.mark.long), (2, 2, 2)], ids=str
)
def test_packed_on_a_mesh_equals_unpacked(shape):
    batch = make_batch()
    rows = packing.rows_needed(batch, 4)
    packed = packing.pack(batch, rows=rows, shards=4)
    assert packed.tokens.shape == (4 * rows, batch.tokens.shape[1])
    chex.assert_trees_all_close(gradient_of(packed, shape), unpacked(), rtol=2e-4, atol=2e-6)


def test_nothing_is_lost():
    batch = make_batch()
    rows = packing.rows_needed(batch, 2)
    packed = packing.pack(batch, rows=rows, shards=2)
    real = batch.segment_ids != 0
    assert sorted(packed.tokens[packed.segment_ids != 0]) == sorted(batch.tokens[real])
    assert packed.layout.mask.sum() == batch.layout.mask.sum()
    for name in ("advantage", "old_log_prob", "sample_weight"):
        before = getattr(batch, name)[batch.layout.mask]
        after = getattr(packed, name)[packed.layout.mask]
        np.testing.assert_array_equal(np.sort(before), np.sort(after))
    # Every sequence stands together and counts from 0.
    starts = np.diff(packed.segment_ids, axis=1, prepend=0) > 0
    assert (packed.positions[starts] == 0).all()
    # Tokens of a cell: as many as its size says, and its shard holds them.
    for shard in range(2):
        ids = packed.layout.cell_id[shard * rows : (shard + 1) * rows]
        counts = np.bincount(ids[ids < 8], minlength=8)
        np.testing.assert_array_equal(counts, batch.layout.sizes[0][shard * 8 : (shard + 1) * 8])


def test_first_fit():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 20, 100)
    places = packing.first_fit(lengths, 32)
    taken = np.zeros((100, 32), int)
    for length, (row, column) in zip(lengths, places, strict=True):
        taken[row, column : column + length] += 1
    assert taken.max() == 1
    assert max(row for row, _ in places) + 1 <= 1.1 * lengths.sum() / 32 + 1
    with pytest.raises(ValueError, match="sequence 1 has 9 tokens; a row holds 8"):
        packing.first_fit([3, 9], 8)


@pytest.mark.parametrize("rows", [8, 10, 64, 7])
@pytest.mark.parametrize("multiple", [1, 2])
def test_buckets_are_few(rows, multiple):
    found = [packing.bucket(needed, rows, multiple) for needed in range(1, rows + 1)]
    assert all(needed <= size <= rows for needed, size in enumerate(found, 1))
    assert all(size % multiple == 0 or size == rows for size in found)
    assert len(set(found)) <= packing.BUCKETS


def test_too_few_rows_are_refused():
    with pytest.raises(ValueError, match="16 trajectories need more than 2 rows"):
        packing.pack(make_batch(), rows=2)
