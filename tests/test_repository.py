"""What stands beside the code: one address, no promised package, a citation, forms of issues."""

import re
import runpy
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
IGNORED = {".git", ".venv", "runs", "data", "build", "dist", ".pytest_cache", "uv.lock"}
ENDINGS = {".md", ".py", ".sh", ".toml", ".ipynb", ".yml", ".yaml", ".cff", ""}

# An address of this project, or a name that stands for one's own.
ADDRESS = re.compile(r"[\w-]+\.\w+[/:][\w.-]+/fiberjax\b(?!/)|\b(my|your)-name\b")
# A package of this name on an index; folders and extras of a clone are something else.
PACKAGE = re.compile(r"(pip install|uv add|uvx|pipx \w+)\b[^\n&|;]*[\s\"'=]fiberjax\b")


def texts():
    """Every text of the project, by its path."""
    for path in sorted(ROOT.rglob("*")):
        parts = path.relative_to(ROOT).parts
        if not IGNORED & {parts[0]} and path.suffix in ENDINGS and path.is_file():
            yield "/".join(parts), path.read_text(encoding="utf-8", errors="ignore")


def told(pattern, text):
    return [found[0] for found in pattern.finditer(text)]


def test_the_address_of_the_repository_stands_in_one_place():
    address = PROJECT["tool"]["fiberjax"]["repository"]
    books = {f"notebooks/{path.name}" for path in (ROOT / "notebooks").glob("*.ipynb")}
    generated = {"README.md", "pyproject.toml"} | books if address else set()
    found = {path: told(ADDRESS, text) for path, text in texts() if path not in generated}
    assert {path: all for path, all in found.items() if all} == {}


def test_no_package_is_promised_on_an_index():
    found = {path: told(PACKAGE, text) for path, text in texts()}
    assert {path: all for path, all in found.items() if all} == {}


@pytest.mark.parametrize(
    ("pattern", "text", "seen"),
    [
        (ADDRESS, "git clone https://github.com/" + "someone/fiberjax", True),
        (ADDRESS, "git@github.com:" + "someone/fiberjax", True),
        (ADDRESS, "https://github.com/my" + "-name/other", True),
        (ADDRESS, "https://github.com/google/tunix", False),
        (ADDRESS, "benchmarks.md/docs/fiberjax/gates", False),
        (PACKAGE, "pip inst" + "all fiberjax", True),
        (PACKAGE, "pip inst" + 'all -q "fiberjax[tpu]"', True),
        (PACKAGE, "uv ad" + "d fiberjax", True),
        (PACKAGE, "pip install -e . && python -m fiberjax", False),
        (PACKAGE, "uv sync --extra tpu", False),
    ],
)
def test_what_is_looked_for_would_be_seen(pattern, text, seen):
    assert bool(told(pattern, text)) == seen


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(ROOT / "docs" / "make_badges.py"))


def test_the_readme_has_the_badges_of_the_address(script):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    made = script["with_badges"](readme, script["repository"]())
    assert readme == made, "run: python docs/make_badges.py"


def test_badges_appear_with_an_address_and_go_with_it(script):
    address, plain = "https://github.com/" + "someone/fiberjax", "# fiberjax\n\nTrains.\n"
    once = script["with_badges"](plain, address)
    assert once.splitlines()[:1] == ["# fiberjax"] and once.splitlines()[4:] == ["Trains."]
    assert once.splitlines()[2].count("[![") == 3 and address in once
    assert script["with_badges"](once, address) == once
    assert script["with_badges"](once, "") == plain
    with pytest.raises(ValueError, match="expected https://github"):
        script["with_badges"](plain, "someone/fiberjax")


def test_the_badges_say_what_the_project_says(script):
    line = script["badges"]("https://github.com/someone/other")
    assert PROJECT["project"]["license"].replace("-", "--") in line
    low, high = re.fullmatch(
        r">=(3\.\d+),<3\.(\d+)", PROJECT["project"]["requires-python"]
    ).groups()
    assert f"python-{low}_to_3.{int(high) - 1}-" in line


def test_the_citation_is_of_this_version_and_makes_no_names_up():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0" and citation["type"] == "software"
    assert citation["version"] == PROJECT["project"]["version"]
    assert citation["license"] == PROJECT["project"]["license"]
    assert citation["title"] == PROJECT["project"]["name"]
    assert citation["authors"] == [{"name": "The fiberjax authors"}]
    assert "arXiv:2603.08239" in citation["message"]


FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_a_form_is_one_that_can_be_filled_in(path):
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path.stem == "config":
        assert form == {"blank_issues_enabled": True}
        return
    assert {"name", "description", "body"} <= form.keys()
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    ids = [field["id"] for field in fields]
    assert len(set(ids)) == len(ids) and fields
    for field in fields:
        assert field["type"] in ("input", "textarea", "dropdown", "checkboxes")
        assert field["attributes"]["label"]


def test_there_is_a_form_for_each_kind_of_issue():
    assert {path.stem for path in FORMS} == {"bug", "config", "request", "wrong_number"}


def test_no_experiment_is_called_like_a_module_of_the_standard_library():
    # A script's folder comes first where it looks for modules.
    names = {path.stem for path in (ROOT / "experiments").rglob("*.py")}
    assert {"train", "look"} <= names and not names & set(sys.stdlib_module_names)
