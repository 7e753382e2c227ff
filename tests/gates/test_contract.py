"""One contract that every gate keeps."""

import dataclasses
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from cases import CASES, LEVELS, PREFIX, SOFT, Problem, flat, problem

from fiberjax import gates, objective, probes
from fiberjax.layout import make_layout

PESSIMISTIC = ("clip", "gspo", "apc_state", "fiberpo", "fiberpo_domain", "fgh_hold", "exact3")
BOTH = [(name, False) for name in CASES] + [(name, True) for name in PESSIMISTIC]
every_gate = pytest.mark.parametrize("name", CASES)
every_form = pytest.mark.parametrize(("name", "pessimistic"), BOTH)
SOME = [
    *(("ppo", False), ("gspo", True), ("fiberpo_domain", False), ("fgh_hold", True)),
    *(("exact3", True), ("apc_state", True), ("cppo", False), ("m2po", False)),
]
some_forms = pytest.mark.parametrize(
    ("name", "pessimistic"),
    [form if form in SOME else pytest.param(*form, marks=pytest.mark.long) for form in BOTH],
)
OPERATED = [n for n, case in CASES.items() if not gates.GATES[case.config["name"]].score_weight]
OPERATORS = {"pessimistic": True, "dual_clip": 3.0, "recovery": True}


def build(name: str, pessimistic: bool, **operators):
    config = {**CASES[name].config, "pessimistic": pessimistic, **operators}
    return gates.from_config(config, LEVELS)


def value_and_gated(gate, budgets, log_ratio, advantage, layout, old_log_prob):
    gated = gate(log_ratio, advantage, layout, budgets, old_log_prob=old_log_prob)
    return objective.surrogate(gated, advantage, layout).value, gated


def value(*args):
    return value_and_gated(*args)[0]


gradient_and_gated = jax.jit(
    jax.value_and_grad(value_and_gated, argnums=2, has_aux=True), static_argnums=0
)


def gradient(*args):
    (total, _), slope = gradient_and_gated(*args)
    return total, slope


def unit_of(name: str, p: Problem) -> np.ndarray:
    """The tokens that a gate couples share a number, int[N]."""
    config = CASES[name].config
    if "order" in config:
        return reference.cells(p.trajectory, [p.group, p.domain], len(config["order"]) - 1)
    if config["name"] == "apc":
        return p.state if config["level"] == "state" else p.trajectory
    if config["name"] == "m2po":
        return np.zeros_like(p.trajectory)
    spec = gates.GATES[config["name"]]
    together = name in PREFIX or "level" in spec.options
    return p.trajectory if together else np.arange(p.trajectory.size)


def in_rows(p: Problem, width: int, fill: float = 0.0):
    """The tokens one trajectory a row; and where each flat token went."""
    rows = int(p.trajectory.max()) + 1
    slot = np.zeros_like(p.trajectory)
    for t in range(rows):
        slot[p.trajectory == t] = np.arange((p.trajectory == t).sum())
    place = (p.trajectory, slot)

    def spread(values, empty):
        out = np.full((rows, width), empty, np.asarray(values).dtype)
        out[place] = values
        return out

    return spread, place


def test_every_gate_of_the_table_has_a_case():
    assert {case.config["name"] for case in CASES.values()} == set(gates.GATES)


@every_gate
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("zeros", [False, True])
def test_agrees_with_the_loop_written_reference(name, seed, zeros):
    p = problem(seed)
    if zeros:  # Tokens that have not moved: those of the first update, and then of any.
        at_zero = np.random.default_rng(seed).random(p.log_ratio.shape) < 0.4
        p = dataclasses.replace(p, log_ratio=np.where(at_zero, 0.0, p.log_ratio))
    with jax.enable_x64(True):
        gate, budgets = CASES[name].build()
        # Budgets in float64, as the reference has them.
        budgets = jax.tree.map(lambda b: np.round(np.asarray(b, np.float64), 6), budgets)
        args = (jnp.asarray(p.log_ratio), jnp.asarray(p.advantage), flat(p), budgets)
        gated = gate(*args, old_log_prob=jnp.asarray(p.old_log_prob))
        np.testing.assert_allclose(gated, CASES[name].expected(p), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", PESSIMISTIC)
def test_pessimistic_is_the_minimum_with_the_limit(name):
    p = problem(3, dtype=np.float32)
    layout, args = flat(p), (p.log_ratio, p.advantage)
    gate, budgets = build(name, True)
    published, _ = build(name, False)
    gated = published(*args, layout, budgets) * p.advantage
    limit = gate.limit(p.log_ratio, layout) * p.advantage
    np.testing.assert_array_equal(
        gate(*args, layout, budgets) * p.advantage, np.minimum(gated, limit)
    )


@pytest.mark.parametrize("name", [name for name in CASES if name not in SOFT])
def test_the_limit_is_the_gate_with_infinite_budgets(name):
    p = problem(3, dtype=np.float32)
    gate, budgets = CASES[name].build()
    wide = jax.tree.map(lambda b: np.full_like(b, 1e9), budgets)
    gated = gate(p.log_ratio, p.advantage, flat(p), wide, old_log_prob=p.old_log_prob)
    np.testing.assert_allclose(gated, gate.limit(p.log_ratio, flat(p)), rtol=2e-5)


@some_forms
def test_jit_equals_eager(name, pessimistic):
    p = problem(1, dtype=np.float32)
    gate, budgets = build(name, pessimistic)
    args = (budgets, p.log_ratio, p.advantage, flat(p), p.old_log_prob)
    eager = jax.value_and_grad(value, argnums=2)(gate, *args)
    chex.assert_trees_all_close(gradient(gate, *args), eager, rtol=1e-4, atol=1e-6)


@every_form
def test_rows_equal_packed_equal_blocks_equal_flat_whatever_the_padding_holds(name, pessimistic):
    p = problem(1, dtype=np.float32)
    gate, budgets = build(name, pessimistic)
    spread, place = in_rows(p, width=16)
    mask = spread(np.ones(p.trajectory.shape, bool), False)
    state = spread(p.state, -1)
    rows = make_layout(mask, p.parents, state_id=state)
    options = {"cell_id": spread(p.trajectory, 7), "state_id": state}
    packed = make_layout(mask, p.parents, **options)
    blocks = make_layout(mask, p.parents, **options, block_size=4)
    want, want_gradient = gradient(gate, budgets, p.log_ratio, p.advantage, flat(p), p.old_log_prob)
    for layout in (rows, packed, blocks):
        for fill in (np.inf, -np.inf, np.nan, 1e30):
            fields = [spread(x, np.float32(fill)) for x in (p.log_ratio, p.advantage)]
            got, got_gradient = gradient(
                gate, budgets, *fields, layout, spread(p.old_log_prob, np.float32(fill))
            )
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(got_gradient[place], want_gradient, rtol=1e-4, atol=1e-6)
            np.testing.assert_array_equal(np.asarray(got_gradient)[~mask], 0)


@every_form
def test_permuting_trajectories_permutes_the_result(name, pessimistic):
    p = problem(2, dtype=np.float32)
    gate, budgets = build(name, pessimistic)
    spread, _ = in_rows(p, width=16)
    order = np.random.default_rng(0).permutation(11)
    columns = [
        spread(np.ones(p.trajectory.shape, bool), False),
        spread(p.state, -1),
        *(spread(x, np.float32(0)) for x in (p.log_ratio, p.advantage, p.old_log_prob)),
    ]

    def run(columns, group):
        mask, state, log_ratio, advantage, old = columns
        layout = make_layout(mask, {"group": group, "domain": p.domain}, state_id=state)
        return gradient(gate, budgets, log_ratio, advantage, layout, old)

    want, want_gradient = run(columns, p.group)
    got, got_gradient = run([c[order] for c in columns], p.group[order])
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(got_gradient, want_gradient[order], rtol=1e-4, atol=1e-6)


@every_form
def test_a_budget_change_never_retraces(name, pessimistic):
    p = problem(2, dtype=np.float32)
    gate, budgets = build(name, pessimistic)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(budgets):
        return gate(p.log_ratio, p.advantage, flat(p), budgets, old_log_prob=p.old_log_prob)

    first = run(budgets)
    second = run(jax.tree.map(lambda b: b * np.float32(0.5), budgets))
    if jax.tree.leaves(budgets):
        assert np.any(first != second)


@pytest.mark.parametrize(
    ("name", "operators"),
    [(name, {"pessimistic": pessimistic}) for name, pessimistic in BOTH]
    + [(name, OPERATORS) for name in OPERATED],
    ids=lambda x: x if isinstance(x, str) else "+".join(k for k, v in x.items() if v) or "plain",
)
def test_extreme_log_ratios_beside_ordinary_ones(name, operators):
    """No NaN, in value or gradient, and nothing that reaches tokens of other coupling units.

    A whole trajectory is extreme and one token of another, under advantages of both signs and 0.
    """
    p = problem(2, dtype=np.float32)
    gate, budgets = build(name, **operators)
    unit = unit_of(name, p)
    extreme = p.trajectory == 1
    extreme[np.flatnonzero(p.trajectory == 2)[0]] = True
    assert extreme.sum() > 3
    other = ~np.isin(unit, unit[extreme])
    assert other.any() or np.ptp(unit) == 0
    # At most 1, so that a contribution is finite wherever its gated ratio is.
    advantage = p.advantage / np.abs(p.advantage).max()
    advantage[extreme] = np.resize(np.float32([0.9, 0, -0.9]), extreme.sum())

    def run(log_ratio):
        return gradient_and_gated(gate, budgets, log_ratio, advantage, flat(p), p.old_log_prob)

    (_, ordinary), ordinary_slope = run(p.log_ratio)
    both = np.resize([1.0, -1.0], extreme.sum())
    sizes = (*(s * x for x in (60, 88.8, 100, 200) for s in (1, -1, both)), np.inf, -np.inf)
    for size in sizes:
        log_ratio = p.log_ratio.copy()
        log_ratio[extreme] = size
        (_, gated), slope = run(log_ratio)
        assert np.all(np.isfinite(gated * advantage)), size
        assert np.all(np.isfinite(slope)), size
        np.testing.assert_array_equal(gated[other], ordinary[other])
        np.testing.assert_array_equal(slope[other], ordinary_slope[other])
        if np.all(unit == np.arange(unit.size)):
            np.testing.assert_array_equal(slope[advantage == 0], 0)


def test_what_nothing_bounds_is_as_large_as_numbers_are():
    gate, budgets = CASES["importance"].build()
    p = problem(2, dtype=np.float32)
    log_ratio = np.where(p.trajectory == 1, np.float32(100), 0)
    ones = np.ones_like(p.advantage)
    (_, gated), slope = gradient_and_gated(gate, budgets, log_ratio, ones, flat(p), None)
    np.testing.assert_array_equal(gated[p.trajectory == 1], np.finfo(np.float32).max)
    assert np.all(slope[p.trajectory == 1] > 1e36)
    (total, _), slope = gradient_and_gated(gate, budgets, log_ratio, 9 * ones, flat(p), None)
    assert total == np.inf and not np.any(np.isnan(slope))


@pytest.mark.parametrize("name", OPERATED)
def test_a_dual_clip_that_never_binds_is_the_identity(name):
    """Where it goes past the gate, as for hierarchies, it is so where no bad token is likelier."""
    p = problem(2, scale=0.5, dtype=np.float32)
    advantage = np.abs(p.advantage) if "order" in CASES[name].config else p.advantage
    plain, budgets = build(name, False)
    gate, clipped = build(name, False, dual_clip=1e9)
    want = plain(p.log_ratio, advantage, flat(p), budgets)
    np.testing.assert_array_equal(gate(p.log_ratio, advantage, flat(p), clipped), want)
    masks = plain.clipped(p.log_ratio, advantage, flat(p), budgets)
    chex.assert_trees_all_equal(gate.clipped(p.log_ratio, advantage, flat(p), clipped), masks)


@pytest.mark.parametrize("name", ["ppo", "grpo", "dapo"])
def test_the_dual_clip_of_ppo_is_the_published_one(name):
    """`max(min(rÂ, clip(r)Â), cÂ)` where `Â < 0`, the minimum elsewhere."""
    p = problem(2, scale=1.0)
    with jax.enable_x64(True):
        gate, budgets = build(name, False, dual_clip=1.5)
        low, high = 1 - budgets["clip_low"], 1 + budgets["clip_high"]
        got = gate(p.log_ratio, jnp.asarray(p.advantage), flat(p), budgets) * p.advantage
    ratio, a = np.exp(p.log_ratio), p.advantage
    least = np.minimum(ratio * a, np.clip(ratio, low, high) * a)
    assert np.any(least < 1.5 * a)
    np.testing.assert_allclose(got, np.where(a < 0, np.maximum(least, 1.5 * a), least), rtol=1e-6)


@pytest.mark.parametrize("name", ["ppo", "gspo", "gmpo", "apc_sequence", "fgh2"])
def test_clip_masks_under_all_operators_are_what_the_jacobian_says(name):
    p = problem(4, scale=0.5)
    with jax.enable_x64(True):
        gate, budgets = build(name, **{**OPERATORS, "dual_clip": 1.1})
        args = (jnp.asarray(p.log_ratio), jnp.asarray(p.advantage), flat(p), budgets)
        changed = np.any(list(gate.clipped(*args).values()), axis=0)
        rows = probes.jacobian(gate, *args, log=False)
        limit = probes.limit_jacobian(gate, args[0], args[2], log=False)
        np.testing.assert_array_equal(changed, np.any(np.abs(rows - limit) > 1e-9, axis=1))
        assert changed.any() and not changed.all()


@every_gate
def test_arrays_of_another_shape_are_refused_while_tracing(name):
    """With as many rows as columns an advantage a row would be read as columns.

    A transposed advantage has the right shape and cannot be seen.
    """
    layout = make_layout(
        np.ones((4, 4), bool),
        {"group": np.array([0, 0, 1, 1]), "domain": np.array([0, 0])},
        state_id=np.arange(16).reshape(4, 4),
    )
    gate, budgets = CASES[name].build()
    spec, good = gate.spec, np.zeros((4, 4), np.float32)
    arguments = {name: budgets[name] for name in spec.budgets} | dict(gate.options)
    if spec.needs_old_log_prob:
        arguments["old_log_prob"] = good
    settings = () if spec.settings is None else (spec.settings(**arguments),)
    keywords = arguments if spec.settings is None else {}
    for bad in (np.zeros(4), np.zeros((4, 1)), np.zeros((1, 4)), np.zeros(16)):

        def refuses(argument, shape=bad.shape):
            message = re.escape(f"{argument} has shape {shape}; expected") + r".* \(4, 4\)"
            return pytest.raises(AssertionError, match=message)

        for call in (gate, gate.clipped):
            with refuses("advantage"):
                call(good, bad, layout, budgets, old_log_prob=good)
            with refuses("log_ratio"):
                call(bad, good, layout, budgets, old_log_prob=good)
            with refuses("old_log_prob"):
                call(good, good, layout, budgets, old_log_prob=bad)
        for function in (spec.gate, spec.clipped):
            with refuses("advantage"):
                function(good, bad, layout, *settings, **keywords)
            if spec.needs_old_log_prob:
                with refuses("old_log_prob"):
                    function(good, good, layout, **{**keywords, "old_log_prob": bad})
        with refuses("log_ratio"):
            gate.limit(bad, layout)
        with refuses("log_ratio"):
            spec.limit(bad, good, layout)


@every_form
def test_bfloat16_is_computed_in_float32(name, pessimistic):
    p = problem(2, dtype=np.float32)
    gate, budgets = build(name, pessimistic)
    low = jnp.asarray(p.log_ratio, jnp.bfloat16)
    gated = gate(low, p.advantage, flat(p), budgets, old_log_prob=p.old_log_prob)
    wide = gate(low.astype(jnp.float32), p.advantage, flat(p), budgets, old_log_prob=p.old_log_prob)
    assert gated.dtype == jnp.float32
    np.testing.assert_array_equal(gated, wide)


@every_form
def test_first_order_agreement_on_policy(name, pessimistic):
    """At `ℓ = 0` exactly, a gate's gradient is that of its limit."""
    p = problem(2)
    with jax.enable_x64(True):
        gate, budgets = build(name, pessimistic)
        args = (jnp.zeros(40), jnp.asarray(p.advantage), flat(p))
        got = probes.jacobian(gate, *args, budgets, log=False, old_log_prob=p.old_log_prob)
        want = probes.limit_jacobian(gate, args[0], args[2], log=False)
        np.testing.assert_allclose(got, want, atol=1e-12)


@every_form
@pytest.mark.parametrize("scale", [0.03, 0.2])
def test_clip_masks_are_what_the_jacobian_says(name, pessimistic, scale):
    p = problem(4, scale=scale)
    with jax.enable_x64(True):
        gate, budgets = build(name, pessimistic)
        args = (jnp.asarray(p.log_ratio), jnp.asarray(p.advantage), flat(p), budgets)
        masks = gate.clipped(*args, old_log_prob=p.old_log_prob)
        changed = np.any(list(masks.values()), axis=0)
        rows = probes.jacobian(gate, *args, log=False, old_log_prob=p.old_log_prob)
        limit = probes.limit_jacobian(gate, args[0], args[2], log=False)
        differs = np.any(np.abs(rows - limit) > 1e-9, axis=1)
        np.testing.assert_array_equal(changed, differs)
        if name != "importance" and scale > 0.1:
            assert changed.any()
        if name not in SOFT and scale > 0.1:
            assert not changed.all() or "order" in CASES[name].config or "gmpo" in name


@some_forms
def test_sharded_equals_one_device(name, pessimistic, devices):
    """Groups and states across devices, trajectories across sequence shards where they may be."""
    rng = np.random.default_rng(0)
    shape = (16, 8)
    mask = np.arange(8) < rng.integers(1, 9, (16, 1))
    fields = [rng.normal(0, s, shape).astype(np.float32) for s in (0.2, 1.0)]
    old = -rng.exponential(1, shape).astype(np.float32) - 1
    parents = {"group": np.arange(16) % 4, "domain": np.arange(4) // 2}
    state = rng.integers(0, 30, shape)
    one = make_layout(mask, parents, state_id=state)
    P = jax.sharding.PartitionSpec
    axes = {"trajectory": ("seq",), "group": ("data",), "state": ("data", "seq")}
    tokens, rows = P("data", "seq"), P("data")
    if name in PREFIX:
        axes = {"group": ("data", "seq"), "state": ("data", "seq")}
        tokens = rows = P(("data", "seq"))
    many = make_layout(mask, parents, state_id=state, axis_names=axes)
    gate, budgets = build(name, pessimistic)
    layout_specs = jax.tree.unflatten(
        jax.tree.structure(many), [tokens, rows, P(), rows, P(), P(), tokens]
    )
    mesh = jax.sharding.Mesh(np.array(devices).reshape(4, 2), ("data", "seq"))

    def local(log_ratio, advantage, layout, old):
        def total(log_ratio):
            gated = gate(log_ratio, advantage, layout, budgets, old_log_prob=old)
            surrogate = objective.surrogate(gated, advantage, layout)
            return objective.add_over(surrogate, ("data", "seq")).value

        return jax.value_and_grad(total)(log_ratio)

    sharded = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(tokens, tokens, layout_specs, tokens),
        out_specs=(P(), tokens),
        check_vma=True,
    )
    got = jax.jit(sharded)(*fields, many, old)
    want = gradient(gate, budgets, *fields, one, old)
    chex.assert_trees_all_close(got, want, rtol=1e-3, atol=2e-6)


@some_forms
def test_tokens_outside_the_cells_that_a_gate_names_change_nothing_within(name, pessimistic):
    """By this an update may take one set of whole cells after the other."""
    p = problem(3, dtype=np.float32)
    gate, budgets = build(name, pessimistic)
    named = gate.couples(budgets, flat(p))
    cells = {
        "token": np.arange(p.trajectory.size),
        "trajectory": p.trajectory,
        "group": p.group[p.trajectory],
        "domain": p.domain[p.group[p.trajectory]],
        "state": p.state,
        None: np.zeros_like(p.trajectory),
    }
    # It names no coarser cells than those that it couples.
    unit, cell = unit_of(name, p), cells[named]
    assert len(np.unique(unit)) == len(np.unique(cell)) == len(np.unique([unit, cell], axis=1).T)
    within = cell == cell[7]
    moved = p.log_ratio + np.where(within, 0, np.random.default_rng(1).normal(0, 0.3, within.shape))
    found = [
        gradient_and_gated(gate, budgets, of, p.advantage, flat(p), p.old_log_prob)
        for of in (p.log_ratio, moved.astype(np.float32))
    ]
    for ((_, gated), slope), ((_, again), slope_again) in [found]:
        np.testing.assert_allclose(again[within], gated[within], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(slope_again[within], slope[within], rtol=1e-4, atol=1e-6)
    # The others did move.
    assert within.all() or not np.allclose(found[0][0][1], found[1][0][1], rtol=1e-5)


@every_form
def test_any_micro_batch_split_gives_the_same_gradient(name, pessimistic):
    """Two passes: one coefficient a token from the whole batch, then micro-batches."""
    p = problem(2, dtype=np.float32)
    gate, budgets = build(name, pessimistic)
    weight = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)

    def log_prob(theta, rows):
        return 0.1 * jnp.tanh(weight[rows] @ theta)

    def loss(theta):
        return value(
            gate, budgets, log_prob(theta, slice(None)), p.advantage, flat(p), p.old_log_prob
        )

    theta = np.ones(5, np.float32)
    want = jax.grad(loss)(theta)
    log_ratio = log_prob(theta, slice(None))
    _, coefficient = gradient(gate, budgets, log_ratio, p.advantage, flat(p), p.old_log_prob)
    for splits in (1, 2, 8):
        got = jnp.zeros(5)
        for rows in np.split(np.arange(40), splits):
            got += jax.grad(lambda t, rows=rows: coefficient[rows] @ log_prob(t, rows))(theta)
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


def test_non_finite_log_ratios_of_real_tokens_are_never_hidden():
    p = problem(2, dtype=np.float32)
    log_ratio = p.log_ratio.copy()
    log_ratio[3] = np.nan
    for name in ("ppo", "gspo", "fiberpo_domain"):
        gate, budgets = CASES[name].build()
        assert np.isnan(value(gate, budgets, log_ratio, p.advantage, flat(p), p.old_log_prob))
