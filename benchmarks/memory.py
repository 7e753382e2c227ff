"""Host memory of a run on a CPU by stage, in units of what the run must keep.

    python benchmarks/memory.py
    python benchmarks/memory.py --width=1280    # 199 M parameters

A policy of 55 M parameters in float32 is read from a folder, evaluated, trained for two iterations
with AdamW, saved after each, and evaluated again, by the very loop that runs are made with, in a
process of its own. Batches are tiny, so that what grows with the model is the state: parameters and
two moments. The peak of the resident set is read of every stage (`VmHWM`, which is reset between
stages; Linux), less what the process held before the run. It is run twice, and the second counts:
its programs come from the compilation cache, as those of a resumed run do, so that the compiler's
own memory is not among them; `cold` has it. Prints a table, and saves `memory.json` in the folder
`--output`.
"""

import argparse
import functools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

ITERATIONS = 2


def shape(width: int) -> dict[str, int]:
    """The policy's shape by its width, a multiple of 320."""
    return {
        "vocab_size": 16_384,
        "embed_dim": width,
        "num_layers": 8,
        "num_heads": width // 64,
        "num_kv_heads": width // 64,
        "head_dim": 64,
        "mlp_dim": width * 16 // 5,
    }


class Stages:
    """Peaks of the resident set, one a stage; what lies between two is named after the first."""

    def __init__(self) -> None:
        """Begins to count from what the process holds now."""
        self.peaks: list[tuple[str, int, int]] = []  # Name, peak and what is left, bytes.
        self.base = resident("VmRSS")
        self._name = "begin"
        reset_peak()

    def enter(self, name: str) -> None:
        """Ends the present stage and begins the named one."""
        self.peaks.append(
            (self._name, resident("VmHWM") - self.base, resident("VmRSS") - self.base)
        )
        self._name = name
        reset_peak()

    def staged(self, name: str, function: Callable) -> Callable:
        """The function as a stage."""

        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.enter(name)
            try:
                return function(*args, **kwargs)
            finally:
                self.enter(f"after {name}")

        return wrapped


def resident(field: str) -> int:
    """A field of this process's status, in bytes."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}: this benchmark needs Linux")


def reset_peak() -> None:
    """Makes the peak what is resident now."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")


def make_config(folder: pathlib.Path) -> Any:
    """The quickstart with a larger policy of a folder and very few tokens."""
    from configs import quickstart

    config = quickstart.get_config()
    config.iterations = ITERATIONS
    config.tasks.data_dir = str(folder / "data")
    config.tasks.num_train, config.tasks.num_test = 40, 8
    config.warm_start.steps = 0
    config.model.folder, config.model.tokenizer = str(folder / "model"), "tasks"
    config.rollout.prompts, config.rollout.samples = 4, 4
    config.training.minibatches, config.training.micro_batches = 2, 2
    config.training.packing, config.training.chunk = False, 16
    config.optimizer.name, config.optimizer.warmup_steps = "adamw", 0
    config.evaluation.prompts, config.evaluation.samples, config.evaluation.batch = 2, 1, 10
    config.checkpoint.every, config.checkpoint.keep = 1, 1
    config.mesh.data = 1
    return config


def write_model(folder: pathlib.Path, width: int) -> None:
    """A folder of random weights, in a process of its own."""
    import jax

    from fiberjax.policy import TransformerConfig, init, weights

    config = TransformerConfig(qk_norm=True, **shape(width))
    weights.save(folder / "model", config, init(config, jax.random.key(0)), dtype="float32")


def one_run(folder: pathlib.Path) -> dict[str, Any]:
    """The run, in this process; peaks of its stages and the size of its state, bytes."""
    import jax
    import numpy as np
    from absl import logging

    from fiberjax import experiment, model_folder
    from fiberjax.run import identity, loop
    from fiberjax.run.checkpoints import Checkpoints
    from fiberjax.run.trainer import Trainer

    logging.set_verbosity(logging.ERROR)
    config = model_folder.with_folder(make_config(folder))
    config = identity.settle(folder / "run", config)
    built = experiment.from_config(config)
    sizes = [
        np.dtype(leaf.dtype).itemsize * leaf.size
        for leaf in jax.tree.leaves(built.abstract_state())
    ]
    stages = Stages()
    loop.starting_params = stages.staged("read", loop.starting_params)
    loop.evaluate = stages.staged("evaluate", loop.evaluate)
    Trainer.collect = stages.staged("rollouts", Trainer.collect)  # type: ignore[method-assign]
    Trainer.update = stages.staged("updates", Trainer.update)  # type: ignore[method-assign]
    Checkpoints.save = stages.staged("save", Checkpoints.save)  # type: ignore[method-assign]
    loop.run(built, folder / "run", config.to_json_best_effort())
    stages.enter("end")
    return {"state_bytes": sum(sizes), "base_bytes": stages.base, "stages": stages.peaks}


def measured(width: int) -> dict[str, Any]:
    """What `one_run` measures, with nothing compiled before ("cold") and with everything."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        environment = dict(os.environ) | {"JAX_PLATFORMS": "cpu"}
        environment |= {
            "JAX_COMPILATION_CACHE_DIR": f"{scratch}/cache",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        for name, stage in (("model", "--write"), ("cold", "--run"), ("warm", "--run")):
            command = [sys.executable, __file__, stage, scratch, f"--width={width}"]
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(done.stderr[-4000:])
            if stage == "--run":
                found[name] = json.loads(done.stdout.splitlines()[-1])
                shutil.rmtree(f"{scratch}/run")
    return found


def table(found: dict[str, Any]) -> str:
    """The peaks, in Markdown; a stage that comes again has its largest."""
    lines = ["| stage | peak | left behind | peak, cold |", "|---|---|---|---|"]
    cold = _largest(found["cold"])
    lines += [
        f"| {name} | {peak:.2f} | {left:.2f} | {cold[name][0]:.2f} |"
        for name, (peak, left) in _largest(found["warm"]).items()
    ]
    return "\n".join(lines)


def _largest(run: dict[str, Any]) -> dict[str, tuple[float, float]]:
    peaks: dict[str, tuple[float, float]] = {}
    for name, peak, left in run["stages"]:
        of = peak / run["state_bytes"], left / run["state_bytes"]
        peaks[name] = max(of, peaks.get(name, of))
    return peaks


def main() -> None:
    """Runs, prints and saves."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=pathlib.Path)
    parser.add_argument("--width", type=int, default=640, help="of the policy")
    parser.add_argument("--write", type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--run", type=pathlib.Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.write:
        return write_model(given.write, given.width)
    if given.run:
        return print(json.dumps(one_run(given.run)))
    found = measured(given.width)
    print(f"in units of the state, {found['warm']['state_bytes'] / 1e6:.0f} MB")
    print(table(found))
    if given.output:
        (given.output / "memory.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
