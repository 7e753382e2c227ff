r"""Writes a page that shows what a gate did to every token of an iteration that a run kept.

    python experiments/look.py runs/quickstart
    python experiments/look.py runs/quickstart --iteration=10 --policy=12
    python experiments/look.py runs/quickstart --gate=fiberpo_domain:trajectory=0.2 --output=a.html

The run keeps what `config.keep.rollouts` says. Without `--policy` the policy after the iteration's
updates is looked at, where its checkpoint is kept. The page needs no server, loads nothing and
opens in any browser: docs/inspector.md.
"""

from absl import app, flags, logging

FLAGS = flags.FLAGS
ITERATION = flags.DEFINE_integer(
    "iteration", None, "Whose rollouts; the newest kept by default.", lower_bound=1
)
POLICY = flags.DEFINE_integer(
    "policy", None, "The checkpoint that is looked at, by its iteration.", lower_bound=0
)
GATE = flags.DEFINE_string(
    "gate", "run", "A preset, with overrides after colons; the run's own by default."
)
OUTPUT = flags.DEFINE_string("output", None, "The page; RUN/look/<iteration>.html by default.")


def main(argv: list[str]) -> None:
    """Reads the rollouts, writes the page, says where."""
    if len(argv) != 2:
        raise app.UsageError(f"expected one run folder; got {argv[1:]}")
    if not FLAGS["verbosity"].present:
        logging.set_verbosity(logging.ERROR)  # Checkpoints tell a lot.
    from fiberjax.parallel import compiled, distributed

    distributed.leave_out_absent_tpus()
    compiled.keep()
    from fiberjax import disk
    from fiberjax.analysis import look, objectives

    try:
        asked = objectives.parse(GATE.value)
        if len(asked) != 1:
            raise ValueError(f"--gate={GATE.value}: expected one gate; got {len(asked)}")
        looked = look.look(
            argv[1],
            ITERATION.value,
            policy=POLICY.value,
            gate=asked[0],
            output=OUTPUT.value,
        )
    except (OSError, ValueError, disk.NoRoom) as error:
        raise SystemExit(f"error: {error}") from None
    print(*looked.notes, f"The page is {looked.path}.", sep="\n")


if __name__ == "__main__":
    app.run(main)
