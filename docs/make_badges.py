"""Writes what names the address of the repository in pyproject.toml, which may be empty.

    python docs/make_badges.py

The badges of the README are one line of Markdown under the title; none while no address is set. The
first code of each notebook installs from a clone; without an address it asks for one.
"""

import json
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
ADDRESS = re.compile(r"https://github\.com/([\w.-]+/[\w.-]+)")


def repository() -> str:
    """The address in pyproject.toml; "" while there is none."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["fiberjax"][
        "repository"
    ]


def badges(address: str) -> str:
    """The line of badges for an address.

    Raises:
      ValueError: it is not one of a repository on GitHub.
    """
    found = ADDRESS.fullmatch(address)
    if found is None:
        raise ValueError(
            f"tool.fiberjax.repository = {address!r} in pyproject.toml: expected "
            "https://github.com/<owner>/<name>, or an empty text"
        )
    images = "https://img.shields.io"
    shown = (
        ("Licence", "badge/licence-Apache--2.0-blue", "/blob/main/LICENSE"),
        ("Python", "badge/python-3.11_to_3.13-blue", "/blob/main/pyproject.toml"),
        ("Last commit", f"github/last-commit/{found[1]}", "/commits"),
    )
    return " ".join(f"[![{name}]({images}/{at})]({address}{to})" for name, at, to in shown)


def with_badges(readme: str, address: str) -> str:
    """A README with the badges of an address under its title, in place of those that it has."""
    title, *rest = readme.split("\n")
    if rest[:2] and rest[0] == "" and rest[1].startswith("[!["):
        del rest[:2]
    shown = ["", badges(address)] if address else []
    return "\n".join([title, *shown, *rest])


def setup(address: str) -> str:
    """The first code of a notebook: installs from a clone where the package is missing.

    A kernel that runs sees neither an editable installation nor newer packages in place of those it
    has imported, so whoever installs is told to restart.
    """
    clone = (
        f"git clone --quiet --depth 1 {address} fiberjax"
        if address
        else ("echo 'Put a clone of the repository into this folder first, and call it fiberjax.'")
    )
    return f"""\
# Installs fiberjax where it is missing, as in Colab, from a clone in the folder fiberjax.
try:
    import fiberjax.analysis.style
except ImportError:
    !test -d fiberjax/fiberjax || {clone}
    %pip install --quiet --editable ./fiberjax
    raise SystemExit("Now restart the kernel (in Colab: Runtime, Restart session), and run all.")"""


def with_setup(notebook: str, address: str) -> str:
    """The text of a notebook with the first code of an address."""
    found = json.loads(notebook)
    first = next(cell for cell in found["cells"] if cell["cell_type"] == "code")
    first["source"] = setup(address).splitlines(keepends=True)
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    page = ROOT / "README.md"
    page.write_text(with_badges(page.read_text(encoding="utf-8"), repository()), encoding="utf-8")
    for book in sorted((ROOT / "notebooks").glob("*.ipynb")):
        text = book.read_text(encoding="utf-8")
        book.write_text(with_setup(text, repository()), encoding="utf-8")
