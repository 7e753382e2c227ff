"""What the variants of the bundle hold of the method's theorems, and what they do instead."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from cases import LEVELS, hierarchy

from fiberjax import gates
from fiberjax.gates import bundle
from fiberjax.gates.hierarchy import Hierarchy, clipped, fgh
from fiberjax.gates.levelwise import dispersion, gated_drift, levelwise
from fiberjax.layout import make_layout

TRAJECTORY = np.repeat(np.arange(6), [3, 5, 1, 4, 2, 6])
GROUP, DOMAIN = np.array([0, 0, 1, 2, 2, 2]), np.array([0, 0, 1])
LAYOUT = make_layout(np.ones(21, bool), {"group": GROUP, "domain": DOMAIN}, cell_id=TRAJECTORY)
BUDGETS = {"trajectory": (0.06, 0.04), "group": (0.03, 0.02), "domain": 0.015}
WIDE = {"budgets": dict.fromkeys(LEVELS, 1e9), "epsilon": 1e9}
FORMS = (
    {"signs": "resigned"},
    {"deviation": "ratio"},
    {"upper_negative": 0.25},
    {"budget_scale": "dispersion"},
    {"signs": "resigned", "deviation": "ratio", "upper_negative": 20.0, "lift": "bounded"},
)
every_form = pytest.mark.parametrize("form", FORMS, ids=lambda form: "+".join(form))


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def made(**options):
    return Hierarchy(**{"budgets": BUDGETS, "epsilon": 0.1, **options})


@jax.jit
def compiled(l, a, hierarchy):
    def gated(l):
        return fgh(l, a, LAYOUT, hierarchy)

    return gated(l), jax.jacrev(gated)(l)


def value_and_jacobian(l, a, hierarchy):
    return tuple(map(np.asarray, compiled(jnp.asarray(l), jnp.asarray(a), hierarchy)))


@jax.jit
def masks_of(l, a, hierarchy):
    return clipped(l, a, LAYOUT, hierarchy)


def problem(seed, scale=0.1):
    return np.random.default_rng(seed).normal(0, (scale, 1), (21, 2)).T


@pytest.mark.parametrize("form", [*FORMS, {"alpha": 1.7}], ids=lambda form: "+".join(form))
def test_agrees_with_the_loop_written_reference(form):
    for seed in range(3):
        l, a = problem(seed)
        pairs = [np.broadcast_to(BUDGETS[level], 2) for level in LEVELS]
        want = reference.fgh(l, a, TRAJECTORY, [GROUP, DOMAIN], budgets=pairs, epsilon=0.1, **form)
        np.testing.assert_allclose(value_and_jacobian(l, a, made(**form))[0], want, rtol=1e-12)


@every_form
def test_the_theorems_of_the_hierarchy_hold(form):
    """Identity on-policy, open gates, blocks of the coarsest cells, independent budgets."""
    l, a = problem(1)
    value, jacobian = value_and_jacobian(np.zeros(21), a, made(**form))
    np.testing.assert_array_equal(value, 1)
    np.testing.assert_allclose(jacobian, np.eye(21), atol=1e-15)

    wide = {name: 1e9 for name in form if name == "upper_negative"}
    value, jacobian = value_and_jacobian(l, a, made(**{**form, **WIDE, **wide}))
    np.testing.assert_allclose(value, np.exp(l), rtol=1e-13)
    np.testing.assert_allclose(jacobian, np.diag(np.exp(l)), atol=1e-14)

    here = DOMAIN[GROUP[TRAJECTORY]] == 0
    before = value_and_jacobian(l, a, made(**form))
    after = value_and_jacobian(np.where(here, l, 0.3 - 2 * l), a, made(**form))
    for x, y in zip(before, after, strict=True):
        np.testing.assert_array_equal(x[here], y[here])
        assert np.any(x[~here] != y[~here])

    ten, three, tight = (
        value_and_jacobian(l, a, made(**form, budgets={**BUDGETS, "group": c}))
        for c in (10.0, 3.0, 1e-4)
    )
    for x, y, z in zip(ten, three, tight, strict=True):
        np.testing.assert_array_equal(x, y)
        assert np.any(x != z)


# Cells re-signed on their way up.


def towers(l, layout=LAYOUT):
    l = jnp.asarray(l, float)
    return [bundle.tower(l, layout, variant="published", signs=signs) for signs in bundle.SIGNS]


def test_residuals_of_siblings_sum_to_zero_with_their_sign_and_not_by_channel():
    """What is left over by channel is the smaller of the two, of every sibling."""
    largest = 0.0
    for seed in range(3):
        _, tower = towers(problem(seed)[0])
        for k in (0, 1):
            both = np.asarray(LAYOUT.pushforward(tower.residual[k], k))
            np.testing.assert_allclose(both[:, 0] - both[:, 1], 0, atol=1e-15)
            left = LAYOUT.pushforward(jnp.min(tower.drift[k], axis=-1), k)
            np.testing.assert_allclose(both[:, 0], left, atol=1e-15)
            largest = max(largest, np.max(left))
    assert largest > 0.01


def test_what_cancels_within_a_cell_is_not_seen_above_it():
    token, resigned = towers(np.where(TRAJECTORY == 3, 0.1, 0.0))
    for x, y in zip(jax.tree.leaves(token), jax.tree.leaves(resigned), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-17)  # One sign alone: the same tower.
    l = np.zeros(21)
    l[9:13] = 0.1, -0.1, 0.2, -0.2  # The four tokens of trajectory 3.
    token, resigned = towers(l)
    np.testing.assert_allclose(token.drift[1][2], [0.025, 0.025], rtol=1e-12)
    np.testing.assert_allclose(resigned.drift[1][2], 0, atol=1e-17)
    np.testing.assert_array_equal(token.drift[0], resigned.drift[0])


def test_one_level_has_nothing_to_re_sign():
    token, resigned = towers(problem(0)[0], LAYOUT.select(["trajectory"]))
    for x, y in zip(jax.tree.leaves(token), jax.tree.leaves(resigned), strict=True):
        np.testing.assert_array_equal(x, y)
    assert np.any(token.drift[0] > 0) and len(token.drift) == 1


# Ratio deviations.


def test_ratio_deviations_agree_with_logs_to_first_order():
    """Closed gates too: `r − 1` is the log ratio but for its square."""
    l, a = problem(0, 1.0)
    gaps = []
    for size in (1e-2, 1e-3):
        budgets = {level: np.multiply(size, BUDGETS[level]) for level in LEVELS}
        options = {"budgets": budgets, "epsilon": 0.5 * size}
        log, ratio = (
            value_and_jacobian(size * l, a, made(**options, deviation=d))[0]
            for d in ("log", "ratio")
        )
        assert np.max(np.abs(log - np.exp(size * l))) > 0.1 * size
        gaps.append(np.max(np.abs(log - ratio)))
    assert gaps[0] < 50e-4 and gaps[1] < 0.02 * gaps[0]


def test_ratio_deviations_are_held_to_twenty_nats():
    l = np.zeros(21)
    l[8] = 30.0  # The one token of trajectory 2.
    value, jacobian = value_and_jacobian(l, np.ones(21), made(**WIDE, deviation="ratio"))
    np.testing.assert_allclose(value[8], np.exp(20.0), rtol=1e-12)
    assert jacobian[8, 8] == 0 and np.all(np.diag(jacobian)[l == 0] == 1)
    masks = masks_of(l, np.ones(21), made(**WIDE, deviation="ratio"))
    np.testing.assert_array_equal(masks["token"], l == 30.0)


# The exponent of the base weight.


def test_alpha_scales_the_base_weight_alone():
    l, a = problem(2)
    own = TRAJECTORY[:, None] == TRAJECTORY
    mean = own / own.sum(axis=1, keepdims=True)
    wide = made(**WIDE, alpha=3.0)
    value, jacobian = value_and_jacobian(l, a, wide)
    np.testing.assert_allclose(np.log(value), l + 2.0 * mean @ l, rtol=1e-12)
    # On-policy it is no first-order agreement: a trajectory moves together, as often as α says.
    value, jacobian = value_and_jacobian(np.zeros(21), a, made(alpha=3.0))
    np.testing.assert_array_equal(value, 1)
    np.testing.assert_allclose(jacobian, np.eye(21) + 2.0 * mean, rtol=1e-14)
    for x, y in zip(
        value_and_jacobian(l, a, made(alpha=1.0)), value_and_jacobian(l, a, made()), strict=True
    ):
        np.testing.assert_array_equal(x, y)


def test_alpha_parts_the_peak_weight_from_where_the_rollback_begins():
    """`α = δ/(2C)`: a trajectory that drifts evenly peaks at `C`, with weight `exp(δ/2)`."""
    delta, budget = 0.4, 0.05
    drifts = jnp.linspace(0, 2 * budget, 2001)
    options = {"epsilon": 0.01, "alpha": delta / (2 * budget)}
    one = Hierarchy(budgets={"trajectory": budget}, **options)
    layout = make_layout(np.ones(4, bool), cell_id=np.zeros(4, int))
    along = jax.vmap(lambda d: fgh(jnp.full(4, d), jnp.ones(4), layout, one)[0])
    value = jax.jit(along)(drifts)
    best = int(np.argmax(value))
    np.testing.assert_allclose(drifts[best], budget, rtol=1e-9)
    np.testing.assert_allclose(value[best], np.exp(delta / 2), rtol=1e-9)


# The upper token budget of bad tokens.


def test_the_upper_budget_is_that_of_bad_tokens_above_their_cells():
    changed = opened = 0
    for seed in range(3):
        l, a = problem(seed, 0.3)
        one, twenty = (made(upper_negative=upper) for upper in (0.1, 20.0))
        before, after = (value_and_jacobian(l, a, h)[0] for h in (one, twenty))
        shut = [np.asarray(masks_of(l, a, h)["token"]) for h in (one, twenty)]
        np.testing.assert_array_equal(before[a >= 0], after[a >= 0])
        # An upper clip is gone, and what stays of the others is the same.
        plus = l >= 0
        assert np.all(after[plus] >= before[plus]) and np.all(shut[1] <= shut[0])
        changed, opened = changed + np.sum(before != after), opened + np.sum(shut[1] < shut[0])
    assert changed > 0 and opened > 0


# Combinations.


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"signs 'both' does not exist.*'resigned'"):
        made(signs="both")
    with pytest.raises(ValueError, match=r"deviation 'tv' does not exist.*'ratio'"):
        made(deviation="tv")
    config = hierarchy(2, variant="exact", signs="resigned")
    with pytest.raises(ValueError, match=r"config\.gate: signs 'resigned' needs.*'published'"):
        gates.from_config(config, LEVELS)


# Budgets by cell, and by the dispersion of rewards.


def test_budgets_by_cell_hold_each_cell_to_its_own():
    l, a = problem(0)
    same = {
        level: np.broadcast_to(BUDGETS[level], (n, 2))
        for level, n in zip(LEVELS, (6, 3, 2), strict=True)
    }
    for x, y in zip(
        value_and_jacobian(l, a, made(budgets=same)), value_and_jacobian(l, a, made()), strict=True
    ):
        np.testing.assert_array_equal(x, y)
    tight = {**same, "trajectory": np.where(np.arange(6)[:, None] == 4, 1e-4, same["trajectory"])}
    before, after = (value_and_jacobian(l, a, made(budgets=b))[0] for b in (same, tight))
    np.testing.assert_array_equal(before != after, TRAJECTORY == 4)


def test_dispersion_is_the_mean_distance_from_the_cells_mean():
    reward = np.array([1.0, 0.0, 0.25, 0.5, 0.5, 0.5])
    dispersed = jax.jit(lambda reward: dispersion(reward, LAYOUT))
    found = dispersed(jnp.asarray(reward))
    assert set(found) == {"group", "domain"}
    for ids, level in ((GROUP, "group"), (DOMAIN[GROUP], "domain")):
        want = [
            np.mean(np.abs(reward[ids == c] - reward[ids == c].mean())) for c in range(max(ids) + 1)
        ]
        np.testing.assert_allclose(found[level], want, rtol=1e-14, atol=1e-16)
    moved = dispersed(jnp.asarray(5 - 3 * reward))
    np.testing.assert_allclose(moved["domain"], 3 * found["domain"], rtol=1e-13)
    # A budget of 0 closes what moved, and on-policy it is the identity still.
    budgets = {**BUDGETS, "group": 0.1 * found["group"][:, None] * np.ones(2)}
    assert float(budgets["group"][2, 0]) == 0
    _, jacobian = value_and_jacobian(np.zeros(21), np.ones(21), made(budgets=budgets))
    np.testing.assert_allclose(jacobian, np.eye(21), atol=1e-15)


# Levels with advantages of their own.


@jax.jit
def drifts_and_terms(l, advantages, hierarchy):
    return gated_drift(l, LAYOUT, hierarchy)[1], levelwise(l, advantages, LAYOUT, hierarchy)


def levels_of(rng):
    return {level: rng.normal(size=n) for level, n in zip(LEVELS, (6, 3, 2), strict=True)}


@pytest.mark.parametrize("form", [{}, FORMS[-1]], ids=["published", "resigned"])
def test_each_level_meets_its_own_advantage(form):
    """The sum as the authors write it, trajectory by trajectory."""
    l, _ = problem(0)
    advantages, options = levels_of(np.random.default_rng(1)), made(**form)
    (tau, group, domain), got = drifts_and_terms(jnp.asarray(l), advantages, options)
    for i, t in enumerate(TRAJECTORY):
        g, d = GROUP[t], DOMAIN[GROUP[t]]
        want = domain[d] * advantages["domain"][d]
        want += (group[g] - domain[d]) * advantages["group"][g]
        want += (tau[t] - group[g]) * advantages["trajectory"][t]
        np.testing.assert_allclose(got[i], want, rtol=1e-12, atol=1e-15)
    # The finest of them is the base weight of the gate itself.
    wide = {**form, "epsilon": 1e-12, "upper_negative": None}
    base = value_and_jacobian(l, np.ones(21), made(**wide))[0]
    base = base - 1 if form else np.log(base)
    np.testing.assert_allclose(np.asarray(tau)[TRAJECTORY], base, atol=1e-11)


def test_centred_advantages_leave_the_upper_levels_nothing():
    """Advantages of trajectories, centred in their groups: other upper budgets change nothing."""
    l, _ = problem(0)
    rng = np.random.default_rng(0)
    centred = rng.normal(size=6)
    for g in range(3):
        centred[GROUP == g] -= centred[GROUP == g].mean()

    @jax.jit
    def value_and_slope(l, advantage, hierarchy):
        def total(l):
            _, (tau, *_) = gated_drift(l, LAYOUT, hierarchy)
            return jnp.mean(tau * advantage)

        return jax.value_and_grad(total)(l)

    def value(budgets, advantage):
        return value_and_slope(jnp.asarray(l), advantage, made(budgets=budgets))

    tight = {**BUDGETS, "group": 1e-4, "domain": 1e-4}
    for x, y in zip(value(BUDGETS, centred), value(tight, centred), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-15)
    assert abs(value(BUDGETS, centred + 1)[0] - value(tight, centred + 1)[0]) > 1e-4


@pytest.mark.parametrize("form", [{}, FORMS[-1]], ids=["published", "resigned"])
def test_averaged_advantages_are_one_advantage_a_trajectory(form):
    """Cells whose advantage is the mean of their trajectories' change nothing in the sum."""
    l, _ = problem(0)
    own, count = np.random.default_rng(2).normal(size=6), np.bincount(TRAJECTORY)
    domain = DOMAIN[GROUP]
    averaged = {
        "trajectory": own,
        "group": np.bincount(GROUP, own) / np.bincount(GROUP),
        "domain": np.bincount(domain, own) / np.bincount(domain),
    }

    @jax.jit
    def values_and_slopes(l, advantages, hierarchy):
        def by_level(l):
            return jnp.sum(levelwise(l, advantages, LAYOUT, hierarchy) / count[TRAJECTORY])

        def by_trajectory(l):
            return jnp.sum(gated_drift(l, LAYOUT, hierarchy)[1][0] * advantages["trajectory"])

        return [jax.value_and_grad(of)(l) for of in (by_level, by_trajectory)]

    one, other = values_and_slopes(jnp.asarray(l), averaged, made(**form))
    for x, y in zip(one, other, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-15)
    # Of other numbers it is not so.
    averaged["group"] = averaged["group"] + np.array([0.5, -0.5, 0])
    one, other = values_and_slopes(jnp.asarray(l), averaged, made(**form))
    assert abs(one[0] - other[0]) > 1e-4


def test_a_trajectorys_advantage_at_every_level_gives_its_own_drift_back():
    l, _ = problem(0)
    advantage = np.random.default_rng(0).normal(size=2)[DOMAIN[GROUP]]
    advantages = {
        "trajectory": advantage,
        "group": advantage[[0, 2, 3]],
        "domain": advantage[[0, 3]],
    }
    (tau, *_), got = drifts_and_terms(jnp.asarray(l), advantages, made())
    np.testing.assert_allclose(got, (np.asarray(tau) * advantage)[TRAJECTORY], atol=1e-15)


def test_advantages_of_other_levels_are_refused():
    with pytest.raises(
        ValueError, match=r"advantages are of levels \('group',\); expected .*'domain'"
    ):
        levelwise(jnp.zeros(21), {"group": np.zeros(3)}, LAYOUT, made())
    with pytest.raises(ValueError, match=r"budget_scale 'dispersion' reads one advantage a token"):
        gated_drift(jnp.zeros(21), LAYOUT, made(budget_scale="dispersion"))
