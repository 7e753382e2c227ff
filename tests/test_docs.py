"""The code in the documentation runs: guides block by block, examples in docstrings."""

import doctest
import importlib
import pathlib
import pkgutil
import re
import subprocess
import sys

import pytest

import fiberjax

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


def test_a_gate_of_ones_own_is_short():
    own = next(block for block in blocks_of("docs/gates.md") if "def log_clip" in block)
    assert len(own.strip().splitlines()) < 30


@pytest.mark.parametrize("name", [*MODULES, "fiberjax.gates"])
def test_examples_in_docstrings_run(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0
    if name.removeprefix("fiberjax.") in SHOWN:
        assert result.attempted > 0


@pytest.mark.parametrize("page", PAGES)
def test_links_between_documents_exist(page):
    folder = (ROOT / page).parent
    for link in re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text(encoding="utf-8")):
        assert (folder / link).exists(), f"{page} links to {link}"


@pytest.mark.slow
def test_the_api_pages_build(tmp_path):
    pytest.importorskip("pdoc")
    command = [sys.executable, "-m", "pdoc", "fiberjax", "--docformat", "google"]
    subprocess.run([*command, "--output-directory", str(tmp_path)], check=True)
    assert (tmp_path / "fiberjax" / "gates" / "hierarchy.html").exists()
