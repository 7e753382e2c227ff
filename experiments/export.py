r"""Writes the newest checkpoint of a run as `config.json` and `model.safetensors`.

    python experiments/export.py --workdir=runs/quickstart --output=exported

What vLLM, transformers and others read; and what `config.warm_start.weights` of another run takes.
One process reads the whole model; the run may have been trained on any mesh.
"""

from pathlib import Path

from absl import app, flags
from ml_collections import ConfigDict

WORKDIR = flags.DEFINE_string("workdir", None, "The run.", required=True)
OUTPUT = flags.DEFINE_string("output", None, "Folder to write to.", required=True)
DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ["bfloat16", "float32"], "Of the tensors.")


def main(argv: list[str]) -> None:
    """Reads the checkpoint, writes the tensors."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    import jax

    from fiberjax.parallel import distributed

    distributed.leave_out_absent_tpus()
    from fiberjax import experiment
    from fiberjax.policy import weights
    from fiberjax.run import identity, loop
    from fiberjax.tasks import loading

    workdir = Path(WORKDIR.value)
    try:
        config = identity.read_config(workdir)
        config.mesh = ConfigDict({"data": 1, "fsdp": 1, "tensor": 1})
        # The shapes of policy and optimizer are all that is needed: no data set is built, no file
        # of prompts read, no plugin imported for the gate or the advantages that it brings.
        config.gate = ConfigDict({"name": "importance"})
        config.update({"levels": (("group", ""),), "plugins": (), "advantage": "grpo"})
        built = experiment.from_config(config, jax.devices()[:1], loading.no_domains)
        iteration, params = loop.newest_params(built, workdir)
        weights.save(OUTPUT.value, built.policy, params, dtype=DTYPE.value)
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
    print(f"the policy after iteration {iteration} is in {OUTPUT.value}")


if __name__ == "__main__":
    app.run(main)
