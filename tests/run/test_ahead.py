"""Rollouts of an earlier policy: which one, what is exact about them, and that they are resumed."""

import dataclasses
import zlib

import jax
import numpy as np
import pytest
from compilations import compilations
from interruption import interrupted_at

from fiberjax import experiment
from fiberjax.parallel import mesh
from fiberjax.plans import plan, topologies
from fiberjax.run import kept_files, loop, measured
from fiberjax.run.interrupts import Interrupted
from fiberjax.run.metrics import read_metrics
from fiberjax.run.trainer import Trainer
from fiberjax.run.warm_start import random_params
from fiberjax.train.rollout import Sampler

LAG, ITERATIONS = 2, 5


def some(prompt, answer, text):
    return float(zlib.crc32((prompt + text).encode()) % 2)


@pytest.fixture
def begin(make_config, devices):
    """A lagging experiment under a reward that differs within groups, and its first state."""

    def make(count=1, **values):
        config = make_config()
        options = {
            "iterations": ITERATIONS,
            "warm_start.steps": 0,
            "training.mismatch": "truncate",
            "rollout.lag": LAG,
            "optimizer.learning_rate": 1e-2,
            "keep.rollouts": "every 1",
        }
        options |= {name.replace("__", "."): value for name, value in values.items()}
        config.update_from_flattened_dict(options)
        built = experiment.from_config(config, devices[:count])
        train = tuple(dataclasses.replace(domain, verify=some) for domain in built.train)
        built = dataclasses.replace(built, train=train)
        return built, built.fresh_state(random_params(built.policy, built.mesh, seed=0))

    return make


@pytest.fixture
def quick(monkeypatch):
    """Runs without evaluations."""
    monkeypatch.setattr(loop, "evaluate", lambda *_, **__: loop.Measures({}, np.zeros(0)))


def copied(params):
    return jax.tree.map(lambda leaf: leaf.copy(), params)


def test_each_batch_is_of_the_policy_of_so_many_iterations_ago(begin):
    built, state = begin()
    trainer, stream, versions, seen = Trainer(built, None), built.prompt_stream(), [], []
    prepared = trainer._prepared

    def watched(params, drawn, scored):
        seen.append(drawn)
        return prepared(params, drawn, scored)

    trainer._prepared = watched
    for iteration in range(ITERATIONS):
        versions.append(copied(state.params))
        state, scalars = trainer.iterate(state, stream, iteration)
        assert scalars["rollout/lag"] == min(iteration, LAG)
        # What waits is whole before a checkpoint may be made: no reward is on its way.
        waiting = [drawn.iteration for drawn in trainer.ahead]
        assert waiting == list(range(iteration + 1, min(iteration + 1 + LAG, ITERATIONS)))
        assert all(np.isfinite(drawn.rollouts.reward).all() for drawn in trainer.ahead)
    for iteration, drawn in enumerate(seen):
        assert (drawn.iteration, drawn.version) == (iteration, max(0, iteration - LAG))
        gaps = []
        for params in versions:
            scored = trainer._score(params, drawn.rollouts, drawn.present)
            gap = np.abs(scored.own()[0] - drawn.rollouts.sampler_log_prob)
            gaps.append(gap[drawn.rollouts.mask].max())
        assert gaps[drawn.version] < 1e-4 < 1e-2 < np.delete(gaps, drawn.version).min()


def test_old_log_probabilities_are_the_trainer_s_and_the_rest_is_the_behaviour_s(begin):
    built, state = begin(training__mismatch_cap=1.05, diagnostics__every=1)
    trainer, stream, batches, step = Trainer(built, None), built.prompt_stream(), [], None
    step = trainer._step

    def watched(state, batch, knobs, *more):
        state, metrics, log_prob = step(state, batch, knobs, *more)
        batches.append((batch, metrics["is_ratio/max"].value - metrics["is_ratio/min"].value))
        return state, metrics, log_prob

    trainer._step = watched
    scalars = [{}] * ITERATIONS
    for iteration in range(2):
        batches.clear()
        state, scalars[iteration] = trainer.iterate(state, stream, iteration)
        # The first update reads ratios of 1 however old the rollouts are.
        assert batches[0][1] < 1e-4 < batches[-1][1]
    weight = np.concatenate([np.ravel(of.sample_weight) for of, _ in batches])
    assert weight.max() == np.float32(1.05) and weight.min() < 0.95
    fresh, stale = (of["mismatch/effective_sample_size"] for of in scalars[:2])
    assert fresh == pytest.approx(1, abs=1e-6) and 0.1 < stale < 0.999


def test_the_behaviour_s_effective_sample_size_is_kish_s(one_device):
    device_mesh = mesh.make_mesh(dict.fromkeys(mesh.AXES, 1), one_device)
    log_ratio = np.log(np.array([[2.0, 1.0], [3.0, 9.0]]))
    mask = np.array([[True, True], [True, False]])
    found = measured.mismatch_metrics(device_mesh, log_ratio - 5, np.full((2, 2), -5.0), mask)
    assert found["mismatch/effective_sample_size"] == pytest.approx(6**2 / (3 * 14))
    assert found["mismatch/log_prob_abs_mean"] == pytest.approx(np.log(6) / 3)


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"rollout__resample": 2, "control__kind": "anneal"}, marks=pytest.mark.long),
        pytest.param({"lora__rank": 2}, marks=pytest.mark.long),
        pytest.param(
            {
                "policy__num_experts": 4,
                "policy__experts_per_token": 2,
                "training__router_replay": True,
            },
            marks=pytest.mark.long,
        ),
    ],
    ids=["plain", "resampled", "adapters", "routes"],
)
def test_an_interrupted_run_resumes_bitwise(begin, tmp_path, monkeypatch, quick, options):
    built, _ = begin(**options)
    _, whole, _ = loop.train(built, tmp_path / "whole")
    for iteration in (1, 3):
        with interrupted_at(iteration, monkeypatch):
            loop.train(built, tmp_path / "parts")
    _, parts, _ = loop.train(built, tmp_path / "parts")
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
    first, second = (read_metrics(tmp_path / name) for name in ("whole", "parts"))
    assert first["rollout/lag"].tolist() == [0, 1, 2, 2, 2]
    for name, values in first.items():
        if not name.startswith(("timing/", "perf/")):
            np.testing.assert_array_equal(values, second[name], err_msg=name)
    for folder in ("samples", "rollouts"):
        files = [
            {path.name: path.read_bytes() for path in (tmp_path / of / folder).glob("*")}
            for of in ("whole", "parts")
        ]
        assert files[0] == files[1] and len(files[0]) == ITERATIONS
    versions = [
        set(
            kept_files.load_rollouts(tmp_path / "parts", number).table["policy_version"].to_pylist()
        )
        for number in range(1, ITERATIONS + 1)
    ]
    assert versions == [{0}, {0}, {0}, {1}, {2}]


def test_an_iteration_that_is_given_up_keeps_what_waits(begin, tmp_path, monkeypatch, quick):
    built, _ = begin(checkpoint__every=100, iterations=4)
    _, whole, _ = loop.train(built, tmp_path / "whole")
    prepared = Trainer._prepared

    def interrupted(self, params, drawn, scored):
        if drawn.iteration == 2:  # The next prompts are drawn already.
            raise Interrupted("SIGTERM")
        return prepared(self, params, drawn, scored)

    with monkeypatch.context() as patched, pytest.raises(Interrupted, match="iteration 2 is saved"):
        patched.setattr(Trainer, "_prepared", interrupted)
        loop.train(built, tmp_path / "parts")
    _, parts, _ = loop.train(built, tmp_path / "parts")
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
    assert read_metrics(tmp_path / "parts")["rollout/lag"].tolist() == [0, 1, 2, 2]


def test_a_lag_that_is_given_up_is_worked_off(begin, tmp_path, monkeypatch, quick):
    built, _ = begin()
    with interrupted_at(3, monkeypatch):
        loop.train(built, tmp_path)
    given_up = dataclasses.replace(built.rollout, lag=0)
    loop.train(dataclasses.replace(built, rollout=given_up), tmp_path)
    # Two batches wait, of the policies of iterations 1 and 2.
    assert read_metrics(tmp_path)["rollout/lag"].tolist() == [0, 1, 2, 2, 2]
    more = dataclasses.replace(built, iterations=ITERATIONS + 2)
    loop.train(more, tmp_path)
    # Beyond an end nothing waits.
    assert read_metrics(tmp_path)["rollout/lag"].tolist() == [0, 1, 2, 2, 2, 0, 1]


def test_completions_are_rewarded_while_the_updates_run(begin, monkeypatch):
    built, state = begin(rollout__lag=1)
    trainer, stream, told = Trainer(built, None), built.prompt_stream(), []

    def telling(name, function):
        return lambda *arguments, **options: (told.append(name), function(*arguments, **options))[1]

    for name in ("begin", "pay"):
        monkeypatch.setattr(Sampler, name, telling(name, getattr(Sampler, name)))
    for name in ("_score", "_step"):
        setattr(trainer, name, telling(name, getattr(trainer, name)))
    state, _ = trainer.iterate(state, stream, 0)
    told.clear()
    with compilations() as compiled:
        state, _ = trainer.iterate(state, stream, 1)
    assert told == ["_score", "begin", *["_step"] * 4, "pay"] and compiled == []


def test_without_a_lag_scores_are_begun_before_rewards(begin, monkeypatch):
    built, state = begin(rollout__lag=0)
    trainer, told, pay = Trainer(built, None), [], Sampler.pay
    score = trainer._score
    trainer._score = lambda *of: (told.append("score"), score(*of))[1]
    monkeypatch.setattr(Sampler, "pay", lambda *of: (told.append("pay"), pay(*of))[1])
    stream = built.prompt_stream()
    for iteration in range(2):
        state, _ = trainer.iterate(state, stream, iteration)
    assert told == ["score", "pay"] * 2


@pytest.mark.parametrize(
    ("training", "sampling", "fsdp", "exact"),
    [
        (1, 1, 1, True),
        pytest.param(4, 4, 2, True, marks=pytest.mark.long),
        pytest.param(3, 1, 1, False, marks=pytest.mark.long),
    ],
    ids=["two devices", "eight, split and gathered", "one to three"],
)
def test_devices_of_their_own_sample_the_same(begin, training, sampling, fsdp, exact):
    """On a mesh of its own, and on the mesh that trains, with the same lag."""
    shapes = {"rollout__lag": 1}
    if fsdp > 1:
        shapes |= {"policy__vocab_size": 64, "policy__num_kv_heads": 2}
    shapes |= {"mesh__data": -1, "mesh__fsdp": fsdp, "mesh__tensor": fsdp, "iterations": 3}
    if training == 3:
        shapes |= {"rollout__prompts": 6, "rollout__samples": 4}
    results = []
    for apart in (0, sampling):
        built, state = begin(training + apart, rollout__devices=apart, **shapes)
        assert built.sampling_mesh.size == (apart or training)
        assert built.mesh.size == training
        trainer, stream, told = Trainer(built, None), built.prompt_stream(), []
        for iteration in range(3):
            state, scalars = trainer.iterate(state, stream, iteration)
            told.append(scalars["reward/mean"])
        results.append((told, jax.device_get(state.params)))
    (told, shared), (others, apart) = results
    assert told == others and np.ptp(told) > 0
    for a, b in zip(jax.tree.leaves(shared), jax.tree.leaves(apart), strict=True):
        if exact:
            np.testing.assert_array_equal(a, b)
        else:
            np.testing.assert_allclose(a, b, rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"training__mismatch": "none"}, r"lag = 2 trains on .* 'uncorrected', to train on it as"),
        ({"rollout__lag": 0, "rollout__devices": 1}, r"devices = 1 sample while others .* lag = 0"),
        ({"rollout__devices": 2}, r"2 devices that sample .* leave none of 2 to train"),
        ({"rollout__lag": -1}, r"config\.rollout.*lag must be at least 0"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused(begin, options, message):
    with pytest.raises(ValueError, match=message):
        begin(2, mesh__data=-1, **options)


def test_a_split_is_no_plan(begin):
    built, _ = begin(2, rollout__devices=1, mesh__data=-1)
    with pytest.raises(ValueError, match=r"config\.rollout\.devices = 1 is not planned"):
        plan.make_plan(built, topologies.parse_topology("v5e:1x1"), [])


def test_what_is_declined_has_weights_of_one(begin):
    for mismatch, edge in (("truncate", "update"), ("uncorrected", "update"), ("none", "direct")):
        built, state = begin(training__mismatch=mismatch, training__edge=edge)
        trainer, stream = Trainer(built, None), built.prompt_stream()
        drawn, _ = trainer._draw(state.params, stream, 0, version=0, score=False)()
        other = random_params(built.policy, built.mesh, seed=1)
        made = trainer._prepared(other, drawn, None)
        weight = np.concatenate([np.ravel(batch.sample_weight) for batch in made.batches])
        assert np.all(weight == 1) == (mismatch != "truncate")
