"""Digests of files, and lists of them beside the files: what says later that bytes have changed.

A folder's list is one small file for each process that wrote into it, `digests.process_0.json`: a
SHA-256 of the list itself, then size and digest of every file, SHA-256 on disks. It is written when
the files are whole, and put into its place at once. In a bucket a digest is the checksum that the
bucket itself keeps of every object, so that nothing is read for it.
"""

import base64
import fnmatch
import hashlib
import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fiberjax import buckets, storage

NAME = "digests.process_{}.json"
_CRC = "crc32c:"


def of_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    if storage.remote(path):
        return hashlib.sha256(path.read_bytes()).hexdigest()
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _like(path: Path, digest: str) -> str:
    """The digest of a file, of the kind of another; that one where nothing here can tell."""
    if not digest.startswith(_CRC):
        return of_file(path)
    try:  # Of a folder that was copied from a bucket.
        import google_crc32c
    except ImportError:
        return digest
    found = google_crc32c.Checksum()
    with path.open("rb") as opened:
        for _ in found.consume(opened, 2**22):
            pass
    return _CRC + base64.b64encode(found.digest()).decode()


def of_files(paths: Sequence[Path]) -> list[str]:
    """The SHA-256 of each file; several are read at once, since hashing leaves Python's lock."""
    with ThreadPoolExecutor(min(4, max(1, len(paths)))) as pool:
        return list(pool.map(of_file, paths))


def files_of(folder: Path) -> list[Path]:
    """All files in a folder and below it, lists of digests aside; sorted."""
    if storage.remote(folder):
        names = [name for name in buckets.entries(folder) if not _is_list(name)]
        return [folder / name for name in names]
    lists = {path.name for path in folder.glob(NAME.format("*"))}
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in lists)


def write(folder: Path, files: Iterable[Path], *, process: int = 0) -> None:
    """Writes the list of a process; the old one or the new, never a half.

    Args:
      folder: that holds them.
      files: that this process answers for.
      process: its index.
    """
    listed = list(files)
    if storage.remote(folder):
        there = buckets.entries(folder)
        names = [str(path.relative_to(folder)) for path in listed]
        found = {name: [there[name].size, _CRC + there[name].crc32c] for name in names}
    else:
        found = {
            str(path.relative_to(folder)): [path.stat().st_size, digest]
            for path, digest in zip(listed, of_files(listed), strict=True)
        }
    body = json.dumps(found, indent=0, sort_keys=True)
    digest = hashlib.sha256(body.encode()).hexdigest()
    storage.write(folder / NAME.format(process), f"{digest}\n{body}\n")


def problem(folder: Path, *, part: int = 0, parts: int = 1) -> str | None:
    """What is wrong in a folder, by its lists: the first thing; None where all is as it was.

    Args:
      folder: with lists.
      part: of `parts` that check a share of the files each.
      parts: how many share the work.

    Raises:
      FileNotFoundError: it has no list.
    """
    lists = storage.matching(folder, NAME.format("*"))
    if not lists:
        raise FileNotFoundError(f"{folder} has no list of digests")
    expected: dict[str, tuple[int, str]] = {}
    for path in lists:
        own, _, body = path.read_bytes().partition(b"\n")
        if hashlib.sha256(body.rstrip(b"\n")).hexdigest().encode() != own:
            return f"{path.name} has changed"
        expected |= {name: (size, of) for name, (size, of) in json.loads(body).items()}
    share = sorted(expected)[part::parts]
    if storage.remote(folder):
        return _problem_in_bucket(folder, {name: expected[name] for name in share})
    for name in share:
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected[name][0]:
            return f"{name} has {path.stat().st_size} bytes of {expected[name][0]}"
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda name: _like(folder / name, expected[name][1]), share)
        for name, digest in zip(share, found, strict=True):
            if digest != expected[name][1]:
                return f"{name} has changed"
    return None


def _problem_in_bucket(folder: Path, expected: dict[str, tuple[int, str]]) -> str | None:
    """As `problem`, by what the bucket lists; what was digested on a disk is read."""
    there = buckets.entries(folder)
    for name, (size, digest) in expected.items():
        if name not in there:
            return f"{name} is missing"
        if there[name].size != size:
            return f"{name} has {there[name].size} bytes of {size}"
        crc = digest.startswith(_CRC)
        if (_CRC + there[name].crc32c if crc else of_file(folder / name)) != digest:
            return f"{name} has changed"
    return None


def listed(folder: Path) -> bool:
    """Whether a folder has a list."""
    return bool(storage.matching(folder, NAME.format("*")))


def _is_list(name: str) -> bool:
    return fnmatch.fnmatchcase(name.rpartition("/")[2], NAME.format("*"))
