"""What the quickstart learns: gates, seeds and a control side by side, each a run of its own.

    python benchmarks/quickstart.py --workdir=runs/study

Runs `experiments/train.py` for every arm, in processes of their own, and collects held-out pass
rates before and after into `results/quickstart.{json,md,png}`. Arms of one seed share their warm
start. The control is rewarded for a random permutation of the true rewards; what it gains is what
training gives without information. The first arm runs twice: same seed, same metrics. A run that
has ended is not run again.
"""

import concurrent.futures
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from absl import app, flags

from fiberjax.presets import DEFAULT

FLAGS = flags.FLAGS
WORKDIR = flags.DEFINE_string("workdir", "runs/study", "Where the runs are kept.")
CONFIG = flags.DEFINE_string("config", "configs/quickstart.py", "The config, without a gate.")
SEEDS = flags.DEFINE_integer("seeds", 3, "Seeds of the quickstart and of GRPO.")
JOBS = flags.DEFINE_integer("jobs", 2, "Runs at a time.")
OVERRIDES = flags.DEFINE_multi_string("set", [], "Override of every arm, e.g. iterations=2.")
OUTPUT = flags.DEFINE_string("output", "benchmarks/results", "Where the results are written.")

ROOT = Path(__file__).parents[1]
EARLIER_RATE = 1e-3
"""A third of the quickstart's, which methods with whole steps bear better."""


class Arm(NamedTuple):
    """One run: a gate, and what is not as in the config.

    Attributes:
      gate: a preset.
      seed: of everything random.
      rate: learning rate; None for the config's.
      shuffled: whether its rewards are, so that nothing is to be learned.
      repeat: whether it repeats another one.
    """

    gate: str
    seed: int = 0
    rate: float | None = None
    shuffled: bool = False
    repeat: bool = False

    @property
    def label(self) -> str:
        """What the arm is called in tables and folders."""
        rate = "" if self.rate is None else f", rate {self.rate:g}"
        marks = rate + ", shuffled rewards" * self.shuffled + ", again" * self.repeat
        return f"{self.gate}, seed {self.seed}{marks}"


def arms(seeds: int) -> list[Arm]:
    """Every arm, the quickstart itself first."""
    return [
        Arm(DEFAULT),
        Arm("grpo"),
        Arm("grpo", rate=EARLIER_RATE),
        Arm(DEFAULT, shuffled=True),
        Arm("fiberpo_domain_pessimistic", rate=EARLIER_RATE),
        *(
            arm
            for seed in range(1, seeds)
            for arm in (Arm(DEFAULT, seed), Arm("grpo", seed, EARLIER_RATE))
        ),
        Arm(DEFAULT, repeat=True),
    ]


def run(arm: Arm, folder: Path) -> Path:
    """Trains one arm unless it has ended before; returns its folder."""
    workdir = folder / arm.label.replace(", ", "-").replace(" ", "_")
    if (workdir / "evaluation.json").exists():
        return workdir
    options = [
        f"--config={CONFIG.value}:{arm.gate}",
        f"--workdir={workdir}",
        f"--config.warm_start.directory={folder / 'warm_starts'}",
        f"--config.seed={arm.seed}",
        f"--config.rollout.shuffle_rewards={arm.shuffled}",
        *([] if arm.rate is None else [f"--config.optimizer.learning_rate={arm.rate}"]),
        *(f"--config.{override}" for override in OVERRIDES.value),
    ]
    workdir.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with (workdir / "log.txt").open("w") as log:
        done = subprocess.run(
            [sys.executable, "experiments/train.py", *options],
            cwd=ROOT,
            env=dict(os.environ) | {"PYTHONPATH": str(ROOT)},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    if done.returncode:
        raise RuntimeError(f"{arm.label} failed; see {workdir / 'log.txt'}")
    print(f"{arm.label}: {time.perf_counter() - start:.0f} s", flush=True)
    return workdir


def read(workdir: Path) -> dict:
    """Held-out mean@k of a run by domain: before, after, difference, each (value, low, high)."""
    rows = json.loads((workdir / "evaluation.json").read_text())["rows"]
    return {row["domain"]: row for row in rows if row["measure"].startswith("mean@")}


def metrics_of(workdir: Path) -> list[dict]:
    """The metrics of a run without its timings."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not is_timing(k)} for row in rows]


def is_timing(name: str) -> bool:
    """Whether a metric measures the machine, not the run."""
    return name.startswith(("timing/", "perf/"))


def to_markdown(results: dict[str, dict], identical: bool) -> str:
    """A row an arm: overall and by domain, after minus before with its 95 % interval."""
    domains = list(next(iter(results.values())))
    lines = [
        "| run | before | after | " + " | ".join(f"Δ {domain}" for domain in domains) + " |",
        "|---|---|---|" + "---|" * len(domains),
    ]
    for label, rows in results.items():
        overall = rows["overall"]
        changes = [
            "{:+.3f} [{:+.3f}, {:+.3f}]".format(*rows[domain]["difference"]) for domain in domains
        ]
        before, after = overall["before"][0], overall["after"][0]
        lines.append(f"| {label} | {before:.3f} | {after:.3f} | " + " | ".join(changes) + " |")
    verdict = "the same metrics" if identical else "DIFFERENT metrics"
    return "\n".join([*lines, "", f"The first arm, run twice, gave {verdict}."]) + "\n"


def draw(results: dict[str, dict], path: Path) -> None:
    """Overall and by domain: where each arm starts and where it ends."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    domains, labels = list(next(iter(results.values()))), list(results)
    across = math.ceil(len(domains) / 2)
    figure, grid = plt.subplots(
        2, across, figsize=(3.4 * across, 0.5 + 0.62 * len(labels)), sharey=True, sharex=True
    )
    for axes, domain in zip(grid.flat, domains, strict=False):
        for height, label in enumerate(reversed(labels)):
            row = results[label][domain]
            (before, *_), (after, low, high) = row["before"], row["after"]
            axes.annotate(
                "", (after, height), (before, height), arrowprops={"arrowstyle": "->", "lw": 1}
            )
            axes.plot(before, height, "o", color="#B8B8B8")
            error = [[after - low], [high - after]]
            axes.errorbar(after, height, xerr=error, fmt="o", color="#0072B2", capsize=2)
        axes.set(title=domain, xlim=(0, 1), yticks=range(len(labels)), yticklabels=labels[::-1])
        axes.grid(axis="x", alpha=0.3)
    figure.supxlabel("held-out pass rate before (grey) and after (blue, 95 % interval)")
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main(argv: list[str]) -> None:
    """Runs every arm, saves and plots."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    from fiberjax.run import plots

    chosen = arms(SEEDS.value)
    folder = Path(WORKDIR.value).absolute()
    with concurrent.futures.ThreadPoolExecutor(JOBS.value) as pool:
        # Seeds share warm starts: the first arm of each makes it before the others begin.
        firsts = list({arm.seed: arm for arm in reversed(chosen)}.values())
        made = dict(zip(firsts, pool.map(lambda arm: run(arm, folder), firsts), strict=True))
        rest = [arm for arm in chosen if arm not in made]
        made |= zip(rest, pool.map(lambda arm: run(arm, folder), rest), strict=True)
    folders = {arm.label: made[arm] for arm in chosen}
    results = {label: read(workdir) for label, workdir in folders.items()}
    first, again = metrics_of(made[chosen[0]]), metrics_of(made[chosen[-1]])
    output = Path(OUTPUT.value)
    output.mkdir(parents=True, exist_ok=True)
    (output / "quickstart.json").write_text(json.dumps(results, indent=1) + "\n")
    (output / "quickstart.md").write_text(to_markdown(results, first == again))
    draw(results, output / "quickstart.png")
    curves = {label: str(path) for label, path in folders.items() if "seed 0" in label}
    curves.pop(chosen[-1].label)
    keys = ["reward/mean", "actor/entropy", "actor/ppo_kl_k3"]
    plots.plot_compare(curves, keys, output / "quickstart_curves.png")
    print((output / "quickstart.md").read_text())


if __name__ == "__main__":
    app.run(main)
