"""Sums and tables of segments: every form of each is the same map, on any platform."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import fiberjax as fj
from fiberjax import segments
from fiberjax.parallel import mesh


def sides(function, values):
    """A function's value, its derivative along a direction, and a gradient through it."""
    value, tangent = jax.jvp(function, (values,), (values + 1,))
    slope = jax.grad(lambda x: jnp.sum(jnp.sin(function(x))))(values)
    return value, tangent, slope


@pytest.mark.parametrize("trailing", [(), (3,)])
def test_comparisons_are_scatters_and_gathers(trailing):
    rng = np.random.default_rng(0)
    ids = jnp.asarray(rng.integers(0, 9, 40).astype(np.int32))  # Seven segments, padding at 7, 8.
    values, table = (jnp.asarray(rng.normal(size=(n, *trailing))) for n in (40, 7))
    forms = (segments._compared_sum, segments._scattered_sum)
    sums = [sides(lambda x, form=form: form(7, x, ids), values) for form in forms]
    chex.assert_trees_all_close(*sums, rtol=1e-6, atol=1e-6)
    forms = (segments._compared, segments._gathered)
    reads = [sides(lambda x, form=form: form(7, x, ids), table) for form in forms]
    chex.assert_trees_all_close(*reads, rtol=1e-6, atol=1e-6)


def test_what_is_not_finite_stays_in_its_segment():
    ids = jnp.array([0, 0, 1, 2, 5])
    values = jnp.array([1.0, 2.0, jnp.nan, jnp.inf, jnp.nan])
    want = np.array([3.0, np.nan, np.inf])
    for form in (segments._compared_sum, segments._scattered_sum):
        np.testing.assert_array_equal(form(3, values, ids), want)
    for form in (segments._compared, segments._gathered):
        np.testing.assert_array_equal(form(3, jnp.asarray(want), ids), [3, 3, np.nan, np.inf, 0])


@pytest.mark.parametrize("length", [7, 16, 100])
def test_rows_are_summed_as_one_by_one(length):
    rng = np.random.default_rng(0)
    first, second = (jnp.asarray(rng.normal(size=(300, length))) for _ in range(2))
    want = first.sum(-1), second.sum(-1)
    chex.assert_trees_all_close(
        segments._row_sums_at_once(first, second), want, rtol=1e-5, atol=1e-5
    )

    def total(sums):
        return lambda x: jnp.stack(sums(x, x * second))

    found, plain = (sides(total(f), first) for f in (segments.row_sums, segments._row_sums_alone))
    chex.assert_trees_all_close(found, plain, rtol=1e-5, atol=1e-5)


def ragged():
    """Sixteen trajectories of up to 96 tokens in eight groups of two domains."""
    rng = np.random.default_rng(0)
    mask = np.arange(96) < rng.integers(40, 97, (16, 1))
    log_ratio = rng.normal(0, 0.1, (16, 96)).astype(np.float32)
    advantage = np.repeat(rng.normal(size=(16, 1)), 96, axis=1).astype(np.float32)
    return mask, log_ratio, advantage


PARENTS = {"group": np.arange(16) // 2, "domain": np.arange(8) % 2}


@pytest.mark.parametrize("name", ["silent_sequence", "fiberpo_domain"])
def test_a_batch_of_many_tokens_has_one_gradient_in_every_layout(name):
    mask, log_ratio, advantage = ragged()
    assert mask.size > segments.FEW
    gate, ids = fj.gate(name), np.broadcast_to(np.arange(16)[:, None], mask.shape)
    want = fj.coefficients(gate, log_ratio, advantage, fj.make_layout(mask, PARENTS))
    assert np.abs(want).max() > 1e-4
    for options in ({}, {"block_size": 16}):
        layout = fj.make_layout(mask, PARENTS, cell_id=ids, **options)
        found = fj.coefficients(gate, log_ratio, advantage, layout)
        np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-8)


def test_a_map_over_shards_keeps_what_varies_apart():
    """Of many elements: the forms that platforms choose from run inside `shard_map` too."""
    rng = np.random.default_rng(0)
    values = jnp.asarray(rng.normal(size=(8, 512)).astype(np.float32))
    ids = jnp.asarray(rng.integers(0, 5, (8, 512)).astype(np.int32))

    def local(values, ids):
        def total(values):
            table = segments.segment_sum(values.ravel(), ids.ravel(), 5, axis_name="data")
            lifted = segments.spread(jnp.sin(0.01 * table), ids)
            return jnp.sum(lifted * values) + jnp.sum(segments.segment_sum(values, None, 1) ** 2)

        return jax.grad(lambda x: jax.lax.psum(total(x), "data"))(values)

    device_mesh = mesh.make_mesh({"data": 4, "fsdp": 1, "tensor": 1}, jax.devices()[:4])
    spread_out = jax.jit(
        jax.shard_map(local, mesh=device_mesh, in_specs=P("data"), out_specs=P("data"))
    )

    def whole(values):
        table = jax.ops.segment_sum(values.ravel(), ids.ravel(), 5)
        return jnp.sum(jnp.sin(0.01 * table)[ids] * values) + jnp.sum(values.sum(-1) ** 2)

    found, want = spread_out(values, ids), jax.grad(whole)(values)
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-4)
