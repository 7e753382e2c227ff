"""Edits of a tree of plain values, and of bytes: what may go wrong in a file or on a command line.

A tree is made of dicts, lists, tuples and scalars. An edit is data, so that a found one is kept as
it is: `("set", path, value)`, `("del", path)` or `("add", path, name, value)`.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

Path = tuple[Any, ...]
Edit = tuple[Any, ...]

VALUES: tuple[Any, ...] = (
    *(math.nan, math.inf, -math.inf, True, False, None, "", "nan", "x", "a" * 5000, "0.1", "null"),
    *(0, 1, 2, 3, 7, -1, -3, 10, 257, 2**20, 2**31 - 1, 2**31, -(2**31) - 1, 2**63, 10**400),
    *(0.0, -0.0, 0.5, 1.0, 1.5, -0.1, 2.0, 1e-8, 1e-50, 1e-320, 1e38, 3.5e38, 1e300, -1e300),
    *("\ud800", "\0", "a\nb", "[/x]", "$\\frac$", "\x1b[31m", "|", "é", "auto", "none", "all"),
    *((), [], {}, ("",), (1, 2), [1], {"a": 1}, {"budget": 0.1}, (("group", ""),), [None], ((),)),
    *(((("a",),),), {"": 1}, [[[]]], (math.nan,), (0.1, math.inf), {"a": {"b": math.nan}}),
)
"""What stands where something else should."""


def paths(tree: Any, above: Path = ()) -> Iterator[Path]:
    """Every place within a tree, sections included."""
    items: Any = ()
    if isinstance(tree, dict):
        items = tree.items()
    elif isinstance(tree, list | tuple):
        items = enumerate(tree)
    for name, value in items:
        yield (*above, name)
        yield from paths(value, (*above, name))


def at(tree: Any, path: Path) -> Any:
    """What stands at a place."""
    for name in path:
        tree = tree[name]
    return tree


def edits(rng: np.random.Generator, tree: Any) -> list[Edit]:
    """One to three edits, mostly one."""
    places = list(paths(tree))
    return [_edit(rng, tree, places) for _ in range(1 + min(2, int(rng.geometric(0.6)) - 1))]


def _edit(rng: np.random.Generator, tree: Any, places: Sequence[Path]) -> Edit:
    path = places[int(rng.integers(len(places)))]
    kind = rng.random()
    if kind < 0.08:
        return ("del", path)
    if kind < 0.16:
        return ("add", path[:-1], _name(rng, path[-1]), _value(rng, tree, places, path))
    return ("set", path, _value(rng, tree, places, path))


def _name(rng: np.random.Generator, name: Any) -> Any:
    text = str(name)
    cut = int(rng.integers(len(text) + 1))
    return text[:cut] + "xé_[/"[int(rng.integers(5))] + text[cut:]


def _value(rng: np.random.Generator, tree: Any, places: Sequence[Path], path: Path) -> Any:
    old, kind = at(tree, path), rng.random()
    if kind < 0.35:
        return VALUES[int(rng.integers(len(VALUES)))]
    if kind < 0.45:  # What another place has.
        return copy.deepcopy(at(tree, places[int(rng.integers(len(places)))]))
    if type(old) is bool:
        return not old
    alike = [value for value in VALUES if type(value) is type(old)]
    if kind < 0.65 and alike:
        return alike[int(rng.integers(len(alike)))]
    if type(old) is int:
        return int(rng.integers(-3, 40)) if kind < 0.85 else old * int(rng.integers(-2, 10**6))
    if type(old) is float:
        scale = 10.0 ** rng.uniform(-45, 45) if kind < 0.8 else rng.uniform(0, 3)
        return float(np.sign(rng.random() - 0.2) * scale)
    if isinstance(old, str):
        same = [at(tree, of) for of in places if isinstance(at(tree, of), str)]
        return _name(rng, old) if kind < 0.85 else same[int(rng.integers(len(same)))]
    if isinstance(old, list | tuple):
        return type(old)([*old, *old[:1]]) if kind < 0.85 else type(old)(old[1:])
    return float(rng.choice([-1.0, 0.3, 12.0]))


def applied(tree: Any, found: Sequence[Edit]) -> Any:
    """The tree with edits; those whose place an earlier one has taken are left out."""
    tree = copy.deepcopy(tree)
    for edit in found:
        tree = _applied(tree, edit[0], tuple(edit[1]), tuple(edit[2:]))
    return tree


def _applied(tree: Any, kind: str, path: Path, rest: tuple[Any, ...]) -> Any:
    if kind == "add":
        path, rest = (*path, rest[0]), rest[1:]
    if not path:
        return rest[0] if rest else tree
    name, below = path[0], path[1:]
    if isinstance(tree, list | tuple):
        if not isinstance(name, int) or name >= len(tree):
            return tree
        items: list[Any] = list(tree)
        if below:
            items[name] = _applied(items[name], "set" if kind == "add" else kind, below, rest)
        elif kind == "del":
            del items[name]
        else:
            items[name] = rest[0]
        return type(tree)(items)
    if not isinstance(tree, dict):
        return tree
    if below:
        if name in tree:
            tree[name] = _applied(tree[name], "set" if kind == "add" else kind, below, rest)
    elif kind == "del":
        tree.pop(name, None)
    else:
        tree[name] = rest[0]
    return tree


def damaged(rng: np.random.Generator, data: bytes) -> bytes:
    """Bytes with one to four of them changed, cut, doubled, moved or replaced."""
    for _ in range(int(rng.integers(1, 5))):
        start = int(rng.integers(len(data) + 1))
        stop = min(len(data), start + int(rng.geometric(0.1)))
        part = data[start:stop]
        kind = int(rng.integers(6))
        if kind == 0:
            part = bytes(rng.integers(0, 256, len(part), dtype=np.uint8))
        elif kind == 1:
            part = b""
        elif kind == 2:
            part = part * int(rng.integers(2, 5))
        elif kind == 3:
            part = (b"NaN", b"1e999", b'"', b"\\ud800", b"\xff\xfe", b"\0", b"[" * 2000)[
                int(rng.integers(7))
            ]
        elif kind == 4 and part:
            part = bytes([part[0] ^ (1 << int(rng.integers(8)))]) + part[1:]
        else:
            return data[:start]
        data = data[:start] + part + data[stop:]
    return data
