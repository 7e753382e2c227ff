import json
import math

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from fiberjax.run import metrics


def _run(folder, first, last, *, resume_step=None):
    with metrics.MetricWriter(folder, resume_step=resume_step) as writer:
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
    with metrics.MetricWriter(tmp_path, resume_step=None) as writer:
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
    with metrics.MetricWriter(tmp_path, resume_step=None) as writer:
        writer.write(1, {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1.5})

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    row = json.loads((tmp_path / metrics.METRICS_FILE).read_text(), parse_constant=refuse)
    assert row == {"step": 1, "a": "NaN", "b": "Infinity", "c": "-Infinity", "d": 1.5}


def test_a_line_is_on_disk_as_soon_as_it_is_written(tmp_path):
    with metrics.MetricWriter(tmp_path, resume_step=None) as writer:
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


def test_disabled_writer_leaves_no_trace(tmp_path):
    folder = tmp_path / "run"
    with metrics.MetricWriter(folder, resume_step=None, enabled=False) as writer:
        writer.write(1, {"a": 1.0})
    assert not folder.exists()


@pytest.mark.parametrize("value", [np.zeros(2), "0.5", None, 1j])
def test_a_value_that_is_no_number_is_refused_by_name(tmp_path, value):
    with (
        metrics.MetricWriter(tmp_path, resume_step=None) as writer,
        pytest.raises(ValueError, match="actor/entropy"),
    ):
        writer.write(1, {"actor/entropy": value})


def test_steps_never_go_back(tmp_path):
    with metrics.MetricWriter(tmp_path, resume_step=None) as writer:
        writer.write(2, {"a": 1.0})
        with pytest.raises(ValueError, match="step 1 comes after step 2"):
            writer.write(1, {"a": 1.0})
        with pytest.raises(ValueError, match="'step'"):
            writer.write(3, {"step": 1.0})
    with pytest.raises(ValueError, match="resume_step"):
        metrics.MetricWriter(tmp_path, resume_step=-1)


def test_reading_says_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match="no metrics at"):
        metrics.read_metrics(tmp_path)
    file = tmp_path / metrics.METRICS_FILE
    file.write_text('{"step": 1, "a": 1}\n{"step": 2, "a"\n{"step": 3, "a": 3}\n')
    with pytest.raises(ValueError, match="line 2 is not a row"):
        metrics.read_metrics(file)
    file.write_text('{"step": 1, "a": 1}\n{"a": 2}\n{"step": 3, "a": 3}\n')
    with pytest.raises(ValueError, match="line 2 is not a row"):
        metrics.read_metrics(file)


def test_a_torn_last_line_is_left_out(tmp_path):
    file = tmp_path / metrics.METRICS_FILE
    file.write_text('{"step": 1, "a": 1}\n{"step": 2, "a": 2')
    np.testing.assert_array_equal(metrics.read_metrics(file)["a"], [1.0])
    file.write_text("")
    assert metrics.read_metrics(file)["step"].shape == (0,)


def test_finite_or_raise_names_step_and_terms():
    fine = {
        "actor/pg_loss": 0.1,
        "actor/grad_norm": 2.0,
        "gate/log_ratio_non_finite": 0,
        "is_ratio/max": math.inf,
    }
    metrics.finite_or_raise(3, fine)
    for name, value in [
        ("actor/pg_loss", math.nan),
        ("actor/grad_norm", math.inf),
        ("gate/log_ratio_non_finite", 2),
        ("gate/log_ratio_non_finite", math.nan),
    ]:
        with pytest.raises(FloatingPointError, match=f"step 3 .*{name} = "):
            metrics.finite_or_raise(3, fine | {name: value})


def test_every_documented_metric_has_unit_and_meaning():
    assert len(set(metrics.METRICS.values())) == len(metrics.METRICS)
    for name, metric in metrics.METRICS.items():
        assert metric.unit and metric.meaning, name
    assert (
        metrics.describe("gate/clip_fraction/domain")
        == metrics.METRICS["gate/clip_fraction/<level>"]
    )
    assert metrics.describe("gate/channel/domain/plus").unit == "nats"
    assert metrics.describe("reward/sort").unit == "reward"
    assert metrics.describe("reward/std").meaning != metrics.describe("reward/sort").meaning
    assert metrics.describe("something/else") == metrics.Metric("", "")
