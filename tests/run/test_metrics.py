import numpy as np
import pytest

from fiberjax.run import metrics


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
