"""What a run reads beside its config, by content: the files of rows, of a tokenizer, of weights.

Their digests stand under `inputs` in the run folder's `config.json`. A run goes on only over the
files that it was begun with; what has changed or is missing is named. Small files are read at every
start. Of a large one size and time of change are believed where both are as they were.
"""

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fiberjax import digests, storage
from fiberjax.experiment import Experiment
from fiberjax.tasks.files import listed
from fiberjax.tasks.reading.formats import find_sources

# What of a model's folder is read: weights, shape, tokens, templates.
MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")

LARGE = 2**26  # Bytes, of which a core reads so many in a tenth of a second.


@dataclasses.dataclass(frozen=True)
class Input:
    """One file.

    Attributes:
      bytes: its size.
      changed: when it was, in nanoseconds of its file system's time.
      sha256: of its content.
    """

    bytes: int
    changed: int
    sha256: str


def files_of(experiment: Experiment) -> dict[str, Path]:
    """The files that an experiment reads: by option and name, `model.folder/config.json`."""
    tasks, model = experiment.tasks, experiment.model
    found: dict[str, Path] = {}
    for option, paths in (("tasks.file", tasks.file), ("tasks.test_file", tasks.test_file)):
        for path in listed(paths) if paths else ():
            with contextlib.suppress(ValueError):  # It is not there: someone else gives the rows.
                found |= {
                    f"{option}/{storage.origin(of.path)}": of.path for of in find_sources(path)
                }
    if model.folder:
        found |= _of_model("model.folder", storage.local(model.folder))
    if model.tokenizer not in ("auto", "tasks"):
        found |= _of_model("model.tokenizer", storage.local(model.tokenizer))
    for path in model.examples:
        if isinstance(path, str):
            found[f"model.examples/{path}"] = storage.local(path)
    return {name: path for name, path in found.items() if path.is_file()}


def digest(files: Mapping[str, Path], known: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Every file's `Input`, as JSON.

    Args:
      files: by their names.
      known: what was found before, of which the digests of large files are taken where size and
        time are the same.
    """
    found, unread = {}, []
    for name, path in files.items():
        stat = path.stat()
        before = None
        with contextlib.suppress(KeyError, TypeError):
            before = Input(**known[name])
        same = before is not None and (before.bytes, before.changed) == (
            *(stat.st_size, stat.st_mtime_ns),
        )
        sha256 = before.sha256 if before is not None and same and stat.st_size >= LARGE else ""
        if not sha256:
            unread.append(name)
        found[name] = Input(stat.st_size, stat.st_mtime_ns, sha256)
    for name, sha256 in zip(unread, digests.of_files([files[of] for of in unread]), strict=True):
        found[name] = dataclasses.replace(found[name], sha256=sha256)
    return {name: dataclasses.asdict(of) for name, of in sorted(found.items())}


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What is another in files of now than in those of a run; a clause each."""
    told = []
    for name in sorted(there.keys() | here.keys()):
        if name not in here:
            told.append(f"{name} is missing")
        elif name not in there:
            told.append(f"{name} is new")
        elif there[name]["sha256"] != here[name]["sha256"]:
            told.append(
                f"{name} has changed (digest {there[name]['sha256'][:12]} there, "
                f"{here[name]['sha256'][:12]} here)"
            )
    return told


def _of_model(option: str, path: Path) -> dict[str, Path]:
    if path.is_file():
        return {f"{option}/{path.name}": path}
    files = sorted({file for pattern in MODEL_FILES for file in path.glob(pattern)})
    return {f"{option}/{file.name}": file for file in files}
