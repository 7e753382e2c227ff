"""What a lag of the rollouts costs in learning, and what of an iteration it hides.

    python benchmarks/asynchronous.py learning
    python benchmarks/asynchronous.py overlap
    python benchmarks/asynchronous.py plans

`learning` trains `configs/first_steps.py` on one CPU device, whole runs of 40 iterations, under
lags of 0, 1 and 4 and three seeds each, and prints held-out mean@4 before and after; and 4 again
without a correction.

`overlap` times iterations of a policy, taught nothing, under a reward that waits for somebody else,
as a judge on a network does: with scores begun after the rewards, as they were once, with scores
begun before them, and under a lag of 1. Wall seconds and the processor's seconds of this process,
medians; iterations of the three take turns, so that what else the machine does is shared out.

`plans` runs nothing. It reads the compiled programs of `benchmarks/results/plans` on 256 chips and
says how long an iteration takes where sampling and updates take turns on all of them, and where a
half or a quarter of the chips samples while the others update. A program takes the longer of its
arithmetic and its traffic with HBM, and then its exchange: a bound, not a measurement. On fewer
chips updates take as much longer as there are fewer. A chip then samples more rows: more at a time
where memory holds their cache, whose traffic grows with them while that of the parameters stays,
and in more parts where it does not; the best of these is taken, on all chips too. All answers are
as long as the window, and scoring, rewards and the push of weights are left out.
"""

import json
import math
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LAGS = ((0, "none"), (1, "truncate"), (4, "truncate"), (4, "uncorrected"))
SEEDS = (0, 1, 2)
ITERATIONS = 12
WAITS = 1.0  # Seconds a batch.
PROGRAMS = ("sampler", "train step")
COLUMNS, TOKENS = 4096, 3072  # Of a row, and of its completion, in the shipped configs,
UPDATES = 4  # and so many updates an iteration.


def learning(folder: Path) -> None:
    """Prints a line a run."""
    import fiberjax as fj
    from configs import first_steps

    for seed in SEEDS:
        for lag, mismatch in LAGS:
            config = first_steps.get_config()
            config.seed, config.tasks.data_dir = seed, str(folder / "data")
            config.warm_start.directory = str(folder / "warm_starts")
            config.rollout.lag, config.training.mismatch = lag, mismatch
            config.keep.rollouts, config.evaluation.every = "", 0
            config.writers = ("jsonl",)
            began = time.process_time()
            run = fj.run_experiment(config, folder / f"{lag}_{mismatch}_{seed}")
            metrics = run.metrics()
            effective = statistics.median(metrics["mismatch/effective_sample_size"][5:])
            overall = run.table.row("overall", "mean@4")
            print(
                f"lag {lag}, {mismatch}, seed {seed}: before {overall.before.value:.3f}, after "
                f"{overall.after.value:.3f} (behaviour ESS {effective:.3f}, "
                f"{time.process_time() - began:.0f} CPU-s)",
                flush=True,
            )


def overlap(folder: Path) -> None:
    """Prints a line a way of running."""
    import jax

    from configs import first_steps
    from fiberjax import experiment
    from fiberjax.run.trainer import Trainer
    from fiberjax.run.warm_start import random_params
    from fiberjax.train.rollout import Sampler

    pay = Sampler.pay
    Sampler.pay = lambda *of: (time.sleep(WAITS), pay(*of))[1]  # type: ignore[method-assign]
    ways: dict[str, Any] = {}
    for name, lag in (("scores after rewards", 0), ("scores before", 0), ("lag 1", 1)):
        config = first_steps.get_config()
        config.tasks.data_dir, config.warm_start.steps = str(folder / "data"), 0
        config.iterations = ITERATIONS
        config.training.mismatch, config.rollout.lag = "truncate", lag
        config.window.completion, config.rollout.prompts = 48, 64
        config.policy.embed_dim, config.policy.mlp_dim = 128, 384
        config.policy.head_dim, config.training.micro_batches = 64, 4
        config.training.epochs = 1
        built = experiment.from_config(config, jax.devices()[:1])
        trainer = Trainer(built, None)
        if name == "scores after rewards":
            _score_late(trainer)
        state = built.fresh_state(random_params(built.policy, built.mesh, seed=0))
        ways[name] = [trainer, state, built.prompt_stream(), [], []]
    for iteration in range(ITERATIONS):
        for way in ways.values():
            trainer, state, stream, wall, cpu = way
            began = time.monotonic(), time.process_time()
            way[1], _ = trainer.iterate(state, stream, iteration)
            if 2 <= iteration < ITERATIONS - 1:
                wall.append(time.monotonic() - began[0])
                cpu.append(time.process_time() - began[1])
    for name, (_, _, _, wall, cpu) in ways.items():
        print(
            f"{name}: {statistics.median(wall):.2f} s an iteration ({min(wall):.2f} to "
            f"{max(wall):.2f}), {statistics.median(cpu):.2f} CPU-s"
        )


def plans(folder: Path) -> None:
    """Prints a table of the shipped configs."""
    import importlib

    print("| config | slice | sampling, s | updates, s | turns | 1:1 | 1:3 |")
    print("|---|---|---|---|---|---|---|")
    for path in sorted((ROOT / "benchmarks/results/plans").glob("*_16x16.json")):
        plan, name = json.loads(path.read_text()), path.stem.rsplit("_", 2)[0]
        most = importlib.import_module(f"configs.{name}").get_config().rollout.max_rows
        whole = _modelled(plan, most, 1, 1)
        cells = [f"{of:.1f}" for of in (*whole, sum(whole))]
        for share in (1 / 2, 1 / 4):
            cells.append(f"{max(_modelled(plan, most, share, 1 - share)):.1f}")
        print(f"| `{name}` | `{plan['topology']}` | {' | '.join(cells)} |")


def _modelled(plan: dict[str, Any], most: int, samples: float, updates: float) -> tuple[float, ...]:
    """Seconds of sampling and of the updates of an iteration, on shares of the chips.

    Args:
      plan: of all chips, whose sampler decodes `most` rows at a time on each row shard.
      most: those rows.
      samples: the share of the chips that samples.
      updates: the share that updates.
    """
    from fiberjax.plans.topologies import parse_topology

    chip = parse_topology(plan["topology"]).chip
    sampler, step = ({of["name"]: of for of in plan["programs"]}[name] for name in PROGRAMS)
    mesh = plan["mesh"]
    rows = UPDATES * plan["tokens"] / COLUMNS / (mesh["data"] * mesh["fsdp"]) / samples

    def seconds(program: dict[str, Any], hbm: float, work: float) -> float:
        ideal, exchange = program["ideal_seconds"], program["wire_bytes"] / chip.ici_bandwidth
        return max(work * ideal, hbm / chip.hbm_bandwidth) + work * exchange

    # A step of the loop reads the parameters once, whatever the rows.
    fixed = min(TOKENS * sampler["memory"]["parameters"], sampler["hbm_bytes"])
    room = sampler["limit_bytes"] - sampler["peak_bytes"]
    found = []
    for more in (1, 2, 4, 8):
        if (more - 1) * sampler["memory"]["key-value cache"] <= room:
            hbm = fixed + more * (sampler["hbm_bytes"] - fixed)
            found.append(math.ceil(rows / (more * most)) * seconds(sampler, hbm, more))
    return min(found), UPDATES * seconds(step, step["hbm_bytes"] / updates, 1 / updates)


def _score_late(trainer: Any) -> None:
    draw = trainer._draw
    trainer._draw = lambda *of, score, **options: draw(*of, score=False, **options)


def main(argv: list[str]) -> None:
    """Runs what is asked for."""
    parts = {"learning": learning, "overlap": overlap, "plans": plans}
    if len(argv) != 2 or argv[1] not in parts:
        raise SystemExit(f"usage: python benchmarks/asynchronous.py {' | '.join(parts)}")
    os.environ["JAX_PLATFORMS"] = "cpu"
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory() as folder:
        parts[argv[1]](Path(folder))


if __name__ == "__main__":
    main(sys.argv)
