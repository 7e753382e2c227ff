"""Data sets of reasoning-gym as domains: drawn when a run begins, verified by their own scorers.

A problem is the data set's entry of some index, a function of (data set, knobs, seed, index) alone.
Whether it is trained on or held out, the hash of its question says, as everywhere else.
"""

import ast
import importlib.util
import time
import warnings
from collections.abc import Mapping
from typing import Any

from fiberjax.tasks.domains import Domain
from fiberjax.tasks.examples import Example, Split, split_of_text
from fiberjax.tasks.reading.checks import Tell
from fiberjax.tasks.rewards import Verifier, combine

EXTRA = "reasoning"
"""That brings reasoning-gym."""

ENTRY = "reasoning_gym"
"""The column of `Example.row` that holds an entry as its data set made it; and the verifier."""

_BARREN = 20_000  # Draws in a row without a new problem that is wanted.
_LONG = 10.0  # Seconds.


def named(entries: Any, path: str = "config.tasks.reasoning_gym") -> dict[str, dict[str, Any]]:
    """Data set -> its knobs, as a config gives them.

    Args:
      entries: names with commas between them; or a sequence, each a name or a sequence of a name
        and pairs of a knob and its value; or such a sequence as Python writes it, which is how it
        comes from a command line.
      path: of the option, for errors.

    Raises:
      ValueError: another form, or a data set twice.

    >>> named("gcd, leg_counting")
    {'gcd': {}, 'leg_counting': {}}
    >>> named(("gcd", ("leg_counting", ("max_animals", 4))))
    {'gcd': {}, 'leg_counting': {'max_animals': 4}}
    >>> named("('gcd', ('leg_counting', ('max_animals', 4)))")
    {'gcd': {}, 'leg_counting': {'max_animals': 4}}
    """
    if isinstance(entries, str) and entries.lstrip()[:1] in ("(", "["):
        entries = _written(entries.strip(), path)
    given: list[Any] = list(entries)
    if isinstance(entries, str):
        given = [name.strip() for name in entries.split(",")] if entries else []
    chosen: dict[str, dict[str, Any]] = {}
    for entry in given:
        several = isinstance(entry, tuple | list) and len(entry) > 0
        name, *knobs = tuple(entry) if several else (entry,)
        pairs = all(isinstance(knob, tuple | list) and len(knob) == 2 for knob in knobs)
        if not isinstance(name, str) or not name or not pairs:
            raise ValueError(
                f"{path}: expected a name, or a name and pairs such as ('max_animals', 4); got "
                f"{entry!r}"
            )
        if name in chosen:
            raise ValueError(f"{path} names {name!r} twice")
        chosen[name] = {str(knob): value for knob, value in knobs}
    return chosen


def _written(text: str, path: str) -> list[Any]:
    """The entries of a tuple or list as Python writes it; nothing in it is executed."""
    try:
        entries = ast.literal_eval(text)
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        entries = None
    if isinstance(entries, str):
        return [entries]  # "('gcd')" has brackets and no comma.
    if not isinstance(entries, tuple | list):
        raise ValueError(
            f"{path}: expected names, or a tuple of names and of names with pairs, such as "
            f"('gcd', ('leg_counting', ('max_animals', 4))); got {text!r}"
        )
    return list(entries)


def read(
    chosen: Mapping[str, Mapping[str, Any]],
    *,
    num_train: int,
    num_test: int,
    seed: int,
    verifiers: Mapping[str, Verifier],
    verifier_of: Mapping[str, str],
    tell: Tell,
) -> tuple[tuple[Domain, ...], tuple[Domain, ...]]:
    """The training and held-out domains of some data sets, in one order.

    Args:
      chosen: data set -> its knobs.
      num_train: training examples of each.
      num_test: held-out examples of each.
      seed: of the draws.
      verifiers: the table of names.
      verifier_of: data set -> its verifier or sum of them, where it is not `reasoning_gym`.
      tell: is told of a data set whose problems take long to draw.

    Raises:
      ValueError: the extra is missing, a data set or a knob does not exist or is out of range, or
        has too few distinct problems.
    """
    if importlib.util.find_spec(ENTRY) is None:
        raise ValueError(
            f"config.tasks.reasoning_gym ({', '.join(chosen)}) needs the extra {EXTRA!r}, which is "
            f"not installed: uv sync --inexact --extra {EXTRA}"
        )
    train, test = [], []
    for name, knobs in chosen.items():
        began = time.monotonic()
        problems = _draw(name, knobs, {"train": num_train, "test": num_test}, seed)
        took = time.monotonic() - began
        if took > _LONG:
            tell(
                f"{name}: drawing {num_train} + {num_test} problems took {took:.0f} s, at every "
                "start; config.tasks.num_train = fewer takes less"
            )
        verify = combine(verifier_of.get(name, ENTRY), verifiers)
        train.append(Domain(name, problems["train"], verify))
        test.append(Domain(name, problems["test"], verify))
    return tuple(train), tuple(test)


def _draw(
    name: str, knobs: Mapping[str, Any], sizes: Mapping[Split, int], seed: int
) -> dict[Split, tuple[Example, ...]]:
    """So many distinct problems of each split, in the order of their draws."""
    # Longer than any run draws: an entry does not depend on it.
    data = _create(name, knobs, seed, size=2**31 - 1)
    drawn: dict[Split, dict[str, Example]] = {split: {} for split in sizes}
    index = barren = 0
    while any(len(drawn[split]) < size for split, size in sizes.items()):
        entry = data[index]
        question, answer = str(entry["question"]), entry["answer"]
        split = split_of_text(question)
        barren += 1
        if len(drawn[split]) < sizes[split] and question not in drawn[split]:
            # Where an entry has no answer of its own, its scorer knows what is right.
            text = "" if answer is None else str(answer)
            drawn[split][question] = Example(
                *(question, text, text, name),
                where=f"{name}, problem {index}",
                row={ENTRY: entry},
            )
            barren = 0
        if barren == _BARREN:
            found = ", ".join(f"{len(drawn[of])} of {size} for {of}" for of, size in sizes.items())
            raise ValueError(
                f"config.tasks.reasoning_gym: {name} has too few distinct problems: found {found}"
            )
        index += 1
    return {split: tuple(examples.values()) for split, examples in drawn.items()}


def _create(name: str, knobs: Mapping[str, Any], seed: int, size: int) -> Any:
    """The data set, whose own checks say what its knobs may be."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of the syntax of what it imports.
        import reasoning_gym
        from reasoning_gym.factory import DATASETS

    if name not in DATASETS:
        near = [known for known in DATASETS if known.startswith(name[:3])]
        raise ValueError(
            f"config.tasks.reasoning_gym: there is no data set {name!r}; those with such a name "
            f"are {', '.join(near) or 'none'}"
        )
    try:
        return reasoning_gym.create_dataset(name, size=size, seed=seed, **knobs)
    except Exception as error:
        told = " ".join(str(error).split())
        raise ValueError(
            f"config.tasks.reasoning_gym: {name} with {dict(knobs)!r} is refused by reasoning-gym: "
            f"{type(error).__name__}: {told}"
        ) from None
