"""Sums and tables of segments: every form of each is the same map, on any platform."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import fiberjax as fj
from fiberjax import segment_forms, segments
from fiberjax.parallel import mesh

FORMS = (
    (segment_forms.scattered_sums, segment_forms.gathered_entries),
    (segment_forms.digit_sums, segment_forms.digit_entries),
)


@pytest.mark.parametrize("trailing", [(), (3,)])
@pytest.mark.parametrize("count", [1, 2, 7, 64, 130])
def test_digits_are_scatters_and_gathers(count, trailing):
    rng = np.random.default_rng(0)
    # Padding points at the number of segments and beyond.
    ids = jnp.asarray(rng.integers(0, count + 40, 400).astype(np.int32))
    values, table = (
        jnp.asarray(rng.normal(size=(n, *trailing)).astype(np.float32)) for n in (400, count)
    )
    for moved, which in ((values, 0), (table, 1)):
        plain, digits = (functools.partial(form[which], num_segments=count) for form in FORMS)
        assert "scatter" not in str(jax.make_jaxpr(digits)(moved, ids))
        assert "gather" not in str(jax.make_jaxpr(digits)(moved, ids))
        chex.assert_trees_all_close(digits(moved, ids), plain(moved, ids), rtol=1e-5, atol=1e-5)


def test_digits_of_integers():
    rng = np.random.default_rng(0)
    ids = jnp.asarray(rng.integers(0, 9, 400).astype(np.int32))
    table = jnp.asarray([0, 1, -1, 2**24 + 1, -(2**24) - 1, 2**31 - 1, -(2**31)], jnp.int32)
    plain, digits = (form[1](table, ids, num_segments=7) for form in FORMS)
    np.testing.assert_array_equal(digits, plain)
    assert digits.dtype == jnp.int32
    values = jnp.asarray(rng.integers(-9, 9, (400, 2)).astype(np.int32))
    plain, digits = (form[0](values, ids, num_segments=7) for form in FORMS)
    np.testing.assert_array_equal(digits, plain)
    assert digits.dtype == jnp.int32


def test_what_is_not_finite_stays_in_its_segment():
    ids = jnp.array([0, 0, 1, 2, 5])
    values = jnp.array([1.0, 2.0, jnp.nan, jnp.inf, jnp.nan])
    want = np.array([3.0, np.nan, np.inf])
    np.testing.assert_array_equal(segments.segment_sum(values, ids, 3), want)
    found = segments.spread(jnp.asarray(want), ids)
    np.testing.assert_array_equal(found, [3, 3, np.nan, np.inf, 0])


def test_digits_hold_what_a_product_would_make_nan():
    """An infinite number reaches no other segment of a TPU's, and is the largest that it has."""
    ids = jnp.asarray(np.arange(400, dtype=np.int32) % 9)
    values = jnp.where(ids == 4, jnp.inf, 1.0).at[5:].min(1.0)
    table = jnp.where(jnp.arange(9) == 4, -jnp.finfo(jnp.float32).max, 1.0)
    total = segment_forms.digit_sums(values, ids, num_segments=9)
    assert np.isfinite(total).all() and total[4] > 1e38
    np.testing.assert_array_equal(np.delete(total, 4), np.delete(np.bincount(ids), 4))
    read = segment_forms.digit_entries(table, ids, num_segments=9)
    np.testing.assert_array_equal(read, np.where(ids == 4, -segment_forms.LARGEST_NUMBER, 1.0))


@pytest.mark.parametrize("length", [2, 16, 64])
@pytest.mark.parametrize("num_classes", [1, 3])
def test_joined_rows_are_rows(length, num_classes):
    rng = np.random.default_rng(0)
    shape = (4, 256 // length, length)
    values = jnp.asarray(rng.normal(size=shape).astype(np.float32))
    table = jnp.asarray(rng.normal(size=(*shape[:2], num_classes)).astype(np.float32))
    classes = jnp.asarray(rng.integers(0, num_classes, shape).astype(np.int32))
    for moved, plain, joined in (
        (values, segment_forms.sums_by_class, segment_forms.joined_sums_by_class),
        (table, segment_forms.entries_by_class, segment_forms.joined_entries_by_class),
    ):
        plain, joined = (functools.partial(f, num_classes=num_classes) for f in (plain, joined))
        assert "dot_general" in str(jax.make_jaxpr(joined)(moved, classes))
        chex.assert_trees_all_close(
            joined(moved, classes), plain(moved, classes), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("shape", [(600, 1), (300, 3), (3, 100), (3, 256), (3, 16), (0, 16)])
def test_rows_that_fill_no_lanes_are_not_joined(shape):
    values, classes = jnp.ones(shape), jnp.zeros(shape, jnp.int32)
    joined = functools.partial(segment_forms.joined_sums_by_class, num_classes=2)
    assert "dot_general" not in str(jax.make_jaxpr(joined)(values, classes))
    assert joined(values, classes).shape == (shape[0], 2)


def test_joined_rows_hold_what_a_product_would_make_nan():
    values = jnp.ones((32, 16)).at[3, 5].set(jnp.inf)
    one_class = jnp.zeros(values.shape, jnp.int32)
    total = segment_forms.joined_sums_by_class(values, one_class, num_classes=1)[:, 0]
    assert np.isfinite(total).all() and total[3] > 1e38
    np.testing.assert_array_equal(np.delete(total, 3), 16.0)
    table = jnp.ones((32, 1)).at[3].set(-jnp.inf)
    read = segment_forms.joined_entries_by_class(table, one_class, num_classes=1)
    assert (read[3] == -segment_forms.LARGEST_NUMBER).all()
    np.testing.assert_array_equal(np.delete(read, 3, axis=0), 1.0)


@pytest.mark.parametrize("count", [1, 2, 64, 65, 1024, 4096, 4097, 2**16])
def test_digits_hold_every_id(count):
    smaller, larger = segment_forms.bases(count)
    assert smaller * larger >= count and smaller <= larger
    assert larger <= 64 or count > 4096


@pytest.mark.parametrize("length", [7, 16, 100, 1029])
def test_rows_are_summed_as_one_by_one(length):
    rng = np.random.default_rng(0)
    values = jnp.asarray(rng.normal(size=(3, 100, length)).astype(np.float32))
    classes = jnp.asarray(rng.integers(0, 3, values.shape))
    alone, at_once = (
        segment_forms.sums_by_class(values, classes, num_classes=3, at_once=joined)
        for joined in (False, True)
    )
    np.testing.assert_allclose(at_once, alone, rtol=1e-5, atol=1e-5)
    want = [np.where(classes == c, values, 0).sum(-1) for c in range(3)]
    np.testing.assert_allclose(at_once, np.stack(want, axis=-1), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(segments.row_sums(values), values.sum(-1), rtol=1e-5, atol=1e-5)


MOVES = {
    "by id": lambda ids, classes: (
        lambda x: segments.segment_sum(x, ids, 7),
        lambda t: segments.spread(t, ids),
        (7,),
    ),
    "rows by class": lambda ids, classes: (
        lambda x: segments.class_sum(x, None, classes, 4, 3),
        lambda t: segments.class_spread(t, None, classes),
        (4, 3),
    ),
    "blocks by class": lambda ids, classes: (
        lambda x: segments.class_sum(x, ids[:, ::10], classes, 7, 3),
        lambda t: segments.class_spread(t, ids[:, ::10], classes),
        (7, 3),
    ),
    "ids by class": lambda ids, classes: (
        lambda x: segments.class_sum(x, ids, classes, 7, 3),
        lambda t: segments.class_spread(t, ids, classes),
        (7, 3),
    ),
}


@pytest.mark.parametrize("name", MOVES)
def test_sums_and_entries_are_transposes_in_every_mode(name):
    rng = np.random.default_rng(0)
    ids = jnp.asarray(rng.integers(0, 9, (4, 100)).astype(np.int32))
    classes = jnp.asarray(rng.integers(0, 3, (4, 100)).astype(np.int32))
    down, up, shape = MOVES[name](ids, classes)
    values = jnp.asarray(rng.normal(size=(4, 100)).astype(np.float32))
    table = jnp.asarray(rng.normal(size=shape).astype(np.float32))
    np.testing.assert_allclose(
        jnp.vdot(down(values), table), jnp.vdot(values, up(table)), rtol=1e-4, atol=1e-5
    )
    for move, there, back in ((down, values, table), (up, table, values)):
        other = up if move is down else down
        matrix = jax.jacfwd(move)(there)  # vmap of forward mode ...
        chex.assert_trees_all_close(jax.jacrev(move)(there), matrix, rtol=1e-5, atol=1e-6)
        chex.assert_trees_all_close(jax.vjp(move, there)[1](back)[0], other(back), rtol=1e-6)
        chex.assert_trees_all_close(jax.jvp(move, (there,), (there,))[1], move(there), rtol=1e-6)

        def bent(x, move=move):
            return jnp.sum(jnp.sin(move(x)))

        along = jax.jvp(jax.grad(bent), (there,), (jnp.ones_like(there),))[1]
        across = jax.grad(lambda x, bent=bent: jnp.sum(jax.grad(bent)(x)))(there)
        chex.assert_trees_all_close(along, across, rtol=1e-4, atol=1e-5)


def test_ids_and_values_go_through_vmap_together_and_apart():
    rng = np.random.default_rng(0)
    values = jnp.asarray(rng.normal(size=(5, 300)).astype(np.float32))
    ids = jnp.asarray(rng.integers(0, 9, (5, 300)).astype(np.int32))

    def total(values, ids):
        return segments.segment_sum(values, ids, 7)

    want = np.stack([[total(x, i) for i in ids] for x in values])
    over_both = jax.vmap(jax.vmap(total, (None, 0)), (0, None))(values, ids)
    np.testing.assert_allclose(over_both, want, rtol=1e-5, atol=1e-6)
    apart = jax.vmap(total)(values, ids)
    np.testing.assert_allclose(apart, want[np.arange(5), np.arange(5)], rtol=1e-5, atol=1e-6)

    def squares(values):
        return jnp.sum(jax.vmap(total, (None, 0))(values, ids) ** 2)

    one_by_one = jax.grad(lambda x: sum(jnp.sum(total(x, i) ** 2) for i in ids))(values[0])
    np.testing.assert_allclose(jax.grad(squares)(values[0]), one_by_one, rtol=1e-4, atol=1e-5)


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
    assert mask.size > segment_forms.FEW
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
