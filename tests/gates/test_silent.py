"""What the silent hierarchy claims, each claim in float64, from its definition."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from cases import LEVELS, silent

from fiberjax import gates
from fiberjax.advantages import dr_grpo
from fiberjax.gates.levelwise import dispersion
from fiberjax.gates.scales import SCALES, factors
from fiberjax.gates.sequence import gspo, gspo_clipped
from fiberjax.gates.silent import SIGNALS, SilentHierarchy, clipped, drift_noise
from fiberjax.gates.silent import silent as gate
from fiberjax.layout import make_layout
from fiberjax.objective import coefficients

GROUP, DOMAIN = np.array([0, 0, 1, 2, 2, 2]), np.array([0, 0, 1])
TRAJECTORY = np.repeat(np.arange(6), [3, 5, 1, 4, 2, 6])
LAYOUT = make_layout(np.ones(21, bool), {"group": GROUP, "domain": DOMAIN}, cell_id=TRAJECTORY)
CELLS = [reference.cells(TRAJECTORY, [GROUP, DOMAIN], k) for k in range(3)]
BUDGETS = {"trajectory": (0.06, 0.04), "group": (0.03, 0.02), "domain": 0.015}
every_form = pytest.mark.parametrize("signal", SIGNALS)


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def made(budgets=BUDGETS, *, epsilon=0.2, weight_cap=1.5, **options):
    return SilentHierarchy(budgets=budgets, epsilon=epsilon, weight_cap=weight_cap, **options)


@functools.partial(jax.jit, static_argnames="layout_of")
def _value_and_jacobian(l, a, hierarchy, layout_of):
    return gate(l, a, layout_of(), hierarchy), jax.jacrev(gate)(l, a, layout_of(), hierarchy)


def value_and_jacobian(l, a, hierarchy):
    out = _value_and_jacobian(jnp.asarray(l), jnp.asarray(a), hierarchy, _layout)
    return tuple(map(np.asarray, out))


def _layout():
    return LAYOUT


def problem(seed, scale=0.1):
    return np.random.default_rng(seed).normal(0, (scale, 1), (21, 2)).T


def drifts(l):
    """The signed mean drift of each token's cell at every level; float[3, 21]."""
    tables = LAYOUT.means(jnp.asarray(l))
    return np.stack([np.asarray(t)[ids] for t, ids in zip(tables, CELLS, strict=True)])


def side(a):
    return np.where(a >= 0, 1, -1)


def pairs(budgets=BUDGETS):
    return np.array([np.broadcast_to(budgets[level], 2) for level in LEVELS])


@every_form
@pytest.mark.parametrize("scale", SCALES)
def test_agrees_with_the_loop_written_reference(signal, scale):
    budgets = [np.broadcast_to(BUDGETS[level], 2) for level in LEVELS]
    options = {"epsilon": 0.2, "weight_cap": 1.5, "signal": signal, "budget_scale": scale}
    for seed in range(3):
        l, a = problem(seed, 0.3)
        want = reference.silent(l, a, TRAJECTORY, [GROUP, DOMAIN], budgets=budgets, **options)
        value, _ = value_and_jacobian(l, a, made(**options))
        np.testing.assert_allclose(value, want, rtol=1e-13)


# The gradient.


@every_form
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_on_policy_the_jacobian_is_the_identity(signal, scale, depth):
    budgets = {level: BUDGETS[level] for level in LEVELS[:depth]}
    a = np.where(np.arange(21) % 3 == 0, 0.0, problem(0)[1])
    hierarchy = made(budgets, signal=signal, budget_scale=scale)
    value, jacobian = value_and_jacobian(np.zeros(21), a, hierarchy)
    np.testing.assert_array_equal(value, 1)
    np.testing.assert_array_equal(jacobian, np.eye(21))


@pytest.mark.parametrize("seed", range(4))
def test_the_jacobian_is_diagonal_and_zero_where_the_definition_closes(seed):
    l, a = problem(seed, 0.2)
    _, jacobian = value_and_jacobian(l, a, made())
    s, budget = side(a), pairs()
    closed = s * l > 0.2
    for k in range(3):
        closed |= s * drifts(l)[k] > np.where(s > 0, budget[k, 0], budget[k, 1])
    assert closed.any() and not closed.all()
    want = np.where(closed, 0, np.minimum(np.exp(l), 1.5))
    np.testing.assert_allclose(jacobian, np.diag(want), rtol=1e-14)


@every_form
def test_open_gates_give_the_ratio(signal):
    l, a = problem(0, 2.0)
    wide = {level: np.inf for level in LEVELS}
    hierarchy = made(wide, epsilon=np.inf, weight_cap=np.inf, signal=signal)
    value, jacobian = value_and_jacobian(l, a, hierarchy)
    np.testing.assert_allclose(value, np.exp(l), rtol=1e-14)
    np.testing.assert_allclose(jacobian, np.diag(np.exp(l)), rtol=1e-14)


@every_form
def test_another_coarsest_cell_changes_nothing(signal):
    l, a = problem(1, 0.2)
    here = CELLS[2] == 0
    before = value_and_jacobian(l, a, made(signal=signal))
    after = value_and_jacobian(np.where(here, l, 7 - 3 * l), a, made(signal=signal))
    for x, y in zip(before, after, strict=True):
        np.testing.assert_array_equal(x[here], y[here])
        assert np.any(x[~here] != y[~here])


@every_form
@pytest.mark.parametrize("level", LEVELS)
def test_budgets_are_independent(signal, level):
    """Another budget of one level changes the tokens that this level closes, and no others."""
    l, a = problem(3, 0.05)
    wide = made({**BUDGETS, level: 0.05}, signal=signal)
    tight = made({**BUDGETS, level: 1e-3}, signal=signal)
    closes = clipped(l, a, LAYOUT, wide)[level] | clipped(l, a, LAYOUT, tight)[level]
    assert np.any(closes) and not np.all(closes)
    for x, y in zip(*(value_and_jacobian(l, a, h) for h in (wide, tight)), strict=True):
        np.testing.assert_array_equal(x[~closes], y[~closes])
        assert np.any(x != y)


def test_the_coefficients_are_no_gradient():
    """Around a loop they add up to the first rise of the ratio; a gradient's would to 0."""
    layout = make_layout(np.ones(2, bool), cell_id=np.zeros(2, int))
    hierarchy = made({"trajectory": 0.1}, epsilon=9.0, weight_cap=9.0)
    corners = np.array([[0, 0], [0.15, 0], [0.15, 0.3], [0, 0.3], [0, 0]])
    legs = itertools.pairwise(corners)
    path = np.concatenate([np.linspace(start, end, 401) for start, end in legs])
    middle, step = (path[1:] + path[:-1]) / 2, np.diff(path, axis=0)
    slope = jax.grad(lambda l: gate(l, np.ones(2), layout, hierarchy)[0])
    around = np.sum(np.asarray(jax.jit(jax.vmap(slope))(jnp.asarray(middle))) * step)
    np.testing.assert_allclose(around, np.expm1(0.15), rtol=1e-6)


@pytest.mark.parametrize("l", [5.0, -5.0])
@pytest.mark.parametrize("a", [2.0, -2.0])
def test_coefficients_are_bounded_with_the_advantage_and_on_the_way_back(l, a):
    """One token far out; its siblings bring its trajectory's mean back to 0."""
    drift = np.zeros(21)
    drift[3], drift[4:8] = l, -l / 4
    _, jacobian = value_and_jacobian(drift, np.full(21, a), made(weight_cap=3.0))
    coefficient = abs(np.diag(jacobian)[3] * a)
    forward = l * a > 0
    assert coefficient == (0 if forward else pytest.approx(min(np.exp(l), 3.0) * 2))
    # The largest coefficient forward is that of a token at its budget.
    drift[3], drift[4:8] = np.sign(a) * 0.2, -np.sign(a) * 0.05
    _, jacobian = value_and_jacobian(drift, np.full(21, a), made(weight_cap=3.0))
    assert 0 < abs(np.diag(jacobian)[3] * a) <= np.exp(0.2) * 2 * (1 + 1e-15)


def test_with_one_level_it_is_open_where_gspo_is():
    low, high = 0.03, 0.05
    bounds = {"trajectory": (np.log1p(high), -np.log1p(-low))}
    hierarchy = made(bounds, epsilon=np.inf, weight_cap=np.inf)
    for seed in range(3):
        l, a = problem(seed, 0.2)
        _, jacobian = value_and_jacobian(l, a, hierarchy)
        shut = gspo_clipped(l, a, LAYOUT, clip_low=low, clip_high=high)["trajectory"]
        np.testing.assert_allclose(np.diag(jacobian), np.where(shut, 0, np.exp(l)), rtol=1e-14)
        assert np.any(shut) and not np.all(shut)


# Moving back.


def test_the_weight_of_trajectories_couples_them_whatever_is_gated():
    turns = make_layout(
        np.ones(4, bool), {"trajectory": np.zeros(2, int)}, cell_id=np.arange(4) // 2, finest="turn"
    )
    for weight, coupled in (("token", "turn"), ("trajectory", "trajectory")):
        config = {"name": "silent", "weight": weight, "order": ("turn",)}
        config["levels"] = {"turn": {"budget": 5.0}}
        built, budgets = gates.from_config(config, turns.levels)
        assert built.couples(budgets, turns) == coupled


def test_with_one_level_and_the_weight_of_trajectories_it_is_gspo():
    l, a = problem(3)
    a = a[np.searchsorted(TRAJECTORY, TRAJECTORY)]  # One advantage a trajectory, as GSPO has it.
    low, high = 0.03, 0.04
    whole = {"trajectory": (np.log1p(high), -np.log1p(-low))}
    hierarchy = made(whole, epsilon=np.inf, weight_cap=np.inf, weight="trajectory")
    bounds = {"clip_low": low, "clip_high": high}
    found = coefficients(lambda *at: gate(*at, hierarchy), l, a, LAYOUT)
    expected = coefficients(lambda *at: gspo(*at, **bounds), l, a, LAYOUT)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert 0 < np.sum(expected == 0) < 21


@pytest.mark.parametrize("scale", SCALES)
@every_form
def test_what_moved_back_at_every_level_is_open_whatever_the_budgets(signal, scale):
    a = np.where(CELLS[2] == 0, 1.0, -1.0)
    l = -a * np.random.default_rng(0).exponential(1.0, 21)
    tiny = {level: 1e-12 for level in LEVELS}
    hierarchy = made(tiny, epsilon=1e-12, signal=signal, budget_scale=scale)
    _, jacobian = value_and_jacobian(l, a, hierarchy)
    np.testing.assert_allclose(np.diag(jacobian), np.minimum(np.exp(l), 1.5), rtol=1e-14)


@every_form
def test_no_level_closes_a_cell_that_moved_back(signal):
    """Each level by itself: token, trajectory, group and domain."""
    tiny = {level: 1e-12 for level in LEVELS}
    counts = np.zeros(4, int)
    for seed in range(4):
        l, a = problem(seed, 0.3)
        masks = clipped(l, a, LAYOUT, made(tiny, epsilon=1e-12, signal=signal))
        signed = side(a) * np.concatenate([l[None], drifts(l)])
        for k, level in enumerate(("token", *LEVELS)):
            back = signed[k] <= 0
            assert not np.any(np.asarray(masks[level])[back & (l <= np.log(1.5))])
            counts[k] += back.sum()
    assert np.all(counts > 0)


def test_a_cell_that_stands_still_is_not_closed_because_its_siblings_moved_back():
    """The plain residual would be .1, on a budget of .06."""
    l = np.where(TRAJECTORY == 0, 0.0, np.where(TRAJECTORY == 1, -0.2, 0.0))
    _, jacobian = value_and_jacobian(l, np.ones(21), made(signal="residual"))
    np.testing.assert_array_equal(np.diag(jacobian)[TRAJECTORY == 0], 1)


def test_open_residuals_bound_the_drift_of_every_level():
    """`s Dₖ ≤ Σⱼ Cⱼ` over the levels from `k` up, where all of them are open."""
    budget, seen = pairs(), 0
    for seed in range(20):
        l, a = problem(seed, 0.06)
        masks = clipped(l, a, LAYOUT, made(signal="residual"))
        free = ~np.any([masks[level] for level in LEVELS], axis=0)
        s = side(a)
        column = np.where(s > 0, 0, 1)
        for k in range(3):
            bound = budget[k:].sum(axis=0)[column]
            assert np.all((s * drifts(l)[k])[free] <= bound[free] + 1e-15)
            seen += np.sum((s * drifts(l)[k])[free] > budget[k][column][free])
    assert seen > 0  # Beyond their own budgets, and open: what the sum is for.


# The value.


@every_form
@pytest.mark.parametrize("seed", range(3))
def test_the_value_is_a_pessimistic_surrogate_between_zero_and_the_drift(signal, seed):
    l, a = problem(seed, 0.4)
    value, jacobian = value_and_jacobian(l, a, made(signal=signal))
    capped, contribution = np.minimum(np.exp(l), 1.5), value * a
    assert np.all(contribution <= capped * a + 1e-15)
    shut = np.diag(jacobian) == 0
    np.testing.assert_allclose(contribution[~shut], (capped * a)[~shut], rtol=1e-14)
    assert np.any(contribution[shut] < (capped * a)[shut] - 1e-3)
    log_value = np.log(value)
    assert np.all(log_value * np.sign(l) >= 0) and np.all(abs(log_value) <= abs(l) + 1e-15)


@every_form
def test_the_value_is_continuous(signal):
    """Along lines through all boundaries: no step is larger than a Lipschitz bound of that in ℓ."""
    steps = np.linspace(-1, 1, 2001)
    bound = 2 if signal == "drift" else 3
    jumps = 0
    for seed in range(3):
        l, a = problem(seed, 0.5)
        path = jnp.asarray(steps[:, None] * l)
        run = jax.jit(jax.vmap(lambda l, a=a: gate(l, a, LAYOUT, made(signal=signal))))
        log_value = np.log(np.asarray(run(path)))
        step = np.abs(np.diff(np.asarray(path), axis=0)).max(axis=1, keepdims=True)
        assert np.all(np.abs(np.diff(log_value, axis=0)) <= bound * step + 1e-12)
        jumps += np.sum(np.diff(log_value, axis=0) == 0)
    assert jumps > 0  # Tokens at their budgets are among them.


@every_form
def test_a_token_that_has_not_moved_keeps_one_whatever_its_siblings_do(signal):
    rng = np.random.default_rng(0)
    still = rng.random(21) < 0.4
    for size in (0.05, 0.5, 20.0):
        l = np.where(still, 0.0, rng.normal(0, size, 21))
        value, _ = value_and_jacobian(l, rng.normal(size=21), made(signal=signal))
        np.testing.assert_array_equal(value[still], 1)


def test_a_drifted_sibling_closes_only_through_a_level_over_its_own_budget():
    """Two trajectories of 12 tokens, one drifted by .2: the group's drift is .1."""
    layout = make_layout(
        np.ones(24, bool), {"group": np.array([0, 0])}, cell_id=np.repeat([0, 1], 12)
    )
    l = np.repeat([0.2, 0.0], 12)

    @jax.jit
    def value_and_slope(l, a, hierarchy):
        value, back = jax.vjp(lambda l: gate(l, a, layout, hierarchy), l)
        return value, back(jnp.ones(24))[0]

    def run(group, a):
        hierarchy = made({"trajectory": 0.06, "group": group}, epsilon=1.0)
        value, slope = value_and_slope(jnp.asarray(l), jnp.full(24, a), hierarchy)
        return np.asarray(value)[[0, 12]], np.asarray(slope)[[0, 12]]

    value, slope = run(0.12, 1.0)
    np.testing.assert_allclose(value, [np.exp(0.06), 1], rtol=1e-14)
    np.testing.assert_array_equal(slope, [0, 1])
    value, slope = run(0.05, 1.0)  # The group is over its budget: silent, and still 1.
    np.testing.assert_allclose(value, [np.exp(0.06), 1], rtol=1e-14)
    np.testing.assert_array_equal(slope, [0, 0])
    value, slope = run(0.05, -1.0)  # And open on its way back.
    np.testing.assert_allclose(value, np.exp([0.2, 0]), rtol=1e-14)
    np.testing.assert_allclose(slope, np.exp([0.2, 0]), rtol=1e-14)


def test_each_constraint_takes_back_its_own_overshoot_and_the_largest_counts():
    layout = make_layout(np.ones(4, bool), cell_id=np.zeros(4, int))
    l, ones = np.array([0.5, 0.1, 0.02, -0.02]), np.ones(4)
    value = jax.jit(gate)(l, ones, layout, made({"trajectory": 0.1}, epsilon=0.2))
    # The mean is .15, .05 too much; the first token is .3 beyond its own budget.
    np.testing.assert_allclose(np.log(value), [0.2, 0.05, 0, -0.02], atol=1e-15)


def test_a_log_ratio_that_is_not_a_number_is_never_hidden():
    l, a = problem(0)
    l[4] = np.nan
    assert np.isnan(np.asarray(gate(l, a, LAYOUT, made()))[4])


# What a level's statistics can show.


def test_budgets_follow_the_noise_of_a_mean():
    """The same drift over more children is further beyond its noise."""
    layout = make_layout(np.ones(20, bool), cell_id=np.repeat([0, 1], [4, 16]))
    l, ones = np.full(20, 0.04), np.ones(20)

    def shut(**options):
        found = clipped(l, ones, layout, made({"trajectory": 0.1}, **options))["trajectory"]
        return np.asarray(found)[[0, 4]]

    np.testing.assert_array_equal(shut(), [False, False])
    np.testing.assert_array_equal(shut(budget_scale="noise"), [False, True])  # .05 and .025


def test_budgets_follow_the_dispersion_of_rewards():
    """Under `R − R̄` a group's factor is the authors'; a trajectory's budget is its own."""
    reward = np.array([1.0, 0.0, 0.25, 0.5, 0.5, 0.5])
    of_trajectories = dr_grpo(jnp.asarray(reward), jnp.asarray(GROUP), 3)
    a = np.asarray(of_trajectories)[TRAJECTORY]
    found = factors("dispersion", jnp.asarray(a), LAYOUT, LEVELS)
    want = dispersion(jnp.asarray(reward), LAYOUT)["group"]
    assert set(found) == {"group", "domain"}
    np.testing.assert_allclose(found["group"], want, rtol=1e-14)
    np.testing.assert_allclose(found["domain"], [(want[0] + want[1]) / 2, want[2]], rtol=1e-14)

    l = np.full(21, 0.04)
    hierarchy = made({"trajectory": 0.1, "group": 0.1, "domain": 0.1}, budget_scale="dispersion")
    masks = clipped(l, a, LAYOUT, hierarchy)
    # Factors .5, 0 and 0 of groups, .25 and 0 of domains: budgets of .05, .025 and 0.
    assert not np.any(masks["trajectory"])
    np.testing.assert_array_equal(masks["group"], (GROUP[TRAJECTORY] > 0) & (a >= 0))
    np.testing.assert_array_equal(masks["domain"], a >= 0)


@pytest.mark.parametrize("levels", [("group",), ("turn", "trajectory", "group"), ("trajectory",)])
def test_dispersion_scales_the_levels_above_trajectories_alone(levels):
    turns = np.repeat(np.arange(4), 2)
    tower = {"trajectory": np.array([0, 0, 1, 2]), "group": np.array([0, 0, 1])}
    layout = make_layout(np.ones(8, bool), tower, cell_id=turns, finest="turn")
    a = jnp.array([2.0, 2.0, 2.0, 2.0, -3.0, -3.0, 0.0, 0.0])
    shut = clipped(jnp.full(8, 0.3), a, layout, made(dict.fromkeys(levels, 0.2), epsilon=1.0))
    scaled = made(dict.fromkeys(levels, 0.2), epsilon=1.0, budget_scale="dispersion")
    opened = clipped(jnp.full(8, 0.3), a, layout, scaled)
    good = np.asarray(a) >= 0
    for level in levels:
        np.testing.assert_array_equal(shut[level], good)
        # The first group's factor is (2 + 3)/2: its budget is .5.
        np.testing.assert_array_equal(opened[level], good & (level != "group") | (np.arange(8) > 5))


def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def test_the_noise_of_a_mean_is_that_of_a_policy_nearby():
    """Exact moments over a vocabulary, and of trajectories sampled from it."""
    rng = np.random.default_rng(0)
    z, move = rng.normal(size=(2, 12))
    for size, tolerance in ((0.2, 0.1), (0.02, 0.01)):
        old, new = softmax(z), softmax(z + size * move)
        l = np.log(new / old)
        kl = -np.sum(old * l)
        mean, deviation = drift_noise(kl, 1)
        np.testing.assert_allclose(np.sum(old * l), mean, rtol=1e-12)
        np.testing.assert_allclose(np.sqrt(np.sum(old * l**2) - kl**2), deviation, rtol=tolerance)
    drawn = l[rng.choice(12, size=(4000, 25), p=old)].mean(axis=1)
    mean, deviation = drift_noise(kl, 25)
    np.testing.assert_allclose(drawn.std(), deviation, rtol=0.05)
    # Budgets of two deviations close few that did not drift; tiny ones close half of them.
    plus, minus = 2 * deviation + mean, 2 * deviation - mean
    assert np.mean(drawn > plus) < 0.05 and np.mean(-drawn > minus) < 0.05
    assert 0.35 < np.mean(drawn > 1e-6) < 0.5


# Configs.


def test_options_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match=r"signal 'drifts' does not exist.*'residual'"):
        made(signal="drifts")
    with pytest.raises(ValueError, match=r"budget_scale 'root' does not exist.*'noise'"):
        made(budget_scale="root")
    with pytest.raises(ValueError, match=r"config\.gate\.pessimistic = True.*weight"):
        gates.from_config(silent(2, pessimistic=True), LEVELS)
    with pytest.raises(ValueError, match=r"config\.gate\.weight_cap = 0.*above 0"):
        gates.from_config({**silent(2), "weight_cap": 0}, LEVELS)
