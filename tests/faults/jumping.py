"""Runs a program whose clock jumps, as when a machine is given the right time, or a wrong one.

    python tests/faults/jumping.py SECONDS DAYS PROGRAM ARGUMENTS…

What Python's `time.time` says is so many days later, or earlier, once the program has run for so
many seconds of the processor; clocks that only measure go on as they were.
"""

import runpy
import sys
import time


def main(seconds: float, days: float) -> None:
    """Has the clock jump."""
    now, after = time.time, time.process_time() + seconds

    def jumped() -> float:
        return now() + (86_400 * days if time.process_time() >= after else 0)

    time.time, time.time_ns = jumped, lambda: int(jumped() * 1e9)  # type: ignore[assignment]


if __name__ == "__main__":
    main(float(sys.argv[1]), float(sys.argv[2]))
    sys.argv = sys.argv[3:]
    runpy.run_path(sys.argv[0], run_name="__main__")
