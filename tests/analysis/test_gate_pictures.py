"""Pictures of gates: what they draw is what the gates do, and no two panels are alike."""

import itertools

import numpy as np
import pytest

import fiberjax as fj
from fiberjax.analysis import gate_pictures

DRIFT = np.array([-2.0, -0.5, 0.0, 0.1, 0.5, 2.0])


@pytest.fixture(scope="module")
def gates():
    """Those that the curves of a notebook show."""
    return {
        "PPO": fj.gate("ppo"),
        "CISPO": fj.gate("cispo", clip_low=0.5, clip_high=1.0),
        "SAPO": fj.gate("sapo"),
        "FiberPO": fj.gate("fiberpo", trajectory=0.1, epsilon=0.4),
    }


def test_slopes_are_those_of_the_methods(gates):
    ratio = np.exp(DRIFT)
    found = {name: gate_pictures.slopes(gate, DRIFT, 1.0) for name, gate in gates.items()}
    np.testing.assert_allclose(found["PPO"], np.where(ratio <= 1.2, ratio, 0), rtol=1e-6)
    np.testing.assert_allclose(found["CISPO"], np.clip(ratio, 0.5, 2.0), rtol=1e-6)
    for of in found.values():
        assert of[2] == pytest.approx(1, abs=1e-6)  # On-policy no gate is in the way.
    # One token of eight: its own gate lets go at 0.4 + 0.5/8, the trajectory's at 0.8 nats.
    assert found["FiberPO"][4] < ratio[4] / 2 and found["FiberPO"][5] < 0
    bad = gate_pictures.slopes(gates["PPO"], DRIFT, -1.0)
    np.testing.assert_allclose(bad, np.where(ratio >= 0.8, ratio, 0), rtol=1e-6)


def test_no_two_panels_are_alike_and_each_has_its_legend(gates):
    picture = gate_pictures.curves(gates, across=2)
    drawn = [np.concatenate([line.get_ydata() for line in ax.lines[1:3]]) for ax in picture.axes]
    for first, second in itertools.combinations(drawn, 2):
        assert np.abs(first - second).max() > 0.1
    assert [ax.get_title(loc="left") for ax in picture.axes] == list(gates)
    for ax in picture.axes:
        texts = [text.get_text() for text in ax.get_legend().get_texts()]
        assert texts == ["no gate", "advantage > 0", "< 0"]
        np.testing.assert_allclose(ax.lines[0].get_ydata(), np.exp(ax.lines[0].get_xdata()))
        dashes = {line.get_linestyle() for line in ax.lines[:3]}
        assert len(dashes) == 3  # Told apart in print.


def test_the_gates_of_a_cell_fall_back_with_their_slopes():
    left, right = gate_pictures.base_gates(0.1, sizes=(1, 8)).axes
    assert len(left.lines) == len(right.lines) == 5  # Two sizes, hold, and two bounds.
    assert {-8.0, 0.0, 1.0} == set(np.unique(right.lines[1].get_ydata()).round(3))
    assert left.lines[2].get_ydata().max() == pytest.approx(0.1)
    assert left.get_legend() is not None and right.get_legend() is not None


def test_own_signals_are_those_of_paris_and_rome():
    words = "I love Paris and the Eiffel Tower I love Rome and the Colosseum".split()
    log_ratio = np.array([0, 0, 0.34, 0.30, 0.29, 0.33, 0.31, 0, 0, -0.02, 0.01, -0.01, 0.02])
    layout = fj.make_layout(np.ones(13, bool), cell_id=np.repeat([0, 1], [7, 6]))
    ppo = fj.gate("ppo")
    signal = gate_pictures.own_signal(ppo, log_ratio, layout)
    assert np.all(signal[2:7] == 0) and round(float(signal[12]), 2) == 1.02
    upper, lower = gate_pictures.own_signals({"PPO": ppo}, log_ratio, words, layout).axes
    assert [text.get_text() for text in lower.get_xticklabels()] == words
    heights = [bar.get_height() for bar in lower.patches]
    np.testing.assert_allclose(heights, signal)
    assert [text.get_text() for text in upper.texts] == ["0.224", "0.005"]
