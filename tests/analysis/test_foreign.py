"""Token dumps of other trainers: what each column becomes, and what is refused."""

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
        "reference_logprobs": behind(per_token(-2.0)),
        "advantages": [[of] * len(row) for of, row in zip(ADVANTAGE, whole, strict=True)],
        "reward": [1.0, 0.0, 2.0, 0.0],
        "domain": ["math", "math", "code", "code"],
    }


def packed():
    """Two rows of two sequences, the second with padding behind."""
    plain = {name: of for name, of in prime_rl().items() if name not in ("reward", "domain")}
    rows = {name: [of[0] + of[1], of[2] + of[3]] for name, of in plain.items()}
    zero = {"loss_mask": False, "input_ids": 0, "position_ids": 0}
    return {name: [of[0], of[1] + [zero.get(name, 0.0)] * 2] for name, of in rows.items()}


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
    kept = read(tmp_path, {name: columns[name] for name in needed}, format)
    assert kept.log_prob is None and kept.reference_log_prob is None
    assert kept.layout.levels[1:] == (("group",) if format == "prime-rl" else ())
    for name in needed:
        others = {other: columns[other] for other in needed if other != name}
        with pytest.raises(ValueError, match=f"dump.parquet, read as {format}: column '{name}' is"):
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
    with pytest.raises(ValueError, match="does not exist: expected a Parquet file"):
        fj.from_parquet(tmp_path / "no.parquet", format="verl")
    (tmp_path / "torn.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"torn.parquet is no whole Parquet file"):
        fj.from_parquet(tmp_path / "torn.parquet", format="verl")
    pq.write_table(pa.table(verl()).slice(0, 0), tmp_path / "empty.parquet")
    with pytest.raises(ValueError, match=r"empty.parquet has no rows"):
        fj.from_parquet(tmp_path / "empty.parquet", format="verl")
    assert set(foreign.FORMATS) == set(DUMPS)
