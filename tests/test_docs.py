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
IGNORED = {".venv", "runs", "data", "build", "dist", ".pytest_cache"}
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in ROOT.rglob("*.md")
    if not IGNORED & set(path.relative_to(ROOT).parts)
)
# Its sections need other frameworks, each its own: `test_elsewhere` and `peers` run them.
BY_SECTION = {"docs/elsewhere.md"}
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


# Where people look for examples: each of these modules has one at least.
SHOWN = {
    *("advantages", "kl", "layout", "objective", "segments", "trust_region", "probes"),
    *("diagnostics", "presets", "gates", "gates.aggregate", "gates.apc", "gates.bundle"),
    *("gates.channels", "gates.compose", "gates.configured", "gates.hierarchy", "gates.score"),
    *("gates.sequence", "gates.tokenwise"),
}


def blocks_of(page: str) -> list[str]:
    """The Python of a page."""
    return BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks_of(page) and page not in BY_SECTION]
)
def test_the_code_on_a_page_runs_from_top_to_bottom(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # What a page writes stays here.
    scope: dict[str, object] = {"__name__": "__main__"}
    for number, block in enumerate(blocks_of(page)):
        exec(compile(block, f"{page}, block {number}", "exec"), scope)


def own_gate() -> str:
    """The guide's file of a gate of one's own."""
    return next(block for block in blocks_of("docs/gates.md") if "def log_clip" in block)


def test_a_gate_of_ones_own_is_short():
    assert len(own_gate().strip().splitlines()) < 30


@pytest.mark.parametrize("name", [*MODULES, "fiberjax.gates"])
def test_examples_in_docstrings_run(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0
    if name.removeprefix("fiberjax.") in SHOWN:
        assert result.attempted > 0


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


@pytest.mark.parametrize("page", PAGES)
def test_links_between_documents_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^):]+)\)", text):
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), f"{page} links to {link}"
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), f"{page} links to {link}"


def anchors(text: str) -> set[str]:
    """What links to a page's headings end in."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/gates.md"])
def test_files_that_are_named_exist(page):
    named = re.findall(
        r"`((?:fiberjax|configs|docs|experiments|tests|benchmarks|notebooks)/[\w/.]*)`",
        (ROOT / page).read_text(encoding="utf-8"),
    )
    assert named
    for name in named:
        assert (ROOT / name).exists(), f"{page} names {name}"


@pytest.mark.slow
def test_the_api_pages_build(tmp_path):
    pytest.importorskip("pdoc")
    command = [sys.executable, "-m", "pdoc", "fiberjax", "--docformat", "google"]
    subprocess.run([*command, "--output-directory", str(tmp_path)], check=True)
    assert (tmp_path / "fiberjax" / "gates" / "hierarchy.html").exists()
