"""The whole run: what it leaves, what it repeats, and what it survives."""

import dataclasses
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import test_docs
from interruption import interrupted_at

import fiberjax as fj
from fiberjax import experiment
from fiberjax.run import (
    checkpoints,
    evaluation,
    identity,
    kept_files,
    loop,
    migrations,
    warm_start,
)
from fiberjax.run.metrics import read_metrics
from fiberjax.run.trainer import Trainer
from fiberjax.train.rollout import Sampler
from fiberjax.train.update import make_step

ROOT = pathlib.Path(__file__).parents[2]
ITERATIONS = 4
UPDATES = 4  # 2 epochs of 2 minibatches.


BUDGET = ("--config.gate.levels.trajectory.budget=(0.1,0.08)",)


def command(folder, scratch, *arguments, config="tests/tiny.py", budget=BUDGET):
    """Starts `experiments/train.py` on the tiny config as a user does; the process."""
    return subprocess.Popen(
        [
            *(sys.executable, "experiments/train.py", f"--config={config}"),
            f"--config.tasks.data_dir={scratch / 'data'}",
            f"--config.warm_start.directory={scratch / 'warm_starts'}",
            "--config.evaluation.every=2",
            *budget,
            f"--workdir={folder}",
            *arguments,
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(ROOT)},
    )


def finish(process):
    """Waits for a process; what it printed."""
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out


@pytest.fixture(scope="session")
def finished(scratch):
    """The folder of a run from the command line that nothing interrupted, and what it printed."""
    folder = scratch / "finished"
    return folder, finish(command(folder, scratch, "--trace_iteration=3"))


def untimed(folder):
    """A run's metrics, timings aside."""
    columns = read_metrics(folder)
    return {
        name: values
        for name, values in columns.items()
        if not name.startswith(("timing/", "perf/"))
    }


def assert_same_run(a, b):
    first, second = untimed(a), untimed(b)
    assert first.keys() == second.keys()
    for name, values in first.items():
        np.testing.assert_array_equal(values, second[name], err_msg=name)
    assert (a / "evaluation.json").read_text() == (b / "evaluation.json").read_text()
    for kept in ("samples", "rollouts"):
        files = [{p.name: p.read_bytes() for p in of.glob(f"{kept}/*")} for of in (a, b)]
        assert files[0] == files[1] != {}
    built = experiment.from_config(identity.read_config(a), jax.devices()[:1])
    last = [newest(built, folder) for folder in (a, b)]
    assert last[0].iteration == last[1].iteration == ITERATIONS
    assert last[0].host == last[1].host
    assert_equal(last[0].state, last[1].state)


def newest(built, folder):
    """The newest checkpoint of a run."""
    with checkpoints.Checkpoints(folder / "checkpoints", keep=9) as saved:
        return saved.restore(built.abstract_state())


def assert_equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.slow
def test_what_a_run_leaves(finished):
    folder, printed = finished
    rows = untimed(folder)
    np.testing.assert_array_equal(rows["step"], np.arange(ITERATIONS + 1))
    trained = {name: values[1:] for name, values in rows.items()}
    for name in ("reward/mean", "actor/grad_norm", "actor/entropy", "mismatch/log_prob_abs_max"):
        assert np.isfinite(trained[name]).all(), name
    assert (trained["mismatch/log_prob_abs_max"] < 1e-4).all()
    assert trained["reward/mean"].max() > 0 and trained["actor/grad_norm"].max() > 0
    assert list(folder.glob("events.*.tfevents.*"))
    assert len(list(folder.glob("samples/*.parquet"))) == 4 + 3  # Of iterations and evaluations.
    assert "samples, iteration 2" in printed
    assert len(list(folder.glob("trace/plugins/profile/*/*.xplane.pb"))) == 1
    assert len(list((folder / "plots").glob("*.png"))) > 5
    table = (folder / "evaluation.md").read_text()
    for name in ("modular", "reverse", "sort", "overall", "mean@2", "pass@2"):
        assert name in table and name in printed
    assert "\r" not in printed and "\x1b" not in printed  # No bars where nobody watches.
    config = json.loads((folder / "config.json").read_text())
    assert config["gate"]["levels"]["trajectory"]["budget"] == [0.1, 0.08]
    assert config["version"] == migrations.VERSION and config["plugin_digests"] == {}


@pytest.mark.slow
def test_nothing_is_compiled_after_the_first_iteration(finished):
    first, *later = read_metrics(finished[0])["timing/compile_s"][1:]
    assert first > 0 and not any(later)


@pytest.mark.slow
def test_any_checkpoint_is_read_by_its_number(finished):
    """The policy before an iteration gives the log-probs that the iteration kept as old."""
    folder = finished[0]
    assert kept_files.kept_iterations(folder) == [2, ITERATIONS]
    kept = fj.load_rollouts(folder)
    # Onto two devices, which the run did not have.
    found = fj.load_policy(folder, ITERATIONS - 1, devices=jax.devices()[:2])
    assert found.iteration == ITERATIONS - 1 and found.config.keep.rollouts == "every 2, last 1"
    assert found.experiment.mesh.size == 2
    np.testing.assert_allclose(found.log_prob(kept), kept.old_log_prob, atol=1e-4)
    # Batches do not divide over eight: the first alone.
    last = fj.load_policy(folder)
    assert last.iteration == ITERATIONS and last.experiment.mesh.size == 1
    assert np.abs(kept.with_log_prob(last.log_prob(kept)).log_ratio).max() > 1e-3
    with pytest.raises(ValueError, match="holds no checkpoint of iteration 1; there are 3, 4"):
        fj.load_policy(folder, 1)
    with pytest.raises(ValueError, match="iteration must be a number, 'best' or None; got '3'"):
        fj.load_policy(folder, "3")
    with pytest.raises(ValueError, match="holds no best checkpoint"):
        fj.load_policy(folder, "best")
    with pytest.raises(ValueError, match=r"holds no config.json of a run"):
        fj.load_policy(folder / "samples")


@pytest.mark.slow
def test_a_killed_run_ends_where_the_other_did(finished, scratch):
    folder = scratch / "killed"
    process = command(folder, scratch)
    rows = folder / "metrics.jsonl"
    while process.poll() is None and not (rows.exists() and rows.read_text().count("\n") >= 2):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (folder / "evaluation.json").exists()
    finish(command(folder, scratch))
    assert_same_run(folder, finished[0])


@pytest.mark.long
@pytest.mark.slow
def test_one_that_is_asked_to_end_is_saved_and_alone_in_its_folder_until_then(finished, scratch):
    folder = scratch / "asked"
    process = command(folder, scratch)
    rows = folder / "metrics.jsonl"
    while process.poll() is None and not (rows.exists() and rows.read_text().count("\n") >= 2):
        time.sleep(0.02)
    process.send_signal(signal.SIGSTOP)  # It waits for the second one to be refused.
    second = command(folder, scratch)
    _, err = second.communicate()
    assert second.returncode == 1 and len(err.splitlines()) == 1, err
    assert f"is in use by another run: host {socket.gethostname()}, process {process.pid}, " in err
    process.send_signal(signal.SIGCONT)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    assert process.returncode == 75 and len(err.splitlines()) == 1, err
    assert re.match(r"asked to end \(SIGTERM\): .* saved.*, and the same command goes on", err)
    saved = checkpoints.newest(folder / "checkpoints")
    assert saved >= 1 and read_metrics(folder)["step"].max() == saved
    assert not (folder / "run.lock").exists()
    finish(command(folder, scratch))
    assert_same_run(folder, finished[0])


@pytest.mark.slow
def test_a_run_is_repeated_from_its_folder(finished, scratch):
    folder = scratch / "again"
    start = [sys.executable, "experiments/train.py"]
    again = [*start, f"--from_run={finished[0]}", f"--workdir={folder}"]
    environment = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(again, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"repeats {finished[0]}\n")
    assert_same_run(folder, finished[0])
    (first,) = json.loads((folder / "run.json").read_text())["starts"]
    assert first["iteration"] == 0 and first["command"][1:] == again[2:]


def test_a_run_that_ends_at_a_nan_says_so_in_one_line(scratch):
    lost = ("--config.optimizer.name=adamw", "--config.optimizer.learning_rate=3e38")
    lost += ("--config.optimizer.weight_decay=100.0", "--config.optimizer.warmup_steps=0")
    process = command(scratch / "lost", scratch, *lost)
    _, told = process.communicate()
    assert process.returncode == 1 and "Traceback" not in told, told
    assert told.splitlines()[-1].startswith("error: update 1 of iteration 1 is not finite in state")


@pytest.mark.long
def test_a_finished_run_is_left_as_it_is(finished, scratch):
    folder, printed = finished
    before = {path: path.read_bytes() for path in folder.glob("*.json*")}
    again = finish(command(folder, scratch))
    assert {path: path.read_bytes() for path in folder.glob("*.json*")} == before
    assert "training" not in again
    assert again.splitlines()[-10:] == printed.splitlines()[-10:]


def export(*arguments):
    return subprocess.run(
        [sys.executable, "experiments/export.py", *arguments],
        cwd=ROOT,
        env=dict(os.environ) | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_a_run_is_exported_and_another_starts_from_it(finished, tmp_path):
    folder, _ = finished
    written = tmp_path / "exported"
    done = export(f"--workdir={folder}", f"--output={written}", "--dtype=float32")
    assert done.returncode == 0, done.stderr
    assert f"after iteration {ITERATIONS} is in {written}" in done.stdout
    config = identity.read_config(folder)
    trained = newest(experiment.from_config(config, jax.devices()[:1]), folder).state.params
    config.model.folder = str(written)
    config.warm_start.steps = 0
    start = warm_start.starting_params(experiment.from_config(config, jax.devices()[:1]))
    assert_equal(start, trained)


@pytest.mark.slow
def test_a_folder_without_a_run_is_not_exported(finished, tmp_path):
    done = export(f"--workdir={tmp_path}", f"--output={tmp_path / 'new'}")
    assert done.returncode == 1
    assert "error: " in done.stderr and "config.json" in done.stderr
    (tmp_path / "config.json").write_text((finished[0] / "config.json").read_text())
    done = export(f"--workdir={tmp_path}", f"--output={tmp_path / 'new'}")
    assert done.returncode == 1
    assert "holds no checkpoint of a run" in done.stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.long
def test_the_guides_own_gate_is_trained_from_the_command_line(scratch, tmp_path):
    file, folder = tmp_path / "my_gate.py", tmp_path / "run"
    file.write_text(test_docs.own_gate())
    options = (
        f"--config.plugins=('{file}',)",
        "--config.gate.name=log_clip",
        "--config.iterations=2",
        "--config.evaluation.every=0",
        "--config.writers=('jsonl',)",
    )
    finish(command(folder, scratch, *options, config="tests/tiny.py:importance", budget=()))
    rows = read_metrics(folder)
    assert len(rows["step"]) == 2 and rows["actor/grad_norm"].max() > 0
    # The second epoch of an iteration is off-policy: some ratios are clipped, by this gate alone.
    assert rows["gate/clip_fraction/token"].max() > 0
    assert not list(folder.glob("events*"))
    saved = json.loads((folder / "config.json").read_text())
    assert saved["gate"] == {"name": "log_clip"} and saved["plugins"] == [str(file)]
    file.write_text(file.read_text() + "# Another bound?\n")
    config = identity.read_config(folder)
    changed = experiment.from_config(config, jax.devices()[:1])
    with pytest.raises(ValueError, match=f"holds a run with another {file}: the file has changed"):
        identity.claim(folder, changed, config.to_json_best_effort())
    file.unlink()  # The weights need no gate.
    done = export(f"--workdir={folder}", f"--output={tmp_path / 'exported'}", "--dtype=float32")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_another_config_is_refused_in_the_same_folder(finished, scratch):
    process = command(finished[0], scratch, "--config.seed=1", "--config.rollout.temperature=0.5")
    _, err = process.communicate()
    assert process.returncode == 1 and len(err.splitlines()) == 1
    assert "config.rollout.temperature (1.0 there, 0.5 here)" in err
    assert "config.seed (0 there, 1 here)" in err
    assert "config.iterations" not in err


def test_an_interrupted_run_resumes_bitwise(build, tmp_path, monkeypatch):
    steps = []

    def recorded(*arguments):
        steps.append(make_step(*arguments))
        return steps[-1]

    monkeypatch.setattr("fiberjax.run.trainer.make_step", recorded)
    built = build(curriculum__profile_samples=2)
    before, whole, _ = loop.train(built, tmp_path / "whole")

    with interrupted_at(2, monkeypatch):
        loop.train(built, tmp_path / "parts")
    assert len(read_metrics(tmp_path / "parts")["step"]) == 2
    # What is in the checkpoint is not made again.
    for name in ("starting_params", "evaluate", "profile"):
        monkeypatch.setattr(loop, name, None)
    remembered, parts, _ = loop.train(built, tmp_path / "parts")
    np.testing.assert_equal(remembered.by_name, before.by_name)
    np.testing.assert_array_equal(remembered.domain, before.domain)

    # Also on a restored state; a size of 0 is a program that jax has forgotten since.
    assert len(steps) == 3 and all(step._cache_size() <= 1 for step in steps)
    assert_equal(whole, parts)
    assert int(parts.step) == ITERATIONS * UPDATES
    first, second = untimed(tmp_path / "whole"), untimed(tmp_path / "parts")
    for name, values in first.items():
        np.testing.assert_array_equal(values, second[name], err_msg=name)
    # The curriculum's table of pass rates too: every prompt was profiled, and some have moved.
    states = [newest(built, tmp_path / name).host["stream"] for name in ("whole", "parts")]
    assert states[0] == states[1]
    assert len(states[0]["profiled"]) == 3 * 40


def test_one_iteration_is_traced(build, tmp_path, monkeypatch):
    traced = []

    def recorded(self, *arguments):
        traced.append((tmp_path / "trace").exists())
        return iterate(self, *arguments)

    iterate = Trainer.iterate
    monkeypatch.setattr(Trainer, "iterate", recorded)
    monkeypatch.setattr(jax.profiler, "trace", lambda folder: _Trace(folder))
    loop.train(build(iterations=3), tmp_path, trace_iteration=2)
    assert traced == [False, True, False]


class _Trace:
    def __init__(self, folder):
        self.folder = folder

    def __enter__(self):
        self.folder.mkdir()

    def __exit__(self, *error):
        self.folder.rmdir()


def test_a_file_of_ones_own_runs_by_one_override(make_config, one_device, tmp_path):
    rows = [
        {"prompt": f"{a}+{b}=", "answer": str(a + b), "domain": "even" if a % 2 else "odd"}
        for a in range(10)
        for b in range(8)
    ]
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = make_config()
    config.update_from_flattened_dict(
        {"tasks.file": str(path), "iterations": 1, "warm_start.steps": 3}
    )
    built = experiment.from_config(config, one_device)
    table = loop.run(built, tmp_path / "run", config.to_json_best_effort())
    assert {row["domain"] for row in json.loads(table.to_json())["rows"]} == {
        *("even", "odd", "overall")
    }


def test_evaluation_names_the_domains_it_has(build, monkeypatch):
    built = build()
    _, *rest = built.test
    monkeypatch.setattr(Sampler, "__call__", fake_rollouts)
    measured = evaluation.evaluate(dataclasses.replace(built, test=tuple(rest)), None, "held out")
    assert set(measured.domain) == {0, 1}
    np.testing.assert_array_equal(measured.by_name["mean@2"], 1)
    assert len(measured.domain) == 2 * 4


def fake_rollouts(self, params, prompts, *, samples, stream, step):
    """Rollouts that are all right."""
    from types import SimpleNamespace

    return SimpleNamespace(reward=np.ones(len(prompts.prompts) * samples, np.float32))
