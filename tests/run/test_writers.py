"""Where metrics go: what is written, what a resumed run leaves, and what is refused."""

import dataclasses
import json
import math
import sys
import types

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from fiberjax import options
from fiberjax.run import identity, metrics, writers


def _run(folder, first, last, *, resume_step=None):
    with writers.open_writers(folder, resume_step=resume_step) as writer:
        for step in range(first, last + 1):
            writer.write(step, {"reward/mean": step / 8, "actor/entropy": 1 / (step + 1)})


def _events(folder):
    """Reads (step, name, value) and purges from every event file, oldest file first."""
    found = []
    for path in sorted(folder.glob("events*")):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + length])
            found += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
            if event.HasField("session_log"):
                found.append((event.step, "purge", 0.0))
            data = data[16 + length :]
    return found


def test_values_come_back_as_columns(tmp_path):
    with writers.open_writers(tmp_path, resume_step=None) as writer:
        writer.write(1, {"a": 0.1, "b": np.float32(0.5)})
        writer.write(2, {"a": math.nan, "c": math.inf})
        writer.write(3, {"a": 2, "c": -math.inf})
        writer.write(3, {"b": True})
    columns = metrics.read_metrics(tmp_path)
    assert columns["step"].dtype == np.int64
    np.testing.assert_array_equal(columns["step"], [1, 2, 3])
    np.testing.assert_array_equal(columns["a"], [0.1, np.nan, 2])
    np.testing.assert_array_equal(columns["b"], [0.5, np.nan, 1])
    np.testing.assert_array_equal(columns["c"], [np.nan, np.inf, -np.inf])


def test_every_line_is_strict_json(tmp_path):
    with writers.open_writers(tmp_path, resume_step=None) as writer:
        writer.write(1, {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1.5})

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    row = json.loads((tmp_path / metrics.METRICS_FILE).read_text(), parse_constant=refuse)
    assert row == {"step": 1, "a": "NaN", "b": "Infinity", "c": "-Infinity", "d": 1.5}


def test_a_line_is_on_disk_as_soon_as_it_is_written(tmp_path):
    with writers.open_writers(tmp_path, resume_step=None) as writer:
        writer.write(1, {"a": 1.0})
        np.testing.assert_array_equal(metrics.read_metrics(tmp_path)["a"], [1.0])


@pytest.mark.parametrize("torn", ["", '{"step": 8, "reward/me', "\0\0\0"])
def test_resumed_file_equals_that_of_a_run_never_killed(tmp_path, torn):
    _run(tmp_path / "whole", 1, 10)
    _run(tmp_path / "killed", 1, 7)
    with (tmp_path / "killed" / metrics.METRICS_FILE).open("a") as file:
        file.write(torn)
    _run(tmp_path / "killed", 5, 10, resume_step=4)
    whole = (tmp_path / "whole" / metrics.METRICS_FILE).read_bytes()
    assert (tmp_path / "killed" / metrics.METRICS_FILE).read_bytes() == whole
    assert not list((tmp_path / "killed").glob("*.new"))


def test_starting_over_drops_everything_even_a_corrupt_file(tmp_path):
    (tmp_path / metrics.METRICS_FILE).write_text("nonsense\nmore\n")
    _run(tmp_path, 1, 2)
    np.testing.assert_array_equal(metrics.read_metrics(tmp_path)["step"], [1, 2])


def test_events_hold_the_values_and_a_resume_purges_later_ones(tmp_path):
    _run(tmp_path, 1, 3)
    assert (2, "reward/mean", 0.25) in _events(tmp_path)
    _run(tmp_path, 2, 2, resume_step=1)
    assert (2, "purge", 0.0) in _events(tmp_path)


@pytest.mark.parametrize("jump", [0, -86_400, 86_400])
def test_a_killed_writer_has_left_all_up_to_the_flush(tmp_path, monkeypatch, jump):
    """Read as TensorBoard does, file after file: no step is missing, none is there twice.

    All within one second, or where the clock has jumped by a day between the starts.
    """
    started = []
    monkeypatch.setattr(writers.time, "time", lambda: 1_700_000_000.0 + jump * len(started))
    shown = {}
    for first, last in ((1, 5), (4, 6), (5, 7)):
        started.append(first)
        resume = first - 1 if first > 1 else None
        writer = writers.open_writers(tmp_path, resume_step=resume, names=("tensorboard",))
        for step in range(first, last + 1):
            writer.write(step, {"reward/mean": step / 8})
            writer.flush()
        writer._writers[0]._events._py_recordio_writer._writer.detach().close()  # As a kill does.
        writer._stack.pop_all()
    assert len(list(tmp_path.glob("events*"))) == 3
    for step, name, value in _events(tmp_path):
        if name == "purge":
            shown = {of: value for of, value in shown.items() if of < step}
        else:
            assert step not in shown
            shown[step] = value
    assert shown == {step: step / 8 for step in range(1, 8)}


def test_starting_over_keeps_what_was_there(tmp_path):
    _run(tmp_path, 1, 3)
    before = (tmp_path / metrics.METRICS_FILE).read_text()
    for _ in range(2):
        _run(tmp_path, 1, 2)
    kept = sorted((tmp_path / "metrics.before").iterdir())
    assert [path.name for path in kept] == [metrics.METRICS_FILE, f"{metrics.METRICS_FILE}.2"]
    assert kept[0].read_text() == before and kept[1].read_text().count("\n") == 2


def test_a_text_goes_to_tensorboard_as_it_is(tmp_path):
    with writers.open_writers(tmp_path, resume_step=None) as writer:
        writer.write(1, {"a": 1.0})
        writer.write_text(2, "samples/train", "    <b>\n    é")
    (path,) = tmp_path.glob("events*")
    assert "    <b>\n    é".encode() in path.read_bytes()
    assert [(step, name.partition("/text")[0]) for step, name, _ in _events(tmp_path)][-1] == (
        *(2, "samples/train"),
    )
    np.testing.assert_array_equal(metrics.read_metrics(tmp_path)["step"], [1])


def test_disabled_writer_leaves_no_trace(tmp_path):
    folder = tmp_path / "run"
    with writers.open_writers(folder, resume_step=None, enabled=False) as writer:
        writer.write(1, {"a": 1.0})
        writer.write_text(1, "samples/train", "text")
    assert not folder.exists()


@pytest.mark.parametrize("value", [np.zeros(2), "0.5", None, 1j])
def test_a_value_that_is_no_number_is_refused_by_name(tmp_path, value):
    with (
        writers.open_writers(tmp_path, resume_step=None) as writer,
        pytest.raises(ValueError, match="actor/entropy"),
    ):
        writer.write(1, {"actor/entropy": value})


def test_steps_never_go_back(tmp_path):
    with writers.open_writers(tmp_path, resume_step=None) as writer:
        writer.write(2, {"a": 1.0})
        with pytest.raises(ValueError, match="step 1 comes after step 2"):
            writer.write(1, {"a": 1.0})
        with pytest.raises(ValueError, match="'step'"):
            writer.write(3, {"step": 1.0})
    with pytest.raises(ValueError, match="resume_step"):
        writers.open_writers(tmp_path, resume_step=-1)


def test_the_table_has_every_name_that_a_config_may_give():
    assert tuple(writers.WRITERS) == options.WRITERS


def test_only_the_writers_named_write(tmp_path):
    with writers.open_writers(tmp_path, resume_step=None, names=("jsonl",)) as writer:
        writer.write(1, {"a": 1.0})
    assert [path.name for path in tmp_path.iterdir()] == [metrics.METRICS_FILE]


class FakeWandb(types.ModuleType):
    """Records what `wandb` is asked for."""

    def __init__(self):
        super().__init__("wandb")
        self.runs = []

    def Settings(self, **settings):
        return settings

    def init(self, **options):
        run = types.SimpleNamespace(options=options, rows=[], finished=0)
        run.log = lambda row, step: run.rows.append((step, row))
        run.finish = lambda: setattr(run, "finished", run.finished + 1)
        self.runs.append(run)
        return run


def test_wandb_is_offline_and_one_run_across_resumes(tmp_path, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    names = ("jsonl", "tensorboard", "wandb")
    for resume, step in ((0, 1), (1, 2), (None, 1)):
        with writers.open_writers(tmp_path, resume_step=resume, names=names) as writer:
            writer.write(step, {"reward/mean": np.float32(0.5)})
    first, again, anew = fake.runs
    for run, step in ((first, 1), (again, 2), (anew, 1)):
        assert run.options["mode"] == "offline" and run.options["dir"] == str(tmp_path)
        assert run.rows == [(step, {"reward/mean": 0.5})] and run.finished == 1
    assert first.options["id"] == again.options["id"] != anew.options["id"]
    assert (1, "reward/mean", 0.5) in _events(tmp_path)


def test_a_writer_that_is_not_installed_is_refused_before_the_folder_is_made(
    tmp_path, monkeypatch, build
):
    monkeypatch.setattr(writers.importlib.util, "find_spec", lambda name: None)
    built = dataclasses.replace(build(), writers=("jsonl", "wandb"))
    with pytest.raises(ValueError, match=r"'wandb', which is not installed: .*--extra wandb"):
        identity.claim(tmp_path / "run", built, "{}")
    assert not (tmp_path / "run").exists()


@pytest.mark.peer
def test_wandb_itself_keeps_every_row_offline(tmp_path):
    pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    for resume, steps in ((0, (1, 2)), (1, (2, 3))):
        with writers.open_writers(tmp_path, resume_step=resume, names=("jsonl", "wandb")) as writer:
            for step in steps:
                writer.write(step, {"reward/mean": step / 4})
    (name,) = {path.stem for path in tmp_path.glob("wandb/offline-run-*/*.wandb")}
    assert name == f"run-{(tmp_path / 'wandb' / 'run_id').read_text()}"
    kept = []
    for path in sorted(tmp_path.glob("wandb/offline-run-*/*.wandb")):
        # Records of a checksum, a length and a kind, the 1 of a whole one, after seven bytes; it is
        # too short for a second block.
        data = path.read_bytes()[7:]
        while data:
            length = int.from_bytes(data[4:6], "little")
            assert data[6] == 1
            record, data = Record.FromString(data[7 : 7 + length]), data[7 + length :]
            row = {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
            if row:
                kept.append((int(row["_step"]), float(row["reward/mean"])))
    assert kept == [(1, 0.25), (2, 0.5), (2, 0.5), (3, 0.75)]
