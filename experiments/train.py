r"""Trains a policy as a config says; the same command resumes.

Examples:
    python experiments/train.py --config=configs/quickstart.py --workdir=runs/quickstart
    python experiments/train.py --config=configs/quickstart.py:gspo --workdir=runs/gspo
    python experiments/train.py --config=configs/quickstart.py --workdir=runs/wide \
        --config.gate.levels.trajectory.budget=0.3
    python experiments/train.py --from_run=runs/quickstart --workdir=runs/again
"""

import contextlib
import re
import signal
import sys

from absl import app, flags, logging
from ml_collections import config_flags

FLAGS = flags.FLAGS
CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment.", lock_config=True)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where the run is kept; resumed if it exists.", required=True
)
FROM_RUN = flags.DEFINE_string(
    "from_run", None, "A run that is repeated, in another --workdir and without a --config."
)
TRACE_ITERATION = flags.DEFINE_integer(
    "trace_iteration",
    None,
    "An iteration to trace for TensorBoard's profiler; not the first one, which compiles.",
    lower_bound=1,
)

DISTRIBUTED = flags.DEFINE_enum(
    "distributed",
    "auto",
    ["auto", "on", "off"],
    "Several hosts: on TPU hosts and under Slurm, or not.",
)
COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of process 0, elsewhere.")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "With --coordinator.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "With --coordinator.")


def main(argv: list[str]) -> None:
    """Builds the experiment, then runs it."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    if (CONFIG.value is None) == (FROM_RUN.value is None):
        raise app.UsageError("expected --config or --from_run, and not both")
    if not FLAGS["verbosity"].present:
        # Data sets and checkpoints tell a lot, and at length what they raise as well.
        logging.set_verbosity(logging.FATAL)
    # After the flags are parsed: a mistyped option is refused before jax starts.
    from fiberjax.parallel import distributed

    with distributed.session(
        DISTRIBUTED.value, COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value
    ):
        from fiberjax import disk
        from fiberjax.finite import NotFinite
        from fiberjax.parallel import compiled
        from fiberjax.run import interrupts, refused
        from fiberjax.train.server import ServerError

        compiled.keep()
        disk.without_echoes()

        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            # What fails after a full disk, as closing files does, is a full disk too.
            with (
                interrupts.Interrupts(ends_process=True),
                disk.writing("the run", WORKDIR.value),
            ):
                train()
        except (disk.NoRoom, ServerError, refused.Unreadable, NotFinite) as error:
            raise SystemExit(f"error: {error}") from None
        except interrupts.Interrupted as error:
            print(error, file=sys.stderr)
            raise SystemExit(interrupts.CODE) from None


def train() -> None:
    """Builds the experiment and runs it, alone in its folder."""
    from fiberjax import experiment, model_folder, storage
    from fiberjax.run import identity, lock, loop, provenance

    with contextlib.ExitStack() as stack:
        try:
            if FROM_RUN.value:
                places = storage.place(FROM_RUN.value), storage.place(WORKDIR.value)
                config = provenance.repeated(*places)
            else:
                overridden = config_flags.get_override_values(FLAGS["config"])
                try:
                    config = model_folder.with_folder(CONFIG.value, overridden)
                except OSError as error:  # Of a file that is not there.
                    told = " ".join(str(error).rpartition("failure to load: ")[2].split())
                    raise ValueError(f"--config: {told}") from None
            stack.enter_context(lock.held(WORKDIR.value))
            config = identity.settle(WORKDIR.value, config)
            config_json = config.to_json_best_effort()
            built = experiment.from_config(config)
            if FROM_RUN.value:
                provenance.check_contents(storage.place(FROM_RUN.value), built)
            identity.claim(WORKDIR.value, built, config_json)
        except ValueError as error:
            raise SystemExit(f"error: {error}") from None
        loop.run(built, WORKDIR.value, config_json, trace_iteration=TRACE_ITERATION.value)


def parse_flags(argv: list[str]) -> list[str]:
    """The flags; a config that is none, or lacks what is overridden, ends all with one line."""
    try:
        return FLAGS(argv)
    except (AttributeError, KeyError) as error:
        told = " ".join(str(error.args[0]).split())
        paths = [of.lstrip("-").partition("=")[0] for of in argv if of.startswith("--config.")]
        words = set(re.findall(r"\w+", told))
        which = ", ".join(path for path in paths if words & set(path.split(".")[1:]))
        raise SystemExit(
            f"error: {which or 'an override'}: the config does not have it: {told}"
        ) from None
    except (flags.Error, OSError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        # What a config's own function raised comes with its traceback.
        told = f"--config: {lines[-1]}" if "Traceback" in str(error) else " ".join(lines)
        raise SystemExit(f"error: {told}") from None


if __name__ == "__main__":
    # While modules are loaded there is nothing to be saved, and an interrupt just ends it.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    app.run(main, flags_parser=parse_flags)
