"""One run at a time in a folder: who is refused, and who takes over."""

import dataclasses
import itertools
import json
import os
import pathlib
import subprocess
import sys
import threading
import time

import pytest

from fiberjax import buckets, storage
from fiberjax.run import lock

ROOT = pathlib.Path(__file__).parents[2]
# Holds a folder until its input ends, without the time that jax takes to start.
HOLDER = """
import sys
from pathlib import Path
from fiberjax.run import lock
path = Path(sys.argv[1]) / lock.FILE
try:
    held = lock._acquire(path)
except lock.Held as error:
    print("refused:", error)
    sys.exit(1)
print("held", flush=True)
sys.stdin.read()
held.release()
"""


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(lock, "STALE_SECONDS", 0.5)


@pytest.fixture(params=[-86_400, 86_400])
def jumping(request, monkeypatch):
    """A clock that goes on a day earlier or later, again and again."""
    now, calls = time.time, itertools.count()

    def jumped():
        return now() + request.param * (next(calls) % 2)

    monkeypatch.setattr(time, "time", jumped)
    monkeypatch.setattr(time, "time_ns", lambda: int(jumped() * 1e9))


@pytest.fixture
def remote(bucket, request):
    """A folder of the bucket for one test."""
    return storage.place(f"gs://bucket/{request.node.name.replace('[', '-').rstrip(']')}")


def owner_of(folder):
    return lock._read(folder / lock.FILE)[1]


def written(folder, **changed):
    """A lock of some other process, as its file."""
    owner = lock.Owner("other", "another boot", 7, "1", "2026-01-01 00:00:00", "abc")
    text = json.dumps(dataclasses.asdict(dataclasses.replace(owner, **changed)))
    storage.write(folder / lock.FILE, lock._count(3) + b"\n" + text.encode() + b"\n")


def test_a_second_run_is_refused_and_told_who_is_there_and_a_kill_frees_the_folder(tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    first = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert first.stdout.readline() == "held\n"
        with pytest.raises(lock.Held, match=rf"process {first.pid}, since 20") as error:
            with lock.held(tmp_path):
                pass
        assert len(str(error.value).splitlines()) == 1 and owner_of(tmp_path).host in str(error)
        first.kill()
        first.wait()
        with lock.held(tmp_path):  # At once, though the file is there.
            assert owner_of(tmp_path).pid == os.getpid()
    finally:
        first.kill()
        first.communicate()
    assert list(tmp_path.iterdir()) == []


def test_it_holds_within_itself_and_a_folder_of_nothing_goes(tmp_path):
    folder = tmp_path / "new" / "run"
    with lock.held(folder), lock.held(str(folder)):
        lock.check(folder)
        assert (folder / lock.FILE).exists()
    assert not folder.exists()
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ValueError, match=r"workdir .* cannot be written"),
        lock.held(tmp_path / "file"),
    ):
        pass


def test_a_process_of_the_same_number_is_another(tmp_path):
    written(tmp_path, machine=lock._machine(), pid=os.getpid(), started="0")
    with lock.held(tmp_path):
        assert owner_of(tmp_path).started == lock._started(os.getpid())


def test_another_machine_s_lock_is_taken_over_once_its_heart_is_still(tmp_path, quick, capsys):
    written(tmp_path)
    with lock.held(tmp_path):
        assert owner_of(tmp_path).pid == os.getpid()
    assert "locked by host other, process 7" in capsys.readouterr().out


def test_another_machine_s_heartbeat_is_seen(tmp_path, quick, monkeypatch):
    monkeypatch.setattr(lock, "_flock", lambda opened: None)  # As where it does not reach.
    with lock.held(tmp_path):
        monkeypatch.setattr(lock, "_machine", lambda: "this one")
        with pytest.raises(lock.Held, match=f"process {os.getpid()}"):
            lock._acquire(tmp_path / lock.FILE)


def test_flock_is_believed_where_it_reaches(tmp_path, quick, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_SECONDS", 100.0)  # As of one that is held up.
    with lock.held(tmp_path):
        monkeypatch.setattr(lock, "_machine", lambda: "another container")
        with pytest.raises(lock.Held):
            lock._acquire(tmp_path / lock.FILE)


def test_who_was_taken_over_stops_before_it_writes(tmp_path):
    with lock.held(tmp_path):
        lock.check(tmp_path)
        written(tmp_path)
        with pytest.raises(SystemExit, match=r"taken over by host other, process 7"):
            lock.check(tmp_path)
    assert owner_of(tmp_path).host == "other"  # Not this one's to remove.
    lock.check(tmp_path)


def test_file_systems_without_links(tmp_path, monkeypatch):
    def refuse(*paths):
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    with lock.held(tmp_path):
        assert owner_of(tmp_path).pid == os.getpid()
        assert not lock._create(tmp_path / lock.FILE, owner_of(tmp_path))
    assert list(tmp_path.iterdir()) == []


def acquired_by_eight_at_once(folder):
    """The locks that eight threads got, who all asked at one moment."""
    begin, won = threading.Barrier(8), []

    def contend():
        begin.wait()
        try:
            won.append(lock._acquire(folder / lock.FILE))
        except lock.Held:
            pass

    threads = [threading.Thread(target=contend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return won


def test_of_many_that_find_a_dead_one_s_lock_one_takes_it(tmp_path):
    written(tmp_path, machine=lock._machine(), started="gone")
    won = acquired_by_eight_at_once(tmp_path)
    assert len([one for one in won if not one.lost]) == 1
    for one in won:
        one.release()


def test_a_lock_that_was_judged_dead_is_not_confused_with_the_one_after(tmp_path):
    written(tmp_path, token="old")
    judged = (tmp_path / lock.FILE).read_bytes()
    written(tmp_path, token="new")
    lock._remove(tmp_path / lock.FILE, judged)
    assert owner_of(tmp_path).token == "new"


def test_a_clock_that_jumps_by_a_day_neither_frees_nor_holds_a_folder(
    tmp_path, quick, jumping, monkeypatch
):
    monkeypatch.setattr(lock, "_flock", lambda opened: None)
    with lock.held(tmp_path):
        machine = lock._machine()
        monkeypatch.setattr(lock, "_machine", lambda: "another")
        with pytest.raises(lock.Held):  # Its heart beats.
            lock._acquire(tmp_path / lock.FILE)
        monkeypatch.setattr(lock, "_machine", lambda: machine)
        lock.check(tmp_path)
    written(tmp_path)
    began = time.monotonic()
    with lock.held(tmp_path):  # Its heart is still.
        assert time.monotonic() - began > 0.4
        lock.check(tmp_path)


def test_in_a_bucket_one_holds_it_beats_and_leaves_nothing(remote, bucket, quick, monkeypatch):
    with lock.held(remote), lock.held(str(remote)):
        assert owner_of(remote).pid == os.getpid()
        first = buckets.see(remote / lock.FILE)
        with pytest.raises(lock.Held, match=f"process {os.getpid()}"):
            lock._acquire(remote / lock.FILE)
        monkeypatch.setattr(lock, "_machine", lambda: "another")
        with pytest.raises(lock.Held, match=f"process {os.getpid()}"):
            lock._acquire(remote / lock.FILE)
        lock.check(remote)
        later = buckets.see(remote / lock.FILE)
        assert later.generation > first.generation and later.content != first.content
    assert bucket.names(remote.name) == []


def test_in_a_bucket_a_still_heart_is_taken_over_and_its_owner_stops(remote, quick, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_SECONDS", 100.0)  # As of one that is held up.
    with lock.held(remote):
        machine, ours = lock._machine(), lock._held[remote / lock.FILE]
        monkeypatch.setattr(lock, "_machine", lambda: "another")
        other = lock._acquire(remote / lock.FILE)
        with pytest.raises(SystemExit, match=r"taken over by host"):
            lock.check(remote)
        # What it would still write as its heartbeat changes nothing.
        assert not ours._made.beat(b"late")
        monkeypatch.setattr(lock, "_machine", lambda: machine)
    assert owner_of(remote).machine == "another"  # Not this one's to remove.
    other.release()


def test_in_a_bucket_one_of_many_takes_a_dead_one_s_lock(remote):
    written(remote, machine=lock._machine(), started="gone")
    won = acquired_by_eight_at_once(remote)
    assert len(won) == 1 and not won[0].lost
    won[0].release()


def test_a_bucket_that_cannot_be_reached_is_told_in_one_line(remote, monkeypatch):
    def refuse(*arguments, **options):
        raise OSError(f"{remote}: Forbidden: 403")

    monkeypatch.setattr(buckets, "put", refuse)
    with (
        pytest.raises(ValueError, match=r"workdir 'gs://.*' cannot be written: .*403") as error,
        lock.held(remote),
    ):
        pass
    assert "\n" not in str(error.value)
