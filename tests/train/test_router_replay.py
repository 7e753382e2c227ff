"""Updates of a mixture send tokens where the policy before them did, whoever holds the rows."""

import dataclasses

import chex
import jax
import numpy as np
import pytest
import small_step
from small_step import CONFIG, KNOBS, OPTIONS, ROWS

from fiberjax.parallel import mesh
from fiberjax.policy import bind, init
from fiberjax.run import warm_start
from fiberjax.run.trainer import Trainer
from fiberjax.train import packing
from fiberjax.train.forward import make_log_probs

MIXTURE = dataclasses.replace(CONFIG, num_experts=4, experts_per_token=2, num_layers=2)


def routed_batch():
    """The small batch with the routes of another policy than the step's."""
    batch = small_step.make_batch()
    model = bind(MIXTURE, init(MIXTURE, jax.random.key(7)))
    _, routes = jax.jit(model.routed)(*batch.rows[:3])
    return dataclasses.replace(batch, routes=np.asarray(routes))


def updated(batch, shape=(1, 1, 1), options=OPTIONS):
    """The first moments after an update, which are its gradient, and the metrics."""
    step, state, placed = small_step.build(shape, options, MIXTURE, batch)
    state, metrics = step(state, placed, KNOBS)
    return jax.device_get((state.opt_state, metrics))


@pytest.fixture(scope="module")
def replayed():
    return updated(routed_batch())


def test_a_replayed_update_is_another(replayed):
    free = updated(small_step.make_batch())
    gap = jax.tree.map(lambda a, b: np.max(np.abs(a - b)), replayed[0], free[0])
    assert max(jax.tree.leaves(gap)) > 1e-3


@pytest.mark.long
@pytest.mark.parametrize(
    "way",
    [
        *("packed", "expert parallel"),
        *(pytest.param(way, marks=pytest.mark.long) for way in ("micro-batches", "eight shards")),
    ],
)
def test_any_split_replays_alike(replayed, way):
    batch, shape, options = routed_batch(), (1, 1, 1), OPTIONS
    if way == "packed":
        device_mesh = mesh.make_mesh(dict.fromkeys(mesh.AXES, 1), jax.devices()[:1])
        fewer = packing.choose(device_mesh, batch.segment_ids, batch.layout.mask.shape[1], 1)
        assert fewer.rows < ROWS
        batch = packing.pack(batch, fewer)
    elif way == "micro-batches":
        options = dataclasses.replace(options, num_micro_batches=2)
    else:
        shape = (8, 1, 1) if way == "eight shards" else (1, 1, 4)
    found = updated(batch, shape, options)
    chex.assert_trees_all_close(found, replayed, rtol=2e-3, atol=2e-5)


def test_the_score_pass_tells_the_routes():
    """Those of the policy, and log-probabilities that replaying them gives again."""
    batch = small_step.make_batch()
    params = init(MIXTURE, jax.random.key(0))
    device_mesh = mesh.make_mesh(dict.fromkeys(mesh.AXES, 1), jax.devices()[:1])
    given = (device_mesh, 4, 2)
    rows, told = batch.rows, (batch.layout.mask, np.float32(1.0))
    log_prob, routes = make_log_probs(MIXTURE, *given, routes=True)(params, rows, *told)()
    np.testing.assert_array_equal(routes, bind(MIXTURE, params).routed(*rows[:3])[1])
    mask = np.asarray(batch.layout.mask)
    again, _ = make_log_probs(MIXTURE, *given)(params, rows._replace(routes=routes), *told)()
    np.testing.assert_allclose(again[mask], log_prob[mask], atol=1e-5)


def test_an_iteration_replays_the_routes_of_the_policy_that_sampled(build):
    built = build(
        policy__num_experts=4,
        policy__experts_per_token=2,
        warm_start__steps=1,
        training__router_replay=True,
    )
    params = jax.device_get(warm_start.starting_params(built))
    collected = Trainer(built, None).collect(params, built.prompt_stream(), 0)
    model = bind(built.policy, params)
    assert len(collected.batches) == built.training.minibatches
    for batch in collected.batches:
        rows, routes = batch.rows[:3], batch.routes
        real = np.asarray(batch.segment_ids) != 0
        np.testing.assert_array_equal(np.asarray(routes)[real], model.routed(*rows)[1][real])


def test_a_policy_without_experts_is_refused(build):
    with pytest.raises(ValueError, match=r"config.training.router_replay = True, but the policy"):
        build(training__router_replay=True)
