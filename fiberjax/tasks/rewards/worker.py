"""The process of a worker: one function, and one batch of completions after the other.

The function is a reward, or an environment that answers between turns.

`workers` starts it with the number of a file descriptor, and speaks with it over that socket. It
imports what the function needs and nothing of jax. Its limits are the kernel's: of processor time,
whose signal ends it, and of memory; one that sleeps, `workers` kills. It ends where that process
does, whatever the function is doing, and minds no signal meant for that side.
"""

import contextlib
import importlib
import importlib.util
import inspect
import json
import numbers
import os
import pickle
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from fiberjax.tasks.rewards.base import Form, form_of

WAITING = 10
"""How many times its processor time a completion may take, asleep or waiting."""

LONGEST_REPLY = 100_000
"""Characters of a reply, at most."""

_UNITS = 2**20
_LOOK = 0.5  # Seconds.


class Target(NamedTuple):
    """Where a function is found.

    Attributes:
      module: that it is in, dotted.
      file: of the module, where that is a file of its own; "" where Python finds it.
      name: of the function.
      table: of the module, a dict that holds it by that name; "" where the module does.
    """

    module: str
    file: str
    name: str
    table: str = ""

    def load(self) -> Callable[..., Any]:
        """Imports the function.

        Raises:
          ValueError: the module has no such function.
        """
        if self.file and self.module not in sys.modules:
            spec = importlib.util.spec_from_file_location(self.module, self.file)
            assert spec is not None and spec.loader is not None  # The file ends in `.py`.
            module = importlib.util.module_from_spec(spec)
            sys.modules[self.module] = module
            spec.loader.exec_module(module)
        module = importlib.import_module(self.module)
        table = getattr(module, self.table) if self.table else vars(module)
        if not callable(table.get(self.name)):
            raise ValueError(f"has no function {self.name!r}")
        return table[self.name]


class Order(NamedTuple):
    """What a worker is started with.

    Attributes:
      target: of its function.
      seconds: of processor time that a completion may take.
      megabytes: that the process may grow by, after its imports.
      parent: the process that it works for.
      replies: whether the function is an environment, `(example, said) -> reply`.
    """

    target: Target
    seconds: float
    megabytes: float
    parent: int
    replies: bool = False


def reason(error: BaseException, file: str = "") -> str:
    """An error in one line, with the line of the file where it came up."""
    line = error.lineno if isinstance(error, SyntaxError) else None
    trace = error.__traceback__
    while trace is not None:
        if file and trace.tb_frame.f_code.co_filename == file:
            line = trace.tb_lineno
        trace = trace.tb_next
    where = f"{file}, line {line}: " if line is not None else ""
    return f"{where}{type(error).__name__}: {' '.join(str(error).split())}"


def number_of(value: Any) -> float | str:
    """A number as JSON holds it; of anything else how Python shows it."""
    if isinstance(value, numbers.Real):
        with contextlib.suppress(OverflowError):
            return float(value)
    if hasattr(value, "dtype") and getattr(value, "ndim", 1) == 0 and value.dtype.kind in "buif":
        return float(value)
    return repr(value)[:200]


def reply_of(value: Any) -> str | None:
    """A reply, checked.

    Raises:
      ValueError: it is neither a text nor None, or too long.
    """
    if value is not None and not isinstance(value, str):
        raise ValueError(f"replied {repr(value)[:200]}, expected a text or None")
    if value is not None and len(value) > LONGEST_REPLY:
        raise ValueError(f"replied {len(value)} characters, expected at most {LONGEST_REPLY}")
    return value


def form_of_environment(function: Callable[..., Any]) -> Form:
    """How an environment is called: one example and what was said, each time.

    Raises:
      TypeError: it takes something else.
    """
    with contextlib.suppress(ValueError):  # Of a built-in, which does not say.
        signature = inspect.signature(function)
        try:
            signature.bind("example", "said")
        except TypeError:
            raise TypeError(f"takes {signature}, expected (example, said)") from None
    return Form(row=False, batched=False)


def limit_memory(megabytes: float) -> None:
    """Lets this process grow by so much; where its size cannot be read, it is not limited."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return
    most = pages * resource.getpagesize() + int(megabytes * _UNITS)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def answer(
    function: Callable[..., Any], form: Form, cases: Sequence[Any], order: Order, extract: bool
) -> dict[str, Any]:
    """What the function makes of some cases: their `values`, or why it `failed`.

    With `extract`, what its attribute of that name takes for their answers.
    """
    seconds = order.seconds * len(cases)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        if order.replies:
            return {"values": [reply_of(function(*case)) for case in cases]}
        if extract:
            found = [function.extract(case.completion) for case in cases]  # type: ignore[attr-defined]
            return {"values": [None if text is None else str(text) for text in found]}
        return {"values": [number_of(value) for value in form.call(function, cases)]}
    except MemoryError:
        return {"failed": f"needed more than {order.megabytes:g} MB", "ends": True}
    except BaseException as error:  # SystemExit too: it is the function's.
        return {"failed": reason(error, order.target.file)}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def end_with(parent: int) -> None:
    """Ends this process soon after another one has ended."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK)
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


def serve(connection: Connection) -> None:
    """Loads the function, then answers until the other side closes."""
    order: Order = pickle.loads(connection.recv_bytes())
    end_with(order.parent)
    try:
        function = order.target.load()
        form = form_of_environment(function) if order.replies else form_of(function)
    except BaseException as error:
        connection.send_bytes(json.dumps({"failed": reason(error, order.target.file)}).encode())
        return
    limit_memory(order.megabytes)
    told = {"row": form.row, "batched": form.batched, "extract": hasattr(function, "extract")}
    connection.send_bytes(json.dumps(told).encode())
    while True:
        try:
            cases, extract = pickle.loads(connection.recv_bytes())
            reply = answer(function, form, cases, order, extract)
        except MemoryError:  # Of the cases themselves.
            reply = {"failed": f"needed more than {order.megabytes:g} MB", "ends": True}
        connection.send_bytes(json.dumps(reply).encode())
        if reply.get("ends"):
            return


def main() -> None:
    """Serves the file descriptor that the command line names."""
    for name in ("SIGINT", "SIGTERM"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    with contextlib.suppress(EOFError, ConnectionError), Connection(int(sys.argv[1])) as connection:
        serve(connection)
    os._exit(0)  # Whatever the function left running.
