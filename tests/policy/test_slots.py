"""Slots change who is decoded beside whom, never what is drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fiberjax import policy
from fiberjax.policy import placement, slots

from . import shapes

PROMPT, NEW, ROWS, EOS, PAD = 4, 9, 24, 3, 0


@pytest.fixture(scope="module")
def config():
    return shapes.config(layer_pattern=("sliding", "full"), sliding_window=3)


@pytest.fixture(scope="module")
def params(config):
    return shapes.params(config)


def draw(config, params, order=None, **options):
    """Samples of prompts of 1 to `PROMPT` tokens, in some order; put back into the first one."""
    order = np.arange(ROWS) if order is None else order
    lengths = 1 + jnp.arange(ROWS) % PROMPT
    mask = jnp.arange(PROMPT) >= PROMPT - lengths[:, None]
    keys = jax.random.split(jax.random.key(7), ROWS)
    tokens = shapes.tokens(ROWS, PROMPT)
    if "limits" in options:
        options["limits"] = options["limits"][order]
    samples = policy.sample(
        config,
        params,
        *(tokens[order], mask[order], keys[order]),
        **dict(max_new_tokens=NEW, eos_id=(EOS, 5), pad_id=PAD) | options,
    )
    return jax.tree.map(lambda of: np.asarray(of)[np.argsort(order)], samples)


def assert_same(found, expected):
    for name in ("tokens", "length", "finished"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    np.testing.assert_allclose(found.log_prob, expected.log_prob, atol=1e-5)
    np.testing.assert_allclose(found.log_kept, expected.log_kept, atol=1e-5)
    assert (found.held >= found.length).all()


def wasted(samples):
    return 1 - samples.length.sum() / samples.held.sum()


def test_rows_are_drawn_as_without_slots_in_any_order(config, params):
    limits = jnp.asarray(np.random.default_rng(0).integers(1, NEW + 3, ROWS), jnp.int32)
    options = dict(limits=limits, temperature=0.8)
    expected = draw(config, params, **options)
    assert (expected.length <= limits).all() and (expected.length == limits).any()
    assert (expected.length < NEW).any() and (expected.length == NEW).any()
    assert (expected.held == expected.length.max()).all()
    # Several stages, and orders in which long rows come first, last and mixed.
    orders = (None, np.argsort(expected.length), np.argsort(-expected.length))
    for order in orders:
        found = draw(config, params, order, slots=5, stage=5, **options)
        assert_same(found, expected)
        assert wasted(found) < wasted(expected)


@pytest.mark.parametrize(
    "options",
    [
        dict(slots=1, greedy=True),
        dict(slots=16, top_k=6, top_p=0.8, temperature=1.3, logit_noise=0.2),
    ],
    ids=str,
)
def test_every_distribution_and_number_of_slots(options):
    config = shapes.config(num_layers=1)
    params = shapes.params(config)
    found = draw(config, params, **options)
    number = options.pop("slots")
    assert_same(found, draw(config, params, **options))
    if number == 1:
        # One slot never waits: every step is some row's own.
        np.testing.assert_array_equal(found.held, found.length)


def test_prompts_are_read_at_widths_that_hold_them_and_columns_as_needed(monkeypatch):
    """And nothing waits while there is room: as many reads as the free slots ask for."""
    config = shapes.config(num_layers=1)
    params = shapes.params(config)
    read, steps = [], []
    prefill, decode = policy.Transformer.prefill, policy.Transformer.decode_own

    def noted_prefill(self, tokens, *rest):
        jax.debug.callback(lambda: read.append(tokens.shape))
        return prefill(self, tokens, *rest)

    def noted_decode(self, *rest, columns):
        jax.debug.callback(lambda: steps.append(columns))
        return decode(self, *rest, columns=columns)

    monkeypatch.setattr(policy.Transformer, "prefill", noted_prefill)
    monkeypatch.setattr(policy.Transformer, "decode_own", noted_decode)
    lengths = np.array([1, 1, 2, 2, 3, 4, 1, 1])
    mask = jnp.arange(PROMPT) >= PROMPT - lengths[:, None]
    keys = jax.random.split(jax.random.key(0), 8)
    limits = jnp.array([2, 2, 9, 2, 2, 2, 2, 2], jnp.int32)
    samples = policy.sample(
        *(config, params, shapes.tokens(8, PROMPT), mask, keys),
        **dict(max_new_tokens=NEW, eos_id=EOS, pad_id=PAD, limits=limits, slots=2, stage=4),
    )
    jax.block_until_ready(samples)
    jax.effects_barrier()
    # One prompt at a time: two slots, of which one is free for an eighth to be.
    assert sorted(read) == sorted((1, {3: 4}.get(n, n)) for n in lengths)
    most = (lengths + np.asarray(samples.length) - 1).max()
    assert max(steps) <= PROMPT + NEW - 1 and min(steps) < max(steps)
    assert max(steps) < most + 4
    total = np.asarray(samples.held).sum()
    assert total == 2 * len(steps) + 8


def test_a_column_is_written_by_scatter_as_by_selection():
    """Both give the columns that are read, and nothing beyond them is touched."""
    rng = np.random.default_rng(0)
    column, layer, read = np.array([4, 0, 2, 2]), jnp.int32(1), 5
    for vector in ((6,), ()):  # Of keys and values, and of their scales.
        table, new = rng.normal(size=(3, 4, 2, 7, *vector)), rng.normal(size=(4, 2, *vector))
        expected = table.copy()
        for row in range(4):
            expected[1, row, :, column[row]] = new[row]
        for write in (placement.write_columns, placement.select_columns):
            given = (jnp.asarray(table), layer, jnp.asarray(column), jnp.asarray(new))
            whole, seen = write(*given, columns=read)
            np.testing.assert_allclose(whole, expected, rtol=1e-6)
            np.testing.assert_allclose(seen, expected[1, :, :, :read], rtol=1e-6)


def test_slots_beyond_the_rows_are_the_plain_loop(monkeypatch):
    config = shapes.config(num_layers=1)
    monkeypatch.setattr(slots, "refilled", None)
    samples = draw(config, shapes.params(config), slots=ROWS)
    assert samples.length.max() == NEW


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(slots=-1), "slots must be 0 or positive, got -1"),
        (dict(limits=jnp.ones(3, jnp.int32)), r"limits must be one a row, shape \(24,\)"),
    ],
    ids=str,
)
def test_bad_slots_and_limits_are_refused(options, message):
    config = shapes.config(num_layers=1)
    if "limits" in options:
        options = options | {"limits": np.resize(np.asarray(options["limits"]), 3)}
    with pytest.raises(ValueError, match=message):
        policy.sample(
            *(config, None, shapes.tokens(ROWS, PROMPT), jnp.ones((ROWS, PROMPT), bool)),
            jax.random.split(jax.random.key(7), ROWS),
            **dict(max_new_tokens=NEW, eos_id=EOS, pad_id=PAD) | options,
        )
