"""What advantages are made of where answers are cut or long, and what is shown before training."""

import dataclasses
import io
import json
import re
import zlib

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from fiberjax import experiment
from fiberjax.run import loop, rollouts, shown
from fiberjax.run.metrics import describe, read_metrics
from fiberjax.run.trainer import Trainer, without
from fiberjax.run.warm_start import random_params
from fiberjax.tasks.rewards import close_all
from fiberjax.train import resample

GROUP = 4


def some(prompt, answer, text):
    return float(zlib.crc32(text.encode()) % 2)


@pytest.fixture(scope="module")
def trainers():
    """By name: what is built once and shared."""
    return {}


@pytest.fixture
def collect(build, trainers):
    """Collects an iteration under other options of rewards: its rollouts, paid and collected."""
    if not trainers:
        built = build(warm_start__steps=0, advantage="dr_grpo")
        train = tuple(dataclasses.replace(domain, verify=some) for domain in built.train)
        built = dataclasses.replace(built, train=train)
        params = random_params(built.policy, built.mesh, seed=0)
        trainers["one"] = built, Trainer(built, None), built.fresh_state(params)

    def make(resampled=0, **options):
        built, trainer, state = trainers["one"]
        built = dataclasses.replace(
            built,
            rewards=dataclasses.replace(built.rewards, **options),
            rollout=dataclasses.replace(built.rollout, resample=resampled),
        )
        seen = []
        trainer = trainer.again(built, None)
        paid = trainer._paid
        trainer._paid = lambda drawn: seen.append((drawn, paid(drawn))) or seen[-1][1]
        return seen, trainer.collect(state.params, built.prompt_stream(), 0)

    return make


def rows_in(batches):
    """Tokens and advantage of each row of the batches that holds a completion."""
    found = {}
    for batch in batches:
        there = np.asarray(batch.layout.mask).any(axis=1)
        for tokens, advantage in zip(
            np.asarray(batch.tokens)[there], np.asarray(batch.advantage)[there, 0], strict=True
        ):
            found.setdefault(tokens.tobytes(), []).append(float(advantage))
    return found


def centred(credit, counted):
    """Credit less the mean of those of its group that count."""
    groups = np.where(counted, credit, np.nan).reshape(-1, GROUP)
    with np.errstate(invalid="ignore"):
        mean = np.nansum(groups, axis=1) / np.maximum((~np.isnan(groups)).sum(axis=1), 1)
    return np.where(counted, credit - np.repeat(mean, GROUP), np.nan)


@pytest.mark.parametrize("truncated", ["score", "zero", "mask"])
def test_cut_completions_count_in_the_updates_as_asked(collect, truncated):
    ((drawn, paid),), collected = collect(truncated=truncated)
    cut = ~drawn.finished
    assert 0 < cut.sum() < len(cut) and drawn.reward[cut].any()
    credit = np.where(cut, 0, drawn.reward) if truncated == "zero" else drawn.reward
    counted = ~cut if truncated == "mask" else np.ones(len(cut), bool)
    np.testing.assert_array_equal(paid.credit, credit)
    np.testing.assert_array_equal(paid.counted, counted)
    held, expected = rows_in(collected.batches), {}
    for row, value in enumerate(centred(credit, counted)):
        if counted[row]:
            expected.setdefault(drawn.tokens[row].tobytes(), []).append(float(value))
    assert held.keys() == expected.keys()
    for tokens, values in expected.items():
        np.testing.assert_allclose(sorted(held[tokens]), sorted(values), atol=1e-6)
    told = collected.metrics
    assert told["reward/mean"] == pytest.approx(drawn.reward.mean())  # The verifiers' own.
    assert told["verifier/failed"] == 0
    if truncated == "score":
        assert "credit/mean" not in told
    else:
        assert told["credit/mean"] == pytest.approx(credit[counted].mean())
        assert told["credit/left_out"] == pytest.approx(1 - counted.mean())
        assert describe("credit/mean").meaning and describe("credit/left_out").meaning
    spread = resample.differ(credit, GROUP, counted)
    assert told["frac_reward_zero_std"] == pytest.approx(1 - spread.mean())


def test_long_completions_cost_in_advantages_alone(collect):
    ((drawn, paid),), collected = collect(overlong_cache=8)
    length = drawn.mask.sum(axis=1)
    cost = -length / 8
    assert len(set(cost)) > 1 and cost.max() > -1
    np.testing.assert_allclose(paid.credit, drawn.reward + cost)
    np.testing.assert_array_equal(paid.reward, drawn.reward)
    held = np.concatenate(list(rows_in(collected.batches).values()))
    np.testing.assert_allclose(
        np.sort(held), np.sort(centred(paid.credit, paid.counted)), atol=1e-6
    )


def test_groups_are_chosen_by_what_counts(collect):
    seen, collected = collect(resampled=3, truncated="mask")
    credit, counted = (
        np.concatenate([getattr(paid, name) for _, paid in seen]) for name in ("credit", "counted")
    )
    spread = np.flatnonzero(resample.differ(credit, GROUP, counted))[:8]
    finished = np.concatenate([drawn.finished for drawn, _ in seen]).reshape(-1, GROUP)
    held = sum(map(len, rows_in(collected.batches).values()))
    assert len(spread) and held == finished[spread].sum()


def test_groups_differ_by_the_completions_that_count():
    rewards = np.array([1, 0, 1, 1, 0, 0], np.float32)
    assert resample.differ(rewards, 3).tolist() == [True, True]
    counted = np.array([True, False, True, True, True, False])
    assert resample.differ(rewards, 3, counted).tolist() == [False, True]
    assert resample.differ(rewards, 3, np.zeros(6, bool)).tolist() == [False, False]


def test_a_left_out_row_holds_nothing(collect):
    ((drawn, _),), _ = collect()
    left = np.arange(len(drawn.tokens)) % 3 == 0
    found = without(drawn, left)
    assert not found.mask[left].any() and not found.segment_ids[left].any()
    np.testing.assert_array_equal(found.mask[~left], drawn.mask[~left])


OWN = '''
def counts(prompt, answer, completion, row):
    """The length that the row asks for."""
    if completion.startswith("3"):
        raise ValueError("a three")
    return 1.0 - abs(len(completion) - row["length"]) / 8
'''


def test_a_function_of_ones_own_reads_rows_and_its_failures_are_told(
    make_config, one_device, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_counts.py").write_text(OWN)
    rows = [
        {"prompt": f"{a}+{b}=", "answer": str(a + b), "length": a % 3, "domain": kind}
        for a in range(1, 9)
        for b in range(8)
        for kind in (("sums", "more")[b % 2],)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = make_config()
    config.iterations = 1
    config.warm_start.steps = 0
    config.tasks.file = "rows.jsonl"
    config.tasks.vocabulary = "ascii"
    config.tasks.keep = ("length",)
    config.tasks.verifiers = (("sums", "own_counts:counts"), ("more", "last_number"))
    config.rewards.workers = 1
    config.rewards.shown = 3
    config.rewards.golds = "tell"
    built = experiment.from_config(config, one_device)
    names = [type(domain.verify).__name__ for domain in built.train]
    assert built.domain_names == ("sums", "more") and names == ["Isolated", "function"]
    assert built.plugin_digests.keys() == {"own_counts"}
    loop.run(built, tmp_path / "run", config.to_json_best_effort())
    printed = capsys.readouterr().out
    assert "sums, before training: of 3 completions " in printed
    assert len(re.findall(r"more, before training: of 3 .* name an answer", printed)) == 1
    found = [row for row in rollouts.read(tmp_path / "run").to_pylist() if row["domain"] == "sums"]
    length = {row["prompt"]: row["length"] for row in rows}
    for row in found:
        text = row["completion"]
        fails = text.startswith("3")
        expected = 0.0 if fails else 1 - abs(len(text) - length[row["prompt"]]) / 8
        assert row["reward"] == pytest.approx(expected)
    failed = read_metrics(tmp_path / "run")["verifier/failed"].sum()
    assert (failed > 0) == ("own_counts:counts: " in printed and "ValueError: a three" in printed)
    close_all()


def test_first_answers_are_shown_a_line_each_and_nothing_is_obeyed():
    row = {"iteration": 0, "split": "held_out", "prompt": "p", "answer": "[b]7", "length": 3}
    row |= {"prompt_index": 0, "sample": 0, "domain": "[/x]", "finished": True}
    rows = [
        row | {"completion": "so\x1b[31m 7", "extracted": "7\n", "reward": 1.0},
        row | {"completion": "cut", "extracted": None, "reward": 0.0, "finished": False},
    ]
    table = pa.Table.from_pylist(rows * 2, schema=rollouts.SCHEMA)
    console = Console(file=io.StringIO(), width=120)
    first = rollouts.first_rows(table, 2)
    console.print(shown.answers(first, 1.0, console, {"[/x]"}))
    text = console.file.getvalue()
    assert "[/x], before training: of 2 completions 1 pass, 1 were cut off, 1 name an" in text
    assert "\x1b" not in text and "\u241b[31m 7" in text and "[b]7" in text
    assert len(text.splitlines()) == 4
    # A long answer takes the room of nothing else, and what texts end in is seen.
    long = row | {"completion": "so " * 99 + "it is 8", "extracted": "8", "reward": 1.0}
    rows = [long | {"answer": "so " * 99}, long | {"answer": "so " * 99 + "\n#### 7"}]
    console = Console(file=io.StringIO(), width=80)
    table = pa.Table.from_pylist(rows, schema=rollouts.SCHEMA)
    console.print(shown.answers(table, 1.0, console, {"[/x]"}))
    first, second = console.file.getvalue().splitlines()[-2:]
    assert first.split()[:3] == ["1", "8", "so"] and first.split()[-3:] == ["it", "is", "8"]
    assert second.split()[:4] == ["1", "8", "####", "7"]
