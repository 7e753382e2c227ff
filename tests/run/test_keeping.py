"""Keeping rollouts: what stands in a file is what the updates were made with."""

import contextlib
import dataclasses
import pathlib
import zlib

import jax
import numpy as np
import pyarrow as pa
import pytest
import tiny

import fiberjax as fj
from fiberjax import experiment, storage
from fiberjax.iterations import parse
from fiberjax.run import keeping, kept_files, rollouts
from fiberjax.run.policies import Policy
from fiberjax.run.trainer import Trainer
from fiberjax.run.warm_start import random_params

GROUP, PROMPTS = 4, 8


def some(prompt, answer, text):
    return float(zlib.crc32(text.encode()) % 2)


@pytest.fixture(scope="module")
def seen(request, tmp_path_factory):
    """An iteration with every correction, in batches that are not full: built, and what it gave."""
    config, folder = tiny.get_config(), tmp_path_factory.mktemp("kept")
    config.tasks.data_dir = str(request.getfixturevalue("scratch") / "data")
    config.warm_start.steps = 0
    config.window.completion = 24  # For some completions to end by themselves.
    config.rollout.update({"resample": 4, "top_k": 50})
    config.rewards.truncated = "mask"
    config.training.update({"kl_coefficient": 0.1, "mismatch": "truncate", "mismatch_cap": 1.01})
    config.keep.rollouts = "every 1"
    built = experiment.from_config(config, jax.devices()[:1])
    train = tuple(dataclasses.replace(domain, verify=some) for domain in built.train)
    built = dataclasses.replace(built, train=train)
    params, reference = (random_params(built.policy, built.mesh, seed=of) for of in (0, 1))
    said, updates = [], []
    keeper = keeping.Keeper(built, folder, 0, said.append)
    trainer = Trainer(
        built, reference, updates=lambda iteration, made: updates.extend(made), keeper=keeper
    )
    state = built.fresh_state(jax.tree.map(np.array, params))
    collected = trainer.collect(params, built.prompt_stream(), 0)
    trainer.update(state, collected, 0)
    assert not said and keeper.seconds() > 0 == keeper.seconds()
    return built, params, collected, updates, fj.load_rollouts(folder, 1)


def test_a_file_holds_the_batches_that_were_trained_on(seen):
    built, _, collected, updates, kept = seen
    size, columns = GROUP * PROMPTS, built.window.completion
    assert kept.mask.shape[1] == columns and (kept.meta["rows"], kept.meta["columns"]) == (
        size,
        columns,
    )
    # Fewer groups than the batch has places, and completions that were cut.
    assert 0 < len(kept.row) < size and len(kept.row) % GROUP == 0
    finished = np.array(kept.table["finished"])
    np.testing.assert_array_equal(kept.mask.any(axis=1), finished)
    assert 0 < finished.sum() < len(finished)
    checked = 0
    for number, batch in zip(collected.minibatches, collected.batches, strict=True):
        of = [np.asarray(x) for x in (batch.tokens, batch.layout.mask, batch.advantage)]
        tokens, mask, advantage = of
        for place in range(size // built.training.minibatches):
            group = place // GROUP * built.training.minibatches + number
            row = np.flatnonzero(kept.row == group * GROUP + place % GROUP)
            if len(row) == 0 or not finished[row[0]]:
                assert not mask[place].any()
                continue
            (row,) = row
            assert kept.minibatch[row] == number
            np.testing.assert_array_equal(kept.mask[row], mask[place])
            prompt = kept.prompt_tokens[row]
            np.testing.assert_array_equal(tokens[place, -columns - len(prompt) : -columns], prompt)
            for name, values in {
                "tokens": tokens[:, -columns:],
                "advantage": advantage,
                "old_log_prob": batch.old_log_prob,
                "reference_log_prob": batch.reference_log_prob,
                "sample_weight": batch.sample_weight,
            }.items():
                found = getattr(kept, name)[row]
                np.testing.assert_array_equal(
                    found[mask[place]], np.asarray(values)[place][mask[place]], err_msg=name
                )
            checked += 1
    assert checked == finished.sum()
    assert np.ptp(kept.sample_weight[kept.mask]) > 0
    np.testing.assert_allclose(  # Before truncation.
        kept.sampler_log_prob, kept.old_log_prob, atol=1e-4
    )
    # The updates, in their order and as exact as they were.
    assert [of["minibatch"] for of in kept.meta["updates"]] == [made.minibatch for made in updates]
    number = {id(of): n for n, of in zip(collected.minibatches, collected.batches, strict=True)}
    for found, made in zip(kept.meta["updates"], updates, strict=True):
        assert made.minibatch == number[id(made.batch)]
        assert found["metrics"] == dict(made.metrics) and made.metrics["actor/grad_norm"] >= 0
    assert len(updates) == built.training.epochs * len(collected.batches)
    assert kept.meta["updates_before"] == 0 and kept.meta["budget_factor"] == 1.0


def test_rows_have_their_texts_rewards_and_cells(seen):
    built, _, _, _, kept = seen
    for row, said in enumerate(kept.table.to_pylist()):
        example = built.examples[said["prompt_index"]]
        assert (said["prompt"], said["answer"]) == (example.prompt, example.answer)
        assert said["reward"] == some(said["prompt"], None, said["completion"])
        assert said["sample"] == kept.row[row] % GROUP and said["policy_version"] == 0
        if said["finished"]:  # Else it is left out.
            assert said["length"] == kept.mask[row].sum()
        np.testing.assert_array_equal(
            kept.prompt_tokens[row], built.examples.prompts[said["prompt_index"]]
        )
    group, domain = kept.layout.parents
    used = kept.mask.any(axis=1)
    names = np.array(kept.table["domain"])
    for a in np.flatnonzero(used):
        for b in np.flatnonzero(used):
            assert (group[a] == group[b]) == (kept.row[a] // GROUP == kept.row[b] // GROUP)
            assert (domain[group[a]] == domain[group[b]]) == (names[a] == names[b])


def test_the_policy_that_drew_them_gives_the_old_log_probs_bitwise(seen):
    built, params, _, _, kept = seen
    policy = Policy(0, None, built, params)
    np.testing.assert_array_equal(policy.log_prob(kept), kept.old_log_prob)
    few = dataclasses.replace(kept, prompt_tokens=None)
    with pytest.raises(ValueError, match="no tokens of prompts: expected prompt_tokens"):
        policy.log_prob(few)
    foreign = dataclasses.replace(kept, tokens=kept.tokens + built.policy.vocab_size)
    with pytest.raises(ValueError, match="the policy knows 0 to"):
        policy.log_prob(foreign)


def table(iteration):
    schema = rollouts.SCHEMA
    values = {name: [None] for name in schema.names} | {"iteration": [iteration]}
    fields = [field.with_nullable(True) for field in schema]
    return pa.table(values, schema=pa.schema(fields))


def written(folder, wanted, iterations, limit=1e6, start=0):
    """What a folder holds after iterations were offered to it as the keeper does."""
    some = parse(wanted)
    to = keeping.Folder(folder, start, some, limit)
    for iteration in iterations:
        if some.chosen(iteration):
            to.write(iteration, table(iteration))
    return kept_files.kept_iterations(folder), to.full


def test_a_folder_keeps_what_is_wanted_and_goes_on_from_an_iteration(tmp_path):
    assert written(tmp_path / "a", "2, every 4", range(1, 10)) == ([2, 4, 8], False)
    assert written(tmp_path / "b", "every 4, last 2", range(1, 10)) == ([4, 8, 9], False)
    # A killed run had come to 9, and goes on from 6 to the same files.
    assert written(tmp_path / "b", "every 4, last 2", range(7, 10), start=6) == ([4, 8, 9], False)
    assert written(tmp_path / "b", "every 4, last 2", [], start=6) == ([4], False)
    files = [
        {file.name: file.read_bytes() for file in sorted((tmp_path / of).rglob("*"))[1:]}
        for of in "ab"
    ]
    assert files[0]["000004.parquet"] == files[1]["000004.parquet"]


def test_a_copy_beside_a_hidden_file_is_passed_over(tmp_path):
    to = keeping.Folder(tmp_path, 0, parse("last 1"), 1e6)
    to.write(1, table(1))
    for name in (".000001 (1).parquet.old", ".000001.copy.parquet.old"):
        (tmp_path / kept_files.FOLDER / name).write_bytes(b"")
    to.write(2, table(2))
    to.close()
    there = {file.name for file in (tmp_path / kept_files.FOLDER).iterdir()}
    assert there == {"000002.parquet", ".000001 (1).parquet.old", ".000001.copy.parquet.old"}


def test_an_iteration_that_trained_on_nothing_has_no_file_and_ages_the_others(tmp_path):
    to = keeping.Folder(tmp_path, 0, parse("last 2"), 1e6)
    for iteration in (1, 2):
        assert to.write(iteration, table(iteration)) is not None
    assert to.write(3, None) is None and not to.full
    assert kept_files.kept_iterations(tmp_path) == [2]


def test_a_full_folder_takes_no_more(tmp_path):
    size = keeping.Folder(tmp_path / "one", 0, parse("every 1"), 1e6).write(1, table(1)).stat()
    limit = 2.5 * size.st_size
    assert written(tmp_path / "a", "every 1", range(1, 9), limit) == ([1, 2, 3], True)
    # What the last ones make way for does not count.
    assert written(tmp_path / "b", "last 3", range(1, 9), limit) == ([6, 7, 8], False)


class Killed(BaseException):
    """The process is gone."""


def draws(iteration):
    """Rows of an iteration, of many sizes; some trained on nothing."""
    noise = np.random.default_rng(iteration).bytes(iteration * 7919 % 4000).hex()
    rows = table(iteration).append_column("noise", pa.array([noise]))
    return None if iteration % 7 == 5 else rows


def lived(folder, some, limit, due, saves, end):
    """Iterations from the newest of the saves on up to `end`, with further saves, as the loop."""
    to = keeping.Folder(folder, saves[-1], some, limit)
    for iteration in range(saves[-1] + 1, end + 1):
        if some.chosen(iteration):
            to.write(iteration, draws(iteration))
        if iteration in due:
            saves.append(iteration)
            to.saved(iteration)
    return to


@pytest.mark.parametrize("wanted", ["last 3", "every 4, last 2", "every 3 from 1, 5", "last 9"])
def test_a_killed_run_ends_with_the_files_of_one_that_nothing_happened_to(
    tmp_path, wanted, monkeypatch
):
    """Killed anywhere, between two files too; from the newest checkpoint or the one before."""
    some, end, draw = parse(wanted), 24, np.random.default_rng(0)
    full = 0
    for trial, limit in enumerate((9e3, 14e3, 22e3, 1e6)):
        run = (some, limit, {*draw.choice(np.arange(1, end), 6).tolist(), end})
        undisturbed = lived(tmp_path / f"{trial}", *run, [0], end)
        undisturbed.close()
        expected = contents(tmp_path / f"{trial}")
        full += undisturbed.full
        for life in range(6):
            folder, saves = tmp_path / f"{trial}-{life}", [0]
            for _ in range(4):
                with monkeypatch.context() as patched, contextlib.suppress(Killed):
                    if draw.random() < 0.5:
                        kill_at(patched, int(draw.integers(1, 4)))
                    lived(folder, *run, saves, int(draw.integers(saves[-1], end)))
                saves = [int(draw.choice(saves[-2:]))]  # The newest may be damaged.
            lived(folder, *run, saves, end).close()
            assert contents(folder) == expected, (trial, life)
    assert 0 < full < 4


def kill_at(patched, step):
    """Ends the process before the so-manieth file is moved or removed."""
    left = [step]

    def dying(act):
        def dies(*arguments, **named):
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            return act(*arguments, **named)

        return dies

    patched.setattr(pathlib.Path, "unlink", dying(pathlib.Path.unlink))
    patched.setattr(storage, "move", dying(storage.move))


def contents(folder):
    return {file.name: file.read_bytes() for file in (folder / "rollouts").iterdir()}


def test_what_is_hidden_is_little_and_no_reader_sees_it(tmp_path):
    some = parse("last 2")
    to = keeping.Folder(tmp_path, 0, some, 1e6)
    most = 0
    for iteration in range(1, 31):
        to.write(iteration, table(iteration))
        if iteration % 5 == 0:
            to.saved(iteration)
        newest = [of for of in (iteration - 1, iteration) if of > 0]
        assert kept_files.kept_iterations(tmp_path) == newest
        most = max(most, len(contents(tmp_path)))
    assert most == 2 + 2 * 2


def test_a_full_folder_is_told_once(seen, tmp_path):
    built, _, collected, _, _ = seen
    small = dataclasses.replace(built.keep, rollouts_megabytes=1e-6)
    said = []
    keeper = keeping.Keeper(dataclasses.replace(built, keep=small), tmp_path, 0, said.append)
    for iteration in (1, 2, 3):
        assert keeper.due(iteration)
        keeper.keep(iteration, collected.trained, [], updates_before=0, factor=1.0)
    (told,) = said
    assert told.startswith("rollouts/ holds 1e-06 MB (config.keep.rollouts_megabytes): ")
    assert kept_files.kept_iterations(tmp_path) == [1]


def test_a_run_that_keeps_none_holds_nothing_for_it(seen, tmp_path):
    built, params, _, _, _ = seen
    none = dataclasses.replace(built, keep=dataclasses.replace(built.keep, rollouts=""))
    keeper = keeping.Keeper(none, tmp_path, 0, print)
    assert not any(keeper.due(iteration) for iteration in range(1, 9))
    trainer = Trainer(built, params).again(none, params)  # Which keeps none either.
    assert trainer._keeper is None and not list(tmp_path.iterdir())
