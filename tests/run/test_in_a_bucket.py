"""A whole run in a bucket: nothing on the disk, no rename, no append, and the same numbers."""

import functools
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interruption import interrupted_at

from fiberjax import storage
from fiberjax.policy import weights
from fiberjax.run import checkpoints, kept_files, loop, metrics, plots, rollouts, writers
from fiberjax.run.checkpoints import Checkpoints
from fiberjax.run.kept_files import load_rollouts
from fiberjax.tasks import builders, files

ROOT = "gs://bucket/pod"
OPTIONS = {
    "iterations": 2,
    "warm_start__steps": 20,
    "checkpoint__every": 1,
    "checkpoint__keep": 1,
    "keep__show_every": 0,
    "keep__every": 1,
    "keep__rollouts": "every 1",
}
PLACES = {"tasks__data_dir": f"{ROOT}/data", "warm_start__directory": f"{ROOT}/warm"}


def untimed(folder):
    columns = metrics.read_metrics(folder)
    kept = [name for name in columns if not name.startswith(("timing/", "perf/"))]
    return {name: columns[name].tobytes() for name in kept}


def top(names):
    """The first parts of some names; of events there is another file for every start."""
    return {of for of in (name.partition("/")[0] for name in names) if not of.startswith("events.")}


@pytest.mark.drawn
@pytest.mark.slow
def test_a_run_in_a_bucket_that_is_killed_ends_as_one_on_a_disk(
    build, bucket, tmp_path, monkeypatch, make_config
):
    monkeypatch.chdir(tmp_path)
    config, near, far = make_config().to_json_best_effort(), tmp_path / "near", f"{ROOT}/run"
    with monkeypatch.context() as patched:
        patched.setattr(plots, "plot_run", lambda *paths: None)  # They take seconds.
        loop.run(build(**OPTIONS), near, config)

    with interrupted_at(1, monkeypatch):
        loop.run(build(**OPTIONS, **PLACES), far, config)
    # As if it had been killed while it wrote the second one, and put a row too many before.
    for name in bucket.names("pod/run/checkpoints/1/state"):
        storage.write(storage.place(f"gs://bucket/{name.replace('/1/', '/2/')}"), b"half")
    file = storage.place(f"{far}/metrics.jsonl")
    storage.write(file, file.read_bytes() + b'{"step": 2, "reward/mean": 9}\n')
    loop.run(build(**OPTIONS, **PLACES), far, config)

    assert untimed(far) == untimed(near)
    assert rollouts.read(far) == rollouts.read(near)
    assert kept_files.kept_iterations(far) == kept_files.kept_iterations(near) == [1, 2]
    for name in ("tokens", "advantage", "old_log_prob", "row"):
        assert np.array_equal(*(getattr(load_rollouts(of), name) for of in (far, near)))
    evaluation = storage.place(f"{far}/evaluation.json").read_bytes()
    assert evaluation == (near / "evaluation.json").read_bytes()
    there = [name.removeprefix("pod/run/") for name in bucket.names("pod/run/")]
    assert top(there) == top(path.name for path in near.iterdir())
    assert {name.split("/")[1] for name in there if name.startswith("checkpoints/")} == {"2"}
    assert sum(name.startswith("plots/") for name in there) > 10
    starts = [name.split(".")[1] for name in there if name.startswith("events.")]
    assert starts == ["part000000", "part000001"]
    assert len(bucket.names("pod/warm/")) > 5 and len(bucket.names("pod/data/")) > 5
    # Nothing else went to the disk, and the bucket was asked for nothing that it has not.
    assert os.listdir(tmp_path) == ["near"] and bucket.refused == []


STATE = {"params": jnp.arange(600.0), "step": jnp.int32(3)}
SHAPES = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), STATE)


def test_a_damaged_checkpoint_is_passed_over_and_set_aside(bucket, capsys):
    folder = storage.place("gs://bucket/kept/checkpoints")
    with Checkpoints(folder, keep=2, record=folder.with_name("newest.json")) as saved:
        for iteration in (1, 2):
            saved.save(iteration, STATE, {"at": iteration})
    assert checkpoints.newest(folder) == 2
    assert checkpoints.recorded(folder.with_name("newest.json")) == 2
    storage.write(folder / "2" / "state" / "_METADATA", b"{}")
    with Checkpoints(folder, keep=2) as saved:
        found = saved.restore(SHAPES)
        assert (found.iteration, found.host) == (1, {"at": 1})
        assert "checkpoint 2 is damaged (state/_METADATA has " in capsys.readouterr().out
        saved.save(3, STATE, {"at": 3})
        assert saved.latest() == 3
    kept = [name.split("/")[1:3] for name in bucket.names("kept/checkpoints")]
    assert {tuple(of) for of in kept} == {
        ("checkpoints", "1"),
        ("checkpoints", "3"),
        ("checkpoints.damaged", "2"),
    }


def test_of_two_that_save_the_same_one_is_kept_and_it_can_be_made_anew(bucket):
    place = "gs://bucket/warm/abc"
    assert not checkpoints.exists(place)
    with pytest.raises(checkpoints.Damaged, match="holds no checkpoint"):
        checkpoints.read(place, SHAPES)
    assert checkpoints.save_first(place, 7, STATE, {"who": "first"})
    there = bucket.names("warm/")
    assert not checkpoints.save_first(place, 7, STATE, {"who": "second"})
    assert bucket.names("warm/") == there and checkpoints.exists(place)
    assert checkpoints.read(place, SHAPES).host == {"who": "first"}
    (cut,) = (name for name in there if name.endswith("state/_METADATA"))
    storage.write(storage.place(f"gs://bucket/{cut}"), b"{}")
    with pytest.raises(checkpoints.Damaged):
        checkpoints.read(place, SHAPES)
    checkpoints.discard(place)
    assert bucket.names("warm/") == [] and not checkpoints.exists(place)
    assert checkpoints.save_first(place, 7, STATE, {"who": "third"})


def test_a_damaged_data_set_is_built_anew_in_its_bucket(bucket, capsys):
    load = functools.partial(builders.load, ("reverse",), num_train=8, num_test=4)
    (expected,) = load("train", "gs://bucket/sets")
    built = {name: bucket.objects[name][0] for name in bucket.names("sets/")}
    (train,) = (name for name in built if "train" in name)
    storage.write(storage.place(f"gs://bucket/{train}"), b"nothing")
    (domain,) = load("train", "gs://bucket/sets")
    assert list(domain.source) == list(expected.source)
    assert "is damaged" in capsys.readouterr().out
    # Whichever host builds it builds the same bytes.
    assert {name: bucket.objects[name][0] for name in bucket.names("sets/")} == built
    bucket.puts.clear()
    load("test", "gs://bucket/sets")
    assert bucket.puts == []


def test_rows_and_a_models_shape_are_read_from_a_bucket(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    rows = storage.place("gs://bucket/rows")
    storage.write(rows / "a.jsonl", b'{"prompt": "1", "answer": "2"}\n')
    storage.write(rows / "b.jsonl", b'{"prompt": "3", "answer": "4"}\n{"prompt": \n')
    assert files.read_pairs("gs://bucket/rows/a*.jsonl") == [("1", "2")]
    with pytest.raises(ValueError, match=r"^gs://bucket/rows/b.jsonl, row 2: ") as error:
        files.read_pairs("gs://bucket/rows")
    assert "\n" not in str(error.value)
    shape = {"model_type": "nothing"}
    storage.write(rows / "model" / "config.json", json.dumps(shape).encode())
    with pytest.raises(
        ValueError, match=r"^gs://bucket/rows/model/config.json: model_type is 'not"
    ):
        weights.read_shape("gs://bucket/rows/model")


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("tasks__data_dir", "s3://a/b", "config.tasks.data_dir.*expected the path of a file sys"),
        ("warm_start__directory", "gs://a", "config.warm_start.* names no bucket"),
        ("server__folder", "gs://bucket/a", "config.server.folder.* expected a folder of a file"),
    ],
)
def test_what_cannot_be_in_a_bucket_or_is_none_is_refused(build, option, value, told):
    with pytest.raises(ValueError, match=told):
        build(**{option: value})


def test_wandb_writes_to_disks_alone():
    with pytest.raises(ValueError, match="writers names 'wandb', and the run folder is 'gs://"):
        writers.check(("wandb",), storage.place("gs://bucket/run"))
