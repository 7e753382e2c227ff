"""Arithmetic and memory of an update by its schedule of passes, compiled for a TPU slice.

    python benchmarks/passes.py                  # Qwen2.5-0.5B on v5e:2x2; nothing runs

The schedules are those of `fiberjax.train.passes`, each with a gate that takes it; what a backward
pass computes again is `config.policy.remat`. Arithmetic is counted through loops, over 6 N D: N
parameters that multiply each of D tokens. Prints a line for each and saves `passes.json` in the
folder `--output`.
"""

import json
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

FLAGS = flags.FLAGS
CONFIG = config_flags.DEFINE_config_file(
    "config", "configs/qwen2_5_0_5b.py", "The experiment.", lock_config=True
)
TOPOLOGY = flags.DEFINE_string("topology", "v5e:2x2", "The slice.")
OUTPUT = flags.DEFINE_string("output", "benchmarks/results", "Where JSON is written.")

SCHEDULES = {
    # The levels of the gate's budgets, and whether the batch is fresh.
    "whole": (("trajectory", "domain"), False),
    "fresh": (("trajectory", "domain"), True),
    "apart": (("trajectory",), False),
}


def main(argv: list[str]) -> None:
    """Compiles every schedule, prints and saves."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    from fiberjax.plans import topologies
    from fiberjax.tasks import loading

    topologies.compile_environment()
    from fiberjax import experiment
    from fiberjax.plans import plan, programs

    topology = topologies.parse_topology(TOPOLOGY.value)
    devices = topologies.describe_devices(topology)
    rows: list[dict] = []
    for remat in ("full", "dots"):
        for name, (levels, fresh) in SCHEDULES.items():
            config = CONFIG.value.copy_and_resolve_references()
            config.policy.remat = remat
            config.rollout.prompts = config.training.minibatches * len(devices)
            config.training.micro_batches = config.rollout.samples
            config.evaluation.batch = config.warm_start.batch_size = len(devices)
            config.gate = {
                "name": "silent",
                "order": levels,
                "levels": {level: {"budget": 0.01} for level in levels},
            }
            built = experiment.from_config(config, devices, loading.named_domains)
            tokens = programs.batch_rows(built) * (built.window.prompt + built.window.completion)
            ideal = 6.0 * plan.active_params(built.policy) * tokens / len(devices)
            program = programs.plan_step(built, topology.chip, fresh=fresh)
            rows.append(
                {
                    "schedule": name,
                    "remat": remat,
                    "micro_batches": config.training.micro_batches,
                    "flops": program.flops / ideal,
                    "temporaries": program.memory["temporaries"],
                    "hbm_bytes": program.hbm_bytes,
                    "estimated_cycles": program.estimated_cycles,
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    output = Path(OUTPUT.value)
    output.mkdir(parents=True, exist_ok=True)
    (output / "passes.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
