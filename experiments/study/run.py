r"""Makes the runs of a figure that were not made yet, and adds each to `results/<figure>.jsonl`.

    python -m experiments.study.run --figure=table --list
    python -m experiments.study.run --figure=table --stage=1 --minutes=60

Says first how many runs there are and how long they will take. It may be stopped at any time, and
goes on with the run that it was stopped in. Several figures may be made at the same time, each by a
process of its own.
"""

import json
import statistics
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from absl import app, flags, logging

from configs import quickstart
from experiments.study import records
from experiments.study.records import Record
from experiments.study.settings import FIGURES, Setting

FLAGS = flags.FLAGS
FIGURE = flags.DEFINE_enum("figure", None, list(FIGURES), "Whose runs to make.", required=True)
STAGE = flags.DEFINE_enum("stage", "1", ["1", "2"], "1: two seeds, short lists. 2: five seeds.")
LIST = flags.DEFINE_bool("list", False, "Only says what there is to do.")
MINUTES = flags.DEFINE_float("minutes", None, "Begins no run that would end later than this.")
RESULTS = flags.DEFINE_string(
    "results", str(Path(__file__).parent / "results"), "Where runs are kept."
)
SCRATCH = flags.DEFINE_string("scratch", "runs/study", "Where data and the warm start are kept.")


class Queue(NamedTuple):
    """What of a figure is made, what is to be made, and what cannot be: setting -> reason."""

    made: list[Record]
    waiting: list[Setting]
    absent: dict[str, str]


def make_config(gate: str):
    """The quickstart with a gate, its files in the scratch folder."""
    config = quickstart.get_config(gate)
    config.tasks.data_dir = f"{SCRATCH.value}/data"
    config.warm_start.directory = f"{SCRATCH.value}/warm_starts"
    return config


def queue(settings: Sequence[Setting], made: Sequence[Record], configured) -> Queue:
    """Sorts settings by what is to be done.

    Args:
      settings: of the figure.
      made: all runs there are.
      configured: setting -> its whole config; raises ValueError where something does not exist.
    """
    sorted_: Queue = Queue([], [], {})
    for setting in settings:
        try:
            gate = json.loads(configured(setting).gate.to_json_best_effort())
        except ValueError as error:
            sorted_.absent[setting.method] = str(error)
            continue
        found = records.find(made, setting, gate)
        if found is None:
            sorted_.waiting.append(setting)
        else:
            sorted_.made.append(found)
    return sorted_


def seconds(setting: Setting, made: Sequence[Record], key: str = "cpu_seconds") -> float | None:
    """What a run will take: the median of those like it, else of all, scaled by its updates.

    Runs are alike that differ in gate, seed, learning rate and optimizer alone. None without any.
    """

    def shape(options):
        return {k: v for k, v in options.items() if not k.startswith(("gate.", "optimizer."))}

    def work(options):
        # Sampling and evaluating a batch cost about as much as an epoch of updates on it.
        return options["iterations"] * (1 + options["training.epochs"])

    mine = json.loads(json.dumps(setting.options))
    alike = [r[key] for r in made if shape(r["setting"]["options"]) == shape(mine)]
    if alike:
        return statistics.median(alike)
    others = [r[key] * work(mine) / work(r["setting"]["options"]) for r in made]
    return statistics.median(others) if others else None


def commit() -> str:
    """The commit of the code that runs, marked where files differ from it."""
    root = Path(__file__).parents[2]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    changed = git("status", "--porcelain", "--", "*.py")
    return git("rev-parse", "--short=12", "HEAD") + ("+changes" if changed else "")


def announce(waiting: Queue, made: Sequence[Record]) -> None:
    """Prints what there is, and what it will cost."""
    for method, reason in waiting.absent.items():
        print(f"left out: {method}: {reason}")
    total = [seconds(setting, made) for setting in waiting.waiting]
    known = [cost for cost in total if cost is not None]
    cost = (
        "no finished run to tell the time from"
        if len(known) < len(total)
        else (f"about {sum(known) / 3600:.2f} CPU-hours")
    )
    print(
        f"{FIGURE.value}, stage {STAGE.value}: {len(waiting.made)} runs made, "
        f"{len(waiting.waiting)} to make: {cost}",
        flush=True,
    )


def main(argv: list[str]) -> None:
    """Runs the queue."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    logging.set_verbosity(logging.ERROR)
    began, folder = time.monotonic(), Path(RESULTS.value)
    from experiments.study.laboratory import Laboratory

    laboratory, code = Laboratory(make_config), commit()
    made = records.read(folder)
    todo = queue(FIGURES[FIGURE.value](int(STAGE.value)), made, laboratory.config)
    announce(todo, made)
    if LIST.value:
        for setting in todo.waiting:
            print(f"  {setting.method}, seed {setting.seed}")
        return
    for number, setting in enumerate(todo.waiting, start=1):
        made = records.read(folder)
        expected = seconds(setting, made, "seconds") or 0.0
        if MINUTES.value is not None:
            left = 60 * MINUTES.value - (time.monotonic() - began)
            if left < expected or left < 0:
                print(f"{number - 1} of {len(todo.waiting)} made; the time is up")
                return
        record = laboratory.run(setting)
        records.append(folder / f"{FIGURE.value}.jsonl", {**record, "commit": code})
        first, *_, end = record["held_out"]
        measure = next(name for name in end if name.startswith("mean@"))
        print(
            f"{number}/{len(todo.waiting)} {setting.method}, seed {setting.seed}: "
            f"{first[measure]:.3f} -> {end[measure]:.3f} in {record['seconds']:.0f} s"
            + (f"; {record['collapsed']}" if record["collapsed"] else ""),
            flush=True,
        )


if __name__ == "__main__":
    app.run(main)
