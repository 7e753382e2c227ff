"""Texts that a model or a file wrote, as they are shown: nothing in them is obeyed.

Control characters, marks that turn the direction of writing, and whatever else has no glyph of its
own stand as signs; markup stays text. Where samples are shown, on the terminal and as TensorBoard's
Markdown, is decided here; what is kept of them is in `rollouts`.
"""

import re
from collections.abc import Collection, Iterator
from typing import Any

import pyarrow as pa
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from fiberjax.tasks.rewards import passes

ROWS = 6
"""Samples of a showing."""

CHARACTERS = 240
"""Of a text on the terminal: its beginning and its end."""

END = 60
"""Of a completion whose answer is looked at: its end."""


def visible(text: str) -> str:
    r"""The text with a sign for every character that is not printed as itself.

    Control characters become their pictures (U+2400 to U+2421), others their code point: bidi
    marks, zero widths, spaces that are no space, halves of surrogates, what is not assigned.

    >>> visible("a\x1b[1m\tb\u202ec\n")
    'a␛[1m␉b⟨U+202E⟩c␊'
    """
    return "".join(each if each.isprintable() else _sign(ord(each)) for each in text)


def shortened(text: str, characters: int = CHARACTERS) -> str:
    """The text, or its beginning and its end where it is longer.

    >>> shortened("0123456789", 6)
    '012 ... 789'
    """
    if len(text) <= characters:
        return text
    half = characters // 2
    return f"{text[:half]} ... {text[-half:]}"


def terminal(samples: pa.Table, console: Console) -> Table:
    """The first samples as a table for a console; every text in it is one line, and shortened."""
    first = samples.slice(0, ROWS).to_pylist()
    found = samples["iteration"][0].as_py()
    table = Table(title=f"samples, iteration {found}", title_justify="left", box=None)
    for name in ("domain", "prompt", "completion"):
        table.add_column(name, overflow="fold", ratio=1 if name == "domain" else 4)
    table.add_column("reward", justify="right", no_wrap=True)
    for row in first:
        cells = (_encodable(shortened(visible(row[name])), console) for name in _TEXTS)
        table.add_row(*(Text(cell) for cell in cells), f"{row['reward']:.3g}")
    return table


def answers(
    samples: pa.Table, pass_threshold: float, console: Console, telling: Collection[str]
) -> Group:
    """What verifiers took for the answers of completions, a line each, and a count a domain.

    Args:
      samples: by `rollouts.SCHEMA`.
      pass_threshold: the least reward of a completion that passes.
      console: what it is drawn for.
      telling: the domains whose verifiers say what they took.
    """
    by_domain: dict[str, list[dict[str, Any]]] = {}
    for row in samples.to_pylist():
        by_domain.setdefault(row["domain"], []).append(row)
    parts: list[RenderableType] = []
    for domain, rows in by_domain.items():
        passed = int(passes([row["reward"] for row in rows], pass_threshold).sum())
        counts = [f"{passed} pass", f"{sum(not row['finished'] for row in rows)} were cut off"]
        if domain in telling:
            counts.append(f"{sum(bool(row['extracted']) for row in rows)} name an answer")
        of = f"{domain}, before training: of {len(rows)} completions {', '.join(counts)}"
        parts += [Text(_encodable(visible(of), console)), _answers(rows, console)]
    return Group(*parts)


def _answers(rows: list[dict[str, Any]], console: Console) -> Table:
    table = Table(box=None, expand=True)  # Else a long answer takes the room of the others.
    table.add_column("reward", justify="right", no_wrap=True, width=6)
    for name, ratio in (("extracted", 1), ("right", 1), ("end of the completion", 3)):
        table.add_column(name, overflow="ellipsis", no_wrap=True, ratio=ratio)
    room = min(END, max(10, (console.width - 20) * 3 // 5))
    for row in rows:
        found = "-" if row["extracted"] is None else row["extracted"]
        right = row["answer"].strip().rpartition("\n")[2]  # Of a rationale, what it ends in.
        texts = (found, right, row["completion"][-room:])
        cells = (Text(_encodable(visible(text), console)) for text in texts)
        table.add_row(f"{row['reward']:.3g}", *cells)
    return table


def markdown(samples: pa.Table) -> str:
    """The first samples as Markdown: blocks of code by indentation, out of which no text leads."""
    return "\n\n".join(
        "\n".join(f"    {line}" for line in _lines(row))
        for row in samples.slice(0, ROWS).to_pylist()
    )


# Signs that format or link, and those within addresses that some readers link by themselves.
_MARKDOWN = re.compile(r"[\\`*\[\]<>|~$&]|\b_|_\b|(?<=\w):(?=//)|(?<=www)\.")


def cell(text: str) -> str:
    r"""A text as a cell of a Markdown table: no column, no link, no formatting.

    >>> cell("a|b [x](http://c.d) *e* running_sum")
    'a\\|b \\[x\\](http\\://c.d) \\*e\\* running_sum'
    """
    escaped = re.sub(
        r"[\\`*\[\]<>|~$&]|\b_|_\b|(?<=\w):(?=//)|(?<=www)\.", r"\\\g<0>", visible(text)
    )
    return escaped.strip()


_TEXTS = ("domain", "prompt", "completion")


def _lines(row: dict[str, Any]) -> Iterator[str]:
    end = "" if row["finished"] else ", cut off"
    yield f"{visible(row['domain'])}: reward {row['reward']:.3g}, {row['length']} tokens{end}"
    for name in ("prompt", "completion"):
        first, *rest = (visible(line) for line in row[name].split("\n"))
        yield f"{name:<12}{first}"
        yield from (f"{'':<12}{line}" for line in rest)


def _encodable(text: str, console: Console) -> str:
    """The text with escapes for what the console's encoding lacks."""
    return text.encode(console.encoding, "backslashreplace").decode(console.encoding)


def _sign(code: int) -> str:
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else f"⟨U+{code:04X}⟩"
