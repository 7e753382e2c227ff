"""Weightings and the algebra of metrics: sums and counts, divided last."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fiberjax import objective
from fiberjax.layout import make_layout
from fiberjax.objective import EDGES, Effective, Max, Mean, Min, Sum, quantile

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
            "effective": Effective(jnp.sum(x), jnp.sum(x**2), jnp.sum(x * 0 + 1)),
            "quantile": quantile(x, x * 0 + 1, 0.5),
        }

    want = {"mean": 3.5, "sum": 28, "max": 7, "min": 0, "effective": 0.7}
    want["quantile"] = pytest.approx(3, rel=0.095)
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
    with pytest.raises(ValueError, match=r"two kinds"):
        objective.add(first["quantile"], quantile(values, values, 0.9))
    assert Mean(jnp.float32(0), jnp.float32(0)).value == 0


def test_quantiles_within_their_steps():
    rng = np.random.default_rng(0)
    sizes = np.exp(rng.normal(-4, 2, 999)).astype(np.float32)
    weight = rng.integers(0, 3, 999).astype(np.float32)
    for share in (0.01, 0.5, 0.99):
        want = np.sort(np.repeat(sizes, weight.astype(int)))
        want = want[int(np.ceil(share * len(want))) - 1]
        got = quantile(sizes, weight, share).value
        np.testing.assert_allclose(got, want, rtol=0.0906)
    # Thirds of a cell from three devices: the median of two is the smaller, as of two wholes.
    third = np.full(6, 1 / 3, np.float32)
    np.testing.assert_allclose(quantile(np.repeat([0.1, 9.0], 3), third, 0.5).value, 0.1, rtol=0.1)
    ends = np.float32([0, 1e-7, 1e9, np.inf, np.nan])
    assert [float(quantile(ends[i : i + 1], np.ones(1), 0.5).value) for i in range(5)] == [
        *(0, 0),
        *[float(EDGES[-1])] * 3,
    ]
    assert quantile(sizes, 0 * weight, 0.5).value == 0


def test_what_would_be_broadcast_is_refused():
    layout = make_layout(np.ones((3, 3), bool))
    ratio, advantage = np.ones((3, 3), np.float32), np.ones(3, np.float32)
    with pytest.raises(AssertionError, match=r"advantage has shape \(3,\); expected one value a"):
        objective.surrogate(ratio, advantage, layout)
    with pytest.raises(AssertionError, match=r"values has shape \(3, 1\)"):
        objective.mean(ratio[:, :1], layout, weighting="token")
