"""One run at a time in a folder: a lock that dies with its owner.

`run.lock` names the owner. It appears whole or not at all, so that of several processes one makes
it, on network file systems too. Whether the owner still lives is known at once on its own machine,
by its process, and wherever `flock` reaches. Elsewhere the heartbeat decides, which the owner
writes into the file: a lock that has not changed for `STALE_SECONDS` is taken over. No clocks are
compared. An owner that was only held up finds that out before it writes again (`check`). In a
bucket the lock is an object, and its heartbeat too (`lock_object`).

Of several processes of one run the first one holds it, for all.
"""

import contextlib
import dataclasses
import datetime
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from fiberjax import storage
from fiberjax.parallel import distributed
from fiberjax.run import lock_object

try:
    import fcntl
except ImportError:  # Not on this system: its processes and the heartbeat are enough.
    fcntl = None  # type: ignore[assignment]

FILE = "run.lock"
BEAT_SECONDS = 10.0
# Longer than network file systems remember what a file said.
STALE_SECONDS = 90.0


class Held(ValueError):
    """Another run is at work in the folder."""


@dataclasses.dataclass(frozen=True)
class Owner:
    """Whose a lock is.

    Attributes:
      host: name of the machine.
      machine: says whether two processes can see each other: the boot, and the names of processes.
      pid: of the process.
      started: when it was, by the system's own count: a number may be given twice.
      since: local time, for people.
      token: of this lock alone.
    """

    host: str
    machine: str
    pid: int
    started: str
    since: str
    token: str

    def __str__(self) -> str:
        return f"host {self.host}, process {self.pid}, since {self.since}"


class Lock:
    """A lock that is held, with its heartbeat; made by `held`."""

    def __init__(self, path: Path, owner: Owner, made: Any):
        """Begins to beat.

        Args:
          path: of the lock.
          owner: this process.
          made: an open file, for as long as `flock` is to hold, or a `lock_object.Object`.
        """
        self._path, self._owner, self._made = path, owner, made
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    @property
    def lost(self) -> bool:
        """Whether it was taken over, or removed."""
        found = _read(self._path)
        return found is None or found[1] != self._owner

    def release(self) -> None:
        """Removes the file, if it is still this one's."""
        self._ended.set()
        self._thread.join()
        if isinstance(self._made, lock_object.Object):
            self._made.remove()
            return
        if not self.lost:
            self._path.unlink(missing_ok=True)
        self._made.close()

    def _beat(self) -> None:
        count = 0
        while not self._ended.wait(BEAT_SECONDS):
            count += 1
            with contextlib.suppress(OSError):
                if isinstance(self._made, lock_object.Object):
                    if not self._made.beat(_content(count, self._owner)):
                        return
                elif self.lost:
                    return
                else:
                    with self._path.open("r+b") as opened:
                        opened.write(_count(count))


_held: dict[Path, Lock | None] = {}  # None on all processes but the first.


@contextlib.contextmanager
def held(directory: str | os.PathLike[str]) -> Iterator[None]:
    """Holds a run folder, which is made if absent; all processes of a run take part.

    Within itself it holds nothing more: a function may hold a folder that its caller holds.

    Raises:
      Held: another run is at work there; names it.
      ValueError: the folder cannot be written.
    """
    path = storage.absolute(directory) / FILE
    if path in _held:
        yield
        return
    remote, refused = storage.remote(path), ""
    made = not remote and not path.parent.exists()
    if jax.process_index() == 0:
        try:
            if not remote:
                path.parent.mkdir(parents=True, exist_ok=True)
            _held[path] = _acquire(path)
        except Held as error:
            refused = str(error)
        except OSError as error:
            refused = f"workdir {str(directory)!r} cannot be written: {error}"
    if multihost_utils.broadcast_one_to_all(np.bool_(bool(refused))):
        raise Held(refused or f"{directory}: host 0 says why it cannot be used")
    # Known on every process, so that all of them pass over a second call alike.
    _held.setdefault(path, None)

    def release() -> None:
        lock = _held.pop(path, None)
        if lock is not None:
            lock.release()
            if made:  # Nothing came of it.
                with contextlib.suppress(OSError):
                    path.parent.rmdir()

    with distributed.before_leaving(release):
        try:
            yield
        finally:
            release()


def check(directory: str | os.PathLike[str]) -> None:
    """Ends a run whose folder another has taken over, before it writes there.

    Raises:
      SystemExit: it has.
    """
    path = storage.absolute(directory) / FILE
    lock = _held.get(path)
    if lock is not None and lock.lost:
        found = _read(path)
        by = f"taken over by {found[1]}" if found and found[1] else "removed"
        raise SystemExit(
            f"stopped: the lock of {directory} was {by}, as one is that says nothing for "
            f"{STALE_SECONDS:.0f} s; nothing more is written there"
        )


def _acquire(path: Path) -> Lock:
    """Makes the lock, or takes over one whose owner is gone."""
    owner = Owner(
        socket.gethostname(),
        _machine(),
        os.getpid(),
        _started(os.getpid()) or "",
        datetime.datetime.now().isoformat(" ", "seconds"),
        secrets.token_hex(8),
    )
    while (made := _create(path, owner)) is None:
        found = _read(path)
        if found is None:  # Released just now.
            continue
        if _alive(path, *found):
            raise Held(
                f"{path.parent} is in use by another run: {found[1] or 'one that is starting'}. "
                "Wait for it or end it, or choose another --workdir"
            )
        _remove(path, found[0])
    return Lock(path, owner, made)


def _create(path: Path, owner: Owner) -> Any:
    """Makes the file, whole, and locks it: as `Lock` takes it; None where there is one."""
    text = _content(0, owner)
    if storage.remote(path):
        return lock_object.create(path, text)
    making = path.with_name(f".{path.name}.{owner.token}")
    making.write_bytes(text)
    opened = making.open("rb")
    try:
        _flock(opened)
        os.link(making, path)
    except FileExistsError:
        opened.close()
        return None
    except OSError:  # A file system without links.
        opened.close()
        try:
            with path.open("xb") as written:
                written.write(text)
        except FileExistsError:
            return None
        opened = path.open("rb")
        _flock(opened)
    finally:
        making.unlink(missing_ok=True)
    return opened


def _remove(path: Path, content: bytes) -> None:
    """Removes a lock whose owner is gone, and no other that has taken its place meanwhile."""
    if storage.remote(path):
        lock_object.remove(path, content)
        return
    stale = path.with_name(f".{path.name}.stale-{secrets.token_hex(8)}")
    with contextlib.suppress(FileNotFoundError):
        path.rename(stale)
        if _identity(stale.read_bytes()) != _identity(content):
            with contextlib.suppress(OSError):
                os.link(stale, path)
        stale.unlink()


def _alive(path: Path, content: bytes, owner: Owner | None) -> bool:
    """Whether the owner of a lock lives; waits for its heartbeat where nothing else can tell."""
    if owner is not None and owner.machine == _machine():
        return _started(owner.pid) == owner.started
    if not storage.remote(path):
        with contextlib.suppress(FileNotFoundError), path.open("rb") as opened:
            if _flock(opened) is False:
                return True
    print(
        f"{path.parent} is locked by {owner or 'a run that is starting'}: watching its heartbeat "
        f"for up to {STALE_SECONDS:.0f} s",
        flush=True,
    )
    until = time.monotonic() + STALE_SECONDS
    while time.monotonic() < until:
        time.sleep(min(1.0, STALE_SECONDS / 10))
        found = _bytes(path)
        if found != content:
            return found is not None
    return False


def _read(path: Path) -> tuple[bytes, Owner | None] | None:
    """What a lock says, and whose it is, if it can be read; None where there is none."""
    content = _bytes(path)
    if content is None:
        return None
    try:
        return content, Owner(**json.loads(_identity(content)))
    except (ValueError, TypeError):
        return content, None


def _bytes(path: Path) -> bytes | None:
    if storage.remote(path):
        return lock_object.read(path)
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _content(beats: int, owner: Owner) -> bytes:
    """A lock after so many heartbeats."""
    return _count(beats) + b"\n" + json.dumps(dataclasses.asdict(owner)).encode() + b"\n"


def _identity(content: bytes) -> bytes:
    """A lock without its heartbeat."""
    return content.partition(b"\n")[2]


def _count(beats: int) -> bytes:
    return f"{beats:012d}".encode()


def _flock(opened: Any) -> bool | None:
    """Locks an open file: True where that went, False where another has it, None where neither."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _machine() -> str:
    """The same for processes that can see each other."""
    found = [socket.gethostname()]
    with contextlib.suppress(OSError):
        found.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        found.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(found)


def _started(pid: int) -> str | None:
    """When a process was started, by the system's own count; None where it runs no more."""
    stat = Path(f"/proc/{pid}/stat")
    if stat.parent.parent.joinpath("self").exists():
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] in "ZX" else fields[19]
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "unknown"
