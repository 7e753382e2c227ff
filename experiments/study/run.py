r"""Makes the runs of a figure that were not made yet, and adds each to `results/<figure>.jsonl`.

    python -m experiments.study.run --figure=table --list
    python -m experiments.study.run --figure=table --stage=1 --minutes=60

Says first how many runs there are and how long they will take. It may be stopped at any time, and
goes on with the run that it was stopped in. Several processes may make runs at the same time, of
one figure or of several: a run that one of them has begun is left to it.
"""

import contextlib
import fcntl
import functools
import hashlib
import json
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from absl import app, flags, logging
from ml_collections import ConfigDict

from configs import quickstart
from experiments.study import records
from experiments.study.figures import FIGURES
from experiments.study.halving import Find
from experiments.study.records import Record
from experiments.study.settings import Setting

FLAGS = flags.FLAGS
FIGURE = flags.DEFINE_enum("figure", None, list(FIGURES), "Whose runs to make.", required=True)
STAGE = flags.DEFINE_enum("stage", "1", ["1", "2"], "1: two seeds, short lists. 2: five seeds.")
FIRST = flags.DEFINE_integer("seeds", None, "Only the first so many seeds of the stage.")
LIST = flags.DEFINE_bool("list", False, "Only says what there is to do.")
MINUTES = flags.DEFINE_float("minutes", None, "Begins no run that would end later than this.")
RESULTS = flags.DEFINE_string(
    "results", str(Path(__file__).parent / "results"), "Where runs are kept."
)
SCRATCH = flags.DEFINE_string("scratch", "runs/study", "Where data and the warm start are kept.")

Configured = Callable[[Setting], ConfigDict]
"""Setting -> its whole config; raises ValueError where something does not exist."""


class Queue(NamedTuple):
    """What of a figure is made, what is to be made, and what cannot be: method -> reason."""

    made: list[Record]
    waiting: list[Setting]
    absent: dict[str, str]


def make_config(gate: str) -> ConfigDict:
    """The quickstart with a gate, its files in the scratch folder."""
    config = quickstart.get_config(gate)
    config.tasks.data_dir = f"{SCRATCH.value}/data"
    config.warm_start.directory = f"{SCRATCH.value}/warm_starts"
    return config


def first_seeds(settings: Sequence[Setting], number: int | None) -> tuple[Setting, ...]:
    """The settings of the first so many seeds that occur; all where that is None."""
    kept = list(dict.fromkeys(setting.seed for setting in settings))[:number]
    return tuple(setting for setting in settings if setting.seed in kept)


def queue(settings: Sequence[Setting], made: Sequence[Record], configured: Configured) -> Queue:
    """Sorts settings by what is to be done, each once.

    Args:
      settings: of the figure.
      made: all runs there are.
      configured: gives the config of a setting.
    """
    sorted_, seen = Queue([], [], {}), []
    for setting in settings:
        identity = setting.identity()
        if identity in seen:
            continue
        seen.append(identity)
        try:
            configured(setting)
        except ValueError as error:
            sorted_.absent[setting.method] = str(error)
            continue
        found = records.find(made, setting)
        if found is None:
            sorted_.waiting.append(setting)
        else:
            sorted_.made.append(found)
    return sorted_


def seconds(setting: Setting, made: Sequence[Record], key: str = "cpu_seconds") -> float | None:
    """What a run will take: the median of those like it, else of all, scaled by its tokens.

    Runs are alike that differ in gate, seed, learning rate and optimizer alone. None without any.
    """

    def shape(options):
        return {k: v for k, v in options.items() if not k.startswith(("gate.", "optimizer."))}

    def work(options):
        # Sampling and evaluating a batch cost about as much as an epoch of updates on it.
        rows = options["rollout.prompts"] * options["rollout.samples"]
        width = options["window.prompt"] + options["window.completion"]
        return options["iterations"] * rows * width * (1 + options["training.epochs"])

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
    for reason in dict.fromkeys(waiting.absent.values()):
        methods = [method for method, of in waiting.absent.items() if of == reason]
        print(f"left out: {', '.join(methods)}: {reason.partition(';')[0]}")
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


@contextlib.contextmanager
def claim(setting: Setting, folder: Path) -> Iterator[bool]:
    """Whether the run is this process's to make; the claim ends with the block or the process.

    Args:
      setting: which run.
      folder: of the claims, one for all processes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    identity = json.dumps(setting.identity(), sort_keys=True)
    name = hashlib.sha256(identity.encode()).hexdigest()[:16]
    with (folder / name).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def make(waiting: Sequence[Setting], folder: Path, laboratory, until: float | None) -> bool:
    """Makes runs one after the other and keeps each; whether the time sufficed for all.

    Args:
      waiting: the runs.
      folder: of the results.
      laboratory: a `Laboratory`.
      until: of the monotonic clock; None for as long as it takes.
    """
    code = commit()
    for number, setting in enumerate(waiting, start=1):
        expected = seconds(setting, records.read(folder), "seconds") or 0.0
        if until is not None and time.monotonic() + expected > until:
            print(f"{number - 1} of {len(waiting)} made; the time is up")
            return False
        with claim(setting, folder / ".claims") as mine:
            find = functools.partial(records.find, records.read(folder))
            if mine and find(setting) is None:
                make_one(f"{number}/{len(waiting)}", setting, find, folder, laboratory, code)
    return True


def make_one(place: str, setting: Setting, find: Find, folder: Path, laboratory, code: str) -> None:
    """Makes one run and keeps it; not where the run that it replays is missing.

    Args:
      place: in the queue, to be printed.
      setting: which run.
      find: gives the runs that there are.
      folder: of the results.
      laboratory: a `Laboratory`.
      code: the commit to be recorded.
    """
    shares = None
    if setting.replay is not None:
        donor = find(setting.replay.of)
        if donor is None:
            print(f"left out: {setting.method}: the run that it replays was not made")
            return
        shares = records.shares(donor, setting.replay.form, setting.options["iterations"])
    record = laboratory.run(setting, shares)
    records.append(folder / f"{FIGURE.value}.jsonl", {**record, "commit": code})
    first, end = record["held_out"][0], record["held_out"][-1]
    name = records.measure(record)
    # Parameters that are not finite have no number.
    after = "not finite" if end[name] is None else f"{end[name]:.3f}"
    print(
        f"{place} {setting}: {first[name]:.3f} -> {after} in {record['seconds']:.0f} s"
        + (f"; {record['collapsed']}" if record["collapsed"] else ""),
        flush=True,
    )


def main(argv: list[str]) -> None:
    """Runs the queue, and what its results bring into it."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    logging.set_verbosity(logging.ERROR)
    until = None if MINUTES.value is None else time.monotonic() + 60 * MINUTES.value
    folder = Path(RESULTS.value)
    from experiments.study.laboratory import Laboratory
    from fiberjax.parallel import distributed

    distributed.leave_out_absent_tpus()
    laboratory, before = Laboratory(make_config), None
    while True:
        made = records.read(folder)
        find = functools.partial(records.find, made)
        settings = first_seeds(FIGURES[FIGURE.value](int(STAGE.value), find), FIRST.value)
        todo = queue(settings, made, laboratory.config)
        if not todo.waiting or todo.waiting == before:  # The rest replays what is not there.
            if before is None:
                announce(todo, made)
            return
        announce(todo, made)
        if LIST.value:
            for setting in todo.waiting:
                print(f"  {setting}")
            return
        if not make(todo.waiting, folder, laboratory, until):
            return
        before = todo.waiting


if __name__ == "__main__":
    app.run(main)
