"""What lies in folders and is refused while a run goes on: a command says it in one line."""

import contextlib
from collections.abc import Iterator


class Unreadable(ValueError):
    """What a run's folder holds, or one that it reads, cannot be used."""


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """Makes a ValueError within, of what is read, `Unreadable`; those of the program stay apart."""
    try:
        yield
    except Unreadable:
        raise
    except ValueError as error:
        raise Unreadable(str(error)) from error
