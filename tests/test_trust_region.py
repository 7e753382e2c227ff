"""Radii of TRPO, its sample-based problem, and the equivalence with APC."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fiberjax import trust_region
from fiberjax.gates.apc import apc
from fiberjax.layout import make_layout, state_ids


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("discount", [0.6, 0.9, 0.99, 0.9999])
def test_radii_against_the_guarantee(discount):
    radius, limit = trust_region.tv_radius(discount), trust_region.tv_limit(discount)
    tv = jnp.linspace(0, float(limit), 10001)
    guaranteed = trust_region.guarantee(tv, discount, 1.0)
    np.testing.assert_allclose(tv[jnp.argmax(guaranteed)], radius, rtol=1e-3)
    np.testing.assert_allclose(guaranteed.max(), 1 / (4 * discount), rtol=1e-6)
    np.testing.assert_allclose(guaranteed[-1], 0, atol=1e-9)
    assert np.all(guaranteed[1:-1] > 0)
    rest = 1 - discount
    np.testing.assert_allclose(trust_region.kl_from_tv(limit), rest**2 / (2 * discount**2))
    np.testing.assert_allclose(trust_region.kl_from_tv(radius), rest**2 / (8 * discount**2))


def test_radii_vanish_undiscounted_but_not_the_guarantee():
    for name in ("tv_radius", "tv_limit"):
        radius = getattr(trust_region, name)
        assert radius(1.0) == 0 and radius(0.0) == 1
        assert trust_region.kl_from_tv(radius(1.0)) == 0
    near = 1 - 1e-9
    np.testing.assert_allclose(
        trust_region.guarantee(trust_region.tv_radius(near), near, 1.0), 0.25, rtol=1e-6
    )


def test_total_variations_are_capped_at_one_and_kls_are_not():
    assert trust_region.tv_limit(0.1) == trust_region.tv_radius(0.1) == 1
    np.testing.assert_allclose(trust_region.kl_from_tv(jnp.array([0.8, 1.0])), [1.28, 2.0])


def test_radii_over_a_horizon():
    np.testing.assert_allclose(trust_region.horizon_tv_limit(8192), 1 / 8191)
    assert trust_region.horizon_tv_limit(1) == trust_region.horizon_tv_radius(1) == 1
    for horizon in (10, 8192):
        limit, radius = (
            f(horizon) for f in (trust_region.horizon_tv_limit, trust_region.horizon_tv_radius)
        )
        best = trust_region.horizon_guarantee(radius, horizon, 1.0)
        np.testing.assert_allclose(
            trust_region.horizon_guarantee(limit, horizon, 1.0), 0, atol=1e-9
        )
        for other in (0.9 * radius, 1.1 * radius):
            assert trust_region.horizon_guarantee(other, horizon, 1.0) < best


def brute_force(advantage, budget):
    """The linear programme's optimum over its vertices: budget shared in every order."""
    best = 0.0
    for order in itertools.permutations(range(len(advantage))):
        for last in range(len(advantage) + 1):
            left, value = budget, 0.0
            for i in order[:last]:
                take = left if advantage[i] > 0 else min(left, 1.0)
                value += abs(advantage[i]) * take
                left -= take
            best = max(best, value)
    return best


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.05, 1.5))
def test_the_solver_is_feasible_and_optimal(seed, delta):
    rng = np.random.default_rng(seed)
    advantage = rng.choice([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0], 9)
    state = rng.integers(0, 3, 9)
    x = np.asarray(trust_region.solve_tv_trpo(jnp.asarray(advantage), state, 4, delta=delta))
    assert np.all(x >= -1)
    for s in range(3):
        mine = state == s
        assert np.abs(x[mine]).sum() <= mine.sum() * delta + 1e-12
        want = brute_force(advantage[mine], mine.sum() * delta)
        np.testing.assert_allclose(advantage[mine] @ x[mine], want, atol=1e-12)


def gated_deviation(x, layout, delta):
    log_ratio = jnp.log1p(jnp.maximum(jnp.asarray(x), -1 + 1e-300))
    return np.asarray(apc(log_ratio, log_ratio, layout, delta=delta)) - 1


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.05, 1.5), st.floats(0.1, 3.0))
def test_apc_is_tv_trpo_without_constraints(seed, delta, scale):
    """Gated deviations are always feasible, and a TV-TRPO solution maximises APC."""
    rng = np.random.default_rng(seed)
    state = np.r_[0, 1, 2, rng.integers(0, 3, 6)]
    layout = make_layout(np.ones(9, bool), cell_id=np.zeros(9, int), state_id=state)
    advantage = rng.normal(size=9)
    best = np.asarray(trust_region.solve_tv_trpo(jnp.asarray(advantage), state, 3, delta=delta))
    for x in (np.expm1(rng.normal(0, scale, 9)), best):
        gated = gated_deviation(x, layout, delta)
        for s in range(3):
            mine = state == s
            assert np.abs(gated[mine]).sum() <= mine.sum() * delta + 1e-9
        assert np.all(gated >= -1 - 1e-12)
        # Feasible for TV-TRPO, so never better than its solution.
        assert advantage @ gated <= advantage @ best + 1e-9
    np.testing.assert_allclose(gated, best, atol=1e-9)


def test_padding_is_left_alone():
    x = trust_region.solve_tv_trpo(jnp.array([1.0, 9.0, -9.0]), jnp.array([0, 1, -1]), 1, delta=0.5)
    np.testing.assert_array_equal(x, [0.5, 0, 0])


def test_states_are_prompts_and_prefixes():
    tokens = np.array([[5, 6, 7, 0], [5, 6, 8, 9], [5, 6, 7, 0]])
    ids = state_ids(tokens, tokens > 0, np.array([0, 0, 1]), np.tile(np.arange(3)[:, None], 4))
    assert ids[0, :3].tolist() == ids[1, :3].tolist()
    assert ids[1, 3] not in ids[0] and ids[0, 3] == -1
    assert not set(ids[2, :3]) & set(ids[0, :3])
