"""Metrics of gates: fractions are what the masks and the definitions say, and never always zero."""

import dataclasses
import functools
import math

import chex
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

gate_metrics = jax.jit(diagnostics.gate_metrics, static_argnums=0)


def metrics(config=CONFIG, log_ratio=DRIFT, layout=None):
    gate, budgets = gates.from_config(config, LEVELS)
    if layout is None:
        layout = make_layout(np.ones(log_ratio.shape, bool), {"group": np.arange(6) // 2})
    log_ratio = np.asarray(log_ratio, np.float32)
    found = gate_metrics(gate, log_ratio, np.ones_like(log_ratio), layout, budgets)
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


# Eight answers of ragged length to four prompts of two domains; a third domain has none.
LENGTH = np.array([6, 1, 3, 8, 2, 8, 5, 4])
MASK = np.arange(8) < LENGTH[:, None]
GROUP = np.array([0, 1, 1, 2, 2, 2, 3, 3])
DOMAIN = np.array([0, 1, 1, 0])
SIGNS = {"plus": 1, "minus": -1}


def drifted(seed, rows=slice(None)):
    """Log ratios and advantages, anything at padding."""
    rng = np.random.default_rng(seed)
    log_ratio, advantage = rng.normal(0, 0.8, (8, 8)), rng.normal(size=(8, 8))
    log_ratio[1, 0], advantage[3, 2] = 0.0, 0.0
    junk = np.where(rng.random((2, 8, 8)) < 0.5, np.inf, np.nan)
    fields = (np.where(MASK, x, bad) for x, bad in zip((log_ratio, advantage), junk, strict=True))
    return [x[rows].astype(np.float32) for x in fields]


def arranged(arrangement, rows=slice(None), **options):
    """The layout of some rows, and how their tokens lie in it."""
    groups, group = np.unique(GROUP[rows], return_inverse=True)
    tower = {"group": group, "domain": DOMAIN[groups]}
    options = {"num_cells": {"domain": 3}, **options}
    mask = MASK[rows]
    if arrangement == "rows":
        return make_layout(mask, tower, **options), lambda x: x
    # Two answers a row.
    cell = np.broadcast_to(np.arange(len(mask))[:, None], mask.shape).reshape(-1, 16)
    mask = mask.reshape(-1, 16)
    return make_layout(mask, tower, cell_id=cell, **options), lambda x: x.reshape(-1, 16)


CLIP = {"name": "clip", "clip_low": 0.4, "clip_high": 0.5}


def measured(log_ratio, advantage, layout, config=CLIP):
    """The metrics of a gate before they are divided."""
    built, budgets = gates.from_config(config, layout.levels)
    return gate_metrics(built, log_ratio, advantage, layout, budgets)


def written_out(batches):
    """What `CLIP` logs of batches of (seed, rows), by loops over tokens and cells."""
    tokens, quadrants = [], {name: [] for name in diagnostics.QUADRANTS}
    weights = {level: [] for level in ("token", "trajectory", "group", "domain")}
    drifts = {(level, sign): [] for level in list(weights)[1:] for sign in SIGNS}
    for seed, rows in batches:
        log_ratio, advantage = (x.astype(np.float64) for x in drifted(seed, rows))
        cells = {}
        for row, length in enumerate(LENGTH[rows]):
            of = [float(l) for l in log_ratio[row, :length]]
            tokens += of
            weights["token"] += [math.exp(l) for l in of]
            for l, a in zip(of, advantage[row], strict=False):
                name = "positive" if a > 0 else "negative"
                if a != 0:
                    closed = not 0.6 <= math.exp(l) <= 1.5
                    quadrants[f"{name}_{'minus' if l < 0 else 'plus'}"].append(closed)
            cells[row] = (
                math.exp(sum(of)),
                *(sum(max(sign * l, 0) for l in of) / length for sign in SIGNS.values()),
            )
        above = dict(enumerate(GROUP[rows]))
        for level in ("trajectory", "group", "domain"):
            for weight, plus, minus in cells.values():
                weights[level].append(weight)
                drifts[level, "plus"].append(plus)
                drifts[level, "minus"].append(minus)
            children = {}
            for cell, values in cells.items():
                children.setdefault(above[cell], []).append(values)
            cells = {
                cell: tuple(map(np.mean, zip(*of, strict=True))) for cell, of in children.items()
            }
            above = dict(enumerate(DOMAIN)) if level == "trajectory" else dict.fromkeys(range(3), 0)
    assert min(tokens) < -1 and max(tokens) > 1
    want = {"actor/drift_over_one": np.mean([abs(l) > 1 for l in tokens])}
    want |= {f"gate/quadrant/{name}": np.mean(of) for name, of in quadrants.items()}
    for level, of in weights.items():
        size = sum(of) ** 2 / sum(w * w for w in of) / len(of)
        want[f"is_ratio/effective_sample_size/{level}"] = size
    for (level, sign), of in drifts.items():
        name = f"gate/channel/{level}/{sign}"
        want[name] = np.mean(of)
        for label, share in (("median", 0.5), ("p99", 0.99)):
            want[f"{name}/{label}"] = sorted(of)[math.ceil(share * len(of)) - 1]
    return want


def assert_logged(found, want):
    """Every number of the loops is found; quantiles within their steps."""
    for name, value in want.items():
        steps = name.endswith(("median", "p99"))
        got = float(found[name].value)
        np.testing.assert_allclose(got, value, rtol=0.095 if steps else 1e-5, err_msg=name)
    assert all(0 < want[f"gate/quadrant/{name}"] < 1 for name in diagnostics.QUADRANTS)
    sizes = [v for name, v in want.items() if "effective" in name]
    assert len(sizes) == 4 and max(sizes) < 0.95 and len({round(v, 3) for v in sizes}) == 4
    middle = "gate/channel/trajectory/plus/median"
    assert want[middle] < 0.8 * want["gate/channel/trajectory/plus/p99"]


@pytest.mark.parametrize("arrangement", ["rows", "packed"])
def test_drift_is_what_loops_say(arrangement):
    layout, lay = arranged(arrangement)
    log_ratio, advantage = map(lay, drifted(0))
    assert_logged(measured(log_ratio, advantage, layout), written_out([(0, slice(None))]))


def test_drift_of_several_updates_is_over_all_their_cells():
    """Two halves of a batch and, later, all of it again with another policy."""
    batches = [(0, slice(0, 3)), (0, slice(3, 8)), (1, slice(None))]
    parts = []
    for seed, rows in batches:
        layout, _ = arranged("rows", rows)
        parts.append(measured(*drifted(seed, rows), layout))
    joined = {
        name: functools.reduce(objective.add, [part[name] for part in parts]) for name in parts[0]
    }
    assert_logged(joined, written_out(batches))


def test_metrics_of_shards_are_those_of_one_device(devices):
    """Groups over four devices, each answer over two: every cell counts once."""
    axes = {"trajectory": ("seq",), "group": ("data",)}
    layout, _ = arranged("rows", axis_names=axes)
    P = jax.sharding.PartitionSpec
    tokens, rows = P("data", "seq"), P("data")
    specs = dataclasses.replace(layout, mask=tokens, parents=(rows, P()), sizes=(rows, P(), P()))
    above = {"group": {"budget": 0.1}, "domain": {"budget": 0.05}}
    presets = {"clip": CLIP, "fgh": {**CONFIG, "order": tuple(above), "levels": above}}
    presets["silent"] = {"name": "silent", "order": tuple(above), "levels": above}

    def all_metrics(*arguments, axes=()):
        return {
            gate: {
                name: objective.add_over(of, axes)
                for name, of in measured(*arguments, config=config).items()
            }
            for gate, config in presets.items()
        }

    local = functools.partial(all_metrics, axes=("data", "seq"))
    mesh = jax.sharding.Mesh(np.array(devices).reshape(4, 2), ("data", "seq"))
    over = jax.shard_map(local, mesh=mesh, in_specs=(tokens, tokens, specs), out_specs=P())
    found = jax.jit(over)(*drifted(0), layout)
    want = all_metrics(*drifted(0), arranged("rows")[0])
    chex.assert_trees_all_close(found, want, rtol=1e-5, atol=1e-6)
    names = want["fgh"]
    assert "gate/channel/domain/minus/p99" in names and "gate/channel/trajectory/plus" not in names
    held = {name for name in want["silent"] if name.startswith("gate/held/")}
    assert held == {f"gate/held/{level}/{sign}" for level in above for sign in ("plus", "minus")}


def test_what_levels_hold_is_what_their_budgets_bound():
    """Of a hierarchy the residual, of a silent one the drift on that side; nothing of others."""
    layout = make_layout(np.ones((3, 2), bool), {"group": np.array([0, 0, 1])})
    drift = np.float32([[0.3, 0.1], [-0.1, 0.1], [-0.4, -0.2]])
    levels = {"trajectory": {"budget": 0.1}, "group": {"budget": 0.05}}
    given = {"order": tuple(levels), "levels": levels}

    def held(**config):
        gate, budgets = gates.from_config(config, layout.levels)
        found = gate_metrics(gate, drift, np.ones_like(drift), layout, budgets)
        return {
            name.removeprefix("gate/held/"): round(float(of.value), 4)
            for name, of in found.items()
            if name.startswith("gate/held/")
        }

    means = {"trajectory/plus": 0.2 / 3, "trajectory/minus": 0.3 / 3}
    means |= {"group/plus": 0.1 / 2, "group/minus": 0.3 / 2}
    assert held(name="silent", **given) == pytest.approx(means, abs=1e-4)
    # Channels (.2, 0), (.05, .05) and (0, .3); of groups (.125, .025) and (0, .3).
    means |= {"trajectory/plus": (0.075 + 0.075 + 0) / 3, "trajectory/minus": (0.025 + 0.025) / 3}
    means |= {"group/plus": 0.125 / 2, "group/minus": (0.025 + 0.3) / 2}
    assert held(name="fgh", **given) == pytest.approx(means, abs=1e-4)
    assert held(name="ppo") == {}


def test_effective_sample_sizes_at_the_extremes():
    layout = make_layout(np.ones((4, 64), bool), {"group": np.array([0, 0, 1, 1])})

    def sizes(log_ratio):
        found = logged(np.float32(log_ratio), layout)
        return [float(found[f"is_ratio/effective_sample_size/{of}"].value) for of in levels]

    logged = jax.jit(diagnostics.effective_sample_sizes)
    levels = ("token", "trajectory", "group")
    for same in (0.0, 80.0, -80.0, np.inf):
        np.testing.assert_allclose(sizes(np.full((4, 64), same)), 1, rtol=1e-5)
    far = np.zeros((4, 64))
    far[0] = 5.0
    tokens = (64 * math.exp(5) + 192) ** 2 / (64 * math.exp(10) + 192) / 256
    np.testing.assert_allclose(sizes(far), [tokens, 0.25, 0.5], rtol=1e-5)
    far[0, 0] = np.nan
    assert np.isnan(sizes(far)).all()
