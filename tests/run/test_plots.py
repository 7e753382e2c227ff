import math

import matplotlib.image
import numpy as np
import pytest

from fiberjax import diagnostics
from fiberjax.run import evaluation, metrics, plots, writers
from fiberjax.tasks import curriculum


def _write(folder, rows):
    with writers.open_writers(folder, resume_step=None) as writer:
        for step, row in enumerate(rows, start=1):
            writer.write(step, row)
    return folder


def _rows(steps, seed=0):
    rng = np.random.default_rng(seed)
    names = [name for name in metrics.METRICS if "<" not in name]
    names += ["reward/sort", "reward/addition"]
    names += [f"gate/clip_fraction/{level}" for level in ("token", "trajectory")]
    names += [f"is_ratio/effective_sample_size/{level}" for level in ("token", "trajectory")]
    names += [f"gate/quadrant/{name}" for name in diagnostics.QUADRANTS]
    names += [f"gate/regime/{r}" for r in diagnostics.GLOBAL_REGIMES + diagnostics.LOCAL_REGIMES]
    names += [f"curriculum/share/{n}" for n in curriculum.pass_rate_shares(np.zeros(1))]
    curves = [f"evaluation/{at}@4/{of}" for at in ("mean", "pass") for of in ("sort", "overall")]
    names += [f"{name}{end}" for name in curves for end in ("/low", "", "/high")]
    return [{name: rng.random() for name in names} for _ in range(steps)]


def _is_picture(path):
    """Whether there is something coloured beside the grey and black of empty axes."""
    pixels = matplotlib.image.imread(path)[..., :3]
    coloured = np.ptp(pixels, axis=-1) > 0.1
    return min(pixels.shape[:2]) > 200 and coloured.mean() > 1e-3


def test_a_full_run_gives_every_panel_and_the_overview(tmp_path):
    files = plots.plot_run(_write(tmp_path / "run", _rows(45)), tmp_path / "plots")
    expected = [f"{panel.file}.png" for panel in plots.PANELS] + ["overview.png"]
    assert [file.name for file in files] == expected
    assert all(_is_picture(file) for file in files)


def test_every_metric_is_drawn_or_has_a_reason_not_to_be():
    drawn = {name for panel in plots.PANELS for name in (*panel.names, panel.guide) if name}
    curves = {name for panel in plots.PANELS for name in panel.names if panel.kind == "curve"}
    drawn |= {f"{name}/{end}" for name in curves for end in ("low", "high")}
    drawn = {metrics.describe(name.replace("*", "any")) for name in drawn}
    for name, metric in metrics.METRICS.items():
        assert (metric in drawn) != (name in plots.NOT_DRAWN), name
    assert plots.NOT_DRAWN.keys() <= metrics.METRICS.keys() and all(plots.NOT_DRAWN.values())


def test_missing_metrics_leave_their_panels_out(tmp_path):
    rows = [{"reward/mean": 0.2, "gate/regime/G-II": 0.5}, {"is_ratio/mean": 1.1, "other": 1.0}]
    files = plots.plot_run(_write(tmp_path, rows), tmp_path / "plots")
    assert [file.stem for file in files] == [
        "reward",
        "importance_ratio",
        "regimes_global",
        "overview",
    ]


def test_values_that_cannot_be_drawn_are_skipped(tmp_path):
    rows = _rows(4)
    for name in rows[0]:
        rows[0][name], rows[1][name] = math.nan, math.inf
    rows[2]["actor/grad_norm"], rows[2]["is_ratio/min"] = 0.0, 0.0
    for row in rows:
        row["mismatch/log_prob_abs_mean"] = row["mismatch/log_prob_abs_max"] = 0.0
    files = plots.plot_run(_write(tmp_path, rows), tmp_path / "plots")
    assert "mismatch" not in [file.stem for file in files]
    assert len(files) == len(plots.PANELS)


def test_one_step_is_enough(tmp_path):
    assert plots.plot_run(_write(tmp_path, _rows(1)), tmp_path / "plots")


def test_pass_rate_panel_shows_domains_only(tmp_path):
    panel = next(panel for panel in plots.PANELS if panel.file == "pass_rate")
    columns = metrics.read_metrics(_write(tmp_path, _rows(2)))
    assert list(plots._series(panel, columns)) == ["reward/sort", "reward/addition"]


def test_running_mean():
    values = np.random.default_rng(0).random(100)
    smooth = plots.running_mean(values, "linear")
    assert smooth[50] == pytest.approx(values[48:53].mean())
    assert smooth[0] == pytest.approx(values[:3].mean())
    log = plots.running_mean(values, "log")
    assert log[50] == pytest.approx(np.exp(np.log(values[48:53]).mean()))
    assert plots.running_mean(values[:10], "linear") is not None
    np.testing.assert_array_equal(plots.running_mean(values[:10], "linear"), values[:10])


def test_a_run_without_anything_to_show_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no metrics at"):
        plots.plot_run(tmp_path, tmp_path / "plots")
    _write(tmp_path, [{"other": 1.0}])
    with pytest.raises(ValueError, match="no metrics to plot"):
        plots.plot_run(tmp_path, tmp_path / "plots")


def test_compare_lays_runs_side_by_side(tmp_path):
    runs = {name: _write(tmp_path / name, _rows(5, seed)) for seed, name in enumerate("abc")}
    out = plots.plot_compare(runs, ["reward/mean", "actor/grad_norm"], tmp_path / "new" / "c.png")
    assert _is_picture(out)
    assert _is_picture(plots.plot_compare(runs, "actor/entropy", tmp_path / "one.png"))
    with pytest.raises(ValueError, match="'actor/entropi'"):
        plots.plot_compare(runs, "actor/entropi", tmp_path / "no.png")
    with pytest.raises(ValueError, match="expected runs"):
        plots.plot_compare({}, "actor/entropy", tmp_path / "no.png")


def test_evaluation_bars(tmp_path):
    rng = np.random.default_rng(0)
    measures = [{"mean@1": rng.random(40), "pass@4": rng.random(40)} for _ in range(2)]
    domain = np.arange(40) % 3
    table = evaluation.compare(*measures, domain, names=("a", "b", "c"))
    assert _is_picture(plots.plot_evaluation(table, tmp_path / "evaluation.png"))
    # Means of real rewards, and of a domain of a single prompt, whose limits are infinite.
    for values in measures:
        values["mean@1"] = 5 * values["mean@1"] - 3
    domain[domain == 2] = 1
    domain[0] = 2
    table = evaluation.compare(*measures, domain, names=("a", "b", "c"))
    assert np.isinf(table.row("c", "mean@1").before.high)
    assert _is_picture(plots.plot_evaluation(table, tmp_path / "real.png"))
    with pytest.raises(ValueError, match="no rows"):
        plots.plot_evaluation(evaluation.EvaluationTable(()), tmp_path / "no.png")


def test_a_curve_is_drawn_at_its_points_alone(tmp_path):
    panel = next(panel for panel in plots.PANELS if panel.file == "curve_mean")
    rows = _rows(4)
    for row in (rows[0], rows[2]):
        for name in [name for name in row if name.startswith("evaluation/")]:
            del row[name]
    rows[1]["evaluation/mean@4/sort/low"] = -math.inf  # Of a single prompt.
    columns = metrics.read_metrics(_write(tmp_path, rows))
    assert list(plots._series(panel, columns)) == [
        *("evaluation/mean@4/sort", "evaluation/mean@4/overall")
    ]
    _, (axes,) = plots._grid(1, 1)
    plots.draw(axes, panel, columns)
    for line, name in zip(axes.lines, plots._series(panel, columns), strict=True):
        np.testing.assert_array_equal(line.get_xdata(), [2, 4])
        np.testing.assert_array_equal(line.get_ydata(), columns[name][[1, 3]])
    band = axes.collections[0].get_paths()[0].vertices
    low, high = (columns[f"evaluation/mean@4/sort/{end}"] for end in ("low", "high"))
    expected = [rows[1]["evaluation/mean@4/sort"], low[3], high[1], high[3]]
    assert set(expected) <= set(band[:, 1])


def test_shares_are_stacked_where_there_are_any(tmp_path):
    panel = next(panel for panel in plots.PANELS if panel.file == "curriculum")
    rows = [{"reward/mean": 0.5}, *_rows(3)]  # As the row of before the first iteration.
    columns = metrics.read_metrics(_write(tmp_path, rows))
    _, (axes,) = plots._grid(1, 1)
    plots.draw(axes, panel, columns)
    assert axes.get_xlim() == (2, 4) and len(axes.collections) == 5


@pytest.mark.parametrize(
    ("labels", "across"),
    [(["a", "b", "c", "d"], 4), (["number"] * 8, 3), (["a run's long name, rate 0.001"] * 5, 1)],
)
def test_a_legend_has_as_many_columns_as_fit(labels, across):
    _, (axes,) = plots._grid(1, 1)
    for label in labels:
        axes.plot([0, 1], label=label)
    plots.legend(axes)
    assert axes.get_legend()._ncols == across
