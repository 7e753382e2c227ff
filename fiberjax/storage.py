"""Where things lie: in folders of a file system, or in a bucket, `gs://bucket/folder`.

    directory = storage.place("gs://bucket/runs/quickstart")
    storage.write(directory / "config.json", text)

`place` gives a `pathlib.Path`, or for a bucket etils' path, which has the same methods. What they
do not do alike stands here: writing a file so that it is the old one or the new one and never a
half, sizes, moving, files that grow, and local copies of what a library reads from disks alone.
"""

import contextlib
import functools
import glob
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from fiberjax import buckets


def remote(path: str | os.PathLike[str]) -> bool:
    """Whether a path is in a bucket."""
    return os.fspath(path).startswith(buckets.SCHEME)


def place(path: str | os.PathLike[str]) -> Path:
    """A path that may be in a bucket.

    Raises:
      ValueError: it has another scheme or no bucket, or what reaches buckets is not installed.
    """
    text = os.fspath(path)
    if not remote(path):
        # Of a path it would be a folder called "s3:".
        scheme, found, _ = text.partition("://")
        if found and scheme.isalnum():
            raise ValueError(
                f"{text!r}: expected the path of a file system, or {buckets.SCHEME}bucket/folder"
            )
        return Path(path)
    if not re.fullmatch(rf"{buckets.SCHEME}[a-z0-9][a-z0-9._-]+[a-z0-9](/.*)?", text, re.DOTALL):
        raise ValueError(
            f"{text!r} names no bucket: expected {buckets.SCHEME}bucket/folder, the bucket three "
            "or more of a-z, 0-9 and, within, -_."
        )
    if glob.has_magic(text):  # The libraries take these for a pattern.
        raise ValueError(f"{text!r}: expected a path in a bucket without any of *?[")
    buckets.check()
    from etils import epath

    return cast(Path, epath.Path(text))


def absolute(path: str | os.PathLike[str]) -> Path:
    """The same path from anywhere."""
    return place(path) if remote(path) else Path(path).absolute()


def on_disk(path: str | os.PathLike[str], what: str) -> Path:
    """A path of something that another program, or a library, has on disks alone.

    Raises:
      ValueError: it is in a bucket.
    """
    if remote(path):
        raise ValueError(f"{what} is {os.fspath(path)!r}: expected a folder of a file system")
    return place(path)


def write(path: Path, content: str | bytes) -> None:
    """Writes a file, the folders above it made; it is the old one or the new, never a half."""
    data = content.encode() if isinstance(content, str) else content
    if remote(path):
        buckets.put(path, data)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # Readers of a folder pass over names that begin with a point.
    written = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        written.write_bytes(data)
        written.replace(path)
    except OSError:  # On a full disk what there is of it would only take more room.
        written.unlink(missing_ok=True)
        raise


def size(path: Path) -> int:
    """Bytes of a file."""
    return cast(int, path.stat().length) if remote(path) else path.stat().st_size  # type: ignore[attr-defined]


def matching(folder: Path, pattern: str) -> list[Path]:
    """The files right in a folder whose names match a pattern, sorted."""
    return buckets.matching(folder, pattern) if remote(folder) else sorted(folder.glob(pattern))


def empty(folder: Path) -> bool:
    """Whether nothing is in a folder, or there is none."""
    return not (buckets.entries(folder) if remote(folder) else any(folder.glob("*")))


def move(path: Path, target: Path) -> None:
    """Moves a folder or a file; a bucket's objects are copied, one by one, and then removed."""
    if not remote(path):
        path.rename(target)
    elif path.is_dir():
        buckets.move_folder(path, target)
    else:
        write(target, path.read_bytes())
        path.unlink()


def remove_folder(folder: Path) -> None:
    """Removes a folder, as far as that goes."""
    if remote(folder):
        buckets.remove_folder(folder)
    else:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def filled(folder: Path) -> Iterator[Path]:
    """A folder to write files into, by whatever library; what is there at the end is kept.

    It is the folder itself, or one on the disk whose files are put into the bucket at the end.
    """
    if not remote(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory() as local:
        yield Path(local)
        buckets.upload_folder(Path(local), folder)


class Changed(OSError):
    """An object is not as this process left it."""


class Growing:
    """An object that grows: kept in memory, and put whole at `flush`.

    Only over what it put there itself: what another program has written meanwhile, as a run does
    that has taken over from a silent one, stays.
    """

    SECONDS = 10.0

    def __init__(self, path: Path, content: bytes = b""):
        self._path, self._content = path, bytearray(content)
        self._seconds, self._flushed = self.SECONDS, time.monotonic()
        self._generation: int | None = None
        self._whole = False

    @property
    def due(self) -> bool:
        """Whether it is time to put it again; more seldom where that takes long."""
        return time.monotonic() - self._flushed > self._seconds

    def write(self, content: bytes) -> None:
        """Takes what follows."""
        self._content += content
        self._whole = False

    def flush(self) -> None:
        """Has all of it in the bucket.

        Raises:
          Changed: another program has written it.
        """
        if self._whole:
            return
        began = time.monotonic()
        made = buckets.put(self._path, bytes(self._content), expected=self._generation)
        if made is None:
            raise Changed(f"{self._path} was changed by another program: it is left as it is now")
        self._generation = made
        self._flushed = time.monotonic()
        self._seconds = max(self.SECONDS, 20 * (self._flushed - began))
        self._whole = True

    def close(self) -> None:
        """As `flush`, but leaves what another program has written without a word."""
        with contextlib.suppress(Changed):
            self.flush()


_origins: dict[Path, str] = {}  # What copies are of.


def user_cache() -> Path:
    """Where what can be made again is kept for this user: in `$XDG_CACHE_HOME`, or in `~/.cache`.

    Raises:
      RuntimeError: there is no home.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fiberjax"


def local(path: str | os.PathLike[str]) -> Path:
    """A path to read from by what reads disks alone: itself, or a copy of what is in a bucket.

    A file, a folder with all below it, or a pattern, of whose fixed part all is copied. Copies lie
    in the `user_cache`, under a digest of what the bucket lists, and are made once a machine. A
    process asks the bucket once.

    Raises:
      ValueError: it is in a bucket that has no such object, or cannot be reached.
    """
    if not remote(path):
        return place(path)
    text = os.fspath(path).rstrip("/")
    head, parts = text.split("/")[:3], text.split("/")[3:]
    fixed = [*head]
    while parts and not glob.has_magic(parts[0]):
        fixed.append(parts.pop(0))
    return _copied("/".join(fixed)).joinpath(*parts)


def origin(path: str | os.PathLike[str]) -> str:
    """What a path is a copy of, for people; itself where it is none."""
    for root, text in _origins.items():
        if Path(path).is_relative_to(root):
            return "/".join([text, *Path(path).relative_to(root).parts])
    return os.fspath(path)


@functools.cache
def _copied(text: str) -> Path:
    source = place(text)
    try:
        found = {source / name: entry for name, entry in buckets.entries(source).items()}
        single = None if found else buckets.entry(source)
    except OSError as error:
        raise ValueError(f"{text!r} cannot be read: {error}") from None
    if single is not None:
        found = {source: single}
    if not found:
        raise ValueError(f"{text!r}: no such file or folder")
    listed = json.dumps([text, [(str(path), of.size, of.crc32c) for path, of in found.items()]])
    folder = user_cache() / hashlib.sha256(listed.encode()).hexdigest()[:16]
    if not folder.is_dir():
        making = folder.with_name(f"{folder.name}.making-{secrets.token_hex(4)}")
        try:
            for path in found:
                target = making / path.relative_to(source.parent)
                target.parent.mkdir(parents=True, exist_ok=True)
                buckets.download(path, target)
            making.rename(folder)
        except OSError as error:
            if not folder.is_dir():  # No other process was first.
                raise ValueError(f"{text!r} cannot be copied to {folder.parent}: {error}") from None
        finally:
            shutil.rmtree(making, ignore_errors=True)
    _origins[folder / source.name] = text
    return folder / source.name
