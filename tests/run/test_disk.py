"""A full disk under everything that a run writes: one line, nothing lost, and on with room.

Full is what the system says where a file may not grow beyond a size, whichever library writes it.
"""

import contextlib
import errno
import resource
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pytest

from fiberjax import disk
from fiberjax.run import checkpoints, metrics, rollouts, writers
from fiberjax.run.checkpoints import Checkpoints
from fiberjax.tasks import load

# Does not compress.
STATE = {"params": jnp.asarray(np.random.default_rng(0).normal(size=20_000))}
SHAPES = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), STATE)


@contextlib.contextmanager
def no_file_beyond(size):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def full(what):
    """One line that names what could not be written."""
    return pytest.raises(
        disk.NoRoom, match=rf"\Ano room to write {what}[^\n]* when there is room\Z"
    )


@pytest.mark.parametrize("name", ["jsonl", "tensorboard"])
def test_metrics(tmp_path, name):
    row = {f"metric/{i}": i / 7 for i in range(20)}
    with full(f"the metrics to {tmp_path}"), no_file_beyond(4000):
        with writers.open_writers(tmp_path, resume_step=None, names=(name,)) as writer:
            writer.write(1, row)
            writer.flush()
            for step in range(2, 50):
                writer.write(step, row)
                writer.flush()
    with writers.open_writers(tmp_path, resume_step=1, names=(name,)) as writer:
        writer.write(2, row)
    if name == "jsonl":
        assert list(metrics.read_metrics(tmp_path)["step"]) == [1, 2]


def test_samples(tmp_path):
    texts = [np.random.default_rng(i).bytes(2000).hex() for i in range(4)]
    row = {"iteration": 3, "split": "train", "domain": "d", "prompt": "p", "answer": "a"}
    row |= {"reward": 1.0, "length": 1, "finished": True, "prompt_index": 0, "sample": 0}
    rows = pa.Table.from_pylist([row | {"completion": text} for text in texts], rollouts.SCHEMA)
    folder = rollouts.Folder(tmp_path, 2, 1e6)
    with full("the samples to .*000003-train"), no_file_beyond(4000):
        folder.write(rows)
    assert rollouts.Folder(tmp_path, 2, 1e6).write(rows).exists()
    assert rollouts.read(tmp_path).equals(rows)


def test_checkpoints(tmp_path):
    folder = tmp_path / "checkpoints"
    with Checkpoints(folder, keep=2) as saved:
        saved.save(1, STATE, {"at": 1})
    with full(f"checkpoint 2 to {folder}"), no_file_beyond(4000):
        with Checkpoints(folder, keep=2) as saved:
            saved.save(2, STATE, {"at": 2})
    with Checkpoints(folder, keep=2) as saved:
        found = saved.restore(SHAPES)
        assert found.host == {"at": 1}
        np.testing.assert_array_equal(found.state["params"], STATE["params"])
        saved.save(2, STATE, {"at": 2})
        assert saved.latest() == 2
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]


def test_a_warm_start(tmp_path):
    with full("checkpoint 5"), no_file_beyond(4000):
        checkpoints.save_first(tmp_path / "kept", 5, STATE, {})
    assert list(tmp_path.iterdir()) == []
    assert checkpoints.save_first(tmp_path / "kept", 5, STATE, {})


def test_data(tmp_path):
    with full("a data set to .*sort"), no_file_beyond(4000):
        load(("sort",), "train", tmp_path, num_train=400, num_test=10)
    assert len(load(("sort",), "train", tmp_path, num_train=400, num_test=10)[0].source) == 400


def test_what_a_library_says_is_found_however_deep():
    def told(error):
        with pytest.raises(type(error) if "no" in str(error) else disk.NoRoom):
            with disk.writing("it", "here"):
                raise error
        return disk._reason(error)

    full_disk = OSError(errno.ENOSPC, "No space left on device")
    nested = RuntimeError("a thread failed")
    nested.__cause__ = ExceptionGroup("several", [KeyError("a"), full_disk])
    assert told(nested) == "No space left on device"
    assert told(ValueError("RESOURCE: Disk quota exceeded [path]")) == "Disk quota exceeded"
    assert told(ValueError("no")) is None
    circle = ValueError("no end")
    circle.__context__ = KeyError("b")
    circle.__context__.__context__ = circle
    assert told(circle) is None


def test_threads_say_nothing_of_a_loop_that_is_over(monkeypatch):
    shown = []
    monkeypatch.setattr("sys.unraisablehook", lambda told: shown.append(told.exc_value))
    disk.without_echoes()
    other, closed = RuntimeError("another"), RuntimeError("Event loop is closed")
    for error in (other, closed, ValueError("Event loop is closed")):
        sys.unraisablehook(types.SimpleNamespace(exc_type=type(error), exc_value=error))
    assert shown[0] is other and len(shown) == 2 and closed not in shown


def test_what_fails_on_the_way_out_of_a_full_disk_is_one_line_too():
    with full("the run"), disk.writing("the run", "runs/full"):
        try:
            raise disk.NoRoom("no room to write it: No space left on device")
        finally:
            raise RuntimeError("a file that is closed")
