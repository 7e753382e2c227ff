"""The optimizers against loops: decoupled decay, and which parameters it reaches."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fiberjax import optimizers
from fiberjax.finite import finite
from fiberjax.optimizers import OPTIMIZERS, make_optimizer, make_schedule
from fiberjax.policy import TransformerConfig, init, lora

SHAPE = TransformerConfig(
    vocab_size=8,
    embed_dim=8,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    mlp_dim=8,
    qk_norm=True,
    qkv_bias=True,
    tie_embeddings=False,
)
RATES = (0.1, 0.05, 0.2)
DECAY = 0.3


def make(name, *, weight_decay=DECAY, decay_all=False, b1=0.9):
    return make_optimizer(
        name,
        lambda step: jnp.array(RATES)[step],
        b1=b1,
        b2=0.95,
        weight_decay=weight_decay,
        decay_all=decay_all,
        clip_norm=0.0,
        moment_dtype="float32",
    )


@pytest.fixture(scope="module")
def params():
    """Parameters of a policy, no zero among them; by path."""
    noise = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(noise.normal(1.0, 0.1, leaf.shape), jnp.float32),
        jax.eval_shape(lambda: init(SHAPE, jax.random.key(0))),
    )


@pytest.fixture(scope="module")
def gradients(params):
    noise = np.random.default_rng(1)
    return [
        jax.tree.map(lambda leaf: jnp.asarray(noise.normal(size=leaf.shape), jnp.float32), params)
        for _ in RATES
    ]


def trained(optimizer, params, gradients):
    """The parameters after every step."""
    state, found = optimizer.init(params), []
    for gradient in gradients:
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        found.append(params)
    return found


def by_path(tree):
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {"/".join(key.key for key in path): np.asarray(leaf, np.float64) for path, leaf in flat}


def decays(path, decay_all):
    return decay_all or (path.startswith("layers/") and path.endswith("/kernel"))


def direction(name, momenta, gradient, step, b1):
    """The step's direction of one parameter, and its moments after it; written out."""
    first, second = momenta
    if name == "sgd":
        first = gradient + b1 * first
        return first, (first, second)
    first = b1 * first + (1 - b1) * gradient
    second = 0.95 * second + 0.05 * gradient**2
    corrected = first / (1 - b1**step), second / (1 - 0.95**step)
    return corrected[0] / (np.sqrt(corrected[1]) + 1e-8), (first, second)


@pytest.mark.parametrize(
    ("name", "b1", "decay_all"),
    [
        *(("adamw", 0.9, decay_all) for decay_all in (False, True)),
        *(("sgd", b1, False) for b1 in (0.9, 0.0)),
    ],
)
def test_decay_is_decoupled_from_the_moments(params, gradients, name, b1, decay_all):
    found = trained(make(name, b1=b1, decay_all=decay_all), params, gradients)
    expected = by_path(params)
    moments = {path: (np.zeros_like(p), np.zeros_like(p)) for path, p in expected.items()}
    for step, (rate, gradient) in enumerate(zip(RATES, gradients, strict=True), start=1):
        for path, g in by_path(gradient).items():
            along, moments[path] = direction(name, moments[path], g, step, b1)
            decay = DECAY * expected[path] if decays(path, decay_all) else 0.0
            expected[path] = expected[path] - rate * (along + decay)
        for path, value in by_path(found[step - 1]).items():
            np.testing.assert_allclose(value, expected[path], rtol=1e-5, atol=1e-6, err_msg=path)


@pytest.mark.parametrize("b1", [0.9, 0.0])
def test_with_decay_of_all_the_momentum_of_sgd_gathers_it(params, gradients, b1):
    """As in runs that began before there was a choice."""
    found = trained(make("sgd", b1=b1, decay_all=True), params, gradients)
    expected = by_path(params)
    momentum = {path: np.zeros_like(p) for path, p in expected.items()}
    for rate, gradient, after in zip(RATES, gradients, found, strict=True):
        for path, g in by_path(gradient).items():
            momentum[path] = g + DECAY * expected[path] + b1 * momentum[path]
            expected[path] = expected[path] - rate * momentum[path]
        for path, value in by_path(after).items():
            np.testing.assert_allclose(value, expected[path], rtol=1e-5, atol=1e-6, err_msg=path)


@pytest.mark.parametrize("decay_all", [False, True])
def test_muon_decays_its_matrices_alone(params, gradients, decay_all):
    with_decay, without = (
        by_path(trained(make("muon", weight_decay=d, decay_all=decay_all), params, gradients)[0])
        for d in (DECAY, 0.0)
    )
    for path, start in by_path(params).items():
        decay = DECAY * start if decays(path, False) else 0.0
        np.testing.assert_allclose(
            with_decay[path], without[path] - RATES[0] * decay, rtol=1e-5, atol=1e-6, err_msg=path
        )


def test_muon_turns_the_matrix_of_each_expert_by_itself():
    """Where one expert has no gradient, the others step as they would without it."""
    mixture = dataclasses.replace(SHAPE, num_experts=3, experts_per_token=1, mlp_dim=4)
    params = jax.tree.map(
        lambda leaf: jnp.ones(leaf.shape), jax.eval_shape(lambda: init(mixture, jax.random.key(0)))
    )
    noise = jax.random.normal(jax.random.key(1), params["layers"]["experts"]["up"]["kernel"].shape)

    def step(noise):
        zeros = jax.tree.map(jnp.zeros_like, params)
        zeros["layers"]["experts"]["up"]["kernel"] = noise
        optimizer = make("muon", weight_decay=0.0)
        updates, _ = optimizer.update(zeros, optimizer.init(params), params)
        return updates["layers"]["experts"]["up"]["kernel"]

    whole, part = step(noise), step(noise.at[:, 1].set(0.0))
    np.testing.assert_allclose(part[:, [0, 2]], whole[:, [0, 2]], rtol=1e-5)
    assert not np.any(part[:, 1]) and np.abs(whole[:, 1]).min() > 0
    # Orthogonal: the singular values of a step are nearly one number.
    values = np.linalg.svd(np.asarray(whole[0, 0]), compute_uv=False)
    assert values.max() < 2 * values.min()


def test_muon_turns_both_matrices_of_an_adapter_by_themselves():
    """Each of as many directions as the rank, all of one length; and both decay."""
    base = jax.eval_shape(lambda: init(SHAPE, jax.random.key(0)))
    chosen = lora.make_lora(
        SHAPE, rank=2, alpha=2.0, targets=("q_proj", "down_proj"), base_dtype="float32"
    )
    adapters = lora.init(chosen, base, jax.random.key(0))
    noise = np.random.default_rng(0)
    gradient = jax.tree.map(lambda x: jnp.asarray(noise.normal(size=x.shape), x.dtype), adapters)
    turned, decayed = (
        by_path(trained(make("muon", weight_decay=decay), adapters, [gradient])[0])
        for decay in (0.0, DECAY)
    )
    for path, start in by_path(adapters).items():
        (update,) = (turned[path] - start) / RATES[0]
        lengths = np.linalg.svd(update, compute_uv=False)
        assert lengths.shape == (2,) and 0.3 < lengths.min() and lengths.max() < 0.8, path
        np.testing.assert_allclose(
            decayed[path], turned[path] - RATES[0] * DECAY * start, 1e-5, 1e-6
        )


@pytest.mark.parametrize(
    ("name", "b1"), [("adamw", 0.9), ("muon", 0.9), ("sgd", 0.9), ("sgd", 0.0)]
)
def test_with_decay_of_all_the_state_is_that_of_optax(params, name, b1):
    """So that a run that was saved before there was a choice can be read."""
    schedule = optax.constant_schedule(0.1)
    plain = {
        "adamw": optax.adamw(schedule, b1=b1, b2=0.95, mu_dtype=jnp.float32),
        "muon": optax.contrib.muon(
            schedule,
            mu_dtype=jnp.float32,
            muon_weight_dimension_numbers=optimizers._muon_dimensions,
        ),
        "sgd": optax.chain(
            optax.add_decayed_weights(DECAY),
            optax.sgd(schedule, momentum=b1 if b1 > 0 else None, accumulator_dtype=jnp.float32),
        ),
    }[name]
    before = jax.eval_shape(optax.chain(optax.identity(), plain).init, params)
    now = jax.eval_shape(make(name, b1=b1, decay_all=True).init, params)
    assert jax.tree.structure(now) == jax.tree.structure(before)
    shapes = [[leaf.shape for leaf in jax.tree.leaves(state)] for state in (now, before)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "lion"}, "optimizer must be one of adamw, muon, sgd; got 'lion'"),
        ({"b1": 1.0}, r"b1 must be in \[0, 1\); got 1\.0"),
        ({"b2": -0.1}, r"b2 must be in \[0, 1\); got -0\.1"),
        ({"weight_decay": -1.0}, r"weight_decay must be at least 0; got -1\.0"),
        ({"weight_decay": float("nan")}, "weight_decay must be at least 0; got nan"),
        ({"clip_norm": -1.0}, r"clip_norm must be at least 0"),
        ({"moment_dtype": "int8"}, "moment_dtype must be one of float32, bfloat16; got 'int8'"),
    ],
)
def test_bad_options_are_refused(options, message):
    good = {
        "name": OPTIMIZERS[0],
        "schedule": optax.constant_schedule(0.1),
        "b1": 0.9,
        "b2": 0.95,
        "weight_decay": 0.0,
        "decay_all": False,
        "clip_norm": 1.0,
        "moment_dtype": "float32",
    }
    with pytest.raises(ValueError, match=message):
        make_optimizer(**good | options)


@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
def test_schedules_rise_to_their_peak_and_end_where_they_should(name):
    schedule = make_schedule(name, learning_rate=0.4, warmup_steps=4, total_steps=12)
    assert float(schedule(0)) == 0 and float(schedule(2)) == pytest.approx(0.2)
    assert float(schedule(4)) == pytest.approx(0.4)
    middle, end = {"constant": (0.4, 0.4), "linear": (0.2, 0.0), "cosine": (0.2, 0.0)}[name]
    assert float(schedule(8)) == pytest.approx(middle)
    assert float(schedule(12)) == pytest.approx(end, abs=1e-7)
    with pytest.raises(ValueError, match="warmup_steps must be between 0 and the 3 steps"):
        make_schedule(name, learning_rate=0.4, warmup_steps=4, total_steps=3)
    with pytest.raises(ValueError, match="schedule must be one of constant, linear, cosine"):
        make_schedule("wavy", learning_rate=0.4, warmup_steps=0, total_steps=3)


@pytest.mark.parametrize("decay_all", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_momentum_is_that_of_the_gradients_so_far(name, decay_all):
    params = init(SHAPE, jax.random.key(0))
    optimizer = optax.chain(optax.identity(), make(name, weight_decay=0.0, decay_all=decay_all))
    state = optimizer.init(params)
    want = jax.tree.map(jnp.zeros_like, params)
    for step in range(2):
        chex.assert_trees_all_close(optimizers.momentum(state, params), want, rtol=1e-6)
        gradient = jax.tree.map(lambda p, step=step: jnp.cos((step + 1) * p + 0.3), params)
        _, state = optimizer.update(gradient, state, params)
        new = 1.0 if name == "sgd" else 0.1
        want = jax.tree.map(lambda m, g, new=new: 0.9 * m + new * g, want, gradient)
    chex.assert_trees_all_close(optimizers.momentum(state, params), want, rtol=1e-6)


def test_no_momentum_where_none_is_kept_or_two_are():
    params = init(SHAPE, jax.random.key(0))
    for optimizer in (make("sgd", b1=0.0), optax.chain(make("adamw"), optax.trace(0.5))):
        assert optimizers.momentum(optimizer.init(params), params) is None


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("b1", [0.0, 0.9])
@pytest.mark.parametrize(
    ("clip", "moments"), [(0.0, "float32"), (0.0, "bfloat16"), (1.0, "float32")]
)
def test_a_finite_gradient_gives_a_finite_step(name, b1, clip, moments, params):
    """Whatever sizes follow each other, as long as the squares of a gradient can be added.

    So whether an update is finite is known before the optimizer's step.
    """
    optimizer = make_optimizer(
        name,
        optax.constant_schedule(1.0),
        b1=b1,
        b2=0.999,
        weight_decay=0.1,
        decay_all=False,
        clip_norm=clip,
        moment_dtype=moments,
    )
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    largest = np.sqrt(np.finfo(np.float32).max / count) / 2
    sizes = (largest, 0.0, 1e-45, 1e-30, 1e-12, largest, largest, 1.0, 0.0, 1e-20, 1e10)
    update = jax.jit(optimizer.update)
    noise = np.random.default_rng(2)
    state = optimizer.init(params)
    for size in sizes:
        gradient = jax.tree.map(
            lambda leaf, size=size: jnp.asarray(
                size * noise.uniform(-1, 1, leaf.shape), jnp.float32
            ),
            params,
        )
        assert bool(finite(optax.tree.norm(gradient)))
        updates, state = update(gradient, state, params)
        assert bool(finite((optax.apply_updates(params, updates), state)))
