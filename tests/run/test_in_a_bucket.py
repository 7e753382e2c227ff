"""A whole run in a bucket: nothing on the disk, no rename, no append, and the same numbers."""

import os

import pytest
from interruption import interrupted_at

from fiberjax import storage
from fiberjax.run import loop, metrics, plots, rollouts

ROOT = "gs://bucket/pod"
OPTIONS = {
    "iterations": 2,
    "warm_start__steps": 20,
    "checkpoint__every": 1,
    "checkpoint__keep": 1,
    "keep__show_every": 0,
    "keep__every": 1,
}
PLACES = {"tasks__data_dir": f"{ROOT}/data", "warm_start__directory": f"{ROOT}/warm"}


def untimed(folder):
    columns = metrics.read_metrics(folder)
    kept = [name for name in columns if not name.startswith(("timing/", "perf/"))]
    return {name: columns[name].tobytes() for name in kept}


def top(names):
    """The first parts of some names; of events there is another file for every start."""
    return {of for of in (name.partition("/")[0] for name in names) if not of.startswith("events.")}


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
