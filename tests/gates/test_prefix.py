"""Running sums and minima along trajectories, wherever their tokens stand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES, PREFIX

from fiberjax import segments
from fiberjax.gates import prefix
from fiberjax.layout import make_layout

VALUES = np.arange(1.0, 25.0).reshape(4, 6)
MASK = np.array(
    [
        [1, 1, 1, 0, 0, 0],
        [0, 1, 0, 1, 1, 0],
        [1, 1, 1, 1, 1, 1],
        [0, 0, 0, 0, 0, 0],
    ],
    bool,
)
PACKED = np.array(
    [
        [0, 0, 0, 9, 9, 9],
        [9, 1, 9, 1, 2, 2],
        [2, 2, 2, 3, 3, 3],
        [9, 9, 9, 9, 9, 9],
    ]
)
MIXED = np.array([[0, 1, 0, 2, 1, 0], [2, 2, 0, 1, 1, 0], [1, 0, 2, 2, 1, 0], [3, 3, 3, 3, 3, 3]])
BLOCKS = np.repeat([[0, 1], [1, 2], [3, 3], [0, 0]], 3, axis=1)
ROWS = np.arange(4)[:, None] + np.zeros((4, 6), int)
OF_TURN = np.array([0, 1, 0, 1])
TURNS = make_layout(MASK, {"trajectory": OF_TURN}, finest="turn")
LAYOUTS = {
    "rows": (make_layout(MASK), ROWS),
    "packed": (make_layout(MASK, cell_id=PACKED), PACKED),
    "mixed": (make_layout(MASK, cell_id=MIXED), MIXED),
    "blocks": (make_layout(MASK, cell_id=BLOCKS, block_size=3), BLOCKS),
    "flat": (make_layout(MASK.ravel(), cell_id=PACKED.ravel()), PACKED.ravel()),
    "turns": (TURNS, OF_TURN[ROWS]),
}


def plain(values, mask, cell, reverse, before, decay):
    """A loop over tokens: what came before each in its cell, a factor for each step."""
    values, mask, cell = np.ravel(values), np.ravel(mask), np.ravel(cell)
    out, least = np.zeros(values.size), np.full(values.size, np.inf)
    for i in np.flatnonzero(mask):
        of = [j for j in np.flatnonzero(mask & (cell == cell[i])) if (j > i if reverse else j < i)]
        of = of[::-1] if not reverse else of  # The nearest first.
        terms = [values[j] * decay ** (n + 1) for n, j in enumerate(of)]
        out[i] = sum(terms) + (0 if before else values[i])
        least[i] = min((values[j] for j in of), default=np.inf)
    return out, least


@pytest.mark.parametrize("name", LAYOUTS)
def test_running_sums_are_those_of_a_loop(name):
    layout, cell = LAYOUTS[name]
    values = np.where(MASK, np.sin(VALUES), 0).reshape(layout.mask.shape)
    for reverse, before, decay in (
        (False, False, 1.0),
        (False, True, 1.0),
        (True, False, 0.5),
    ):
        got = prefix.running_sum(
            jnp.asarray(values), layout, decay=decay, before=before, reverse=reverse
        )
        want, _ = plain(values, MASK, cell, reverse, before, decay)
        np.testing.assert_allclose(np.ravel(got)[MASK.ravel()], want[MASK.ravel()], rtol=1e-5)
    got = prefix.smallest_before(jnp.asarray(np.where(layout.mask, values, np.inf)), layout)
    _, want = plain(values, MASK, cell, False, True, 1.0)
    np.testing.assert_allclose(np.ravel(got)[MASK.ravel()], want[MASK.ravel()], rtol=1e-6)


def test_what_comes_before_a_row_is_nothing_in_either_direction():
    ones = (jnp.ones((2, 3)),)
    add = lambda a, b: (a[0] + b[0],)  # noqa: E731
    for reverse, want in ((False, [[0, 1, 2]] * 2), (True, [[2, 1, 0]] * 2)):
        (got,) = segments.running(add, ones, None, (0,), before=True, reverse=reverse)
        np.testing.assert_array_equal(got, want)


def test_a_token_is_moved_by_its_own_score_alone():
    layout = make_layout(np.ones((2, 5), bool))
    rng = np.random.default_rng(0)
    drift, advantage, old = rng.normal(0, 0.2, (3, 2, 5)).astype(np.float32)
    built = [CASES[name].build() for name in PREFIX]

    @jax.jit
    def jacobians(drift):
        def gated(drift):
            return [
                jnp.ravel(gate(drift, advantage, layout, budgets, old_log_prob=old - 2))
                for gate, budgets in built
            ]

        return jax.jacrev(gated)(drift)

    for name, rows in zip(PREFIX, jacobians(drift), strict=True):
        rows = np.reshape(rows, (10, 10))
        assert np.count_nonzero(np.diag(rows)) > 5, name
        np.testing.assert_array_equal(rows - np.diag(np.diag(rows)), 0)


def test_trajectories_over_devices_are_refused():
    layout = make_layout(MASK, axis_names={"trajectory": ("seq",)})
    message = r"over the mesh axes \('seq',\).*whole on one device"
    with pytest.raises(ValueError, match=message):
        prefix.running_sum(jnp.zeros(MASK.shape), layout)
    turns = dataclasses.replace(TURNS, axis_names=(("seq",), ()))
    with pytest.raises(ValueError, match=message):
        prefix.smallest_before(jnp.zeros(MASK.shape), turns)


def test_cppo_holds_a_prefix_that_spent_its_budget_and_lets_everything_back():
    """Six tokens of probability .5 move by .08 each: within `δ`, beyond `δ_b` on average."""
    layout = make_layout(np.ones((1, 6), bool))
    old = np.full((1, 6), np.log(0.5), np.float32)
    moved = np.full((1, 6), np.log(0.58 / 0.5), np.float32)
    budgets = {"delta": 0.1, "prefix_delta": 0.05, "last_weight": 1.0}
    ones = np.ones((1, 6), np.float32)
    gated = prefix.cppo(moved, ones, layout, old_log_prob=old, **budgets)
    # Spent before: 0, .08, .16, ...; saved: 0, .05, .10, ...; allowed: .1, .07, .04, ...
    np.testing.assert_allclose(gated, [[1.16, 0, 0, 0, 0, 0]], rtol=1e-5)
    gated = prefix.cppo(moved, -ones, layout, old_log_prob=old, **budgets)
    np.testing.assert_allclose(gated, 1.16 * ones, rtol=1e-5)
