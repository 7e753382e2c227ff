"""The files of samples: what they hold, who can read them, and how large they grow."""

import dataclasses
import functools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fiberjax.policy import sampler as policy_sampler
from fiberjax.run import evaluation, rollouts
from fiberjax.run.warm_start import random_params
from fiberjax.tasks import prompt_batch


@pytest.fixture
def built(build):
    return build()


@pytest.fixture
def params(built):
    return random_params(built.policy, built.mesh, seed=1)


def drawn(built, params, indices):
    """Rollouts of training prompts, four of each."""
    sampler = built.sampler(built.train)
    batch = prompt_batch(built.examples, np.array(indices), built.window.prompt)
    return sampler(sampler.read(params), batch, samples=4, stream=0, step=0)


def test_what_others_put_beside_the_samples_is_passed_over(built, params, tmp_path):
    found = drawn(built, params, [0])
    rows = rollouts.table(built, found, np.arange(1), iteration=2, split=rollouts.HELD_OUT)
    rollouts.Folder(tmp_path, 0, 1e6).write(rows)
    for name in ("all.parquet", "000009.parquet", "9-copy (1).parquet"):
        pq.write_table(rows, tmp_path / rollouts.FOLDER / name)
    rollouts.Folder(tmp_path, 1, 1e6)  # Goes on from before its own file.
    assert len(list((tmp_path / rollouts.FOLDER).iterdir())) == 3
    rollouts.Folder(tmp_path, 1, 1e6).write(rows)
    assert rollouts.read(tmp_path).num_rows == 1


def test_rank_counts_within_a_domain():
    np.testing.assert_array_equal(rollouts.rank(np.array([2, 0, 2, 2, 0])), [0, 0, 1, 2, 1])


def test_rows_are_of_the_first_prompts_of_each_domain(built, params):
    found = drawn(built, params, [90, 3, 95, 1, 50, 91])
    rows = rollouts.first_of_each_domain(built, found, 2)
    np.testing.assert_array_equal(rows, [0, 4, 8, 12, 16])
    np.testing.assert_array_equal(rollouts.first_of_each_domain(built, found, 1), [0, 4, 16])
    table = rollouts.table(built, found, rows + 1, iteration=7, split=rollouts.TRAIN)
    assert table.schema == rollouts.SCHEMA
    assert table["prompt_index"].to_pylist() == [90, 3, 95, 1, 50]
    assert table["domain"].to_pylist() == ["sort", "modular", "sort", "modular", "reverse"]
    assert set(table["sample"].to_pylist()) == {1} and set(table["iteration"].to_pylist()) == {7}
    for row, kept in zip(rows + 1, table.to_pylist(), strict=True):
        example = built.examples[kept["prompt_index"]]
        assert (kept["prompt"], kept["answer"]) == (example.prompt, example.answer)
        assert kept["completion"] == found.texts[row]
        assert kept["reward"] == found.reward[row]
        assert kept["length"] == found.mask[row].sum() > 0
        assert kept["finished"] == found.finished[row]
        assert kept["extracted"] is None


def test_what_a_verifier_extracts_is_kept(built, params):
    class Last:
        """Compares the last character."""

        def __call__(self, prompt, answer, completion):
            return float(self.extract(completion) == answer[-1:])

        def extract(self, completion):
            return completion[-1:] or None

    domains = tuple(dataclasses.replace(domain, verify=Last()) for domain in built.train)
    other = dataclasses.replace(built, train=domains)
    found = drawn(other, params, [90, 3])
    table = rollouts.table(other, found, np.arange(8), iteration=1, split=rollouts.TRAIN)
    assert table["extracted"].to_pylist() == [text[-1:] or None for text in found.texts]
    assert any(table["extracted"].to_pylist())


def test_an_evaluation_keeps_the_first_prompts_of_each_domain(built, params):
    # Three batches of four prompts, of three domains with four prompts each; the last prompts of a
    # domain are in another batch than the first.
    built = dataclasses.replace(
        built, evaluation=dataclasses.replace(built.evaluation, prompts=5, batch=4)
    )
    measured = evaluation.evaluate(built, params, None, samples=3, iteration=6)
    kept = measured.samples.to_pylist()
    assert [row["prompt_index"] for row in kept] == [0, 1, 2, 8, 9, 10, 16, 17, 18]
    assert {(row["split"], row["iteration"], row["sample"]) for row in kept} == {("held_out", 6, 0)}
    for row in kept:
        example = built.held_out[row["prompt_index"]]
        assert (row["prompt"], row["answer"]) == (example.prompt, example.answer)
        verify = built.test[built.held_out.domain_of(row["prompt_index"])].verify
        assert row["reward"] == verify(row["prompt"], row["answer"], row["completion"])
    assert evaluation.evaluate(built, params, None).samples is None


def rows(iteration, split="train", **changed):
    row = {name: "" for name in ("domain", "prompt", "completion", "answer", "extracted")}
    row |= {"reward": 0.5, "length": 2, "finished": True, "prompt_index": 1, "sample": 0}
    row |= {"iteration": iteration, "split": split} | changed
    return pa.Table.from_pylist([row], schema=rollouts.SCHEMA)


def test_pyarrow_alone_reads_a_folder(tmp_path):
    folder = rollouts.Folder(tmp_path, 0, 1e6)
    text = "\x00\x1b[31m\u202e\ud83d\ude00 é\n"  # The two in the middle are halves of surrogates.
    kept = rollouts._utf8(text)
    assert kept == "\x00\x1b[31m\u202e\\ud83d\\ude00 é\n"
    for iteration in (10, 9, 0):
        folder.write(rows(iteration, completion=kept))
    folder.write(rows(10, "held_out"))
    (tmp_path / "samples" / ".000011-train.parquet.new").write_bytes(b"PAR1 torn")
    table = pq.read_table(tmp_path / "samples")
    assert table.schema.remove_metadata() == rollouts.SCHEMA and table.num_rows == 4
    found = rollouts.read(tmp_path)
    assert found["iteration"].to_pylist() == [0, 9, 10, 10]
    assert found["split"].to_pylist() == ["train", "train", "held_out", "train"]
    assert found["completion"][0].as_py() == kept


def test_a_folder_goes_on_from_an_iteration_and_writes_the_same_bytes(tmp_path):
    write = functools.partial(rollouts.Folder, tmp_path, limit=1e6)
    first = write(iteration=0)
    files = [first.write(rows(iteration)) for iteration in (1, 2, 3)]
    before = [file.read_bytes() for file in files]
    second = write(iteration=1)
    assert [file.exists() for file in files] == [True, False, False]
    for iteration in (2, 3):
        second.write(rows(iteration))
    assert [file.read_bytes() for file in files] == before
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == [
        *("000001-train.parquet", "000002-train.parquet", "000003-train.parquet")
    ]


def test_a_folder_grows_to_its_limit_whether_or_not_it_was_resumed(tmp_path):
    size = rollouts.Folder(tmp_path / "one", 0, 1).write(rows(1)).stat().st_size
    for name, resumed in (("whole", ()), ("parts", (2, 3, 4))):
        folder = rollouts.Folder(tmp_path / name, 0, 1.5 * size)
        for iteration in range(1, 6):
            if iteration in resumed:
                folder = rollouts.Folder(tmp_path / name, iteration - 1, 1.5 * size)
            assert (folder.write(rows(iteration)) is None) == (iteration > 2) == folder.full
        assert len(list((tmp_path / name / "samples").iterdir())) == 2


def test_what_is_no_folder_of_samples_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no samples/ of a run"):
        rollouts.read(tmp_path)
    (tmp_path / "samples").mkdir()
    file = tmp_path / "samples" / "000001-train.parquet"
    file.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"000001-train\.parquet holds no samples"):
        rollouts.read(tmp_path)
    pq.write_table(pa.table({"iteration": [1]}), file)
    with pytest.raises(ValueError, match=r"000001-train\.parquet holds no samples"):
        rollouts.read(tmp_path)


def test_greedy_evaluations_take_the_likeliest_tokens(build):
    truncated = {"rollout__top_k": 3, "rollout__top_p": 0.9}
    built = build(evaluation__temperature=0.0, evaluation__samples=1, **truncated)
    params = random_params(built.policy, built.mesh, seed=1)
    sampler = built.evaluation_sampler()
    batch = prompt_batch(built.held_out, np.arange(4), built.window.prompt)
    draws = [sampler(params, batch, samples=2, stream=1, step=step) for step in (0, 1)]
    np.testing.assert_array_equal(draws[0].tokens, draws[1].tokens)
    programs = policy_sampler._sample._cache_size()
    drawn = built.sampler(built.test)(params, batch, samples=2, stream=1, step=0)
    assert (drawn.tokens != draws[0].tokens).any()
    # As many rows of rollouts are drawn by the program that was compiled for these.
    assert policy_sampler._sample._cache_size() == programs
