"""Digests of files, and lists of them beside the files: what says later that bytes have changed.

A folder's list is one small file for each process that wrote into it, `digests.process_0.json`: a
SHA-256 of the list itself, then size and SHA-256 of every file. It is written when the files are
whole, and renamed into place.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

NAME = "digests.process_{}.json"


def of_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def of_files(paths: Sequence[Path]) -> list[str]:
    """The SHA-256 of each file; several are read at once, since hashing leaves Python's lock."""
    with ThreadPoolExecutor(min(4, max(1, len(paths)))) as pool:
        return list(pool.map(of_file, paths))


def files_of(folder: Path) -> list[Path]:
    """All files in a folder and below it, lists of digests aside; sorted."""
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
    found = {
        str(path.relative_to(folder)): [path.stat().st_size, digest]
        for path, digest in zip(listed, of_files(listed), strict=True)
    }
    body = json.dumps(found, indent=0, sort_keys=True)
    target = folder / NAME.format(process)
    written = target.with_name(f".{target.name}.{os.getpid()}")
    written.write_text(f"{hashlib.sha256(body.encode()).hexdigest()}\n{body}\n", encoding="utf-8")
    written.replace(target)


def problem(folder: Path, *, part: int = 0, parts: int = 1) -> str | None:
    """What is wrong in a folder, by its lists: the first thing; None where all is as it was.

    Args:
      folder: with lists.
      part: of `parts` that check a share of the files each.
      parts: how many share the work.

    Raises:
      FileNotFoundError: it has no list.
    """
    lists = sorted(folder.glob(NAME.format("*")))
    if not lists:
        raise FileNotFoundError(f"{folder} has no list of digests")
    expected: dict[str, tuple[int, str]] = {}
    for path in lists:
        own, _, body = path.read_bytes().partition(b"\n")
        if hashlib.sha256(body.rstrip(b"\n")).hexdigest().encode() != own:
            return f"{path.name} has changed"
        expected |= {name: (size, of) for name, (size, of) in json.loads(body).items()}
    share = sorted(expected)[part::parts]
    for name in share:
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected[name][0]:
            return f"{name} has {path.stat().st_size} bytes of {expected[name][0]}"
    for name, digest in zip(share, of_files([folder / name for name in share]), strict=True):
        if digest != expected[name][1]:
            return f"{name} has changed"
    return None
