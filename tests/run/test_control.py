"""Budgets or steps that follow the run: their factor, what it widens, and that a run resumes it."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fiberjax import gates
from fiberjax.experiment import make_control
from fiberjax.gates.config import BY_LEVEL
from fiberjax.options import Control, Diagnostics, parse
from fiberjax.presets import PRESETS, preset
from fiberjax.run import loop, metrics
from fiberjax.run.control import EFFECTIVE_SAMPLE_SIZE, KL, Controller, moved
from fiberjax.run.trainer import Trainer

LEVELS = ("trajectory", "group", "domain")
OFF = {"of": "budgets", "kind": "none", "target": 0.0, "gain": 1.0, "end": 1.0, "largest": 100.0}


def control(**changed) -> Control:
    return parse(Control, {**OFF, **changed}, "config.control")


@pytest.mark.parametrize("power", [1.0, 2.0])
@pytest.mark.parametrize("start", [0.02, 1.0, 50.0])
def test_a_kl_in_proportion_to_a_power_of_the_budgets_is_held(power, start):
    # The controller assumes a power of 2, and needs no more than that it is not far off.
    found = Controller(control(kind="kl", target=0.01, gain=0.7), 40)
    for iteration in range(40):
        found.observe(iteration, {KL: 0.01 * (found.factor / start) ** power})
    assert found.factor == pytest.approx(start, rel=0.02)


def test_an_effective_sample_size_is_held():
    found = Controller(control(kind="effective_sample_size", target=0.8), 40)
    for iteration in range(40):
        found.observe(iteration, {EFFECTIVE_SAMPLE_SIZE: 1 - 0.2 * (found.factor / 3) ** 2})
    assert found.factor == pytest.approx(3.0, rel=1e-3)


def test_a_line_from_one_to_the_end():
    found = Controller(control(kind="anneal", end=0.2), 5)
    factors = []
    for iteration in range(5):
        factors.append(found.factor)
        found.observe(iteration, {})
    np.testing.assert_allclose(factors, [1.0, 0.8, 0.6, 0.4, 0.2])


@pytest.mark.parametrize("drift", [0.0, -1e-9, math.nan, math.inf])
def test_what_cannot_be_measured_moves_the_factor_by_two_at_most(drift):
    factor = moved(1.0, drift, 0.01, control(kind="kl", target=0.01))
    assert factor == pytest.approx(2.0 if drift <= 0 else 0.5)


def test_the_factor_stays_within_its_bounds():
    options = control(kind="kl", target=0.01, largest=3.0)
    assert moved(2.9, 1e-9, 0.01, options) == 3.0
    assert moved(0.34, 1e9, 0.01, options) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"of": "rates"}, "of must be one of budgets, steps"),
        ({"kind": "ess"}, "kind must be one of none, anneal, kl, effective_sample_size"),
        ({"kind": "kl"}, "target must be a KL above 0"),
        ({"kind": "effective_sample_size", "target": 1.0}, r"a fraction in \(0, 1\)"),
        ({"gain": 0.0}, r"gain must be in \(0, 1\]"),
        ({"end": 0.0}, "end must be positive"),
        ({"largest": 0.5}, "largest must be at least 1"),
    ],
)
def test_what_cannot_be_held_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        control(**changed)


def test_what_is_followed_is_measured_in_every_iteration():
    gate, _ = gates.from_config(preset("silent_domain"), LEVELS)
    followed = OFF | {"kind": "effective_sample_size", "target": 0.8}
    assert make_control(followed, gate, Diagnostics(1)).target == 0.8
    with pytest.raises(ValueError, match=r"expected config\.diagnostics\.every = 1, got 5"):
        make_control(followed, gate, Diagnostics(5))
    make_control(followed | {"kind": "kl"}, gate, Diagnostics(0))


@pytest.mark.parametrize("name", PRESETS)
def test_widths_alone_are_widened(name):
    gate, budgets = gates.from_config(preset(name), LEVELS)
    wider = gate.widened(budgets, 0.5)
    assert wider.keys() == budgets.keys()
    for key, value in budgets.items():
        expected = jax.tree.map(lambda x, key=key: x * (0.5 if key in gate.widths else 1), value)
        jax.tree.map(np.testing.assert_allclose, wider[key], expected)
    assert ("budgets" in gate.widths) == (gate.spec.budgets.get("budgets") is BY_LEVEL)


def test_a_factor_is_what_it_would_be_to_set_the_budgets():
    layout = make_small_layout()
    gate, budgets = gates.from_config(preset("silent_domain"), LEVELS)
    config = preset("silent_domain")
    config["epsilon"] = 3 * 0.2
    for level in config["levels"].values():
        level["budget"] = tuple(3 * bound for bound in level["budget"])
    _, wider = gates.from_config(config, LEVELS)
    drift = jnp.linspace(-1, 1, 12).reshape(3, 4) * 1e-3
    args = (drift, jnp.ones((3, 4)), layout)
    np.testing.assert_allclose(gate(*args, gate.widened(budgets, 3)), gate(*args, wider))
    assert not np.allclose(gate(*args, budgets), gate(*args, wider))


def make_small_layout():
    from fiberjax.layout import make_layout

    cells = {"group": np.array([0, 0, 1]), "domain": np.array([0, 0])}
    return make_layout(np.ones((3, 4), bool), cells)


def test_a_gate_without_a_width_is_refused(build):
    with pytest.raises(ValueError, match=r"config\.control\.kind = 'kl', but the gate"):
        build("importance", control__kind="kl", control__target=0.01)


def test_a_control_multiplies_what_it_is_of(build):
    knobs = {}
    for of in ("budgets", "steps"):
        built = build("silent_domain", control__of=of, control__kind="anneal")
        knobs[of] = built.knobs_at(0.25)
    wider = built.gate.widened(built.knobs.budgets, 0.25)
    assert knobs["steps"].step_factor == np.float32(0.25) and knobs["budgets"].step_factor is None
    for of, expected in (("steps", built.knobs.budgets), ("budgets", wider)):
        jax.tree.map(np.testing.assert_array_equal, knobs[of].budgets, expected)
    # A gate without budgets has steps all the same.
    build("importance", control__of="steps", control__kind="anneal")


@pytest.mark.parametrize(("of", "name"), [("budgets", "gate/budget"), ("steps", "actor/step")])
def test_a_run_follows_its_kl_and_resumes_bitwise(build, tmp_path, monkeypatch, of, name):
    built = build(
        "silent_domain",
        iterations=3,
        control__of=of,
        control__kind="kl",
        control__target=1e-4,
        warm_start__steps=20,
    )
    loop.train(built, tmp_path / "whole")
    whole = metrics.read_metrics(tmp_path / "whole" / "metrics.jsonl")
    factors = whole[f"{name}_factor"]
    assert factors[0] == 1
    for before, drift, after in zip(factors, whole[KL], factors[1:], strict=False):
        assert after == pytest.approx(moved(before, drift, 1e-4, built.control)) != before

    class Killed(Exception):
        pass

    iterate = Trainer.iterate

    def until_the_first(self, state, stream, iteration, factor):
        if iteration == 1:
            raise Killed
        return iterate(self, state, stream, iteration, factor)

    to_host = loop.Begun.to_host

    def as_before(self, experiment):
        """What is saved, under the name that it had in earlier versions."""
        host = to_host(self, experiment)
        return {"budget_control" if name == "control" else name: of for name, of in host.items()}

    if of == "budgets":
        monkeypatch.setattr(loop.Begun, "to_host", as_before)
    monkeypatch.setattr(Trainer, "iterate", until_the_first)
    with pytest.raises(Killed):
        loop.train(built, tmp_path / "cut")
    monkeypatch.undo()
    loop.train(built, tmp_path / "cut")
    cut = metrics.read_metrics(tmp_path / "cut" / "metrics.jsonl")
    for name, values in whole.items():
        if not name.startswith(("timing/", "perf/")):
            np.testing.assert_array_equal(cut[name], values, err_msg=name)
