"""Objects of a bucket, `gs://bucket/name`: seen, put whole, put on a condition, dropped.

A bucket has no folders, no rename, no append and no `flock`. What it has is that an object appears
whole or not at all, and that a condition on its generation, a number that every change makes
another, is checked in the same moment. The package that asks for it is the extra `gcs`.
"""

import contextlib
import fnmatch
import functools
import importlib.util
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

SCHEME = "gs://"
ABSENT = 0
"""The generation of an object that is not there."""


class Seen(NamedTuple):
    """An object as it was at some moment."""

    content: bytes
    generation: int


class Entry(NamedTuple):
    """What a list says of an object, without reading it; `crc32c` in base64."""

    size: int
    crc32c: str
    generation: int


def check() -> None:
    """Refuses a bucket where the packages that reach one are missing.

    Raises:
      ValueError: says how to install them.
    """
    for package in ("gcsfs", "google.cloud.storage"):
        try:
            found = importlib.util.find_spec(package)
        except ModuleNotFoundError:
            found = None
        if found is None:
            raise ValueError(
                f"a path begins with {SCHEME}, and {package} is not installed: it is of the extra "
                "'gcs', as in uv sync --extra gcs"
            )
    import fsspec

    # Other hosts write into the same bucket: what a list said before is not what there is.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False


def see(path: Path) -> Seen | None:
    """An object with its generation; None where there is none."""
    with _told(path):
        while True:
            blob = _blob(path)
            try:
                # Those that change between the two requests are asked for again.
                blob.reload()
                content = blob.download_as_bytes(if_generation_match=blob.generation)
            except _errors().NotFound:
                if blob.generation is None:
                    return None
                continue
            except _errors().PreconditionFailed:
                continue
            return Seen(content, int(blob.generation))


def put(path: Path, content: bytes, *, expected: int | None = None) -> int | None:
    """Puts an object, whole.

    Args:
      path: of the object.
      content: of it.
      expected: the generation that it must have by then, `ABSENT` for none; None puts it anyway.

    Returns:
      The generation that it has now; None where it had another than the one expected.
    """
    from google.cloud.storage.retry import DEFAULT_RETRY

    with _told(path):
        blob = _blob(path)
        try:
            blob.upload_from_string(content, if_generation_match=expected, retry=DEFAULT_RETRY)
        except _errors().PreconditionFailed:
            # An answer may be lost, and the request repeated: then it is this one's all the same.
            found = see(path)
            return found.generation if found and found.content == content else None
        return int(blob.generation)


def drop(path: Path, *, expected: int | None = None) -> bool:
    """Removes an object; False where it is not there, or not of the expected generation."""
    with _told(path):
        try:
            _blob(path).delete(if_generation_match=expected)
        except (_errors().NotFound, _errors().PreconditionFailed):
            return False
        return True


def entries(folder: Path) -> dict[str, Entry]:
    """The objects below a folder by their names within it, sorted."""
    bucket, prefix = _split(folder)
    prefix = f"{prefix}/" if prefix else ""
    with _told(folder):
        return {
            blob.name[len(prefix) :]: Entry(int(blob.size), blob.crc32c, int(blob.generation))
            for blob in _client().list_blobs(bucket, prefix=prefix)
            if not blob.name.endswith("/")  # As some tools mark folders.
        }


def matching(folder: Path, pattern: str) -> list[Path]:
    """The objects right in a folder whose names match a pattern, sorted."""
    bucket, prefix = _split(folder)
    prefix = f"{prefix}/" if prefix else ""
    fixed = prefix + re.split(r"[*?[]", pattern, maxsplit=1)[0]
    with _told(folder):
        found = _client().list_blobs(bucket, prefix=fixed, delimiter="/")
        names = [blob.name[len(prefix) :] for blob in found]
    return [folder / name for name in names if fnmatch.fnmatchcase(name, pattern)]


def entry(path: Path) -> Entry | None:
    """What a list would say of one object; None where there is none."""
    bucket, name = _split(path)
    with _told(path):
        blob = _client().bucket(bucket).get_blob(name) if name else None
    return None if blob is None else Entry(int(blob.size), blob.crc32c, int(blob.generation))


def download(path: Path, target: Path) -> None:
    """Copies an object to a file, in parts, its checksum compared."""
    with _told(path):
        try:
            _blob(path).download_to_filename(str(target))
        except _errors().NotFound:
            raise FileNotFoundError(f"{path}: no such object") from None


def upload(source: Path, path: Path) -> None:
    """Copies a file to an object, which appears when it is whole."""
    from google.cloud.storage.retry import DEFAULT_RETRY

    with _told(path):
        _blob(path).upload_from_filename(str(source), retry=DEFAULT_RETRY)


def upload_folder(source: Path, folder: Path) -> None:
    """Copies all files of a folder and below it."""
    files = [path for path in sorted(source.rglob("*")) if path.is_file()]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda file: upload(file, folder / file.relative_to(source)), files))


def move_folder(source: Path, target: Path) -> None:
    """Copies all objects of a folder within the bucket, then removes them; it is no rename."""
    (bucket, prefix), (there, beginning) = _split(source), _split(target)
    with _told(source):
        for name in entries(source):
            blob = _client().bucket(bucket).blob(f"{prefix}/{name}")
            copy, token = _client().bucket(there).blob(f"{beginning}/{name}"), None
            while True:
                token, _, _ = copy.rewrite(blob, token=token)
                if token is None:
                    break
        remove_folder(source)


def remove_folder(folder: Path) -> None:
    """Removes all objects of a folder; those that are gone already are none of it."""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: drop(folder / name), entries(folder)))


def _split(path: Path) -> tuple[str, str]:
    bucket, _, name = os.fspath(path).removeprefix(SCHEME).partition("/")
    return bucket, name.rstrip("/")


def _blob(path: Path) -> Any:
    bucket, name = _split(path)
    return _client().bucket(bucket).blob(name)


@functools.cache
def _client() -> Any:
    from google.cloud import storage

    return storage.Client(project=None)  # A bucket's name says enough.


def _errors() -> Any:
    from google.api_core import exceptions

    return exceptions


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """Makes an OSError of one line of what the libraries raise."""
    from google.auth import exceptions

    try:
        yield
    except (_errors().GoogleAPIError, exceptions.GoogleAuthError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise OSError(f"{path}: {type(error).__name__}: {first}") from None
