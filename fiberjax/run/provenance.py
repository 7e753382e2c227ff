"""What made a run: `run.json`, beside the config; and how it is repeated.

    {"starts": [{"iteration": 0, "time": …, "command": […], "git": …, "lock": …, …}, …]}

Every start that trains adds one. Whatever decides the numbers of a run is in it or in
`config.json`, so that another folder can be made to hold the same (`repeated`).
"""

import datetime
import importlib.metadata
import json
import platform
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

import fiberjax
from fiberjax import digests, storage
from fiberjax.experiment import Experiment
from fiberjax.run import identity, inputs

FILE = "run.json"
PACKAGES = (
    *("fiberjax", "jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "numpy", "scipy", "optax"),
    *("orbax-checkpoint", "tensorflow-datasets", "transformers", "tokenizers"),
)
# What may be another without another number: when, by which command, from where.
SAID_ONLY = ("iteration", "time", "command", "host")


def describe() -> dict[str, Any]:
    """What would make a run here and now, as JSON."""
    root, devices = Path(fiberjax.__path__[0]).parent, jax.devices()
    lock = root / "uv.lock"
    return {
        "time": datetime.datetime.now().astimezone().isoformat(" ", "seconds"),
        "command": sys.argv,
        "host": socket.gethostname(),
        "git": _git(root),
        "lock": digests.of_file(lock) if lock.is_file() else None,
        "versions": {"python": platform.python_version()} | _versions(),
        "devices": {
            "platform": devices[0].platform,
            "kind": devices[0].device_kind,
            "count": len(devices),
            "processes": jax.process_count(),
        },
        "machine": [platform.system(), platform.machine(), _processor()],
    }


def record(directory: Path, iteration: int) -> None:
    """Adds a start to a run's `run.json`.

    Args:
      directory: the run folder.
      iteration: iterations finished when it started.
    """
    path = directory / FILE
    started = {"iteration": iteration} | describe()
    storage.write(path, json.dumps({"starts": [*read(directory), started]}, indent=1) + "\n")


def read(directory: Path) -> list[dict[str, Any]]:
    """The starts of a run, the first one first; none where it does not say, as of old."""
    try:
        found = json.loads((directory / FILE).read_text(encoding="utf-8"))["starts"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return found if isinstance(found, list) else []


def repeated(source: Path, workdir: Path) -> ConfigDict:
    """The config that repeats a run in another folder; says what is another here.

    Args:
      source: the folder of the run.
      workdir: the folder of the run to be.

    Raises:
      ValueError: there is no run, or the two folders are one.
    """
    if _same(source, workdir):
        raise ValueError(f"--from_run and --workdir are the same folder, {str(source)!r}")
    config = identity.read_config(source)
    changed = json.loads((source / identity.FILE).read_text()).get("changes", [])
    told = [
        f"its {change['option']} was changed at iteration {change['iteration']}, and is "
        f"{change['after']!r} here from the first on"
        for change in changed
    ]
    starts = read(source)
    if not starts:
        told.append("it does not say what made it")
    else:
        here = json.loads(json.dumps(describe()))
        told += _differences(starts[0], here)
        if starts[0]["git"] and not starts[0]["git"]["clean"]:
            told.append("its code had changes that no commit has")
    if jax.process_index() == 0:
        print(f"repeats {source}" + (f": {'; '.join(told)}" if told else ""))
    return config


def _same(source: Path, workdir: Path) -> bool:
    if storage.remote(source) or storage.remote(workdir):
        return source == workdir
    return source.resolve() == workdir.resolve()


def check_contents(source: Path, experiment: Experiment) -> None:
    """Refuses to repeat a run over files or plugins of other content.

    Args:
      source: the folder of the run.
      experiment: that its config describes here.

    Raises:
      ValueError: names what is another.
    """
    saved = json.loads((source / identity.FILE).read_text())
    now = inputs.digest(inputs.files_of(experiment), saved.get("inputs", {}))
    told = inputs.differences(saved["inputs"], now) if "inputs" in saved else []
    for name, digest in experiment.plugin_digests.items():
        if saved.get("plugin_digests", {}).get(name) != digest:
            told.append(f"the plugin {name} has changed")
    if told:
        raise ValueError(f"--from_run={source} cannot be repeated: {'; '.join(told)}")


def _differences(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """What is another in two descriptions, a clause each."""
    found = []
    for name in sorted((there.keys() | here.keys()) - set(SAID_ONLY)):
        a, b = there.get(name), here.get(name)
        if a == b:
            continue
        if isinstance(a, dict) and isinstance(b, dict):
            keys = [key for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)]
            found += [f"{name}.{key} was {a.get(key)}, is {b.get(key)}" for key in keys]
        else:
            found.append(f"{name} was {a}, is {b}")
    return found


def _git(root: Path) -> dict[str, Any] | None:
    """The commit of the code, and whether its tracked files were as in it; None without git."""

    def ask(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
        return done.stdout.strip()

    try:
        commit = ask("rev-parse", "HEAD")
        return {"commit": commit, "clean": ask("status", "--porcelain", "-uno") == ""}
    except (OSError, subprocess.SubprocessError):
        return None


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    """The kind of CPU, as far as the system says."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "")
