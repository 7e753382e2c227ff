"""Weak scaling of the compiled train step: cost a chip as chips grow at fixed work for each.

    python benchmarks/scaling.py --config=configs/qwen2_5_0_5b.py

Compiles the step for real TPU slices, one prompt group a row shard, and counts arithmetic, HBM
traffic and bytes sent by a chip, through loops; and the same for the gate and objective alone.
Ideal scaling is a flat line. Nothing runs: the figures are the compiler's. Each slice costs
minutes of CPU. `cores.py` times what can be timed without a TPU: one virtual device on each core.
"""

import json
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

FLAGS = flags.FLAGS
CONFIG = config_flags.DEFINE_config_file(
    "config", "configs/qwen2_5_0_5b.py", "The experiment.", lock_config=True
)
TOPOLOGIES = flags.DEFINE_list(
    "topologies", ["v5p:2x2x1", "v5p:2x2x4", "v5p:4x4x4", "v5p:4x8x8", "v5p:8x8x16"], "Slices."
)
FSDP = flags.DEFINE_integer("fsdp", 64, "Most shards of the parameters; replicas beyond.")
EXACT = flags.DEFINE_bool("exact", False, "As many shards even where parts are thinner than tiles.")
OUTPUT = flags.DEFINE_string("output", "benchmarks/results", "Where JSON and PNG are written.")


def main(argv: list[str]) -> None:
    """Compiles for every slice, saves and plots."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    from fiberjax.plans import topologies
    from fiberjax.tasks import loading

    topologies.compile_environment()
    from fiberjax import experiment
    from fiberjax.plans import plan

    rows = []
    for name in TOPOLOGIES.value:
        topology = topologies.parse_topology(name)
        config = CONFIG.value.copy_and_resolve_references()
        shards = topology.num_devices // config.mesh.tensor
        parts = min(shards, FSDP.value)
        config.mesh.fsdp = parts if EXACT.value else -1
        config.mesh.data = shards // parts
        config.rollout.prompts = config.training.minibatches * shards
        config.evaluation.batch = shards
        config.warm_start.batch_size = shards
        devices = topologies.describe_devices(topology)
        built = experiment.from_config(config, devices, loading.named_domains)
        made = plan.make_plan(built, topology, ["train step", "gate"])
        step, gate = made.programs
        rows.append(
            {
                "topology": name,
                "chips": made.num_chips,
                "tokens_per_chip": made.tokens / made.num_chips,
                "ideal_flops": made.ideal_flops,
                "flops": step.flops,
                "hbm_bytes": step.hbm_bytes,
                "wire_bytes": step.wire_bytes,
                "peak_bytes": step.peak_bytes,
                "gate_flops": gate.compiler_flops,
                "gate_hbm_bytes": gate.hbm_bytes,
                "gate_wire_bytes": gate.wire_bytes,
                "ideal_seconds": step.ideal_seconds,
                "ici_seconds": step.wire_seconds,
                "mesh": dict(made.mesh),
                "overlapped_bytes": step.overlapped_bytes,
                "utilisation": made.utilisation,
            }
        )
        print(json.dumps(rows[-1]), flush=True)
        output = Path(OUTPUT.value)
        output.mkdir(parents=True, exist_ok=True)
        (output / "scaling.json").write_text(json.dumps(rows, indent=2) + "\n")
    draw(rows, output / "scaling.png")


def draw(rows: list[dict], path: Path) -> None:
    """One panel for arithmetic, one for traffic, both relative to the smallest slice or ideal."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    chips = [row["chips"] for row in rows]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for key, label in (("flops", "step"), ("gate_flops", "gate")):
        left.plot(chips, [row[key] / row["ideal_flops"] for row in rows], "o-", label=label)
    left.set(xscale="log", yscale="log", xlabel="chips", ylabel="FLOPs a chip / 6 N D a chip")
    left.legend(loc="center")
    for key, label in (
        ("hbm_bytes", "step, HBM"),
        ("wire_bytes", "step, sent"),
        ("gate_hbm_bytes", "gate, HBM"),
        ("gate_wire_bytes", "gate, sent"),
    ):
        right.plot(chips, [row[key] for row in rows], "o-", label=label)
    right.set(xscale="log", yscale="log", xlabel="chips", ylabel="bytes a chip a step")
    right.legend(loc="center", bbox_to_anchor=(0.5, 0.57), ncols=2, fontsize=8)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    app.run(main)
