"""Real processes on loopback: the same run as in one, and checkpoints that change hosts."""

import contextlib
import importlib.util
import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import quick
from ml_collections import ConfigDict

import fiberjax as fj
from fiberjax import experiment, storage
from fiberjax.parallel import distributed
from fiberjax.run import identity, loop, rollouts
from fiberjax.tasks import loading

ROOT = Path(__file__).parents[2]
# The first run trains it, the others read it, on whatever processes they are.
_folder = tempfile.TemporaryDirectory()
WARM_STARTS = _folder.name
# What a run is compared by: not its speed, nor differences of almost equal numbers.
SKIPPED = ("timing/", "perf/", "mismatch/")


def free_port() -> int:
    """A port for a coordinator that is not up yet.

    Not one that the system would give: those go to any connection that is opened meanwhile.
    """
    while True:
        port = random.randrange(10_000, 30_000)
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("localhost", port))
            return port


def start(
    workdir: Path,
    processes: int,
    devices: int,
    *options: str,
    program: str = "experiments/train.py",
) -> list[subprocess.Popen]:
    """Starts a tiny run on so many processes, each with so many virtual devices."""
    port = free_port()
    started = []
    for index in range(processes):
        command = [sys.executable, program, "--config=tests/tiny.py"]
        command += [f"--workdir={workdir}", f"--config.tasks.data_dir={workdir.parent / 'data'}"]
        command += [f"--config.warm_start.directory={WARM_STARTS}", "--config.warm_start.steps=150"]
        command += ["--config.iterations=2", "--config.mesh.data=-1"]
        command += ["--config.policy.vocab_size=64", "--config.policy.num_kv_heads=2"]
        command += ["--config.rollout.prompts=16", "--config.rollout.samples=2"]
        command += ["--config.keep.rollouts=1"]
        command += ["--config.rollout.resample=2"]  # Groups move between processes.
        command += ["--config.evaluation.prompts=2", "--config.evaluation.batch=8", *options]
        if processes > 1:
            command += [f"--coordinator=localhost:{port}", f"--num_processes={processes}"]
            command += [f"--process_id={index}"]
        environment = dict(os.environ) | {
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": str(ROOT),
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {quick.FLAGS}",
        }
        started.append(
            subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    return started


def finish(started: list[subprocess.Popen]) -> list[str]:
    """What each process printed; all must have ended well."""
    outputs = [process.communicate(timeout=900)[0] for process in started]
    for process, output in zip(started, outputs, strict=True):
        assert process.returncode == 0, output[-3000:]
    return outputs


def metrics(workdir: Path) -> list[dict[str, float]]:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [
        {
            name: value
            for name, value in json.loads(line).items()
            if isinstance(value, int | float) and not name.startswith(SKIPPED)
        }
        for line in lines
    ]


def parameters(workdir: Path) -> np.ndarray:
    """All parameters of the newest checkpoint of a run, in one row."""
    config = identity.read_config(workdir)
    config.mesh = ConfigDict({"data": 1, "fsdp": 1, "sequence": 1, "tensor": 1})
    built = experiment.from_config(config, jax.devices()[:1], loading.named_domains)
    _, params = loop.saved_params(built, workdir)
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])


def assert_same_run(found: Path, expected: Path) -> None:
    a, b = metrics(found), metrics(expected)
    assert len(a) == len(b) == 2
    for left, right in zip(a, b, strict=True):
        assert left.keys() == right.keys()
        for name in left:
            np.testing.assert_allclose(left[name], right[name], 1e-3, 1e-5, err_msg=name)
    # Something was learned, by rewards that differ within a group.
    assert all(row["actor/grad_norm"] > 0.01 and row["reward/mean"] > 0 for row in a)
    assert all(row["resample/prompts_drawn"] == 32 and row["batch/fill"] > 0.2 for row in a)
    # After eight updates by up to 3e-3 each. AdamW goes by the sign of a gradient, so
    # that the rounding of one or two tiny ones shows.
    gap = np.abs(parameters(found) - parameters(expected))
    assert np.mean(gap > 1e-5) <= 1e-3 and gap.max() < 1e-3, np.sort(gap)[-5:]


@pytest.fixture(scope="module")
def single(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("single") / "run"
    finish(start(workdir, 1, 8))
    return workdir


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.long)])
def several(request, tmp_path_factory) -> Path:
    """A run of so many processes, on as many devices as the one of `single`."""
    workdir = tmp_path_factory.mktemp("several") / "run"
    finish(start(workdir, request.param, 8 // request.param))
    return workdir


@pytest.mark.slow
def test_several_processes_agree_with_one(several, single):
    assert_same_run(several, single)
    # Written once, by the first process.
    assert len(list(several.glob("events.*"))) == 1


@pytest.mark.slow
def test_several_processes_keep_the_rollouts_of_one(several, single):
    found, expected = (fj.load_rollouts(of, 1) for of in (several, single))
    for name in ("tokens", "turn", "row", "minibatch"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    assert found.table.equals(expected.table) and len(found.row) > 4
    for name in ("old_log_prob", "sampler_log_prob", "advantage"):
        a, b = getattr(found, name), getattr(expected, name)
        np.testing.assert_allclose(a, b, atol=1e-4, err_msg=name)
    for a, b in zip(jax.tree.leaves(found.layout), jax.tree.leaves(expected.layout), strict=True):
        np.testing.assert_array_equal(a, b)
    orders = [[of["minibatch"] for of in kept.meta["updates"]] for kept in (found, expected)]
    assert orders[0] == orders[1]


@pytest.mark.long
@pytest.mark.slow
def test_processes_that_share_rows_agree_with_one(tmp_path, single):
    """The tensor axis spans two processes, which then hold the same rows."""
    options = ("--config.mesh.tensor=2", "--config.rollout.max_rows=8")  # In four parts.
    finish(start(tmp_path / "run", 2, 1, *options))
    assert_same_run(tmp_path / "run", single)


@pytest.mark.long
@pytest.mark.slow
def test_two_processes_compile_every_program_once(tmp_path):
    options = (
        "--config.iterations=3",
        "--config.evaluation.every=2",
        "--config.rollout.resample=0",
        "--config.evaluation.batch=2",
        "--config.warm_start.steps=2",
    )
    started = start(tmp_path / "run", 2, 1, *options, program="tests/compilations.py")
    for output in finish(started):
        told = re.findall(r"before (\w+): (\d+) compiled", output)
        kinds, counts = [kind for kind, _ in told], [int(count) for _, count in told]
        evaluation, iteration = ["draw"] * 3, ["iteration", "draw"]
        watched = [*iteration, *evaluation]  # The second iteration, and the last.
        assert kinds == [*evaluation, *iteration, *watched, *watched, *evaluation, "end"], output
        assert counts[1] > 0 and counts[5] > 0  # By the first batch, and the first iteration.
        assert counts[2] == 0 and counts[6:] == [0] * 13, output


@pytest.mark.long
@pytest.mark.parametrize("devices", [1, *(pytest.param(n, marks=pytest.mark.long) for n in (2, 8))])
def test_checkpoint_of_several_processes_resumes_elsewhere(tmp_path, several, devices):
    workdir = tmp_path / "run"
    shutil.copytree(several, workdir)
    shutil.copytree(several.parent / "data", tmp_path / "data")
    shutil.rmtree(workdir / "checkpoints" / "2")
    # The data folder is part of the config that a run folder is checked against.
    config = (workdir / "config.json").read_text()
    (workdir / "config.json").write_text(config.replace(str(several.parent), str(tmp_path)))
    finish(start(workdir, 1, devices))
    assert_same_run(workdir, several)


@pytest.mark.long
@pytest.mark.slow
def test_what_waits_is_that_of_one_process_and_is_resumed_by_one(tmp_path):
    lag = ("--config.rollout.lag=1", "--config.training.mismatch=truncate")
    one, two = tmp_path / "one" / "run", tmp_path / "two" / "run"
    finish(start(one, 1, 8, *lag))
    finish(start(two, 2, 4, *lag))
    assert [row["rollout/lag"] for row in metrics(two)] == [0, 1]
    assert_same_run(two, one)
    shutil.rmtree(two / "checkpoints" / "2")
    finish(start(two, 1, 8, *lag))
    assert_same_run(two, one)


def wait_for_iterations(started: list[subprocess.Popen], workdir: Path) -> None:
    """Until two iterations have ended; fails with what was printed where a run ends before."""
    metrics_file = workdir / "metrics.jsonl"
    for _ in range(600):
        if metrics_file.exists() and metrics_file.read_text().count("\n") >= 2:
            return
        try:
            started[0].wait(1)
        except subprocess.TimeoutExpired:
            continue
        break
    for process in started:
        process.kill()
    pytest.fail(f"no two iterations: {started[0].communicate()[0][-3000:]}")


@pytest.mark.long
@pytest.mark.slow
def test_processes_in_a_bucket_that_are_killed_end_as_on_a_disk(tmp_path, bucket):
    """Nothing is on a disk that they share; each has put what is its own, and nothing else."""
    options = ("--config.iterations=3", "--config.checkpoint.keep=3")
    options += ("--config.rollout.resample=0", "--config.warm_start.steps=2")
    near, far = tmp_path / "run", storage.place("gs://bucket/hosts/run")
    finish(start(near, 2, 1, *options))
    options += ("--config.warm_start.directory=gs://bucket/hosts/warm",)
    started = start(far, 2, 1, *options)
    try:
        for _ in range(6000):
            if bucket.names("hosts/run/checkpoints/1/commit_success"):
                break
            assert started[0].poll() is None, started[0].communicate()[0][-3000:]
            time.sleep(0.05)
    finally:
        for process in started:
            process.kill()
            process.communicate()
    assert not bucket.names("hosts/run/checkpoints/3/commit_success")
    finish(start(far, 2, 1, *options))
    assert metrics(far) == metrics(near) and len(metrics(near)) == 3
    np.testing.assert_array_equal(parameters(far), parameters(near))
    assert rollouts.read(far) == rollouts.read(near)
    left = [name.removeprefix("hosts/run/checkpoints/3/") for name in bucket.names()]
    for index in range(2):
        assert f"digests.process_{index}.json" in left
        assert any(f"ocdbt.process_{index}/" in name for name in left), left
    assert not bucket.names("hosts/run/run.lock") and bucket.refused == []


@pytest.mark.slow
def test_processes_save_and_stop_together_where_one_is_asked_to_end(tmp_path):
    workdir = tmp_path / "run"
    options = ("--config.iterations=1000000", "--config.checkpoint.every=1000000")
    started = start(workdir, 2, 1, *options)
    try:
        wait_for_iterations(started, workdir)
        started[1].terminate()
        outputs = [process.communicate(timeout=300)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    done = len((workdir / "metrics.jsonl").read_text().splitlines())
    assert [entry.name for entry in (workdir / "checkpoints").iterdir()] == [str(done)]
    for index, (process, output) in enumerate(zip(started, outputs, strict=True)):
        assert process.returncode == 75
        expected = f"host {index} of 2 stops: asked to end; iteration {done} is saved"
        assert expected in output, output[-3000:]


@pytest.mark.long
def test_a_process_that_dies_stops_the_others(tmp_path):
    started = start(tmp_path / "run", 2, 1, "--config.iterations=1000000")
    wait_for_iterations(started, tmp_path / "run")
    started[1].kill()
    output, _ = started[0].communicate(timeout=180)
    started[1].communicate()
    assert started[0].returncode != 0
    assert "host 0 of 2 stops" in output or "distributed service" in output, output[-3000:]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("on", "a:1", None, None), "go together"),
        (("on", "a:1", 2, 2), "must be from 0 to 1"),
        (("off", "a:1", 2, 0), "--distributed=off"),
    ],
)
def test_flags_that_do_not_fit_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        distributed.start(*given)


def test_one_host_joins_nobody(monkeypatch):
    joined = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **options: joined.append(args))
    monkeypatch.setattr(distributed, "on_cluster", lambda: False)
    distributed.start("auto", None, None, None)
    assert not joined and not distributed.asked_to_end(1)
    distributed.start("auto", "localhost:1", 2, 0)
    assert joined == [("localhost:1", 2, 0)]


def test_who_leaves_without_unwinding_gives_back_what_was_taken(monkeypatch, capsys):
    ended, given = [], []
    monkeypatch.setattr(os, "_exit", ended.append)
    with distributed.before_leaving(lambda: given.append("lock")):
        with distributed.before_leaving(lambda: 1 / 0):  # Whatever goes wrong with it.
            distributed.leave("host 0 of 2 stops", 3)
    distributed.leave("again")
    assert (ended, given) == ([3, 1], ["lock"])
    assert capsys.readouterr().err == "host 0 of 2 stops\nagain\n"


def test_hosts_that_have_agreed_to_end_wait_for_each_other(monkeypatch, capsys):
    did = []
    monkeypatch.setattr(distributed, "start", lambda *given: None)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax.distributed, "shutdown", lambda: did.append("wait"))
    monkeypatch.setattr(os, "_exit", did.append)
    with distributed.session("on", None, None, None):
        raise distributed.Ended("asked to end", 75)
    assert did == ["wait", 75] and capsys.readouterr().err == "host 0 of 2 stops: asked to end\n"
    with (
        pytest.raises(SystemExit),  # As `os._exit` does nothing here.
        distributed.session("on", None, None, None),
    ):
        raise SystemExit("its own error")  # Nobody would come.
    assert did == ["wait", 75, 1]


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="only libtpu has anything to say"
)
def test_a_machine_without_tpus_is_not_told_so():
    code = (
        "from fiberjax.parallel import distributed; distributed.start('off', None, None, None);"
        "import jax; print(jax.devices()[0].platform)"
    )
    without = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=without, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "cpu\n", "")
