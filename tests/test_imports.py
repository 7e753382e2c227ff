"""Imports follow the data: none leads to a later station of the way, and none closes a circle."""

import ast
import graphlib
import pathlib
import subprocess
import sys

import pytest

import fiberjax

PACKAGE = pathlib.Path(fiberjax.__path__[0])
# The way, each station before those that may import it. What stands on one line serves one purpose
# and may not know its neighbours, but for the mathematics, which is ordered by `graphlib` alone.
WAY = (
    ("mathematics",),
    ("options",),
    ("policy", "tasks"),
    ("parallel", "model_folder"),
    ("train",),
    ("experiment",),
    ("plans", "run"),
    ("analysis",),
)
FLOOR = {room: floor for floor, rooms in enumerate(WAY) for room in rooms}


def modules() -> dict[str, pathlib.Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def room(module: str) -> str:
    """The station a module belongs to."""
    parts = module.split(".")
    name = parts[1] if len(parts) > 1 else "front door"
    return name if name in FLOOR else "mathematics"


def imports(name: str, path: pathlib.Path, known: dict[str, pathlib.Path]) -> set[str]:
    """The package's own modules that one imports, at its top or within a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {each if each in known else node.module for each in whole}
    return {each for each in found if each in known} - {name}


@pytest.fixture(scope="module")
def graph():
    known = modules()
    return {name: imports(name, path, known) for name, path in known.items()}


def points_back(graph):
    """The imports that lead to a later station, or to a neighbour of the same floor."""
    for name, targets in graph.items():
        if name == "fiberjax":  # The front door shows what is behind it.
            continue
        here = room(name)
        for target in targets - {"fiberjax"}:
            there = room(target)
            if here != there and FLOOR[there] >= FLOOR[here]:
                yield f"{name} -> {target}"


def test_no_import_points_back_along_the_way(graph):
    assert sorted(points_back(graph)) == []


def test_imports_close_no_circle(graph):
    # A package's own file and its modules name each other; modules must not go round.
    packages = {name for name, path in modules().items() if path.name == "__init__.py"}
    order = graphlib.TopologicalSorter(
        {name: targets - packages for name, targets in graph.items() if name not in packages}
    )
    assert len(list(order.static_order())) == len(graph) - len(packages)


def test_the_composition_root_is_read_by_runs_plans_and_analysis_alone(graph):
    readers = {room(name) for name, targets in graph.items() if "fiberjax.experiment" in targets}
    # Updates of a run are made again by what its config describes.
    assert readers - {"mathematics"} == {"run", "plans", "analysis"}


def test_a_wrong_import_would_be_seen(graph):
    wrong = {**graph, "fiberjax.train.rollout": {"fiberjax.run.loop"}}
    assert list(points_back(wrong)) == ["fiberjax.train.rollout -> fiberjax.run.loop"]


def test_a_start_waits_for_nothing_that_plots_or_tpus_alone_need():
    slow = ("matplotlib", "jax.experimental.pallas", "scipy.special")
    code = "import sys, fiberjax.experiment, fiberjax.run.loop\n"
    code += f"print([name for name in {slow} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
