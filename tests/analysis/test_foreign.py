"""Token dumps of other trainers: what each column becomes, and what is refused."""

import json
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import fiberjax as fj
from fiberjax.analysis import foreign

# Two prompts, two answers each, of 1 to 3 tokens; the third has a tool's reply in the middle.
PROMPTS = [[5, 6], [5, 6], [7], [7]]
ANSWERS = [[1, 2, 3], [1], [4, 8, 9], [2, 2]]
COUNTED = [[1, 1, 1], [1], [1, 0, 1], [1, 1]]
ADVANTAGE = [1.0, -1.0, 0.5, -0.5]


def per_token(start):
    """Numbers of tokens that differ everywhere."""
    return [[start - 0.25 * t - row for t in range(3)] for row in range(4)]


def padded(rows, width=3, left=False):
    return [
        ([0] * (width - len(row)) + row) if left else (row + [0] * (width - len(row)))
        for row in rows
    ]


def ones(rows):
    return [[1] * len(row) for row in rows]


def verl():
    """The batch of a trainer, padded to one width."""
    attention = [
        a + b for a, b in zip(padded(ones(PROMPTS), 4, True), padded(ones(ANSWERS)), strict=True)
    ]
    return {
        "prompts": padded(PROMPTS, 4, True),
        "responses": padded(ANSWERS),
        "attention_mask": attention,
        "response_mask": padded(COUNTED),
        "old_log_probs": per_token(-1.0),
        "log_probs": per_token(-1.125),
        "rollout_log_probs": per_token(-1.5),
        "ref_log_prob": per_token(-2.0),
        "rollout_is_weights": [[0.5] * 3] * 4,
        "advantages": [[of] * 3 for of in ADVANTAGE],
        "token_level_scores": [[0, 0, 1.0], [0, 0, 0], [0, 2.0, 0], [0, 0, 0]],
        "uid": ["b", "b", "a", "a"],
        "data_source": ["math", "math", "code", "code"],
    }


def trl():
    return {
        "prompt_ids": padded(PROMPTS, 4, True),
        "prompt_mask": padded(ones(PROMPTS), 4, True),
        "completion_ids": padded(ANSWERS),
        "completion_mask": padded(ones(ANSWERS)),
        "tool_mask": [[1, 1, 1], [1, 1, 1], [1, 0, 1], [1, 1, 1]],
        "old_per_token_logps": per_token(-1.0),
        "per_token_logps": per_token(-1.125),
        "sampling_per_token_logps": per_token(-1.5),
        "ref_per_token_logps": per_token(-2.0),
        "importance_sampling_ratio": [[0.5]] * 4,
        "advantages": ADVANTAGE,
        "rewards": [1.0, 0.0, 2.0, 0.0],
        "domain": ["math", "math", "code", "code"],
    }


def prime_rl():
    """Sequences as they are: prompt and answer in one."""
    whole = [a + b for a, b in zip(PROMPTS, ANSWERS, strict=True)]
    before = [[0.0] * len(a) for a in PROMPTS]

    def behind(rows):
        return [a + b[: len(c)] for a, b, c in zip(before, rows, ANSWERS, strict=True)]

    return {
        "input_ids": whole,
        "loss_mask": [
            [False] * len(a) + [bool(of) for of in b] for a, b in zip(PROMPTS, COUNTED, strict=True)
        ],
        "position_ids": [list(range(len(row))) for row in whole],
        "inference_logprobs": behind(per_token(-1.0)),
        "trainer_logprobs": behind(per_token(-1.125)),
        "ref_logprobs": behind(per_token(-2.0)),
        "advantages": [[of] * len(row) for of, row in zip(ADVANTAGE, whole, strict=True)],
        "reward": [1.0, 0.0, 2.0, 0.0],
        "env_name": ["math", "math", "code", "code"],
    }


def packed():
    """Two rows of two sequences, the second with padding behind."""
    plain = {name: of for name, of in prime_rl().items() if name not in ("reward", "env_name")}
    rows = {name: [of[0] + of[1], of[2] + of[3]] for name, of in plain.items()}
    zero = {"loss_mask": False, "input_ids": 0, "position_ids": 0}
    return {name: [of[0], of[1] + [zero.get(name, 0.0)] * 2] for name, of in rows.items()}


MADE = pathlib.Path(__file__).parents[1] / "data/dumps"
"""What the trainers' own code wrote, by tests/peers/token_dumps.py."""
DUMPS = {"verl": verl, "trl": trl, "prime-rl": prime_rl}


def read(folder, columns, format):
    pq.write_table(pa.table(columns), folder / "dump.parquet")
    return fj.from_parquet(folder / "dump.parquet", format=format)


@pytest.mark.parametrize("format", DUMPS)
def test_a_dump_is_kept_rollouts(tmp_path, format):
    kept = read(tmp_path, DUMPS[format](), format)
    mask = np.array(padded(COUNTED), bool)
    np.testing.assert_array_equal(kept.mask, mask)
    np.testing.assert_array_equal(kept.tokens, padded(ANSWERS))
    np.testing.assert_array_equal(kept.old_log_prob, np.where(mask, per_token(-1.0), 0))
    np.testing.assert_array_equal(kept.log_ratio, np.where(mask, -0.125, 0))
    np.testing.assert_array_equal(kept.reference_log_prob, np.where(mask, per_token(-2.0), 0))
    sampler = per_token(-1.0 if format == "prime-rl" else -1.5)
    np.testing.assert_array_equal(kept.sampler_log_prob, np.where(mask, sampler, 0))
    np.testing.assert_array_equal(kept.advantage, mask * np.array(ADVANTAGE)[:, None])
    if format != "prime-rl":
        np.testing.assert_array_equal(kept.sample_weight, mask * 0.5)
    assert kept.layout.levels == ("trajectory", "group", "domain")
    group, domain = kept.layout.parents
    assert group[0] == group[1] != group[2] == group[3] and len(set(domain)) == 2
    assert kept.table["reward"].to_pylist() == [1, 0, 2, 0]
    assert kept.table["domain"].to_pylist() == ["math", "math", "code", "code"]
    assert [of.tolist() for of in kept.prompt_tokens] == PROMPTS


def test_packed_sequences_are_taken_apart(tmp_path):
    kept = read(tmp_path, packed(), "prime-rl")
    plain = read(tmp_path, prime_rl(), "prime-rl")
    for name in ("mask", "tokens", "old_log_prob", "log_prob", "advantage"):
        np.testing.assert_array_equal(getattr(kept, name), getattr(plain, name))
    assert [of.tolist() for of in kept.prompt_tokens] == PROMPTS
    assert kept.layout.levels == ("trajectory", "group")
    with pytest.raises(ValueError, match="column 'reward' is of rows, but rows hold several"):
        read(tmp_path, packed() | {"reward": [1.0, 2.0]}, "prime-rl")


@pytest.mark.parametrize("format", DUMPS)
def test_what_may_be_missing_may(tmp_path, format):
    columns = DUMPS[format]()
    needed = {
        "verl": ("responses", "response_mask", "old_log_probs", "advantages"),
        "trl": ("completion_ids", "completion_mask", "old_per_token_logps", "advantages"),
        "prime-rl": ("input_ids", "loss_mask", "inference_logprobs", "advantages"),
    }[format]
    missing = {"input_ids": "token_ids"}
    kept = read(tmp_path, {name: columns[name] for name in needed}, format)
    assert kept.log_prob is None and kept.reference_log_prob is None
    assert kept.layout.levels[1:] == (("group",) if format == "prime-rl" else ())
    for name in needed:
        others = {other: columns[other] for other in needed if other != name}
        with pytest.raises(
            ValueError,
            match=f"dump.parquet, read as {format}: column '{missing.get(name, name)}' is",
        ):
            read(tmp_path, others, format)


@pytest.mark.parametrize(
    ("format", "column", "values", "told"),
    [
        ("verl", "old_log_probs", [[1.0]] * 4, "has 1 values in row 0; expected 3"),
        ("verl", "attention_mask", [[1]] * 4, "has 1 values in row 0; expected 3"),
        (
            "verl",
            "responses",
            [["a"] * 3] * 4,
            "must have numbers, or lists of them; it has string",
        ),
        ("verl", "uid", [["a"]] * 4, "column 'uid' must have one value a row"),
        ("verl", "uid", ["a", "a", None, "b"], "column 'uid' has no value in row 2"),
        ("verl", "data_source", ["m", "n", "m", "m"], "level 'group' does not lie within 'domain'"),
        ("trl", "completion_mask", [[2] * 3] * 4, "mask must be bool[R, C], or zeros and ones"),
        ("trl", "old_per_token_logps", [[float("nan")] * 3] * 4, "old_log_prob is nan at row 0"),
        ("verl", "advantages", [[1.0, None, 1.0]] * 4, "'advantages' has a list with a null in it"),
        (
            "prime-rl",
            "loss_mask",
            [[False] * 5, [False] * 3, [True] * 4, [True] * 3],
            "a row without",
        ),
    ],
)
def test_a_wrong_column_is_refused_by_its_name(tmp_path, format, column, values, told):
    with pytest.raises(ValueError) as raised:
        read(tmp_path, DUMPS[format]() | {column: values}, format)
    assert str(raised.value).startswith(f"{tmp_path / 'dump.parquet'}, read as {format}: ")
    assert told in str(raised.value)


def test_other_files_and_formats_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match="format must be one of verl, trl, prime-rl; got 'openrlhf'"
    ):
        fj.from_parquet(tmp_path, format="openrlhf")
    with pytest.raises(ValueError, match="does not exist, or is a folder: expected"):
        fj.from_parquet(tmp_path / "no.parquet", format="verl")
    (tmp_path / "torn.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"torn.parquet is no whole Parquet file"):
        fj.from_parquet(tmp_path / "torn.parquet", format="verl")
    pq.write_table(pa.table(verl()).slice(0, 0), tmp_path / "empty.parquet")
    with pytest.raises(ValueError, match=r"empty.parquet has no rows"):
        fj.from_parquet(tmp_path / "empty.parquet", format="verl")
    assert set(foreign.FORMATS) == set(DUMPS)


def test_what_trl_wrote_is_clipped_as_trl_says():
    kept = fj.from_parquet(MADE / "trl.parquet", format="trl")
    clipped = fj.replay(kept, ["grpo"]).row("grpo").clipped["any"]
    logged = json.loads((MADE / "made.json").read_text())["trl"]["clipped"]
    assert 0 < logged == pytest.approx(clipped, rel=1e-6)
    assert len(set(kept.layout.parents[0])) == 2 and kept.reference_log_prob is not None
    with pytest.raises(ValueError, match="'completion_mask' is missing; the file has step, prompt"):
        fj.from_parquet(MADE / "trl_completions.parquet", format="trl")


def test_what_verl_wrote_is_the_same_padded_or_not():
    plain = fj.from_parquet(MADE / "verl.parquet", format="verl")
    padded = fj.from_parquet(MADE / "verl_padded.parquet", format="verl")
    for name in ("mask", "tokens", "old_log_prob", "advantage"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(padded, name))
    for kept in (plain, padded):
        assert [of.tolist() for of in kept.prompt_tokens] == [[5, 6, 7]] * 3 + [[8, 9]] * 3
        assert kept.table["reward"].to_pylist() == [0, 1] * 3
        assert kept.table["domain"].to_pylist() == ["math"] * 3 + ["code"] * 3
        assert kept.layout.levels == ("trajectory", "group", "domain")
    assert not plain.mask[4, 1] and plain.tokens[4, 1] > 0  # A tool's reply.
    reward = np.array([0, 1] * 3, np.float32)
    grpo = np.asarray(fj.advantages.grpo(reward, np.arange(6) // 3, 2))[:, None] * plain.mask
    np.testing.assert_allclose(plain.advantage, grpo, atol=2e-6)


def test_what_prime_rl_exports_is_read_as_it_is(tmp_path):
    kept = fj.from_jsonl(MADE / "prime_rl.jsonl", format="prime-rl")
    rows = [json.loads(line) for line in (MADE / "prime_rl.jsonl").read_text().splitlines()]
    coefficients = fj.replay(kept, ["dppo_tv"]).coefficients["dppo_tv"]
    assert any(any(row["is_masked"]) for row in rows)
    for row, ratio, mask, c, prompt in zip(
        rows, kept.log_ratio, kept.mask, coefficients, kept.prompt_tokens, strict=True
    ):
        counted = np.array(row["loss_mask"])
        np.testing.assert_array_equal(ratio[mask], np.float32(row["log_importance_ratio"])[counted])
        np.testing.assert_array_equal(c[mask] == 0, np.array(row["is_masked"])[counted])
        assert prompt.tolist() == row["token_ids"][: int(np.argmax(counted))]
    assert [len(set(of)) for of in kept.layout.parents] == [2, 2]
    assert set(kept.table["domain"].to_pylist()) == {"math", "code"}

    packed = fj.from_parquet(MADE / "prime_rl_packed.parquet", format="prime-rl")
    np.testing.assert_array_equal(packed.old_log_prob, kept.old_log_prob)
    np.testing.assert_array_equal(packed.tokens, kept.tokens)

    lines = (MADE / "prime_rl.jsonl").read_text().splitlines(keepends=True)
    for rank, part in enumerate((lines[:2], lines[2:])):
        (tmp_path / f"rank_{rank}.jsonl").write_text("".join(part))
    ranks = fj.from_jsonl(tmp_path, format="prime-rl")
    np.testing.assert_array_equal(ranks.log_prob, kept.log_prob)
    with (tmp_path / "rank_1.jsonl").open("a") as file:
        file.write('{"token_ids": [1')
    with pytest.raises(ValueError, match=rf"rank_1.jsonl, line {len(lines) - 1}, is no JSON"):
        fj.from_jsonl(tmp_path, format="prime-rl")
    (tmp_path / "rank_1.jsonl").write_text("[]\n")
    with pytest.raises(ValueError, match=r"rank_1.jsonl, line 1, is no JSON object"):
        fj.from_jsonl(tmp_path, format="prime-rl")
    with pytest.raises(ValueError, match="none does not exist: expected lines of JSON"):
        fj.from_jsonl(tmp_path / "none", format="prime-rl")
