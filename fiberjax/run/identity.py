"""Whose a run folder is: its config, the plugins, and the files that it reads.

`config.json` in a run folder is the config, with a few keys more: the `version` of the program's
options (see `migrations`), the `plugin_digests`, the `inputs` (see `inputs`) and the `changes`
since it was begun. A folder is resumed with the plugins and over the files that it was begun with,
and with the same config but for options that `changes` lets change: these are written into it, each
with its value before and the first iteration, counted from 1, that has the other. Anything else is
refused, by its path and both values. So is a folder that has lost what a run had left there:
nothing is begun anew over the rest.

A run of an earlier version goes on as it was begun. Options that its version did not have are taken
from the migrations and not from the config given, whose values there are those of today; which ones
that concerns is said in one line. Options that its version did have must be the same, as ever.
"""

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from fiberjax import storage
from fiberjax.bounds import named
from fiberjax.experiment import Experiment
from fiberjax.run import changes, checkpoints, inputs, migrations, writers
from fiberjax.run.changes import Change
from fiberjax.run.metrics import METRICS_FILE, read_rows

FILE = "config.json"
NEWEST = "checkpoints.json"
ELSE = "Choose another --workdir, or give the same config to resume."


class Saved(NamedTuple):
    """What a run folder says.

    Attributes:
      version: that began the run.
      plugin_digests: of the user's own files, by name.
      inputs: what it reads; None where it does not say.
      config: completed to one of today.
    """

    version: int
    plugin_digests: dict[str, str]
    inputs: dict[str, Any] | None
    config: dict[str, Any]


def read_config(directory: str | Path) -> ConfigDict:
    """The config of a run, completed to one of today where an earlier version wrote it.

    Raises:
      ValueError: there is none, or it cannot be read.
    """
    saved = _read(storage.place(directory))
    if saved is None:
        raise ValueError(f"{str(directory)!r} holds no {FILE} of a run")
    with named(str(storage.place(directory) / FILE)):  # A name with dots is none of an option.
        return ConfigDict(saved.config)


def settle(directory: str | Path, config: ConfigDict) -> ConfigDict:
    """The config to build from: the given one, or that of an earlier version's run in the folder.

    Raises:
      ValueError: that run was begun with another config; names what differs.
    """
    saved = _read(storage.place(directory))
    if saved is None or saved.version == migrations.VERSION:
        return config
    added = migrations.added_since(saved.version)
    given = json.loads(config.to_json_best_effort())
    if saved.config["model"]["tokenizer"] not in ("auto", "tasks"):
        # A tokenizer's path stood there, which is now an option of its own.
        added = (*added, "tasks.vocabulary")
    differing = _differences(saved.config, given)
    as_then = [change for change in differing if _within(change.option, added)]
    changed = [change for change in differing if change not in as_then]
    _refuse(directory, changed, saved.config)
    if as_then and jax.process_index() == 0:
        print(
            f"{directory} was begun by an earlier version and goes on as it did then: "
            f"{changes.listed(as_then)}"
        )
    with named(str(storage.place(directory) / FILE)):
        return ConfigDict(_changed(saved.config, changed))


def claim(directory: str | Path, experiment: Experiment, config_json: str) -> None:
    """Writes the config into a new run folder; one with this config, or nearly, is resumed.

    What of it may change is changed in the folder, and said in one line where updates depend on it.

    Args:
      directory: the run folder.
      experiment: what the config describes.
      config_json: the config as JSON.

    Raises:
      ValueError: the folder cannot be written, or holds a run of another config or plugin or over
        other files, or one that has more iterations already or has lost what it had, or a metric
        writer is not installed.
    """
    path = storage.place(directory) / FILE
    writers.check(experiment.writers, path.parent)
    saved, given = _read(path.parent), json.loads(config_json)
    if saved is not None:
        changed = _differences(saved.config, given)
        _refuse(directory, changed, saved.config)
        done = checkpoints.newest(path.parent / "checkpoints")
        if given["iterations"] < done:
            raise ValueError(
                f"config.iterations = {given['iterations']}, but {directory} has {done} already: "
                f"expected at least {done}"
            )
        for name, digest in experiment.plugin_digests.items():
            if saved.plugin_digests[name] != digest:
                raise ValueError(
                    f"{directory} holds a run with another {name}: the file has changed since "
                    f"(digest {saved.plugin_digests[name]} there, {digest} here). {ELSE}"
                )
        if jax.process_index() == 0:
            _refuse_lost(path.parent, saved, done)
            _claim_inputs(path, experiment, saved)
            if changed:
                _record(path, changed, saved.config, done + 1)
    elif jax.process_index() == 0:
        if checkpoints.newest(path.parent / "checkpoints") > 0:
            raise ValueError(
                f"{path} is missing, which says whose the checkpoints beside it are: put it back "
                "to resume, or choose another --workdir. Nothing was changed"
            )
        identity = {
            "version": migrations.VERSION,
            "plugin_digests": dict(experiment.plugin_digests),
            "inputs": inputs.digest(inputs.files_of(experiment), {}),
        }
        _write(path, identity | given)


def _claim_inputs(path: Path, experiment: Experiment, saved: Saved) -> None:
    """Refuses a run over other files than it was begun with; one that names none gets them."""
    now = inputs.digest(inputs.files_of(experiment), saved.inputs or {})
    if saved.inputs is not None:
        told = inputs.differences(saved.inputs, now)
        if told:
            raise ValueError(
                f"{path.parent} holds a run over other inputs: {'; '.join(told)}. Put them back to "
                "resume, or choose another --workdir"
            )
    elif now:
        _write(path, json.loads(path.read_text()) | {"inputs": now})
        print(
            f"{path.parent} named no digests of its inputs; it has those of now: {', '.join(now)}"
        )


def _refuse_lost(directory: Path, saved: Saved, done: int) -> None:
    """Refuses a folder that has lost its checkpoints or its metrics; says what else is gone.

    Args:
      directory: of the run.
      saved: what it says.
      done: iterations finished in the newest checkpoint.
    """
    metrics, folder = directory / METRICS_FILE, directory / "checkpoints"
    newest = checkpoints.recorded(directory / NEWEST)
    begun = metrics.exists() and storage.size(metrics) > 0
    # A bucket has no empty folder: there the record alone says that one was filled.
    gone = begun and not storage.remote(folder) and not folder.is_dir()
    if done == 0 and (newest > 0 or gone):
        last = f" (the newest was of iteration {newest})" if newest else ""
        raise ValueError(
            f"{folder} has lost its checkpoints{last}, and a run was here: put them back to "
            "resume, or choose another --workdir. Nothing was changed"
        )
    if newest > done:
        print(f"{folder} has lost checkpoint {newest}: the run goes on from {done}")
    if done > 0 and "jsonl" in saved.config["writers"]:
        if not metrics.exists():
            raise ValueError(
                f"{metrics} is missing, which had iterations 1 to {done}: put it back to resume, "
                "or make an empty file of that name to go on without. Nothing was changed"
            )
        if all(step < done for step, _ in read_rows(metrics)):
            print(
                f"{metrics} has no row of iteration {done}, which checkpoint {done} was saved after"
            )


def _read(directory: Path) -> Saved | None:
    """What a run folder says; None where it is none yet."""
    path = directory / FILE
    if not path.exists():
        return None
    try:
        config = json.loads(path.read_text())
        version = config.pop("version", 0)
        digests = config.pop("plugin_digests", {})
        config.pop("changes", None)
        read = config.pop("inputs", None)
        return Saved(version, digests, read, migrations.migrate(config, version))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is not the config of a run: {error}") from None


def _write(path: Path, values: dict[str, Any]) -> None:
    try:
        storage.write(path, json.dumps(values, indent=2))
    except OSError as error:
        raise ValueError(f"workdir {str(path.parent)!r} cannot be written: {error}") from None


def _record(path: Path, changed: list[Change], config: dict[str, Any], iteration: int) -> None:
    """Writes changes into a run's config, in the form of the version that began it."""
    raw = json.loads(path.read_text())
    rows = [{"iteration": iteration} | dataclasses.asdict(change) for change in changed]
    _write(path, _changed(raw, changed) | {"changes": [*raw.get("changes", []), *rows]})
    logged = [of for of in changed if changes.rule_of(of, config).kind == "logged"]
    if logged:
        print(f"from iteration {iteration}: {', '.join(map(str, logged))}")


def _changed(config: dict[str, Any], changed: list[Change]) -> dict[str, Any]:
    """A config with other values; a new dict."""
    config = copy.deepcopy(config)
    for change in changed:
        section, name = migrations.section(config, change.option)
        section[name] = change.after
    return config


def _refuse(directory: str | Path, changed: list[Change], config: dict[str, Any]) -> None:
    told = changes.refusal(changed, config)
    if told:
        raise ValueError(f"{directory} holds a run of another config; {told}. {ELSE}")


def _differences(there: Any, here: Any, path: str = "") -> list[Change]:
    """All that differs, by dotted path."""
    if isinstance(there, dict) and isinstance(here, dict):
        return [
            change
            for key in sorted(there.keys() | here.keys())
            for change in _differences(
                there.get(key), here.get(key), f"{path}.{key}" if path else key
            )
        ]
    return [] if there == here else [Change(path, there, here)]


def _within(path: str, options: tuple[str, ...]) -> bool:
    return any(path == option or path.startswith(f"{option}.") for option in options)
