"""What keeping rollouts takes: CPU-seconds in its functions, on the quickstart's own shapes.

    python benchmarks/keeping.py

Three iterations of the quickstart are trained and kept, by the very trainer that runs are made
with, on one CPU device. The policy is not taught first, which saves most of the time: its answers
are nearly all as long as the window, and files as large as they get. The first two compile.
Counted are the processor's seconds of this process: in keeping (the table, its
texts, every update's metrics, the file), and in whole iterations.
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
ITERATIONS = 3


def main() -> None:
    """Measures, and prints a line an iteration."""
    sys.path.insert(0, str(ROOT))
    import jax

    jax.config.update("jax_platforms", "cpu")
    from configs import quickstart
    from fiberjax import experiment
    from fiberjax.run import keeping, trainer
    from fiberjax.run.warm_start import random_params

    class Timed(keeping.Keeper):
        """Counts the processor's seconds of keeping."""

        cpu = 0.0

        def keep(self, *arguments: Any, **options: Any) -> None:
            began = time.process_time()
            super().keep(*arguments, **options)
            self.cpu += time.process_time() - began

    joined, spent = trainer.joined, [0.0]

    def timed(pending: list) -> dict[str, float]:
        began = time.process_time()
        found = joined(pending)
        # Of one update alone: without keeping, nobody asks.
        spent[0] += (time.process_time() - began) * (len(pending) == 1)
        return found

    trainer.joined = timed
    with tempfile.TemporaryDirectory() as folder:
        config = quickstart.get_config()
        config.tasks.data_dir = f"{folder}/data"
        config.warm_start.steps = 0
        config.keep.rollouts = "every 1"
        built = experiment.from_config(config, jax.devices()[:1])
        keeper = Timed(built, Path(folder), 0, print)
        by = trainer.Trainer(built, None, keeper=keeper)
        state = built.fresh_state(random_params(built.policy, built.mesh, seed=0))
        stream = built.prompt_stream()
        for iteration in range(ITERATIONS):
            keeper.cpu, spent[0], began = 0.0, 0.0, time.process_time()
            state, _ = by.iterate(state, stream, iteration)
            whole = time.process_time() - began
            file = Path(folder) / "rollouts" / f"{iteration + 1:06d}.parquet"
            kept = keeper.cpu + spent[0]
            print(
                f"iteration {iteration + 1}: keeping {kept:.2f} CPU-s ({spent[0]:.2f} of them the "
                f"updates' metrics) of {whole:.1f}, {100 * kept / whole:.1f} %; "
                f"{file.stat().st_size / 1e6:.2f} MB"
            )


if __name__ == "__main__":
    main()
