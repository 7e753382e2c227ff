"""Layouts: sums and broadcasts against loops, selection of levels, refusals; segment traps."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fiberjax import segments
from fiberjax.layout import make_layout, row_layout, state_ids

GROUP, DOMAIN = np.array([0, 0, 1, -1]), np.array([1, 0])
MASK = np.array([[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1], [0, 0, 0, 0]], bool)
IDS = np.tile(np.arange(4)[:, None], 4)
PARENTS = {"group": GROUP, "domain": DOMAIN}
LAYOUTS = {
    "rows": make_layout(MASK, PARENTS),
    "packed": make_layout(MASK, PARENTS, cell_id=IDS),
    "blocks": make_layout(MASK, PARENTS, cell_id=IDS, block_size=2),
    "flat": make_layout(MASK.ravel(), PARENTS, cell_id=IDS.ravel()),
}
every_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


@every_layout
def test_sums_and_counts(layout):
    values = np.where(MASK, np.arange(16).reshape(4, 4), 0).reshape(layout.mask.shape)
    table = layout.pushforward_tokens(jnp.asarray(values))
    np.testing.assert_array_equal(table, [1, 15, 30, 0])
    np.testing.assert_array_equal(layout.sizes[0], [2, 3, 3, 0])
    groups = layout.pushforward(table, 0)
    np.testing.assert_array_equal(groups, [16, 30])
    np.testing.assert_array_equal(layout.pushforward(groups, 1), [30, 16])
    np.testing.assert_array_equal(layout.tokens_of("domain"), [3, 5])
    want = np.where(MASK, np.array([16, 16, 30, 0])[:, None], 0)
    lifted = jnp.broadcast_to(layout.lift_from(groups, "group"), layout.mask.shape)
    np.testing.assert_array_equal(np.where(layout.mask, lifted, 0), want.reshape(lifted.shape))


@every_layout
@pytest.mark.parametrize("levels", [("group",), ("trajectory", "domain"), ("domain",)])
def test_selecting_levels(layout, levels):
    chosen = layout.select(levels)
    values = jnp.asarray(np.where(layout.mask, 1, 0))
    table = chosen.pushforward_tokens(values)
    for k in range(len(levels) - 1):
        table = chosen.pushforward(table, k)
    np.testing.assert_array_equal(table, layout.tokens_of(levels[-1]))
    np.testing.assert_array_equal(chosen.tokens_of(levels[0]), layout.tokens_of(levels[0]))


def test_selection_refuses():
    with pytest.raises(ValueError, match=r"level 'turn' does not exist.*trajectory"):
        LAYOUTS["rows"].select(("turn",))
    with pytest.raises(ValueError, match=r"finest first"):
        LAYOUTS["rows"].select(("group", "trajectory"))


REFUSALS = {
    "a mask of numbers": (dict(mask=MASK.astype(int)), "mask must be bool"),
    "no trajectory": (dict(mask=MASK, finest="turn"), "must be named 'trajectory'"),
    "flat without ids": (dict(mask=MASK.ravel()), "needs cell_id"),
    "ids of another shape": (dict(mask=MASK, cell_id=IDS[:2]), "cell_id has shape"),
    "a negative id": (dict(mask=MASK, cell_id=IDS - 1), "point at -1; expected an id in"),
    "a table too small": (
        dict(mask=MASK, cell_id=IDS, num_cells={"trajectory": 2}),
        r"'trajectory' has 2 cells, but tokens point at 2",
    ),
    "ids of floats": (dict(mask=MASK, cell_id=IDS * 1.0), "must be integers"),
    "an orphan trajectory": (
        dict(mask=MASK, parents={"group": np.array([0, -1, 1, 0])}),
        "'group' has 2 cells, but cells of 'trajectory' point at -1",
    ),
    "a missing parent": (dict(mask=MASK, parents={"group": GROUP[:2]}), "each of the 4 cells"),
    "an unknown level": (dict(mask=MASK, num_cells={"turn": 3}), "'turn' does not exist"),
    "a block of two": (
        dict(mask=MASK, cell_id=np.tile([0, 1, 2, 3], (4, 1)), block_size=2),
        "holds tokens of cells",
    ),
    "an uneven block": (dict(mask=MASK, cell_id=IDS, block_size=3), "divide 4 tokens"),
    "states of another shape": (dict(mask=MASK, state_id=IDS[:1]), "state_id has shape"),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSALS.values(), ids=REFUSALS)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_layout(**arguments)


def states_by_prefix(tokens, mask, prompt_id, trajectory_id):
    """States as prompts and prefixes, numbered in the order in which one is first led to."""
    number, prefixes, state = {}, {}, np.full(tokens.shape, -1)
    for at in zip(*np.nonzero(mask), strict=True):
        trajectory = trajectory_id[at]
        prompt, prefix = prompt_id[trajectory], prefixes.get(trajectory, ())
        prefixes[trajectory] = (*prefix, tokens[at])
        state[at] = number.setdefault((prompt, prefix), len(number))
        number.setdefault((prompt, prefixes[trajectory]), len(number))
    state[mask] = np.unique(state[mask], return_inverse=True)[1]
    return state


@pytest.mark.parametrize(
    ("rows", "columns", "vocab"), [(6, 5, 2), (12, 9, 3), (40, 120, 2), (3, 4, 1)]
)
def test_states_are_prompts_and_prefixes(rows, columns, vocab):
    rng = np.random.default_rng(rows * columns)
    for masked in (0.0, 0.3, 1.0):
        tokens = rng.integers(vocab, size=(rows, columns))
        mask = rng.random((rows, columns)) >= masked
        prompt = rng.integers(3, size=rows)
        row = np.broadcast_to(np.arange(rows)[:, None], tokens.shape)
        packed = np.sort(rng.integers(rows, size=tokens.shape), axis=1)
        # One trajectory a row; several in a row; tokens of all trajectories in turn.
        for case in (
            (tokens, mask, prompt, row),
            (tokens, mask, prompt, packed),
            (tokens.ravel(), mask.ravel(), prompt, rng.permutation(row.ravel())),
        ):
            found = state_ids(*case)
            np.testing.assert_array_equal(found, states_by_prefix(*case))
            assert found.dtype == np.int32 and found.shape == case[0].shape


def test_states_of_a_whole_batch_of_long_answers():
    """Of a size at which work that grows with the square of the tokens would not end."""
    prompts, samples, length = 32, 8, 3_072
    tokens = np.tile(np.arange(length) % 7, (prompts * samples, 1))
    row = np.arange(prompts * samples)
    trajectory = np.broadcast_to(row[:, None], tokens.shape)
    found = state_ids(tokens, tokens >= 0, row // samples, trajectory)
    want = np.arange(prompts * length).reshape(prompts, length).repeat(samples, axis=0)
    np.testing.assert_array_equal(found, want)


def test_padding_ids_never_wrap_or_clamp():
    table, ids = jnp.array([1.0, 2.0]), jnp.array([0, 1, 2, 7])
    np.testing.assert_array_equal(segments.spread(table, ids), [1, 2, 0, 0])
    np.testing.assert_array_equal(segments.segment_sum(jnp.ones(4), ids, 2), [1, 1])
    np.testing.assert_array_equal(segments.segment_max(-jnp.ones(4), ids, 4), [-1, -1, -1, 0])


def test_class_sums_equal_loops_in_every_form():
    rng = np.random.default_rng(0)
    values, classes = rng.normal(size=(4, 6)), rng.integers(0, 3, (4, 6))
    want = np.array([[values[s][classes[s] == c].sum() for c in range(3)] for s in range(4)])
    rows = jnp.arange(4)
    for ids in (None, rows, jnp.repeat(rows, 6).reshape(4, 6)):
        table = segments.class_sum(jnp.asarray(values), ids, jnp.asarray(classes), 4, 3)
        np.testing.assert_allclose(table, want, rtol=1e-5, atol=1e-6)
        back = segments.class_spread(table, ids, jnp.asarray(classes))
        np.testing.assert_allclose(back, want[np.arange(4)[:, None], classes], rtol=1e-5, atol=1e-6)


def test_traced_rows_are_laid_out_as_on_the_host():
    rng = np.random.default_rng(0)
    sizes = {"group": 4, "domain": 3}

    @jax.jit
    def laid_out(mask, group, domain):
        return row_layout(mask, {"group": group, "domain": domain}, sizes)

    for _ in range(5):
        # Rows of 0 to 4 tokens, one group without a domain and tables larger than the ids seen.
        mask = np.arange(4) < rng.integers(0, 5, (6, 1))
        group, domain = rng.integers(-1, 3, 6), np.array([0, 1, 0, -1])
        mask &= (group >= 0)[:, None]
        want = make_layout(mask, {"group": group, "domain": domain}, num_cells=sizes)
        got = laid_out(mask, group, domain)
        assert got.levels == want.levels and got.axis_names == want.axis_names
        chex.assert_trees_all_equal(jax.device_get(got), want)


def test_traced_rows_are_refused_by_name():
    with pytest.raises(ValueError, match="num_cells lacks level 'domain'"):
        row_layout(MASK, PARENTS, {"group": 2})
    with pytest.raises(ValueError, match=r"'domain' must name a parent for each of the 4 cells"):
        row_layout(MASK, {"domain": DOMAIN, "group": GROUP}, {"domain": 2, "group": 2})
