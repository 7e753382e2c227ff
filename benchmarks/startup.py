"""How long the quickstart takes to its first samples and to its first updates.

    python benchmarks/startup.py
    python benchmarks/startup.py --commits=HEAD,d3f7d80    # an earlier one beside it, in turns

From the start of the process, as often as asked, each commit in a worktree of its own:

* `cold`: nothing is there but a warm start, of five steps in place of 450: task data are built, and
  every program is compiled;
* `warm`: the same command again, with what the first one left in the user's cache and in the run's
  data folder.

Samples are there when the rollouts of the first iteration are verified and scored, after the
evaluation of the warm start; updates when those of the iteration are made. Prints a table of the
least wall and CPU seconds and the programs of the last cold start that took over half a second to
compile, and saves all in `startup.json` in the folder `--output`.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from absl import app, flags

FLAGS = flags.FLAGS
COMMITS = flags.DEFINE_list("commits", ["HEAD"], "Whose code to measure.")
REPEATS = flags.DEFINE_integer("repeats", 3, "Starts of each kind.")
OUTPUT = flags.DEFINE_string("output", "benchmarks/results", "Where the results are written.")

ROOT = Path(__file__).parents[1]
STAGES = ("first samples", "first updates")

PROBE = """
import json, os, runpy, sys, time
sys.path.insert(0, os.getcwd())
begun = float(os.environ.pop("BEGUN"))
import jax
from fiberjax.run.trainer import Trainer

def tell(*line):
    with open(os.environ["STAGES"], "a") as file:
        print(json.dumps(line), file=file)

def heard(event, seconds, **told):
    if event == "/jax/core/compile/backend_compile_duration" and seconds > 0.5:
        tell("program", told.get("fun_name", ""), seconds)

jax.monitoring.register_event_duration_secs_listener(heard)

def timed(name):
    method = getattr(Trainer, name)
    def run(*args, **kwargs):
        result = method(*args, **kwargs)
        cpu = sum(os.times()[:4])
        stage = "first updates" if name == "update" else "first samples"
        tell(stage, time.time() - begun, cpu)
        if name == "update":
            os._exit(0)
        return result
    setattr(Trainer, name, run)

timed("_prepared" if hasattr(Trainer, "_prepared") else "collect")
timed("update")
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

Found = dict[str, Any]
"""Stage -> wall and CPU seconds from the start of the process to its end; "programs" -> name and
seconds of each that took over half a second to compile, in their order."""


def start(code: Path, home: Path, options: list[str], name: str) -> Found:
    """Starts the quickstart of some code, and ends it after its first updates."""
    command = [sys.executable, "-c", PROBE, "experiments/train.py"]
    command += ["--config=configs/quickstart.py", f"--workdir={home / name}", *options]
    environment = {**os.environ, "XDG_CACHE_HOME": str(home / "cache"), "BEGUN": str(time.time())}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    stages = environment["STAGES"] = str(home / f"{name}.jsonl")
    subprocess.run(command, cwd=code, env=environment, check=True, capture_output=True)
    lines = [json.loads(line) for line in Path(stages).read_text().splitlines()]
    programs = [of for kind, *of in lines if kind == "program"]
    return {kind: of for kind, *of in lines if kind in STAGES} | {"programs": programs}


def cold_and_warm(code: Path, warm_start: Path) -> dict[str, Found]:
    """Two starts, the second with what the first has left."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        options = [
            f"--config.tasks.data_dir={home / 'data'}",
            f"--config.warm_start.directory={warm_start}",
            "--config.warm_start.steps=5",
        ]
        return {name: start(code, home, options, name) for name in ("cold", "warm")}


def table(found: dict[str, list[dict[str, Found]]]) -> str:
    """The least seconds of every commit, as Markdown."""
    lines = ["| commit | start | to | wall, s | CPU, s |", "|---|---|---|---|---|"]
    for commit, starts in found.items():
        for kind in ("cold", "warm"):
            for stage in STAGES:
                wall, cpu = (min(s[kind][stage][i] for s in starts) for i in (0, 1))
                lines.append(f"| {commit} | {kind} | {stage} | {wall:.1f} | {cpu:.1f} |")
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    """Measures all commits in turns, prints, saves."""
    del argv
    git = ["git", "-C", str(ROOT)]
    named = {
        name: subprocess.check_output([*git, "rev-parse", "--short", name], text=True).strip()
        for name in COMMITS.value
    }
    found: dict[str, list[dict[str, Found]]] = {commit: [] for commit in named.values()}
    with tempfile.TemporaryDirectory() as folder:
        trees = {commit: Path(folder) / commit for commit in named.values()}
        try:
            for commit, tree in trees.items():
                add = [*git, "worktree", "add", "-q", "--detach", tree, commit]
                subprocess.run(add, check=True)
                # Teaches the warm start, which is kept for all that follows.
                cold_and_warm(tree, Path(folder) / f"warm-{commit}")
            for _ in range(REPEATS.value):
                for commit, tree in trees.items():
                    found[commit].append(cold_and_warm(tree, Path(folder) / f"warm-{commit}"))
        finally:
            for tree in trees.values():
                subprocess.run([*git, "worktree", "remove", "--force", tree], check=False)
    print(table(found))
    for commit, starts in found.items():
        for name, seconds in starts[-1]["cold"]["programs"]:
            print(f"{commit} compiles {name} in {seconds:.1f} s")
    output = Path(OUTPUT.value)
    output.mkdir(parents=True, exist_ok=True)
    (output / "startup.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
