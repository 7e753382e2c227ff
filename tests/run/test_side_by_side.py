"""Two runs that start at once: both end well, on the same data and from the same warm start."""

import os
import pathlib
import subprocess
import sys
import time

import pytest

TESTS = pathlib.Path(__file__).parents[1]
TRIALS = 3

# Both processes pass every gate together; then each does what a run does when it starts.
RUN = """
import pathlib, sys, time
import jax, numpy as np
import tiny
from fiberjax import experiment
from fiberjax.run import warm_start

own, folder = sys.argv[1], pathlib.Path(sys.argv[2])

def gate(name):
    (folder / f"{name}.{own}").touch()
    while len(list(folder.glob(f"{name}.*"))) < 2:
        time.sleep(0.001)

for trial in range(int(sys.argv[3])):
    config = tiny.get_config()
    config.tasks.data_dir = str(folder / f"data{trial}")
    config.warm_start.directory = str(folder / "warm_starts")
    config.warm_start.steps = 3
    config.seed = trial
    gate(f"data{trial}")
    built = experiment.from_config(config, jax.devices()[:1])
    gate(f"start{trial}")
    leaves = jax.tree.leaves(warm_start.starting_params(built))
    print("found", np.concatenate([np.ravel(leaf) for leaf in leaves]).tobytes().hex())
"""


def begin(own, folder):
    with (folder / f"{own}.out").open("w") as out, (folder / f"{own}.err").open("w") as err:
        return subprocess.Popen(
            [sys.executable, "-c", RUN, own, str(folder), str(TRIALS)],
            env=os.environ | {"PYTHONPATH": f"{TESTS.parent}:{TESTS}"},
            stdout=out,
            stderr=err,
        )


def finish(processes, seconds):
    """Waits until all have ended, or one has failed; the others are then waiting for it."""
    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end and None in (codes := [p.poll() for p in processes]):
            if any(codes):
                break
            time.sleep(0.1)
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.mark.long
def test_two_runs_that_start_at_once_share_data_and_warm_start(tmp_path):
    names = ("first", "second")
    processes = [begin(own, tmp_path) for own in names]
    finish(processes, seconds=180)
    for process, own in zip(processes, names, strict=True):
        assert process.returncode == 0, (tmp_path / f"{own}.err").read_text()[-3000:]
    first, second = (
        [line for line in (tmp_path / f"{own}.out").read_text().splitlines() if "found" in line]
        for own in names
    )
    assert first == second and len(set(first)) == TRIALS
    # Each is kept once, whole, and nothing is left beside it.
    kept = list((tmp_path / "warm_starts").iterdir())
    assert len(kept) == TRIALS and all((path / "3").is_dir() for path in kept)
