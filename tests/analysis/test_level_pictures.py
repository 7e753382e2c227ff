"""Pictures of hierarchies: cells, couplings, attribution, and what a budget touches."""

import jax
import numpy as np
import pytest

import fiberjax as fj
from fiberjax.analysis import level_pictures

LENGTH = np.array([3, 2, 3, 2])
MASK = np.arange(3) < LENGTH[:, None]
UP = np.ones(MASK.shape, np.float32)


@pytest.fixture(scope="module")
def layout():
    return fj.make_layout(MASK, {"group": np.array([0, 0, 1, 1]), "domain": np.array([0, 0])})


@pytest.fixture(scope="module")
def drift():
    """The first group drifts, its first trajectory most."""
    log_ratio = np.zeros(MASK.shape, np.float32)
    log_ratio[0], log_ratio[1] = 0.3, 0.05
    return log_ratio


@pytest.fixture(scope="module")
def gate():
    return fj.gate("fiberpo_domain", levels={"trajectory": 0.1, "group": 0.1, "domain": 0.1})


def test_cells_are_those_of_the_layout(layout):
    found = level_pictures.cell_ids(layout)
    assert found["trajectory"].tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 3, 3]
    assert found["group"].tolist() == [0] * 5 + [1] * 5 and found["domain"].tolist() == [0] * 10
    flat = fj.make_layout(np.ones(4, bool), cell_id=np.array([1, 1, 0, 0]))
    assert level_pictures.cell_ids(flat)["trajectory"].tolist() == [1, 1, 0, 0]
    (axes,) = level_pictures.cells(layout).axes
    assert [text.get_text() for text in axes.get_yticklabels()] == list(layout.levels)
    assert [text.get_text() for text in axes.texts] == ["0", "1", "2", "3", "0", "1", "0"]


def test_couplings_are_jacobians_of_the_real_tokens(layout, drift, gate):
    picture = level_pictures.couplings({"FGH": gate}, {"rest": 0 * drift, "drift": drift}, layout)
    rest, moved, bar = picture.axes
    assert rest.get_title(loc="left") == "FGH: rest" and "∂ log G" in bar.get_ylabel()
    np.testing.assert_allclose(rest.images[0].get_array(), np.eye(10), atol=1e-6)
    assert np.abs(moved.images[0].get_array() - np.eye(10)).max() > 0.05


def test_rows_of_the_attribution_add_up_to_the_last(layout, drift, gate):
    axes, _ = level_pictures.attribution(gate, drift, UP, layout).axes
    rows = np.asarray(axes.images[0].get_array())
    names = [text.get_text() for text in axes.get_yticklabels()]
    assert names == ["open", "domain", "group", "trajectory", "token", "sum"]
    np.testing.assert_allclose(rows[:-1].sum(axis=0), rows[-1], atol=1e-6)
    whole = fj.coefficients(gate, drift, UP, layout)
    np.testing.assert_allclose(rows[-1], np.asarray(whole)[MASK], atol=1e-6)
    assert np.abs(rows[3]).max() > 0.01


def test_a_sweep_is_the_gate_at_each_budget_in_one_program(layout, drift, gate):
    tried = np.array([0.02, 0.1, 0.5])
    found = level_pictures.sweep(gate, "trajectory", tried, drift, UP, layout)
    for budget, of in zip(tried, found, strict=True):
        expected = fj.coefficients(gate.replace(trajectory=budget), drift, UP, layout)
        np.testing.assert_allclose(of, expected, atol=1e-6)
    assert np.abs(found[0] - found[2]).max() > 0.01
    with jax.log_compiles(False), jax.transfer_guard("allow"):
        before = level_pictures._swept._cache_size()
        level_pictures.sweep(gate, "group", tried, drift, UP, layout)
        assert level_pictures._swept._cache_size() == before
    with pytest.raises(ValueError, match=r"no level 'turn': \('trajectory', 'group', 'domain'\)"):
        level_pictures.sweep(gate, "turn", tried, drift, UP, layout)


def test_panels_of_a_sweep_are_white_at_the_gates_own_budget(layout, drift, gate):
    picture = level_pictures.budget_sweeps(gate, drift, UP, layout, steps=5)
    *panels, _ = picture.axes
    titles = [ax.get_title(loc="left") for ax in panels]
    assert ["trajectory" in titles[0], "group" in titles[1], "domain" in titles[2]] == [True] * 3
    for ax in panels:
        np.testing.assert_allclose(ax.images[0].get_array()[2], 0, atol=1e-7)


def test_a_budget_touches_its_own_cells_alone(layout, drift, gate):
    found = level_pictures.touched(gate, gate.replace(trajectory=1.0), drift, UP, layout)
    assert found["group"] == (1, 2) and found["domain"] == (1, 1)
    assert 0 < found["token"][0] <= 5 and found["token"][1] == 10
    same = level_pictures.touched(gate, gate.replace(domain=0.2), drift, UP, layout)
    assert {some for some, _ in same.values()} == {0}  # The domain is open: nothing changes.
    table = level_pictures.touched_table(gate, gate, drift, UP, layout)
    assert table.splitlines()[2] == "| token | 0 | 10 |"
