"""Plugins: Python files of the user's own that add gates, rewards and the like by name.

    config.plugins = ("my_gate.py",)

A plugin is a file, or a module that Python finds, and defines one or more of the tables

    GATES       name -> gates.GateSpec, chosen by `config.gate.name`
    REWARDS     name -> (prompt, answer, completion) -> float, chosen by `config.tasks.verifier`,
                called in processes of their own; see `tasks.rewards.workers`
    ESTIMATORS  name -> (reward [M], group_id [M], num_groups) -> advantage [M], compiled, chosen by
                `config.advantage`
    ENVIRONMENTS name -> (example, said) -> reply or None, chosen by `config.turns.environment`,
                called in processes of their own; see `tasks.environments`

It is ordinary code and is executed, once a process, under its own name. Nothing registers itself:
`merge` adds a plugin's table to the framework's where an experiment is built, and two entries of
one name are refused. The digest of the file is part of a run's identity; what the file imports is
not looked at.
"""

import dataclasses
import functools
import hashlib
import importlib
import importlib.util
import sys
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fiberjax.gates import GateSpec

TABLES = ("GATES", "REWARDS", "ESTIMATORS", "ENVIRONMENTS")


@dataclasses.dataclass(frozen=True)
class Plugin:
    """What a plugin adds.

    Attributes:
      name: the file or module, as the config names it.
      digest: of the bytes that were executed.
      tables: a table by each name of `TABLES`; empty where the plugin has none.
    """

    name: str
    digest: str
    tables: Mapping[str, Mapping[str, Any]]


def load_all(names: tuple[str, ...]) -> tuple[Plugin, ...]:
    """Loads the plugins that a config names, in its order.

    Args:
      names: files ending in `.py`, from the current folder, or dotted modules.

    Raises:
      ValueError: one of them is something else, or named twice, or as `load`.
    """
    if not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"config.plugins must be files or modules, such as ('my_gate.py',); got {names!r}"
        )
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise ValueError(f"config.plugins names {twice[0]!r} twice")
    return tuple(load(name) for name in names)


def load(name: str) -> Plugin:
    """Imports one plugin, or takes it from the modules that are imported already.

    Raises:
      ValueError: there is no such file or module, its name belongs to another one, importing it
        fails, it changed since it was imported, or it has no table, or one of other values.
    """
    where = f"config.plugins: {name}"
    module_name, file = locate(name, where)
    try:
        module, found = _imported(module_name, file)
    except Exception as error:
        raise ValueError(f"{where}: {_in_one_line(error, file)}") from error
    if digest(file.read_bytes()) != found:
        raise ValueError(f"{where} changed since this process imported it; start another process")
    if not any(hasattr(module, table) for table in TABLES):
        raise ValueError(f"{where} defines none of {', '.join(TABLES)}")
    return Plugin(name, found, {table: _table(module, table, where) for table in TABLES})


def merge(table: Mapping[str, Any], plugins: Iterable[Plugin], kind: str) -> dict[str, Any]:
    """A table with the plugins' entries added; the table itself is left as it is.

    Args:
      table: the entries there are.
      plugins: from `load_all`.
      kind: which of their tables, a name of `TABLES`.

    Raises:
      ValueError: a name is taken; names both sources.

    >>> plugin = Plugin("mine.py", "", {"REWARDS": {"length": len}})
    >>> merge({"exact": str.__eq__}, [plugin], "REWARDS").keys()
    dict_keys(['exact', 'length'])
    """
    merged, sources = dict(table), dict.fromkeys(table, "fiberjax")
    for plugin in plugins:
        for name, entry in plugin.tables[kind].items():
            if name in merged:
                raise ValueError(
                    f"config.plugins: {plugin.name} has {name!r} in {kind}, and so has "
                    f"{sources[name]}; choose another name"
                )
            merged[name], sources[name] = entry, plugin.name
    return merged


def locate(name: str, where: str) -> tuple[str, Path]:
    """The name that a plugin is imported under, and its file; imports nothing of it.

    Args:
      name: a file ending in `.py`, from the current folder, or a dotted module.
      where: that names it, for errors.

    Raises:
      ValueError: there is none, or its name belongs to another module.
    """
    file = Path(name).resolve() if name.endswith(".py") else None
    if file is not None and not file.is_file():
        raise ValueError(f"{where} does not exist; looked for {file}")
    module_name = name if file is None else file.stem
    try:
        spec = importlib.util.find_spec(module_name)
    except (ImportError, ValueError):
        spec = None
    origin = None if spec is None or spec.origin is None else Path(spec.origin).resolve()
    if file is None:
        if origin is None or not origin.is_file():
            raise ValueError(f"{where} does not exist; expected a file ending in .py, or a module")
        return module_name, origin
    if spec is not None and origin != file:
        raise ValueError(f"{where}: {module_name!r} is the name of another module; rename the file")
    return module_name, file


@functools.cache
def _imported(name: str, file: Path) -> tuple[types.ModuleType, str]:
    """Imports a module, a file as the module of its name; it, and the digest of its source."""
    source = file.read_bytes()
    spec = importlib.util.find_spec(name)
    if spec is not None:
        return importlib.import_module(name), digest(source)
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None  # The file ends in `.py`.
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        exec(compile(source, str(file), "exec", dont_inherit=True), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    return module, digest(source)


def _in_one_line(error: Exception, file: Path) -> str:
    """An error, with the line of the file where it came up."""
    line = error.lineno if isinstance(error, SyntaxError) else None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(file):
            line = trace.tb_lineno
        trace = trace.tb_next
    return f"{file}, line {line}: {type(error).__name__}: {' '.join(str(error).split())}"


def _table(module: types.ModuleType, table: str, where: str) -> dict[str, Any]:
    """One table of a module, empty where it has none."""
    if not hasattr(module, table):
        return {}
    entries = getattr(module, table)
    if not isinstance(entries, Mapping):
        raise ValueError(f"{where}: {table} must be a dict by name; got {entries!r}")
    for name, entry in entries.items():
        fits = isinstance(entry, GateSpec) if table == "GATES" else callable(entry)
        if not isinstance(name, str) or not fits:
            wanted = "a GateSpec" if table == "GATES" else "a function"
            raise ValueError(f"{where}: {table}[{name!r}] must be {wanted}; got {entry!r}")
    return dict(entries)


def digest(source: bytes) -> str:
    """Of the bytes of a file, as text."""
    return hashlib.blake2b(source, digest_size=8).hexdigest()
