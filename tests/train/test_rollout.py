"""Rollouts and how they are cut into optimizer batches: nothing is lost, mixed up or doubled."""

import dataclasses

import jax
import numpy as np
import pytest

from fiberjax import experiment
from fiberjax.parallel import mesh
from fiberjax.run.trainer import Trainer
from fiberjax.run.warm_start import random_params
from fiberjax.seeds import EVALUATION, PROFILE, TRAINING, row_keys
from fiberjax.tasks import reward_completions
from fiberjax.train.forward import make_log_probs
from fiberjax.train.minibatches import make_batches
from fiberjax.train.rollout import Sampler, positions_of, rows_at_a_time

GROUP = 4


@pytest.fixture
def build(make_config, one_device):
    """Builds the tiny experiment with changed rollout options, its random policy, one rollout."""

    def make(minibatches=2, samples=GROUP, **rollout):
        config = make_config()
        config.warm_start.steps = 0
        config.rollout.samples = samples
        config.rollout.update(rollout)
        config.training.minibatches = minibatches
        built = experiment.from_config(config, one_device)
        params = random_params(built.policy, built.mesh, seed=0)
        rollouts = built.sampler(built.train)(
            params, next(built.prompt_stream()), samples=samples, stream=TRAINING, step=0
        )
        return built, params, rollouts

    return make


def trainer_log_prob(built, params, rollouts, micro_batches=1):
    log_probs = make_log_probs(built.policy, built.mesh, built.training.chunk, micro_batches)
    rows = (rollouts.tokens, rollouts.positions, rollouts.segment_ids)
    return log_probs(params, rows, rollouts.mask, built.knobs.temperature)()[0]


def cut(built, rollouts, minibatches, states=False, **overrides):
    """Optimizer batches whose per-token arrays hold their row's number."""
    rows = np.arange(len(rollouts.tokens), dtype=np.float32)
    table = np.repeat(rows[:, None], rollouts.mask.shape[1], axis=1)
    arrays = {
        "advantage": rows,
        "old_log_prob": table,
        "reference_log_prob": table,
        "sample_weight": table,
    }
    return make_batches(
        built.mesh,
        rollouts,
        **arrays | overrides,
        num_minibatches=minibatches,
        levels=built.levels,
        states=states,
    )


def test_a_prompts_samples_stand_together_and_are_rewarded_as_its_own(build):
    built, _, rollouts = build()
    prompts = rollouts.prompts
    columns = prompts.tokens.shape[1]
    assert rollouts.group_size == GROUP
    np.testing.assert_array_equal(
        rollouts.tokens[:, :columns], np.repeat(prompts.tokens, GROUP, axis=0)
    )
    np.testing.assert_array_equal(
        rollouts.segment_ids[:, :columns], np.repeat(prompts.mask, GROUP, axis=0)
    )
    expected = reward_completions(built.train, prompts, rollouts.texts).reward
    np.testing.assert_array_equal(rollouts.reward.reshape(-1, GROUP), expected)
    # Samples of one prompt differ: each row has a key of its own.
    assert len(set(rollouts.texts[:GROUP])) > 1


def test_texts_end_before_the_end_of_sequence(build):
    built, _, rollouts = build()
    completion = rollouts.tokens[:, -rollouts.mask.shape[1] :]
    assert rollouts.finished.any()
    for row, text in enumerate(rollouts.texts):
        tokens = completion[row][rollouts.mask[row]]
        if rollouts.finished[row]:
            assert tokens[-1] == built.vocabulary.eos_id
            tokens = tokens[:-1]
        assert built.vocabulary.eos_id not in tokens
        assert text == built.vocabulary.decode(tokens)


def test_positions_count_the_real_tokens(build):
    _, _, rollouts = build()
    for positions, real in zip(rollouts.positions, rollouts.segment_ids > 0, strict=True):
        np.testing.assert_array_equal(positions[real], np.arange(real.sum()))
    np.testing.assert_array_equal(positions_of(np.array([[0, 0, 1, 1, 0]])), [[0, 0, 0, 1, 1]])


@pytest.mark.parametrize("minibatches", [1, 2, 4, 8])
def test_every_group_is_whole_in_one_minibatch(build, minibatches):
    built, _, rollouts = build()
    batches = cut(built, rollouts, minibatches)
    assert len(batches) == minibatches
    seen = []
    for batch in batches:
        rows = np.asarray(batch.advantage)[:, 0].astype(int)
        seen.extend(rows)
        layout = batch.layout
        np.testing.assert_array_equal(batch.tokens, rollouts.tokens[rows])
        np.testing.assert_array_equal(batch.positions, rollouts.positions[rows])
        np.testing.assert_array_equal(batch.segment_ids, rollouts.segment_ids[rows])
        np.testing.assert_array_equal(layout.mask, rollouts.mask[rows])
        for name in ("old_log_prob", "reference_log_prob", "sample_weight"):
            np.testing.assert_array_equal(np.asarray(getattr(batch, name))[:, 0], rows)
        trajectory, group, domain = layout.sizes
        np.testing.assert_array_equal(trajectory, rollouts.mask[rows].sum(axis=1))
        np.testing.assert_array_equal(group, GROUP)
        # Rows of one group are samples of one prompt, and the group stands in the prompt's domain.
        parent = np.asarray(layout.parents[0])
        for cell in range(len(group)):
            (prompt,) = set(rows[parent == cell] // GROUP)
            assert layout.parents[1][cell] == rollouts.prompts.domain[prompt]
        counts = np.bincount(np.asarray(layout.parents[1]), minlength=len(built.train))
        np.testing.assert_array_equal(domain, counts)
    assert sorted(seen) == list(range(len(rollouts.tokens)))


def test_all_minibatches_have_one_shape(build):
    built, _, rollouts = build()
    shapes = {
        str(jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), batch))
        for batch in cut(built, rollouts, 4)
    }
    assert len(shapes) == 1


def test_permuting_the_groups_permutes_the_batches(build):
    built, _, rollouts = build()
    order = np.random.default_rng(0).permutation(len(rollouts.prompts.prompts))
    rows = (order[:, None] * GROUP + np.arange(GROUP)).ravel()
    prompts = dataclasses.replace(
        rollouts.prompts,
        tokens=rollouts.prompts.tokens[order],
        domain=rollouts.prompts.domain[order],
        prompt_index=rollouts.prompts.prompt_index[order],
    )
    permuted = dataclasses.replace(
        rollouts,
        prompts=prompts,
        **{
            name: getattr(rollouts, name)[rows]
            for name in ("tokens", "positions", "segment_ids", "mask")
        },
    )
    (whole,) = cut(built, rollouts, 1)
    (got,) = cut(built, permuted, 1)
    np.testing.assert_array_equal(got.tokens, np.asarray(whole.tokens)[rows])
    np.testing.assert_array_equal(got.layout.parents[1], np.asarray(whole.layout.parents[1])[order])
    np.testing.assert_array_equal(got.layout.sizes[2], whole.layout.sizes[2])


def test_states_are_shared_by_samples_of_one_prompt_and_prefix(build):
    built, _, rollouts = build()
    (batch,) = cut(built, rollouts, 1, states=True)
    state = np.asarray(batch.layout.state_id)
    np.testing.assert_array_equal(state[rollouts.mask].min(), 0)
    assert (state[~rollouts.mask] == batch.layout.num_states).all()
    first = state[:, 0].reshape(-1, GROUP)
    assert (first == first[:, :1]).all() and len(set(first[:, 0])) == len(first)
    completion = rollouts.tokens[:, -rollouts.mask.shape[1] :]
    both = rollouts.mask[0, 1] and rollouts.mask[1, 1]
    assert both
    assert (state[0, 1] == state[1, 1]) == (completion[0, 0] == completion[1, 0])


def test_no_two_rows_ever_share_a_key():
    keys = [
        jax.random.key_data(row_keys(seed, stream, step, np.arange(8)))
        for seed in (0, 1)
        for stream in (TRAINING, EVALUATION, PROFILE)
        for step in range(4)
    ]
    keys = np.concatenate(keys)
    assert len(np.unique(keys, axis=0)) == len(keys) == 2 * 3 * 4 * 8


def test_a_draw_depends_on_seed_stream_and_step_alone(build):
    built, params, rollouts = build()
    sampler = built.sampler(built.train)

    def texts(step=0, stream=TRAINING, sampler=sampler):
        return sampler(params, rollouts.prompts, samples=GROUP, stream=stream, step=step).texts

    assert texts() == rollouts.texts
    assert texts(step=1) != rollouts.texts
    assert texts(stream=EVALUATION) != rollouts.texts
    assert texts(sampler=dataclasses.replace(sampler, seed=1)) != rollouts.texts


@pytest.mark.parametrize(
    ("shape", "max_rows", "sizes"),
    [
        ((1, 1, 1), 8, [8] * 4),
        ((2, 2, 2), 5, [16] * 2),
        ((4, 2, 1), 1, [8] * 4),
        # 32 rows in 5 parts of 7, and 16 on each of two shards in 3 of 6: the rest is dropped.
        ((1, 1, 1), 7, [7] * 5),
        ((2, 1, 1), 7, [12] * 3),
    ],
    ids=str,
)
def test_draws_do_not_depend_on_the_parts_they_are_drawn_in(
    build, shape, max_rows, sizes, monkeypatch
):
    built, params, rollouts = build()
    count = int(np.prod(shape))
    device_mesh = mesh.make_mesh(
        dict(zip(("data", "fsdp", "tensor"), shape, strict=True)), jax.devices()[:count]
    )
    sampler = dataclasses.replace(built.sampler(built.train), mesh=device_mesh, max_rows=max_rows)
    # Heads and vocabulary of the tiny policy do not divide over `tensor`.
    params = jax.device_put(params, jax.NamedSharding(device_mesh, mesh.REPLICATED))
    drawn = []
    draw = Sampler.draw
    monkeypatch.setattr(
        Sampler, "draw", lambda self, *of: drawn.append(len(of[1])) or draw(self, *of)
    )
    again = sampler(params, rollouts.prompts, samples=GROUP, stream=TRAINING, step=0)
    assert again.texts == rollouts.texts
    np.testing.assert_array_equal(again.tokens, rollouts.tokens)
    np.testing.assert_allclose(again.sampler_log_prob, rollouts.sampler_log_prob, atol=1e-5)
    assert drawn == sizes


def test_draws_do_not_depend_on_slots_on_a_mesh(build, monkeypatch):
    """Four row shards of eight rows, three at a time, two devices to each shard."""
    built, params, rollouts = build()
    device_mesh = mesh.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    sampler = dataclasses.replace(built.sampler(built.train), mesh=device_mesh, max_rows=2, slots=3)
    params = jax.device_put(params, jax.NamedSharding(device_mesh, mesh.REPLICATED))
    drawn = []
    draw = Sampler.draw
    monkeypatch.setattr(
        Sampler, "draw", lambda self, *of: drawn.append(len(of[1])) or draw(self, *of)
    )
    again = sampler(params, rollouts.prompts, samples=GROUP, stream=TRAINING, step=0)
    assert drawn == [32]  # Nothing waits outside the loop.
    assert again.texts == rollouts.texts
    np.testing.assert_array_equal(again.tokens, rollouts.tokens)
    np.testing.assert_allclose(again.sampler_log_prob, rollouts.sampler_log_prob, atol=1e-5)
    length = rollouts.mask.sum(axis=1)
    assert (rollouts.held == length.max()).all()
    # All shards are decoded in step: as many steps for the slots of each.
    steps = (again.held - 1).reshape(4, 8).sum(axis=1)
    assert (steps == steps[0]).all() and (again.held >= length).all()


@pytest.mark.parametrize("rows", [*range(1, 30), 127, 128])
def test_parts_are_few_of_one_size_and_hold_all_rows(rows):
    assert rows_at_a_time(rows, 0) == rows
    for most in range(1, rows + 3):
        size = rows_at_a_time(rows, most)
        parts = -(-rows // size)
        assert 1 <= size <= most and parts == -(-rows // most)
        # No part could be smaller.
        assert parts * (size - 1) < rows


@pytest.mark.parametrize("top_p", [1.0, 0.7])
def test_what_is_drawn_lies_where_its_rows_do(build, top_p):
    """A process reads its own rows of every array: also of those that hold nothing but zeros."""
    built, params, rollouts = build(top_p=top_p)
    device_mesh = mesh.make_mesh({"data": 2, "fsdp": 2, "tensor": 1}, jax.devices()[:4])
    sampler = dataclasses.replace(built.sampler(built.train), mesh=device_mesh)
    rows = jax.NamedSharding(device_mesh, mesh.ROWS)
    prompts = (rollouts.prompts.tokens, rollouts.prompts.mask, np.arange(8, dtype=np.int32))
    tokens, mask, places = mesh.place(device_mesh, prompts, mesh.ROWS)
    params = sampler.read(jax.device_put(params, jax.NamedSharding(device_mesh, mesh.REPLICATED)))
    drawn = sampler.draw(params, tokens, mask, row_keys(0, TRAINING, 0, places))
    for name, values in drawn._asdict().items():
        assert values.sharding.is_equivalent_to(rows, values.ndim), name


def test_batches_that_packing_would_not_shorten_stay_as_they_are(build):
    built, _, rollouts = build()
    full = dataclasses.replace(
        rollouts,
        mask=np.ones_like(rollouts.mask),
        segment_ids=np.ones_like(rollouts.segment_ids),
    )
    for of, packed in ((full, False), (rollouts, True)):
        for batch in cut(built, of, 2, pack_micro_batches=16):
            assert (batch.layout.cell_id is not None) == packed
            assert (len(batch.tokens) < len(rollouts.tokens) // 2) == packed


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_sampler_and_trainer_agree_on_log_probabilities(build, temperature):
    built, params, rollouts = build(temperature=temperature)
    gap = np.abs(trainer_log_prob(built, params, rollouts) - rollouts.sampler_log_prob)
    assert gap[rollouts.mask].max() < 1e-4
    # The temperature is in both: without it in one of them, they would disagree.
    other = dataclasses.replace(built, knobs=built.knobs._replace(temperature=np.float32(1.7)))
    gap = np.abs(trainer_log_prob(other, params, rollouts) - rollouts.sampler_log_prob)
    assert gap[rollouts.mask].max() > 1e-2


def test_log_probabilities_do_not_depend_on_micro_batches(build):
    built, params, rollouts = build()
    np.testing.assert_allclose(
        trainer_log_prob(built, params, rollouts, micro_batches=4),
        trainer_log_prob(built, params, rollouts),
        atol=1e-5,  # A few roundings of float32.
    )


@pytest.mark.looked
@pytest.mark.parametrize("truncation", [{"top_p": 0.7}, {"top_k": 3}])
def test_truncated_sampling_leaves_the_first_ratios_at_one(build, truncation):
    built, params, rollouts = build(minibatches=1, **truncation)
    old = trainer_log_prob(built, params, rollouts)
    # The sampler's are those of the renormalised distribution, and would not do as the old ones.
    assert np.abs(old - rollouts.sampler_log_prob)[rollouts.mask].max() > 0.1
    (batch,) = cut(built, rollouts, 1, old_log_prob=old)
    trainer = Trainer(built, None)
    state = built.fresh_state(jax.tree.map(lambda leaf: leaf.copy(), params))
    _, metrics, log_prob = trainer._step(state, batch, built.knobs)
    metrics |= trainer._diagnose(log_prob, batch, built.knobs)
    np.testing.assert_allclose(float(metrics["is_ratio/min"].value), 1, atol=1e-5)
    np.testing.assert_allclose(float(metrics["is_ratio/max"].value), 1, atol=1e-5)
    assert metrics["actor/pg_clipfrac"].value == 0
