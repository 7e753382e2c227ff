"""The code in the documentation runs: guides block by block, examples in docstrings."""

import dataclasses
import doctest
import importlib
import pathlib
import pkgutil
import re
import runpy
import subprocess
import sys

import pytest

import fiberjax
from fiberjax.experiment import SECTIONS
from fiberjax.options import Run

ROOT = pathlib.Path(__file__).parents[1]
MODULES = sorted(
    m.name for m in pkgutil.walk_packages(fiberjax.__path__, "fiberjax.") if not m.ispkg
)
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def own_gate():
    """The guide's file of a gate of one's own."""
    text = (ROOT / "docs" / "gates.md").read_text(encoding="utf-8")
    return next(block for block in BLOCK.findall(text) if "def log_clip" in block)


def test_the_guide_to_gates_runs():
    text = (ROOT / "docs" / "gates.md").read_text(encoding="utf-8")
    blocks = BLOCK.findall(text)
    scope: dict[str, object] = {}
    for number, block in enumerate(blocks):
        exec(compile(block, f"docs/gates.md, block {number}", "exec"), scope)
    assert len(own_gate().strip().splitlines()) < 30
    assert scope["get_config"]().gate.bound == 0.25


@pytest.mark.parametrize("name", [*MODULES, "fiberjax.gates"])
def test_examples_in_docstrings_run(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0


def test_the_page_of_options_is_what_the_code_says():
    script = runpy.run_path(str(ROOT / "docs" / "make_options.py"))
    page = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
    assert page == script["page"](), "run: python docs/make_options.py"
    assert "| `samples` | int | `16` |  | G, completions a prompt; they are its group. |" in page
    outside = {"gate", *script["meanings"](Run)}
    assert set(script["SECTIONS"]) - {""} == set(SECTIONS) - outside
    undocumented = dataclasses.make_dataclass("Undocumented", [("depth", int)])
    with pytest.raises(ValueError, match=r"Undocumented\.depth has no line under Attributes"):
        script["meanings"](undocumented)


def test_links_between_documents_exist():
    for page in (ROOT / "docs").glob("*.md"):
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


@pytest.mark.slow
def test_the_api_pages_build(tmp_path):
    pytest.importorskip("pdoc")
    command = [sys.executable, "-m", "pdoc", "fiberjax", "--docformat", "google"]
    subprocess.run([*command, "--output-directory", str(tmp_path)], check=True)
    assert (tmp_path / "fiberjax" / "gates" / "hierarchy.html").exists()
