"""Keys and values in fewer bytes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fiberjax import policy
from fiberjax.policy import cache

from . import shapes

PROMPT, NEW, ROWS = 4, 9, 16


@pytest.fixture(scope="module")
def drawn():
    """Completions of a policy of one layer, by the options of `sample`; and what a pass says."""
    config = shapes.config(num_layers=1)
    params = shapes.params(config)
    tokens = shapes.tokens(ROWS, PROMPT)
    mask = jnp.arange(PROMPT) >= PROMPT - (1 + jnp.arange(ROWS) % PROMPT)[:, None]
    keys = jax.random.split(jax.random.key(3), ROWS)

    def draw(**options):
        options = dict(max_new_tokens=NEW, eos_id=3, pad_id=0) | options
        samples = policy.sample(config, params, tokens, mask, keys, **options)
        real = jnp.arange(NEW) < samples.length[:, None]
        segments = jnp.concatenate([mask, real], axis=1).astype(jnp.int32)
        exact = policy.token_outputs(
            config,
            params,
            jnp.concatenate([tokens, samples.tokens], axis=1),
            jnp.cumsum(segments, axis=1) - 1,
            segments,
            start=PROMPT,
            temperature=1.0,
            chunk=NEW,
        ).log_prob
        return jax.tree.map(np.asarray, samples), np.where(real, exact, 0.0)

    return draw


def test_a_number_is_off_by_half_a_scale():
    x = np.random.default_rng(0).normal(size=(3, 5, 64)).astype(np.float32)
    x[0, 0], x[1] = 0.0, x[1] * 1e-6
    x[2, 0, 7] = 300.0
    table = cache.packed(jnp.asarray(x), jnp.int8)
    assert table.number.dtype == jnp.int8 and table.scale.shape == (3, 5)
    np.testing.assert_allclose(table.scale, np.abs(x).max(axis=-1) / 127, rtol=1e-6)
    off = np.abs(np.asarray(cache.unpacked(table, jnp.float32)) - x)
    assert (off <= np.asarray(table.scale)[..., None] * 0.501).all()
    np.testing.assert_array_equal(off[0, 0], 0)
    # The largest of each vector has no error but that of its scale.
    np.testing.assert_allclose(np.abs(table.number).max(axis=-1)[1:], 127)


def test_bytes_of_a_cache():
    config = shapes.config()
    sizes = {}
    for dtype in ("", "bfloat16", "int8"):
        made = policy.init_cache(config, 2, 6, dtype)
        sizes[dtype] = sum(part.nbytes for part in jax.tree.leaves((made.key, made.value)))
    vectors = 2 * config.num_layers * 2 * config.num_kv_heads * 6
    assert sizes[""] == vectors * config.head_dim * 4
    assert sizes["bfloat16"] == sizes[""] // 2
    assert sizes["int8"] == vectors * (config.head_dim + 4)


@pytest.mark.parametrize(("dtype", "most"), [("bfloat16", 0.02), ("int8", 0.05)])
def test_log_probabilities_are_off_by_what_the_cache_rounds(drawn, dtype, most):
    """And it holds in slots, where columns are put and written in other ways; nats."""
    whole, exact = drawn(cache_dtype=dtype)
    gap = np.abs(whole.log_prob - exact).max()
    assert 1e-5 < gap < most  # Of float32 it is below 1e-5, as test_sampler.py has it.
    slots, _ = drawn(cache_dtype=dtype, slots=3, stage=5)
    np.testing.assert_array_equal(slots.tokens, whole.tokens)
    np.testing.assert_allclose(slots.log_prob, whole.log_prob, atol=gap)


def test_the_first_token_is_drawn_as_from_any_cache(drawn):
    """Prompts are read in the compute dtype."""
    exact, rounded = (drawn(cache_dtype=dtype)[0] for dtype in ("", "int8"))
    np.testing.assert_array_equal(rounded.log_prob[:, 0], exact.log_prob[:, 0])


def test_another_dtype_is_refused(drawn):
    with pytest.raises(ValueError, match=r"cache_dtype must be one of .*'int8'.*, got 'float16'"):
        drawn(cache_dtype="float16")
