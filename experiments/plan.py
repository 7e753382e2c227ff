"""Says what a config costs on a TPU slice, and whether it fits, without any TPU.

    python experiments/plan.py --config=configs/qwen2_5_7b.py --topology=v5e:16x16
    python experiments/plan.py --config=configs/qwen2_5_7b.py --topology=v5p:4x4x4 \
        --config.training.micro_batches=2 --output=plan.json
    python experiments/plan.py --config=configs/pods.py --topology=v5e:4x4 \
        --config.model.folder=Qwen2.5-0.5B-Instruct
    python experiments/plan.py --config=configs/gsm8k_qwen2_5_0_5b.py --shape --topology=v5e:2x2

Says too between which bounds the model-FLOP utilisation of the updates should lie, and how much of
what they send goes beside arithmetic. Exits with 1 where it does not fit. Several slices are
`v5e:16x16*4`.
"""

import json
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

FLAGS = flags.FLAGS
CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment.", lock_config=True)
TOPOLOGY = flags.DEFINE_string("topology", None, "The TPU slice, e.g. v5e:16x16.")
SHAPE = flags.DEFINE_bool(
    "shape", False, "Plans the shape that the config has; reads no model's folder and no rows."
)
OUTPUT = flags.DEFINE_string("output", None, "Where the plan is saved as JSON, if anywhere.")
PROGRAMS = flags.DEFINE_list(
    "programs", ["train step", "packed step", "sampler", "gate"], "What to compile."
)


def main(argv: list[str]) -> None:
    """Compiles, prints and saves."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    from fiberjax.plans import topologies
    from fiberjax.tasks import loading

    topologies.compile_environment()
    from fiberjax import experiment, model_folder
    from fiberjax.plans import plan

    assert TOPOLOGY.value is not None  # A required flag.
    try:
        topology = topologies.parse_topology(TOPOLOGY.value)
        devices = topologies.describe_devices(topology)
        overridden = config_flags.get_override_values(FLAGS["config"])
        config = model_folder.without_files(CONFIG.value) if SHAPE.value else CONFIG.value
        config = model_folder.with_folder(config, overridden)
        built = experiment.from_config(config, devices, loading.named_domains)
        made = plan.make_plan(built, topology, PROGRAMS.value)
    except (ValueError, RuntimeError) as error:
        raise SystemExit(f"error: {error}") from None
    print(plan.to_text(made))
    if OUTPUT.value:
        Path(OUTPUT.value).write_text(json.dumps(plan.to_dict(made), indent=2) + "\n")
    raise SystemExit(0 if made.fits else 1)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "topology"])
    app.run(main)
