"""The bounded lift of the hierarchy: no cell is moved by its siblings, and every theorem holds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from cases import LEVELS

from fiberjax.gates import aggregate, bundle
from fiberjax.gates.channels import per_channel, prepare
from fiberjax.gates.hierarchy import Hierarchy, fgh
from fiberjax.layout import make_layout

TRAJECTORY = np.repeat(np.arange(6), [3, 5, 1, 4, 2, 6])
GROUP, DOMAIN = np.array([0, 0, 1, 2, 2, 2]), np.array([0, 0, 1])
LAYOUT = make_layout(np.ones(21, bool), {"group": GROUP, "domain": DOMAIN}, cell_id=TRAJECTORY)
# The domain's is loosest: what its gate leaves is more than what the finer gates take off.
BUDGETS = {"trajectory": (0.02, 0.03), "group": (0.05, 0.04), "domain": 0.15}
LOOSE_BELOW = {"trajectory": 0.3, "group": 0.02, "domain": 0.01}
FORMS = list(zip(bundle.VARIANTS, aggregate.BASE_GATES, strict=True))  # Each of both once.
every_form = pytest.mark.parametrize(("variant", "base_gate"), FORMS)


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def made(budgets=BUDGETS, *, epsilon=0.1, lift="bounded", **options):
    return Hierarchy(budgets=budgets, epsilon=epsilon, lift=lift, **options)


@jax.jit
def compiled(l, hierarchy):
    def log_gated(l):
        return jnp.log(fgh(l, l, LAYOUT, hierarchy))

    return log_gated(l), jax.jacrev(log_gated)(l)


def log_value_and_jacobian(l, hierarchy):
    return tuple(map(np.asarray, compiled(jnp.asarray(l), hierarchy)))


def drawn(seed, scale=0.2):
    """Trajectories that drift apart, and some of them not at all."""
    rng = np.random.default_rng(seed)
    common = rng.normal(0, scale, 6) * (rng.random(6) < 0.7)
    return common[TRAJECTORY] * (1 + 0.1 * rng.normal(size=21))


@functools.partial(jax.jit, static_argnames=("variant", "base_gate", "lift"))
def gated_drift(l, variant, base_gate, lift):
    """What the finest cells have after all gates, and had before; float[6, 2] each."""
    l, _ = prepare(jnp.asarray(l), jnp.zeros(21), LAYOUT.mask)
    tower = bundle.tower(l, LAYOUT, variant=variant)
    pairs = tuple(per_channel(BUDGETS[level], jnp.float64) for level in LEVELS)
    weight = bundle.log_weight(tower, LAYOUT, pairs, base_gate=base_gate, lift=lift)
    return weight, tower.drift[0]


@every_form
def test_agrees_with_the_loop_written_reference(variant, base_gate):
    loops = {"published": reference.fgh, "exact": reference.exact}[variant]
    budgets = [np.broadcast_to(BUDGETS[level], 2) for level in LEVELS]
    options = {"base_gate": base_gate, "lift": "bounded", "epsilon": 0.1}
    for seed in range(3):
        l = drawn(seed)
        want = loops(l, l, TRAJECTORY, [GROUP, DOMAIN], budgets=budgets, **options)
        value, _ = log_value_and_jacobian(l, made(variant=variant, **options))
        np.testing.assert_allclose(value, np.log(want), atol=1e-14)


@every_form
def test_gated_drift_lies_between_zero_and_the_cells_own(variant, base_gate):
    outside = 0
    for seed in range(8):
        l = drawn(seed)
        weight, drift = map(np.asarray, gated_drift(l, variant, base_gate, "bounded"))
        assert np.all(weight >= 0) and np.all(weight <= drift + 1e-16)
        plain, _ = gated_drift(l, variant, base_gate, "plain")
        outside += np.sum((plain < -1e-3) & (drift > 0)) + np.sum(plain > drift + 1e-3)
    assert outside > 0


def test_a_drifted_sibling_moves_nobody():
    """Two trajectories of 12 tokens, one drifted by .2: the plain lift gives the other 1.105."""
    layout = make_layout(
        np.ones(24, bool), {"group": np.array([0, 0])}, cell_id=np.repeat([0, 1], 12)
    )
    l = jnp.asarray(np.repeat([0.2, 0.0], 12))
    budgets = {"trajectory": 0.06, "group": 0.12}

    @jax.jit
    def gated(l, hierarchy):
        return fgh(l, l, layout, hierarchy)

    plain, bounded = (gated(l, made(budgets, lift=lift)) for lift in ("plain", "bounded"))
    np.testing.assert_allclose(plain[12:], np.exp(0.1), rtol=1e-12)
    np.testing.assert_array_equal(bounded[12:], 1)
    np.testing.assert_allclose(bounded[:12], np.exp(0.1), rtol=1e-12)  # As with the plain lift.
    jacobian = jax.jacrev(gated)(l, made(budgets))
    np.testing.assert_allclose(jacobian[12:], np.eye(24)[12:], atol=1e-15)


@every_form
@pytest.mark.parametrize("budgets", [BUDGETS, LOOSE_BELOW])
def test_a_trajectory_at_zero_has_the_identity_whatever_its_siblings_do(
    variant, base_gate, budgets
):
    """The plain lift leaves it above 0 where its own gate closes, below where only others do."""
    leaks = 0
    for seed in range(4):
        l = drawn(seed)
        still = l == 0
        for epsilon in (0.02, 1.0):
            options = {"epsilon": epsilon, "variant": variant, "base_gate": base_gate}
            value, jacobian = log_value_and_jacobian(l, made(budgets, **options))
            np.testing.assert_array_equal(value[still], 0)
            np.testing.assert_allclose(jacobian[still], np.eye(21)[still], atol=1e-15)
            plain, _ = log_value_and_jacobian(l, made(budgets, lift="plain", **options))
            leaks += np.sum(plain[still] != 0)
    assert leaks > 0


@every_form
@pytest.mark.parametrize("depth", [1, 3])
def test_on_policy_the_jacobian_is_the_identity(variant, base_gate, depth):
    budgets = {level: BUDGETS[level] for level in LEVELS[:depth]}
    hierarchy = made(budgets, variant=variant, base_gate=base_gate)
    value, jacobian = log_value_and_jacobian(np.zeros(21), hierarchy)
    np.testing.assert_array_equal(value, 0)
    np.testing.assert_allclose(jacobian, np.eye(21), atol=1e-15)


@every_form
def test_open_gates_give_the_ratio_however_small_the_drift(variant, base_gate):
    """Also where a trajectory's drift is lost in the rounding of its parents'."""
    wide = dict.fromkeys(LEVELS, 1e9)
    l = np.random.default_rng(0).normal(0, 1.0, 21) * np.where(TRAJECTORY == 0, 1e-20, 1.0)
    hierarchy = made(wide, epsilon=1e9, variant=variant, base_gate=base_gate)
    value, jacobian = log_value_and_jacobian(l, hierarchy)
    np.testing.assert_allclose(value, l, rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(jacobian, np.eye(21), atol=1e-15)


@every_form
def test_with_one_level_it_is_the_plain_lift(variant, base_gate):
    """A gate takes off no more than there is."""
    for seed in range(3):
        l = drawn(seed)
        options = {"variant": variant, "base_gate": base_gate}
        one = {"trajectory": BUDGETS["trajectory"]}
        plain = log_value_and_jacobian(l, made(one, lift="plain", **options))
        bounded = log_value_and_jacobian(l, made(one, **options))
        np.testing.assert_array_equal(plain[0], bounded[0])
        np.testing.assert_array_equal(plain[1][l != 0], bounded[1][l != 0])


@every_form
def test_another_coarsest_cell_changes_nothing(variant, base_gate):
    here = DOMAIN[GROUP[TRAJECTORY]] == 0
    hierarchy = made(variant=variant, base_gate=base_gate)
    l = drawn(1)
    before = log_value_and_jacobian(l, hierarchy)
    after = log_value_and_jacobian(np.where(here, l, 0.3 - 2 * l), hierarchy)
    for x, y in zip(before, after, strict=True):
        np.testing.assert_array_equal(x[here], y[here])
    np.testing.assert_array_equal(before[1][here][:, ~here], 0)


@every_form
def test_budgets_are_independent(variant, base_gate):
    options = {"variant": variant, "base_gate": base_gate}
    l = drawn(3)
    before = log_value_and_jacobian(l, made({**BUDGETS, "group": 10.0}, **options))
    after = log_value_and_jacobian(l, made({**BUDGETS, "group": 3.0}, **options))
    for x, y in zip(before, after, strict=True):
        np.testing.assert_array_equal(x, y)
    tight = log_value_and_jacobian(l, made({**BUDGETS, "group": 1e-3}, **options))
    assert np.any(tight[0] != before[0])


def test_differences_agree_away_from_kinks():
    direction = np.random.default_rng(9).normal(size=21)
    smooth = 0
    for seed in range(6):
        l = drawn(seed) + 0.01 * np.random.default_rng(seed).normal(size=21)
        here, jacobian = log_value_and_jacobian(l, made())
        ahead, behind = (
            log_value_and_jacobian(l + h * direction, made())[0] for h in (1e-7, -1e-7)
        )
        fine = np.abs(ahead + behind - 2 * here) < 1e-12
        slope = (ahead - behind) / 2e-7
        np.testing.assert_allclose((jacobian @ direction)[fine], slope[fine], atol=1e-6)
        smooth += fine.sum()
    assert smooth > 80


def test_a_lift_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match=r"lift 'up' does not exist.*'bounded'"):
        made(lift="up")
