"""Weights and masks on the behaviour edge."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fiberjax import mismatch

RATIO = np.array([[1.0, 4.0, 0.2, 1.5], [1.1, 0.9, 1.2, 99.0], [3.0, 2.0, 99.0, 99.0]])
MASK = np.array([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]], bool)
BOUNDS = {"floor": 0.3, "cap": 2.0}
# The products of the rows are 1.2, 1.188 and 6, their geometric means 1.047, 1.059 and 2.449.
WANTED = {
    "truncate": [[1, 2, 0.2, 1.5], [1.1, 0.9, 1.2, 1], [2, 2, 1, 1]],
    "truncate_trajectory": [[1.2] * 4, [1.188, 1.188, 1.188, 1], [2, 2, 1, 1]],
    "mask": [[1, 0, 0, 1.5], [1.1, 0.9, 1.2, 1], [0, 2, 1, 1]],
    "icepop": [[1, 0, 0, 1.5], [1.1, 0.9, 1.2, 1], [0, 2, 1, 1]],
    "reject": [[1] * 4, [1] * 4, [0, 0, 1, 1]],
}


def weights(name, bounds=BOUNDS, ratio=RATIO):
    log_prob = np.where(MASK, np.log(ratio), np.nan).astype(np.float32)
    return mismatch.CORRECTIONS[name](log_prob, np.zeros_like(log_prob), MASK, **bounds)


@pytest.mark.parametrize("name", mismatch.CORRECTIONS)
def test_weights_of_tokens_and_of_trajectories(name):
    np.testing.assert_allclose(weights(name), WANTED[name], rtol=1e-5)


def test_a_band_has_two_bounds():
    got = weights("icepop", {"floor": 0.1, "cap": 1.15})
    np.testing.assert_allclose(got, [[1, 0, 0.2, 0], [1.1, 0.9, 0, 1], [0, 0, 1, 1]], rtol=1e-6)
    got = weights("reject", {"floor": 0.95, "cap": 1.001}, 1 / RATIO)
    np.testing.assert_array_equal(got, [[1] * 4, [0, 0, 0, 1], [0, 0, 1, 1]])


@pytest.mark.parametrize("name", mismatch.CORRECTIONS)
def test_weights_are_constants_and_finite(name):
    log_prob = jnp.array([[0.1, 200.0, -200.0, 0.0]])
    total = lambda x: jnp.sum(  # noqa: E731
        mismatch.CORRECTIONS[name](x, 0 * x, np.ones((1, 4), bool), **BOUNDS)
    )
    value, gradient = jax.value_and_grad(total)(log_prob)
    assert np.isfinite(value)
    np.testing.assert_array_equal(gradient, 0)
