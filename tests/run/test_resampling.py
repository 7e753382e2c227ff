"""Iterations that leave out groups without spread: what is drawn, told, learned and resumed."""

import dataclasses
import zlib

import jax
import numpy as np
import pytest
from compilations import compilations
from interruption import interrupted_at

from fiberjax.run import loop
from fiberjax.run.metrics import read_metrics
from fiberjax.run.trainer import Trainer
from fiberjax.run.warm_start import random_params
from fiberjax.train.rollout import Sampler

GROUP, PROMPTS = 4, 8


def some(prompt, answer, text):
    """A reward that may differ within a third of the groups, and is the same in the others."""
    kind = zlib.crc32(prompt.encode()) % 3
    return float(zlib.crc32(text.encode()) % 2) if kind == 0 else kind - 1.0


def none(prompt, answer, text):
    return 1.0 if prompt < "R" else 0.0


@pytest.fixture
def begin(build):
    """A trainer under a reward of one's own, and the state it starts from."""

    def make(verify, resample=4, **options):
        built = build(warm_start__steps=0, rollout__resample=resample, **options)
        train = tuple(dataclasses.replace(domain, verify=verify) for domain in built.train)
        built = dataclasses.replace(built, train=train)
        params = random_params(built.policy, built.mesh, seed=0)
        return built, Trainer(built, None), built.fresh_state(params)

    return make


@pytest.fixture
def drawn(monkeypatch):
    """All rollouts that are drawn, as they come."""
    seen, pay = [], Sampler.pay

    def watched(self, rollouts):
        seen.append(pay(self, rollouts))
        return seen[-1]

    monkeypatch.setattr(Sampler, "pay", watched)
    return seen


def rows_of(batches, rollouts):
    """The place in the rollouts of each row of the batches that holds one, batch by batch."""
    texts = [row.tobytes() for row in rollouts.tokens]
    held = [
        np.asarray(batch.tokens)[np.asarray(batch.layout.mask).any(axis=1)] for batch in batches
    ]
    return [[texts.index(row.tobytes()) for row in rows] for rows in held]


def test_an_iteration_draws_until_its_batch_is_full(begin, drawn):
    built, trainer, state = begin(some)
    stream = built.prompt_stream()
    collected = trainer.collect(state.params, stream, 0)
    assert 1 < len(drawn) <= 4 and stream.step == 1
    rewards = np.concatenate([of.reward for of in drawn]).reshape(-1, GROUP)
    index = np.concatenate([of.prompts.prompt_index for of in drawn])
    domain = np.concatenate([of.prompts.domain for of in drawn])
    assert len(set(index)) == len(index)  # None was tried twice.
    spread = np.ptp(rewards, axis=1) > 0
    count = min(int(spread.sum()), PROMPTS)
    assert spread[: -len(drawn[-1].reward) // GROUP].sum() < PROMPTS

    # What is told is of all that was drawn, but for what is said to be of the batch.
    told = collected.metrics
    assert told["reward/mean"] == pytest.approx(rewards.mean())
    assert told["reward/std"] == pytest.approx(rewards.std())
    assert told["frac_reward_zero_std"] == pytest.approx(1 - spread.mean())
    for number, name in enumerate(built.domain_names):
        assert told[f"reward/{name}"] == pytest.approx(rewards[domain == number].mean())
    length = np.concatenate([of.mask.sum(axis=1) for of in drawn])
    assert told["response_length/mean"] == pytest.approx(length.mean())
    assert told["resample/prompts_drawn"] == len(rewards) and collected.completions == rewards.size
    assert told["resample/prompts_kept"] == count
    assert told["resample/drawn_per_kept"] == pytest.approx(len(rewards) / count)
    assert told["batch/fill"] == count / PROMPTS and told["resample/updates_skipped"] == 0
    kept = np.flatnonzero(spread)[:PROMPTS]
    assert told["batch/reward/mean"] == pytest.approx(rewards[kept].mean())
    assert told["batch/reward/mean"] != pytest.approx(told["reward/mean"])
    # The curriculum has learned from every prompt that was tried.
    passed = (rewards >= 1).mean(axis=1)
    np.testing.assert_allclose(stream.pass_rate[index], passed)
    assert np.isnan(np.delete(stream.pass_rate, index)).all()

    # The updates see the groups kept, each whole, with the advantages of its own rewards.
    whole = dataclasses.replace(drawn[0], tokens=np.concatenate([of.tokens for of in drawn]))
    held = rows_of(collected.batches, whole)
    assert sorted(row // GROUP for rows in held for row in rows) == sorted(np.repeat(kept, GROUP))
    for batch, rows in zip(collected.batches, held, strict=True):
        there = np.asarray(batch.layout.mask).any(axis=1)
        advantage = np.asarray(batch.advantage)[there, 0].reshape(-1, GROUP)
        group = rewards[[row // GROUP for row in rows[::GROUP]]]
        expected = group - group.mean(axis=1, keepdims=True)
        expected /= group.std(axis=1, ddof=1, keepdims=True) + 1e-6
        np.testing.assert_allclose(advantage, expected, atol=1e-5)
        levels = batch.layout.levels
        assert np.asarray(batch.layout.sizes[levels.index("group")]).sum() == len(rows)
        assert np.asarray(batch.layout.sizes[-1]).sum() == len(rows) // GROUP


def test_only_the_first_batch_is_drawn_where_all_groups_differ(begin, drawn):
    built, trainer, state = begin(lambda prompt, answer, text: float(zlib.crc32(text.encode())))
    on = trainer.collect(state.params, built.prompt_stream(), 0)
    assert len(drawn) == 1 and on.metrics["batch/fill"] == 1
    off = dataclasses.replace(built, rollout=dataclasses.replace(built.rollout, resample=0))
    plain = trainer.again(off, None).collect(state.params, off.prompt_stream(), 0)
    assert not [name for name in plain.metrics if name.startswith(("resample/", "batch/"))]
    assert plain.metrics.items() <= on.metrics.items()
    for a, b in zip(jax.tree.leaves(on.batches), jax.tree.leaves(plain.batches), strict=True):
        np.testing.assert_array_equal(a, b)


def test_shuffled_rewards_are_those_of_the_batch(begin):
    """The control permutes what the batch was credited with; padding takes no part."""
    built, trainer, state = begin(some, rollout__shuffle_rewards=True, advantage="dr_grpo")
    seen, estimate = [], trainer._estimate

    def watched(reward, group, count):
        seen.append((np.asarray(reward), np.asarray(group)))
        return estimate(reward, group, count)

    trainer._estimate = watched
    told = trainer.collect(state.params, built.prompt_stream(), 0).metrics
    ((reward, group),) = seen
    assert told["batch/fill"] < 1
    assert (group == PROMPTS).sum() == (PROMPTS - told["resample/prompts_kept"]) * GROUP
    assert reward[group < PROMPTS].mean() == pytest.approx(told["batch/reward/mean"])
    assert not reward[group == PROMPTS].any()


def test_no_group_at_all_makes_no_update(begin, tmp_path, capsys):
    built, trainer, state = begin(none, control__kind="kl", control__target=0.01)
    before = jax.device_get(state)
    state, scalars = trainer.iterate(state, built.prompt_stream(), 0)
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(state))
    assert np.isfinite(list(scalars.values())).all()
    assert not [name for name in scalars if name.startswith(("actor/", "gate/channel", "mismatch"))]
    assert scalars["resample/prompts_kept"] == scalars["batch/fill"] == 0
    assert scalars["resample/updates_skipped"] == 4 and scalars["frac_reward_zero_std"] == 1
    assert scalars["resample/prompts_drawn"] == 4 * PROMPTS
    assert 0 < scalars["reward/mean"] < 1


def test_a_run_without_any_group_says_so_and_ends(begin, tmp_path, capsys, monkeypatch):
    built, _, _ = begin(
        none,
        iterations=2,
        training__unpaid_iterations=0,
        control__kind="kl",
        control__target=0.01,
    )
    monkeypatch.setattr(loop, "evaluate", lambda *_, **__: loop.Measures({}, np.zeros(0)))
    _, state, _ = loop.train(built, tmp_path)
    assert int(state.step) == 0
    assert read_metrics(tmp_path)["resample/updates_skipped"].tolist() == [4, 4]
    lines = [line for line in capsys.readouterr().out.splitlines() if "no update" in line]
    assert lines == [
        f"iteration {k} makes no update: all rewards are equal in each of the 32 prompt groups "
        "drawn"
        for k in (1, 2)
    ]


def test_a_minibatch_without_a_group_is_passed_over(begin):
    """One group: one of two minibatches holds it, and the learning rate goes by updates made."""
    built, trainer, state = begin(
        lambda prompt, answer, text: float(prompt == chosen and zlib.crc32(text.encode())),
        resample=2,
        optimizer__schedule="linear",
    )
    chosen = built.examples[int(next(built.prompt_stream()).prompt_index[5])].prompt
    stream = built.prompt_stream()
    state, scalars = trainer.iterate(state, stream, 0)
    assert scalars["resample/prompts_kept"] == 1 and scalars["resample/updates_skipped"] == 2
    assert int(state.step) == 2 and scalars["actor/grad_norm"] > 0
    rates = [float(built.schedule(update)) for update in (0, 1)]
    assert scalars["actor/learning_rate"] == pytest.approx(np.mean(rates))


def test_a_later_iteration_compiles_nothing(begin):
    built, trainer, state = begin(some)
    stream = built.prompt_stream()
    state, first = trainer.iterate(state, stream, 0)
    with compilations() as later:
        for iteration in (1, 2):
            state, second = trainer.iterate(state, stream, iteration)
            assert second["batch/fill"] > 0
    assert later == [] and first["resample/prompts_drawn"] > PROMPTS


def test_an_interrupted_run_resumes_bitwise(begin, tmp_path, monkeypatch):
    built, _, _ = begin(some, iterations=3)
    monkeypatch.setattr(loop, "evaluate", lambda *_, **__: loop.Measures({}, np.zeros(0)))
    _, whole, _ = loop.train(built, tmp_path / "whole")
    with interrupted_at(1, monkeypatch):
        loop.train(built, tmp_path / "parts")
    _, parts, _ = loop.train(built, tmp_path / "parts")
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
    first, second = (read_metrics(tmp_path / name) for name in ("whole", "parts"))
    assert first["resample/prompts_drawn"].max() > PROMPTS and len(first["step"]) == 3
    for name, values in first.items():
        if not name.startswith(("timing/", "perf/")):
            np.testing.assert_array_equal(values, second[name], err_msg=name)
