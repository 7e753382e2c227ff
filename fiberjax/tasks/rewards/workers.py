"""Functions in processes of their own, with limits of time and memory: killed, counted, replaced.

A reward that a policy's text can hang (sympy), or that is the user's own, is called in workers
(`worker`), and so is an environment of the user's own (`tasks.environments`). What it does there,
raising, hanging, taking all memory or ending its process, costs the run one completion's reward,
or the rest of one episode. Time is the worker's own processor time, so that a busy machine changes
no reward; one that sleeps or waits has `WAITING` times as long.

Workers start when they are first needed, each runs one function, and they end with `close_all`,
with the pool, and with this process, however that ends.
"""

import collections
import contextlib
import dataclasses
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any

from fiberjax.tasks.rewards.base import Case, Extract, Failed
from fiberjax.tasks.rewards.worker import WAITING, Order, Target

START_SECONDS = 300
"""In which a worker must have imported its function."""

SLACK = 15
"""Seconds that a busy machine may add to what a completion takes."""

_MAIN = "from fiberjax.tasks.rewards import worker; worker.main()"


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a function may take; see `options.Rewards`.

    Attributes:
      seconds: of processor time, a completion.
      megabytes: beyond what its imports take.
      workers: processes a function, at most.
      stops: whether a failure ends the run.
    """

    seconds: float = 5.0
    megabytes: float = 1024.0
    workers: int = 4
    stops: bool = False


class _Worker:
    """A process and what it is doing: starting, idle, or a job."""

    def __init__(self, order: Order):
        self.connection: Connection
        self.connection, theirs = Pipe()
        paths = [os.path.abspath(path) for path in sys.path]
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", _MAIN, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=os.environ
                | {
                    "PYTHONPATH": os.pathsep.join(paths),
                    "JAX_PLATFORMS": "cpu",  # A plugin may import it; the accelerators are ours.
                    "OPENBLAS_NUM_THREADS": "1",
                },
            )
        self.connection.send_bytes(pickle.dumps(order))
        self.ready = False
        self.job: int | None = None
        self.deadline = time.monotonic() + START_SECONDS

    @property
    def idle(self) -> bool:
        return self.ready and self.job is None

    def give(self, job: int, cases: Sequence[Any], seconds: float, extract: bool) -> None:
        """Sends a job; the answer is there within that time, or the worker is to be killed."""
        self.job = job
        self.deadline = time.monotonic() + seconds
        with contextlib.suppress(OSError):  # It died: seen where it is read.
            self.connection.send_bytes(pickle.dumps((list(cases), extract)))

    def answer(self) -> dict[str, Any] | None:
        """What it says; None where it has ended."""
        try:
            return json.loads(self.connection.recv_bytes())
        except (EOFError, OSError):
            return None

    def end(self, ends: bool = False) -> int:
        """Its exit status, of a signal negative; kills it, unless it ends by itself."""
        if ends:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(1.0)
        self.process.kill()
        self.connection.close()
        return self.process.wait()


def cores() -> int:
    """Processor cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # There is none on macOS.
        return os.cpu_count() or 1


def _end(workers: list[_Worker]) -> None:
    while workers:
        workers.pop().end()


_pools: "weakref.WeakSet[Pool]" = weakref.WeakSet()


def close_all() -> None:
    """Ends all workers of this process; a reward that is asked for later starts others."""
    for pool in list(_pools):
        pool.close()


class Pool:
    """The workers of one function.

    Args:
      name: of the function, for errors.
      target: where it is found.
      limits: that hold for it.
      replies: whether it is an environment, whose cases are an example and what was said.

    Attributes:
      trouble: why it last failed; "" where it never did.
    """

    def __init__(self, name: str, target: Target, limits: Limits, replies: bool = False):
        self.trouble = ""
        self._name = name
        self._limits = limits
        self._order = Order(target, limits.seconds, limits.megabytes, os.getpid(), replies)
        self._workers: list[_Worker] = []
        self._form: dict[str, Any] | None = None
        self._lock = threading.Lock()
        weakref.finalize(self, _end, self._workers)
        _pools.add(self)

    def close(self) -> None:
        """Ends the workers."""
        with self._lock:
            _end(self._workers)

    @property
    def tells(self) -> bool:
        """Whether the function says what it takes for an answer; loads it."""
        self.run([])
        assert self._form is not None
        return self._form["extract"]

    def run(self, cases: Sequence[Any], extract: bool = False) -> list[Any]:
        """What the function gives for each case, or `Failed`; of none, loads it.

        Args:
          cases: what is to be paid.
          extract: asks what it takes for the answers instead.

        Raises:
          ValueError: the function cannot be loaded.
        """
        with self._lock:
            try:
                return self._run(cases, extract)
            except BaseException:
                _end(self._workers)  # Their answers are nobody's.
                raise

    def _run(self, cases: Sequence[Any], extract: bool) -> list[Any]:
        values: list[Any] = [None] * len(cases)
        while self._form is None:  # How it is called, the first worker says.
            self._grow(1)
            self._step({}, values)
        jobs = self._jobs(cases) if cases else {}
        todo = collections.deque(range(len(jobs)))
        while todo or any(worker.job is not None for worker in self._workers):
            self._grow(min(self._limits.workers, len(todo)))
            for worker in self._workers:
                if todo and worker.idle:
                    job = todo.popleft()
                    seconds = WAITING * self._limits.seconds * len(jobs[job]) + SLACK
                    sent = [self._sent(cases[index]) for index in jobs[job]]
                    worker.give(job, sent, seconds, extract)
            self._step(jobs, values)
        return values

    def _jobs(self, cases: Sequence[Any]) -> dict[int, list[int]]:
        """Which cases go together: each alone, but under a batched function all."""
        assert self._form is not None
        if self._form["batched"]:
            return {0: list(range(len(cases)))}
        return {index: [index] for index in range(len(cases))}

    def _sent(self, case: Any) -> Any:
        assert self._form is not None
        if self._order.replies:
            return case
        return case._replace(row=dict(case.row) if self._form["row"] else {})

    def _grow(self, size: int) -> None:
        """Starts workers until so many are idle or starting."""
        free = sum(worker.job is None for worker in self._workers)
        room = min(self._limits.workers, cores()) - len(self._workers)
        for _ in range(min(size - free, room)):
            self._workers.append(_Worker(self._order))

    def _step(self, jobs: dict[int, list[int]], values: list[Any]) -> None:
        """Waits for what happens next, and notes it in the values."""
        expected = [of for of in self._workers if not of.idle]
        first = min((of.deadline for of in expected), default=time.monotonic())
        answered = wait([of.connection for of in self._workers], max(0.0, first - time.monotonic()))
        for worker in list(self._workers):
            if worker.connection in answered:
                self._note(worker, worker.answer(), jobs, values)
            elif not worker.idle and time.monotonic() >= worker.deadline:
                self._note(worker, None, jobs, values, late=True)

    def _note(
        self,
        worker: _Worker,
        said: dict[str, Any] | None,
        jobs: dict[int, list[int]],
        values: list[Any],
        late: bool = False,
    ) -> None:
        job = worker.job
        if said is None or said.get("ends"):
            self._workers.remove(worker)
            status = worker.end(ends=not late)
            if said is None:
                said = {"failed": self._cause(worker, status, late)}
        worker.job = None
        if not worker.ready:
            if "failed" in said:
                what = "environment" if self._order.replies else "reward"
                raise ValueError(f"the {what} {self._name} cannot be loaded: {said['failed']}")
            worker.ready, self._form = True, said
        elif job is not None:
            failed = Failed(said.get("failed", ""), self._limits.stops)
            self.trouble = failed.why or self.trouble
            found = said.get("values", [failed] * len(jobs[job]))
            for index, value in zip(jobs[job], found, strict=True):
                values[index] = value

    def _cause(self, worker: _Worker, status: int, late: bool) -> str:
        """Why a worker has ended."""
        if late and not worker.ready:
            return f"its imports took more than {START_SECONDS} s"
        if late:
            return f"took more than {WAITING} times {self._limits.seconds:g} s asleep or waiting"
        if status in (-signal.SIGPROF, -signal.SIGXCPU):
            return f"took more than {self._limits.seconds:g} s of processor time"
        if status < 0:
            return f"its process was ended by {signal.Signals(-status).name}"
        return f"its process ended with status {status}"


class Isolated:
    """A verifier that runs in workers.

    Attributes:
      name: as the config has it.
      target: where the function is found.
      limits: that hold for it.
      told: what it takes for the answer of a completion, where that is known here.
      needs: a module that an extra of that name brings, and the extra; () for none.
    """

    def __init__(
        self,
        name: str,
        target: Target,
        limits: Limits | None = None,
        told: Extract | None = None,
        needs: tuple[str, str] | tuple[()] = (),
    ):
        self.name, self.target, self.needs = name, target, needs
        self.limits = Limits() if limits is None else limits
        self.told = told
        self._pool = Pool(name, target, self.limits)

    def limited(self, limits: Limits) -> "Isolated":
        """The same under other limits."""
        return Isolated(self.name, self.target, limits, self.told, self.needs)

    def __call__(self, prompt: str, answer: str, completion: str) -> Any:
        """Of one completion; 0.0 where it failed and that stops nothing."""
        (value,) = self.many([Case(prompt, answer, completion)])
        if isinstance(value, Failed):
            if value.stops:
                raise ValueError(f"the reward {self.name} failed: {value.why}")
            return 0.0
        return value

    def tells(self) -> bool:
        """Whether it says what it takes for the answer of a completion."""
        return self.told is not None or self._pool.tells

    def extract(self, completion: str) -> str | None:
        """What it takes for the answer of a completion; None where it says nothing of it."""
        if self.told is not None:
            return self.told(completion)
        if not self._pool.tells:
            return None
        (found,) = self._pool.run([Case("", "", completion)], extract=True)
        return None if isinstance(found, Failed) else found

    @property
    def trouble(self) -> str:
        """Why the function last failed; "" where it never did."""
        return self._pool.trouble

    def load(self) -> None:
        """Has a worker load the function.

        Raises:
          ValueError: it cannot be.
        """
        self._pool.run([])

    def many(self, cases: Sequence[Case]) -> list[Any]:
        """Of several completions; `Failed` for those it failed for."""
        return self._pool.run(cases)
