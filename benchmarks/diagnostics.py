"""What the diagnostics of the gate cost beside the train step that they look at.

    python benchmarks/diagnostics.py

The quickstart's policy (random weights), batch and optimizer on one device: CPU-seconds of all
threads for an update, for the program of the diagnostics on the same batch (`train.diagnose`), and
for reading what they gave, which is what a run pays beside it. Everything is compiled before.
Prints a table and saves `diagnostics.json` in the folder `--output`.
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax

from configs import quickstart
from fiberjax import experiment
from fiberjax.parallel import distributed
from fiberjax.run.measured import joined
from fiberjax.run.trainer import Trainer
from fiberjax.run.warm_start import random_params
from fiberjax.train.diagnose import make_diagnose

GATES = ("ppo", "silent_sequence", "silent_domain", "fiberpo_domain")


def seconds(function: Callable[[], Any]) -> tuple[float, Any]:
    """CPU-seconds of a call, and what it gave."""
    began = time.process_time()
    result = jax.block_until_ready(function())
    return time.process_time() - began, result


def measure(gate: str, repeats: int, data_dir: str) -> dict[str, Any]:
    """Medians of CPU-seconds of an update with a gate, its diagnostics, and reading these."""
    config = quickstart.get_config(gate)
    config.tasks.data_dir, config.tasks.num_train = data_dir, 400
    built = experiment.from_config(config, jax.devices()[:1])
    start = random_params(built.policy, built.mesh, 0)
    state = built.fresh_state(start)
    trainer = Trainer(built, start)
    batch = trainer.collect(start, built.prompt_stream(), 0).batches[0]
    diagnose = make_diagnose(built.mesh, built.gate)
    found: dict[str, list[float]] = {"step": [], "diagnose": [], "read": []}
    for turn in range(repeats + 2):
        spent, (state, metrics, log_prob) = seconds(
            lambda state=state: trainer._step(state, batch, built.knobs)
        )
        looked, more = seconds(lambda log_prob=log_prob: diagnose(log_prob, batch, built.knobs))
        alone, _ = seconds(lambda metrics=metrics: joined([metrics]))
        both, _ = seconds(lambda metrics=metrics | more: joined([metrics]))
        if turn >= 2:  # Of a new and of a donated state.
            for name, value in zip(found, (spent, looked, both - alone), strict=True):
                found[name].append(value)
    medians = {name: statistics.median(of) for name, of in found.items()}
    share = (medians["diagnose"] + medians["read"]) / medians["step"]
    return {"gate": gate, "share": share} | medians | {"repeats": found}


def main() -> None:
    """Measures, prints, saves."""
    distributed.leave_out_absent_tpus()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("benchmarks/results"))
    options = parser.parse_args()
    rows = [measure(gate, options.repeats, options.data_dir) for gate in GATES]
    print("| gate | update, CPU-s | diagnostics, CPU-s | reading them, CPU-s | share |")
    print("|---|---:|---:|---:|---:|")
    for row in rows:
        print(
            f"| {row['gate']} | {row['step']:.3f} | {row['diagnose']:.4f} | {row['read']:.4f} "
            f"| {row['share']:.2%} |"
        )
    options.output.mkdir(parents=True, exist_ok=True)
    machine = {"machine": platform.machine(), "cores": len(os.sched_getaffinity(0))}
    about = {"jax": jax.__version__, "every": built_every()} | machine
    saved = json.dumps({"about": about, "rows": rows}, indent=1)
    (options.output / "diagnostics.json").write_text(saved + "\n")


def built_every() -> int:
    """The cadence that the quickstart has."""
    return quickstart.get_config().diagnostics.every


if __name__ == "__main__":
    main()
