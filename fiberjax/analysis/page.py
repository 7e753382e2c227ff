"""One kept rollout file under one gate as one HTML page, complete in itself.

The page asks for nothing. Its script and its style stand in it, and a policy in its head, by their
digests, forbids every other script and style and every request. Data are no markup: the index is
JSON in which every `<`, `>` and `&` is escaped, blocks are letters of base64 (`blocks`), and the
script shows what they hold as text alone.
"""

import base64
import hashlib
import html
import importlib.resources
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fiberjax import disk
from fiberjax.analysis.blocks import Pages
from fiberjax.analysis.measures import number
from fiberjax.analysis.tokens import Tokens
from fiberjax.gates.configured import ConfiguredGate
from fiberjax.run.shown import visible

SCRIPTS = ("list.js", "panel.js", "controls.js")
"""The files of the page's one script, in their order."""

CONTENT = "default-src 'none'; script-src {script}; style-src {style}; base-uri 'none'; "
CONTENT += "form-action 'none'"
"""The page's policy: nothing but its own script and style, by their digests."""


def page(
    tokens: Tokens,
    *,
    title: str,
    texts: Sequence[Sequence[str]] | None = None,
    notes: Sequence[str] = (),
) -> str:
    """The page of kept rollouts under a gate; HTML.

    Args:
      tokens: the numbers, of `tokens.look`.
      title: what it is of, such as a run and an iteration.
      texts: the text of each trajectory's tokens (`blocks.pieces`); None shows their ids.
      notes: sentences that stand at its top, such as which policy is looked at.

    Raises:
      ValueError: a trajectory has fewer texts than tokens.
    """
    data = Pages(tokens, texts)
    style, script = _static("page.css"), "\n".join(map(_static, SCRIPTS))
    index = data.index() | {"gate": described(tokens.gate), "levels": _levels(tokens)}
    content = CONTENT.format(script=_digest(script), style=_digest(style))
    fields = {
        "CONTENT": html.escape(content),
        "TITLE": html.escape(visible(title)),
        "NOTES": "\n".join(f"<p>{html.escape(visible(note))}</p>" for note in notes),
        "STYLE": style,
        "SCRIPT": script,
        "INDEX": escaped(index),
        "BLOCKS": "\n".join(
            f'<script type="application/octet-stream" id="block-{k}">{block}</script>'
            for k, block in enumerate(data.blocks())
        ),
    }
    # In one pass: what a field holds is never read for fields again.
    return re.sub(r"\{\{([A-Z]+)\}\}", lambda found: fields[found[1]], _static("page.html"))


def write(path: str | os.PathLike[str], text: str) -> Path:
    """Writes a page, whole or not at all; its path.

    Raises:
      NoRoom: the disk is full.
    """
    path = Path(path)
    with disk.writing("the page", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.new")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    return path


def escaped(value: Any) -> str:
    r"""JSON that is no markup, whatever it says.

    >>> escaped({"a": "</script>&"})
    '{"a":"\\u003c/script\\u003e\\u0026"}'
    """
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def described(gate: ConfiguredGate) -> str:
    """A gate, its options and its budgets in a line.

    >>> from fiberjax.gates.configured import gate
    >>> described(gate("gspo"))
    'gspo: clip_low 0.0003, clip_high 0.0004, level trajectory'
    """
    said = []
    for name, budget in gate.budgets.items():
        if name == "budgets":
            for level, pair in budget.items():
                if np.ndim(pair) == 2:
                    said.append(f"{level} by cell")
                    continue
                plus, minus = map(number, np.asarray(pair, np.float64).tolist())
                said.append(f"{level} {plus}" if plus == minus else f"{level} {plus}/{minus}")
        elif budget is not None:
            said.append(f"{name} {number(float(budget))}")
    said += [f"{name} {value}" for name, value in gate.structure.options]
    said += ["pessimistic"] if gate.structure.pessimistic else []
    said += ["recovery"] if gate.structure.recovery else []
    return f"{gate.structure.name}: {', '.join(said)}" if said else gate.structure.name


def _levels(tokens: Tokens) -> list[list[Any]]:
    """The share of the counted tokens that each level changed."""
    count = max(int(tokens.kept.mask.sum()), 1)
    return [[visible(level), float(of.sum() / count)] for level, of in tokens.changed.items()]


def _static(name: str) -> str:
    files = importlib.resources.files("fiberjax.analysis") / "static"
    return (files / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
