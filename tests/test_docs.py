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
from configs import quickstart
from fiberjax.experiment import KEYS
from fiberjax.options import Run
from fiberjax.presets import PRESETS
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
# Its sections need other frameworks, each its own: `test_elsewhere` and `peers` run them.
BY_SECTION = {"docs/elsewhere.md"}
OF_OTHERS = {"docs/names.md", "docs/elsewhere.md", "docs/options.md"}
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


# Where people look for examples: each of these modules has one at least.
SHOWN = {
    *("advantages", "kl", "layout", "objective", "segments", "trust_region", "probes"),
    *("diagnostics", "presets", "gates", "gates.aggregate", "gates.apc", "gates.bundle"),
    *("gates.channels", "gates.compose", "gates.configured", "gates.hierarchy", "gates.levelwise"),
    *("gates.score", "gates.sequence", "gates.silent", "gates.tokenwise"),
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
    assert (
        "| `samples` | int in [1, inf) | `16` |  | G, completions a prompt; they are its group. |"
        in page
    )
    outside = {"gate", *script["meanings"](Run)}
    assert set(script["SECTIONS"]) - {""} == set(KEYS) - outside
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


# Guides speak of this code's metrics and options; the others of another program's too.
GUIDES = [page for page in PAGES if page.startswith("docs/") and page not in OF_OTHERS]
WORD = re.compile(r"`(?:--)?(?:config\.)?([a-z][\w./<>@]*)")


def unknown_metrics(text: str) -> list[str]:
    """The metrics that a text names, like `reward/mean`, and no run logs."""
    groups = {name.split("/")[0] for name in metrics.METRICS}
    named = [word for word in WORD.findall(text) if word.split("/")[0] in groups and "/" in word]
    return [name for name in named if not metrics.describe(name).unit]


def unknown_options(text: str) -> list[str]:
    """The options that a text names, like `rollout.samples`, and no config has; no gate's too."""
    config = quickstart.get_config().to_dict()
    config["gate"] = {name for gate in PRESETS.values() for name in gate}
    sections = {name for name, value in config.items() if isinstance(value, dict | set)}
    named = [word.split(".") for word in WORD.findall(text) if "." in word and "/" not in word]
    named = [word for word in named if word[-1] not in ("md", "json")]  # Files of a run.
    return [".".join(w) for w in named if w[0] in sections and w[1] not in config[w[0]]]


@pytest.mark.parametrize("page", GUIDES)
def test_guides_name_metrics_and_options_that_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert unknown_metrics(text) == [] and unknown_options(text) == []


def test_a_wrong_name_would_be_seen():
    assert unknown_metrics("`reward/mean`, `gate/regime/G-I`, `actor/pg_los`") == ["actor/pg_los"]
    assert unknown_options("`config.mesh.dat=2` and `tasks.file`") == ["mesh.dat"]
    assert unknown_options("`--config.gate.lift=bounded`, `gate.left`") == ["gate.left"]


def test_every_page_has_its_place_in_the_reading_order():
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / "docs" / "README.md").read_text("utf-8"))
    assert {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"} <= set(links)


@pytest.mark.long
def test_the_api_pages_build(tmp_path):
    pytest.importorskip("pdoc")
    command = [sys.executable, "-m", "pdoc", "fiberjax", "--docformat", "google"]
    subprocess.run([*command, "--output-directory", str(tmp_path)], check=True)
    assert (tmp_path / "fiberjax" / "gates" / "hierarchy.html").exists()
