r"""Kept rollouts of a run through any objective, on identical data.

    python experiments/replay.py runs/quickstart --objectives=run,gspo,grpo
    python experiments/replay.py runs/quickstart --iteration=20 --policy=21 \
        --objectives=gspo,fiberpo:trajectory=.1:epsilon=.2
    python experiments/replay.py runs/quickstart --sweep=fiberpo:trajectory=.02,.05,.1,.2
    python experiments/replay.py runs/quickstart --unfold=run --policy=19 --steps=30
    python experiments/replay.py runs/quickstart --check

Objectives are presets by name with overrides after colons, a pair of budgets parted by a slash;
"run" is the run's own gate. Tables are printed; pictures and JSON go to RUN/replay, or --output.
`--check` makes an iteration's updates again by the run's own program, and compares every metric:
by default of the newest one that has its rollouts and the checkpoint before it.
docs/replay.md says what is computed.
"""

from pathlib import Path
from typing import Any

from absl import app, flags, logging

FLAGS = flags.FLAGS
ITERATION = flags.DEFINE_integer(
    "iteration", None, "Whose rollouts; the newest that are kept by default.", lower_bound=1
)
POLICY = flags.DEFINE_string(
    "policy",
    "newest",
    "Which checkpoint looks at them: 'newest', 'best', a number of iterations, 0 for the start; "
    "'none' takes the rollouts as they are kept.",
)
OBJECTIVES = flags.DEFINE_string("objectives", "", "What they are put through, by commas.")
SWEEP = flags.DEFINE_string("sweep", "", "objective:budget=value,value,... on identical data.")
UNFOLD = flags.DEFINE_string("unfold", "", "An objective, step after step on the batch.")
STEPS = flags.DEFINE_integer("steps", 10, "Of --unfold.", lower_bound=1)
RATE = flags.DEFINE_float("rate", None, "Of --unfold's steps; the run's learning rate by default.")
OPTIMIZER = flags.DEFINE_enum("optimizer", "adam", ["adam", "sgd"], "Of --unfold's steps.")
MINIBATCH = flags.DEFINE_integer(
    "minibatch", None, "An optimizer batch alone; all trajectories as one batch by default."
)
STEP = flags.DEFINE_float("step", 1e-3, "Length of the step that each takes, over that of θ.")
CHECK = flags.DEFINE_bool("check", False, "Makes the iteration's updates again.")
OUTPUT = flags.DEFINE_string("output", None, "Folder for pictures and JSON; RUN/replay by default.")


def swept(text: str) -> tuple[Any, str, list[Any]]:
    """The objective, the budget and the values of `--sweep`.

    Raises:
      ValueError: it is not of that form.
    """
    from fiberjax.analysis import objectives

    head, equal, values = text.rpartition("=")
    name, colon, budget = head.rpartition(":")
    if not equal or not colon or not name or not budget:
        raise ValueError(f"--sweep={text}: expected objective:budget=value,value,...")
    found = objectives.parse(name)
    if len(found) != 1:
        raise ValueError(f"--sweep={text}: expected one objective")
    return found[0], budget, [objectives.value_of(of) for of in values.split(",") if of]


def main(argv: list[str]) -> None:
    """Replays what is asked for."""
    if len(argv) != 2:
        raise app.UsageError(f"expected one run folder; got {argv[1:]}")
    if not FLAGS["verbosity"].present:
        logging.set_verbosity(logging.ERROR)  # Data sets and checkpoints tell a lot.
    if not (OBJECTIVES.value or SWEEP.value or UNFOLD.value or CHECK.value):
        raise app.UsageError("expected --objectives, --sweep, --unfold or --check")
    from fiberjax.parallel import compiled, distributed

    distributed.leave_out_absent_tpus()
    compiled.keep()
    try:
        run(argv[1])
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None


def run(directory: str) -> None:
    """Prints the tables of a run folder; writes pictures and JSON."""
    import fiberjax as fj
    from fiberjax.analysis.objectives import parse
    from fiberjax.analysis.replay import replay
    from fiberjax.analysis.reproduce import reproduce
    from fiberjax.analysis.sweep import sweep
    from fiberjax.analysis.unfold import unfold
    from fiberjax.run.progress import Progress

    output = Path(directory) / "replay" if OUTPUT.value is None else Path(OUTPUT.value)
    if CHECK.value:
        made = reproduce(directory, ITERATION.value)
        made.print()
        file = output / f"{made.iteration:06d}" / "check.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(made.to_json(), encoding="utf-8")
    if not (OBJECTIVES.value or SWEEP.value or UNFOLD.value):
        return
    kept = fj.load_rollouts(directory, ITERATION.value)
    folder = output / f"{kept.meta['iteration']:06d}"
    folder.mkdir(parents=True, exist_ok=True)
    policy = None
    if POLICY.value != "none":
        policy = fj.load_policy(directory, wanted(POLICY.value))
    given: dict[str, Any] = {"policy": policy, "minibatch": MINIBATCH.value}
    found: dict[str, Any] = {}
    if OBJECTIVES.value:
        objectives = parse(OBJECTIVES.value)
        found["replay"] = replay(kept, objectives, step=STEP.value, **given)
    if SWEEP.value:
        found["sweep"] = sweep(kept, *swept(SWEEP.value), step=STEP.value, **given)
    if UNFOLD.value:
        (asked,) = parse(UNFOLD.value)[:1] or [UNFOLD.value]
        steps: dict[str, Any] = {
            "steps": STEPS.value,
            "rate": RATE.value,
            "optimizer": OPTIMIZER.value,
        }
        with Progress(STEPS.value, "unfolding", log_every=1) as progress:
            found["unfold"] = unfold(kept, asked, told=progress.update, **steps, **given)
    for name, each in found.items():
        each.print()
        (folder / f"{name}.json").write_text(each.to_json(), encoding="utf-8")
        each.plot(folder)
    print(f"pictures and numbers are in {folder}")


def wanted(text: str) -> Any:
    """Which checkpoint `--policy` names.

    Raises:
      ValueError: it is none of its choices.
    """
    if text in ("newest", "best"):
        return None if text == "newest" else text
    if not (text.isascii() and text.isdecimal()):
        raise ValueError(f"--policy must be 'newest', 'best', 'none' or a number; got {text!r}")
    return int(text)


if __name__ == "__main__":
    app.run(main)
