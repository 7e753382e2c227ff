"""What it costs to lose no run: CPU-seconds of digests, locks and checks over a whole quickstart.

    python benchmarks/safety.py --whole=209

`--whole` is what the run takes besides, in CPU-seconds. Every part is measured on the quickstart's
own state, data and folder; nothing is trained.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax

from configs import quickstart
from fiberjax import digests, experiment
from fiberjax.run import identity, lock, provenance, writers
from fiberjax.run.checkpoints import Checkpoints
from fiberjax.run.warm_start import random_params


def seconds(call: Callable[[], object], times: int = 5) -> float:
    """CPU-seconds of a call, of all threads, in the mean."""
    call()
    began = time.process_time()
    for _ in range(times):
        call()
    return (time.process_time() - began) / times


def main() -> None:
    """Measures; prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--whole", type=float, required=True)
    whole = parser.parse_args().whole
    with tempfile.TemporaryDirectory() as scratch:
        folder, config = Path(scratch) / "run", quickstart.get_config()
        config.tasks.data_dir = f"{scratch}/data"
        built = experiment.from_config(config, jax.devices()[:1])
        state = jax.jit(built.fresh_state)(random_params(built.policy, built.mesh, 0))
        saves = built.iterations // built.checkpoint.every + 1  # With that of the warm start.
        with Checkpoints(folder / "checkpoints", keep=1) as saved:
            saved.save(1, state, {})
        kept = folder / "checkpoints" / "1"
        size = sum(path.stat().st_size for path in digests.files_of(kept)) / 1e6
        sets = [path.parent for path in Path(scratch, "data").rglob("features.json")]
        stream = built.prompt_stream()
        claim = config.to_json_best_effort()
        with lock.held(folder), writers.open_writers(folder, resume_step=None) as writer:
            writer.write(1, {f"metric/{i}": i / 7 for i in range(60)})
            parts = [
                (
                    f"digests of a checkpoint, {size:.1f} MB",
                    seconds(lambda: digests.write(kept, digests.files_of(kept))),
                    saves,
                ),
                ("digests compared before it is read", seconds(lambda: digests.problem(kept)), 2),
                (
                    "digests of the data sets compared, for both splits",
                    seconds(lambda: [digests.problem(of) for of in sets]),
                    2,
                ),
                ("metrics forced to the disk", seconds(writer.flush), saves),
                ("the lock looked at", seconds(lambda: lock.check(folder), 100), built.iterations),
                ("the stream remembered", seconds(stream.get_state, 100), built.iterations),
                ("what made the run", seconds(lambda: provenance.record(folder, 0)), 1),
            ]
        empty = Path(scratch) / "empty"
        parts.append(("lock taken and given", seconds(lambda: _held(empty)), 1))
        parts.append(("config and inputs", seconds(lambda: identity.claim(empty, built, claim)), 2))
    print("| what | CPU-ms | times | CPU-s of a run |\n|---|---:|---:|---:|")
    for what, each, times in parts:
        print(f"| {what} | {1e3 * each:.2f} | {times} | {each * times:.3f} |")
    total = sum(each * times for _, each, times in parts)
    print(f"| all, {100 * total / whole:.2f} % of {whole:.0f} s | | | {total:.2f} |")


def _held(folder: Path) -> None:
    with lock.held(folder):
        pass


if __name__ == "__main__":
    main()
