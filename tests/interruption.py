"""A run that is interrupted before one of its iterations: tests of resuming share it."""

import contextlib

import pytest

from fiberjax.run.trainer import Trainer


@contextlib.contextmanager
def interrupted_at(iteration, monkeypatch):
    """What runs within is interrupted when it begins an iteration, counted from 0; it must be."""
    iterate = Trainer.iterate

    def interrupted(self, state, stream, at, factor):
        if at == iteration:
            raise KeyboardInterrupt
        return iterate(self, state, stream, at, factor)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Trainer, "iterate", interrupted)
        yield
