"""Metrics of gates: fractions are what the masks and the definitions say, and never always zero."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fiberjax import diagnostics, gates, objective, probes
from fiberjax.layout import make_layout

LEVELS = ("trajectory", "group")
CONFIG = {
    "name": "fgh",
    "epsilon": 0.25,
    "order": ("trajectory",),
    "levels": {"trajectory": {"budget": (0.1, 0.1)}},
}
# Six trajectories of two tokens, each in a regime of its own: channels sit at (S⁺, S⁻).
DRIFT = np.array(
    [
        [0.1, -0.1],  # .05 .05: G-I
        [0.22, -0.1],  # .11 .05: one in rollback (up to .15)
        [0.4, -0.1],  # .2 .05: one zeroed
        [0.22, -0.22],  # mutual rollback
        [0.4, -0.22],  # one zeroed, one in rollback
        [0.8, -0.8],  # both zeroed; both tokens clipped
    ]
)


def metrics(config=CONFIG, log_ratio=DRIFT, layout=None):
    gate, budgets = gates.from_config(config, LEVELS)
    if layout is None:
        layout = make_layout(np.ones(log_ratio.shape, bool), {"group": np.arange(6) // 2})
    log_ratio = np.asarray(log_ratio, np.float32)
    found = diagnostics.gate_metrics(gate, log_ratio, np.ones_like(log_ratio), layout, budgets)
    return {name: float(m.value) for name, m in found.items()}


def test_every_regime_is_seen():
    m = metrics()
    want = {"G-I": 1, "G-II,r": 1, "G-II": 1, "G-III,r": 2, "G-III": 1}
    for name, count in want.items():
        np.testing.assert_allclose(m[f"gate/regime/{name}"], count / 6, rtol=1e-6)
    # |u| of every token is what the other token lacks: .05 to .4 against .25.
    np.testing.assert_allclose(m["gate/regime/L-III"], 1 / 6, rtol=1e-6)
    np.testing.assert_allclose(m["gate/regime/L-I"], 5 / 6, rtol=1e-6)
    total = sum(m[f"gate/regime/{name}"] for name in diagnostics.LOCAL_REGIMES)
    np.testing.assert_allclose(total, 1, rtol=1e-6)


def test_means_and_extremes():
    m = metrics()
    np.testing.assert_allclose(m["gate/channel/trajectory/plus"], DRIFT[:, 0].mean() / 2, rtol=1e-6)
    np.testing.assert_allclose(
        m["gate/channel/trajectory/minus"], -DRIFT[:, 1].mean() / 2, rtol=1e-6
    )
    np.testing.assert_allclose(m["gate/fiber_residual"], np.abs(DRIFT).mean() / 2, rtol=1e-6)
    np.testing.assert_allclose(m["is_ratio/mean"], np.exp(DRIFT).mean(), rtol=1e-6)
    np.testing.assert_allclose(m["is_ratio/max"], np.exp(0.8), rtol=1e-6)
    np.testing.assert_allclose(m["is_ratio/min"], np.exp(-0.8), rtol=1e-6)
    np.testing.assert_allclose(m["actor/ppo_kl"], -DRIFT.mean(), rtol=1e-5)
    np.testing.assert_allclose(m["actor/ppo_kl_k3"], (np.expm1(DRIFT) - DRIFT).mean(), rtol=1e-5)
    np.testing.assert_allclose(m["gate/clip_fraction/trajectory"], 5 / 6, rtol=1e-6)
    np.testing.assert_allclose(m["actor/pg_clipfrac"], 5 / 6, rtol=1e-6)


def test_each_level_is_what_opening_it_alone_would_change():
    rng = np.random.default_rng(0)
    config = {
        **CONFIG,
        "epsilon": 0.15,
        "order": LEVELS,
        "levels": {"trajectory": {"budget": 0.01}, "group": {"budget": 0.06}},
    }
    with jax.enable_x64(True):
        gate, budgets = gates.from_config(config, LEVELS)
        layout = make_layout(np.ones((6, 4), bool), {"group": np.arange(6) // 2})
        l, a = jnp.asarray(rng.normal(0, 0.15, (2, 6, 4)))
        masks = gate.clipped(l, a, layout, budgets)
        rows = probes.jacobian(gate, l, a, layout, budgets)
        for level in ("trajectory", "group", "token"):
            opened = probes.open_levels(budgets, levels=(level,), token=level == "token")
            other = probes.jacobian(gate, l, a, layout, opened)
            differs = np.any(np.abs(rows - other) > 1e-9, axis=1).reshape(6, 4)
            np.testing.assert_array_equal(masks[level], differs, err_msg=level)
            assert differs.any() and not differs.all(), level


def test_non_finite_log_ratios_are_counted_and_padding_is_not():
    drift = DRIFT.copy()
    drift[0, 0], drift[1, 1], drift[2, 0] = np.nan, np.inf, np.nan
    mask = np.ones((6, 2), bool)
    mask[2, 0] = False
    m = metrics(log_ratio=drift, layout=make_layout(mask, {"group": np.arange(6) // 2}))
    assert m["gate/log_ratio_non_finite"] == 2
    assert np.isnan(m["is_ratio/mean"])
    assert metrics()["gate/log_ratio_non_finite"] == 0


def test_attribution_adds_up_to_the_gradient():
    rng = np.random.default_rng(1)
    config = {
        **CONFIG,
        "epsilon": 0.1,
        "order": LEVELS,
        "levels": {"trajectory": {"budget": 0.01}, "group": {"budget": 0.06}},
    }
    gate, budgets = gates.from_config(config, LEVELS)
    layout = make_layout(np.ones((6, 4), bool), {"group": np.arange(6) // 2})
    l, a = rng.normal(0, 0.15, (2, 6, 4)).astype(np.float32)
    parts = probes.attribution(gate, l, a, layout, budgets)
    assert list(parts) == ["open", "group", "trajectory", "token"]
    want = jax.grad(lambda l: objective.surrogate(gate(l, a, layout, budgets), a, layout).value)(l)
    np.testing.assert_allclose(sum(parts.values()), want, atol=1e-6)
    np.testing.assert_allclose(parts["open"], np.exp(l) * a / 24, rtol=1e-5)
    assert all(np.any(part) for part in parts.values())
    ppo, budgets = gates.from_config({"name": "ppo"}, LEVELS)
    with pytest.raises(ValueError, match="'ppo' is no hierarchy"):
        probes.attribution(ppo, l, a, layout, budgets)
