r"""Writes a checkpoint of a run as a folder that is served as it is.

    python experiments/export.py --workdir=runs/quickstart --output=exported
    python experiments/export.py --workdir=runs/qwen --output=exported --iteration=100
    python experiments/export.py --workdir=runs/lora --output=adapter --adapter
    python experiments/export.py --workdir=runs/qwen --output=exported --iteration=best

Weights, `config.json`, the tokenizer's files, the chat template and the generation config: what
vLLM, transformers and others read, and what `config.model.folder` of another run takes. One process
reads the whole model; the run may have been trained on any mesh.

Tensors are bfloat16 unless `--dtype=float32`. What the rounding changes is measured on answers that
the policy draws itself, and printed; `--nomeasure` leaves that out.

Adapters of `config.lora` are merged into the weights. `--adapter` writes them by themselves, as
PEFT and vLLM read them, float32 unless `--dtype=bfloat16`.
"""

from typing import Literal, cast

from absl import app, flags, logging
from ml_collections import ConfigDict

FLAGS = flags.FLAGS
WORKDIR = flags.DEFINE_string("workdir", None, "The run.", required=True)
OUTPUT = flags.DEFINE_string("output", None, "Folder to write to.", required=True)
ITERATION = flags.DEFINE_string(
    "iteration",
    None,
    "Of the checkpoint, a number, or 'best' by config.checkpoint.best; the newest by default.",
)
DTYPE = flags.DEFINE_enum(
    "dtype",
    None,
    ["bfloat16", "float32"],
    "Of the tensors; bfloat16 by default, and float32 of adapters.",
)
ADAPTER = flags.DEFINE_bool("adapter", False, "Writes the adapters alone, as PEFT has them.")
FOLDER = flags.DEFINE_string(
    "folder", None, "Where the model that the run began with is now, if it was moved."
)
MEASURE = flags.DEFINE_bool("measure", True, "Whether the effect of bfloat16 is measured.")


def chosen(iteration: str | None) -> int | Literal["best"] | None:
    """What `--iteration` says.

    Raises:
      ValueError: it is neither a number nor 'best'.
    """
    if iteration is None or iteration == "best":
        return cast(Literal["best"] | None, iteration)
    if not (iteration.isascii() and iteration.isdecimal()):
        raise ValueError(f"--iteration must be a number or 'best'; got {iteration!r}")
    return int(iteration)


def main(argv: list[str]) -> None:
    """Reads the checkpoint, writes the folder."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    if not FLAGS["verbosity"].present:
        logging.set_verbosity(logging.ERROR)  # Checkpoints tell a lot.
    import jax

    from fiberjax.parallel import compiled, distributed

    distributed.leave_out_absent_tpus()
    compiled.keep()
    from fiberjax import experiment, storage
    from fiberjax.run import identity, loop, policies, publish

    try:
        workdir = storage.place(WORKDIR.value)
        config = identity.read_config(workdir)
        config, load_data = policies.without_data(config)
        config.mesh = ConfigDict({"data": 1, "fsdp": 1, "sequence": 1, "tensor": 1})
        if FOLDER.value is not None:
            config.model.folder = FOLDER.value
        built = experiment.from_config(config, jax.devices()[:1], load_data)
        wanted = chosen(ITERATION.value)
        if ADAPTER.value:
            saved = loop.saved_policy(built, workdir, wanted)
            model = publish.publish_adapter(
                *(built, saved.trained, saved.base.params),
                storage.on_disk(OUTPUT.value, "--output of --adapter, which names its base,"),
                dtype=DTYPE.value or "float32",
            )
            print(
                f"the adapters after iteration {saved.iteration} are in {OUTPUT.value}; they "
                f"adapt {model}"
            )
            return
        iteration, params = loop.saved_params(built, workdir, wanted)
        dtype = DTYPE.value or "bfloat16"
        with storage.filled(storage.place(OUTPUT.value)) as output:
            publish.publish(built, params, output, dtype=dtype)
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
    print(f"the policy after iteration {iteration} is in {OUTPUT.value}")
    if dtype == "bfloat16" and MEASURE.value:
        effect = publish.rounding_effect(built.policy, built.vocabulary, params)
        print(
            f"bfloat16 changes the log-probability of a token by {effect.mean:.2g} nats in the "
            f"mean, {effect.largest:.2g} at most, KL {effect.kl:.1g} ({effect.tokens} tokens of "
            "the policy's own; --dtype=float32 changes nothing)"
        )


if __name__ == "__main__":
    app.run(main)
