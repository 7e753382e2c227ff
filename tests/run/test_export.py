"""A checkpoint is exported from the run folder alone, whatever has become of the prompts."""

import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from fiberjax import experiment
from fiberjax.policy import weights
from fiberjax.run import checkpoints, identity, warm_start
from fiberjax.tasks import loading

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.slow
def test_export_needs_no_prompts(make_config, one_device, tmp_path):
    config = make_config()
    prompts = tmp_path / "gone.jsonl"
    prompts.write_text("")
    config.tasks.file = str(prompts)
    built = experiment.from_config(config, one_device, loading.no_domains)
    params = warm_start.random_params(built.policy, built.mesh, seed=3)
    identity.claim(tmp_path / "run", built, config.to_json_best_effort())
    with checkpoints.Checkpoints(tmp_path / "run" / "checkpoints", keep=1) as saved:
        saved.save(7, built.fresh_state(params), {})
    prompts.unlink()
    command = [sys.executable, "experiments/export.py", f"--workdir={tmp_path / 'run'}"]
    done = subprocess.run(
        [*command, f"--output={tmp_path / 'exported'}", "--dtype=float32"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "after iteration 7" in done.stdout
    placed = jax.tree.map(lambda leaf: leaf.sharding, params)
    found = weights.load(tmp_path / "exported", built.policy, placed)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(x, y)
