"""What a model or a file wrote is shown, whatever it is, and never obeyed."""

import dataclasses
import io
import re

import pyarrow as pa
import pytest
from rich.console import Console

from fiberjax.run import evaluation, loop, plots, rollouts, shown, writers
from fiberjax.run.statistics import Interval

HOSTILE = "[red]x[/red]\x1b[2J\x1b]0;owned\x07\r\u202egpj.exe\u200b\n:smile: ```\n<script>"


def samples(**changed):
    row = {
        "iteration": 3,
        "split": "train",
        "domain": "sort",
        "prompt": "S:31=",
        "completion": "13",
        "answer": "13",
        "extracted": None,
        "reward": 1.0,
        "length": 3,
        "finished": True,
        "prompt_index": 0,
        "sample": 0,
    }
    return pa.Table.from_pylist([row | changed], schema=rollouts.SCHEMA)


def printed(table, *, encoding="utf-8", width=200, terminal=True):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="")
    console = Console(file=stream, width=width, force_terminal=terminal, color_system=None)
    console.print(shown.terminal(table, console))
    stream.flush()
    return stream.buffer.getvalue().decode(encoding)


@pytest.mark.parametrize("name", ["domain", "prompt", "completion"])
def test_the_terminal_obeys_no_text(name):
    text = printed(samples(**{name: HOSTILE}))
    for sign in ("\x1b]", "\x1b[2J", "\x07", "\r", "\u202e", "\u200b", "\x9b"):
        assert sign not in text
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)  # Of rich's own heading.
    assert "\x1b" not in text
    assert "[red]x[/red]␛[2J␛]0;owned␇␍⟨U+202E⟩gpj.exe⟨U+200B⟩␊:smile: ```␊<script>" in text


def test_a_console_that_lacks_a_sign_gets_its_escape():
    assert r"caf\xe9 \u241b[2J" in printed(samples(completion="café \x1b[2J"), encoding="ascii")


def test_long_texts_show_their_beginning_and_their_end():
    text = "".join(printed(samples(completion="a" * 200 + "b" * 2000 + "#42"), width=600).split())
    assert "a" * 120 + "..." + "b" * 117 + "#42" in text and "b" * 118 not in text


def test_markdown_keeps_every_line_within_a_block_of_code():
    text = shown.markdown(samples(completion=HOSTILE, prompt="\n# No heading", domain="**d**"))
    assert all(line.startswith("    ") for line in text.split("\n"))
    assert all(sign not in text for sign in ("\x1b", "\r", "\u202e"))
    assert "<script>" in text and "**d**: reward 1, 3 tokens" in text
    # Lines of a text stay lines.
    assert "prompt      \n                # No heading\n" in text
    assert "cut off" in shown.markdown(samples(finished=False)) and "cut off" not in text


def test_a_few_samples_are_enough():
    many = pa.concat_tables([samples(completion=f"number {index};") for index in range(9)])
    for text in (printed(many), shown.markdown(many)):
        assert re.findall(r"number (\d);", text) == [str(index) for index in range(shown.ROWS)]


def test_names_of_domains_are_texts_of_a_file_too(tmp_path):
    bar = Interval(0.5, 0.4, 0.6)
    row = evaluation.EvaluationRow("[red]a|b$\\frac{$\x1b[2J", "mean@1", 4, bar, bar, bar)
    table = evaluation.EvaluationTable((row,))
    stream = io.StringIO()
    table.print(Console(file=stream, width=120))
    assert "[red]a|b$\\frac{$␛[2J" in stream.getvalue() and "\x1b" not in stream.getvalue()
    assert r"| \[red\]a\|b\$\\frac{\$␛\[2J | mean@1" in table.to_markdown()
    row = dataclasses.replace(row, domain="a$\\frac{$")  # As a formula it would be wrong.
    plots.plot_evaluation(evaluation.EvaluationTable((row,)), tmp_path / "evaluation.png")
    assert plots.literal("_hidden") == " _hidden" and plots.literal("a$b") == r"a\$b"


NAMES = ("[/x]", "[link=http://a.b]c[/link]", r"a$\frac$", "a|b", "a b", "non_finite", "x/y", "<b>")


def test_a_report_over_domains_of_any_name(tmp_path, capsys):
    """Tables, plots and events: each domain is told apart, and none formats or links anything."""
    rows = [f"reward/{name}" for name in NAMES]
    with writers.open_writers(tmp_path, resume_step=None) as writer:
        for step in (1, 2):
            point = {"evaluation/mean@4/overall": 0.5}
            point |= {f"evaluation/mean@4/{name}": 0.25 for name in NAMES}
            limits = {f"{name}/{end}": 0.5 for name in point for end in ("low", "high")}
            writer.write(step, dict.fromkeys(rows, 0.5) | {"reward/mean": 0.5} | point | limits)
    bar = Interval(0.5, 0.4, 0.6)
    table = evaluation.EvaluationTable(
        tuple(evaluation.EvaluationRow(name, "mean@1", 4, bar, bar, bar) for name in NAMES)
    )
    loop.report(tmp_path, table)
    assert "[/x]" in capsys.readouterr().out
    told = (tmp_path / "evaluation.md").read_text().splitlines()[2:]
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in told] == [7] * len(NAMES)
    assert not re.search(r"(?<!\\)[\[<$]", "".join(line.split("| mean@1")[0] for line in told))
    stream = io.StringIO()
    table.print(Console(file=stream, width=120, force_terminal=True))
    assert "\x1b]8" not in stream.getvalue() and "[link=http://a.b]c[/link]" in stream.getvalue()
    events = writers.TensorBoardWriter(tmp_path, None)
    tags = [events._tag(name) for name in (*rows, *rows)]
    events.close()
    assert tags[: len(rows)] == tags[len(rows) :] and len(set(tags)) == len(rows)
    assert all(re.fullmatch(r"[-/\w.]+", tag) for tag in tags)
    assert plots._last("reward/x/y") == plots._last("evaluation/mean@4/x/y") == "x/y"
