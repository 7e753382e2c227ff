"""Mutated input of every kind, each of which must be built or refused clearly.

    python -m tests.fuzz                                  a thousand of each kind
    python -m tests.fuzz --count=20000 --seed=3
    python -m tests.fuzz --kinds=config,gate --count=500

Prints a table, and every defect with the input that shows it; ends with status 1 where there is
one. An input is a function of its kind, the seed and its number alone.
"""

import argparse
import collections
import os
import re
import sys
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from .kinds import KINDS
from .outcomes import outcome


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(KINDS), help="with commas between them")
    given = parser.parse_args(arguments)
    rows, wrong = [], 0
    for name in given.kinds.split(","):
        kind, counts, began = KINDS[name], collections.Counter(), time.process_time()
        seen: set[str] = set()
        for number in range(given.count):
            rng = np.random.default_rng([given.seed, sorted(KINDS).index(name), number])
            case = kind.make(rng)
            found = outcome(kind, case)
            counts[found if found in ("built", "refused") else "defect"] += 1
            alike = re.sub(r"[\d.]+|/tmp/\S+|'.*'", "", found)
            if found not in ("built", "refused") and alike not in seen:
                seen.add(alike)
                print(f"{name} {number}: {found}\n    {ascii(case)[:600]}", flush=True)
        seconds = time.process_time() - began
        wrong += counts["defect"]
        rows.append((name, given.count, counts["built"], counts["refused"], counts["defect"]))
        print(f"{name}: {given.count} in {seconds:.0f} s of the processor", flush=True)
    print("\n| kind | tried | built | refused clearly | defects |\n|---|---:|---:|---:|---:|")
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
