"""A process that has imported all that a run imports, and forks: each child is a run of its own.

    python tests/faults/forked.py

To import takes longer than a small run. Here it is done once, before jax has any backend; a child
is then told its arguments and becomes `experiments/train.py`, until it ends or is killed, with an
end of the interpreter as any other has. What alone differs: no plots are drawn, which take as long
as all the rest and are no part of what a run goes on from.

Reads a line of JSON for each order, and answers with one: a list of arguments, files for its output
and a jump of the clock, answered with the id of the process; or such an id, answered with its exit
status once it has ended, null before. Ends with its input, and all its children then do.
"""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
IMPORTED = (
    *("fiberjax.experiment", "fiberjax.run.loop", "fiberjax.run.provenance"),
    *("fiberjax.run.interrupts", "fiberjax.model_folder", "fiberjax.parallel.compiled"),
    *("configs.quickstart", "ml_collections.config_flags", "absl.app"),
)
INTERVAL = 0.02  # Seconds between two looks at a process.


class Parent:
    """The forking process, as seen from the campaign."""

    def __init__(self, **environment: str):
        """Starts it; its children inherit the environment."""
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            cwd=ROOT,
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def order(self, what: Any) -> Any:
        """Gives an order; the answer."""
        assert self._process.stdin and self._process.stdout
        print(json.dumps(what), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        """Ends it and its children."""
        self._process.communicate()


class Forked:
    """A run, with as much of `subprocess.Popen` as the campaign needs."""

    def __init__(self, parent: Parent, arguments: list[str], out: Path, err: Path, jump: Any):
        self._parent, self._out, self._err = parent, out, err
        self.returncode: int | None = None
        self.pid: int = parent.order([arguments, str(out), str(err), jump])

    def poll(self) -> int | None:
        """The exit status; None while it runs."""
        if self.returncode is None:
            self.returncode = self._parent.order(self.pid)
        return self.returncode

    def wait(self, timeout: float = float("inf")) -> int:
        """Waits for the end."""
        until = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired("run", timeout)
            time.sleep(INTERVAL)
        assert self.returncode is not None
        return self.returncode

    def communicate(self) -> tuple[str, str]:
        """Waits for the end; all that was printed."""
        self.wait()
        out, err = (of.read_text(errors="replace") for of in (self._out, self._err))
        return out, err

    def send_signal(self, number: int) -> None:
        """Sends a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Sends SIGKILL."""
        self.send_signal(signal.SIGKILL)


def serve() -> Any:
    """Answers until the input ends, and comes back as a child with an order, or with None."""
    children: set[int] = set()
    for line in sys.stdin:
        order = json.loads(line)
        if isinstance(order, int):
            ended, status = os.waitpid(order, os.WNOHANG)
            children.discard(ended)
            answer = os.waitstatus_to_exitcode(status) if ended else None
        else:
            answer = os.fork()
            if answer == 0:
                return order
            children.add(answer)
        print(json.dumps(answer), flush=True)
    for child in children:
        os.kill(child, signal.SIGKILL)
    return None


def become(arguments: list[str], out: str, err: str, jump: Any) -> None:
    """Makes a child look as if it had been started by itself."""
    opened = [os.open(os.devnull, os.O_RDONLY)]
    opened += [os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600) for file in (out, err)]
    for number, descriptor in enumerate(opened):
        os.dup2(descriptor, number)
        os.close(descriptor)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = arguments
    from fiberjax.run import loop

    loop.draw = lambda *of: None
    if jump:
        import jumping

        jumping.main(*jump)


if __name__ == "__main__":
    import gc
    import runpy

    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()  # Shared with the children, who need not go through it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The campaign's to handle.
    found = serve()
    if found is not None:
        become(*found)
        runpy.run_path(sys.argv[0], run_name="__main__")
