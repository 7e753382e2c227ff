"""Executes the notebooks from clean kernels, as Colab does, and keeps what they show.

    python docs/make_notebooks.py [NAME ...]

Each runs in a folder of its own that holds a clone beside it, one after the other, so that a run
which one has made the next may look at. Their outputs are written into `notebooks/`, with a digest
of the code that made them; a line for each says how long it took, from the kernel's start on.
"""

import argparse
import hashlib
import os
import resource
import tempfile
import time
from pathlib import Path

import nbclient
import nbformat

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ROOT / "notebooks"
ORDER = ("first_steps", "gates", "my_run", "my_log_probs", "hierarchies", "trust_regions")
"""As they are read. Those that need a run make one, or find that of the first."""


def digest(notebook: nbformat.NotebookNode) -> str:
    """Of the code that a notebook's outputs were made by, without the first cell: it installs."""
    _, *sources = (cell.source for cell in notebook.cells if cell.cell_type == "code")
    return hashlib.sha256("\0".join(sources).encode()).hexdigest()[:16]


def content_folder(folder: Path, clone: Path = ROOT) -> Path:
    """Colab's folder, `content`, with a clone in it; returns it."""
    content = folder / "content"
    content.mkdir()
    (content / "fiberjax").symlink_to(clone, target_is_directory=True)
    return content


def execute(name: str, content: Path) -> nbformat.NotebookNode:
    """A notebook with the outputs of a clean kernel.

    Args:
      name: of the notebook.
      content: of `content_folder`: where the kernel runs. Its clone is on the kernel's path, as an
        editable installation puts it there when a kernel starts.

    Raises:
      CellExecutionError: a cell failed; shows it.
    """
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", record_timing=False, coalesce_streams=True
    )
    client.execute(cwd=str(content), env={**os.environ, "PYTHONPATH": str(content / "fiberjax")})
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
            "fiberjax": {"outputs_of": digest(notebook)},
        }
    )
    return notebook


def cpu_seconds() -> float:
    """What kernels that have ended took of all cores."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Executes those that are asked for; all by default."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(ORDER))
    names = parser.parse_args().names or ORDER
    with tempfile.TemporaryDirectory() as folder:
        content = content_folder(Path(folder))
        for name in names:
            began, used = time.monotonic(), cpu_seconds()
            notebook = execute(name, content)
            took, used = time.monotonic() - began, cpu_seconds() - used
            print(f"{name}: {took:.0f} s, {used:.0f} CPU-seconds", flush=True)
            nbformat.write(notebook, NOTEBOOKS / f"{name}.ipynb")


if __name__ == "__main__":
    main()
