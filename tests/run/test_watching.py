"""A run that is watched: nothing of it changes, its best is kept, and it knows when to stop."""

import dataclasses
import re
import types

import jax
import numpy as np
import pytest
from interruption import interrupted_at

from fiberjax import experiment
from fiberjax.run import checkpoints, evaluation, identity, loop, rollouts, watching
from fiberjax.run.metrics import describe, read_metrics
from fiberjax.run.trainer import Trainer
from fiberjax.tasks.environments import Apart, Turns
from fiberjax.tasks.rewards import Limits, Target

UNWATCHED = {"evaluation__every": 0, "keep__every": 0, "keep__show_every": 0}
MEASURES = ("mean@2", "pass@2")


@pytest.fixture
def quick(build):
    """Builds the tiny experiment with hardly a checkpoint."""

    def make(**values):
        return build(**{"checkpoint__every": 100, "evaluation__every": 2} | values)

    return make


def kept_files(folder):
    return {file.name: file.read_bytes() for file in (folder / "samples").iterdir()}


def steps(folder):
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir())


def test_watching_changes_nothing_of_a_run(quick, tmp_path, capsys):
    _, plain, _ = loop.train(quick(**UNWATCHED), tmp_path / "plain")
    assert "samples" not in capsys.readouterr().out
    assert not (tmp_path / "plain" / "samples").exists()
    _, watched, _ = loop.train(quick(evaluation__every=1), tmp_path / "watched")
    printed = capsys.readouterr().out
    assert re.findall(r"samples, iteration (\d)", printed) == ["2", "4"]
    for x, y in zip(jax.tree.leaves(plain), jax.tree.leaves(watched), strict=True):
        np.testing.assert_array_equal(x, y)
    before, after = (read_metrics(tmp_path / name) for name in ("plain", "watched"))
    np.testing.assert_array_equal(before["step"], [1, 2, 3, 4])
    np.testing.assert_array_equal(after["step"], [0, 1, 2, 3, 4])
    for name in before.keys() - {"step"}:
        if not name.startswith(("timing/", "perf/")):
            np.testing.assert_array_equal(before[name], after[name][1:], err_msg=name)
    assert not [name for name in before if name.startswith("evaluation/")]
    assert [name for name in after if not describe(name).meaning] == ["step"]
    assert (after["timing/watching_s"][1:] > 0).all()
    for measure in MEASURES:
        for domain in ("modular", "reverse", "sort", "overall"):
            name = f"evaluation/{measure}/{domain}"
            low, value, high = (after[f"{name}{end}"] for end in ("/low", "", "/high"))
            assert (low <= value).all() and (value <= high).all() and (low < high).all()
    found = rollouts.read(tmp_path / "watched").to_pylist()
    assert {row["iteration"] for row in found if row["split"] == "train"} == {1, 2, 3, 4}
    assert {row["iteration"] for row in found if row["split"] == "held_out"} == {0, 1, 2, 3, 4}
    assert len([row for row in found if row["split"] == "held_out"]) == 5 * 3 * 2


def test_a_resumed_run_is_watched_alike_and_evaluates_nothing_twice(quick, tmp_path, monkeypatch):
    built = quick(evaluation__every=2, keep__show_every=1)
    built = dataclasses.replace(built, checkpoint=dataclasses.replace(built.checkpoint, every=2))
    config_json = "{}"
    monkeypatch.setattr(identity, "claim", lambda *arguments: None)
    evaluated = []

    def counted(*arguments, iteration=0, **options):
        evaluated.append(iteration)
        return evaluation.evaluate(*arguments, iteration=iteration, **options)

    monkeypatch.setattr(loop, "evaluate", counted)
    monkeypatch.setattr(watching, "evaluate", counted)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    loop.run(built, whole, config_json)
    # Before, while, and after with all prompts.
    assert evaluated == [0, 2, 4, 4]

    evaluated.clear()
    with interrupted_at(3, monkeypatch):
        loop.run(built, parts, config_json)
    assert "000003-train.parquet" in kept_files(parts) and steps(parts) == [2]
    loop.run(built, parts, config_json)
    assert evaluated == [0, 2, 4, 4]
    assert kept_files(whole) == kept_files(parts)
    first, second = read_metrics(whole), read_metrics(parts)
    assert first.keys() == second.keys()
    for name in first:
        if not name.startswith(("timing/", "perf/")):
            np.testing.assert_array_equal(first[name], second[name], err_msg=name)
    assert (whole / "evaluation.json").read_text() == (parts / "evaluation.json").read_text()
    # What is kept at the end is of the evaluation of all prompts; the curve's is of a few.
    last = [row for row in rollouts.read(whole).to_pylist() if row["iteration"] == 4]
    assert [row["split"] for row in last[:6]] == ["held_out"] * 6


class Scripted:
    """Gives the iterations of a run the metrics of a list, without training anything."""

    def __init__(self, monkeypatch, values):
        self.done = []

        def iterate(_, state, stream, iteration, factor):
            self.done.append(iteration + 1)
            state = state.replace(step=state.step + 1) if hasattr(state, "replace") else state
            scalars = dict.fromkeys(
                (
                    "actor/ppo_kl",
                    "actor/entropy",
                    "frac_reward_zero_std",
                    "response_length/clip_ratio",
                ),
                0.0,
            )
            scalars |= {"reward/mean": values[iteration], "actor/grad_norm": 1.0}
            return state, scalars

        monkeypatch.setattr(Trainer, "iterate", iterate)


VALUES = [0.1, 0.5, 0.4, 0.6, 0.3, 0.2, 0.1, 0.0]
REWARD = {"checkpoint__best": "reward/mean", "iterations": 8, **UNWATCHED}


def test_the_best_checkpoint_is_kept_beside_the_newest(quick, tmp_path, monkeypatch):
    Scripted(monkeypatch, VALUES)
    built = quick(checkpoint__keep=1, **REWARD)
    loop.train(built, tmp_path)
    assert steps(tmp_path) == [4, 8]
    assert loop.saved_params(built, tmp_path, "best")[0] == 4
    assert loop.saved_params(built, tmp_path)[0] == 8


def test_the_smaller_may_be_the_best(quick, tmp_path, monkeypatch):
    Scripted(monkeypatch, VALUES)
    built = quick(checkpoint__keep=1, checkpoint__best_mode="min", **REWARD | {"iterations": 6})
    loop.train(built, tmp_path)
    assert steps(tmp_path) == [1, 6]


def test_a_run_without_a_metric_has_no_best_checkpoint(quick, tmp_path, monkeypatch):
    Scripted(monkeypatch, VALUES)
    built = quick(checkpoint__keep=1, **REWARD | {"checkpoint__best": ""})
    loop.train(built, tmp_path)
    assert steps(tmp_path) == [8]
    with pytest.raises(ValueError, match=r"no best checkpoint: config\.checkpoint\.best named no"):
        loop.saved_params(built, tmp_path, "best")


def test_a_run_stops_early_and_stays_so_until_its_rule_changes(
    make_config, one_device, tmp_path, monkeypatch, capsys
):
    def run(**stop):
        config = make_config()
        config.iterations, config.checkpoint.every = 8, 100
        config.evaluation.every = config.keep.every = 0
        config.stop.update({"metric": "reward/mean", "patience": 3} | stop)
        built = experiment.from_config(config, one_device)
        loop.run(built, tmp_path, config.to_json_best_effort())
        return capsys.readouterr().out

    scripted = Scripted(monkeypatch, VALUES)
    monkeypatch.setattr(loop, "report", lambda *arguments: None)
    told = run()
    line = (
        "stops early after iteration 7: config.stop: reward/mean was best at 0.6 after iteration 4,"
        " and 3 values since are not better by 0"
    )
    assert line in told.splitlines()
    assert scripted.done == list(range(1, 8)) and steps(tmp_path) == [7]
    told = run()
    assert scripted.done == list(range(1, 8))
    assert f"{tmp_path} {line.replace('stops', 'stopped')}" in told.splitlines()
    # Another patience goes on from where the rule was, and is written into the folder.
    run(patience=4)
    assert scripted.done == list(range(1, 9)) and steps(tmp_path) == [7, 8]
    assert identity.read_config(tmp_path).stop.patience == 4


def test_what_is_followed_is_known_before_anything_compiles(quick):
    for values in (
        {"checkpoint__best": "evaluation/mean@2/overall"},
        {"stop__metric": "evaluation/pass@2/sort"},
        {"stop__metric": "reward/reverse", "evaluation__every": 0},
    ):
        quick(**values)
    with pytest.raises(ValueError, match=r"config\.checkpoint\.best must be '' or one of reward"):
        quick(checkpoint__best="evaluation/mean@4/overall")
    with pytest.raises(ValueError, match=r"stop\.metric .*config\.evaluation\.every .* it is 0"):
        quick(stop__metric="evaluation/mean@2/overall", evaluation__every=0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"evaluation__curve_prompts": 0}, "evaluation: curve_prompts must be positive"),
        ({"evaluation__temperature": 0.0}, "temperature = 0 gives one and the same completion"),
        ({"evaluation__every": -1}, "evaluation: every must be at least 0"),
        ({"evaluation__top_p": 0.0}, r"evaluation: top_p must be in \(0, 1\]"),
        ({"keep__samples": 0}, "keep: samples must be positive"),
        ({"keep__show_every": -1}, "keep: show_every must be at least 0"),
        ({"checkpoint__best_mode": "most"}, "best_mode must be one of max, min"),
    ],
)
def test_bad_options_are_refused(build, values, message):
    with pytest.raises(ValueError, match=message):
        build(**values)


def test_a_full_folder_is_said_once(quick, tmp_path, monkeypatch, capsys):
    Scripted(monkeypatch, VALUES)
    built = quick(keep__megabytes=1e-6)
    loop.train(built, tmp_path)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "megabytes" in line]
    assert line == "samples/ holds 1e-06 MB (config.keep.megabytes): no more are kept"
    assert list(kept_files(tmp_path)) == ["000000-held_out.parquet"]


def test_the_curve_begins_with_the_prompts_that_it_goes_on_with():
    values = {"mean@1": np.array([1.0, 0.0, 1.0, 0.0, 0.5])}
    measured = evaluation.Measures(values, np.array([0, 0, 0, 1, 1]))
    point = evaluation.curve_point(measured.first(2), ("a", "b"))
    assert point["evaluation/mean@1/a"] == 0.5 and point["evaluation/mean@1/b"] == 0.25
    assert point["evaluation/mean@1/overall"] == 0.375
    rewards = {"mean@1": np.array([4.0, 2.0, 3.0])}
    point = evaluation.curve_point(evaluation.Measures(rewards, np.array([0, 0, 2])), "abc")
    assert point["evaluation/mean@1/a/high"] > 10  # Student's t of two values.
    assert point["evaluation/mean@1/c/low"] == -np.inf and "evaluation/mean@1/b" not in point


def test_checkpoints_name_their_best(build, tmp_path):
    built = build()
    state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), built.abstract_state())
    with checkpoints.Checkpoints(tmp_path / "checkpoints", keep=1) as saved:
        with pytest.raises(ValueError, match="holds no best checkpoint"):
            saved.best()
        for iteration, best in ((1, None), (2, 2), (3, 2), (4, 2)):
            saved.save(iteration, state, {"some": "thing"}, best)
        assert saved.best() == 2
    assert steps(tmp_path) == [2, 4]


def test_an_environment_that_fails_is_told_once():
    told = []
    environment = Apart("own", Target("own", "", "own"), Limits())
    environment._pool.trouble = "KeyError\x1b"
    run = types.SimpleNamespace(turns=Turns(environment, 2, 8), train=())
    watch = watching.Watch(run, None, None, types.SimpleNamespace(print=told.append))
    for iteration in (3, 4):
        watch.failures(iteration, {"turns/failed": 2.0})
    (line,) = told
    assert line.startswith("iteration 3: the environment failed in 2 episodes, which end there and")
    assert line.endswith("(own: KeyError\u241b)")
