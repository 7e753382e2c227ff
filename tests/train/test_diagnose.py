"""What a gate did in an update is what `diagnostics` says of the step's own tokens, on any mesh."""

import dataclasses
import functools

import jax
import numpy as np
from small_step import BUDGETS, GATE, KNOBS, make_batch

from fiberjax import diagnostics
from fiberjax.parallel import mesh
from fiberjax.train.batch import batch_specs
from fiberjax.train.diagnose import make_diagnose


@functools.cache
def found(shape):
    batch = make_batch()
    drift = np.random.default_rng(1).normal(0, 0.04, batch.old_log_prob.shape)
    log_prob = (batch.old_log_prob + drift).astype(np.float32)
    log_prob[~batch.layout.mask] = np.nan  # Padding may hold anything.
    count = int(np.prod(shape))
    device_mesh = mesh.make_mesh(
        dict(zip(("data", "fsdp", "tensor"), shape, strict=True)), jax.devices()[:count]
    )
    placed = mesh.place(device_mesh, batch, batch_specs(batch))
    rows = jax.device_put(log_prob, placed.advantage.sharding)
    metrics = make_diagnose(device_mesh, GATE)(rows, placed, KNOBS)
    read = jax.device_get(metrics)
    return {name: float(of.value) for name, of in read.items()}, batch, log_prob


def test_an_update_is_told_as_diagnostics_tell_its_tokens():
    metrics, batch, log_prob = found((1, 1, 1))
    ratio = np.where(batch.layout.mask, log_prob - batch.old_log_prob, 0)
    layout = dataclasses.replace(batch.layout, axis_names=((),) * len(batch.layout.levels))
    whole = jax.jit(diagnostics.gate_metrics, static_argnums=0)
    expected = whole(GATE, ratio, batch.advantage, layout, BUDGETS)
    alone = jax.eval_shape(diagnostics.ratio_metrics, ratio, layout)
    assert metrics.keys() == expected.keys() - alone.keys() and alone
    for name, value in metrics.items():
        np.testing.assert_allclose(value, float(expected[name].value), 1e-5, 1e-6, err_msg=name)
    assert 0 < metrics["actor/pg_clipfrac"] < 1


def test_a_mesh_says_the_same():
    one, many = found((1, 1, 1))[0], found((2, 2, 1))[0]
    assert one.keys() == many.keys()
    for name, value in one.items():
        np.testing.assert_allclose(many[name], value, 1e-5, 1e-6, err_msg=name)
