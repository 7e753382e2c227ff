"""KL estimates by enumeration of a small vocabulary: values and gradients are told apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fiberjax import kl


@pytest.fixture
def policies():
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=(2, 6)))


def expectation(estimate, logits, reference, sampler):
    log_prob = jax.nn.log_softmax(logits)
    return jnp.sum(jnp.exp(sampler) * estimate(log_prob, reference))


@pytest.mark.parametrize("name", kl.VALUES)
def test_values_and_losses(name):
    with jax.enable_x64(True):
        logits, reference = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6)))
        reference = jax.nn.log_softmax(reference)
        frozen = jax.nn.log_softmax(logits)

        def exact(logits):
            log_prob = jax.nn.log_softmax(logits)
            return jnp.sum(jnp.exp(log_prob) * (log_prob - reference))

        value = expectation(kl.VALUES[name], logits, reference, frozen)
        if name != "k2":
            np.testing.assert_allclose(value, exact(logits), rtol=1e-12)
        right = jax.grad(exact)(logits)
        naive = jax.grad(lambda x: expectation(kl.VALUES[name], x, reference, frozen))(logits)
        loss = lambda x: expectation(kl.LOSSES[name], x, reference, frozen)  # noqa: E731
        np.testing.assert_allclose(loss(logits), value, rtol=1e-12)
        np.testing.assert_allclose(jax.grad(loss)(logits), right, atol=1e-12)
        if name == "k1":
            np.testing.assert_allclose(naive, 0, atol=1e-12)
        if name == "k3":

            def other_way(x):
                return jnp.sum(jnp.exp(reference) * (reference - jax.nn.log_softmax(x)))

            np.testing.assert_allclose(naive, jax.grad(other_way)(logits), atol=1e-12)


@pytest.mark.parametrize("name", kl.LOSSES)
def test_losses_on_tokens_of_the_old_policy(name):
    """Weighed by the ratio they are KL(π_θ ‖ π_ref) and its gradient; unweighed they are not."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(1)
        logits, reference = jnp.asarray(rng.normal(size=(2, 6)))
        reference = jax.nn.log_softmax(reference)
        drift = rng.normal(size=6)
        old = jax.nn.log_softmax(logits - drift / drift.std() / 2)  # half a nat away

        def exact(logits):
            log_prob = jax.nn.log_softmax(logits)
            return jnp.sum(jnp.exp(log_prob) * (log_prob - reference))

        def loss(logits, weighed):
            log_prob = jax.nn.log_softmax(logits)
            log_ratio = log_prob - old if weighed else None
            return jnp.sum(jnp.exp(old) * kl.LOSSES[name](log_prob, reference, log_ratio))

        right = jax.grad(exact)(logits)
        np.testing.assert_allclose(jax.grad(loss)(logits, True), right, atol=1e-12)
        if name != "k2":
            np.testing.assert_allclose(loss(logits, True), exact(logits), rtol=1e-12)
        off = jax.grad(loss)(logits, False) - right
        assert jnp.linalg.norm(off) > 0.5 * jnp.linalg.norm(right)


@pytest.mark.parametrize("name", kl.LOSSES)
def test_a_weight_that_overflows_is_finite(name):
    log_ratio = jnp.float32([200.0, jnp.inf, -jnp.inf, -200.0])
    log_prob = jnp.float32([-1.0, -1.0, -3.0, -3.0])
    total = lambda x: jnp.sum(kl.LOSSES[name](x, jnp.full(4, -1.0), log_ratio))  # noqa: E731
    value, slope = jax.value_and_grad(total)(log_prob)
    assert value == 0
    np.testing.assert_array_equal(slope, 0)


def test_entropy_beside_forbidden_outcomes():
    logits = jnp.array([[0.0, 0.0, -jnp.inf, 0.0], [5.0, -jnp.inf, -jnp.inf, -jnp.inf]])
    np.testing.assert_allclose(kl.entropy(logits), [np.log(3), 0], rtol=1e-6)
    gradient = jax.grad(lambda x: jnp.sum(kl.entropy(x)))(logits)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)
    assert kl.entropy(logits.astype(jnp.bfloat16)).dtype == jnp.float32
