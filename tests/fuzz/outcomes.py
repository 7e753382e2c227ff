"""What came of an input: built, refused clearly, or a defect."""

import contextlib
import resource
import signal
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .kinds import Kind

SECONDS = 2.0
"""Of a processor that others use too: a second of one that is free."""
HANG = 20.0
MEMORY = 4 * 2**30
"""Bytes beyond what is there, that it may take."""


class Hangs(BaseException):
    """It did not end."""


def outcome(kind: Kind, case: Any) -> str:
    """ "built", "refused", or in one line what is wrong with it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        began = time.process_time()
        try:
            with _limited(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                kind.run(case, folder)
            found = "built"
        except ValueError as error:
            told = str(error)
            found = "refused"
            if "\n" in told or len(told) > 3000:
                found = f"an error of {len(told)} characters or several lines: {told[:300]!r}"
            elif type(error) is not ValueError or not any(w in told for w in kind.words(folder)):
                found = f"{type(error).__name__} that does not name what is wrong: {told[:300]!r}"
        except (Exception, Hangs) as error:
            found = f"{type(error).__name__}: {str(error)[:300]!r} ({_where(error)})"
        seconds = time.process_time() - began
    return f"{seconds:.1f} s, {found}" if seconds > SECONDS else found


def _where(error: BaseException) -> str:
    trace = error.__traceback__
    named = ""
    while trace is not None:
        code = trace.tb_frame.f_code
        if "fiberjax/" in code.co_filename or not named:
            named = f"{Path(code.co_filename).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return named


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """Ends what takes too long or too much memory."""

    def end(*of: object) -> None:
        raise Hangs(f"no end after {HANG:.0f} s")

    before = signal.signal(signal.SIGVTALRM, end)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, limits[1]))
    signal.setitimer(signal.ITIMER_VIRTUAL, HANG)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.signal(signal.SIGVTALRM, before)
