"""Weightings and the algebra of metrics: sums and counts, divided last."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fiberjax import objective
from fiberjax.layout import make_layout
from fiberjax.objective import Max, Mean, Min, Sum

MASK = np.array([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]], bool)
VALUES = np.float32([[1, 2, 3, np.nan], [10, np.inf, 0, 0], [np.nan, 0, 0, 0]])
WANT = {"trajectory": (2 + 10) / 2, "token": 16 / 4, "constant": (6 / 5 + 10 / 5) / 2}


@pytest.mark.parametrize("weighting", objective.WEIGHTINGS)
def test_weightings(weighting):
    layout = make_layout(MASK)

    def value(values):
        return objective.mean(values, layout, weighting=weighting, constant_length=5)

    got = value(VALUES)
    np.testing.assert_allclose(got.value, WANT[weighting], rtol=1e-6)
    gradient = jax.grad(lambda x: value(x).value)(VALUES)
    np.testing.assert_array_equal(gradient[~MASK], 0)
    surrogate = objective.surrogate(
        VALUES, np.where(MASK, 2, np.inf), layout, weighting=weighting, constant_length=5
    )
    np.testing.assert_allclose(surrogate.value, 2 * WANT[weighting], rtol=1e-6)


def test_refusals():
    layout = make_layout(MASK)
    with pytest.raises(ValueError, match=r"weighting 'tokens' does not exist.*'token'"):
        objective.token_weight(layout, "tokens")
    with pytest.raises(ValueError, match=r"needs constant_length.*None"):
        objective.token_weight(layout, "constant")


def test_metrics_join_over_micro_batches_and_devices(devices):
    values = np.arange(8, dtype=np.float32)

    def metrics(x):
        return {
            "mean": Mean(jnp.sum(x), jnp.float32(x.size)),
            "sum": Sum(jnp.sum(x)),
            "max": Max(jnp.max(x)),
            "min": Min(jnp.min(x)),
        }

    want = {"mean": 3.5, "sum": 28, "max": 7, "min": 0}
    first, second = metrics(values[:3]), metrics(values[3:])
    joined = {name: objective.add(first[name], second[name]).value for name in want}
    assert joined == want
    mesh = jax.sharding.Mesh(np.array(devices), ("data",))
    over = jax.shard_map(
        lambda x: (
            {k: objective.add_over(m, "data") for k, m in metrics(x).items() if k != "mean"}
            | {"mean": objective.add_over(Mean(jnp.sum(x), jnp.sum(x * 0 + 1)), "data")}
        ),
        mesh=mesh,
        in_specs=jax.P("data"),
        out_specs=jax.P(),
    )
    assert {name: m.value for name, m in over(values).items()} == want
    with pytest.raises(ValueError, match=r"two kinds"):
        objective.add(Sum(values), Max(values))
    assert Mean(jnp.float32(0), jnp.float32(0)).value == 0


def test_what_would_be_broadcast_is_refused():
    layout = make_layout(np.ones((3, 3), bool))
    ratio, advantage = np.ones((3, 3), np.float32), np.ones(3, np.float32)
    with pytest.raises(AssertionError, match=r"advantage has shape \(3,\); expected one value a"):
        objective.surrogate(ratio, advantage, layout)
    with pytest.raises(AssertionError, match=r"values has shape \(3, 1\)"):
        objective.mean(ratio[:, :1], layout, weighting="token")
