"""Packed equals unpacked, in value and gradient; sequences in one row never see each other."""

import dataclasses
import functools

import chex
import jax
import numpy as np
import pytest
from small_step import COMPLETION, CONFIG, GATE, KNOBS, OPTIONS, ROWS, make_batch

from fiberjax.parallel import mesh
from fiberjax.policy import TokenOutputs, init
from fiberjax.train import packing, passes
from fiberjax.train.batch import batch_specs
from fiberjax.train.forward import make_forward, make_log_probs
from fiberjax.train.update import objective_gradient


def gradient_of(batch, shape=(1, 1, 1), options=OPTIONS):
    """Metrics and the gradient of the loss on a mesh of this shape."""
    count = int(np.prod(shape))
    device_mesh = mesh.make_mesh(
        dict(zip(("data", "fsdp", "tensor"), shape, strict=True)), jax.devices()[:count]
    )
    params = init(CONFIG, jax.random.key(0))

    @jax.jit
    def compute(params, batch, knobs):
        forward = make_forward(
            CONFIG,
            device_mesh,
            batch.layout.mask.shape[1],
            knobs.temperature,
            options.chunk,
            entropy_gradient=options.entropy_bonus,
        )
        _, metrics, gradient = passes.run(
            forward,
            params,
            batch.rows,
            lambda outputs: objective_gradient(device_mesh, GATE, options, outputs, batch, knobs),
            passes.Split(options.num_micro_batches, 1, apart=False),
            old=TokenOutputs(batch.old_log_prob, batch.old_log_prob),
        )
        return metrics, gradient

    placed = mesh.place(device_mesh, batch, batch_specs(batch))
    return jax.device_get(compute(params, placed, KNOBS))


def packed_into(batch, rows=None, shards=1, named=False):
    """The batch in as few rows as hold it, or in so many a shard; completions named, if asked."""
    real, window = batch.segment_ids != 0, batch.layout.mask.shape[1]
    places = packing.places(real, window, shards)[named]
    rows = packing.rows_of(places) if rows is None else rows
    return packing.pack(
        batch, packing.arrange(real, window, places, rows=rows, named=named), shards
    )


@functools.cache
def unpacked():
    return gradient_of(make_batch())


@pytest.mark.parametrize("named", [False, True])
def test_packed_equals_unpacked(named):
    batch = make_batch()
    packed = packed_into(batch, named=named)
    assert (packed.columns is not None) is named
    width = batch.tokens.shape[1]
    assert packed.layout.mask.shape[1] == (COMPLETION if named else width - 1)
    assert packed.segment_ids.max() >= 2
    chex.assert_trees_all_close(gradient_of(packed), unpacked(), rtol=2e-4, atol=2e-6)


def test_sequences_that_see_each_other_give_another_answer():
    batch = make_batch()
    packed = packed_into(batch)
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
    ("shape", "named"),
    [
        pytest.param((4, 1, 1), False, marks=pytest.mark.long),
        *(((2, 2, 2), False), ((1, 2, 1), True)),
    ],
    ids=str,
)
def test_packed_on_a_mesh_equals_unpacked(shape, named):
    batch = make_batch()
    packed = packed_into(batch, shards=shape[0] * shape[1], named=named)
    assert (packed.columns is not None) is named
    chex.assert_trees_all_close(gradient_of(packed, shape), unpacked(), rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize("named", [False, True])
def test_nothing_is_lost(named):
    batch = make_batch()
    packed = packed_into(batch, shards=2, named=named)
    rows = len(packed.tokens) // 2
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
        packed_into(make_batch(), rows=2)


def test_what_is_packed_is_unpacked():
    batch, rng = make_batch(), np.random.default_rng(0)
    real, mask = batch.segment_ids != 0, batch.segment_ids[:, -COMPLETION:] != 0
    of_rows = np.where(real[..., None], rng.integers(1, 9, (*real.shape, 2)), 0)
    of_completions = np.where(mask, rng.normal(size=mask.shape), 0).astype(np.float32)
    for named, places in enumerate(packing.places(real, COMPLETION, 2)):
        rows = packing.rows_of(places)
        fewer = packing.arrange(real, COMPLETION, places, rows=rows, named=bool(named))
        np.testing.assert_array_equal(fewer.unpack(fewer.pack(of_rows)), of_rows)
        packed = fewer.pack_completions(of_completions)
        assert packed.shape == (2 * rows, fewer.targets)
        np.testing.assert_array_equal(fewer.unpack_completions(packed), of_completions)


@pytest.mark.parametrize("prompts", [1, 3])
def test_completions_are_named_where_that_takes_no_more_rows(prompts):
    """Of rows of ten tokens, six of them completions, pairs of four fit where prompts are long."""
    device_mesh = mesh.make_mesh(dict.fromkeys(mesh.AXES, 1), jax.devices()[:1])
    segment_ids = np.zeros((8, 10), np.int32)
    segment_ids[:, 4 - prompts : 8 - prompts + (prompts == 1)] = 1
    fewer = packing.choose(device_mesh, segment_ids, 6, 1)
    assert fewer.rows == 4
    assert (fewer.columns is None) == (prompts == 1)
    assert packing.choose(device_mesh, np.ones((8, 10), np.int32), 6, 1) is None


@pytest.mark.slow
@pytest.mark.parametrize(("parts", "devices"), [(1, 2), (8, 1)])
def test_packed_rows_are_scored_alike(parts, devices):
    batch = make_batch()
    device_mesh = mesh.make_mesh({"data": devices, "fsdp": 1, "tensor": 1}, jax.devices()[:devices])
    params = init(CONFIG, jax.random.key(0))
    told = (params, batch.rows, batch.layout.mask, np.float32(0.7))
    plain, packed = (
        make_log_probs(CONFIG, device_mesh, 4, parts, packed=packed)(*told)()[0]
        for packed in (False, True)
    )
    mask = batch.layout.mask
    np.testing.assert_allclose(packed[mask], plain[mask], atol=2e-6)
    assert not packed[~mask].any() and plain[~mask].any()
