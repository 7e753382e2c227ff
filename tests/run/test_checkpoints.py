"""What a checkpoint keeps of a state that goes on to be trained, and what is seen of damage."""

import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fiberjax import digests
from fiberjax.run import checkpoints
from fiberjax.run.checkpoints import Checkpoints, Damaged
from fiberjax.run.refused import Unreadable

STATE = {"params": jnp.arange(600.0), "step": jnp.int32(3)}


def shapes_of(state):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)


def test_on_a_cpu_the_state_is_written_when_saving_returns(tmp_path):
    """So that no second state stays in memory while the next update runs."""
    with Checkpoints(tmp_path / "run", keep=1) as saved:
        saved.save(3, STATE, {"note": "third"})
        # Renamed when it is whole.
        assert (tmp_path / "run" / "3").is_dir()
        found = saved.restore(shapes_of(STATE))
    assert found.iteration == 3 and found.host == {"note": "third"}
    np.testing.assert_array_equal(found.state["params"], np.arange(600.0))


@pytest.fixture(scope="module")
def saved_run(tmp_path_factory):
    """Checkpoints 1 and 2; the state's numbers are the iteration."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    with Checkpoints(folder, keep=2) as saved:
        for iteration in (1, 2):
            state = jax.tree.map(lambda leaf, at=iteration: leaf * 0 + at, STATE)
            saved.save(iteration, state, {"at": iteration}, best=iteration)
    return folder


@pytest.fixture
def folder(saved_run, tmp_path):
    return pathlib.Path(shutil.copytree(saved_run, tmp_path / "checkpoints"))


def flip(path, at=0.5):
    """Turns one bit of a file."""
    data = bytearray(path.read_bytes())
    data[int(at * (len(data) - 1))] ^= 4
    path.write_bytes(data)


def restored(folder):
    with Checkpoints(folder, keep=2) as saved:
        return saved.restore(shapes_of(STATE))


def test_a_flipped_bit_in_any_file_gives_the_checkpoint_before(folder, capsys):
    files = digests.files_of(folder / "2") + list((folder / "2").glob("digests.*"))
    assert len(files) > 8
    for path in files:
        before = path.read_bytes()
        if not before:
            continue
        flip(path)
        found = restored(folder)
        assert found.iteration == 1 and (found.state["params"] == 1).all(), path
        (line,) = capsys.readouterr().out.splitlines()
        assert "checkpoint 2 is damaged" in line and path.name in line
        assert "checkpoint 1, the newest that is good, is read in its place" in line
        path.write_bytes(before)
    assert restored(folder).iteration == 2 and capsys.readouterr().out == ""


def largest(folder):
    return max(digests.files_of(folder), key=lambda path: path.stat().st_size)


def truncated(folder):
    with largest(folder).open("r+b") as file:
        file.truncate(100)


def lost(folder):
    largest(folder).unlink()


def emptied(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def half_gone(folder):
    shutil.rmtree(folder / "state")


@pytest.mark.parametrize("damage", [truncated, lost, emptied, half_gone])
def test_damage_gives_the_checkpoint_before_and_the_run_goes_on(folder, capsys, damage):
    damage(folder / "2")
    with Checkpoints(folder, keep=2) as saved:
        assert saved.best() == 1
        found = saved.restore(shapes_of(STATE))
        assert found.iteration == 1
        assert (folder / "2").is_dir()  # Reading moves nothing.
        saved.save(2, found.state, {"at": 2})
        assert saved.latest() == 2
    assert capsys.readouterr().out.count("is damaged") == 1
    assert (folder.parent / "checkpoints.damaged" / "2").is_dir()
    assert restored(folder).host == {"at": 2}


def test_where_none_is_good_it_is_an_error_and_nothing_is_emptied(folder):
    for iteration in (1, 2):
        lost(folder / str(iteration))
    before = sorted(folder.rglob("*"))
    assert issubclass(Damaged, Unreadable)  # A command says it in one line.
    with pytest.raises(Damaged, match=r"checkpoint 2 is damaged .*checkpoint 1 is damaged"):
        restored(folder)
    with Checkpoints(folder, keep=2) as saved, pytest.raises(Damaged, match="2 is damaged: "):
        saved.restore(shapes_of(STATE), 2)
    assert sorted(folder.rglob("*")) == before


def test_a_checkpoint_of_another_model_is_no_damage(folder):
    other = shapes_of({"weights": jnp.zeros(7), "step": jnp.int32(0)})
    with Checkpoints(folder, keep=2) as saved, pytest.raises(ValueError, match="does not hold"):
        saved.restore(other)


def test_one_without_digests_is_read_and_said(folder, capsys):
    for path in folder.glob("2/digests.*"):
        path.unlink()
    assert restored(folder).iteration == 2
    assert "2 has no digests" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "writer"),
    [
        ("state/ocdbt.process_3/d/ab", 3),
        ("state/array_metadatas/process_12", 12),
        ("state/d/7", 0),
        ("_CHECKPOINT_METADATA", 0),
    ],
)
def test_every_process_answers_for_what_it_wrote(name, writer):
    assert checkpoints._writer(pathlib.Path(name)) == writer
