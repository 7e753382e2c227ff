import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fiberjax import policy
from fiberjax.policy import drawing

nucleus = jax.jit(lambda z, top_p: drawing.truncated_logits(z, top_k=0, top_p=top_p))
categorical = jax.jit(drawing._categorical, static_argnums=2)


@pytest.mark.parametrize("vocab", [1, 2, 7, 64, 1000])
def test_categorical_blocks(vocab):
    """Every vocabulary size splits into blocks; what has no mass is never drawn."""
    z = jax.random.normal(jax.random.key(0), (vocab,))
    z = z.at[1::3].set(-jnp.inf)
    count = 20_000
    uniform = jax.random.uniform(jax.random.key(1), (count, 2))
    tokens, log_prob = categorical(uniform, jnp.tile(z, (count, 1)), policy.Placement())
    assert ((tokens >= 0) & (tokens < vocab)).all()
    expected = jax.nn.log_softmax(z)
    np.testing.assert_allclose(log_prob, expected[tokens], rtol=1e-5, atol=1e-5)
    counts = np.bincount(tokens, minlength=vocab)
    kept = np.isfinite(z)
    assert (counts[~kept] == 0).all()
    mean = count * np.exp(np.asarray(expected, np.float64)[kept])
    chi2, freedom = np.sum((counts[kept] - mean) ** 2 / mean), max(kept.sum() - 1, 1)
    assert chi2 < freedom + 4 * np.sqrt(2 * freedom)


def test_draws_at_the_edges_have_mass():
    """The smallest and largest uniforms select the first and last index with mass."""
    mass = jnp.array([[0.0, 0.3, 0.0, 0.7, 0.0]] * 2)
    got = drawing._invert(mass, jnp.array([0.0, 1.0 - 2.0**-24]))
    np.testing.assert_array_equal(got, [1, 3])


def sorted_nucleus(z, top_p):
    """`z` with −∞ outside the nucleus, by a sort of each row in float64; and how clear that is.

    The second result is the distance of the mass of the likelier tokens from `top_p`.
    """
    z = np.asarray(z, np.float64)
    p = np.exp(z - z.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    likelier = np.empty_like(p)
    for row, out in zip(p, likelier, strict=True):
        values, counts = np.unique(-row, return_counts=True)
        before = np.cumsum(-values * counts) + values * counts
        out[:] = before[np.searchsorted(values, -row)]
    return np.where(likelier < top_p, z, -np.inf), np.abs(likelier - top_p)


@pytest.mark.parametrize("vocab", [1, 2, 50, 4_000])
@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.9, 1 - 1e-4])
def test_nucleus_without_a_sort_is_that_of_a_sort(vocab, top_p):
    """On random logits, ties, all alike, one alone, gaps that underflow, and what is left out."""
    rng = np.random.default_rng(vocab)
    rows = rng.normal(size=(9, vocab)) * [[0.1], [1], [3], [10], [1], [0], [2], [1], [3]]
    rows[4] = np.round(rows[4])
    rows[6, 0] += 200
    rows[7, ::2] -= 1e4
    rows[8, 1::3] = -np.inf
    z = rows.astype(np.float32)
    found = np.asarray(nucleus(z, top_p))
    expected, clear = sorted_nucleus(z, top_p)
    same = (found == expected.astype(np.float32)) | (clear < 1e-6)
    assert same.all(), np.argwhere(~same)
    assert np.isfinite(found.max(axis=1)).all()
    # Beside what rounding may decide, ties stand or fall together.
    for of, kept in zip(z, np.isfinite(found), strict=True):
        assert not set(of[kept]) & set(of[~kept])


def test_a_traced_nucleus_of_everything_leaves_out_what_has_no_mass():
    z = jnp.array([[0.0, -1.0, -200.0, -jnp.inf]])
    np.testing.assert_array_equal(nucleus(z, 1.0), [[0.0, -1.0, -jnp.inf, -jnp.inf]])


def edges(rng, mass):
    """Uniforms of each row where rounding decides: the ends, and exact running shares of `mass`."""
    rows, columns = mass.shape
    running = np.asarray(jax.jit(lambda mass: jnp.cumsum(mass, axis=-1))(mass))
    share = running[np.arange(rows), rng.integers(columns, size=rows)] / running[:, -1]
    largest = np.float32(1 - 2.0**-24)
    below, above = (np.nextafter(share, np.float32(end)) for end in (0, 2))
    ends = (np.zeros_like(share), np.full_like(share, largest))
    return [*ends, *(np.clip(x, 0, largest) for x in (share, below, above))]


# Blocks of the vocabulary of Qwen2.5 and Qwen3, and that vocabulary without blocks.
@pytest.mark.parametrize(("rows", "columns"), [(64, 9_496), (2, 151_936)])
def test_what_has_no_mass_is_never_chosen(rows, columns):
    """In float32, where running sums of so many numbers are not even monotone."""
    rng = np.random.default_rng(0)
    invert = jax.jit(drawing._invert)
    for kept in (1e-4, 0.05, 0.5):
        mass = rng.exponential(size=(rows, columns)) ** 4 * (rng.random((rows, columns)) < kept)
        mass[np.arange(rows), rng.integers(columns, size=rows)] += 1
        mass = mass.astype(np.float32)
        for uniform in edges(rng, mass):
            index = np.asarray(invert(mass, uniform))
            assert (mass[np.arange(rows), index] > 0).all()


@pytest.mark.parametrize("top_k", [1, 40, 5_000])
def test_no_token_without_mass_is_drawn_from_a_large_vocabulary(top_k):
    vocab, rows, rng = 151_936, 16, np.random.default_rng(1)
    z = np.full((rows, vocab), -np.inf, np.float32)
    kept = np.stack([rng.choice(vocab, top_k, replace=False) for _ in range(rows)])
    np.put_along_axis(z, kept, 4 * rng.normal(size=kept.shape).astype(np.float32), axis=1)
    mass = np.exp(z - z.max(axis=1, keepdims=True))
    blocks = mass.reshape(rows, -1, drawing._block_width(vocab))
    for first in edges(rng, blocks.sum(axis=-1)):
        uniform = np.stack([first, rng.choice(edges(rng, blocks.max(axis=1)))], axis=1)
        token, log_prob = categorical(uniform, z, policy.Placement())
        assert np.isfinite(log_prob).all()
        assert (np.take_along_axis(z, np.asarray(token)[:, None], axis=1) > -np.inf).all()


def test_what_would_underflow_has_no_mass():
    """Not even for the smallest uniforms, and not only on devices that flush it to zero."""
    z = jnp.array([[-85.0, -jnp.inf, 0.0, -1.0] * 4])
    token, log_prob = categorical(jnp.zeros((1, 2)), z, policy.Placement())
    np.testing.assert_array_equal(token, 2)
    np.testing.assert_allclose(log_prob, -np.log(4 * (1 + np.exp(-1))), rtol=1e-6)
