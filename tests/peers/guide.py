"""Runs the code of docs/elsewhere.md, section by section."""

import pathlib
import re
from typing import Any

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "elsewhere.md"


def run_blocks(*sections: str) -> dict[str, Any]:
    """Runs the Python blocks of the named sections in order; what they defined."""
    text = PAGE.read_text(encoding="utf-8")
    scope: dict[str, Any] = {}
    for section in sections:
        body = re.search(rf"^## {section}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
        assert body, f"{PAGE.name} has no section {section!r}"
        for number, block in enumerate(
            re.findall(r"^```python\n(.*?)^```", body.group(1), re.MULTILINE | re.DOTALL)
        ):
            exec(compile(block, f"{PAGE.name}, {section}, block {number}", "exec"), scope)
    return scope
