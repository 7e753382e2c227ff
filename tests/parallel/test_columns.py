"""Rows whose columns lie on several devices: the same log-probabilities, gradients and updates."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from small_step import (
    COMPLETION,
    CONFIG,
    KNOBS,
    LEVELS,
    OPTIONS,
    build,
    make_batch,
    mesh_of,
)
from test_mesh import assert_agrees
from test_tiles import chips, planned

from configs import gates as presets
from fiberjax import gates
from fiberjax.parallel import mesh
from fiberjax.parallel.shardings import ACTIVATION_SPECS, param_shardings, placement
from fiberjax.policy import apart, attention, init
from fiberjax.train import packing
from fiberjax.train.checks import check_columns
from fiberjax.train.forward import make_log_probs

LONG = (pytest.mark.slow, pytest.mark.long)
# Sizes of data, fsdp, tensor and sequence.
ALL = (1, 2, 2, 2)
COUPLED = "fiberpo_domain"


def batch_of(packed: bool = False, named: bool = False):
    """The batch of `small_step` with rows of sixteen columns, or packed for two row shards."""
    batch = make_batch()

    def wider(x):
        return np.concatenate([np.zeros((len(x), 7), x.dtype), x], axis=1)

    of = {name: wider(getattr(batch, name)) for name in ("tokens", "positions", "segment_ids")}
    batch = dataclasses.replace(batch, **of)
    if not packed:
        return batch
    real = batch.segment_ids != 0
    places = packing.places(real, COMPLETION, 2)[named]
    rows = packing.rows_of(places)
    return packing.pack(batch, packing.arrange(real, COMPLETION, places, rows=rows, named=named), 2)


_kept = {}


def run(shape, gate=COUPLED, batch=None, **changes):
    """Metrics, and the state after two updates, on the host."""
    made, budgets = gates.from_config(presets.get_gate(gate), LEVELS)
    config = dataclasses.replace(CONFIG, **changes)
    batch = batch_of() if batch is None else batch
    step, state, placed = build(shape, OPTIONS, config, batch, made)
    knobs = KNOBS._replace(budgets=budgets)
    state, first = step(state, placed, knobs)
    state, second = step(state, placed, knobs)
    return jax.device_get((state, first, second))


def alone(gate=COUPLED):
    """`run` of one device, made once."""
    if gate not in _kept:
        _kept[gate] = run((1, 1, 1), gate)
    return _kept[gate]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "gate"),
    [
        (ALL, COUPLED),
        pytest.param((1, 2, 1, 4), "silent_sequence", marks=LONG),
        pytest.param((1, 1, 1, 4), "ppo", marks=LONG),
    ],
    ids=str,
)
def test_update_agrees_with_one_device(shape, gate):
    assert_agrees(run(shape, gate), alone(gate))


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("named", [False, True])
def test_packed_update_agrees_with_one_device(named):
    assert_agrees(run((1, 2, 1, 2), batch=batch_of(packed=True, named=named)), alone())


@pytest.mark.long
@pytest.mark.slow
def test_kernel_update_agrees_with_dense_attention():
    assert_agrees(run(ALL, attention="splash", remat="full"), alone())


def test_scores_are_those_of_one_device():
    """Of rows, and of several trajectories in one."""
    batch = batch_of()
    params = init(CONFIG, jax.random.key(0))
    mask = batch.layout.mask

    def scored(shape, packed):
        device_mesh = mesh_of(shape)
        placed = jax.device_put(params, param_shardings(device_mesh, params))
        made = make_log_probs(CONFIG, device_mesh, 2, 1, packed=packed)
        return made(placed, batch.rows, mask, np.float32(0.7))()[0][mask]

    expected = scored((1, 1, 1), False)
    for packed in (False, True):
        np.testing.assert_allclose(scored(ALL, packed), expected, atol=1e-5)


def test_every_piece_has_a_device_and_devices_compute_alike():
    for parts in (1, 2, 3, 4, 8):
        held = apart.pieces(parts)
        assert sorted(held.reshape(-1)) == list(range(2 * parts))
        assert set(held.sum(axis=1)) == {2 * parts - 1}


@pytest.mark.parametrize(
    ("parts", "length", "window"),
    [(2, 140, None), *(pytest.param(*of, marks=LONG) for of in [(4, 104, None), (2, 512, 100)])],
    ids=str,
)
def test_kernel_of_columns_apart_is_dense(parts, length, window):
    """Values and gradients, over packed segments and padding; columns that are no whole tiles."""
    device_mesh = mesh_of((1, 1, 2, parts))
    config = dataclasses.replace(CONFIG, attention="splash")
    rng = np.random.default_rng(0)
    shapes = [(2, length, 4, 8), (2, 2, length, 8), (2, 2, length, 8), (2, length, 4, 8)]
    *given, weight = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
    ids = np.digitize(np.arange(length), [length // 5, length // 2, length - 4]) + 1
    ids = np.stack([np.where(ids == 4, 0, ids), np.ones(length)]).astype(np.int32)
    specs = [ACTIVATION_SPECS[name] for name in ("heads", "columns", "columns")]
    order = apart.order(length, parts)
    spread = (given[0][:, order], given[1][:, :, order], given[2][:, :, order])
    placed = [
        jax.device_put(part, NamedSharding(device_mesh, spec))
        for part, spec in zip(spread, specs, strict=True)
    ]
    place = placement(device_mesh, config)

    def outcome(attend, parts):
        def value(*parts):
            out = attend(*parts)
            return jnp.sum(out * weight), out

        return jax.jit(jax.value_and_grad(value, argnums=(0, 1, 2), has_aux=True))(*parts)

    (value, out), gradients = outcome(
        lambda *parts: place.restore(place.attend(*parts, ids[:, order], window=window)), placed
    )
    expected = outcome(lambda *parts: attention.dense(*parts, ids, window=window), given)
    (expected_value, expected_out), (of_query, of_key, of_value) = expected
    found = (value, out, *gradients)
    expected = (expected_value, expected_out, of_query[:, order])
    expected += (of_key[:, :, order], of_value[:, :, order])
    chex.assert_trees_all_close(jax.device_get(found), jax.device_get(expected), atol=1e-4)


def test_a_window_counts_no_padding():
    with pytest.raises(ValueError, match=r"mesh sequence=4 needs rows of a multiple of 1024 tok"):
        apart.make_kernel(400, 4, window=10, interpret=True)


def test_columns_apart_have_no_kernel_of_cudnn():
    config = dataclasses.replace(CONFIG, attention="cudnn")
    with pytest.raises(ValueError, match=r"'cudnn' does not split the columns .* sequence=2"):
        placement(mesh_of((1, 1, 1, 2)), config)


def test_sampling_splits_rows_instead():
    """Over the devices of `sequence` too, which hold the parameters that they held."""
    built = planned(chips(4), fsdp=4, sequence=4)
    drawing = built.training_sampler().mesh
    assert dict(drawing.shape) == {"data": 1, "fsdp": 16, "sequence": 1, "tensor": 1}
    assert list(drawing.devices.flat) == list(built.mesh.devices.flat)
    assert built.sampler(built.train).mesh == drawing
    assert mesh.folded(drawing) is drawing
    params = {"embed": {"kernel": np.zeros((32, 32))}}
    assert param_shardings(drawing, params)["embed"]["kernel"].is_equivalent_to(
        param_shardings(built.mesh, params)["embed"]["kernel"], 2
    )


def test_what_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"completion = 4096 tokens .* config.mesh.sequence = 3"):
        planned(chips(6)[:3], sequence=3, fsdp=1)
    with pytest.raises(ValueError, match=r"mesh sequence=8 × tensor=1 lies over several proc"):
        planned(chips(4), sequence=8)
    built = planned(chips(4), fsdp=4, sequence=4)
    few = dataclasses.replace(built.evaluation, batch=4, samples=2)
    with pytest.raises(ValueError, match=r"batch × samples = 8 rows .* over the 16 row shards"):
        check_columns(built.mesh, built.window, built.rollout, built.curriculum, few)
