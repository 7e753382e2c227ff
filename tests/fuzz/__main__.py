"""Mutated input of every kind, each of which must be built or refused clearly.

    python -m tests.fuzz                                  a thousand of each kind
    python -m tests.fuzz --count=20000 --seed=3
    python -m tests.fuzz --kinds=config,gate --count=500

Prints a table, and every defect with the input that shows it; ends with status 1 where there is
one. An input is a function of its kind, the seed and its number alone. Inputs are tried in a
process beside this one, since a library that is not Python's may end it.
"""

import argparse
import collections
import faulthandler
import json
import os
import re
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from .kinds import KINDS, Kind
from .outcomes import outcome


def tried(kind: Kind, case: Callable[[int], Any], count: int) -> Iterator[str]:
    """What came of every input, in order; of one that ends its process too."""
    number = 0
    while number < count:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            faulthandler.disable()  # It is told below.
            try:
                with open(writing, "w") as told:
                    for each in range(number, count):
                        print(json.dumps(outcome(kind, case(each))), file=told, flush=True)
                os._exit(0)
            finally:
                os._exit(1)
        os.close(writing)
        with open(reading) as told:
            for line in told:
                number += 1
                yield json.loads(line)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status != 0:
            number += 1
            yield f"the interpreter ends, with status {status}"


def seconds_of_children() -> float:
    """Of a processor, of all that have ended."""
    found = resource.getrusage(resource.RUSAGE_CHILDREN)
    return found.ru_utime + found.ru_stime


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(KINDS), help="with commas between them")
    given = parser.parse_args(arguments)
    rows, wrong = [], 0
    for name in given.kinds.split(","):
        kind, counts, began = KINDS[name], collections.Counter(), seconds_of_children()
        seen: set[str] = set()

        def case(number: int, name: str = name, kind: Kind = kind) -> Any:
            drawn = [given.seed, sorted(KINDS).index(name), number]
            return kind.make(np.random.default_rng(drawn))

        for number, found in enumerate(tried(kind, case, given.count)):
            counts[found if found in ("built", "refused") else "defect"] += 1
            alike = re.sub(r"[\d.]+|/tmp/\S+|'.*'", "", found)
            if found not in ("built", "refused") and alike not in seen:
                seen.add(alike)
                print(f"{name} {number}: {found}\n    {ascii(case(number))[:600]}", flush=True)
        seconds = seconds_of_children() - began
        wrong += counts["defect"]
        rows.append((name, given.count, counts["built"], counts["refused"], counts["defect"]))
        print(f"{name}: {given.count} in {seconds:.0f} s of the processor", flush=True)
    print("\n| kind | tried | built | refused clearly | defects |\n|---|---:|---:|---:|---:|")
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
