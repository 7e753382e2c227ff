"""Which groups make a batch, and that a place without one changes nothing of the others."""

import dataclasses

import jax
import numpy as np
import pytest

from fiberjax import experiment, seeds
from fiberjax.run.trainer import Trainer
from fiberjax.run.warm_start import random_params
from fiberjax.train.resample import assemble, choose, differ

GROUP, PROMPTS = 4, 8
ARRAYS = (
    *("tokens", "positions", "segment_ids", "mask", "finished"),
    *("sampler_log_prob", "log_kept", "reward"),
)


@pytest.fixture
def draws(make_config, one_device):
    """The tiny experiment with changed options, its random policy, and two draws of prompts."""

    def make(**values):
        config = make_config()
        config.warm_start.steps = 0
        config.update_from_flattened_dict({k.replace("__", "."): v for k, v in values.items()})
        built = experiment.from_config(config, one_device)
        params = random_params(built.policy, built.mesh, seed=0)
        stream, sampler, drawn = built.prompt_stream(), built.sampler(built.train), []
        for batch in range(2):
            tried = [of.prompts.prompt_index for of in drawn]
            prompts = stream.further(batch, np.concatenate(tried)) if batch else next(stream)
            of = sampler(params, prompts, samples=GROUP, stream=seeds.TRAINING, step=0, batch=batch)
            reward = np.random.default_rng(batch).uniform(size=len(of.reward)).astype(np.float32)
            drawn.append(dataclasses.replace(of, reward=reward))
        return built, params, drawn

    return make


def test_groups_whose_rewards_are_all_equal_do_not_differ():
    rewards = np.array([0.1, 0.1, 0.1, 0, 1, 0, 1, 1, 1, -1, -1, -1.5], np.float32)
    assert differ(rewards, 3).tolist() == [False, True, False, True]
    assert not differ(rewards, 1).any()


@pytest.mark.parametrize("minibatches", [1, 2, 4])
@pytest.mark.parametrize("count", range(20))
def test_places_are_filled_in_order_and_evenly(count, minibatches):
    kept = np.zeros(40, bool)
    kept[np.random.default_rng(count).permutation(40)[:count]] = True
    source = choose(kept, 16, minibatches)
    placed = source[source >= 0]
    first = np.flatnonzero(kept)[:16]
    assert sorted(placed) == first.tolist()
    if count >= 16:
        assert source.tolist() == first.tolist()
    by_minibatch = [np.sum(source[j::minibatches] >= 0) for j in range(minibatches)]
    assert max(by_minibatch) - min(by_minibatch) <= 1
    # The halves of a minibatch lie on two devices.
    for j in range(minibatches):
        first, second = (source[j::minibatches] >= 0).reshape(2, -1).sum(axis=1)
        assert 0 <= first - second <= 1


def test_further_batches_of_a_step_are_draws_of_their_own(draws):
    built, params, (first, second) = draws()
    sampler = built.sampler(built.train)
    same = {"samples": GROUP, "stream": seeds.TRAINING, "step": 0}
    assert sampler(params, first.prompts, batch=0, **same).texts == first.texts
    assert sampler(params, first.prompts, batch=1, **same).texts != first.texts
    assert sampler(params, second.prompts, batch=1, **same).texts == second.texts


def test_a_batch_is_made_of_the_groups_of_several_draws(draws):
    built, _, drawn = draws()
    source = np.array([3, -1, 9, 15, -1, 0, 8, -1])
    batch = assemble(built.mesh, drawn, source, built.examples)
    for place, group in enumerate(source):
        rows = slice(place * GROUP, (place + 1) * GROUP)
        if group < 0:
            for name in ARRAYS:
                assert not getattr(batch, name)[rows].any(), name
            assert batch.texts[rows] == [""] * GROUP
            continue
        of, row = drawn[group // PROMPTS], group % PROMPTS
        there = slice(row * GROUP, (row + 1) * GROUP)
        for name in ARRAYS:
            np.testing.assert_array_equal(getattr(batch, name)[rows], getattr(of, name)[there])
            assert getattr(batch, name).dtype == getattr(of, name).dtype
        assert batch.texts[rows] == of.texts[there]
        for name in ("tokens", "mask", "prompt_index", "domain", "prompts", "answers"):
            mine, theirs = getattr(batch.prompts, name)[place], getattr(of.prompts, name)[row]
            np.testing.assert_array_equal(mine, theirs)


@pytest.mark.looked
@pytest.mark.long
def test_places_without_a_group_change_nothing(draws):
    """Updates on a padded batch are those on its groups alone."""
    built, params, drawn = draws(
        advantage="reinforce_plus_plus",  # Compares with the whole batch.
        training__minibatches=1,
        training__micro_batches=4,
        training__packing=True,
        training__step_share="importance",
    )
    source = np.array([-1, 3, 9, -1, 15, 0, -1, -1])
    padded = assemble(built.mesh, drawn, source, built.examples)
    alone = assemble(built.mesh, drawn, source[source >= 0], built.examples)
    trainer, results = Trainer(built, None), []
    for rollouts in (padded, alone):
        present = rollouts.mask.any(axis=1)
        made = trainer._batches(params, rollouts, rollouts.reward, present)
        (batch,), gaps = made.batches, made.metrics
        state = built.fresh_state(jax.tree.map(lambda leaf: leaf.copy(), params))
        for _ in range(2):  # The second is off the policy that sampled.
            state, metrics, log_prob = trainer._step(state, batch, built.knobs)
        metrics |= trainer._diagnose(log_prob, batch, built.knobs)
        scalars = {name: float(of.value) for name, of in metrics.items()}
        results.append((jax.device_get(state.params), scalars | gaps))
    (one, told), (other, expected) = results
    assert told["actor/grad_norm"] > 1e-3 and told.keys() == expected.keys()
    for name in told:
        np.testing.assert_allclose(told[name], expected[name], 2e-4, 1e-6, err_msg=name)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5)
