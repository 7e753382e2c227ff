"""Every schedule of passes gives one gradient, and runs the policy as often as it says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.gates import get_gate
from fiberjax import gates
from fiberjax.layout import make_layout
from fiberjax.parallel import mesh
from fiberjax.policy import TokenOutputs
from fiberjax.policy.row_parts import merge_rows, split_rows
from fiberjax.train import passes
from fiberjax.train.batch import Batch
from fiberjax.train.update import Knobs, StepOptions, objective_gradient

ROWS, COLUMNS, WIDTH = 12, 5, 3
LEVELS = ("trajectory", "group", "domain")
GROUPS = passes.Groups("group", 3)
OPTIONS = StepOptions(entropy_bonus=True, kl_estimator="k3", step_share="importance")


def silent(*order):
    levels = {level: {"budget": 0.02} for level in order}
    return {"name": "silent", "order": order, "levels": levels, "epsilon": 0.1}


# A gate, the rows that are not parted, and whether micro-batches are apart.
CASES = {
    "ppo": (get_gate("ppo"), 1, True),
    "gspo": (get_gate("gspo"), 1, True),
    "silent_group": (silent("trajectory", "group"), 3, True),
    "silent_domain": (silent("group", "domain"), 1, False),
    "m2po": (get_gate("m2po"), 1, False),
}


def make_batch(old):
    rng = np.random.default_rng(0)
    mask = np.arange(COLUMNS) < rng.integers(1, COLUMNS + 1, (ROWS, 1))
    parents = {"group": np.arange(ROWS) // 3, "domain": np.arange(4) % 2}
    layout = make_layout(mask, parents, axis_names={"group": mesh.ROW_AXES})
    empty = np.zeros((ROWS, 1), np.int32)
    noise = rng.normal(size=(2, ROWS, COLUMNS)).astype(np.float32)
    weight = np.abs(noise[1]) + 0.5
    return Batch(empty, empty, empty, layout, noise[0], old, old - 0.1, weight)


def forward(params, rows, ran=lambda: None):
    """A policy that is a table, and says when it runs."""
    jax.debug.callback(ran)
    log_prob = jnp.tanh(rows[0] @ params)
    return TokenOutputs(log_prob, log_prob**2)


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(1)
    rows = (rng.normal(size=(ROWS, WIDTH)).astype(np.float32),)
    params = rng.normal(size=(WIDTH, COLUMNS)).astype(np.float32)
    return params, rows, forward(params, rows).log_prob


def run(config, problem, old, parts, *, groups=GROUPS, fresh=False):
    """Gradient, metrics and outputs; the cut; and how often the policy ran."""
    params, rows, _ = problem
    device_mesh = mesh.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    gate, budgets = gates.from_config(config, LEVELS)
    knobs = Knobs(budgets, np.float32(1), np.float32(0.1), np.float32(0.1))
    batch = make_batch(old)
    cut = passes.split(gate, budgets, batch.layout, parts, 1, groups)
    ran = []

    @jax.jit
    def compute(params, rows, batch, knobs, fresh):
        return passes.run(
            lambda *of: forward(*of, ran=lambda: ran.append(1)),
            params,
            rows,
            lambda outputs: objective_gradient(device_mesh, gate, OPTIONS, outputs, batch, knobs),
            cut,
            old=TokenOutputs(batch.old_log_prob, jnp.zeros_like(batch.old_log_prob)),
            fresh=fresh,
        )

    outputs, metrics, gradient = jax.device_get(compute(params, rows, batch, knobs, fresh))
    jax.effects_barrier()
    return (gradient, {k: v.value for k, v in metrics.items()}, outputs), cut, len(ran)


def assert_same(found, expected):
    gradient, want = found[0], expected[0]
    assert np.abs(want).max() > 0
    np.testing.assert_allclose(gradient, want, rtol=0, atol=1e-5 * np.abs(want).max())
    for name, value in expected[1].items():
        np.testing.assert_allclose(found[1][name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(found[2], expected[2], rtol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_every_schedule_gives_the_same_gradient(name, problem):
    config, together, apart = CASES[name]
    drift = np.random.default_rng(2).normal(0, 0.2, (ROWS, COLUMNS)).astype(np.float32)
    old = np.asarray(problem[2]) - drift
    expected, _, _ = run(config, problem, old, 1)
    assert expected[1]["actor/open_share"] < 1  # Budgets bind.
    found, cut, ran = run(config, problem, old, 2)
    assert cut == passes.Split(2, together, apart)
    assert ran == (2 if apart else 4)
    assert_same(found, expected)
    # Between parts of a group nothing is apart.
    found, cut, ran = run(config, problem, old, 4 if name == "silent_group" else 6)
    assert_same(found, expected)


@pytest.mark.parametrize("fresh", [True, False])
def test_before_the_first_update_the_old_log_probabilities_are_the_policys(problem, fresh):
    config, old = CASES["silent_domain"][0], np.asarray(problem[2])
    expected, _, _ = run(config, problem, old, 1)
    found, _, ran = run(config, problem, old, 2, fresh=fresh)
    assert ran == (2 if fresh else 4)
    assert_same(found, expected)


@pytest.mark.parametrize(
    ("parts", "shards", "groups", "apart"),
    [
        *((2, 1, GROUPS, True), (2, 2, GROUPS, True), (4, 1, GROUPS, True)),
        *((6, 1, GROUPS, False), (4, 2, GROUPS, False)),
        *((2, 1, passes.Groups(None, 3), False), (2, 1, passes.Groups("domain", 3), False)),
    ],
)
def test_a_group_gate_needs_whole_groups_on_every_device(parts, shards, groups, apart):
    gate, budgets = gates.from_config(CASES["silent_group"][0], LEVELS)
    layout = make_batch(np.zeros((ROWS, COLUMNS), np.float32)).layout
    assert passes.split(gate, budgets, layout, parts, shards, groups).apart is apart


def test_rows_that_are_parted_and_merged_are_the_same():
    rows = np.arange(24).reshape(12, 2)
    for parts, together in ((2, 1), (2, 3), (4, 3), (1, 4), (12, 1)):
        parted = split_rows(rows, parts, together)
        assert parted.shape == (parts, 12 // parts, 2)
        np.testing.assert_array_equal(merge_rows(parted, together), rows)
    np.testing.assert_array_equal(split_rows(rows, 2, 3)[0, :, 0], [0, 2, 4, 12, 14, 16])
