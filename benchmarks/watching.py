"""What watching a run takes of it: CPU-seconds of evaluations, samples and kept rollouts.

    python benchmarks/watching.py --workdir=runs/watched

A whole quickstart is trained in the folder, by the loop that runs are made with, and nothing that
was compiled before is read. Counted are the processor's seconds of this process, of all threads, in
the functions that watch, what they compile included, and in all.
"""

import argparse
import collections
import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Trains; prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True)
    folder = Path(parser.parse_args().workdir)
    sys.path.insert(0, str(ROOT))
    import jax

    jax.config.update("jax_platforms", "cpu")
    from configs import quickstart
    from fiberjax import experiment
    from fiberjax.run import keeping, loop, watching

    spent: dict[str, float] = collections.defaultdict(float)
    calls: collections.Counter[str] = collections.Counter()

    def counted(what: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            began = time.process_time()
            found = function(*arguments, **options)
            spent[what] += time.process_time() - began
            calls[what] += 1
            return found

        return call

    loop.evaluate = counted("evaluations before and after", loop.evaluate)
    watching.evaluate = counted("points of the curve", watching.evaluate)
    watching.Watch.rollouts = counted("samples", watching.Watch.rollouts)  # type: ignore[method-assign]
    keeping.Keeper.keep = counted("kept rollouts", keeping.Keeper.keep)  # type: ignore[method-assign]
    config = quickstart.get_config()
    config.tasks.data_dir = str(folder / "data")
    config.warm_start.directory = str(folder / "warm_starts")
    built = experiment.from_config(config, jax.devices()[:1])
    loop.run(built, folder / "run", config.to_json_best_effort())
    whole = time.process_time()
    print("| what | times | CPU-s | share |\n|---|---:|---:|---:|")
    for what, seconds in spent.items():
        print(f"| {what} | {calls[what]} | {seconds:.2f} | {100 * seconds / whole:.2f} % |")
    total = sum(spent.values())
    print(f"| all of these, of {whole:.0f} CPU-s | | {total:.2f} | {100 * total / whole:.2f} % |")


if __name__ == "__main__":
    main()
