"""Whose a run folder is: its config, version and plugins, and runs of earlier versions."""

import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
import tiny

from fiberjax import advantages, experiment
from fiberjax.run import identity, loop, migrations
from fiberjax.run.metrics import read_metrics

OLD = pathlib.Path(__file__).parents[1] / "data" / "run_v0"


def given(gate="fiberpo_domain"):
    """What the command of the old run gives today."""
    config = tiny.get_config(gate)
    config.tasks.data_dir = "data"
    config.warm_start.directory = "warm_starts"
    config.warm_start.steps = 120
    config.checkpoint.every = 2
    config.advantage = "leave_one_out_max"
    return config


@pytest.fixture
def old(tmp_path, monkeypatch):
    """A copy of the old run, in the current folder, from where its paths count."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(OLD, "run")
    return pathlib.Path("run")


def paths(config, above=""):
    """The dotted paths of all options."""
    found = set()
    for name, value in config.items():
        here = f"{above}{name}"
        found |= paths(value, f"{here}.") if isinstance(value, dict) else {here}
    return found


def test_the_migrations_give_every_option_of_today():
    saved = json.loads((OLD / "config.json").read_text())
    assert "version" not in saved
    before = json.dumps(saved)
    migrated = migrations.migrate(saved, 0)
    today = json.loads(given().to_json_best_effort())
    assert paths(migrated) == paths(today)
    assert saved["advantage"] == "pass_at_k" and migrated["advantage"] == "leave_one_out_max"
    assert json.dumps(saved) == before
    # A config of today is left as it is.
    assert migrations.migrate(today, migrations.VERSION) == today


def test_a_run_of_an_earlier_version_goes_on_and_is_exported(old, capsys, monkeypatch):
    saved = (old / "config.json").read_text()
    config = identity.settle(old, given())
    built = experiment.from_config(config, jax.devices()[:1])
    assert built.estimate is advantages.leave_one_out_max
    monkeypatch.setattr(
        loop, "starting_params", None
    )  # What is in the checkpoint is not made again.
    loop.run(built, old, config.to_json_best_effort())
    assert (old / "config.json").read_text() == saved

    rows, before = (old / "metrics.jsonl").read_text(), (OLD / "metrics.jsonl").read_text()
    assert rows.startswith(before) and before.count("\n") == 2
    assert_as_before(read_metrics(old), read_metrics(OLD / "whole.jsonl"))
    assert "overall" in (old / "evaluation.md").read_text()
    built = experiment.from_config(identity.read_config(old), jax.devices()[:1])
    iteration, params = loop.saved_params(built, old)
    assert iteration == 4 and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


COURSE = ("reward/", "response_length/", "actor/grad_norm", "actor/update_norm")


def assert_as_before(found, expected):
    """The course is what the old version's own program made of the whole run, but for rounding."""
    np.testing.assert_array_equal(found["step"], expected["step"])
    names = [name for name in expected if name.startswith(COURSE)]
    assert len(names) > 8 and (expected["actor/grad_norm"] > 0.1).all()
    for name in names:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-3, err_msg=name)


def test_new_options_are_taken_as_they_were_and_said_in_one_line(old, capsys):
    config = given()
    config.writers = ("jsonl",)
    settled = identity.settle(old, config)
    assert list(settled.writers) == ["jsonl", "tensorboard"]
    (line,) = capsys.readouterr().out.splitlines()
    assert "run was begun by an earlier version and goes on as it did then: " in line
    assert "config.writers (['jsonl', 'tensorboard'] there, ['jsonl'] here)" in line
    assert "config.seed" not in line


def test_options_that_the_earlier_version_had_must_be_the_same(old):
    config = given()
    config.seed, config.writers = 1, ("jsonl",)
    with pytest.raises(
        ValueError, match=r"another config; .*config\.seed \(0 there, 1 here\)\."
    ) as error:
        identity.settle(old, config)
    assert "writers" not in str(error.value)
    config = given()
    with config.ignore_type():
        config.gate.levels.trajectory.budget = None
    with pytest.raises(ValueError, match=r"config\.gate\.levels\.trajectory\.budget"):
        identity.settle(old, config)


def test_an_earlier_version_s_run_takes_what_may_change_in_its_own_form(old, build, capsys):
    before = json.loads((old / "config.json").read_text())
    config = given()
    config.gate.levels.trajectory.budget = (0.3, 0.3)
    config.writers = ("jsonl",)  # Which it did not have.
    settled = identity.settle(old, config)
    assert list(settled.gate.levels.trajectory.budget) == [0.3, 0.3]
    assert list(settled.writers) == ["jsonl", "tensorboard"]
    identity.claim(old, build(), settled.to_json_best_effort())
    assert "from iteration 3: gate.levels.trajectory.budget" in capsys.readouterr().out
    saved = json.loads((old / "config.json").read_text())
    assert len(saved.pop("changes")) == 1
    before["gate"]["levels"]["trajectory"]["budget"] = [0.3, 0.3]
    assert saved == before and "version" not in saved and "writers" not in saved
    identity.settle(old, config)
    assert "from iteration" not in capsys.readouterr().out


def test_a_run_of_this_version_or_none_leaves_the_config_given(tmp_path, build):
    config = given()
    assert identity.settle(tmp_path, config) is config
    identity.claim(tmp_path, build(), config.to_json_best_effort())
    config.seed = 1
    assert identity.settle(tmp_path, config) is config
    with pytest.raises(ValueError, match=r"config\.seed \(0 there, 1 here\)"):
        identity.claim(tmp_path, build(), config.to_json_best_effort())


def test_a_saved_config_carries_its_version(tmp_path, build):
    config = given()
    identity.claim(tmp_path, build(), config.to_json_best_effort())
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["version"] == migrations.VERSION >= 1
    assert json.loads(config.to_json_best_effort()).items() <= saved.items()
    assert identity.read_config(tmp_path).to_json_best_effort() == config.to_json_best_effort()


@pytest.mark.parametrize("version", [migrations.VERSION + 1, -1, "1", True])
def test_a_version_of_the_future_is_refused(tmp_path, version):
    (tmp_path / "config.json").write_text(json.dumps({"version": version}))
    with pytest.raises(ValueError, match=rf"it is of version {version!r}; this program reads 0 to"):
        identity.read_config(tmp_path)


def test_what_is_no_config_of_a_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no config\.json of a run"):
        identity.read_config(tmp_path)
    for text in ("{", "[]", "{}"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=r"config\.json is not the config of a run"):
            identity.read_config(tmp_path)


def test_a_run_with_a_changed_plugin_is_refused(tmp_path, build):
    built = dataclasses.replace(build(), plugin_digests={"mine.py": "aa", "other.py": "bb"})
    config = given().to_json_best_effort()
    identity.claim(tmp_path, built, config)
    identity.claim(tmp_path, built, config)
    changed = dataclasses.replace(built, plugin_digests={"mine.py": "aa", "other.py": "cc"})
    with pytest.raises(ValueError, match=r"another other\.py: .*\(digest bb there, cc here\)"):
        identity.claim(tmp_path, changed, config)
