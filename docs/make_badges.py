"""Writes the badges of the README, from the address of the repository in pyproject.toml.

    python docs/make_badges.py

They are one line of Markdown under the title; none while no address is set.
"""

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


if __name__ == "__main__":
    page = ROOT / "README.md"
    page.write_text(with_badges(page.read_text(encoding="utf-8"), repository()), encoding="utf-8")
