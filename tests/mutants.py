"""Deliberate faults, and the tests that must catch them.

    python tests/mutants.py              all of them
    python tests/mutants.py --sample 9   so many, evenly from the table
    python tests/mutants.py trainer      those whose file or fault contains the word

Each fault is an edit of one place in a copy of the tree; the tests named beside it run there and
must fail. The command prints a table and ends with status 1 if a fault survived, if tests could not
be run at all, or if an edit no longer applies: then the code has moved, and the edit moves with it.
Before the first fault all tests named must pass on the tree as it is.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import faults_of_answers
import faults_of_buckets
import faults_of_data
import faults_of_dumps
import faults_of_families
import faults_of_keeping
import faults_of_lag
import faults_of_long
import faults_of_looking
import faults_of_making_way
import faults_of_mathematics
import faults_of_models
import faults_of_passes
import faults_of_pods
import faults_of_replays
import faults_of_reports
import faults_of_rewards
import faults_of_safety
import faults_of_sampling
import faults_of_segments
import faults_of_soundness
import faults_of_starting
import faults_of_turns
import faults_of_watching
import faults_of_wiring
from faults_of_mathematics import Mutant

ROOT = Path(__file__).parents[1]
PARTS = ("fiberjax", "configs", "experiments", "tests", "pyproject.toml")
LIMIT = 900  # Seconds. Tests that do not end have caught something too.

MUTANTS = (
    *faults_of_mathematics.FAULTS,
    *faults_of_families.FAULTS,
    *faults_of_models.FAULTS,
    *faults_of_wiring.FAULTS,
    *faults_of_data.FAULTS,
    *faults_of_watching.FAULTS,
    *faults_of_rewards.FAULTS,
    *faults_of_turns.FAULTS,
    *faults_of_soundness.FAULTS,
    *faults_of_keeping.FAULTS,
    *faults_of_reports.FAULTS,
    *faults_of_looking.FAULTS,
    *faults_of_replays.FAULTS,
    *faults_of_pods.FAULTS,
    *faults_of_buckets.FAULTS,
    *faults_of_lag.FAULTS,
    *faults_of_passes.FAULTS,
    *faults_of_starting.FAULTS,
    *faults_of_segments.FAULTS,
    *faults_of_sampling.FAULTS,
    *faults_of_making_way.FAULTS,
    *faults_of_answers.FAULTS,
    *faults_of_long.FAULTS,
    *faults_of_safety.FAULTS,
    *faults_of_dumps.FAULTS,
)


def edited(mutant: Mutant, root: Path) -> str:
    """The text of the mutant's file with the fault in it.

    Raises:
      ValueError: the old text is not in the file exactly once.
    """
    text = (root / mutant.file).read_text(encoding="utf-8")
    if text.count(mutant.old) != 1 or mutant.old == mutant.new:
        raise ValueError(
            f"{mutant.file}: the edit for {mutant.fault!r} applies {text.count(mutant.old)} times; "
            f"expected once: {mutant.old!r}"
        )
    return text.replace(mutant.old, mutant.new)


def copy_tree(folder: Path) -> Path:
    """A copy of what the tests need; returns where it is."""
    for part in PARTS:
        source, target = ROOT / part, folder / part
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    return folder


def run_tests(root: Path, tests: tuple[str, ...]) -> tuple[str, str]:
    """Runs tests in a tree: "pass", "fail" or another status, and the end of what they said."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    command += ["-m", "", *tests]  # Those that are long too.
    environment = os.environ | {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            command, cwd=root, env=environment, capture_output=True, text=True, timeout=LIMIT
        )
    except subprocess.TimeoutExpired:
        return "fail", f"no end within {LIMIT} s"
    status = {0: "pass", 1: "fail"}.get(done.returncode, f"status {done.returncode}")
    return status, done.stdout[-2000:]


def try_mutant(mutant: Mutant, root: Path) -> str:
    """Whether its tests catch a fault: "caught", "SURVIVED", or what went wrong."""
    path = root / mutant.file
    before = path.read_text(encoding="utf-8")
    try:
        path.write_text(edited(mutant, root), encoding="utf-8")
        outcome, told = run_tests(root, mutant.tests)
    except ValueError as error:
        return f"DOES NOT APPLY: {error}"
    finally:
        path.write_text(before, encoding="utf-8")
    return {"fail": "caught", "pass": "SURVIVED"}.get(outcome, f"DID NOT RUN: {outcome} {told}")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("word", nargs="?", default="", help="in the file or the fault")
    parser.add_argument("--sample", type=int, default=len(MUTANTS), help="so many at most")
    given = parser.parse_args(arguments)
    chosen = [m for m in MUTANTS if given.word in m.file or given.word in m.fault]
    count = min(given.sample, len(chosen))
    chosen = [chosen[i * len(chosen) // count] for i in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        root = copy_tree(Path(folder))
        needed = tuple(dict.fromkeys(test for mutant in chosen for test in mutant.tests))
        outcome, told = run_tests(root, needed)
        if outcome != "pass":
            print(f"the tests do not pass as they are: {outcome}\n{told}")
            return 1
        print("| file | fault | tests | result | s |\n|---|---|---|---|---:|", flush=True)
        results = []
        for mutant in chosen:
            began = time.monotonic()
            results.append(try_mutant(mutant, root))
            seconds = time.monotonic() - began
            tests = "<br>".join(f"`{test.removeprefix('tests/')}`" for test in mutant.tests)
            row = (f"`{mutant.file}`", mutant.fault, tests, results[-1], f"{seconds:.0f}")
            print("| " + " | ".join(row) + " |", flush=True)
    caught = results.count("caught")
    print(f"\n{caught} of {len(results)} caught")
    return int(caught < len(results))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
