"""An interrupt that lets the work at hand finish, so that it can be saved."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Self

import jax


class Interrupts:
    """Notes a first interrupt (SIGINT) and raises it at the end; a second raises as ever.

        with Interrupts("saving first") as interrupts:
            for iteration in range(10):
                work()
                if interrupts.asked:
                    save()
                    break
        # Here KeyboardInterrupt is raised, if there was one.

    Only where an interrupt would raise KeyboardInterrupt: in the main thread, under Python's own
    handler. Several processes must stop together and leave it to `distributed`.

    Args:
      message: printed at the first interrupt.

    Attributes:
      asked: whether there was one.
    """

    def __init__(self, message: str):
        self.asked = False
        self._message = message
        self._installed = False

    def __enter__(self) -> Self:
        if (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
            and jax.process_count() == 1
        ):
            signal.signal(signal.SIGINT, self._ask)
            self._installed = True
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if self.asked and exc is None:
            raise KeyboardInterrupt

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        print(self._message, flush=True)
