"""A run that is asked to end: by SIGTERM, or by an interrupt (Ctrl-C), on one host.

    with Interrupts() as interrupts:
        for iteration in range(10):
            try:
                interrupts.abandon(save_what_is_there)
                draw()
                interrupts.hold()
                update()
            except Interrupted:
                interrupts.rescue()
                raise
            if interrupts.asked:
                save()
                raise Interrupted(interrupts.asked, f"iteration {iteration} is saved")

A signal raises `Interrupted` at once wherever nothing is lost by that: while data is read, programs
are compiled, the warm start is taught, rollouts are drawn or an evaluation is made. After `hold` it
is noted alone, until the work at hand is done and saved. Either takes `LIMIT_SECONDS` at most; then
the process ends, having saved what `abandon` was given, if that was all there was to save. A second
signal ends it at once, and so it does on the way out.
"""

import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

import jax

from fiberjax.parallel import distributed

CODE = distributed.ASKED

# Machines that are taken back leave half a minute at least.
LIMIT_SECONDS = 20.0

HOLDS = "this iteration is finished and saved; a second signal ends at once"


class Interrupted(KeyboardInterrupt):
    """A run was asked to end, and has.

    Attributes:
      signal: the name of the signal.
    """

    def __init__(self, name: str, saved: str = "what was saved before is as it was"):
        """Says what is there now."""
        super().__init__(f"asked to end ({name}): {saved}, and the same command goes on from there")
        self.signal = name


class Interrupts:
    """Takes SIGTERM and SIGINT for as long as it is entered; within another one it is that one.

    Only where a signal would end the process or raise KeyboardInterrupt: in the main thread, under
    Python's own handlers. Several processes must stop together and leave it to `distributed`.

    Args:
      ends_process: whether the limit and a second signal end the process, with `CODE`; otherwise,
        as in a notebook, there is no limit, and the second signal raises KeyboardInterrupt.

    Attributes:
      asked: the name of the signal that came; "" for none.
    """

    def __init__(self, *, ends_process: bool = False):
        self.asked = ""
        self._ends_process = ends_process
        self._holding = False
        self._rescue: Callable[[], None] | None = None
        self._guard = threading.RLock()  # Of what is saved, by whoever comes first.
        self._before: dict[signal.Signals, object] = {}
        self._over = threading.Event()
        self._leaving, self._left = threading.RLock(), False
        self._wake: tuple[int, int] | None = None
        self._hook: Callable[[Any], object] | None = None

    def abandon(self, rescue: Callable[[], None] | None = None) -> None:
        """From here on a signal raises at once; raises if one came already.

        Args:
          rescue: saves what is there, whatever the main thread is doing.
        """
        with self._guard:
            self._holding, self._rescue = False, rescue
        if self.asked:
            raise Interrupted(self.asked)

    def hold(self) -> None:
        """From here on a signal is noted alone; raises if one came already."""
        with self._guard:
            if self.asked and not self._holding:
                raise Interrupted(self.asked)
            self._holding, self._rescue = True, None

    def rescue(self) -> None:
        """Saves what `abandon` was given, once."""
        with self._guard:
            rescue, self._rescue = self._rescue, None
            if rescue is not None:
                rescue()

    def in_time(self) -> None:
        """Says that what is left to do is being saved: no limit holds any more."""
        self._over.set()

    def __enter__(self) -> "Interrupts":
        outer = getattr(signal.getsignal(signal.SIGINT), "__self__", None)
        if isinstance(outer, Interrupts):
            return outer
        if threading.current_thread() is threading.main_thread() and jax.process_count() == 1:
            own = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
            for number, handler in own.items():
                if signal.getsignal(number) is handler:
                    self._before[number] = handler
            if self._before and self._ends_process:
                self._watch()
            for number in self._before:
                signal.signal(number, self._ask)
            if self._before and signal.getsignal(signal.SIGALRM) is signal.SIG_DFL:
                signal.signal(signal.SIGALRM, self._again)
                self._hook, sys.unraisablehook = sys.unraisablehook, self._ignored
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        outer = getattr(signal.getsignal(signal.SIGINT), "__self__", None)
        if isinstance(outer, Interrupts) and outer is not self:
            if exc is None:
                outer.abandon()
            return
        for number, handler in self._before.items():
            on_the_way_out = self._ends_process and bool(self.asked)
            signal.signal(number, _end if on_the_way_out else handler)  # type: ignore[arg-type]
        if self._hook is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            sys.unraisablehook = self._hook
        self._over.set()
        if self._wake is not None:
            signal.set_wakeup_fd(-1)
            os.write(self._wake[1], b"\0")
        if self.asked and exc is None:
            raise Interrupted(self.asked)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.asked:
            if not self._ends_process:
                raise KeyboardInterrupt
            return self._leave("a second signal")
        self.asked = name
        if not self._holding:
            raise Interrupted(name)
        with contextlib.suppress(RuntimeError):  # In the midst of another print.
            print(f"asked to end ({name}): {HOLDS}", flush=True)

    def _ignored(self, told: Any) -> None:
        """Raises what Python could not, as in a callback of garbage collection, a moment later."""
        if isinstance(told.exc_value, Interrupted):
            signal.setitimer(signal.ITIMER_REAL, 0.01)
        elif self._hook is not None:
            self._hook(told)

    def _again(self, number: int, frame: FrameType | None) -> None:
        if self.asked and not self._holding:
            raise Interrupted(self.asked)

    def _watch(self) -> None:
        """Has a thread see signals while the main one is deep in a library.

        There Python's own handlers wait until it is back; the system writes into a pipe at once.
        """
        self._wake = reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

        def seen(timeout: float | None) -> bool | None:
            """Whether a signal came; False at the end, None where none came in time."""
            while select.select([reader], [], [], timeout)[0]:
                number = os.read(reader, 1)[0]
                if number == 0:
                    return False
                if number in (signal.SIGINT, signal.SIGTERM):
                    return True
            return None

        def watch() -> None:
            if seen(None):
                again = seen(LIMIT_SECONDS)
                if again is None and not self._over.is_set():
                    with self._guard:
                        saved = self._rescue is not None
                        self.rescue()
                        what = "what was there is saved" if saved else "what was saved before stays"
                        self._leave(f"not done within {LIMIT_SECONDS:.0f} s; {what}")
                while again is None:
                    again = seen(None)
                if again:
                    self._leave("a second signal")
            os.close(reader)
            os.close(writer)

        threading.Thread(target=watch, daemon=True).start()

    def _leave(self, why: str) -> None:
        with self._leaving:  # The thread that comes second waits for the end.
            if self._left:
                return
            self._left = True
            sys.stdout.flush()
            distributed.leave(
                f"asked to end ({self.asked or 'twice'}), {why}: the same command goes on", CODE
            )


def _end(number: int, frame: FrameType | None) -> None:
    os._exit(CODE)
