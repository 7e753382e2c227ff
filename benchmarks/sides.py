"""Two libraries timed in one run: ours here, another in a process and an environment of its own.

The other side imports nothing of ours but this file, which needs nothing but numpy.
"""

import contextlib
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from typing import Any

import numpy as np

Timing = dict[str, float]
"""Of one call: `wall` and `cpu` seconds (all threads of the process) and completion `tokens`."""

Ask = Callable[[str], dict[str, Any]]
"""A line of what is wanted -> what the other side answers."""


def timed(function: Callable[[], int]) -> Timing:
    """Seconds of one call that returns the tokens it worked on."""
    wall, cpu = time.perf_counter(), time.process_time()
    tokens = function()
    return {
        "wall": time.perf_counter() - wall,
        "cpu": time.process_time() - cpu,
        "tokens": tokens,
    }


def summary(runs: list[Timing]) -> dict[str, Any]:
    """Medians of the repeats, and every repeat."""
    wall, cpu = ([run[key] for run in runs] for key in ("wall", "cpu"))
    medians = {"wall": statistics.median(wall), "cpu": statistics.median(cpu)}
    per_second = {f"tokens_per_{k}_second": runs[0]["tokens"] / v for k, v in medians.items()}
    return medians | per_second | {"repeats": {"wall": wall, "cpu": cpu}}


def python_with(python: str, *packages: str) -> list[str]:
    """The command of a Python that has packages: the given one, or one that uv makes."""
    if python:
        return [python]
    uv = shutil.which("uv")
    if uv is None:
        raise SystemExit(f"{packages} need uv, or a Python that has them; see --help")
    wanted = [part for package in packages for part in ("--with", package)]
    # Both sides on one Python: what is compared is the libraries.
    return [uv, "run", "--no-project", "--python", sys.executable, *wanted, "python"]


@contextlib.contextmanager
def other_side(
    command: list[str],
    options: Mapping[str, Any],
    data: Mapping[str, np.ndarray],
    environment: Mapping[str, str],
) -> Iterator[Ask]:
    """Asks another library, in a process of its own, for a case or `about` itself.

    Args:
      command: of a script that calls `serve`; it is given the options as JSON, and a file.
      options: of the comparison.
      data: what is in the file, an `.npz`.
      environment: what is added to this process's.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "data.npz"
        np.savez(file, allow_pickle=False, **data)
        with subprocess.Popen(
            [*command, json.dumps(options), str(file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | dict(environment),
        ) as child:
            assert child.stdin is not None and child.stdout is not None
            questions, answers = child.stdin, child.stdout

            def ask(what: str) -> dict[str, Any]:
                questions.write(what + "\n")
                questions.flush()
                # Libraries print notices of their own: answers are the lines of JSON.
                for line in answers:
                    if line.startswith("{"):
                        return json.loads(line)
                raise SystemExit(f"{command} ended before it answered {what!r}")

            yield ask
            questions.close()


def serve(measure: Callable[[str, int], int], packages: tuple[str, ...], **about: Any) -> None:
    """Answers one line of JSON for each line of stdin, until it ends; the other side's loop.

    Args:
      measure: works on a case, the n-th of all that are asked for; returns its tokens.
      packages: whose versions `about` tells.
      **about: what it tells beside them.
    """
    for count, line in enumerate(sys.stdin):
        case = line.strip()
        if case == "about":
            answer: dict[str, Any] = {name: version(name) for name in packages} | about
        else:
            answer = timed(lambda case=case, count=count: measure(case, count))  # type: ignore[misc]
        print(json.dumps(answer), file=sys.__stdout__, flush=True)


class Rows:
    """A tokenizer for tunix whose texts are row numbers: its sampler insists on encoding strings.

    Args:
      prompts: int[N, P], the ids of each row.
      pad: id of the padding.
      eos: id of the end.
    """

    def __init__(self, prompts: np.ndarray, *, pad: int, eos: int):
        self.prompts, self.pad, self.eos = prompts, pad, eos

    def encode(self, text: str) -> list[int]:
        """The prompt of row `text`."""
        return self.prompts[int(text)].tolist()

    def decode(self, ids: list[int]) -> str:
        """Nothing: decoding is no part of the comparison."""
        return ""

    def bos_id(self) -> int:
        """No token of the beginning."""
        return 0

    def eos_id(self) -> int:
        """The end."""
        return self.eos

    def pad_id(self) -> int:
        """The padding."""
        return self.pad
