"""Whose a run folder is: its config, version and plugins, and runs of earlier versions."""

import dataclasses
import json
import os
import pathlib
import shutil

import jax
import numpy as np
import pytest
import tiny

from fiberjax import advantages, experiment
from fiberjax.run import identity, inputs, loop, migrations
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


@pytest.mark.parametrize(
    ("gate", "unnamed"),
    [
        ("importance", ("pessimistic", "dual_clip", "recovery")),
        ("fiberpo", ("lift", "signs", "deviation", "budget_scale", "alpha", "upper_negative")),
        ("fiberpo_domain_bounded", ("signs", "deviation", "budget_scale", "alpha")),
    ],
)
def test_what_a_preset_did_not_name_was_as_it_is_named_today(gate, unnamed):
    today = json.loads(given(gate).to_json_best_effort())
    before = json.loads(json.dumps(today))
    for name in unnamed:
        del before["gate"][name]
    assert migrations.migrate(before, migrations.VERSION - 1) == today


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


@pytest.fixture
def reading(build, tmp_path):
    """An experiment over a file of rows and a model's folder, and the two; nothing is read."""
    rows, model = tmp_path / "rows.jsonl", tmp_path / "model"
    rows.write_text('{"prompt": "1+1=", "answer": "2"}\n')
    model.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors", "README.md"):
        (model / name).write_text(name)
    built = build()
    return dataclasses.replace(
        built,
        tasks=dataclasses.replace(built.tasks, file=str(rows)),
        model=dataclasses.replace(built.model, folder=str(model)),
    )


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("rows.jsonl", r"tasks\.file/.*rows\.jsonl has changed"),
        ("model/tokenizer.json", r"model\.folder/tokenizer\.json has changed"),
        ("model/model.safetensors", r"model\.folder/model\.safetensors has changed"),
        ("model/vocab.json", r"model\.folder/vocab\.json is new"),
    ],
)
def test_a_run_goes_on_over_the_files_that_it_was_begun_with(tmp_path, reading, name, told):
    folder, config = tmp_path / "run", given().to_json_best_effort()
    identity.claim(folder, reading, config)
    (tmp_path / "model" / "README.md").write_text("Nothing reads it.")
    identity.claim(folder, reading, config)
    before = (folder / "config.json").read_text()
    assert "README" not in before
    (tmp_path / name).write_text("another")
    with pytest.raises(ValueError, match=told) as error:
        identity.claim(folder, reading, config)
    assert len(str(error.value).splitlines()) == 1
    assert (folder / "config.json").read_text() == before


def test_a_missing_file_is_named(tmp_path, reading):
    identity.claim(tmp_path / "run", reading, given().to_json_best_effort())
    (tmp_path / "model" / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"model\.folder/tokenizer\.json is missing"):
        identity.claim(tmp_path / "run", reading, given().to_json_best_effort())


def test_a_run_without_digests_gets_them_and_says_so(tmp_path, reading, capsys):
    folder, config = tmp_path / "run", given().to_json_best_effort()
    identity.claim(folder, reading, config)
    saved = json.loads((folder / "config.json").read_text())
    first = saved.pop("inputs")
    (folder / "config.json").write_text(json.dumps(saved))
    identity.claim(folder, reading, config)
    assert "it has those of now: model.folder/config.json, " in capsys.readouterr().out
    assert json.loads((folder / "config.json").read_text())["inputs"] == first
    identity.claim(folder, reading, config)
    assert capsys.readouterr().out == ""


def test_a_large_file_is_read_again_where_size_or_time_is_another(tmp_path, monkeypatch):
    path = tmp_path / "weights"
    path.write_text("first")
    monkeypatch.setattr(inputs, "LARGE", 4)
    first = inputs.digest({"weights": path}, {})
    stat = path.stat()
    path.write_text("other")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert inputs.digest({"weights": path}, first) == first
    os.utime(path, ns=(0, 0))
    assert inputs.differences(first, inputs.digest({"weights": path}, first))
    monkeypatch.setattr(inputs, "LARGE", 6)
    assert inputs.differences(first, inputs.digest({"weights": path}, first))


@pytest.fixture
def left(tmp_path, build):
    """What a run left that was saved after iterations 1 and 2, and a call that claims it again."""
    config = given().to_json_best_effort()
    identity.claim(tmp_path, build(), config)
    for iteration in (1, 2):
        (tmp_path / "checkpoints" / str(iteration)).mkdir(parents=True)
    (tmp_path / "checkpoints.json").write_text('{"newest": 2}')
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    return lambda: identity.claim(tmp_path, build(), config)


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("lost", "told"),
    [
        (("checkpoints", "checkpoints.json"), r"has lost its checkpoints, and a run was here"),
        (("checkpoints/1", "checkpoints/2"), r"lost its checkpoints \(the newest was of iterat"),
        (("metrics.jsonl",), r"metrics\.jsonl is missing, which had iterations 1 to 2"),
        (("config.json",), r"config\.json is missing, which says whose the checkpoints"),
    ],
)
def test_a_folder_that_lost_something_is_not_begun_anew(left, tmp_path, lost, told):
    left()
    for name in lost:
        shutil.rmtree(tmp_path / name) if (tmp_path / name).is_dir() else (tmp_path / name).unlink()
    before = files(tmp_path)
    with pytest.raises(ValueError, match=told):
        left()
    assert files(tmp_path) == before


def test_what_can_be_done_without_is_said(left, tmp_path, capsys):
    shutil.rmtree(tmp_path / "checkpoints" / "2")
    left()
    assert "has lost checkpoint 2: the run goes on from 1" in capsys.readouterr().out
    (tmp_path / "metrics.jsonl").write_text("")
    left()
    assert "has no row of iteration 1" in capsys.readouterr().out
    (tmp_path / "metrics.jsonl").write_text("nonsense\n{}\n")
    with pytest.raises(ValueError, match="line 1 is not a row of metrics"):
        left()
