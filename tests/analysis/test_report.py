"""A page for whoever was not there: what is there is shown, what is missing said, nothing runs."""

import html.parser
import importlib
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny
from absl import flags

from fiberjax.analysis import curves, runs, words
from fiberjax.analysis.report import report
from fiberjax.run import evaluation, migrations, rollouts, writers

ROOT = Path(__file__).parents[2]
HOSTILE = '</pre><script>alert(1)</script><img src=x onerror="a">\x1b[31m\u202e\x00'


def write_run(folder, gate="fiberpo_domain", seed=0, iterations=8, *, ended=True, domain="sort"):
    """A run folder as a run leaves it, with numbers of no training."""
    folder.mkdir(parents=True)
    config = tiny.get_config(gate)
    config.seed = seed
    named = {"version": migrations.VERSION} | json.loads(config.to_json_best_effort())
    (folder / "config.json").write_text(json.dumps(named | {"iterations": 8}))
    with writers.open_writers(folder, resume_step=None, names=("jsonl",)) as writer:
        for step in range(1, iterations + 1):
            row = {"reward/mean": 0.1 * step + 0.02 * seed, f"reward/{domain}": 0.1 * step}
            row |= {"actor/entropy": 1.0 / step, "actor/grad_norm": 0.0 if step == 2 else 1.0}
            row |= {f"gate/held/trajectory/{sign}": 0.02 * step for sign in ("plus", "minus")}
            row |= {f"gate/channel/token/{sign}": 0.02 * step for sign in ("plus", "minus")}
            row |= {f"gate/regime/{name}": 0.5 for name in ("G-I", "G-II", "L-I", "L-II")}
            row |= {"gate/clip_fraction/token": 0.1, "is_ratio/effective_sample_size/token": 0.9}
            writer.write(step, row)
    if ended:
        domains, ones = np.zeros(99, int), np.ones(99)
        table = evaluation.compare(
            {"mean@2": 0.25 * ones}, {"mean@2": (0.5 + 0.1 * seed) * ones}, domains, names=(domain,)
        )
        (folder / "evaluation.json").write_text(table.to_json())
    start = {"iteration": 0, "time": "2026-11-28", "git": {"commit": "abc", "clean": False}}
    start |= {"devices": {"count": 1, "kind": "cpu", "platform": "cpu", "processes": 1}}
    (folder / "run.json").write_text(json.dumps({"starts": [start]}))
    (folder / "samples").mkdir()
    for iteration in (0, iterations):
        row = dict.fromkeys(rollouts.SCHEMA.names, HOSTILE)
        row |= {"iteration": iteration, "split": "held_out", "reward": 0.5, "length": 3}
        row |= {"finished": True, "prompt_index": 4, "sample": 0, "domain": domain}
        row |= {"completion": f"{HOSTILE}\nat {iteration}"}
        rows = rollouts.pa.Table.from_pylist([row], schema=rollouts.SCHEMA)
        pq.write_table(rows, folder / "samples" / f"{iteration:06d}-held_out.parquet")
    return folder


class Elements(html.parser.HTMLParser):
    """Every element with its attributes; raises where they do not nest."""

    def __init__(self, text):
        super().__init__()
        self.found, self._open, self.text = [], [], ""
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in ("img", "meta"):
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def two_lines(tmp_path_factory):
    """The page of two lines, one of two seeds, and its text."""
    folder = tmp_path_factory.mktemp("runs")
    paths = [write_run(folder / f"ours-{seed}", seed=seed) for seed in (0, 1)]
    paths.append(write_run(folder / "<b>&", gate="ppo", ended=False, iterations=3))
    page = report(paths, folder / "out")
    return page, page.read_text(encoding="utf-8")


def test_a_page_says_what_was_run_and_what_came_of_it(two_lines):
    text = Elements(two_lines[1]).text
    for said in (
        *("Report of 3 runs", "ours, 2 seeds: 8 of 8 iterations with the gate fgh."),
        "<b>&: 3 of 8 iterations with the gate ppo; 1 of 1 runs have not ended.",
        "rose from 0.160 to 0.760 (first and last quarter",
        "mean@2 went from 0.250 to 0.550, by +0.300",
        "of 2 seeds +0.250 to +0.350: more than chance of the prompts explains.",
        *(
            "Warnings: entropy falling fast",
            "from iteration 3: from 1 nats at iteration 1 to 0.333",
        ),
        *(
            "gate.name",
            "fgh",
            "abc, with changes",
            "1 × cpu",
            "iterations 4 to 8: it has not ended",
        ),
        *("0.150 → 0.750 (0.750 to 0.750)", "before training", "iteration 8"),
    ):
        assert said in text, said
    for section in ("Learning", "Held-out prompts", "Trust region", "Samples", "What is missing"):
        assert f">{section}</h2>" in two_lines[1]


def test_a_page_stands_for_itself_and_obeys_nothing(two_lines):
    page, text = two_lines
    elements = Elements(text)
    tags = {tag for tag, _ in elements.found}
    assert not tags & {"script", "iframe", "object", "link", "form", "base", "svg"}
    sources = []
    for tag, attributes in elements.found:
        assert not any(name.startswith("on") for name in attributes), tag
        assert attributes.get("href", "#").startswith("#")
        sources += [attributes["src"]] if "src" in attributes else []
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert len(sources) == len(list(page.parent.glob("*.png"))) >= 8
    (policy,) = [of for tag, of in elements.found if of.get("http-equiv")]
    assert policy["content"].startswith("default-src 'none'; img-src data:")
    # What a model wrote is text, with a sign for what has no glyph.
    assert "</pre><script>alert(1)</script>" in elements.text and "\x1b" not in text
    assert "␛[31m⟨U+202E⟩␀\nat 8" in elements.text


def test_runs_that_differ_in_their_seed_alone_are_one_line(tmp_path):
    paths = [write_run(tmp_path / name, seed=at) for at, name in enumerate(("a_seed0", "a_seed1"))]
    paths.append(write_run(tmp_path / "b", domain="other", gate="gspo"))
    found = runs.read_runs(paths)
    many, one = runs.lines_of(found)
    assert (many.label, one.label) == ("a, 2 seeds", "b")
    step, mean, low, high = many.mean("reward/mean")
    np.testing.assert_array_equal(step, np.arange(1, 9))
    np.testing.assert_allclose(mean, 0.1 * step + 0.01)
    np.testing.assert_allclose(high - low, 0.02)
    assert many.mean("reward/none")[0].size == 0
    differing = runs.differences(found)
    assert differing["seed"] == (0, 1, 0) and differing["gate.clip_low"][:2] == (None, None)
    assert "iterations" not in differing
    # What is kept of a run decides nothing; a learning rate does.
    path = paths[1] / "config.json"
    config = json.loads(path.read_text())
    config["keep"]["every"] = 7
    path.write_text(json.dumps(config))
    assert len(runs.lines_of(runs.read_runs(paths))) == 2
    config["optimizer"]["learning_rate"] = 0.5
    path.write_text(json.dumps(config))
    assert len(runs.lines_of(runs.read_runs(paths))) == 3


def test_what_is_missing_is_said_and_the_rest_shown(tmp_path):
    def missing(folder):
        (run,) = runs.read_runs([folder])
        return "; ".join(run.missing)

    whole = write_run(tmp_path / "run")
    assert missing(whole) == ""
    with (whole / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "rew')  # Being written.
    assert missing(whole) == ""
    for name, said in (
        ("evaluation.json", "no evaluation.json: held-out prompts are evaluated when a run ends"),
        ("run.json", "no run.json"),
        ("config.json", "what it was asked to do is not known"),
    ):
        (whole / name).unlink()
        assert said in missing(whole), name
    shutil.rmtree(whole / "samples")
    assert "no completions of two times" in missing(whole)
    assert report([whole], tmp_path / "page").stat().st_size > 10_000
    for name, text, said in (
        ("config.json", "{", "its options cannot be read"),
        ("evaluation.json", '{"rows": 3}', "evaluation.json cannot be read"),
        ("metrics.jsonl", "no\n{}", "no metrics can be read"),
    ):
        (whole / name).write_text(text)
        assert said in missing(whole), name
    # Of a run that has just begun there is a page too.
    text = Elements(report([whole], tmp_path / "page").read_text()).text
    assert "too few iterations" in text and "no metrics can be read" in text


def test_a_run_of_an_earlier_version_and_one_of_one_iteration(tmp_path):
    old = ROOT / "tests" / "data" / "run_v0"
    short = write_run(tmp_path / "short", iterations=1)
    first, second = runs.read_runs([old, short])
    assert any("its version (0) did not have" in sentence for sentence in first.missing)
    assert first.config["diagnostics.every"] == 1 and first.done > 1
    assert curves.curve(runs.lines_of([second]), "reward/mean", "Reward", "reward", "linear")
    told = words.summary(runs.lines_of([second]), {"short": ()})
    assert any("too few iterations" in sentence for sentence in told)


def test_what_is_no_run_is_refused_in_one_line(tmp_path):
    with pytest.raises(ValueError, match="is no run folder: expected metrics"):
        runs.read_runs([tmp_path])
    with pytest.raises(ValueError, match="is no run folder"):
        runs.read_runs([tmp_path / "none"])
    with pytest.raises(ValueError, match="at least one"):
        runs.read_runs([])
    run = write_run(tmp_path / "x" / "run")
    with pytest.raises(ValueError, match="more than once"):
        runs.read_runs([run, tmp_path / "x" / ".." / "x" / "run"])
    other = write_run(tmp_path / "y" / "run", gate="ppo")
    assert [each.name for each in runs.read_runs([run, other])] == ["x/run", "y/run"]
    command = importlib.import_module("experiments.report")
    flags.FLAGS.mark_as_parsed()
    with pytest.raises(SystemExit, match=r"^error: .* is no run folder"):
        command.main(["report.py", str(tmp_path)])


def test_a_level_far_beyond_its_budget_keeps_it_in_sight(tmp_path):
    (line,) = runs.lines_of(runs.read_runs([write_run(tmp_path / "run", "silent_domain")]))
    (axes,) = curves.drift(line).axes
    assert axes.get_yscale() == "symlog" and 4e-4 in axes.get_yticks()
    assert axes.get_legend_handles_labels()[1] == ["upward", "budget", "downward"]
    (wide,) = runs.lines_of(runs.read_runs([write_run(tmp_path / "wide")]))
    assert curves.drift(wide).axes[0].get_yscale() == "linear"
    assert curves.finest_first(["domain", "own", "token", "trajectory"], line.runs[0]) == (
        *("token", "trajectory", "domain", "own"),
    )
