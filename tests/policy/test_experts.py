"""A mixture of experts against a loop over tokens, whoever holds the experts."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fiberjax import policy
from fiberjax.policy import experts
from fiberjax.policy.placement import ONE_DEVICE

from . import shapes

ROWS, LENGTH, WIDTH, HIDDEN, EXPERTS, CHOSEN = 2, 5, 6, 4, 3, 2


def inputs(seed=0):
    """x, shares, experts, and the three kernels."""
    keys = jax.random.split(jax.random.key(seed), 6)
    x = jax.random.normal(keys[0], (ROWS, LENGTH, WIDTH))
    share = jax.random.uniform(keys[1], (ROWS, LENGTH, CHOSEN))
    order = jax.random.uniform(keys[2], (ROWS, LENGTH, EXPERTS))
    kernels = [
        jax.random.normal(key, (EXPERTS, *shape))
        for key, shape in zip(
            keys[3:], [(WIDTH, HIDDEN), (WIDTH, HIDDEN), (HIDDEN, WIDTH)], strict=True
        )
    ]
    return x, share, jnp.argsort(order, axis=-1)[..., :CHOSEN].astype(jnp.int32), *kernels


def looped(x, share, expert, gate, up, down, held=range(EXPERTS)):
    out = np.zeros(x.shape)
    for row, column, k in np.ndindex(expert.shape):
        e = int(expert[row, column, k])
        if e in held:
            gated = np.asarray(x[row, column] @ gate[e])
            hidden = gated / (1 + np.exp(-gated)) * np.asarray(x[row, column] @ up[e])
            out[row, column] += share[row, column, k] * (hidden @ np.asarray(down[e]))
    return out


dispatch = jax.jit(functools.partial(experts.dispatch, activation="silu"))


def test_each_token_goes_through_its_experts():
    given = inputs()
    np.testing.assert_allclose(dispatch(0, *given), looped(*given), atol=1e-5)


def test_parts_of_the_experts_add_up():
    """Two devices, of which one holds the first expert and the other the rest."""
    x, share, expert, *kernels = given = inputs(1)
    first = dispatch(0, x, share, expert, *(kernel[:1] for kernel in kernels))
    rest = dispatch(1, x, share, expert, *(kernel[1:] for kernel in kernels))
    np.testing.assert_allclose(first, looped(*given, held=[0]), atol=1e-5)
    np.testing.assert_allclose(rest, looped(*given, held=[1, 2]), atol=1e-5)
    none = dispatch(7, x, share, expert, *(kernel[:1] for kernel in kernels))
    assert not np.any(none)


def test_gradients_are_those_of_all_experts_on_all_tokens():
    x, share, expert, *kernels = inputs(2)

    def everywhere(x, share, gate, up, down):
        hidden = jax.nn.silu(jnp.einsum("btd,edf->btef", x, gate))
        hidden = hidden * jnp.einsum("btd,edf->btef", x, up)
        of_expert = jnp.einsum("btef,efd->bted", hidden, down)
        counted = jnp.sum(share[..., None] * jax.nn.one_hot(expert, EXPERTS), axis=2)
        return jnp.einsum("bted,bte->btd", of_expert, counted)

    def gradient(function):
        loss = lambda *given: jnp.sum(jnp.sin(function(*given)))  # noqa: E731
        return jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3, 4)))(x, share, *kernels)

    sorted_ = lambda x, share, *kernels: dispatch(0, x, share, expert, *kernels)  # noqa: E731
    chex.assert_trees_all_close(gradient(sorted_), gradient(everywhere), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sizes", [(20, 0, 100), (129, 3, 0), (0, 0, 0), (40, 50, 60)], ids=str)
def test_the_kernel_for_gradients_of_matrices(sizes):
    """What the kernel sums over the rows of each group, some of which are in none."""
    keys = jax.random.split(jax.random.key(0), 2)
    rows, gradient = (jax.random.normal(k, (150, n)) for k, n in zip(keys, (24, 40), strict=True))
    ends = np.cumsum((0, *sizes))
    expected = np.stack([rows[a:b].T @ gradient[a:b] for a, b in itertools.pairwise(ends)])
    given = rows, gradient, jnp.array(sizes, jnp.int32)
    np.testing.assert_allclose(experts.outer(*given), expected, atol=5e-5)
    np.testing.assert_allclose(experts.outer_tpu(*given, interpret=True), expected, atol=5e-5)


def mixture(**changes):
    shape = dict(num_experts=4, experts_per_token=2, qkv_bias=False)
    return shapes.config(**(shape | changes))


@pytest.mark.parametrize("renormalise", [True, False])
def test_the_router_takes_the_likeliest(renormalise):
    config = mixture(norm_topk_prob=renormalise)
    params = shapes.params(config)
    kernel = params["layers"]["experts"]["router"]["kernel"][0]
    router = experts.Router(config, rngs=shapes.rngs())
    router.kernel = nnx.Param(kernel)
    x = jax.random.normal(jax.random.key(1), (2, 3, config.embed_dim)).astype(jnp.bfloat16)
    share, expert = router(x)
    assert share.dtype == jnp.float32
    probability = np.asarray(jax.nn.softmax(x.astype(jnp.float32) @ kernel))
    expected = np.sort(probability)[..., :-3:-1]
    if renormalise:
        expected = expected / expected.sum(-1, keepdims=True)
    np.testing.assert_allclose(share, expected, rtol=1e-5)
    np.testing.assert_array_equal(expert, np.argsort(-probability)[..., :2])


@pytest.mark.parametrize("renormalise", [True, False])
def test_replayed_tokens_go_where_they_are_told(renormalise):
    """Through those experts, by the shares that this router gives them, with its gradient."""
    config = mixture(norm_topk_prob=renormalise)
    kernels = {
        name: of["kernel"][0] for name, of in shapes.params(config)["layers"]["experts"].items()
    }
    block = experts.Experts(config, ONE_DEVICE, scale=1.0, rngs=shapes.rngs())
    for name, kernel in kernels.items():
        getattr(block, name).kernel = nnx.Param(kernel)
    x = jax.random.normal(jax.random.key(1), (2, 3, config.embed_dim))
    probability = np.asarray(jax.nn.softmax(x @ kernels["router"]))
    told = np.argsort(probability)[..., :2]  # The unlikeliest.
    share = np.take_along_axis(probability, told, axis=-1)
    if renormalise:
        share = share / share.sum(-1, keepdims=True)
    out, taken = block(x, jnp.asarray(told, jnp.uint8))
    np.testing.assert_array_equal(taken, told)
    of_experts = [kernels[name] for name in ("gate", "up", "down")]
    np.testing.assert_allclose(out, looped(x, share, told, *of_experts, held=range(4)), atol=1e-5)
    gradient = nnx.grad(lambda block: jnp.sum(jnp.sin(block(x, jnp.asarray(told))[0])))(block)
    assert jnp.max(jnp.abs(gradient["router"]["kernel"][...])) > 1e-3


def test_routes_lead_back_where_they_come_from():
    """Layer by layer: another order of the layers is another way."""
    config = mixture()
    params, tokens = shapes.params(config), shapes.tokens(2, 6)
    model = policy.bind(config, params)
    rows = tokens, *shapes.whole(tokens)
    hidden, routes = jax.jit(model.routed)(*rows)
    assert routes.shape == (2, 6, config.num_layers, 2) and routes.dtype == jnp.uint8
    np.testing.assert_allclose(hidden, model.hidden(*rows), atol=1e-5)
    np.testing.assert_allclose(model.hidden(*rows, routes), hidden, atol=1e-5)
    assert np.any(routes[:, :, 0] != routes[:, :, 1])
    assert np.max(np.abs(model.hidden(*rows, routes[:, :, ::-1]) - hidden)) > 1e-2


def test_sampler_and_trainer_route_alike_in_bfloat16():
    """Routers stay float32 where the sampler's matrices are cast."""
    config = mixture(compute_dtype="bfloat16")
    params = shapes.params(config)
    cast = policy.cast_kernels(params, config)
    mlp = cast["layers"]["experts"]
    assert mlp["router"]["kernel"].dtype == jnp.float32
    assert mlp["gate"]["kernel"].dtype == jnp.bfloat16
    tokens = shapes.tokens(2, 6)
    run = jax.jit(lambda params: policy.bind(config, params).hidden(tokens, *shapes.whole(tokens)))
    np.testing.assert_array_equal(run(params), run(cast))


def test_what_padding_holds_changes_nothing():
    config = mixture()
    params, tokens = shapes.params(config), shapes.tokens(2, 7)
    segments = jnp.array([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 2, 2, 0, 0]])
    positions = jnp.array([[0, 0, 0, 1, 2, 3, 4], [0, 1, 2, 0, 1, 0, 0]])

    def loss(params, tokens):
        hidden = policy.bind(config, params).hidden(tokens, positions, segments)
        return jnp.sum(jnp.where(segments[..., None] > 0, hidden, 0.0) ** 2)

    run = jax.jit(jax.value_and_grad(loss))
    other = jnp.where(segments > 0, tokens, 10**6)
    chex.assert_trees_all_equal(run(params, tokens), run(params, other))
