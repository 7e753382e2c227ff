"""A disk without room: one error that says what could not be written, whatever library wrote."""

import contextlib
import errno
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

_CODES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TEXTS = tuple(os.strerror(code) for code in _CODES)


class NoRoom(OSError):
    """There is no room for a file."""


@contextlib.contextmanager
def writing(what: str, where: str | os.PathLike[str]) -> Iterator[None]:
    """Names what was being written where the disk is full, in an error of one line.

    Full is a file system, a quota, or a file at its largest size. Other errors pass.

    Args:
      what: such as "the samples".
      where: a path.

    Raises:
      NoRoom: the disk is full.
    """
    try:
        yield
    except NoRoom:
        raise
    except Exception as error:
        reason = _reason(error)
        if reason is None:
            raise
        # What a library says of it is long, and no more than this.
        raise NoRoom(
            f"no room to write {what} to {os.fspath(where)}: {reason}. What was saved before is "
            "whole; the same command goes on from there when there is room"
        ) from None


def without_echoes() -> None:
    """Leaves out what threads of libraries say of an event loop that is over; for a program.

    Where a checkpoint found no room, writes of it end later than the loop that waited for them, and
    say so at length and without any consequence; others never begin. Everything else is shown as
    before.
    """
    shown = sys.unraisablehook

    def show(told: Any) -> None:
        if told.exc_type is not RuntimeError or str(told.exc_value) != "Event loop is closed":
            shown(told)

    sys.unraisablehook = show
    warnings.filterwarnings("ignore", r"coroutine .* was never awaited", RuntimeWarning)


def _reason(error: BaseException) -> str | None:
    """What the system says of a full disk, anywhere in what led to an error; None for others."""
    waiting, seen = [error], set()
    while waiting:
        found = waiting.pop()
        if id(found) in seen:
            continue
        seen.add(id(found))
        if isinstance(found, OSError) and found.errno in _CODES:
            return os.strerror(found.errno)
        for text in _TEXTS:
            if text in str(found):
                return text
        waiting += [of for of in (found.__cause__, found.__context__) if of is not None]
        waiting += getattr(found, "exceptions", ())
    return None
