"""What of a run's config may change when it is resumed, and what becomes of the run then."""

import copy
import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import quickstart
from fiberjax.run import changes, checkpoints, identity, loop
from fiberjax.run.changes import Change
from fiberjax.run.metrics import read_metrics
from fiberjax.run.trainer import Trainer

FLAT = {"curriculum__start": 0.5, "curriculum__end": 0.5}


def options(config, above=""):
    """Every option by its dotted path, as JSON."""
    found = {}
    for name, value in config.items():
        inner = isinstance(value, dict) and value
        found |= options(value, f"{above}{name}.") if inner else {f"{above}{name}": value}
    return found


@pytest.fixture
def config():
    return json.loads(quickstart.get_config().to_json_best_effort())


def kind(config, option, before, after):
    return changes.rule_of(Change(option, before, after), config).kind


def test_every_option_has_its_class(config):
    by_kind = {"free": set(), "logged": set(), "fixed": set()}
    for option, value in options(config).items():
        by_kind[kind(config, option, value, value)].add(option)
    sections = ("checkpoint.", "diagnostics.", "evaluation.", "keep.", "stop.")
    assert by_kind["free"] == {
        *(option for option in options(config) if option.startswith(sections)),
        *("writers", "tasks.data_dir", "warm_start.directory", "training.unpaid_iterations"),
        *("rewards.workers", "rewards.golds", "rewards.shown"),
        *(f"server.{name}" for name in ("url", "model", "folder", "reload", "reload_body")),
        *(f"server.{name}" for name in ("timeout", "retries", "concurrency")),
    }
    assert by_kind["logged"] == {
        *("optimizer.learning_rate", "rollout.resample", "rollout.max_rows", "rollout.slots"),
        *("rollout.engine", "rollout.cache_dtype", "server.dtype", "training.nonfinite"),
        *("rollout.lag", "rollout.devices"),
        *(f"rewards.{name}" for name in ("seconds", "megabytes", "failed", "truncated")),
        *("rewards.overlong_cache", "rewards.overlong_from"),
        *("gate.epsilon", "gate.weight_cap"),
        *(f"gate.levels.{level}.budget" for level in ("trajectory", "group", "domain")),
        *(f"control.{name}" for name in ("target", "gain", "end", "largest")),
        *("training.entropy_coefficient", "training.kl_coefficient", "training.router_replay"),
        "training.target_kl",
        *("training.micro_batches", "training.packing", "training.chunk"),
        *("training.old_log_probs", "training.old_log_probs_gap"),
        *("mesh.data", "mesh.fsdp", "mesh.sequence", "mesh.tensor"),
    }
    assert {"seed", "iterations", "optimizer.schedule", "gate.name"} <= by_kind["fixed"]


def test_the_guide_lists_all_that_may_change_and_nothing_else(config):
    guide = Path(changes.__file__).parents[2] / "docs" / "troubleshooting.md"
    part = guide.read_text(encoding="utf-8").partition("may change when a run is resumed\n")[2]
    part = part.partition("| all others")[0]
    told = set(re.findall(r"`([\w.]+)`", part)) - {"RULES", "dtype"}
    for option, value in options(config).items():
        section = option.partition(".")[0]
        if section == "gate":
            continue
        fixed = kind(config, option, value, value) == "fixed" and option != "iterations"
        said = option in told or (section in told and option not in told)
        assert said != fixed, option


def test_a_budget_is_a_number_and_the_rest_of_a_gate_is_not(config):
    assert kind(config, "gate.clip_low", 0.2, 0.3) == "logged"
    assert kind(config, "gate.levels.group.budget", 0.1, [0.2, 0.1]) == "logged"
    for before, after in ((None, 0.1), (0.1, None), (False, True), ("drift", "residual")):
        assert kind(config, "gate.some", before, after) == "fixed"


def test_iterations_change_where_no_past_update_depends_on_them(config):
    def classed(schedule, start, end, control="none", lag=0):
        changed = copy.deepcopy(config)
        changed["optimizer"]["schedule"] = schedule
        changed["curriculum"] |= {"start": start, "end": end}
        changed["control"]["kind"] = control
        changed["rollout"]["lag"] = lag
        return kind(changed, "iterations", 30, 60)

    assert classed("constant", 0.5, 0.5) == classed("constant", 0.5, 0.5, "kl") == "free"
    assert classed("constant", 0.8, 0.2) == classed("constant", 0.5, 0.5, "anneal") == "logged"
    assert classed("constant", 0.5, 0.5, lag=1) == "logged"
    assert classed("linear", 0.5, 0.5) == classed("cosine", 0.8, 0.2) == "fixed"


def given(built_config, **values):
    """A config with other values, as JSON."""
    config = copy.deepcopy(built_config)
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in values.items()})
    return config.to_json_best_effort()


def test_what_is_fixed_is_refused_all_at_once_with_the_reason(build, make_config, tmp_path):
    built, config = build(), make_config()
    config.optimizer.schedule = "linear"
    identity.claim(tmp_path, built, config.to_json_best_effort())
    before = (tmp_path / "config.json").read_text()
    other = given(
        config, seed=1, iterations=9, rollout__samples=8, advantage="rloo", checkpoint__every=3
    )
    with pytest.raises(ValueError) as error:
        identity.claim(tmp_path, built, other)
    told = str(error.value)
    assert (
        "config.advantage ('grpo' there, 'rloo' here), config.iterations (4 there, 9 here), "
        in told
    )
    assert "config.rollout.samples (4 there, 8 here), config.seed (0 there, 1 here). " in told
    assert "config.advantage, config.rollout.samples: past updates were made with it" in told
    assert "config.iterations: the schedule's learning rates of past updates follow from it" in told
    assert "config.seed: every draw follows from it" in told
    assert told.endswith("Choose another --workdir, or give the same config to resume.")
    assert "checkpoint" not in told and "\n" not in told
    assert (tmp_path / "config.json").read_text() == before


def test_a_change_is_said_once_and_kept(build, make_config, tmp_path, capsys):
    built, config = build(), make_config()
    identity.claim(tmp_path, built, config.to_json_best_effort())
    identity.claim(tmp_path, built, given(config, checkpoint__every=7, evaluation__batch=8))
    assert capsys.readouterr().out == ""
    rate = {"optimizer__learning_rate": 0.001, "gate__levels__group__budget": (0.3, 0.2)}
    for _ in range(2):
        identity.claim(tmp_path, built, given(config, checkpoint__every=7, **rate))
    assert capsys.readouterr().out == (
        "from iteration 1: gate.levels.group.budget [0.06, 0.05] → [0.3, 0.2], "
        "optimizer.learning_rate 0.003 → 0.001\n"
    )
    saved = json.loads((tmp_path / "config.json").read_text())
    assert [(row["option"], row["before"], row["after"]) for row in saved["changes"]] == [
        ("checkpoint.every", 1, 7),
        ("evaluation.batch", 4, 8),
        ("evaluation.batch", 8, 4),
        ("gate.levels.group.budget", [0.06, 0.05], [0.3, 0.2]),
        ("optimizer.learning_rate", 0.003, 0.001),
    ]
    assert {row["iteration"] for row in saved["changes"]} == {1}
    read = identity.read_config(tmp_path)
    assert read.to_json_best_effort() == given(config, checkpoint__every=7, **rate)


@pytest.mark.looked
@pytest.mark.slow
def test_a_run_goes_on_with_what_was_changed(build, make_config, tmp_path, capsys):
    kept = {"checkpoint__keep": 9, "iterations": 3}

    def runs(name, **values):
        built = build(**values)
        identity.claim(tmp_path / name, built, given(make_config(), **values))
        before, state, _ = loop.train(built, tmp_path / name)
        return built, before, state

    built, _, _ = runs("whole", **kept)
    shutil.copytree(tmp_path / "whole", tmp_path / "changed")
    shutil.rmtree(tmp_path / "changed" / "checkpoints" / "3")
    capsys.readouterr()
    values = {
        "optimizer__learning_rate": 0.001,
        "gate__levels__trajectory__budget": (0.02, 0.01),
        "evaluation__samples": 3,
    }
    other, before, last = runs("changed", **kept, **values)
    assert "from iteration 3: gate.levels.trajectory.budget [" in capsys.readouterr().out
    assert set(before.by_name) == {"mean@3", "pass@3"}  # Measured again, to compare with.
    first, second = (read_metrics(tmp_path / name) for name in ("whole", "changed"))
    np.testing.assert_allclose(second["actor/learning_rate"], [0.003, 0.003, 0.001])
    for name in ("reward/mean", "actor/grad_norm", "actor/update_norm", "gate/clip_fraction/token"):
        np.testing.assert_array_equal(first[name][:2], second[name][:2], err_msg=name)
    assert first["actor/update_norm"][2] > 1.5 * second["actor/update_norm"][2]

    # The updates to come are those of the new values on the state that was there.
    with checkpoints.Checkpoints(tmp_path / "whole" / "checkpoints", keep=9) as saved:
        found = saved.restore(built.abstract_state(), 2)
    stream = other.prompt_stream()
    stream.set_state(found.host["stream"])
    expected, _ = Trainer(other, None).iterate(found.state, stream, 2)
    jax.tree.map(np.testing.assert_array_equal, last, expected)


def test_a_run_is_lengthened_as_if_it_had_been_longer(build, make_config, tmp_path, capsys):
    def runs(name, iterations):
        config = json.loads(given(make_config(), iterations=iterations, **FLAT))
        built = build(iterations=iterations, **FLAT)
        identity.claim(tmp_path / name, built, json.dumps(config))
        return loop.train(built, tmp_path / name)[1]

    runs("short", 1)
    lengthened, whole = runs("short", 2), runs("whole", 2)
    jax.tree.map(np.testing.assert_array_equal, lengthened, whole)
    assert "from iteration" not in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"config\.iterations = 1, but .*short has 2 already: exp"):
        runs("short", 1)
