"""The verifiers of a run by name: what ships, the plugins', and functions that its config names.

What is the user's own runs in workers, under the limits of `config.rewards`; what is given in
Python, as an argument, in this process, since no other one has it.
"""

import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from fiberjax import options, plugins
from fiberjax.plugins import Plugin
from fiberjax.tasks.rewards.base import Verifier, verifier_of
from fiberjax.tasks.rewards.combined import names_of
from fiberjax.tasks.rewards.patterns import Pattern
from fiberjax.tasks.rewards.worker import Target
from fiberjax.tasks.rewards.workers import Isolated, Limits

FORMAT = "format"
"""The verifier that `config.rewards.format` is the pattern of."""


class Table(NamedTuple):
    """Verifiers by name.

    Attributes:
      verifiers: what expressions in a config choose from.
      digests: of the files of functions that it names, by module.
    """

    verifiers: dict[str, Verifier]
    digests: dict[str, str]


def expressions_of(tasks: options.Tasks) -> tuple[str, ...]:
    """The verifiers that a config names, sums as they stand."""
    return (tasks.verifier, *(expression for _, expression in tasks.verifiers))


def limits_of(rewards: options.Rewards) -> Limits:
    """The limits of what runs in workers."""
    return Limits(rewards.seconds, rewards.megabytes, rewards.workers, rewards.failed == "stop")


def table_of(
    shipped: Mapping[str, Verifier],
    loaded: Iterable[Plugin],
    expressions: Iterable[str],
    rewards: options.Rewards,
) -> Table:
    """The verifiers that a run chooses from.

    Args:
      shipped: those there are.
      loaded: plugins, whose rewards are added.
      expressions: of the config; a name with a colon is a function of a module.
      rewards: limits, and the pattern of `format`.

    Raises:
      ValueError: a name is taken, a module does not exist, a function takes other arguments, or the
        pattern is none.
    """
    loaded = tuple(loaded)
    limits = limits_of(rewards)
    verifiers: dict[str, Verifier] = {}
    for name, entry in plugins.merge(shipped, loaded, "REWARDS").items():
        try:
            here = verifier_of(entry) if name in shipped else entry
        except ValueError as error:
            raise ValueError(f"the reward {name!r} {error}") from None
        verifiers[name] = here.limited(limits) if isinstance(here, Isolated) else here
    for plugin in loaded:
        module, file = plugins.locate(plugin.name, f"config.plugins: {plugin.name}")
        path = str(file) if plugin.name.endswith(".py") else ""
        for name in plugin.tables["REWARDS"]:
            verifiers[name] = Isolated(name, Target(module, path, name, "REWARDS"), limits)
    if rewards.format:
        if FORMAT in verifiers:
            raise ValueError(
                f"config.rewards.format = {rewards.format!r} is the pattern of the verifier "
                f"{FORMAT!r}, and a plugin has one of that name; choose another name"
            )
        try:
            verifiers[FORMAT] = Pattern(rewards.format)
        except ValueError as error:
            raise ValueError(f"config.rewards.format: {error}") from None
    digests = {}
    names = tuple(dict.fromkeys(name for of in expressions for name in names_of(of)))
    if rewards.format and FORMAT not in names:
        raise ValueError(
            f"config.rewards.format = {rewards.format!r} is read by the verifier 'format' alone, "
            "which config.tasks.verifier does not name: expected such as 'math + format'"
        )
    for name in names:
        if name == FORMAT and FORMAT not in verifiers:
            raise ValueError(
                "config.tasks.verifier names 'format', whose pattern config.rewards.format is empty"
            )
        where, colon, function = name.rpartition(":")
        if colon:
            target, digests[where] = _found(where, function, f"config.tasks.verifier: {name}")
            verifiers[name] = Isolated(name, target, limits)
    return Table(verifiers, digests)


def _found(where: str, function: str, whose: str) -> tuple[Target, str]:
    """A function of a module or file, which is not imported here, and the file's digest."""
    if not where.endswith(".py") and not _importable(where) and Path(f"{where}.py").is_file():
        where = f"{where}.py"  # Of the current folder.
    module, file = plugins.locate(where, whose)
    target = Target(module, str(file) if where.endswith(".py") else "", function)
    return target, plugins.digest(file.read_bytes())


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False
