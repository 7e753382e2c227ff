"""A run in this process: what one call gives, how it is interrupted, what it resumes."""

import json
import pathlib
import signal

import numpy as np
import pytest
import tiny

import fiberjax as fj
from fiberjax.run import migrations
from fiberjax.run.metrics import read_metrics
from fiberjax.run.notebook import load_config
from fiberjax.run.trainer import Trainer

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def interrupts_arrive():
    """What starts in the background of a shell ignores interrupts, the tests too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def config(make_config):
    config = make_config()
    config.iterations = 3
    config.checkpoint.every = 100
    return config


def test_an_interrupted_run_is_saved_and_the_same_call_finishes_it(
    config, one_device, tmp_path, monkeypatch
):
    iterate, seen = Trainer.iterate, []

    def interrupted(self, state, stream, iteration, factor):
        seen.append(iteration)
        if seen == [0, 1]:
            signal.raise_signal(signal.SIGINT)
        return iterate(self, state, stream, iteration, factor)

    monkeypatch.setattr(Trainer, "iterate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fj.run_experiment(config, tmp_path / "run", devices=one_device)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    # What it had just begun to draw is left.
    assert list(read_metrics(tmp_path / "run")["step"]) == [1]
    run = fj.run_experiment(config, str(tmp_path / "run"), devices=one_device)
    assert seen == [0, 1, 1, 2]
    assert run.directory == tmp_path / "run"
    assert list(run.metrics()["step"]) == [1, 2, 3]
    assert np.isfinite(run.metrics()["reward/mean"]).all()
    assert {row.domain for row in run.table.rows} == {*run.experiment.domain_names, "overall"}
    assert (run.directory / "evaluation.md").read_text() == run.table.to_markdown()


def test_another_config_is_refused_in_the_same_folder(config, one_device, tmp_path):
    saved = json.loads(config.to_json_best_effort())
    saved |= {"version": migrations.VERSION, "plugin_digests": {}}
    (tmp_path / "config.json").write_text(json.dumps(saved))
    config.seed = 7
    with pytest.raises(ValueError, match=r"config\.seed \(0 there, 7 here\)"):
        fj.run_experiment(config, tmp_path, devices=one_device)


def test_a_config_is_loaded_as_the_command_line_does(tmp_path):
    path = str(ROOT / "configs" / "quickstart.py")
    for name in (path, f"{path}:gspo"):
        ours, theirs = load_config(name), tiny.from_command_line(config=name)
        assert ours.to_json_best_effort() == theirs.to_json_best_effort()
    with pytest.raises(ValueError, match=r"config 'none\.py' does not exist"):
        load_config("none.py:gspo")
    with pytest.raises(ValueError, match="gate preset 'gpso' does not exist"):
        load_config(f"{path}:gpso")
    (tmp_path / "empty.py").write_text("config = 1\n")
    with pytest.raises(ValueError, match="defines no function get_config"):
        load_config(tmp_path / "empty.py")
    (tmp_path / "plain.py").write_text("def get_config():\n    return 1\n")
    with pytest.raises(ValueError, match="get_config: too many positional arguments"):
        load_config(f"{tmp_path / 'plain.py'}:gspo")
