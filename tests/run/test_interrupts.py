"""A run that is asked to end: what a signal does when, and that a process ends in time."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from fiberjax.run import interrupts
from fiberjax.run.interrupts import Interrupted, Interrupts

ROOT = pathlib.Path(__file__).parents[2]
BOTH = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def signals_arrive():
    """What starts in the background of a shell ignores interrupts, the tests too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", BOTH)
def test_a_signal_raises_at_once_where_nothing_is_lost(number):
    with pytest.raises(Interrupted, match=r"asked to end \(SIG.*the same command goes on"):
        with Interrupts():
            signal.raise_signal(number)
            pytest.fail("it went on")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize("number", BOTH)
def test_what_is_held_is_finished(number, capsys):
    saved = []
    with pytest.raises(Interrupted), Interrupts() as asked:
        asked.abandon(lambda: saved.append("before"))
        asked.hold()
        signal.raise_signal(number)
        assert asked.asked == signal.Signals(number).name
        assert "this iteration is finished and saved" in capsys.readouterr().out
        asked.rescue()
        asked.abandon()
        pytest.fail("it went on")
    assert saved == []


def test_rollouts_are_abandoned_and_what_was_there_is_saved_once():
    saved = []
    with pytest.raises(Interrupted), Interrupts() as asked:
        try:
            asked.abandon(lambda: saved.append("before"))
            signal.raise_signal(signal.SIGTERM)
        except Interrupted:
            asked.rescue()
            asked.rescue()
            raise
    assert saved == ["before"]


def test_one_that_a_library_swallowed_is_raised_at_the_next_step():
    with pytest.raises(Interrupted), Interrupts() as asked:
        asked.abandon()
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            pass
        asked.hold()
        pytest.fail("it went on")


def test_one_that_comes_within_a_callback_is_raised_after_it(capsys):
    """Python says of an exception there that it is ignored, and goes on."""

    class Collected:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    hook = sys.unraisablehook
    with pytest.raises(Interrupted), Interrupts() as asked:
        asked.abandon()
        Collected()
        time.sleep(5)
        pytest.fail("it went on")
    assert capsys.readouterr().err == "" and sys.unraisablehook is hook
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL


def test_a_second_one_ends_at_once_and_one_that_nobody_looked_at_at_the_end():
    with pytest.raises(KeyboardInterrupt) as error, Interrupts() as asked:
        asked.hold()
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("it went on")
    assert error.type is KeyboardInterrupt
    with pytest.raises(Interrupted), Interrupts() as asked:
        asked.hold()
        signal.raise_signal(signal.SIGINT)


def test_within_another_it_is_that_one():
    with pytest.raises(Interrupted), Interrupts() as outer:
        with Interrupts() as inner:
            assert inner is outer
            inner.hold()
        signal.raise_signal(signal.SIGTERM)  # Nothing is held any more.
        pytest.fail("it went on")


def test_a_handler_of_the_users_own_is_left_alone():
    own = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interrupts() as asked:
            signal.raise_signal(signal.SIGINT)
            assert not asked.asked
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, own)


# Works where Python's own handlers cannot run, as a compiled program does. It says that it is ready
# from another thread, which first runs when the main one is there: none is made to give way before.
PROGRAM = """
import hashlib, sys, threading
from fiberjax.run import interrupts
sys.setswitchinterval(1000)
deep = threading.Lock()
deep.acquire()
threading.Thread(target=lambda: deep.acquire() and print("ready", flush=True), daemon=True).start()
interrupts.LIMIT_SECONDS = 0.5
with interrupts.Interrupts(ends_process=True) as asked:
    asked.abandon(lambda: print("rescued", flush=True))
    if sys.argv[1] == "hold":
        asked.hold()
    deep.release()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**30)
"""


AGAIN = """
import os, signal, sys
from fiberjax.run import interrupts
try:
    with interrupts.Interrupts(ends_process=True):
        os.kill(os.getpid(), signal.SIGTERM)
except interrupts.Interrupted:
    os.kill(os.getpid(), signal.SIGTERM)
    print("still here")
"""


def test_a_second_signal_on_the_way_out_has_the_status_of_the_first():
    done = subprocess.run(
        [sys.executable, "-c", AGAIN],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert (done.returncode, done.stdout, done.stderr) == (interrupts.CODE, "", "")


def test_who_leaves_says_so_once(monkeypatch):
    told = []
    monkeypatch.setattr(interrupts.distributed, "leave", lambda line, code: told.append(line))
    asked = interrupts.Interrupts(ends_process=True)
    asked._leave("a second signal")
    asked._leave("a second signal")
    assert len(told) == 1


def started(*arguments):
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


def test_the_limit_and_a_second_signal_end_a_process_deep_in_a_library():
    """All at once: nearly all of their time is Python's start."""
    processes = {
        "rollouts": started("draw"),
        "update": started("hold"),
        "twice": started("hold"),
    }
    try:
        told = {}
        for process in processes.values():
            assert process.stdout.readline() == "ready\n"
        for process in processes.values():
            process.send_signal(signal.SIGTERM)
        processes["twice"].send_signal(signal.SIGINT)
        for name, process in processes.items():
            told[name] = process.communicate(timeout=60)
            assert process.returncode == interrupts.CODE == 75, told[name]
            assert len(told[name][1].splitlines()) == 1 and "Traceback" not in told[name][1]
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
            process.stdout.close()
            process.stderr.close()
    assert told["rollouts"][0] == "rescued\n"
    assert "what was there is saved" in told["rollouts"][1]
    assert told["update"][0] == "" and "what was saved before stays" in told["update"][1]
    assert told["twice"][0] == "" and "a second signal" in told["twice"][1]
