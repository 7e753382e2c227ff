"""One iteration: what is reused, what is credited, and that every option runs beside the others."""

import dataclasses
import json

import chex
import jax
import numpy as np
import pytest
import served
from compilations import compilations

from fiberjax import experiment, options, seeds
from fiberjax.diagnostics import GLOBAL_REGIMES
from fiberjax.objective import Max, Mean, Min, Sum
from fiberjax.run import evaluation, warm_start
from fiberjax.run.measured import Paid, joined, rollout_metrics
from fiberjax.run.metrics import METRICS, describe
from fiberjax.run.trainer import Trainer
from fiberjax.run.trainer import shuffled as shuffled_rewards
from fiberjax.train.rollout import Sampler

pytestmark = pytest.mark.looked


def trainer_of(built):
    """The trainer of an experiment, its first state, and its reference."""
    start = warm_start.starting_params(built)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, built.abstract_state())
    state = built.fresh_state(jax.tree.map(lambda leaf: leaf.copy(), start))
    return Trainer(built, start), jax.device_put(state, shardings)


def test_the_schedule_reuses_every_minibatch_in_every_epoch(build):
    built = build(training__epochs=3)
    trainer, state = trainer_of(built)
    step, seen = trainer._step, []

    def watched(state, batch, knobs, *more):
        state, metrics, log_prob = step(state, batch, knobs, *more)
        seen.append((id(batch), {name: of.value for name, of in jax.device_get(metrics).items()}))
        return state, metrics, log_prob

    trainer._step = watched
    stream = built.prompt_stream()
    for iteration in range(2):
        seen.clear()
        state, scalars = trainer.iterate(state, stream, iteration)
        assert scalars["reward/std"] > 0
        assert int(state.step) == 6 * (iteration + 1)
        batches = [batch for batch, _ in seen]
        assert len(batches) == 6 and len(set(batches)) == 2
        for epoch in range(3):
            assert len(set(batches[2 * epoch : 2 * epoch + 2])) == 2
        # Old log-probabilities are those of the policy before the first update, and stay: ratios
        # leave 1 with the first update that moves the policy.
        moved = False
        for _, metrics in seen:
            assert (metrics["is_ratio/max"] - metrics["is_ratio/min"] > 1e-3) == moved
            moved |= bool(metrics["actor/update_norm"] > 0)
        assert moved
    assert step._cache_size() == 1


@pytest.mark.parametrize("edge", ["update", "direct"])
def test_the_first_update_alone_is_at_the_policy_that_was_scored(build, edge):
    mismatch = {"training__mismatch": "none"} if edge == "direct" else {}
    built = build(training__epochs=2, training__edge=edge, **mismatch)
    trainer, state = trainer_of(built)
    step, seen = trainer._step, []

    def watched(state, batch, knobs, base, fresh):
        seen.append(bool(fresh))
        return step(state, batch, knobs, base, fresh)

    trainer._step, stream = watched, built.prompt_stream()
    early = trainer.collect(state.params, stream, 0)
    state, _ = trainer.iterate(state, stream, 1)
    assert seen == [edge == "update", False, False, False]
    trainer.update(state, early, 2)  # Of an earlier policy.
    assert not any(seen[4:])


def test_old_log_probabilities_of_the_sampler_are_checked(build):
    """They train alike, up to rounding; the trainer scores one micro-batch, and stops at a gap."""
    options = {"training__micro_batches": 2, "training__step_share": "none"}
    options["optimizer__name"] = "sgd"  # The others make much of rounding.
    found = {}
    for who in ("trainer", "sampler"):
        trainer, state = trainer_of(build(training__old_log_probs=who, **options))
        rows = []
        for name in ("_log_probs", "_log_probs_of_few"):
            inner = getattr(trainer, name)
            setattr(trainer, name, lambda *of, i=inner, r=rows: (r.append(len(of[2])), i(*of))[1])
        state, scalars = trainer.iterate(state, trainer.experiment.prompt_stream(), 0)
        found[who] = jax.device_get(state.params), scalars, rows
    whole, few = found["trainer"], found["sampler"]
    parts = 2 * build().training.minibatches
    assert len(whole[2]) == len(few[2]) == 1 and whole[2][0] == parts * few[2][0]
    chex.assert_trees_all_close(few[0], whole[0], atol=1e-5)
    assert 0 < few[1]["mismatch/log_prob_abs_mean"] < 1e-5
    trainer, state = trainer_of(
        build(training__old_log_probs="sampler", training__old_log_probs_gap=1e-12, **options)
    )
    with pytest.raises(ValueError, match=r"nats a token from the trainer's in the mean: expected"):
        trainer.iterate(state, trainer.experiment.prompt_stream(), 0)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"training__mismatch": "truncate"}, r"a mismatch \('truncate'\)"),
        ({"training__router_replay": True}, r"router_replay \(True\)"),
        ({"rollout__lag": 1, "training__edge": "direct"}, "rollout.lag = 1"),
    ],
)
def test_scores_that_are_needed_are_not_the_samplers(build, options, named):
    with pytest.raises(ValueError, match=named):
        build(training__old_log_probs="sampler", **options)


def test_a_second_iteration_and_a_second_batch_compile_nothing(build):
    built = build(
        "apc",  # States too.
        training__kl_coefficient=0.1,
        training__mismatch="truncate",
        evaluation__batch=2,
    )
    trainer, state = trainer_of(built)
    stream = built.prompt_stream()
    with compilations() as first:
        state, _ = trainer.iterate(state, stream, 0)
    assert first.count("jit(step)") == 1
    with compilations() as second:
        state, _ = trainer.iterate(state, stream, 1)
    assert second == []
    with compilations() as evaluated:
        table = evaluation.evaluate(built, state.params, "held out")
    assert len(table.domain) > 2 * built.evaluation.batch
    # Its first batch may find what earlier tests have compiled.
    assert len(set(evaluated)) == len(evaluated) and set(evaluated) <= {
        *("jit(_sample)", "jit(row_keys)", "jit(broadcast_in_dim)")
    }
    with compilations() as again:
        evaluation.evaluate(built, state.params, "held out")
    assert again == []


def test_an_evaluation_of_as_many_rows_is_drawn_by_the_same_program(build):
    """At another temperature; of as many rows as an iteration, in its window."""
    built = build(
        window__completion=7,
        rollout__prompts=6,
        rollout__samples=2,
        evaluation__batch=4,
        evaluation__samples=3,
        evaluation__temperature=0.5,
    )
    trainer, state = trainer_of(built)
    with compilations() as drawn:
        trainer.collect(state.params, built.prompt_stream(), 0)
    assert drawn.count("jit(_sample)") == 1
    with compilations() as evaluated:
        evaluation.evaluate(built, state.params, "held out")
    assert "jit(_sample)" not in evaluated


def test_every_metric_is_written_and_described(build):
    built = build(
        training__kl_coefficient=0.1,
        training__entropy_coefficient=0.01,
        training__step_share="importance",
        training__mismatch="truncate",
        training__target_kl=1.0,
        control__kind="anneal",
        rollout__top_p=0.9,
        rollout__resample=2,
        rewards__truncated="zero",
    )
    trainer, state = trainer_of(built)
    _, scalars = trainer.iterate(state, built.prompt_stream(), 0)
    described = {name: describe(name) for name in scalars}
    assert [name for name, metric in described.items() if not metric.meaning] == []
    # What is watched of a run beside its iterations is written by the loop; turns need someone who
    # answers: test_calculator.py.
    # Of steps and budgets one is controlled: test_control.py.
    others = ("evaluation/", "timing/watching", "turns/", "actor/step_factor")
    watched = {name for name in METRICS if name.startswith(others)}
    assert set(METRICS.values()) - set(described.values()) == {METRICS[name] for name in watched}


def test_metrics_of_updates_are_over_all_their_tokens():
    first = {"mean": Mean(6.0, 2.0), "max": Max(1.0), "min": Min(1.0), "sum": Sum(1.0)}
    second = {"mean": Mean(0.0, 10.0), "max": Max(3.0), "min": Min(3.0), "sum": Sum(3.0)}
    pending = [jax.tree.map(np.float32, of) for of in (first, second, second)]
    assert joined(pending) == pytest.approx({"mean": 6 / 22, "max": 3, "min": 1, "sum": 7})


def test_beyond_the_target_kl_an_iteration_makes_no_further_update(build):
    built = build(
        training__epochs=3,
        training__minibatches=1,
        training__entropy_coefficient=0.1,  # A gradient whatever the rewards.
        training__target_kl=1e-9,
        optimizer__schedule="linear",
    )
    trainer, state = trainer_of(built)
    stream = built.prompt_stream()
    for iteration in range(2):
        state, scalars = trainer.iterate(state, stream, iteration)
        assert scalars["actor/stopped_updates"] == 2 and int(state.step) == iteration + 1
        # That of the one update that was made: the schedule has seen no other.
        assert scalars["actor/learning_rate"] == pytest.approx(built.schedule(iteration))


def test_the_learning_rate_logged_is_that_of_the_updates(build):
    built = build(
        training__epochs=1,
        training__minibatches=1,
        training__entropy_coefficient=0.1,  # A gradient whatever the rewards.
        optimizer__name="sgd",
        optimizer__b1=0.0,
        optimizer__clip_norm=0.0,
        optimizer__schedule="linear",
        optimizer__warmup_steps=2,
        iterations=6,
    )
    trainer, state = trainer_of(built)
    stream, rates = built.prompt_stream(), []
    for iteration in range(4):
        state, scalars = trainer.iterate(state, stream, iteration)
        rate, norm = scalars["actor/learning_rate"], scalars["actor/grad_norm"]
        assert norm > 0 and rate * norm == pytest.approx(scalars["actor/update_norm"], rel=1e-4)
        rates.append(rate)
    np.testing.assert_allclose(rates, 3e-3 * np.array([0, 1 / 2, 1, 3 / 4]), rtol=1e-6)
    # Of several updates, the mean: numbers 4 and 5.
    trainer, state = trainer_of(build(optimizer__warmup_steps=8, training__epochs=1))
    state = dataclasses.replace(state, step=state.step + 4)
    _, scalars = trainer.iterate(state, stream, 2)
    assert scalars["actor/learning_rate"] == pytest.approx(3e-3 * 4.5 / 8)


@pytest.mark.parametrize("mismatch", ["truncate", "mask"])
@pytest.mark.parametrize("truncation", [{"rollout__top_p": 0.4}, {"rollout__top_k": 2}])
def test_truncated_sampling_is_no_mismatch(build, mismatch, truncation):
    built = build(training__mismatch=mismatch, warm_start__steps=0, **truncation)
    trainer, state = trainer_of(built)
    step, weights = trainer._step, []

    def watched(state, batch, knobs, *more):
        weights.append(np.asarray(batch.sample_weight)[np.asarray(batch.layout.mask)])
        return step(state, batch, knobs, *more)

    trainer._step = watched
    _, scalars = trainer.iterate(state, built.prompt_stream(), 0)
    np.testing.assert_allclose(np.concatenate(weights), 1, atol=1e-4)
    assert scalars["mismatch/log_prob_abs_max"] < 1e-4
    # What was left out is a number of its own; this policy is nearly uniform.
    assert 0 < scalars["rollout/kept_mass/min"] < scalars["rollout/kept_mass/mean"] < 0.9


def test_the_edges_of_a_sampler_that_disagrees(build):
    """Every token is less likely to the sampler, by an eighth of a nat in one row, else a half."""
    built = build(warm_start__steps=0, rollout__top_p=0.9)
    trainer, state = trainer_of(built)
    rollouts = trainer._sampler(
        trainer._sampler.read(state.params),
        next(built.prompt_stream()),
        samples=built.rollout.samples,
        stream=seeds.TRAINING,
        step=0,
    )
    gap = np.where(np.arange(len(rollouts.mask))[:, None] == 3, 0.125, 0.5).astype(np.float32)
    shifted = dataclasses.replace(rollouts, sampler_log_prob=rollouts.sampler_log_prob - gap)
    everywhere = np.ones(len(rollouts.mask), bool)

    def fields(**options):
        training = dataclasses.replace(built.training, mismatch_cap=1.3, **options)
        trainer.experiment = dataclasses.replace(built, training=training)
        made = trainer._batches(state.params, shifted, rollouts.reward, everywhere)
        assert made.metrics["mismatch/log_prob_abs_max"] == pytest.approx(0.5, abs=1e-4)
        of = [
            (b.old_log_prob, b.sample_weight, b.layout.mask) for b in jax.device_get(made.batches)
        ]
        return [np.concatenate([x[i][x[2]] for x in of]) for i in (0, 1)]

    update, ones = fields()
    direct, also_ones = fields(edge="direct")
    np.testing.assert_array_equal([ones, also_ones], 1)
    moved = update - direct
    assert 0 < np.sum(np.abs(moved - 0.125) < 1e-4) == np.sum(moved < 0.3)
    np.testing.assert_allclose(moved, np.where(moved < 0.3, 0.125, 0.5), atol=1e-4)
    same, kept = fields(mismatch="reject")
    np.testing.assert_array_equal(same, update)
    np.testing.assert_array_equal(kept, moved < 0.3)


def test_without_truncation_all_mass_is_kept(build):
    trainer, state = trainer_of(build(warm_start__steps=0))
    _, scalars = trainer.iterate(state, trainer.experiment.prompt_stream(), 0)
    assert scalars["rollout/kept_mass/min"] == scalars["rollout/kept_mass/mean"] == 1


def test_an_iteration_on_what_a_server_drew(build, tmp_path):
    """Its log-probabilities are the trainer's, with the weights of every iteration."""
    with served.served(build().policy, 16) as (url, serving):
        built = build(
            rollout__engine="http",
            training__mismatch="truncate",
            warm_start__steps=0,
            server__url=url,
            server__model="policy",
            server__folder=str(tmp_path / "weights"),
            server__dtype="float32",
            server__concurrency=4,
        )
        trainer, state = trainer_of(built)
        stream = built.prompt_stream()
        for iteration in range(2):
            state, scalars = trainer.iterate(state, stream, iteration)
            assert scalars["mismatch/log_prob_abs_max"] < 1e-4
            assert "rollout/wasted_steps" not in scalars
        reloads = [body for path, body in serving.asked if path == "/update_weights_from_disk"]
        assert reloads == [{"model_path": str(tmp_path / "weights")}] * 2
        seeds_sent = [body["seed"] for path, body in serving.asked if path == "/v1/completions"]
        assert len(set(seeds_sent)) == len(seeds_sent) == 2 * 8 * 4


def test_steps_of_rows_that_had_ended_are_counted(build):
    trainer, state = trainer_of(build(warm_start__steps=0))
    stream = trainer.experiment.prompt_stream()
    rollouts = trainer._sampler(
        trainer._sampler.read(state.params),
        next(stream),
        samples=trainer.experiment.rollout.samples,
        stream=seeds.TRAINING,
        step=0,
    )
    length = rollouts.mask.sum(axis=1)
    paid = Paid(rollouts.reward, rollouts.reward, np.ones(len(length), bool))
    scalars = rollout_metrics(
        *(trainer.experiment.mesh, [rollouts], paid), trainer.experiment.domain_names
    )
    expected = 1 - length.mean() / length.max()
    assert scalars["rollout/wasted_steps"] == pytest.approx(expected) and expected > 0


def test_one_temperature_is_sampled_and_scored_with(build):
    built = build(warm_start__steps=0)
    knobs = built.knobs._replace(temperature=np.float32(0.6))
    trainer, state = trainer_of(dataclasses.replace(built, knobs=knobs))
    _, scalars = trainer.iterate(state, built.prompt_stream(), 0)
    assert scalars["mismatch/log_prob_abs_max"] < 1e-4


def test_every_phase_draws_from_a_stream_of_its_own(build, monkeypatch):
    built = build(curriculum__profile_samples=1, warm_start__steps=0)
    trainer, state = trainer_of(built)
    stream, seen, draw = built.prompt_stream(), [], Sampler.begin

    def watched(self, *arguments, stream, step, **options):
        seen.append((stream, step))
        return draw(self, *arguments, stream=stream, step=step, **options)

    monkeypatch.setattr(Sampler, "begin", watched)
    evaluation.evaluate(built, state.params, "held out")
    evaluation.profile(built, state.params, stream)
    for iteration in range(2):
        state, _ = trainer.iterate(state, stream, iteration)
    steps = {of: [step for which, step in seen if which == of] for of, _ in seen}
    assert steps == {
        seeds.EVALUATION: list(range(12 // 4)),  # Held-out prompts by the batch,
        seeds.PROFILE: list(range(120 // 8)),  # and prompts to train on.
        seeds.TRAINING: [0, 1],
    }


def test_a_group_of_one_would_learn_nothing_and_is_refused(build):
    with pytest.raises(ValueError, match=r"samples = 1, but config\.advantage = 'grpo' compares"):
        build(rollout__samples=1)
    build(rollout__samples=1, advantage="reinforce_plus_plus")


def test_shuffled_rewards_reach_the_updates_and_nothing_else(build):
    credited, scalars = [], []
    for shuffle in (False, True, True):
        built = build(rollout__shuffle_rewards=shuffle, advantage="dr_grpo")
        trainer, state = trainer_of(built)
        estimate = trainer._estimate

        def watched(reward, *of, estimate=estimate):
            credited.append(np.asarray(reward))
            return estimate(reward, *of)

        trainer._estimate = watched
        stream = built.prompt_stream()
        scalars.append(trainer.iterate(state, stream, 0)[1] | {"stream": stream.get_state()})
    true, shuffled, again = credited
    assert 0 < true.mean() < 1
    assert not np.array_equal(shuffled, true)
    np.testing.assert_array_equal(np.sort(shuffled), np.sort(true))
    np.testing.assert_array_equal(shuffled, again)
    told = [name for name in scalars[0] if name.startswith(("reward/", "frac_", "stream"))]
    assert len(told) > 4
    for name in told:
        assert scalars[0][name] == scalars[1][name]
    assert scalars[0]["actor/pg_loss"] != scalars[1]["actor/pg_loss"]
    later = shuffled_rewards(true, seed=0, iteration=1)
    assert not np.array_equal(later, shuffled)


def test_the_curriculum_learns_the_true_pass_rates(build):
    built = build(rollout__shuffle_rewards=True)
    trainer, state = trainer_of(built)
    sampler, drawn = trainer._sampler, []

    class Watched:
        read, begin = staticmethod(sampler.read), staticmethod(sampler.begin)

        def pay(self, rollouts):
            drawn.append(sampler.pay(rollouts))
            return drawn[-1]

    trainer._sampler = Watched()
    stream = built.prompt_stream()
    trainer.iterate(state, stream, 0)
    seen, rewards = drawn[0].prompts.prompt_index, drawn[0].reward.reshape(-1, 4)
    assert len(set(seen)) == len(seen) and np.ptp(rewards) > 0
    np.testing.assert_allclose(stream.pass_rate[seen], rewards.mean(axis=1))
    assert np.isnan(np.delete(stream.pass_rate, seen)).all()


@pytest.mark.parametrize("mismatch", ["truncate", "mask"])
def test_all_terms_run_together(build, mismatch):
    built = build(
        "apc",
        training__kl_coefficient=0.1,
        training__entropy_coefficient=0.01,
        training__mismatch=mismatch,
        training__micro_batches=2,
        training__weighting="token",
        rollout__top_p=0.9,
    )
    trainer, state = trainer_of(built)
    stream = built.prompt_stream()
    state, first = trainer.iterate(state, stream, 0)
    _, second = trainer.iterate(state, stream, 1)
    assert np.isfinite(list(second.values())).all()
    assert first["actor/kl_reference"] > 0 and second["actor/kl_reference"] > 0


def test_a_nesting_of_ones_own_is_trained_and_logged(make_config, one_device, tmp_path):
    rows = [
        {"prompt": f"{a}+{b}=", "answer": str(a + b), "topic": f"by {a % 3}", "domain": "sums"}
        for a in range(10)
        for b in range(8)
    ]
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = make_config("fiberpo_group")
    config.tasks.file = str(path)
    config.warm_start.steps = 0
    config.levels = (("prompt", ""), ("topic", "topic"), ("domain", "domain"))
    config.gate.order = ("trajectory", "topic")
    config.gate.levels = {level: {"budget": 0.01} for level in config.gate.order}
    built = experiment.from_config(config, one_device)
    assert built.levels.num_cells == {"topic": 3, "domain": 1}
    trainer, state = trainer_of(built)
    _, scalars = trainer.iterate(state, built.prompt_stream(), 0)
    assert {name for name in scalars if name.startswith("gate/channel/")} == {
        f"gate/channel/{level}/{sign}{quantile}"
        for level in ("trajectory", "topic")
        for sign in ("plus", "minus")
        for quantile in ("", "/median", "/p99")
    }
    assert sum(scalars[f"gate/regime/{name}"] for name in GLOBAL_REGIMES) == pytest.approx(1)


def test_the_cadence_of_diagnostics_changes_nothing_of_the_training(build):
    # All logits at once: by blocks, steps with and without log-probabilities among their results
    # are rounded apart in the last bit.
    looked = build(diagnostics__every=3, training__chunk=0)
    start = warm_start.starting_params(looked)
    trainer, _ = trainer_of(looked)
    other = dataclasses.replace(looked, diagnostics=options.Diagnostics(1))
    each = trainer.again(other, start)  # By the programs of the first.
    step = build(diagnostics__every=0, training__chunk=0).step
    assert step == dataclasses.replace(looked.step, log_prob=False) != looked.step
    off = dataclasses.replace(looked, diagnostics=options.Diagnostics(0), step=step)
    never, _ = trainer_of(off)
    with pytest.raises(ValueError, match="'step'"):
        trainer.again(never.experiment, start)
    ends = []
    for one in (trainer, each, never):
        state = jax.device_put(
            one.experiment.fresh_state(jax.tree.map(lambda leaf: leaf.copy(), start)),
            jax.tree.map(lambda leaf: leaf.sharding, one.experiment.abstract_state()),
        )
        stream, rows = one.experiment.prompt_stream(), []
        with compilations() as compiled:
            for iteration in range(2):
                state, scalars = one.iterate(state, stream, iteration)
                timed = ("timing/", "perf/")
                rows.append({k: v for k, v in scalars.items() if not k.startswith(timed)})
        ends.append((jax.device_get(state), rows, compiled))
    (state, rows, compiled), (same, told, again), (other, least, fewer) = ends
    for found in (same, other):
        for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(found), strict=True):
            np.testing.assert_array_equal(a, b)
    # What is looked at stands beside the rest, which is the same; off compiles nothing of it.
    assert "jit(diagnose)" in compiled and "jit(diagnose)" not in (*again, *fewer)
    assert "jit(step)" in compiled and "jit(step)" not in again
    assert rows[0] == told[0]
    assert rows[1] == least[1] and rows[1].items() < told[1].items()
    assert rows[0].keys() - least[0].keys() == told[1].keys() - rows[1].keys()
    assert "gate/clip_fraction/token" not in rows[1] and "actor/ppo_kl" in rows[1]
