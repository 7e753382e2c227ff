"""What was run is found again, resumed, summed up and drawn; and nothing that was not run is."""

import json
import math

import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments.study import draw, early_warning, halving, pictures, records, run, summary
from experiments.study.figures import FIGURES
from experiments.study.settings import BASE, PINNED, SEEDS, TODAY, TUNING_SEEDS, Replay, Setting
from fiberjax.presets import PRESETS, preset


def made(setting, after=(0.6, 0.7), *, collapsed=None, **metrics):
    """A record as the laboratory writes it, with made-up numbers."""
    rows = [(0, 0.5), *((5 * i, value) for i, value in enumerate(after, start=1))]
    given = {"reward/mean": [0.5, 0.6], "actor/ppo_kl_k3": [0.01, 0.02]} | metrics
    return {
        "method": setting.method,
        "setting": setting.identity(),
        "gate": setting.numbers() if setting.gate in PRESETS else {},
        "collapsed": collapsed,
        "held_out": [
            {"iteration": at, "mean@4": value, "mean@4 by domain": {}, "pass@4": 0.9}
            for at, value in rows
        ],
        "metrics": given,
        "seconds": 90.0,
        "cpu_seconds": 100.0,
    }


def configured(setting):
    """Of the config what the queue reads; budgets that were overridden left out."""
    return ConfigDict({"gate": preset(setting.gate)})


def nothing(setting):
    return None


ONE, TWO = Setting("GRPO", "grpo"), Setting("GSPO", "gspo")


def test_the_queue_skips_what_is_made_takes_each_once_and_says_what_is_absent():
    absent = Setting("own", "fibrepo")
    settings = [ONE, TWO, ONE, ONE.at(1), absent]
    todo = run.queue(settings, [made(TWO)], configured)
    assert todo.waiting == [ONE, ONE.at(1)]
    assert [record["setting"]["gate"] for record in todo.made] == ["gspo"]
    assert list(todo.absent) == ["own"] and "fibrepo" in todo.absent["own"]
    # Another number of the gate is another run.
    other = made(TWO)
    other["gate"]["clip_high"] = 1.0
    assert run.queue([TWO], [other], configured).waiting == [TWO]


def test_an_option_that_is_newer_than_a_run_had_its_default_there():
    published = Setting("published", "fiberpo_domain")
    old = made(published)
    for name in ("deviation", "upper_negative"):
        del old["gate"][name]
    assert records.find([old], published) is old
    for option in ({"gate.deviation": "ratio"}, {"gate.upper_negative": 20.0}):
        assert records.find([old], Setting("another", "fiberpo_domain", option)) is None


class Recorder:
    """A laboratory that runs nothing."""

    config = staticmethod(configured)

    def __init__(self):
        self.ran = []

    def run(self, setting, shares=None):
        self.ran.append((setting, shares))
        return made(setting, **{"actor/open_share": [0.25] * 15})


@pytest.fixture
def figure(monkeypatch):
    class Named:
        value = "table"

    monkeypatch.setattr(run, "FIGURE", Named)
    monkeypatch.setattr(run, "commit", lambda: "of a test")


def test_a_queue_goes_on_after_a_kill(figure, tmp_path):
    first, second = Recorder(), Recorder()
    assert run.make([ONE, TWO], tmp_path, first, None)
    file = tmp_path / "table.jsonl"
    whole = file.read_text()
    file.write_text(whole[: whole.index("\n") + 40])  # Killed while it wrote the second.
    todo = run.queue([ONE, TWO, ONE.at(1)], records.read(tmp_path), configured)
    assert todo.waiting == [TWO, ONE.at(1)]
    assert run.make(todo.waiting, tmp_path, second, None)
    assert [setting for setting, _ in second.ran] == [TWO, ONE.at(1)]
    assert len(records.read(tmp_path)) == 3
    assert not run.queue([ONE, TWO, ONE.at(1)], records.read(tmp_path), configured).waiting
    assert not run.make([TWO.at(1)], tmp_path, second, until=0.0)  # Its time is up.
    assert len(second.ran) == 2


def test_a_replay_waits_for_the_run_that_it_replays(figure, tmp_path, capsys):
    laboratory, replay = Recorder(), Setting("replay", "gspo", replay=Replay(ONE, "mean"))
    assert run.make([replay], tmp_path, laboratory, None)
    assert "left out: replay" in capsys.readouterr().out and not laboratory.ran
    assert run.make([ONE, replay], tmp_path, laboratory, None)
    assert laboratory.ran == [(ONE, None), (replay, [0.25] * 15)]
    varying = made(ONE, **{"actor/open_share": [0.1, 0.3]})
    assert records.shares(varying, "sequence", 2) == [0.1, 0.3]
    assert records.shares(varying, "mean", 2) == pytest.approx([0.2, 0.2])
    with pytest.raises(ValueError, match="has no actor/open_share of 3 iterations"):
        records.shares(varying, "mean", 3)


def test_a_pinned_option_finds_the_runs_from_before_it_was_named(tmp_path):
    old = made(ONE)
    for path in PINNED:
        del old["setting"]["options"][path]
    records.append(tmp_path / "table.jsonl", old)
    (record,) = records.read(tmp_path)
    assert records.find([record], ONE) is record
    whole = Setting("GRPO", "grpo", {"training.packing": False})
    assert records.find([record], whole) is None


def test_pins_are_what_the_quickstart_has():
    from configs import quickstart

    config = json.loads(quickstart.get_config("grpo").to_json_best_effort())
    for path, value in PINNED.items():
        had = config
        for name in TODAY.get(path, path).split("."):
            had = had[name]
        if path == "budget_control":  # What it had since the runs were made is filled in.
            had = {name: had[name] for name in value}
        assert had == value, path


def test_a_cell_says_what_its_runs_say():
    shares = {"actor/open_share": [0.2, 0.4]}
    runs = (
        made(ONE, (0.8, 0.6), **shares, **{"actor/ppo_kl_k3": [0.5, None]}),
        made(ONE.at(1), (0.7, 0.8), **shares),
    )
    row = summary.row(summary.Cell("GRPO", (), runs))
    assert row.before == 0.5 and row.passed == pytest.approx(0.9)
    half = 12.7062 * 0.1 / math.sqrt(2) * math.sqrt(2)  # Student's t of one degree of freedom.
    assert row.after.value == pytest.approx(0.7)
    assert row.after.high - row.after.value == pytest.approx(half, rel=1e-4)
    assert row.kl == (0.01, 0.5) and row.open_share == pytest.approx(0.3)
    assert row.collapsed == 1  # 0.6 is more than a tenth below 0.8.
    assert math.isinf(summary.row(summary.Cell("GRPO", (), runs[:1])).after.high)
    broken = made(ONE, (0.8, None), collapsed="step 2 is not finite: actor/grad_norm = nan")
    assert summary.row(summary.Cell("GRPO", (), (broken,))).after.value == 0.0
    good = made(ONE, (0.8,), collapsed="step 2 is not finite: actor/grad_norm = nan")
    assert summary.collapsed(good) and not summary.collapsed(made(ONE, (0.8,)))


def test_a_run_is_found_by_the_numbers_of_its_gate_wherever_they_stand():
    old, new, again = made(ONE), made(ONE.at(1)), made(ONE.at(1), (0.6, 0.9))
    old["gate"]["clip_low"] = 0.1  # The preset has been changed since.
    (cell,) = summary.cells([ONE, ONE.at(1), TWO], [old, new, again])
    assert cell.runs == (again,)
    assert records.find([old], ONE) is None
    assert records.find([old], ONE.at(0, gate__clip_low=0.1)) is old
    assert records.find([made(ONE.at(0, gate__clip_low=0.1))], ONE) is None


def test_missing_cells_are_blank_and_said_to_be_missing(tmp_path):
    settings = [s for s in FIGURES["noise"](1, nothing) if s.method in ("GRPO", "GSPO")]
    wanted = [s for s in settings if not (s.method == "GSPO" and s.axis["σ"] == 0.1)]
    few = [s for s in wanted if s.axis["σ"] <= 0.1 and s.seed == 0]
    for setting in few:
        records.append(tmp_path / "noise.jsonl", made(setting))
    found = records.read(tmp_path)
    page = draw.page(["noise"], found, tmp_path / "images", tmp_path)
    lines = [line for line in page.splitlines() if line.startswith("| G")]
    assert len(lines) == 5 == len(few)
    assert (
        "| GRPO | 0.1 | 1 | 0.500 | 0.700 | 0.900 | 0.01 to 0.02 |  | 0.600 | 0.600 | no |" in page
    )
    missing = next(line for line in page.splitlines() if line.startswith("No run yet"))
    assert "GSPO (σ = 0.3; σ = 0.1)" in missing and "GRPO (σ = 0.3)" in missing
    for name in ("learning", "kl", "map"):
        assert f"](images/noise_{name}.png)" in page
        assert (tmp_path / "images" / f"noise_{name}.png").stat().st_size > 5000
    assert draw.page(["hard"], found, tmp_path / "none", tmp_path).count("## ") == 0


def test_a_map_draws_the_cells_that_are_there(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(pictures, "_save", lambda figure, path: drawn.append(figure))
    cells = [
        summary.Cell("GRPO", (("σ", 0.1),), (made(ONE, (0.6, 0.3)),)),
        summary.Cell("GSPO", (("σ", 0.0),), (made(TWO),)),
    ]
    pictures.collapse_map(cells, tmp_path / "map.png")
    axes = drawn[0].axes[0]
    assert [text.get_text() for text in axes.texts] == ["0.30†", "0.70"]
    np.testing.assert_array_equal(axes.images[0].get_array().filled(-1), [[-1, 0.3], [0.7, -1]])
    assert pictures.collapse_map([summary.Cell("GRPO", (), (made(ONE),))], tmp_path / "x") is None


def test_pairs_are_of_one_place_and_seed():
    def cell(method, rate, *runs):
        made_ = tuple(made(ONE.at(seed), (0.5, after)) for seed, after in runs)
        return summary.Cell(method, (("η", rate),), made_)

    ours, alone = draw.OURS, draw.ALONE.method
    cells = [
        cell(ours, 3e-3, (0, 0.8), (1, 0.75), (2, 0.1)),
        cell(alone, 3e-3, (0, 0.6), (1, 0.8)),
        cell(ours, 1e-2, (0, 0.5)),
        cell(alone, 3e-2, (0, 0.4)),
    ]
    assert summary.pairs(cells, ours, alone) == pytest.approx([0.2, -0.05])
    text = draw.levels([cells])[-1]
    assert f"| {alone} | 2 | 0.075" in text and text.endswith("| 1 |")
    assert draw.levels([cells[:1]]) == []


def test_ends_are_drawn_over_drift(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(pictures, "_save", lambda figure, path: drawn.append(figure))
    still = made(ONE.at(2, optimizer__b1=0.0), (0.6, 0.9), **{"actor/ppo_kl_k3": [0.001, None]})
    flat = made(ONE.at(1), (0.6, 0.5), **{"actor/ppo_kl_k3": [0.0]})
    far = made(TWO, (0.7, 0.2), **{"actor/ppo_kl_k3": [0.1, 0.3]})
    one, two = summary.Cell("GRPO", (), (still, flat)), summary.Cell("GSPO", (), (far,))
    pictures.drift_and_end([one, two], tmp_path / "drift.png")
    lines = drawn[0].axes[0].get_lines()
    points = {
        (round(x, 6), y, line.get_color(), line.get_markerfacecolor())
        for line in lines
        for x, y in zip(*line.get_data(), strict=True)
    }
    first, second = pictures.COLOURS[:2]
    assert points == {(0.001, 0.9, first, "none"), (0.2, 0.2, second, second)}


def test_a_metric_warns_where_it_leaves_the_band_of_the_runs_that_do_not_collapse():
    rewards = {"reward/mean": [0.5, 0.6, 0.7, 0.6, 0.4, 0.2]}
    sound = [
        made(
            ONE.at(seed),
            **{"reward/mean": [0.5] * 6, "early": [1.0 + seed / 10] * 6, "late": [0.0] * 6},
        )
        for seed in range(3)
    ]
    fallen = made(
        TWO, (0.7, 0.2), early=[1.1, 1.1, 9.0, 1, 1, 1], late=[0, 0, 0, None, 0, 0], **rewards
    )
    assert early_warning.falls(fallen) == 4
    found = early_warning.warnings([*sound, fallen])
    by_name = {of.metric: of for of in found}
    assert by_name["early"].iteration == 3 and by_name["early"].lead == 1
    assert by_name["late"].iteration == 4 and by_name["late"].lead == 0
    assert by_name["early"].false == pytest.approx(2 / 3)  # The least and the largest of three.
    assert by_name["late"].false == 0
    assert "actor/ppo_kl_k3" not in by_name  # It never left its band.
    assert [of.metric for of in found] == ["late", "early"]  # Fewer false alarms first.
    assert early_warning.warnings(sound) == [] == early_warning.warnings([fallen])


def test_the_first_seeds_of_a_stage_are_begun_with():
    settings = FIGURES["noise"](2, nothing)
    first = run.first_seeds(settings, 1)
    assert {s.seed for s in first} == {SEEDS[0]} and len(first) == len(settings) / 5
    assert run.first_seeds(settings, None) == settings


def test_a_duel_is_over_places_and_counts_a_run_once():
    def cell(method, place, *ends):
        runs = [made(ONE.at(seed), (end,)) for seed, end in ends]
        return summary.Cell(method, (("η", place),), tuple(runs))

    grid = {
        "rates": [
            cell("ours", 1, (0, 0.8), (1, 0.6)),
            cell("other", 1, (0, 0.7), (1, 0.6), (2, 0.1)),  # Seed 2 has no partner.
            cell("ours", 2, (3, 0.5)),
            cell("other", 2, (3, 0.7)),
            cell("ours", 3, (4, 0.5)),
        ]
    }
    found = summary.duel(grid, "ours", "other")
    assert found.difference.value == pytest.approx((0.05 - 0.2) / 2)
    assert (found.places, found.pairs, found.won) == (2, 3, 1)
    assert found.worst == (pytest.approx(-0.2), "rates, η = 2")
    assert summary.duel({**grid, "again": grid["rates"]}, "ours", "other") == found
    assert summary.duel(grid, "ours", "nobody") is None
    text = "\n".join(draw.duels({"rates": [cell(draw.OURS, 1, (0, 0.8)), cell("b", 1, (0, 0.7))]}))
    assert "| b | 1 | 1 | 0.100 | 1 of 1 | +0.100 (rates, η = 1) |" in text


def test_halving_gives_every_method_the_same_trials_on_seeds_of_their_own():
    trials = halving.candidates()
    assert {len(of) for of in trials.values()} == {halving.TRIALS}
    first = halving.settings(nothing)
    assert len(first) == halving.TRIALS * len(trials)
    assert {setting.options["iterations"] for setting in first} == {halving.SHORT}
    best = trials["GRPO"][2].method
    score = {setting.method: 0.5 for of in trials.values() for setting in of}
    score |= {best: 0.8, trials["GRPO"][5].method: 0.7, trials["GRPO"][0].method: 0.6}

    def find(setting):
        return made(setting, (score[setting.method],))

    second = [s for s in halving.settings(find) if s not in first]
    of_grpo = [setting for setting in second if setting.gate == "grpo"]
    kept = [trials["GRPO"][i].method for i in (2, 5)]
    assert [setting.method for setting in of_grpo] == kept * len(TUNING_SEEDS)
    assert halving.settings(find)[: halving.TRIALS] == first[: halving.TRIALS]
    assert halving.settings(find)[halving.TRIALS] == of_grpo[0]  # Before the next method's.
    assert {setting.seed for setting in (*first, *second)} == set(TUNING_SEEDS)
    assert not set(TUNING_SEEDS) & set(SEEDS)
    assert all(setting.options["iterations"] == BASE["iterations"] for setting in second)
    assert halving.chosen(find)["GRPO"].method == best
    assert halving.chosen(nothing) == {}


def test_a_run_is_one_process_s_to_make(tmp_path):
    with run.claim(TWO, tmp_path) as mine:
        with run.claim(TWO, tmp_path) as again, run.claim(TWO.at(7), tmp_path) as other:
            assert mine and other and not again
    with run.claim(TWO, tmp_path) as mine:
        assert mine


def test_every_figure_has_two_seeds_and_then_five():
    for name, figure in FIGURES.items():
        for stage, seeds in ((1, SEEDS[:2]), (2, SEEDS)):
            settings = figure(stage, nothing)
            if name == "own_rates":  # Nothing before the trials that it chooses from.
                assert settings == ()
                continue
            tuned = name in ("budgets", "tuning", "rate_trials")
            assert {s.seed for s in settings} == set(TUNING_SEEDS[:1] if tuned else seeds)
            for setting in settings:
                json.dumps(setting.identity(), allow_nan=False)
    staleness = {s.axis["S"] for s in FIGURES["staleness"](1, nothing)}
    updates = {s.axis["N"] for s in FIGURES["updates"](1, nothing)}
    assert staleness == {0, 4, 16, 64} and updates == {1, 4, 16, 32, 64}
    for setting in FIGURES["staleness"](2, nothing):
        per_batch = setting.options["training.epochs"] * setting.options["training.minibatches"]
        assert setting.axis["S"] == setting.staleness * per_batch
    for setting in FIGURES["updates"](2, nothing):
        epochs, minibatches = (
            setting.options[f"training.{name}"] for name in ("epochs", "minibatches")
        )
        assert setting.axis["N"] == epochs * minibatches
