"""Kept rollouts as arrays, and the files that hold them: what is read, and what is refused."""

import dataclasses
import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import fiberjax as fj
from fiberjax.run import kept_files, migrations, rollouts

RNG = np.random.default_rng(0)
LENGTHS = [3, 1, 2, 4]
MASK = np.array([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0], [1, 0, 1, 1]], bool)
LOG_PROB = -RNG.random((4, 4)).astype(np.float32)
ABOUT = {
    "iteration": 7,
    "levels": ["trajectory", "group", "domain"],
    "rows": 8,
    "columns": 5,
    "updates": [{"minibatch": 1, "metrics": {"actor/grad_norm": 0.1, "actor/pg_loss": "nan"}}],
    "updates_before": 12,
    "budget_factor": 1.0,
    "config": {},
    "config_version": migrations.VERSION,
    "fiberjax_version": "0",
}


def rows():
    """Four trajectories as a file has them, of different lengths."""
    found = [
        {
            "iteration": 7,
            "split": "train",
            "domain": "</script>",
            "prompt": "p",
            "completion": f"c{row}",
            "answer": "a",
            "extracted": None,
            "reward": row / 4,
            "length": int(MASK[row].sum()),
            "finished": True,
            "prompt_index": row // 2,
            "sample": row % 2,
            "prompt_tokens": [9] * (row + 1),
            "completion_tokens": [row + 1] * length,
            "mask": MASK[row, :length].tolist(),
            "turn": [0] * length if row < 3 else [0, 0, 1, 1],
            "sampler_log_prob": (LOG_PROB[row] - 1)[:length].tolist(),
            "old_log_prob": LOG_PROB[row, :length].tolist(),
            "reference_log_prob": None,
            "sample_weight": None,
            "advantage": [row - 1.5] * length,
            "credit": 0.0,
            "row": 2 * row,
            "minibatch": row // 2,
            "cells": [("trajectory", 2 * row), ("group", 5 + row // 2), ("domain", 3)],
            "policy_version": 6,
        }
        for row, length in enumerate(LENGTHS)
    ]
    return pa.Table.from_pylist(found, schema=kept_files.SCHEMA)


def write(folder, table=None, iteration=7, **about):
    file = folder / "rollouts" / kept_files.name(iteration)
    described = kept_files.described(rows() if table is None else table, ABOUT | about)
    rollouts.write_whole("it", described, file, write_page_checksum=True)
    return file


def test_a_file_is_arrays_again(tmp_path):
    file = write(tmp_path)
    kept = fj.load_rollouts(tmp_path, 7)
    layout = kept.layout
    assert layout.levels == ("trajectory", "group", "domain")
    np.testing.assert_array_equal(kept.mask, np.pad(MASK, ((0, 0), (0, 1))))
    # A trajectory that is left out is no cell of its group.
    assert [of.tolist() for of in layout.sizes] == [[3, 1, 0, 3], [2, 1], [2]]
    assert [of.tolist() for of in layout.parents] == [[0, 0, 2, 1], [0, 0]]
    np.testing.assert_array_equal(kept.old_log_prob[:, :4], np.where(MASK, LOG_PROB, 0))
    np.testing.assert_array_equal(kept.sampler_log_prob[:, :4], np.where(MASK, LOG_PROB - 1, 0))
    np.testing.assert_array_equal(kept.advantage[3], [1.5, 0, 1.5, 1.5, 0])
    np.testing.assert_array_equal(kept.tokens[3], [4, 4, 4, 4, 0])  # A reply's among them.
    assert kept.tokens[2].tolist() == [3, 3, 0, 0, 0]
    assert kept.reference_log_prob is None and kept.sample_weight is None
    assert [of.tolist() for of in kept.prompt_tokens] == [[9] * n for n in (1, 2, 3, 4)]
    assert kept.row.tolist() == [0, 2, 4, 6] and kept.minibatch.tolist() == [0, 0, 1, 1]
    assert kept.table["completion"].to_pylist() == ["c0", "c1", "c2", "c3"]
    assert kept.log_prob is None and not kept.log_ratio.any()
    (update,) = kept.meta["updates"]
    assert update["metrics"]["actor/grad_norm"] == 0.1
    assert np.isnan(update["metrics"]["actor/pg_loss"])
    moved = kept.with_log_prob(np.pad(LOG_PROB + 1, ((0, 0), (0, 1)), constant_values=np.nan))
    np.testing.assert_allclose(moved.log_ratio[:, :4], MASK, atol=1e-6)
    assert not moved.log_ratio[:, 4].any()
    with pytest.raises(ValueError, match=r"log_prob must be float of the mask's shape \(4, 5\)"):
        kept.with_log_prob(LOG_PROB)
    # Any reader has the columns, and what the file says of itself.
    plain = pq.read_table(file)
    assert plain.column_names == kept_files.SCHEMA.names
    assert json.loads(plain.schema.metadata[b"fiberjax"])["iteration"] == 7
    assert dict(plain["cells"][3].as_py()) == {"trajectory": 6, "group": 6, "domain": 3}


def test_turns_are_cells_and_the_direct_edge_is_over_the_sampler(tmp_path):
    levels = ["turn", *ABOUT["levels"]]
    config = {"training": {"edge": "direct"}}
    file = write(tmp_path, levels=levels)
    meta = json.loads(pq.read_schema(file).metadata[b"fiberjax"])
    # As of a config of today, which is more than a test needs.
    kept_files_of = kept_files.described(rows(), meta | {"config": config, "levels": levels})
    pq.write_table(kept_files_of, file)
    kept = fj.load_rollouts(file)
    assert kept.layout.levels == ("turn", "trajectory", "group", "domain")
    assert np.asarray(kept.layout.sizes[0]).tolist() == [3, 0, 1, 0, 0, 0, 1, 2]
    assert np.asarray(kept.layout.sizes[1]).tolist() == [1, 1, 0, 2]
    np.testing.assert_allclose(kept.log_ratio[:, :4], MASK, atol=1e-6)
    np.testing.assert_array_equal(kept.old_log_prob, kept.sampler_log_prob)


def test_the_newest_is_read_and_others_by_number(tmp_path):
    for iteration in (3, 12):
        write(tmp_path, iteration=iteration)
    (tmp_path / "rollouts" / ".000013.parquet.new").write_bytes(b"PAR1")  # Of a run still going.
    assert kept_files.kept_iterations(tmp_path) == [3, 12]
    fj.load_rollouts(tmp_path)
    fj.load_rollouts(str(tmp_path), 3)
    with pytest.raises(ValueError, match=r"rollouts holds no iteration 5; it holds 3, 12"):
        fj.load_rollouts(tmp_path, 5)
    with pytest.raises(ValueError, match="one iteration's file; expected a run folder"):
        fj.load_rollouts(tmp_path / "rollouts" / "000012.parquet", 12)
    with pytest.raises(ValueError, match="does not exist: expected a run folder"):
        fj.load_rollouts(tmp_path / "no")
    with pytest.raises(ValueError, match=r"holds no rollouts/ of a run: config.keep.rollouts"):
        fj.load_rollouts(tmp_path / "rollouts")


def changed(name, values):
    """The rows with another column."""
    table = rows()
    index = table.column_names.index(name)
    return table.set_column(index, name, values)


def cells(*of):
    return pa.array(
        [list(zip(("trajectory", "group", "domain"), row, strict=False)) for row in of],
        pa.map_(pa.string(), pa.int32()),
    )


BAD_ROWS = {
    "lacks the columns old_log_prob, row": rows().drop_columns(["old_log_prob", "row"]),
    "column 'reward' is string, not float": changed("reward", pa.array(["high"] * 4)),
    "column 'mask' is int32, not list<": changed("mask", pa.array([1] * 4, pa.int32())),
    "row 1 has 1 completion_tokens, and 2 of 'mask'": changed(
        "mask", pa.array([[True] * n for n in (3, 2, 2, 4)])
    ),
    "row 0 has 3 completion_tokens, and None of 'sample_weight'": changed(
        "sample_weight", pa.array([None, [1.0], [1.0] * 2, [1.0] * 4], pa.list_(pa.float32()))
    ),
    "column 'old_log_prob' has rows without a value": changed(
        "old_log_prob", pa.array([None, [1.0], [1.0] * 2, [1.0] * 4], pa.list_(pa.float32()))
    ),
    "column 'advantage' has tokens without a value": changed(
        "advantage", pa.array([[1.0, None, 1.0], [1.0], [1.0] * 2, [1.0] * 4])
    ),
    "cells of row 1 lack the level 'domain'": changed(
        "cells", cells((0, 1, 2), (1, 1), (2,), (3,))
    ),
    "level 'group' does not lie within 'domain': rows 0 and 1": changed(
        "cells", cells((0, 1, 2), (1, 1, 3), (2, 2, 2), (3, 2, 2))
    ),
    "turn must be from 0 and less than 5": changed(
        "turn", pa.array([[0] * 3, [-1], [0] * 2, [0] * 4], pa.list_(pa.int32()))
    ),
    "row must be different places from 0 to 7": changed("row", pa.array([0, 1, 1, 2], pa.int32())),
    "minibatch must be from 0": changed("minibatch", pa.array([0, 0, -1, 0], pa.int32())),
}


@pytest.mark.parametrize("told", BAD_ROWS)
def test_rows_that_are_none_of_a_run_are_refused_by_the_file(tmp_path, told):
    file = write(tmp_path, BAD_ROWS[told])
    with pytest.raises(ValueError) as raised:
        fj.load_rollouts(tmp_path)
    assert str(raised.value).startswith(str(file)) and told in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("about", "told"),
    [
        ({"version": 2}, "is of format version 2; this program reads 1"),
        ({"version": "1"}, "is of format version '1'"),
        ({"levels": ["group"]}, "its metadata has levels = ['group'], which is none of a run"),
        ({"levels": ["trajectory", "trajectory"]}, "its metadata has levels"),
        ({"levels": "trajectory"}, "its metadata has levels = 'trajectory'"),
        ({"columns": -1}, "its metadata has columns = -1"),
        ({"columns": 10**12}, "expected at most"),
        ({"rows": None}, "its metadata has rows = None"),
        ({"rows": 3}, "row must be different places from 0 to 2"),
        ({"config": []}, "its metadata has config = []"),
        ({"config_version": 10**6}, "its config is none of a run: it is of version 1000000"),
        ({"updates": [1]}, "its metadata has updates without metrics"),
    ],
)
def test_what_a_file_says_of_itself_is_checked(tmp_path, about, told):
    file = write(tmp_path, **about)
    with pytest.raises(ValueError) as raised:
        fj.load_rollouts(tmp_path)
    assert str(raised.value).startswith(str(file)) and told in str(raised.value)


def test_damage_is_seen_wherever_it_is(tmp_path):
    """A bit anywhere in the file: it reads as it was, or is refused by its name."""
    file = write(tmp_path)
    whole, expected = file.read_bytes(), fj.load_rollouts(tmp_path)
    places = [*range(0, len(whole), max(1, len(whole) // 60)), len(whole) - 1]
    seen = 0
    for place in places:
        harmed = bytearray(whole)
        harmed[place] ^= 1 << place % 8
        file.write_bytes(harmed)
        try:
            found = fj.load_rollouts(tmp_path)
        except ValueError as error:
            assert str(file) in str(error)
            seen += 1
        else:
            for name in ("tokens", "old_log_prob", "advantage", "row"):
                np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
            assert found.table.equals(expected.table) and str(found.meta) == str(expected.meta)
    assert seen > len(places) / 2
    # Where nothing but a checksum or a digest tells.
    for of, told in ((b"trajector", "no whole Parquet file"), (b'12, "version"', "is damaged")):
        harmed = bytearray(whole)
        harmed[whole.index(of)] ^= 1
        file.write_bytes(harmed)
        with pytest.raises(ValueError, match=told):
            fj.load_rollouts(tmp_path)
    for size in (0, 3, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="is no whole Parquet file"):
            fj.load_rollouts(tmp_path)
    pq.write_table(rows(), file)
    with pytest.raises(ValueError, match="holds no kept rollouts: it has no 'fiberjax'"):
        fj.load_rollouts(tmp_path)
    os.unlink(file)
    file.mkdir()
    with pytest.raises(ValueError, match=r"000007.parquet is no whole Parquet file"):
        fj.load_rollouts(tmp_path)


GIVEN = {
    "log_prob": LOG_PROB,
    "old_log_prob": LOG_PROB - 0.5,
    "mask": MASK,
    "advantage": np.ones(4),
}


def test_arrays_in_hand_are_kept_rollouts_too():
    kept = fj.from_arrays(
        **GIVEN,
        parents={"group": ["x", "x", "y", "y"], "domain": np.array([7, 7, 7, 7])},
        reward=[0, 1, 0, 1],
        texts=["a", "b", "c", "d"],
        domain=["m"] * 4,
        tokens=np.arange(16).reshape(4, 4),
        turn=np.where(MASK, [0, 0, 1, 1], 0),
    )
    assert kept.layout.levels == ("turn", "trajectory", "group", "domain")
    assert [np.asarray(of).tolist() for of in kept.layout.sizes[1:]] == [[2, 1, 0, 2], [2, 1], [2]]
    np.testing.assert_allclose(kept.log_ratio, np.where(MASK, 0.5, 0), atol=1e-6)
    np.testing.assert_array_equal(kept.advantage, MASK)
    assert kept.table.column_names == ["domain", "completion", "reward", "length"]
    assert kept.table.schema.field("reward").type == pa.float32()
    assert kept.meta == {} and kept.prompt_tokens is None
    # What stands at padding does not matter.
    noisy = {name: np.where(MASK, of, np.nan) for name, of in GIVEN.items() if of.ndim == 2}
    again = fj.from_arrays(**GIVEN | noisy | {"mask": MASK.astype(int)})
    np.testing.assert_array_equal(again.log_ratio, kept.log_ratio)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"mask": MASK * 2}, "mask must be bool[R, C], or zeros and ones"),
        ({"mask": MASK[0]}, "mask must be bool[R, C]"),
        ({"old_log_prob": None}, "old_log_prob must be float[R, C]; got None"),
        ({"old_log_prob": LOG_PROB[:2]}, "old_log_prob must be float of the mask's shape (4, 4)"),
        ({"log_prob": np.where(MASK, np.nan, 0)}, "log_prob is nan at row 0, column 0"),
        ({"advantage": np.ones(3)}, "advantage must be float of the mask's shape"),
        ({"reward": [1, 2]}, "reward must be one for each of 4 trajectories; got 2"),
        ({"texts": [1, 2, 3, 4]}, "texts must be string of each trajectory"),
        ({"tokens": -np.ones((4, 4), int)}, "tokens must be whole numbers of shape (4, 4)"),
        ({"turn": np.full((4, 4), 4)}, "turn is 4; expected less than 4 columns"),
        ({"prompt_tokens": [[1]]}, "prompt_tokens must be 4 sequences; got 1"),
        ({"parents": {"group": [1, 2]}}, "level 'group' must give the cell of each of 4"),
        ({"parents": {"turn": [1, 2, 3, 4]}}, "not be called 'turn' or 'trajectory'"),
        (
            {"parents": {"group": [0, 0, 1, 1], "domain": [0, 1, 1, 1]}},
            "level 'group' does not lie within 'domain': rows 0 and 1 share a cell",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_refused_by_their_name(changed, told):
    with pytest.raises(ValueError) as raised:
        fj.from_arrays(**GIVEN | changed)
    assert told in str(raised.value)


def test_kept_rollouts_are_looked_at_not_changed():
    kept = fj.from_arrays(**GIVEN)
    with pytest.raises(dataclasses.FrozenInstanceError):
        kept.tokens = None
