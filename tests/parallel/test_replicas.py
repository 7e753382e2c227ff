"""Replicas add up their own micro-batches, and join their gradients once an update."""

import dataclasses

import jax
import pytest
from small_step import KNOBS, LEVELS, OPTIONS, build
from test_columns import batch_of
from test_mesh import CONFIG, assert_agrees

from configs import gates as presets
from fiberjax import gates
from fiberjax.plans import costs, hlo

LONG = (pytest.mark.slow, pytest.mark.long)
MIXTURE = {"num_experts": 4, "experts_per_token": 2, "mlp_dim": 8}


def updated(shape, parts, gate="fiberpo_domain", batch=None, **changes):
    """Metrics, and the state after two updates, on the host."""
    made, budgets = gates.from_config(presets.get_gate(gate), LEVELS)
    options = dataclasses.replace(OPTIONS, num_micro_batches=parts)
    config = dataclasses.replace(CONFIG, **changes)
    step, state, placed = build(shape, options, config, batch, made)
    knobs = KNOBS._replace(budgets=budgets)
    state, first = step(state, placed, knobs)
    state, second = step(state, placed, knobs)
    return jax.device_get((state, first, second))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "changes"),
    [
        ((4, 1, 1), {"gate": "ppo"}),
        pytest.param((2, 2, 1), MIXTURE, marks=LONG),
        pytest.param((2, 2, 2), {"attention": "splash", "remat": "full"}, marks=LONG),
        pytest.param((2, 1, 1, 2), {"batch": batch_of()}, marks=LONG),
        pytest.param((2, 1, 2, 2), {"batch": batch_of(), "attention": "splash"}, marks=LONG),
        pytest.param((2, 1, 1), {"batch": batch_of(packed=True)}, marks=LONG),
        pytest.param((2, 1, 1), {"batch": batch_of(packed=True, named=True)}, marks=LONG),
    ],
    ids=["apart", "experts", "kernel", "columns", "columns kernel", "packed", "named"],
)
def test_micro_batches_of_replicas_are_one_update_of_one_device(shape, changes):
    plain = {name: of for name, of in changes.items() if name not in ("attention", "remat")}
    plain |= {"batch": batch_of()} if "batch" in changes else {}
    assert_agrees(updated(shape, 2, **changes), updated((1, 1, 1), 1, **plain))


def test_gradients_go_from_replica_to_replica_once():
    """Whatever the number of micro-batches; what else goes are tables and sums of metrics."""

    def sent(parts):
        options = dataclasses.replace(OPTIONS, num_micro_batches=parts)
        step, state, batch = build((2, 1, 1), options)
        module = hlo.parse(step.lower(state, batch, KNOBS).compile().as_text())
        large = sum(leaf.nbytes for leaf in jax.tree.leaves(state.params)) / 100
        found = [of for of in costs.collectives(module) if of.num_bytes > large]
        return sum(of.times * of.num_bytes for of in found)

    whole = sent(1)
    assert whole > 0 and sent(4) < 1.5 * whole
