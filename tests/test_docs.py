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
from configs import quickstart
from fiberjax.run import metrics

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
OF_OTHERS = {"docs/names.md", "docs/elsewhere.md", "docs/options.md"}
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


@pytest.mark.parametrize("page", [page for page in PAGES if blocks_of(page)])
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


# Guides speak of this code's metrics and options; the others of another program's too.
GUIDES = [page for page in PAGES if page.startswith("docs/") and page not in OF_OTHERS]
WORD = re.compile(r"`(?:--)?(?:config\.)?([a-z][\w./<>]*)")


def unknown_metrics(text: str) -> list[str]:
    """The metrics that a text names, like `reward/mean`, and no run logs."""
    groups = {name.split("/")[0] for name in metrics.METRICS}
    named = [word for word in WORD.findall(text) if word.split("/")[0] in groups and "/" in word]
    return [name for name in named if not metrics.describe(name).unit]


def unknown_options(text: str) -> list[str]:
    """The options that a text names, like `rollout.samples`, and no config has."""
    config = quickstart.get_config()
    sections = {name for name, value in config.items() if hasattr(value, "items")} - {"gate"}
    named = [word.split(".") for word in WORD.findall(text) if "." in word and "/" not in word]
    return [".".join(w) for w in named if w[0] in sections and w[1] not in config[w[0]]]


@pytest.mark.parametrize("page", GUIDES)
def test_guides_name_metrics_and_options_that_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert unknown_metrics(text) == [] and unknown_options(text) == []


def test_a_wrong_name_would_be_seen():
    assert unknown_metrics("`reward/mean`, `gate/regime/G-I`, `actor/pg_los`") == ["actor/pg_los"]
    assert unknown_options("`config.mesh.dat=2` and `tasks.file`") == ["mesh.dat"]


def anchors(page: str) -> set[str]:
    """What links may point at on a page: its headings, as they are made into addresses."""
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text("utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.*)$", text, flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_to_headings_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", text):
        there = page if not target else str(((ROOT / page).parent / target).resolve())
        assert anchor in anchors(there), f"{page} links to {target}#{anchor}"


def test_every_page_has_its_place_in_the_reading_order():
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / "docs" / "README.md").read_text("utf-8"))
    assert {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"} <= set(links)


@pytest.mark.slow
def test_the_api_pages_build(tmp_path):
    pytest.importorskip("pdoc")
    command = [sys.executable, "-m", "pdoc", "fiberjax", "--docformat", "google"]
    subprocess.run([*command, "--output-directory", str(tmp_path)], check=True)
    assert (tmp_path / "fiberjax" / "gates" / "hierarchy.html").exists()
