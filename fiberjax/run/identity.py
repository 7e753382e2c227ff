"""Whose a run folder is: the config it was begun with, and the plugins.

`config.json` in a run folder is the config, with two keys more: the `version` of the program's
options (see `migrations`) and the `plugin_digests`. A folder is resumed with the very config and
plugins that it was begun with; anything else is refused, by its path and both values. Only what
changes nothing that is drawn or trained may be changed: `FREE`.

A run of an earlier version goes on as it was begun. Options that its version did not have are taken
from the migrations and not from the config given, whose values there are those of today; which ones
that concerns is said in one line. Options that its version did have must be the same, as ever.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from fiberjax.experiment import Experiment
from fiberjax.run import migrations, writers

FILE = "config.json"
FREE = ("keep", "stop")
"""Sections that may differ from what a run was begun with; the newest are kept."""
ELSE = "Choose another --workdir, or give the same config to resume."


class Saved(NamedTuple):
    """What a run folder says.

    Attributes:
      version: that began the run.
      plugin_digests: of the user's own files, by name.
      config: completed to one of today.
    """

    version: int
    plugin_digests: dict[str, str]
    config: dict[str, Any]


def read_config(directory: str | Path) -> ConfigDict:
    """The config of a run, completed to one of today where an earlier version wrote it.

    Raises:
      ValueError: there is none, or it cannot be read.
    """
    saved = _read(Path(directory))
    if saved is None:
        raise ValueError(f"{str(directory)!r} holds no {FILE} of a run")
    return ConfigDict(saved.config)


def settle(directory: str | Path, config: ConfigDict) -> ConfigDict:
    """The config to build from: the given one, or that of an earlier version's run in the folder.

    Raises:
      ValueError: that run was begun with another config; names what differs.
    """
    saved = _read(Path(directory))
    if saved is None or saved.version == migrations.VERSION:
        return config
    added = migrations.added_since(saved.version)
    given = json.loads(config.to_json_best_effort())
    if saved.config["model"]["tokenizer"] not in ("auto", "tasks"):
        # A tokenizer's path stood there, which is now an option of its own.
        added = (*added, "tasks.vocabulary")
    changed = _differences(saved.config, given)
    _refuse(directory, {path: told for path, told in changed.items() if not _within(path, added)})
    if changed and jax.process_index() == 0:
        print(
            f"{directory} was begun by an earlier version and goes on as it did then: "
            f"{_listed(changed)}"
        )
    return ConfigDict(saved.config)


def claim(directory: str | Path, experiment: Experiment, config_json: str) -> None:
    """Writes the config into a new run folder; a folder with this very config is resumed.

    What of `FREE` differs in a folder's config is said in one line, and written there.

    Args:
      directory: the run folder.
      experiment: what the config describes.
      config_json: the config as JSON.

    Raises:
      ValueError: the folder cannot be written, or holds a run of another config or plugin, or a
        metric writer is not installed.
    """
    writers.check_installed(experiment.writers)
    path = Path(directory) / FILE
    saved, given = _read(path.parent), json.loads(config_json)
    changed = {} if saved is None else _differences(saved.config, given)
    if saved is not None:
        _refuse(
            directory, {path: told for path, told in changed.items() if not _within(path, FREE)}
        )
        for name, digest in experiment.plugin_digests.items():
            if saved.plugin_digests[name] != digest:
                raise ValueError(
                    f"{directory} holds a run with another {name}: the file has changed since "
                    f"(digest {saved.plugin_digests[name]} there, {digest} here). {ELSE}"
                )
    if jax.process_index() == 0 and (saved is None or changed):
        if changed:
            print(f"{directory} goes on with {_listed(changed)}")
        identity = {
            "version": migrations.VERSION,
            "plugin_digests": dict(experiment.plugin_digests),
        }
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Renamed into place: a kill leaves no half of a config.
            written = path.with_name(f"{FILE}.new")
            written.write_text(json.dumps(identity | given, indent=2))
            written.replace(path)
        except OSError as error:
            raise ValueError(f"workdir {str(directory)!r} cannot be written: {error}") from None


def _read(directory: Path) -> Saved | None:
    """What a run folder says; None where it is none yet."""
    path = directory / FILE
    if not path.exists():
        return None
    try:
        config = json.loads(path.read_text())
        version = config.pop("version", 0)
        digests = config.pop("plugin_digests", {})
        return Saved(version, digests, migrations.migrate(config, version))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not the config of a run: {error}") from None


def _refuse(directory: str | Path, changed: dict[str, str]) -> None:
    if changed:
        raise ValueError(
            f"{directory} holds a run of another config; it differs in {_listed(changed)}. {ELSE}"
        )


def _differences(there: Any, here: Any, path: str = "") -> dict[str, str]:
    """Dotted path -> both values, for all that differs."""
    if isinstance(there, dict) and isinstance(here, dict):
        found: dict[str, str] = {}
        for key in sorted(there.keys() | here.keys()):
            below = f"{path}.{key}" if path else key
            found |= _differences(there.get(key), here.get(key), below)
        return found
    return {} if there == here else {path: f"({there!r} there, {here!r} here)"}


def _within(path: str, options: tuple[str, ...]) -> bool:
    return any(path == option or path.startswith(f"{option}.") for option in options)


def _listed(changed: dict[str, str]) -> str:
    return ", ".join(f"config.{path} {told}" for path, told in changed.items())
