"""Every published family computes what transformers computes of it, however its rows lie."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fiberjax import policy
from fiberjax.parallel import mesh, shardings
from fiberjax.policy import families

from . import published, shapes

token_outputs = jax.jit(
    functools.partial(policy.token_outputs, temperature=1.0, chunk=5),
    static_argnames=("config", "start", "placement"),
)


# What differs in its parameters, or in what a device computes of them.
SPLIT = ("gemma3", "qwen3_moe")


@functools.partial(jax.jit, static_argnums=0)
def logits(config, params, tokens, positions, segment_ids):
    model = policy.bind(config, params)
    return model.unembed(model.hidden(tokens, positions, segment_ids))


@functools.cache
def read(kind):
    """A family's policy, its parameters, and what transformers made of its tokens."""
    config = published.config(kind)
    return config, published.load(published.FOLDER / kind, config), published.expected(kind)


@pytest.fixture(params=published.KINDS)
def family(request):
    return read(request.param)


def log_probs(logits, tokens):
    """Of each token but the first of a row, by the logits before it."""
    log_p = jax.nn.log_softmax(logits[:, :-1])
    return jnp.take_along_axis(log_p, tokens[:, 1:, None], axis=-1)[..., 0]


def test_logits_and_log_probs_are_those_of_transformers(family):
    config, params, expected = family
    tokens = jnp.asarray(expected["tokens"])
    found = logits(config, params, tokens, *shapes.whole(tokens))
    np.testing.assert_allclose(found, expected["logits"], atol=3e-5)
    out = token_outputs(config, params, tokens, *shapes.whole(tokens), start=1)
    np.testing.assert_allclose(out.log_prob, log_probs(expected["logits"], tokens), atol=3e-5)


def test_packed_rows_are_those_of_transformers(family):
    """Two whole rows and a part of the third in one, with padding around them."""
    config, params, expected = family
    rows, theirs = expected["tokens"], expected["logits"]
    lengths = (12, 12, 7)
    around = [np.full(3, 10**6), *(row[:n] for row, n in zip(rows, lengths, strict=True)), [-1]]
    tokens = np.concatenate(around)[None].astype(np.int32)
    ids = np.repeat([0, 1, 2, 3, 0], [3, *lengths, 1])[None].astype(np.int32)
    positions = np.concatenate([[9] * 3, *map(np.arange, lengths), [9]])[None].astype(np.int32)
    found = logits(config, params, tokens, positions, ids)
    for index, length in enumerate(lengths):
        np.testing.assert_allclose(
            found[ids == index + 1], theirs[index, :length], atol=3e-5, err_msg=f"row {index}"
        )


def left_padded(expected):
    """The rows' prompts, of 5 to 12 tokens, and their mask."""
    rows, lengths = expected["tokens"], expected["prompts"]
    width = rows.shape[1]
    mask = np.arange(width) >= width - lengths[:, None]
    prompts = np.full_like(rows, 7)
    for index, length in enumerate(lengths):
        prompts[index, width - length :] = rows[index, :length]
    return jnp.asarray(prompts), jnp.asarray(mask)


def sampled(config, params, prompts, mask, **options):
    return policy.sample(
        config,
        params,
        prompts,
        mask,
        jax.random.split(jax.random.key(5), len(prompts)),
        max_new_tokens=12,
        eos_id=config.vocab_size - 1,
        pad_id=0,
        stage=6,
        **options,
    )


def test_greedy_tokens_are_those_of_transformers_and_the_trainer_agrees(family):
    config, params, expected = family
    prompts, mask = left_padded(expected)
    out = sampled(config, params, prompts, mask, greedy=True)
    length = np.asarray(out.length)
    for index, count in enumerate(length):
        np.testing.assert_array_equal(
            out.tokens[index, :count], expected["greedy"][index, :count], err_msg=f"row {index}"
        )
    assert length.max() > 8
    rows = jnp.concatenate([prompts, out.tokens], axis=1)
    real = jnp.concatenate([mask, jnp.arange(12) < length[:, None]], axis=1)
    positions = jnp.cumsum(real, axis=1) - 1
    start = prompts.shape[1]
    trained = token_outputs(
        config, params, rows, positions, real.astype(jnp.int32), start=start
    ).log_prob
    np.testing.assert_allclose(
        jnp.where(real[:, start:], out.log_prob - trained, 0.0), 0.0, atol=2e-5
    )


@pytest.mark.long
@pytest.mark.parametrize("kind", SPLIT)
def test_eight_devices_agree_with_one(kind):
    """Log-probabilities, their gradients and what is sampled, over data, fsdp and tensor."""
    config, params, expected = read(kind)
    rows = jnp.tile(jnp.asarray(expected["tokens"]), (3, 1))[:8]
    positions, ids = shapes.whole(rows)
    weight = jax.random.normal(jax.random.key(0), (8, 11))
    device_mesh = published.make_mesh((2, 2, 2))
    placement = shardings.placement(device_mesh, config)
    split = jax.device_put(params, published.placed(config, (2, 2, 2)))

    def value(params, rows, positions, ids, placement):
        out = policy.token_outputs(
            *(config, params, rows, positions, ids),
            start=1,
            temperature=1.0,
            chunk=5,
            placement=placement,
        )
        return jnp.sum(weight * out.log_prob), out.log_prob

    run = jax.jit(jax.value_and_grad(value, has_aux=True), static_argnums=4)
    on_mesh = mesh.place(device_mesh, (rows, positions, ids), (mesh.ROWS,) * 3)
    one = run(params, rows, positions, ids, policy.Placement())
    chex.assert_trees_all_close(
        jax.device_get(run(split, *on_mesh, placement)), jax.device_get(one), rtol=2e-4, atol=2e-4
    )
    prompts = jnp.tile(left_padded(expected)[0], (3, 1))[:8]
    mask = jnp.tile(left_padded(expected)[1], (3, 1))[:8]
    first = sampled(config, params, prompts, mask)
    second = sampled(config, split, prompts, mask, placement=placement)
    np.testing.assert_array_equal(first.tokens, second.tokens)
    np.testing.assert_allclose(first.log_prob, second.log_prob, atol=2e-5)


@pytest.mark.long
def test_the_kernel_takes_layers_of_both_kinds():
    """Splash attention on a mesh, one kernel a kind, against dense attention on one device."""
    config, params, expected = read("qwen2_window")
    rows = jnp.asarray(expected["tokens"][[0, 1, 2, 0]])
    splash = published.config("qwen2_window", attention="splash")
    device_mesh = published.make_mesh((2, 1, 2))
    placement = shardings.placement(device_mesh, splash)
    assert placement.attention == "splash"
    split = jax.device_put(params, published.placed(config, (2, 1, 2)))

    def gradient(config, params, rows, positions, ids, placement):
        def value(params):
            out = token_outputs(config, params, rows, positions, ids, start=1, placement=placement)
            return jnp.sum(out.log_prob)

        return jax.device_get(jax.grad(value)(params))

    placed = mesh.place(device_mesh, (rows, *shapes.whole(rows)), (mesh.ROWS,) * 3)
    chex.assert_trees_all_close(
        gradient(splash, split, *placed, placement),
        gradient(config, params, rows, *shapes.whole(rows), policy.Placement()),
        rtol=1e-4,
        atol=1e-4,
    )


def test_gemma_in_bfloat16_is_near_its_float32():
    """Embeddings are scaled, and norms offset, in the dtypes that transformers uses."""
    _, params, expected = read("gemma3")
    tokens = jnp.asarray(expected["tokens"])
    half = published.config("gemma3", compute_dtype="bfloat16")
    model = policy.bind(half, params)
    x, _ = model._embed(tokens, *shapes.whole(tokens))
    table = params["embed"]["kernel"].astype(jnp.bfloat16)
    np.testing.assert_array_equal(x, table[tokens] * jnp.bfloat16(4.0))
    found = logits(half, params, tokens, *shapes.whole(tokens))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected["logits"], atol=0.25)


def test_a_family_is_told_by_what_it_reads():
    for kind in published.KINDS:
        config = published.config(kind)
        found, described = families.family_of(config)
        shape = families.read(families.FAMILIES[found], described)
        assert shape == families.shape_of(config)


def test_shapes_without_a_family_are_refused_with_the_nearest():
    config = published.config("qwen3")
    both = policy.TransformerConfig(**families.shape_of(config) | {"qkv_bias": True})
    with pytest.raises(ValueError, match=r"no published .* nearest is qwen2: qk_norm = F"):
        families.family_of(both)
