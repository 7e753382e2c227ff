"""The programs of a plan: their shapes, their memory, and refusals of the compiler."""

import dataclasses

import jax
import numpy as np
import pytest

from fiberjax import experiment
from fiberjax.plans import programs
from fiberjax.plans.topologies import CHIPS
from fiberjax.run.warm_start import random_params
from fiberjax.seeds import TRAINING
from fiberjax.train import rollout
from fiberjax.train.minibatches import make_batches

CHIP = CHIPS["v5e"]


@pytest.fixture
def build(make_config):
    """Builds the tiny experiment on eight devices, with changed options."""

    def make(gate="fiberpo_domain", **values):
        config = make_config(gate)
        config.warm_start.steps = 0
        config.evaluation.batch = 8
        config.rollout.prompts = 16
        config.mesh.update(data=4, fsdp=2)
        config.update_from_flattened_dict({k.replace("__", "."): v for k, v in values.items()})
        return experiment.from_config(config)

    return make


@pytest.mark.parametrize("gate", ["fiberpo_domain", "apc"])
@pytest.mark.parametrize("packing", [False, True])
def test_a_plan_compiles_for_the_batches_of_a_run(build, gate, packing):
    """Shapes, dtypes and shardings of what a run feeds its step."""
    built = build(gate, training__packing=packing, window__completion=24)
    params = random_params(built.policy, built.mesh, seed=0)
    rollouts = built.sampler(built.train)(
        params, next(built.prompt_stream()), samples=4, stream=TRAINING, step=0
    )
    lengths = np.arange(len(rollouts.tokens)) % 3 + 1
    mask = np.arange(rollouts.mask.shape[1]) < lengths[:, None]
    real = np.concatenate([rollouts.segment_ids[:, : -mask.shape[1]] > 0, mask], axis=1)
    rollouts = dataclasses.replace(
        rollouts,
        mask=mask,
        segment_ids=real.astype(np.int32),
        positions=rollout.positions_of(real),
    )
    table = np.zeros(mask.shape, np.float32)
    batches = make_batches(
        built.mesh,
        rollouts,
        advantage=table[:, 0],
        old_log_prob=table,
        reference_log_prob=table,
        sample_weight=table,
        num_minibatches=2,
        levels=built.levels,
        states=built.couples_states,
        pack_micro_batches=4 if packing else 0,
    )
    for batch in batches:
        assert (batch.layout.state_id is not None) == (gate == "apc")
        assert (batch.layout.cell_id is not None) == packing
        named = batch.columns is not None
        planned = programs.abstract_batch(
            built, len(batch.tokens) if packing else None, named=named
        )
        assert jax.tree.structure(planned) == jax.tree.structure(batch)
        for found, expected in zip(jax.tree.leaves(batch), jax.tree.leaves(planned), strict=True):
            assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
            assert found.sharding.is_equivalent_to(expected.sharding, found.ndim)


def test_rows_of_the_largest_packed_batch(build):
    # 4 rows on each of 8 shards, one at a time or all together.
    built = build(training__packing=True, training__micro_batches=4)
    assert programs.batch_rows(built) == 32
    assert programs.packed_rows(built) == 24
    assert programs.packed_rows(build(training__packing=True, training__micro_batches=2)) == 16
    assert programs.packed_rows(build(training__packing=True, training__micro_batches=1)) == 24
    assert programs.packed_rows(build()) is None


def test_rows_of_the_sampler_are_those_of_its_largest_part(build):
    assert programs.drawn_rows(build()) == 16 * 4
    assert programs.drawn_rows(build(evaluation__batch=64)) == 64 * 2
    assert programs.drawn_rows(build(curriculum__profile_samples=7)) == 16 * 7
    # 8 and 14 rows on a shard in parts of at most 7: 4 and 7.
    assert programs.drawn_rows(build(rollout__max_rows=7, curriculum__profile_samples=7)) == 8 * 7
    # Slots take all that is drawn in one call, and hold as many of it as there are.
    slots = build(rollout__max_rows=7, rollout__slots=3)
    assert programs.drawn_rows(slots) == 16 * 4 and programs.decoded_rows(slots) == 8 * 3
    assert programs.decoded_rows(build(rollout__slots=99)) == 16 * 4
    assert programs.decoded_rows(build(rollout__max_rows=7)) == 8 * 4


def test_memory_has_what_a_run_keeps_beside_a_program(build):
    state = build().abstract_state()
    params = programs.device_bytes(state.params)
    both = 2 * params  # Two moments, and a counter or two.
    sampler = programs.plan_sampler(build(), CHIP)
    assert both < sampler.memory["optimizer"] < both + 100
    assert sampler.memory["trained parameters"] == params
    assert sampler.peak_bytes == sum(sampler.memory.values())
    # Without `fsdp` the sampler reads the trained parameters themselves.
    alone = programs.plan_sampler(build(mesh__data=8, mesh__fsdp=1), CHIP)
    assert "trained parameters" not in alone.memory
    step = programs.plan_step(build(), CHIP)
    assert "reference policy" not in step.memory
    held = build(training__kl_coefficient=0.1)
    for program in (programs.plan_step(held, CHIP), programs.plan_sampler(held, CHIP)):
        assert program.memory["reference policy"] == params
        assert program.peak_bytes == sum(program.memory.values())
        assert program.memory["temporaries"] > 0
    # The same program, and one more thing beside it.
    assert program.peak_bytes == sampler.peak_bytes + params
    # It is what is kept beside it that does not fit.
    small = dataclasses.replace(CHIP, hbm=sampler.peak_bytes - 1)
    assert not programs.plan_sampler(build(), small).fits
    assert programs.plan_sampler(build(), dataclasses.replace(small, hbm=sampler.peak_bytes)).fits


@pytest.mark.long
def test_memory_with_adapters_is_of_one_base(build):
    lora = {"lora__rank": 2, "lora__base_dtype": "bfloat16", "training__kl_coefficient": 0.1}
    built, whole = build(**lora), build().abstract_state()
    state, all_bytes = built.abstract_state(), programs.device_bytes(whole.params)
    kept = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    step, sampler = programs.plan_step(built, CHIP), programs.plan_sampler(built, CHIP)
    assert step.fits and sampler.fits
    for program in (step, sampler):
        assert "reference policy" not in program.memory
        # Half of all parameters, but for norms.
        assert all_bytes / 2 < program.memory["frozen parameters"] < all_bytes / 2 + 200
        assert program.memory["optimizer"] <= 2 * 4 * kept + 100 < all_bytes
        assert program.peak_bytes == sum(program.memory.values())
    assert step.memory["parameters"] == programs.device_bytes(state.params) < all_bytes / 2
    # A step makes no gradient of the base.
    full = programs.plan_step(build(training__kl_coefficient=0.1), CHIP)
    assert step.flops < 0.85 * full.flops


def test_refusals_of_the_compiler_are_read():
    gib = 2**30
    full = "Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm. Exceeded by 4.75G."
    assert programs.needed_bytes(full, 3) == int(20.5 * gib)
    part = "the total memory required for HLO temporaries (20.50G) exceeds available HBM (15.75G)."
    assert programs.needed_bytes(part, 3) == int(20.5 * gib) + 3
    assert programs.needed_bytes("INTERNAL: something else", 3) is None
