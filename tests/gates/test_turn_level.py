"""Turns as a level below the trajectory: what their cells hold, and what stays as it is."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from cases import CASES, EXACT, LEVELS, flat, problem

from fiberjax import gates, objective
from fiberjax.gates import bundle
from fiberjax.layout import TURN, make_layout

TURNS = 3
ALL = (TURN, *LEVELS)
BUDGETS = {TURN: (0.14, 0.12), "trajectory": (0.11, 0.09), "group": (0.06, 0.05), "domain": 0.03}


def turn_of(p):
    """Up to three turns of each trajectory, of different lengths; the cell of each token."""
    cell = np.zeros_like(p.trajectory)
    for t in range(11):
        of = np.flatnonzero(p.trajectory == t)
        cell[of] = t * TURNS + np.searchsorted([1, 3], np.arange(len(of)), side="right")
    return cell


def parents(p):
    return {"trajectory": np.repeat(np.arange(11), TURNS), **p.parents}


def with_turns(p):
    """The tokens end to end, in cells of turns."""
    mask = np.ones(p.trajectory.shape, bool)
    return make_layout(mask, parents(p), cell_id=turn_of(p), finest=TURN, state_id=p.state)


def single(p):
    """The same, every trajectory one turn."""
    mask, tables = np.ones(p.trajectory.shape, bool), {"trajectory": np.arange(11), **p.parents}
    return make_layout(mask, tables, cell_id=p.trajectory, finest=TURN)


def hierarchy(*order, name="fgh", **options):
    levels = {level: {"budget": BUDGETS[level]} for level in order}
    return {"name": name, "epsilon": 0.1, "order": order, "levels": levels, **options}


CONFIGS = {
    "fgh": (hierarchy(*ALL), reference.fgh),
    "two": (hierarchy(*ALL[:2]), reference.fgh),
    "alone": (hierarchy(TURN, name="fiberpo"), reference.fgh),
    "bounded": (hierarchy(*ALL, lift="bounded", signs="resigned"), reference.fgh),
    "exact": (hierarchy(*ALL[:3], **EXACT), reference.exact),
    "silent": (hierarchy(*ALL, name="silent", weight_cap=1.3), reference.silent),
    "silent_sequence": (
        hierarchy(*ALL, name="silent", weight_cap=1.3, weight="trajectory"),
        reference.silent,
    ),
    "gspo": (
        {"name": "gspo", "clip_low": 0.02, "clip_high": 0.03, "level": TURN},
        reference.gspo,
    ),
}
every_gate = pytest.mark.parametrize("name", CONFIGS)


def expected(name, p):
    """The loop-written reference, whose finest cells are the turns."""
    config, function = CONFIGS[name]
    config = {k: v for k, v in config.items() if k not in ("name", "variant", "level")}
    if "order" in config:
        levels, order = config.pop("levels"), config.pop("order")
        config["budgets"] = [np.broadcast_to(levels[of]["budget"], 2) for of in order]
    if "weight" in config:
        config["whole"] = p.trajectory
    return function(p.log_ratio, p.advantage, turn_of(p), list(parents(p).values()), **config)


def float64(budgets):
    return jax.tree.map(lambda b: np.round(np.asarray(b, np.float64), 6), budgets)


@every_gate
def test_agrees_with_the_loop_written_reference(name):
    p = problem(0)
    with jax.enable_x64(True):
        gate, budgets = gates.from_config(CONFIGS[name][0], ALL)
        args = (jnp.asarray(p.log_ratio), jnp.asarray(p.advantage), with_turns(p))
        gated = gate(*args, float64(budgets))
        np.testing.assert_allclose(gated, expected(name, p), rtol=1e-12, atol=1e-14)
        closed = gate.clipped(*args, float64(budgets))[TURN]
        assert 0 < np.sum(closed) < closed.size  # The level binds.


@every_gate
def test_replies_between_turns_change_nothing_whatever_they_hold(name):
    """In rows, with what others said between the turns: as end to end, and without a gradient."""
    p = problem(1, dtype=np.float32)
    gate, budgets = gates.from_config(CONFIGS[name][0], ALL)
    cell, column = turn_of(p), np.zeros_like(p.trajectory)
    for t in range(11):
        of = p.trajectory == t
        # Two columns of a reply before each further turn.
        column[of] = np.arange(of.sum()) + 2 * (cell[of] - t * TURNS)
    place = (p.trajectory, column)
    width = int(column.max()) + 3

    def rows(values, empty):
        out = np.full((11, width), empty, np.asarray(values).dtype)
        out[place] = values
        return out

    def gradient(log_ratio, advantage, layout):
        def value(log_ratio):
            gated = gate(log_ratio, advantage, layout, budgets)
            return objective.surrogate(gated, advantage, layout).value

        return jax.jit(jax.value_and_grad(value))(log_ratio)

    want, slope = gradient(p.log_ratio, p.advantage, with_turns(p))
    mask = rows(np.ones_like(p.trajectory, bool), False)
    layout = make_layout(mask, parents(p), cell_id=rows(cell, 5), finest=TURN)
    for fill in (np.nan, np.inf):
        fields = [rows(x, np.float32(fill)) for x in (p.log_ratio, p.advantage)]
        got, found = gradient(*fields, layout)
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found[place], slope, rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(np.asarray(found)[~mask], 0)


@pytest.mark.parametrize("name", ["fiberpo", "exact3", "silent_sequence", "gspo", "cppo", "trm"])
def test_a_gate_that_does_not_name_turns_is_what_it_was(name):
    """One level over trajectories stays FiberPO, however many turns a trajectory has."""
    p = problem(2, dtype=np.float32)
    gate, budgets = CASES[name].build()
    config = {"old_log_prob": p.old_log_prob}

    @jax.jit
    def both(layout):
        args = (p.log_ratio, p.advantage, layout, budgets)
        return gate(*args, **config), gate.clipped(*args, **config)

    want, masks = both(flat(p))
    got, found = both(with_turns(p))
    np.testing.assert_allclose(got, want, rtol=1e-6)
    for level in masks:
        np.testing.assert_array_equal(found[level], masks[level])


def test_the_objective_weighs_trajectories_and_not_turns():
    p = problem(2)
    for weighting in objective.WEIGHTINGS:
        parts = (
            objective.token_weight(layout, weighting, constant_length=7)
            for layout in (flat(p), with_turns(p))
        )
        for before, after in zip(*parts, strict=True):
            np.testing.assert_array_equal(before, after)


def test_a_trajectory_takes_the_mean_over_its_turns_and_residuals_cancel():
    """Turns count alike, long or short: then what a turn adds to its trajectory sums to zero."""
    p = problem(3)
    with jax.enable_x64(True):
        tower = bundle.tower(jnp.asarray(p.log_ratio), with_turns(p), variant="published")
        cell = turn_of(p)
        for c, part in enumerate((np.maximum(p.log_ratio, 0), np.maximum(-p.log_ratio, 0))):
            means = {y: part[cell == y].mean() for y in set(cell)}
            for t in range(11):
                of = [y for y in means if y // TURNS == t]
                mean = np.mean([means[y] for y in of])
                np.testing.assert_allclose(tower.drift[1][t, c], mean)
                residual = [tower.residual[0][y, c] for y in of]
                np.testing.assert_allclose(np.sum(residual), 0, atol=1e-15)
        # A mean over tokens is another number, where turns differ in length.
        assert np.abs(part[p.trajectory == 2].mean() - tower.drift[1][2, 1]) > 1e-3


def test_one_turn_a_trajectory_takes_its_place():
    """An only child has no residual: its budget is idle, and its trajectory's gates for both."""
    p = problem(0)
    with jax.enable_x64(True):
        args = (jnp.asarray(p.log_ratio), jnp.asarray(p.advantage), single(p))

        def gated(config, **budgets):
            gate, chosen = gates.from_config(config, ALL)
            chosen["budgets"] = float64(chosen["budgets"]) | budgets
            return np.asarray(gate(*args, float64(chosen)))

        # Alone, turns are FiberPO.
        alone = hierarchy("trajectory", name="fiberpo")
        at_turns = gated(hierarchy(TURN, name="fiberpo"), **{TURN: np.array([0.11, 0.09])})
        np.testing.assert_allclose(at_turns, gated(alone), rtol=1e-13)
        # Below their trajectories they are idle: any budget gives the same.
        both = hierarchy(*ALL[:2])
        idle = [gated(both, **{TURN: np.full(2, size)}) for size in (1e-6, 1.0)]
        np.testing.assert_allclose(*idle, rtol=1e-13)
        # A gate that holds does not count children: the trajectory's alone.
        hold = hierarchy(*ALL[:2], base_gate="hold")
        np.testing.assert_allclose(gated(hold), gated(alone | {"base_gate": "hold"}), rtol=1e-13)
        # One that falls counts one child, not T tokens: it falls with slope 1, from the budget on.
        fiber = gated(alone, trajectory=np.full(2, 1e9))
        drift = [np.bincount(p.trajectory, np.maximum(s * p.log_ratio, 0), 11) for s in (1, -1)]
        drift = np.stack(drift, 1) / np.bincount(p.trajectory)[:, None]
        lost = [
            sum(
                s * (x - reference.aggregate(x, c, 1))
                for s, x, c in zip((1, -1), of, (0.11, 0.09), strict=True)
            )
            for of in drift
        ]
        np.testing.assert_allclose(idle[0], fiber * np.exp(-np.array(lost)[p.trajectory]))
        assert np.abs(lost).max() > 0.01
        # Silent, the tighter of both budgets closes.
        silent = hierarchy(*ALL[:2], name="silent", weight_cap=1.3)
        tight = hierarchy("trajectory", name="silent", weight_cap=1.3)
        for turn, trajectory in ((0.02, 0.1), (0.1, 0.02)):
            found = gated(silent, **{TURN: np.full(2, turn), "trajectory": np.full(2, trajectory)})
            np.testing.assert_allclose(found, gated(tight, trajectory=np.full(2, 0.02)), rtol=1e-13)


def test_the_first_step_is_that_of_plain_ratios():
    """At `ℓ = 0` the Jacobian is the identity, with turns too."""
    p = problem(2)
    zero = dataclasses.replace(p, log_ratio=np.zeros_like(p.log_ratio))
    with jax.enable_x64(True):
        gate, budgets = gates.from_config(hierarchy(*ALL), ALL)
        rows = jax.jit(jax.jacrev(lambda l: gate(l, p.advantage, with_turns(p), float64(budgets))))(
            jnp.asarray(zero.log_ratio)
        )
        np.testing.assert_allclose(rows, np.eye(len(rows)), atol=1e-14)
