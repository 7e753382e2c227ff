"""The notebooks run from clean kernels in Colab's layout; what they show is of what they say."""

import json
import pathlib
import re
import runpy
import subprocess
import sys

import nbformat
import pytest
import quick

ROOT = pathlib.Path(__file__).parents[1]
BOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = [path.stem for path in BOOKS]
MOST = 250_000
"""Bytes of a notebook with its pictures: it is read as text, and kept in the history."""


@pytest.fixture(scope="module")
def making():
    return runpy.run_path(str(ROOT / "docs" / "make_notebooks.py"))


@pytest.fixture(scope="module")
def badges():
    return runpy.run_path(str(ROOT / "docs" / "make_badges.py"))


def code_of(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_the_notebooks_are_those_that_are_made(making):
    assert sorted(making["ORDER"]) == NAMES


@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
def test_what_is_kept_of_a_notebook(path, making, badges):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = code_of(notebook)
    assert code[0].source == badges["setup"](badges["repository"]()), "docs/make_badges.py"
    # Outputs of this very code, all of it, without a failure.
    told = "run: python docs/make_notebooks.py " + path.stem
    assert notebook.metadata["fiberjax"]["outputs_of"] == making["digest"](notebook), told
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), told
    outputs = [output for cell in code for output in cell.outputs]
    assert not {"error"} & {output.output_type for output in outputs}
    assert not [of.text for of in outputs if of.get("name") == "stderr"]
    assert sum("image/png" in of.get("data", {}) for of in outputs) >= 1
    text = path.read_text(encoding="utf-8")
    assert len(text) < MOST and "/tmp/" not in text and str(pathlib.Path.home()) not in text


@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
def test_a_notebook_has_no_logic_of_its_own(path):
    for cell in code_of(nbformat.read(path, as_version=4))[1:]:
        lines = cell.source.splitlines()
        assert len(lines) <= 25, cell.id
        assert "pyplot" not in cell.source and "import matplotlib" not in cell.source
        assert not [line for line in lines if line.lstrip().startswith(("class ", "while "))]


@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
def test_links_of_a_notebook_exist(path):
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            for link in re.findall(r"\]\(([^):#]+)\)", cell.source):
                assert (path.parent / link).exists(), f"{path.stem} links to {link}"


def run_as_in_colab(making, folder, names):
    """Executes notebooks one after the other; each shows as many pictures as are kept of it."""
    content = making["content_folder"](folder)
    for name in names:
        made = making["execute"](name, content)
        kept = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
        assert pictures(made) == pictures(kept) > 0, name
    return content


def pictures(notebook):
    outputs = [output for cell in code_of(notebook) for output in cell.outputs]
    return sum("image/png" in output.get("data", {}) for output in outputs)


OF_A_RUN = ("first_steps", "my_run", "my_log_probs")


@pytest.fixture
def one_device(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", quick.FLAGS)


@pytest.mark.slow
@pytest.mark.parametrize("names", [OF_A_RUN[:1], pytest.param(OF_A_RUN, marks=pytest.mark.long)])
def test_notebooks_of_a_run_run_as_in_colab(names, making, tmp_path, one_device):
    content = run_as_in_colab(making, tmp_path, names)
    # The run of the first is the one that the others look at, and it is a real one.
    runs = {path.name for path in (content / "runs").iterdir()} - {"warm_starts"}
    assert runs == {"first_steps"} and (content / "runs/first_steps/rollouts").is_dir()


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(NAMES) - set(OF_A_RUN)))
def test_notebooks_of_figures_run_as_in_colab(name, making, tmp_path, one_device):
    # What they call is tested in tests/analysis, with the same arguments.
    run_as_in_colab(making, tmp_path, (name,))


class Shell:
    """What IPython gives the first cell: `!` and `%` are kept, and nothing is done."""

    def __init__(self):
        self.done = []

    def system(self, command):
        self.done.append(command)

    def run_line_magic(self, name, line, *_):
        self.done.append(f"%{name} {line}")


@pytest.mark.parametrize("address", ["", "https://github.com/" + "someone/other"])
def test_the_first_cell_installs_from_a_clone_and_asks_for_a_restart(address, badges, monkeypatch):
    from IPython.core.inputtransformer2 import TransformerManager

    shell = Shell()
    code = TransformerManager().transform_cell(badges["setup"](address))
    scope = {"get_ipython": lambda: shell}
    monkeypatch.setitem(sys.modules, "fiberjax.analysis.style", None)  # Not to be imported.
    with pytest.raises(SystemExit, match=r"restart the kernel"):
        exec(code, scope)
    clone, install = shell.done
    assert install == "%pip install --quiet --editable ./fiberjax"
    asked = f"git clone --quiet --depth 1 {address} fiberjax" if address else "Put a clone"
    assert asked in clone and clone.startswith("test -d fiberjax/fiberjax || ")
    monkeypatch.undo()
    shell.done.clear()
    exec(code, scope)  # Installed: nothing to do.
    assert shell.done == []


def test_the_first_cell_sees_that_a_clone_beside_it_is_no_installation(tmp_path):
    (tmp_path / "fiberjax").symlink_to(ROOT)
    script = "import importlib.util as u; print(u.find_spec('fiberjax.analysis'))"
    found = subprocess.run(
        [sys.executable, "-S", "-c", script], cwd=tmp_path, capture_output=True, text=True
    )
    assert found.stdout.strip() == "None", found.stderr  # Folders of the clone are no package.


def test_another_address_changes_the_first_cell_alone(badges):
    text = BOOKS[0].read_text(encoding="utf-8")
    address = "https://github.com/" + "someone/other"
    before, after = (json.loads(of) for of in (text, badges["with_setup"](text, address)))
    changed = [
        number
        for number, (old, new) in enumerate(zip(before["cells"], after["cells"], strict=True))
        if old != new
    ]
    assert changed == [1] and address in "".join(after["cells"][1]["source"])
    assert badges["with_setup"](badges["with_setup"](text, address), "") == text
