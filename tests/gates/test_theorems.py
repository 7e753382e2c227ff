"""What the method claims, each claim in float64: at zero, off it, and by differences."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from cases import LEVELS, hierarchy
from hypothesis import given, settings
from hypothesis import strategies as st

from fiberjax import gates, objective
from fiberjax.gates import aggregate, bundle
from fiberjax.gates.channels import prepare
from fiberjax.gates.hierarchy import Hierarchy, fgh, fiberpo, inspect
from fiberjax.layout import make_layout

OPEN = {level: 1e9 for level in LEVELS}


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def make(lengths, group=None, domain=None):
    """A flat layout of trajectories of these lengths."""
    trajectory = np.repeat(np.arange(len(lengths)), lengths)
    parents = {}
    if group is not None:
        parents["group"] = np.asarray(group)
    if domain is not None:
        parents["domain"] = np.asarray(domain)
    return make_layout(np.ones(trajectory.shape, bool), parents, cell_id=trajectory), trajectory


def one_level(budget, epsilon, variant="published"):
    return Hierarchy(budgets={"trajectory": budget}, epsilon=epsilon, variant=variant)


def log_jacobian(gate, log_ratio):
    return jax.jit(jax.jacrev(lambda l: jnp.log(gate(l))))(jnp.asarray(log_ratio))


TOWER = ([3, 5, 1, 4, 2, 6], [0, 0, 1, 2, 2, 2], [0, 0, 1])
VARIANTS = pytest.mark.parametrize("variant", bundle.VARIANTS)
BASES = pytest.mark.parametrize("base_gate", list(aggregate.BASE_GATES))


def random_log_ratio(seed, n, scale=0.2):
    return np.random.default_rng(seed).normal(0, scale, n)


# FiberPO.


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("scale", [0.02, 0.1, 0.5])
def test_fiberpo_has_the_closed_jacobian(seed, scale):
    """∂ log G/∂ℓ, from the definition, against automatic differentiation."""
    layout, trajectory = make([4, 7, 1, 12])
    l = random_log_ratio(seed, 24, scale)
    budget, epsilon = (0.06, 0.04), 0.05
    got = log_jacobian(lambda l: fiberpo(l, l, layout, one_level(budget, epsilon)), l)
    want = np.zeros((24, 24))
    sign = np.where(l >= 0, 1, -1)
    for i in range(24):
        mates = np.flatnonzero(trajectory == trajectory[i])
        T = len(mates)
        drift = {s: np.sum(np.maximum(s * l[mates], 0)) / T for s in (1, -1)}
        slope = {}
        for s, c in ((1, budget[0]), (-1, budget[1])):
            slope[s] = 1 if drift[s] <= c else (-T if drift[s] < (1 + 1 / T) * c else 0)
        u, v = sign[i] * l[i] - drift[sign[i]], -drift[-sign[i]]
        for j in mates:
            same = sign[i] == sign[j]
            want[i, j] = slope[sign[j]] / T
            want[i, j] += (abs(u) <= epsilon) * ((i == j) - same / T)
            want[i, j] -= (abs(v) <= epsilon) * (not same) / T
    np.testing.assert_allclose(got, want, atol=1e-12)


@VARIANTS
@BASES
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_on_policy_the_jacobian_is_the_identity(variant, base_gate, depth):
    layout, _ = make(*TOWER)
    budgets = {level: 0.1 for level in LEVELS[:depth]}

    def gate(l):
        options = {"variant": variant, "base_gate": base_gate}
        return fgh(l, l, layout, Hierarchy(budgets=budgets, epsilon=0.05, **options))

    np.testing.assert_allclose(log_jacobian(gate, np.zeros(21)), np.eye(21), atol=1e-15)


@VARIANTS
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_open_gates_give_the_ratio(variant, depth):
    layout, _ = make(*TOWER)
    l = random_log_ratio(0, 21, 1.0)
    budgets = {level: 1e9 for level in LEVELS[:depth]}
    gated = fgh(l, l, layout, Hierarchy(budgets=budgets, epsilon=1e9, variant=variant))
    np.testing.assert_allclose(gated, np.exp(l), rtol=1e-14)


@VARIANTS
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_jacobian_is_block_diagonal_over_the_coarsest_cells(variant, depth):
    layout, trajectory = make(*TOWER)
    budgets = {level: 0.03 for level in LEVELS[:depth]}
    l = random_log_ratio(1, 21)
    jacobian = log_jacobian(
        lambda l: fgh(l, l, layout, Hierarchy(budgets=budgets, epsilon=0.1, variant=variant)), l
    )
    cell = reference.cells(trajectory, [np.array(x) for x in TOWER[1:]], depth - 1)
    same = cell[:, None] == cell[None]
    np.testing.assert_array_equal(np.asarray(jacobian)[~same], 0)
    assert np.any(np.asarray(jacobian)[same & ~np.eye(21, dtype=bool)])


def test_trajectory_terms_are_of_order_one_over_length_but_for_the_rollback():
    for length in (10, 100, 400):
        layout, _ = make([length])
        l = np.full(length, 0.1)
        l[0] = 0.1001

        def off_diagonal(budget, l=l, layout=layout, length=length):
            jacobian = log_jacobian(lambda l: fiberpo(l, l, layout, one_level(budget, 0.05)), l)
            return np.asarray(jacobian)[~np.eye(length, dtype=bool)]

        assert np.abs(off_diagonal(1.0)).max() < 2 / length
        assert np.abs(off_diagonal(0.01)).max() < 2 / length
        # Just beyond the budget: slope −T makes the terms O(1), against the drift.
        rollback = off_diagonal(0.1 / (1 + 0.3 / length))
        np.testing.assert_allclose(rollback, -1 - 1 / length, rtol=1e-9)


@functools.cache
def compiled(depth, variant):
    layout, _ = make(*TOWER)
    return jax.jit(
        lambda l, budgets: fgh(
            l, l, layout, Hierarchy(budgets=budgets, epsilon=0.1, variant=variant)
        )
    )


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 10**6), st.floats(0.01, 1.0), st.integers(1, 3), st.sampled_from(bundle.VARIANTS)
)
def test_finite_differences_agree_away_from_kinks(seed, scale, depth, variant):
    rng = np.random.default_rng(seed)
    l, direction = rng.normal(0, scale, (2, 21))
    budgets = {level: rng.uniform(0.01, 0.3, 2) for level in LEVELS[:depth]}

    gate = functools.partial(compiled(depth, variant), budgets=budgets)
    value, slope = jax.jvp(gate, (jnp.asarray(l),), (jnp.asarray(direction),))
    h = 1e-7
    ahead, behind = gate(l + h * direction), gate(l - h * direction)
    forward, backward = (ahead - value) / h, (value - behind) / h
    smooth = np.abs(forward - backward) < 1e-3 * (1 + np.abs(forward))
    central = (ahead - behind) / (2 * h)
    np.testing.assert_allclose(slope[smooth], central[smooth], rtol=1e-4, atol=1e-5)
    assert smooth.mean() > 0.5


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.005, 0.3))
def test_long_trajectories_agree_along_a_direction(seed, scale):
    layout, _ = make([1, 47, 2000], [0, 0, 1])
    rng = np.random.default_rng(seed)
    l, direction = rng.normal(0, scale, (2, 2048))
    budgets = {"trajectory": (0.11, 0.09), "group": (0.06, 0.05)}

    def total(l):
        return jnp.sum(jnp.log(fgh(l, l, layout, Hierarchy(budgets=budgets, epsilon=0.05)))) / 2048

    forward = jax.jvp(total, (jnp.asarray(l),), (jnp.asarray(direction),))[1]
    reverse = jax.grad(total)(jnp.asarray(l)) @ direction
    np.testing.assert_allclose(forward, reverse, rtol=1e-9, atol=1e-12)
    h = 1e-9
    ahead, here, behind = (total(l + s * h * direction) for s in (1, 0, -1))
    if abs(ahead - 2 * here + behind) < 1e-3 * h:
        np.testing.assert_allclose(forward, (ahead - behind) / (2 * h), rtol=1e-3, atol=1e-4)


# The aggregate gate.


@settings(max_examples=50, deadline=None)
@given(st.floats(-1, 2), st.floats(0.01, 0.5), st.integers(1, 2000))
def test_the_aggregate_gate_is_an_apc_clip(place, budget, k):
    """One sample whose k siblings drift by the same |x| on a budget of (k + 1)C."""
    # The rollback is from 0 to 1, however narrow.
    x = budget * (1 + place / k)
    shared = np.array([x] * (k + 1))
    unit = (k + 1) * budget - np.sum(np.abs(shared[1:]))
    want = np.clip(x, -max(unit, 0), max(unit, 0))
    got = float(aggregate.rollback(jnp.asarray(x), jnp.asarray(budget), jnp.asarray(float(k))))
    np.testing.assert_allclose(got, want, atol=1e-10 * k)
    np.testing.assert_allclose(got, reference.aggregate(x, budget, k), atol=1e-11 * k)
    odd = aggregate.rollback(jnp.asarray(-x), jnp.asarray(budget), jnp.asarray(float(k)))
    assert float(odd) == -got


def test_the_aggregate_gate_is_continuous_with_slopes_one_minus_k_and_zero():
    slope = jax.vmap(jax.grad(lambda x: aggregate.rollback(x, 0.1, 4.0)))
    xs = jnp.array([-0.2, -0.11, -0.1, -0.05, 0.0, 0.05, 0.1, 0.11, 0.2])
    np.testing.assert_array_equal(slope(xs), [0, -4, 1, 1, 1, 1, 1, -4, 0])
    fine = jnp.linspace(-0.2, 0.2, 100001)
    steps = jnp.diff(aggregate.rollback(fine, 0.1, 4.0))
    assert float(jnp.abs(steps).max()) < 4.1 * 4e-6


# The hierarchy.


@pytest.mark.parametrize("seed", range(3))
def test_one_level_is_fiberpo(seed):
    layout, _ = make(*TOWER)
    l = random_log_ratio(seed, 21)
    one = fgh(l, l, layout, Hierarchy(budgets={"trajectory": (0.1, 0.05)}, epsilon=0.05))
    np.testing.assert_array_equal(one, fiberpo(l, l, layout, one_level((0.1, 0.05), 0.05)))
    with pytest.raises(
        ValueError, match=r"one level, but the budgets name \('trajectory', 'group'"
    ):
        fiberpo(l, l, layout, Hierarchy(budgets={"trajectory": 1, "group": 1}, epsilon=0.1))


def test_a_hierarchy_is_a_pytree_of_its_budgets():
    """Other numbers never retrace, another structure does, and what does not exist is refused."""
    layout, _ = make(*TOWER)
    l = random_log_ratio(0, 21)

    @jax.jit
    @chex.assert_max_traces(n=2)
    def run(hierarchy):
        return fgh(l, l, layout, hierarchy)

    one = one_level((0.1, 0.05), 0.05)
    first = run(one)
    np.testing.assert_allclose(first, fgh(l, l, layout, one), rtol=1e-14)
    for tighter in (one_level((0.01, 0.05), 0.05), one_level((0.1, 0.05), 0.01)):
        assert np.any(run(tighter) != first)
    assert np.any(run(dataclasses.replace(one, variant="exact")) != first)
    with pytest.raises(AssertionError, match="traced > 2 times"):
        run(dataclasses.replace(one, base_gate="hold"))
    with pytest.raises(ValueError, match=r"base_gate 'held' does not exist.*'hold'"):
        dataclasses.replace(one, base_gate="held")


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.01, 2.0), st.sampled_from(bundle.VARIANTS))
def test_residuals_of_siblings_sum_to_zero(seed, scale, variant):
    """The reflecting condition: pushing forward what was lifted gives it back."""
    layout, _ = make(*TOWER)
    l, _ = prepare(jnp.asarray(random_log_ratio(seed, 21, scale)), jnp.zeros(21), layout.mask)
    tower = bundle.tower(l, layout, variant=variant)
    for k in (0, 1):
        np.testing.assert_allclose(layout.pushforward(tower.residual[k], k), 0, atol=1e-14)


def test_budgets_are_independent():
    """Where a level is open, its budget changes nothing, in value and gradient."""
    layout, _ = make(*TOWER)
    l = random_log_ratio(3, 21, 0.2)
    base = {"trajectory": 0.05, "group": 10.0, "domain": 0.02}

    def run(budgets):
        return jax.value_and_grad(
            lambda l: jnp.sum(fgh(l, l, layout, Hierarchy(budgets=budgets, epsilon=0.1)))
        )(jnp.asarray(l))

    for want, got in zip(run(base), run({**base, "group": 3.0}), strict=True):
        np.testing.assert_array_equal(want, got)
    assert run({**base, "group": 1e-3})[0] != run(base)[0]


def test_a_cell_with_one_child_takes_its_place():
    """The only trajectory of a group: its own budget is idle, the group's gates with k = 1."""
    layout, _ = make([5, 4, 3], [0, 1, 1])
    l = random_log_ratio(0, 12, 0.3)
    tight = fgh(l, l, layout, Hierarchy(budgets={"trajectory": 1e-6, "group": 0.05}, epsilon=0.1))
    wide = fgh(l, l, layout, Hierarchy(budgets={"trajectory": 1e6, "group": 0.05}, epsilon=0.1))
    np.testing.assert_array_equal(tight[:5], wide[:5])
    assert np.any(tight[5:] != wide[5:])


def test_other_nestings_are_data():
    """Turns below trajectories: the same code with another list of levels."""
    turn = np.array([0, 0, 1, 1, 1, 2, 3, 3])
    layout = make_layout(
        np.ones(8, bool), {"trajectory": np.array([0, 0, 1, 1])}, cell_id=turn, finest="turn"
    )
    l = random_log_ratio(0, 8)
    budgets = {"turn": (0.05, 0.04), "trajectory": (0.02, 0.01)}
    got = fgh(l, l, layout, Hierarchy(budgets=budgets, epsilon=0.1))
    want = reference.fgh(
        l, l, turn, [np.array([0, 0, 1, 1])], budgets=list(budgets.values()), epsilon=0.1
    )
    np.testing.assert_allclose(got, want, rtol=1e-13)
    over = fgh(l, l, layout, Hierarchy(budgets={"trajectory": (0.02, 0.01)}, epsilon=0.1))
    trajectory = np.array([0, 0, 1, 1])[turn]
    want = reference.fgh(l, l, trajectory, [], budgets=[(0.02, 0.01)], epsilon=0.1)
    np.testing.assert_allclose(over, want, rtol=1e-13)


# The exact bundle.


def test_a_zeroed_channel_of_the_exact_bundle_has_no_net_push():
    layout, _ = make([12])
    l = random_log_ratio(0, 12, 0.002) + np.where(np.arange(12) < 8, 0.5, -0.05)
    budget, epsilon = 0.2, 0.25

    def net_push(variant):
        jacobian = log_jacobian(
            lambda l: fiberpo(l, l, layout, one_level(budget, epsilon, variant)), l
        )
        return float(jnp.sum(jacobian[:, :8]))

    np.testing.assert_allclose(net_push("exact"), 0, atol=1e-13)
    # The published channel divides by all 12 tokens: zeroed, it still pushes by n⁺(1 − n⁺/T).
    np.testing.assert_allclose(net_push("published"), 8 * (1 - 8 / 12), rtol=1e-12)


# The on-policy trap.


def naive_fiberpo(l, trajectory, count, budget, epsilon, maximum):
    """The correction written with `sign(0) = 0`, in place of the two-channel fiber."""
    length = jax.ops.segment_sum(jnp.ones_like(l), trajectory, count)
    plus, minus = (jax.ops.segment_sum(maximum(s * l), trajectory, count) / length for s in (1, -1))
    weight = aggregate.rollback(plus, budget, length) - aggregate.rollback(minus, budget, length)
    s = jnp.sign(l)
    mine = jnp.where(s > 0, plus[trajectory], jnp.where(s < 0, minus[trajectory], 0))
    other = jnp.where(s > 0, minus[trajectory], jnp.where(s < 0, plus[trajectory], 0))
    fiber = aggregate.clip(l - s * mine, epsilon) - aggregate.clip(-s * other, epsilon)
    return jnp.exp(weight[trajectory] + fiber)


@pytest.mark.parametrize(
    ("maximum", "factor"),
    [
        (lambda x: jnp.maximum(x, 0), 2),  # ties split: each channel passes one half
        (lambda x: jnp.where(x >= 0, x, 0), 3),  # clamps pass the gradient at their bound
    ],
)
def test_the_on_policy_trap(maximum, factor):
    """With one advantage a trajectory, the naive first step is two or three times too large."""
    layout, trajectory = make([6, 9])
    advantage = jnp.where(trajectory == 0, 1.0, -0.5)

    def step(gate):
        value = lambda l: objective.surrogate(gate(l), advantage, layout).value  # noqa: E731
        return jax.jit(jax.grad(value))(jnp.zeros(15))

    naive = step(lambda l: naive_fiberpo(l, trajectory, 2, 0.1, 0.05, maximum))
    ours = step(lambda l: fiberpo(l, advantage, layout, one_level(0.1, 0.05)))
    right = step(jnp.exp)
    np.testing.assert_allclose(ours, right, rtol=1e-14)
    np.testing.assert_allclose(naive, factor * right, rtol=1e-14)


# Operators.


@pytest.mark.parametrize("instance", ["ppo", "dapo", "gspo"])
def test_known_methods_are_pessimistic_forms_of_a_plain_clip(instance):
    layout, _ = make(*TOWER)
    rng = np.random.default_rng(0)
    l, a = rng.normal(0, 0.3, (2, 21))
    bounds = {"clip_low": 0.2, "clip_high": 0.28 if instance == "dapo" else 0.2}
    known, budgets = gates.from_config({"name": instance, **bounds}, LEVELS)
    plain, _ = gates.from_config({"name": "clip", "pessimistic": True, **bounds}, LEVELS)
    if instance == "gspo":
        # The plain clip of the trajectory's ratio, as a gate on its mean log ratio.
        mean = np.log(known.limit(l, layout))
        a = np.asarray(layout.lift_tokens(layout.pushforward_tokens(jnp.asarray(a))))
        got = plain(mean, a, layout, budgets)
    else:
        got = plain(l, a, layout, budgets)
    np.testing.assert_allclose(known(l, a, layout, budgets), got, rtol=1e-14)


def test_the_published_rollback_pushes_drift_further_out_and_the_pessimistic_form_does_not():
    """A bad trajectory that became likelier: its gradient must point back down."""
    layout, _ = make([10])
    l, a = jnp.full(10, 0.105), -jnp.ones(10)

    def step(pessimistic):
        gate, budgets = gates.from_config(hierarchy(1, pessimistic=pessimistic), LEVELS)
        budgets["budgets"]["trajectory"] = np.array([0.1, 0.1])
        return jax.grad(
            lambda l: objective.surrogate(gate(l, a, layout, budgets), a, layout).value
        )(l)

    assert np.all(np.asarray(step(False)) > 0)
    assert np.all(np.asarray(step(True)) < 0)


def test_dual_clip_and_recovery():
    layout, _ = make([4])
    l = np.log(np.array([5.0, 2.0, 0.5, 1.0]))
    config = {"name": "ppo", "clip_low": 0.2, "clip_high": 0.2, "dual_clip": 3.0}
    gate, budgets = gates.from_config(config, LEVELS)
    bad, good = -np.ones(4), np.ones(4)
    np.testing.assert_allclose(gate(l, bad, layout, budgets), [3, 2, 0.8, 1], rtol=1e-7)
    np.testing.assert_allclose(gate(l, good, layout, budgets), [1.2, 1.2, 0.5, 1], rtol=1e-7)
    masks = gate.clipped(l, bad, layout, budgets)
    np.testing.assert_array_equal(masks["token"], [True, False, True, False])
    # Past base and fiber: a hierarchy gives bad tokens that became likelier their ratio back.
    config = hierarchy(1, recovery=True, dual_clip=1.5)
    gate, budgets = gates.from_config(config, LEVELS)
    np.testing.assert_allclose(gate(l, bad, layout, budgets)[:2], [1.5, 1.5])
    np.testing.assert_allclose(gate(l, good, layout, budgets)[2], 0.5)


# Paris and Rome.


def paris_and_rome():
    """“I love Paris and the Eiffel Tower” against “I love Rome and the Colosseum”.

    The policy now prefers the first as a whole, by 0.3 nats a token from “Paris” on.
    """
    paris = ["I", "love", "Paris", "and", "the", "Eiffel", "Tower"]
    rome = ["I", "love", "Rome", "and", "the", "Colosseum"]
    l = np.r_[0.0, 0.0, 0.34, 0.30, 0.29, 0.33, 0.31, 0.0, 0.0, -0.02, 0.01, -0.01, 0.02]
    return paris, rome, l


def test_paris_and_rome():
    paris, rome, l = paris_and_rome()
    layout, _ = make([7, 6])
    eiffel, colosseum = paris.index("Eiffel"), 7 + rome.index("Colosseum")

    def signal(name, **options):
        """What each token's own log ratio does to its gated ratio, `∂Gᵢ/∂ℓᵢ`."""
        gate, budgets = gates.from_config({"name": name, **options}, LEVELS)
        return np.diag(jax.jacrev(lambda l: gate(l, np.ones(13), layout, budgets))(jnp.asarray(l)))

    # PPO silences every drifted token of the trajectory at once.
    ppo = signal("ppo", clip_low=0.2, clip_high=0.2)
    np.testing.assert_array_equal(ppo[2:7], 0)
    np.testing.assert_allclose(ppo[colosseum], np.exp(0.02), rtol=1e-12)
    # FiberPO closes the trajectory's own gate, and its fiber sees each token against the drift of
    # its trajectory: the signal on “Eiffel” and on “Colosseum” is of one scale.
    options = {"epsilon": 0.3, "order": ("trajectory",)}
    fiber = signal("fiberpo", **options, levels={"trajectory": {"budget": (0.1, 0.08)}})
    np.testing.assert_allclose(fiber[eiffel] / fiber[colosseum], 0.95, atol=0.05)
    state = inspect(l, l, layout, Hierarchy(budgets={"trajectory": (0.1, 0.08)}, epsilon=0.3))
    np.testing.assert_allclose(state.tower.drift[0][:, 0], [1.57 / 7, 0.03 / 6], rtol=1e-12)
    np.testing.assert_allclose(state.own_drift[eiffel], 0.33 - 1.57 / 7, rtol=1e-12)
    assert bool(bundle.closed(state.tower, state.budgets)[0][0, 0])
    assert not np.any(state.fiber_clipped)
