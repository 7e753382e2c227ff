"""Every token's numbers: those of the library, by batch, and parts that add up to the whole."""

import dataclasses

import looked
import numpy as np
import pytest

import fiberjax as fj
from fiberjax import diagnostics
from fiberjax.analysis import page, token_pictures, tokens
from fiberjax.gates import aggregate
from fiberjax.run.kept import from_arrays


def batches(kept):
    """Rows and layout of each optimizer batch, made anew."""
    for number in (0, 1):
        rows = np.flatnonzero(kept.minibatch == number)
        group = np.arange(len(rows)) // 4
        layout = fj.make_layout(kept.mask[rows], {"group": group, "domain": np.arange(2) % 2})
        yield rows, layout


@pytest.mark.parametrize("gate", looked.GATES)
def test_parts_add_up_to_the_coefficient_exactly(gate):
    found = looked.under(gate)
    total = np.zeros(found.coefficient.shape)
    for part in found.parts.values():
        total += part
    np.testing.assert_array_equal(total.astype(np.float32), found.coefficient)
    assert np.abs(found.coefficient).max() > 0


@pytest.mark.parametrize("gate", looked.GATES)
def test_coefficients_are_the_library_s_of_each_optimizer_batch(gate):
    kept, found, made = looked.kept(), looked.under(gate), fj.gate(gate)
    for rows, layout in batches(kept):
        advantage, weight = kept.advantage[rows], kept.sample_weight[rows]

        def reads_the_advantage(log_ratio, _, layout, advantage=advantage):
            return made(log_ratio, advantage, layout)

        expected = fj.coefficients(
            reads_the_advantage, kept.log_ratio[rows], advantage * weight, layout
        )
        np.testing.assert_allclose(found.coefficient[rows], expected, rtol=1e-4, atol=1e-7)
        gated = np.where(kept.mask[rows], made(kept.log_ratio[rows], advantage, layout), 1)
        np.testing.assert_allclose(found.gated_ratio[rows], gated, rtol=1e-6)


def test_parts_are_what_each_level_adds():
    kept, made = looked.kept(), fj.gate("fiberpo_domain")
    found = looked.under("fiberpo_domain")
    rows, layout = next(batches(kept))
    # Nothing in a hierarchy without budgets of tokens by advantage reads more than its sign.
    parts = fj.probes.attribution(
        made.structure,
        kept.log_ratio[rows],
        kept.advantage[rows] * kept.sample_weight[rows],
        layout,
        made.budgets,
    )
    assert list(found.parts) == list(parts)
    for name, part in parts.items():
        np.testing.assert_allclose(found.parts[name][rows], part, rtol=1e-3, atol=1e-7)


def test_a_level_holds_the_drift_of_its_cells():
    kept, found = looked.kept(), looked.under("silent_domain")
    mean = kept.log_ratio.sum(axis=1) / kept.mask.sum(axis=1)
    for level, cells in (("group", np.arange(16) // 4), ("trajectory", np.arange(16))):
        for row in range(16):
            drift = mean[cells == cells[row]].mean()
            column = int(np.flatnonzero(kept.mask[row])[0])
            both = found.levels[level].drift[row, column]
            np.testing.assert_allclose(both, [drift, -drift], atol=1e-6)
            place = found.levels[level].place[row, column]
            expected = np.where(np.array([drift, -drift]) > 4e-4, aggregate.ZEROED, aggregate.OPEN)
            np.testing.assert_array_equal(place, expected)
    assert list(found.levels) == ["trajectory", "group", "domain"]
    np.testing.assert_array_equal(found.own, kept.log_ratio)
    np.testing.assert_allclose(found.drift()[:, 2], mean, atol=1e-6)


def test_regimes_are_those_that_a_run_logs():
    kept, found, made = looked.kept(), looked.under("fiberpo_domain"), fj.gate("fiberpo_domain")
    for rows, layout in batches(kept):
        logged = diagnostics.gate_metrics(
            *(made.structure, kept.log_ratio[rows], kept.advantage[rows], layout, made.budgets)
        )
        said = [found.regime[row].split() for row in rows]
        for k, names in enumerate((diagnostics.GLOBAL_REGIMES, diagnostics.LOCAL_REGIMES)):
            for name in names:
                share = np.mean([pair[k] == name for pair in said])
                assert float(logged[f"gate/regime/{name}"].value) == pytest.approx(share)
    assert len(set(found.regime)) > 1
    assert set(looked.under("gspo").regime) == {tokens.WHOLE, tokens.ALL}


@pytest.mark.parametrize(
    ("gate", "options"),
    [("silent_domain", {}), ("fiberpo_domain", {}), ("fiberpo_domain", {"base_gate": "hold"})],
)
def test_a_group_that_is_rewarded_alike_is_open_where_gates_are_opened(gate, options):
    """Its budgets are 0 under dispersion, and infinite ones of open levels stay infinite."""
    kept = looked.kept()
    alike = dataclasses.replace(
        kept, advantage=np.where(np.arange(16)[:, None] < 4, 0, kept.advantage)
    )
    found = tokens.look(alike, (gate, {**options, "budget_scale": "dispersion"}))
    whole = found.parts["open"][kept.mask]
    want = (np.exp(kept.log_ratio) * alike.advantage)[kept.mask]
    np.testing.assert_array_equal(np.sign(whole), np.sign(want))
    assert np.isfinite(found.coefficient).all() and np.abs(whole).max() > 0
    picture = token_pictures.trajectory(found, 0)
    assert all(np.isfinite(of.get_width()) for axes in picture.axes for of in axes.patches)


def test_what_the_cap_of_a_silent_gate_takes_is_the_token_s():
    kept = from_arrays(
        log_prob=np.array([[1.0, -1.0]]),
        old_log_prob=np.array([[-1.0, -1.0]]),
        mask=np.ones((1, 2), bool),
        advantage=np.array([-1.0]),
    )
    found = tokens.look(kept, ("silent_trajectory", {"trajectory": 5.0}))
    parts = {name: float(part[0, 0]) for name, part in found.parts.items()}
    assert parts["open"] == pytest.approx(-np.exp(2) / 2, rel=1e-6)
    assert parts["trajectory"] == 0 and parts["token"] == pytest.approx(
        (np.exp(2) - 3) / 2, rel=1e-6
    )


def test_a_table_of_budgets_is_told_on_a_page():
    gate = fj.gate("silent_domain")
    tables = {**gate.budgets["budgets"], "group": np.full((4, 2), 0.1, np.float32)}
    gate = dataclasses.replace(gate, budgets={**gate.budgets, "budgets": tables})
    assert "group by cell" in page.described(gate)


def test_fates_compare_with_the_open_gates():
    before = np.array([0.0, 1.0, 1.0, 1.0, 1.0, -1.0, 0.0], np.float32)
    after = np.array([0.0, 1.001, 0.5, 2.0, 1e-9, 0.5, 0.5], np.float32)
    assert tokens._fate(before, after).tolist() == list(range(7))


def test_the_sampler_s_gap_and_entropies_are_of_counted_tokens_alone():
    kept, found = looked.kept(), looked.under("gspo")
    np.testing.assert_allclose(found.sampler_gap[kept.mask], 0.01, rtol=1e-4)
    for values in (found.sampler_gap, found.entropy, found.coefficient, found.own):
        assert values is None or not np.any(values[~kept.mask])


def test_what_does_not_fit_is_named():
    kept = looked.kept()
    with pytest.raises(ValueError, match=r"entropy has shape \(2,\), the rollouts \(16, 6\)"):
        tokens.look(kept, "gspo", entropy=np.zeros(2))
    with pytest.raises(ValueError, match="'turn'"):
        tokens.look(kept, ("fiberpo", {"levels": {"turn": 0.1}}))
