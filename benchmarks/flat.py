"""Whether a run stays as it is: memory, files, threads and programs over many iterations.

    python benchmarks/flat.py --iterations=10000 --workdir=/tmp/flat

Trains the smallest run that has everything (`tests/tiny.py`) on two prompts of two completions an
iteration, with a checkpoint every 200 iterations, or `--checkpoint_every`, a point of the held-out
curve and samples every 100, and looks at its own process in between. Prints a row for each tenth of
the run, then what an iteration adds over its second half, a line fitted through all that was looked
at. The first half fills caches that are as large as they get.
"""

import argparse
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")
ROOT = Path(__file__).parents[1]
sys.path += [str(ROOT), str(ROOT / "tests")]


class Seen(NamedTuple):
    """What a look at the process found."""

    iteration: int
    megabytes: float
    files: int
    threads: int
    programs: int


class Looks(threading.Thread):
    """Looks at this process every now and then, and at how far its run has come."""

    def __init__(self, metrics: Path, every: float):
        super().__init__(daemon=True)
        self.seen: list[Seen] = []
        self._metrics, self._every = metrics, every
        self._programs = 0
        self._over = threading.Event()
        import jax

        jax.monitoring.register_event_duration_secs_listener(self._compiled)

    def _compiled(self, event: str, duration: float, **of: object) -> None:
        self._programs += event.endswith("backend_compile_duration")

    def run(self) -> None:
        """Looks until the end."""
        while not self._over.wait(self._every):
            iteration = self._iteration()
            if iteration > 0:
                self.seen.append(self._look(iteration))

    def _look(self, iteration: int) -> Seen:
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        files, threads = (len(os.listdir(f"/proc/self/{of}")) for of in ("fd", "task"))
        return Seen(iteration, resident / 1e6, files, threads, self._programs)

    def _iteration(self) -> int:
        """Of the last whole line of the metrics; 0 before there is one."""
        try:
            with self._metrics.open("rb") as file:
                file.seek(max(0, self._metrics.stat().st_size - 20_000))
                return int(json.loads(file.read().split(b"\n")[-2])["step"])
        except (OSError, IndexError, ValueError):
            return 0

    def end(self) -> list[Seen]:
        """Stops looking; all that was seen."""
        self._over.set()
        self.join()
        return self.seen


def main() -> None:
    """Trains, looks and prints."""
    import jax
    import numpy as np
    import tiny

    from fiberjax import experiment
    from fiberjax.run import loop

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=10_000)
    parser.add_argument("--checkpoint_every", type=int, default=200)
    parser.add_argument("--workdir", type=Path, required=True, help="emptied by nobody: a new one")
    given = parser.parse_args()
    config = tiny.get_config()
    config.iterations = given.iterations
    config.tasks.data_dir = str(given.workdir / "data")
    config.warm_start.directory = str(given.workdir / "warm_starts")
    config.rollout.prompts = config.rollout.samples = 2
    config.training.epochs = config.training.minibatches = 1
    config.evaluation.every = 100
    config.keep.every, config.keep.show_every = 100, 0
    config.checkpoint.every = given.checkpoint_every
    config.training.unpaid_iterations = 0
    run = given.workdir / "run"
    looks, began = Looks(run / "metrics.jsonl", 0.5), (time.monotonic(), time.process_time())
    looks.start()
    loop.run(experiment.from_config(config, jax.devices()[:1]), run, config.to_json_best_effort())
    seen = looks.end()
    print("\n| iteration | resident, MB | open files | threads | programs compiled |")
    print("|---:|---:|---:|---:|---:|")
    for tenth in range(11):
        wanted = max(1, tenth * given.iterations // 10)
        row = min(seen, key=lambda of: abs(of.iteration - wanted))
        print(f"| {row.iteration} | {row.megabytes:.1f} | {row.files} | {row.threads} | ", end="")
        print(f"{row.programs} |")
    # What follows the last iteration, the evaluation and the plots, is no part of it.
    early, late = (
        [of for of in seen if low < of.iteration / given.iterations < high]
        for low, high in ((0.1, 0.5), (0.5, 1.0))
    )
    at = np.array([of.iteration for of in late], float)
    slope = np.polyfit(at, [of.megabytes * 1e3 for of in late], 1)[0]
    print(f"\nover the second half {slope:+.2f} kB an iteration; at most, in the first half and ")
    for name in ("files", "threads", "programs"):
        most = [max(getattr(of, name) for of in part) for part in (early, late)]
        print(f"  in the second, {most[0]} and {most[1]} {name}")
    seconds, cpu = time.monotonic() - began[0], time.process_time() - began[1]
    print(f"{seconds:.0f} s, {cpu:.0f} s of all cores")


if __name__ == "__main__":
    main()
