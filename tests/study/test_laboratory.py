"""The laboratory: runs are the library's, repeat exactly, and share what is compiled."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import tiny
from compilations import compilations
from ml_collections import ConfigDict

from configs import quickstart
from experiments.study.figures import FIGURES
from experiments.study.laboratory import Laboratory
from experiments.study.rounding import rounded
from experiments.study.settings import BASE, TODAY, Replay, Setting
from fiberjax import experiment
from fiberjax.run.trainer import Trainer
from fiberjax.run.warm_start import starting_params
from fiberjax.tasks import loading


def tiny_option(path):
    value = tiny.get_config()
    for name in TODAY.get(path, path).split("."):
        value = value[name]
    return value.to_dict() if isinstance(value, ConfigDict) else value


# What the study pins is too large for a test: the tiny config's own, and smaller.
SMALL = {path: tiny_option(path) for path in BASE} | {
    "iterations": 2,
    "optimizer.learning_rate": 1e-3,
    "warm_start.steps": 100,
    "tasks.domains": {
        "reverse": {"min_length": 2, "max_length": 3, "letters": "abcde"},
        "sort": {"min_length": 2, "max_length": 3, "symbols": "01234"},
    },
}
BUDGET = "gate.levels.trajectory.budget"
BIG = ("jit(step)", "jit(log_probs)", "jit(_sample)", "jit(make)")


@pytest.fixture(scope="module")
def laboratory(scratch):
    def make(gate):
        config = tiny.get_config(gate)
        config.tasks.data_dir = str(scratch / "data")
        config.warm_start.directory = str(scratch / "warm_starts")
        return config

    return Laboratory(make, jax.devices()[:1])


def setting(**changes):
    given = {"method": "ours", "gate": "fiberpo_domain", "overrides": SMALL}
    return Setting(**given | changes)


def told(record):
    return {name: of for name, of in record.items() if "seconds" not in name}


@pytest.fixture(scope="module")
def first(laboratory):
    return laboratory.run(setting())


@pytest.mark.long
def test_a_run_is_the_librarys_own(laboratory, first, one_device):
    config = laboratory.config(setting())
    built = experiment.from_config(config, one_device)
    trainer, stream = Trainer(built, None), built.prompt_stream()
    state = built.fresh_state(starting_params(built))
    for iteration in range(2):
        state, own = trainer.iterate(state, stream, iteration)
        for name, values in first["metrics"].items():
            assert values[iteration] == pytest.approx(own[name], rel=1e-4, abs=1e-7), name
    assert first["metrics"]["actor/learning_rate"] == pytest.approx([1e-3] * 2)
    assert [row["iteration"] for row in first["held_out"]] == [0, 2]


def test_a_second_time_is_the_same_and_nothing_is_compiled_again(laboratory, first):
    others = [
        setting(seed=1),
        setting(overrides=SMALL | {"optimizer.learning_rate": 3e-3}),
        setting(overrides=SMALL | {BUDGET: 0.001, "training.epochs": 1}),
        setting(staleness=1),
    ]
    with compilations() as seen:
        records = [laboratory.run(other) for other in others]
        again = laboratory.run(setting())
    assert not set(seen) & set(BIG)
    assert told(again) == told(first)
    for record in records:
        assert record["metrics"]["actor/ppo_kl_k3"] != first["metrics"]["actor/ppo_kl_k3"]
    assert records[1]["metrics"]["actor/learning_rate"] == pytest.approx([3e-3] * 2)
    # One warm start for all: other seeds sample other prompts from it.
    assert first["held_out"][0] != records[0]["held_out"][0]
    assert first["held_out"][0] == records[1]["held_out"][0]


def test_stale_batches_keep_the_log_probabilities_of_the_policy_that_sampled(
    laboratory, first, monkeypatch
):
    params, batches, update = [], [], Trainer.update

    def watched(self, state, collected, *rest):
        params.append(jax.device_get(state.params))
        batches.append(jax.device_get(collected.batches))
        return update(self, state, collected, *rest)

    monkeypatch.setattr(Trainer, "update", watched)
    stale = setting(staleness=2, overrides=SMALL | {"iterations": 4})
    laboratory.run(stale)
    assert len(batches) == 4
    # Compiled already: tokens -> the log-probabilities of the answers under some parameters.
    log_probs = next(iter(laboratory._trainers.values()))._log_probs
    moved = 0.0
    for iteration, (batch, *_) in enumerate(batches):
        rows, mask = (batch.tokens, batch.positions, batch.segment_ids), batch.layout.mask
        sampled = log_probs(params[max(0, iteration - 2)], rows, mask, np.float32(1.0))()[0]
        np.testing.assert_allclose(sampled[mask], batch.old_log_prob[mask], atol=1e-5)
        now = log_probs(params[iteration], rows, mask, np.float32(1.0))()[0]
        moved = np.abs(np.asarray(now)[mask] - batch.old_log_prob[mask]).max()
    assert moved > 1e-2


def test_noise_makes_the_sampler_disagree_and_the_evaluation_does_not_have_it(laboratory, first):
    noisy = laboratory.run(setting(noise=0.3))
    gap = "mismatch/log_prob_abs_mean"
    assert first["metrics"][gap][0] < 1e-5 < 0.05 < noisy["metrics"][gap][0]
    assert noisy["held_out"][0] == first["held_out"][0]


def test_weights_are_rounded_for_the_sampler_alone(laboratory, first):
    coarse = laboratory.run(setting(rounding="int8"))
    gap = "mismatch/log_prob_abs_mean"
    assert first["metrics"][gap][0] < 1e-5 < 1e-3 < coarse["metrics"][gap][0]
    assert coarse["held_out"][0] == first["held_out"][0]


@pytest.mark.parametrize(("to", "units"), [("int8", 127), ("float8", 448)])
def test_a_channel_is_rounded_by_its_largest(to, units):
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(2, 6, 5)).astype(np.float32)
    kernel[1, :, 3] = 0
    table = rng.normal(size=(7, 4)).astype(np.float32)
    params = {
        "embed": {"kernel": table},
        "layers": {"q": {"kernel": kernel}, "norm": {"scale": kernel[:, 0]}},
        "router": {"kernel": kernel},
    }
    found = rounded(params, to)
    for old, new, inputs in (
        (kernel, found["layers"]["q"]["kernel"], 1),
        (table, found["embed"]["kernel"], 1),
    ):
        new, largest = np.asarray(new), np.abs(old).max(axis=inputs, keepdims=True)
        there = np.abs(old) == largest
        np.testing.assert_allclose(new[there], old[there], rtol=1e-6)
        # A step of int8 is one unit; of e4m3 an eighth of the value, above its subnormals.
        step = (
            largest / units if to == "int8" else np.maximum(np.abs(old) / 8, largest / units / 512)
        )
        assert (np.abs(new - old) <= 0.501 * step).all()
        assert (new != old).any()
    np.testing.assert_array_equal(found["layers"]["norm"]["scale"], kernel[:, 0])
    np.testing.assert_array_equal(found["router"]["kernel"], kernel)


def test_a_replay_takes_the_steps_of_another_run(laboratory, first):
    replay = Replay(setting(seed=1), "sequence")
    with compilations() as seen:
        still = laboratory.run(setting(replay=replay), [1.0, 0.0])
        same = laboratory.run(setting(replay=replay), [1.0, 1.0])
    assert not set(seen) & set(BIG)
    assert same["metrics"] == first["metrics"]
    assert still["metrics"]["actor/learning_rate"] == pytest.approx([1e-3, 0.0])
    # Without a step after the first iteration, all updates of the second see one policy.
    kl = "actor/ppo_kl_k3"
    assert still["metrics"][kl][0] == first["metrics"][kl][0] > 0
    assert still["metrics"][kl][1] < 1e-6 < first["metrics"][kl][1]
    with pytest.raises(ValueError, match="shares go with a setting that replays another"):
        laboratory.run(setting(replay=replay))


def test_a_run_that_is_not_finite_is_recorded(laboratory, monkeypatch):
    update = Trainer.update

    def broken(self, state, collected, iteration, factor):
        state, scalars = update(self, state, collected, iteration, factor)
        if iteration == 1:
            scalars |= {"actor/skipped_updates": 1.0, "actor/grad_norm": float("nan")}
        return state, scalars

    monkeypatch.setattr(Trainer, "update", broken)
    record = laboratory.run(setting())
    assert record["collapsed"] == "step 2 is not finite: 1 updates left out"
    assert [row["iteration"] for row in record["held_out"]] == [0, 2]
    assert len(record["metrics"]["reward/mean"]) == 2
    assert record["metrics"]["actor/grad_norm"][1] is None
    json.dumps(record, allow_nan=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gate": "fibrepo"}, "gate preset 'fibrepo' does not exist"),
        ({"overrides": {"training.step_sharing": 1}}, "config.training.step_sharing does not"),
        ({"overrides": {"gate.levels.turn.budget": 1}}, "config.gate.levels.turn.budget does not"),
        ({"overrides": SMALL | {"optimizer.schedule": "linear"}}, "must have a constant schedule"),
        ({"overrides": SMALL | {"training.kl_coefficient": 0.1}}, "no reference policy is kept"),
        ({"overrides": SMALL | {"lora.rank": 2}}, "all parameters are trained, from one start"),
    ],
)
def test_what_cannot_be_run_is_refused(laboratory, changes, message):
    with pytest.raises(ValueError, match=message):
        laboratory.run(setting(**changes))


def test_programs_are_shared_only_where_they_may_be(laboratory, first):
    trainer = next(iter(laboratory._trainers.values()))
    other = dataclasses.replace(
        trainer.experiment, step=dataclasses.replace(trainer.experiment.step, weighting="token")
    )
    with pytest.raises(ValueError, match="the experiments differ in 'step', which is compiled"):
        trainer.again(other, None)
    training = dataclasses.replace(trainer.experiment.training, minibatches=4)
    with pytest.raises(ValueError, match="differ in their minibatches"):
        trainer.again(dataclasses.replace(trainer.experiment, training=training), None)


def test_every_run_of_every_figure_is_one_that_an_experiment_takes(one_device):
    """One of those alike in all but the numbers of gate and optimizer."""
    kinds = {}
    for name, figure in FIGURES.items():
        for given in figure(1, lambda setting: None):
            own = {
                path: of
                for path, of in given.options.items()
                if not path.startswith(("gate.", "optimizer."))
            }
            kinds.setdefault((given.gate, str(own)), (name, given))
    lab = Laboratory(quickstart.get_config)
    for name, given in kinds.values():
        built = experiment.from_config(lab.config(given), one_device, loading.named_domains)
        assert built.iterations == given.options["iterations"], name
