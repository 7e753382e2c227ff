"""Faults tried at random on whole runs of the tiny config, as a table.

    python tests/faults/campaign.py                     five of each kind
    python tests/faults/campaign.py --count 50          so many of each
    python tests/faults/campaign.py --kinds kill,twice  those alone
    python tests/faults/campaign.py --counts kill=50,ask=20

Every trial does a run harm, gives the same command again, and compares what is there at the end
with a run that nothing happened to: metrics, evaluation, samples, rollouts, parameters and all that
a checkpoint holds beside them, bit for bit. What must be refused is given back as it was first.
Moments are drawn within the processor time that a run takes, so that they are those of the run and
not of whatever else the machine does. Runs are forked from a process that has imported before
(`forked.py`); `--program "python experiments/train.py"` starts a new interpreter for each. Disks
that fill up need the right to mount one, and are left out without. Ends with status 1 where a run
was lost.
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from absl import logging
from forked import Forked, Parent

ROOT = Path(__file__).parents[2]
ITERATIONS = 3
OPTIONS = (
    *(
        "--config=tests/tiny.py",
        f"--config.iterations={ITERATIONS}",
        "--config.warm_start.steps=20",
    ),
    *("--config.keep.show_every=0", "--config.checkpoint.every=1", "--config.checkpoint.keep=2"),
)
HOSTS = 4
# What several hosts need beside: rows to share, each on a device of its own.
SHARED = ("--config.mesh.data=-1", "--config.evaluation.batch=8", "--config.evaluation.prompts=2")
HALTED_SECONDS = 240  # In which the others must have ended.
ASKED = 75  # The status of a run that was asked to end.


Started = subprocess.Popen | Forked


class Lost(Exception):
    """A run did not do what it must."""


def environment(shared: Path) -> dict[str, str]:
    """What runs are started with: compiled programs of all trials are kept, the fastest too."""
    kept = {"JAX_COMPILATION_CACHE_DIR": str(shared / "jax"), "JAX_PLATFORMS": "cpu"}
    kept |= dict.fromkeys(["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"], "0")
    kept |= dict.fromkeys(["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"], "-1")
    return kept | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}


def used(process: Started, seconds: float = float("inf")) -> float:
    """Waits until a process has used so many seconds of a processor, or ended; those it had."""
    found, tick = 0.0, os.sysconf("SC_CLK_TCK")
    while process.poll() is None and found < seconds:
        time.sleep(0.01)
        with contextlib.suppress(OSError):  # It has just ended.
            told = Path(f"/proc/{process.pid}/stat").read_text().rpartition(") ")[2].split()
            found = max(found, (int(told[11]) + int(told[12])) / tick)
    return found


@dataclasses.dataclass
class Trial:
    """What a fault is tried on.

    Attributes:
      program: the command, without its options, or the process that forks one.
      shared: data sets, warm starts and compiled programs of all trials.
      folder: of this trial alone; the run is in `run`.
      whole: the run that nothing happened to.
      seconds: of a processor that it took.
      draw: of everything random.
    """

    program: list[str] | Parent
    shared: Path
    folder: Path
    whole: Path
    seconds: float
    draw: random.Random

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def start(
        self,
        workdir: Path | None = None,
        *more: str,
        together: bool = False,
        jump: tuple[float, int] | None = None,
        **places: Path,
    ) -> Started:
        """Starts a run.

        Args:
          workdir: its folder; None for the trial's.
          *more: more options.
          together: whether its errors go where its output does.
          jump: seconds after which the clock jumps by so many days.
          **places: other folders for `data` and `warm_starts`.
        """
        options = {
            "--config.tasks.data_dir": places.get("data", self.shared / "data"),
            "--config.warm_start.directory": places.get("warm_starts", self.shared / "warm"),
            "--workdir": workdir or self.run,
        }
        arguments = [*OPTIONS, *more, *(f"{key}={of}" for key, of in options.items())]
        if isinstance(self.program, Parent):
            number = len(list(self.folder.glob("*.out")))
            out = self.folder / f"{number}.out"
            out.touch()
            err = out if together else out.with_suffix(".err")
            return Forked(self.program, ["experiments/train.py", *arguments], out, err, jump)
        program = self.program
        if jump:
            given = program[1:] if program[0] == sys.executable else program
            program = [sys.executable, "tests/faults/jumping.py", *map(str, jump), *given]
        return subprocess.Popen(
            [*program, *arguments],
            cwd=ROOT,
            env=os.environ | environment(self.shared),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if together else subprocess.PIPE,
            text=True,
        )

    def start_hosts(self, workdir: Path) -> list[Started]:
        """Starts a run on several hosts, each a process with one device."""
        with socket.socket() as listener:
            listener.bind(("localhost", 0))
            port = listener.getsockname()[1]
        joined = (f"--coordinator=localhost:{port}", f"--num_processes={HOSTS}")
        return [
            self.start(workdir, *SHARED, *joined, f"--process_id={of}", together=True)
            for of in range(HOSTS)
        ]

    def finish_hosts(self, started: list[Started]) -> float:
        """Waits for a run on several hosts, all of which must end well; as `used`, of the first."""
        seconds = used(started[0])
        outputs = [process.communicate()[0] for process in started]
        for of, (process, out) in enumerate(zip(started, outputs, strict=True)):
            if process.returncode != 0:
                raise Lost(f"host {of}: status {process.returncode}: {out.strip()[-300:]}")
        return seconds

    def alone(self) -> None:
        """Makes what a run of one process is compared with, and measures it."""
        for _ in range(2):  # The second one reads what the first has compiled and taught.
            shutil.rmtree(self.run, ignore_errors=True)
            process = self.start()
            self.seconds = used(process)
            self.finish(process)
        print(f"undisturbed: {self.seconds:.1f} s of a processor", file=sys.stderr, flush=True)

    def on_hosts(self) -> float:
        """Makes what a run on several hosts is compared with, once; the seconds that one used."""
        self.whole = self.shared / "hosts"
        taken = self.shared / "hosts.seconds"
        if not taken.exists():
            for _ in range(2):  # The second one reads what the first has compiled and taught.
                shutil.rmtree(self.whole, ignore_errors=True)
                taken.write_text(str(self.finish_hosts(self.start_hosts(self.whole))))
        return float(taken.read_text())

    def finish(self, process: Started | None = None, **places: Path) -> str:
        """Waits for a run that must end well; what it printed."""
        process = process or self.start(**places)
        out, err = process.communicate()
        if process.returncode != 0:
            raise Lost(f"status {process.returncode}: {err.strip()[-300:]}")
        return out

    def refused(self, process: Started, told: str) -> None:
        """Waits for a run that must be refused, in one line."""
        _, err = process.communicate()
        lines = err.strip().splitlines()
        if process.returncode != 1 or len(lines) != 1 or told not in lines[0]:
            raise Lost(f"expected one line with {told!r}, got {process.returncode}: {err[-300:]}")

    def copy_whole(self) -> Path:
        """The finished run, copied to be harmed."""
        shutil.copytree(self.whole, self.run)
        return self.run


def kill(trial: Trial) -> str:
    """SIGKILL at one to three random moments."""
    moments = [trial.draw.uniform(0, trial.seconds) for _ in range(trial.draw.randint(1, 3))]
    for seconds in moments:
        process = trial.start()
        used(process, seconds)
        process.kill()
        process.communicate()
    trial.finish()
    return "after " + ", ".join(f"{seconds:.1f} s" for seconds in moments)


def ask(trial: Trial) -> str:
    """SIGTERM or SIGINT at a random moment; in one case of three a second signal."""
    number = trial.draw.choice([signal.SIGTERM, signal.SIGINT])
    seconds, twice = trial.draw.uniform(0, trial.seconds), trial.draw.random() < 1 / 3
    # Not ignored, as it would be by what a shell starts in the background.
    process = trial.start()
    used(process, seconds)
    told = f"{number.name} after {seconds:.1f} s{', twice' if twice else ''}: "
    process.send_signal(number)
    began = time.monotonic()
    if twice:
        time.sleep(trial.draw.uniform(0, 1))
        process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    told += f"status {process.returncode} in {time.monotonic() - began:.1f} s"
    # While modules are loaded, and once all is done, the signal ends the process by itself.
    begun, over = ((trial.run / of).exists() for of in ("config.json", "evaluation.md"))
    by_itself = process.returncode in (-signal.SIGTERM, -signal.SIGINT) and (over or not begun)
    lines = len(err.strip().splitlines())
    if not by_itself and (process.returncode not in (0, ASKED) or lines > 1):
        raise Lost(f"{told}: {err[-300:]}")
    trial.finish()
    return told


def damage_checkpoint(trial: Trial) -> str:
    """The newest checkpoint is harmed: a bit, an end, a file, or all of it."""
    newest = trial.copy_whole() / "checkpoints" / str(ITERATIONS)
    files = sorted(path for path in newest.rglob("*") if path.is_file() and path.stat().st_size)
    file, how = (
        trial.draw.choice(files),
        trial.draw.choice(["flip", "flip", "cut", "lose", "empty"]),
    )
    if how == "flip":
        _flip(file, trial.draw)
    elif how == "cut":
        os.truncate(file, trial.draw.randrange(file.stat().st_size))
    elif how == "lose":
        file.unlink()
    else:
        shutil.rmtree(newest)
        newest.mkdir()
    listed = file.name.startswith("digests.")
    out = trial.finish()
    if "is damaged" not in out and not (how == "lose" and listed and "no digests" in out):
        raise Lost(f"{how} {file.name}: it was not seen")
    return f"{how} {file.name if how != 'empty' else newest.name}"


def damage_cache(trial: Trial) -> str:
    """A warm start or a generated data set is harmed."""
    places = {name: trial.folder / name for name in ("data", "warm_starts")}
    shutil.copytree(trial.shared / "data", places["data"])
    shutil.copytree(trial.shared / "warm", places["warm_starts"])
    of = trial.draw.choice(["fiberjax_tasks", "warm_starts"])
    files = [
        path
        for path in sorted(trial.folder.rglob("*"))
        if of in path.parts and path.is_file() and path.stat().st_size > 8
    ]
    file = trial.draw.choice(files)
    _flip(file, trial.draw)
    out = trial.finish(**places)
    unused = ".config" in file.parts  # What tensorflow_datasets keeps for itself: no run reads it.
    if "anew" not in out and not unused:
        raise Lost(f"flip {file.name}: it was not seen")
    return f"flip {file.name}"


def damage_rollouts(trial: Trial) -> str:
    """A file of kept rollouts is harmed: refused by its name, or read as it was."""
    import numpy as np

    from fiberjax.run.kept_files import load_rollouts

    run = trial.copy_whole()
    file = trial.draw.choice(sorted((run / "rollouts").glob("*.parquet")))
    whole, expected = file.read_bytes(), load_rollouts(file)
    how = trial.draw.choice(["flip", "flip", "flip", "cut", "empty"])
    if how == "flip":
        _flip(file, trial.draw)
    else:
        os.truncate(file, trial.draw.randrange(len(whole)) if how == "cut" else 0)
    try:
        found = load_rollouts(file)
    except ValueError as error:
        told = "refused"
        if str(file) not in str(error) or "\n" in str(error):
            raise Lost(f"{how}: {error}") from None
    else:
        told = "read as it was"
        names = ("tokens", "mask", "old_log_prob", "sampler_log_prob", "advantage", "row")
        same = all(np.array_equal(getattr(found, of), getattr(expected, of)) for of in names)
        if not (same and found.table.equals(expected.table) and found.meta == expected.meta):
            raise Lost(f"{how}: it was not seen")
    trial.finish()  # Nothing of a run hangs on it.
    file.write_bytes(whole)
    return f"{how} {file.name}: {told}"


def lose(trial: Trial) -> str:
    """A part of the run folder is gone: refused, put back, gone on with."""
    run = trial.copy_whole()
    name, told = trial.draw.choice(
        [
            ("checkpoints", "has lost its checkpoints"),
            ("metrics.jsonl", "metrics.jsonl is missing"),
            ("config.json", "config.json is missing"),
        ]
    )
    aside = trial.folder / "aside"
    (run / name).rename(aside)
    trial.refused(trial.start(), told)
    aside.rename(run / name)
    trial.finish()
    return name


def twice(trial: Trial) -> str:
    """Two runs in one folder, the second at a random moment."""
    first = trial.start()
    seconds = trial.draw.uniform(0, trial.seconds / 2)
    used(first, seconds)
    second = trial.start()
    outcomes = [process.communicate() for process in (first, second)]
    codes = [process.returncode for process in (first, second)]
    # Whichever was there first goes on.
    if sorted(codes) == [0, 1]:
        if "is in use by another run" not in outcomes[codes.index(1)][1]:
            raise Lost(outcomes[codes.index(1)][1][-300:])
    elif codes != [0, 0]:  # The first may have ended meanwhile.
        raise Lost(f"{codes}: {outcomes[0][1][-200:]} {outcomes[1][1][-200:]}")
    trial.finish()
    return f"second after {seconds:.1f} s: {codes}"


def fill(trial: Trial) -> str:
    """A disk of a random size for the run, the data or the warm start, made larger after."""
    place = trial.folder / "disk"
    place.mkdir()
    of = trial.draw.choice(["run", "run", "data", "warm_starts"])
    size = trial.draw.randrange(8, {"run": 600, "data": 250, "warm_starts": 100}[of]) * 1024
    _mount(place, size)
    try:
        inside = place / of
        places = {} if of == "run" else {of: inside}
        for attempt in range(2):
            workdir = inside if of == "run" else trial.run
            process = trial.start(workdir, **places)
            if attempt == 0:
                err = process.communicate()[1]
                if process.returncode == 0:
                    break
                if "no room to write" not in err and "cannot be written: " not in err:
                    raise Lost(f"{of}, {size} bytes: {err[-300:]}")
                if len(err.strip().splitlines()) > 1:
                    raise Lost(f"{of}, {size} bytes: more than a line: {err[:600]}")
                _mount(place, 2**26, "remount,")
            else:
                trial.finish(process)
        if of == "run":
            shutil.copytree(inside, trial.run)
        return f"{of}, {size // 1024} KiB: " + (
            err.partition("no room to write ")[2][:40] or "fits"
        )
    finally:
        subprocess.run(["umount", str(place)], check=False)


def jump(trial: Trial) -> str:
    """The clock jumps by a day, forward or back, at a random moment; a second run is refused."""
    seconds, days = trial.draw.uniform(0, trial.seconds), trial.draw.choice([-1, 1])
    process = trial.start(jump=(seconds, days))
    lock = trial.run / "run.lock"
    while process.poll() is None and not lock.exists():
        time.sleep(0.1)
    if process.poll() is None:
        second = trial.start()
        err = second.communicate()[1]
        if second.returncode != 0 and "is in use by another run" not in err:
            raise Lost(f"the second run: {err[-300:]}")
        if second.returncode == 0 and process.poll() is None:
            raise Lost("the second run was not refused")
    trial.finish(process)
    return f"{days:+} days after {seconds:.1f} s"


def pause(trial: Trial) -> str:
    """One of four hosts is paused for up to half a minute at a random moment, and goes on."""
    moment, which = trial.draw.uniform(0, trial.on_hosts()), trial.draw.randrange(HOSTS)
    paused = trial.draw.uniform(1, 30)
    started = trial.start_hosts(trial.run)
    used(started[which], moment)
    started[which].send_signal(signal.SIGSTOP)
    time.sleep(paused)
    started[which].send_signal(signal.SIGCONT)
    trial.finish_hosts(started)
    return f"host {which} after {moment:.1f} s, for {paused:.1f} s"


def halt(trial: Trial) -> str:
    """One of four hosts stops for good: the others end by themselves, and all begin again."""
    moment, which = trial.draw.uniform(0, trial.on_hosts()), trial.draw.randrange(HOSTS)
    started = trial.start_hosts(trial.run)
    used(started[which], moment)
    began = time.monotonic()
    started[which].send_signal(signal.SIGSTOP)
    others = [process for process in started if process is not started[which]]
    try:
        for process in others:
            process.wait(HALTED_SECONDS)
        noticed = time.monotonic() - began
    except subprocess.TimeoutExpired:
        raise Lost(f"host {which} stopped after {moment:.1f} s: no other noticed") from None
    finally:
        for process in started:
            process.kill()
            process.communicate()
    trial.finish_hosts(trial.start_hosts(trial.run))
    return f"host {which} after {moment:.1f} s, the others ended {noticed:.1f} s later"


KINDS: dict[str, Callable[[Trial], str]] = {
    "kill": kill,
    "ask": ask,
    "damage": damage_checkpoint,
    "cache": damage_cache,
    "rollouts": damage_rollouts,
    "lose": lose,
    "twice": twice,
    "fill": fill,
    "jump": jump,
    "pause": pause,
    "halt": halt,
}


def _flip(file: Path, draw: random.Random) -> None:
    """Turns one bit."""
    content = bytearray(file.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    file.write_bytes(content)


def _mount(place: Path, size: int, how: str = "") -> None:
    options = f"{how}size={size}"
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    subprocess.run(command, check=True, capture_output=True)


def can_mount() -> bool:
    """Whether a disk can be made to fill up."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            _mount(Path(folder), 2**16)
        except (OSError, subprocess.CalledProcessError):
            return False
        subprocess.run(["umount", folder], check=True)
        return True


def contents(run: Path) -> Iterator[tuple[str, Any]]:
    """All of a run that may not depend on what happened to it."""
    for line in (run / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        kept = {k: v for k, v in row.items() if not k.startswith(("timing/", "perf/"))}
        yield f"metrics of {row['step']}", kept
    yield "evaluation.json", json.loads((run / "evaluation.json").read_text())
    # Others begin with a point, as what was never put into its place.
    for path in sorted((*run.glob("samples/[!.]*"), *run.glob("rollouts/[!.]*"))):
        yield path.name, rows(path) if path.suffix == ".parquet" else path.read_bytes()
    newest = run / "checkpoints" / str(ITERATIONS)
    yield "host", json.loads((newest / "host" / "metadata").read_text())
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    # As arrays of the host, whatever devices it was on.
    reader = ocp.PyTreeCheckpointer()
    tree = reader.metadata(newest / "state").item_metadata.tree
    arrays = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    state = reader.restore(newest / "state", ocp.args.PyTreeRestore(restore_args=arrays))
    for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
        yield jax.tree_util.keystr(path), np.asarray(leaf).tobytes()


def rows(path: Path) -> bytes:
    """The rows of a file, without what it says of itself: its config names other folders."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(path).replace_schema_metadata(None)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return sink.getvalue().to_pybytes()


@functools.cache
def _contents_of(whole: Path) -> dict[str, Any]:
    return dict(contents(whole))


def difference(run: Path, whole: Path) -> str:
    """The first thing in which two runs differ; "" for none."""
    a, b = dict(contents(run)), _contents_of(whole)
    if a.keys() != b.keys():
        return f"only one has {sorted(a.keys() ^ b.keys())[:3]}"
    return next((name for name in a if a[name] != b[name]), "")


def main(arguments: list[str]) -> int:
    """Tries them; prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=5, help="of each kind")
    parser.add_argument("--counts", default="", help="of some kinds others: kill=50,ask=20")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--program", default="", help="started anew for each, not forked")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begins none after")
    given = parser.parse_args(arguments)
    kinds = [name for name in given.kinds.split(",") if name != "fill" or can_mount()]
    counts = dict.fromkeys(kinds, given.count)
    counts |= {
        name: int(of) for name, _, of in (x.partition("=") for x in given.counts.split(",") if x)
    }
    os.environ["JAX_PLATFORMS"] = "cpu"
    logging.set_verbosity(logging.ERROR)  # Checkpoints tell a lot.
    signal.signal(signal.SIGINT, signal.default_int_handler)  # Which those started inherit.
    until, table = time.monotonic() + 60 * given.minutes, {name: [0, 0, 0] for name in kinds}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        shared = Path(folder) / "shared"
        shared.mkdir()
        program: list[str] | Parent = given.program.split() or Parent(**environment(shared))
        if isinstance(program, Parent):
            stack.callback(program.close)
        trial = Trial(program, shared, shared, shared / "run", 0.0, random.Random())
        if set(kinds) - {"pause", "halt"}:
            trial.alone()
        # Should time end, the kinds were tried in proportion.
        planned = sorted((n / counts[of], n, of) for of in kinds for n in range(1, counts[of] + 1))
        for _, number, name in planned:
            if time.monotonic() > until:
                break
            place = Path(folder) / f"{name}{number}"
            place.mkdir()
            own_draw = random.Random(f"{given.seed} {name} {number}")
            own = dataclasses.replace(trial, folder=place, draw=own_draw)
            table[name][0] += 1
            try:
                told = KINDS[name](own)
                table[name][1] += 1
                another = difference(own.run, own.whole)
                table[name][2] += not another
                told += f"; DIFFERS in {another}" if another else ""
            except Lost as error:
                told = f"LOST: {error}"
            print(f"{name} {number}: {told}", file=sys.stderr, flush=True)
            shutil.rmtree(place)
    print("| fault | tried | survived | identical at the end |\n|---|---:|---:|---:|")
    rows = [(KINDS[name].__doc__ or name, counts) for name, counts in table.items()]
    for what, counts in rows:
        print("| " + " | ".join([what.rstrip("."), *map(str, counts)]) + " |")
    tried, survived, same = (sum(counts[i] for _, counts in rows) for i in range(3))
    print(f"| all | {tried} | {survived} | {same} |")
    return int(same < tried)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
