"""Adapters compute what PEFT computes of them, and have the gradient of the chain rule."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fiberjax import policy
from fiberjax.parallel import shardings
from fiberjax.policy import lora, weights

from . import adapters, published, shapes

CONFIG = shapes.config()
ALL = tuple(lora.TARGETS)


def make(config=CONFIG, **changes):
    given = {"rank": 2, "alpha": 6.0, "targets": (lora.ALL,), "base_dtype": "float32"}
    return lora.make_lora(config, **(given | changes))


def random_adapters(chosen, base, seed=3):
    """Adapters of which both matrices matter."""
    trained = lora.init(chosen, base, jax.random.key(seed))
    return jax.tree.map(
        lambda x: 0.3 * jax.random.normal(jax.random.key(x.size), x.shape, x.dtype), trained
    )


@functools.partial(jax.jit, static_argnums=0)
def logits(config, params, tokens):
    model = policy.bind(config, params)
    return model.unembed(model.hidden(tokens, *shapes.whole(tokens)))


@functools.cache
def read(kind):
    config = published.config(kind)
    base = published.load(published.FOLDER / kind, config)
    return config, base, *adapters.read(kind, config)


@pytest.mark.parametrize("kind", adapters.KINDS)
def test_logits_are_those_of_peft(kind):
    config, base, chosen, trained = read(kind)
    tokens = jnp.asarray(published.expected(kind)["tokens"])
    expected = np.load(adapters.FOLDER / kind / "expected.npz")["logits"]
    assert np.abs(expected - published.expected(kind)["logits"]).max() > 0.1
    found = logits(config, lora.attached(chosen, base, trained), tokens)
    np.testing.assert_allclose(found, expected, atol=3e-5)
    found = logits(config, lora.merged(chosen, base, trained), tokens)
    np.testing.assert_allclose(found, expected, atol=3e-5)


@pytest.mark.parametrize("kind", adapters.KINDS)
def test_what_is_written_is_what_peft_wrote(kind, tmp_path):
    """Every name and byte of the tensors; and its config says the same."""
    import safetensors.numpy

    config, _, chosen, trained = read(kind)
    weights.save_adapter(tmp_path, config, trained, lora=chosen, base=kind)
    theirs, ours = (
        safetensors.numpy.load_file(folder / "adapter_model.safetensors")
        for folder in (adapters.FOLDER / kind, tmp_path)
    )
    assert theirs.keys() == ours.keys()
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(ours[name], tensor, err_msg=name, strict=True)
    theirs, ours = (
        json.loads((folder / "adapter_config.json").read_text())
        for folder in (adapters.FOLDER / kind, tmp_path)
    )
    for described in (theirs, ours):
        described["target_modules"] = sorted(described["target_modules"])
    assert ours == {name: theirs[name] for name in ours}
    assert {"r", "lora_alpha", "peft_type", "base_model_name_or_path"} <= ours.keys()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_policy_begins_as_its_base(dtype):
    config = dataclasses.replace(CONFIG, compute_dtype=dtype)
    base, chosen, tokens = shapes.params(config), make(config), shapes.tokens(2, 9)
    trained = lora.init(chosen, base, jax.random.key(0))
    found = logits(config, lora.attached(chosen, base, trained), tokens)
    np.testing.assert_array_equal(found, logits(config, base, tokens))
    for path, leaf in jax.tree_util.tree_leaves_with_path(trained):
        assert leaf.dtype == jnp.float32
        if path[-1].key == "lora_a":  # Even in ±1/√in.
            largest = float(jnp.abs(leaf).max()) * leaf.shape[1] ** 0.5
            assert 0.9 < largest <= 1 and abs(float(leaf.mean())) < 0.1
        else:
            assert not leaf.any()


def test_what_a_matrix_draws_does_not_depend_on_the_others():
    base = shapes.params(CONFIG)
    whole, alone = (
        lora.init(make(targets=targets), base, jax.random.key(0))["layers"]
        for targets in (ALL, ("up_proj",))
    )
    np.testing.assert_array_equal(alone["mlp"]["up"]["lora_a"], whole["mlp"]["up"]["lora_a"])
    assert alone.keys() == {"mlp"} and alone["mlp"].keys() == {"up"}
    drawn = [whole["attention"][name]["lora_a"] for name in "qkv"]
    assert not np.array_equal(drawn[0], drawn[1]) and not np.array_equal(drawn[1], drawn[2])


def test_gradients_are_those_of_the_merged_weights_by_the_chain_rule():
    base, chosen = shapes.params(CONFIG), make()
    trained, tokens = random_adapters(chosen, base), shapes.tokens(3, 8)

    def loss(params):
        z = logits(CONFIG, params, tokens)
        return jnp.sum(z * jnp.cos(jnp.arange(z.size).reshape(z.shape)))

    @jax.jit
    def gradients(base, trained):
        found = jax.grad(lambda trained: loss(lora.attached(chosen, base, trained)))(trained)
        return found, jax.grad(loss)(lora.merged(chosen, base, trained))

    found, whole = gradients(base, trained)
    for part, matrices in trained["layers"].items():
        for name, pair in matrices.items():
            gradient = whole["layers"][part][name]["kernel"]
            expected = {
                "lora_a": 3.0 * jnp.einsum("lio,lro->lir", gradient, pair["lora_b"]),
                "lora_b": 3.0 * jnp.einsum("lir,lio->lro", pair["lora_a"], gradient),
            }
            for side, value in expected.items():
                scale = float(jnp.abs(value).max())
                assert scale > 0.1
                np.testing.assert_allclose(
                    found["layers"][part][name][side], value, rtol=1e-4, atol=1e-5 * scale
                )


def test_what_the_sampler_draws_is_of_the_merged_weights():
    base, chosen = shapes.params(CONFIG), make()
    trained = random_adapters(chosen, base)

    def drawn(params):
        return policy.sample(
            CONFIG,
            params,
            shapes.tokens(4, 3),
            jnp.ones((4, 3), bool),
            jax.random.split(jax.random.key(0), 4),
            max_new_tokens=6,
            eos_id=0,
            pad_id=0,
        )

    found, expected = map(
        drawn, (lora.attached(chosen, base, trained), lora.merged(chosen, base, trained))
    )
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.log_prob, expected.log_prob, atol=1e-4)
    assert np.abs(found.log_prob - drawn(base).log_prob).max() > 0.1


def test_a_rounded_base_is_the_policy_of_its_compute_dtype():
    """In bfloat16 a base of bfloat16 loses nothing."""
    config = dataclasses.replace(CONFIG, compute_dtype="bfloat16")
    wide, chosen = shapes.params(config), make(config)
    narrow = policy.cast_kernels(wide, config)
    trained, tokens = random_adapters(chosen, wide), shapes.tokens(2, 9)
    found, expected = (
        logits(config, lora.attached(chosen, base, trained), tokens) for base in (narrow, wide)
    )
    np.testing.assert_array_equal(found, expected)
    assert narrow["layers"]["mlp"]["up"]["kernel"].dtype == jnp.bfloat16
    merged = lora.merged(chosen, narrow, trained)
    assert {leaf.dtype for leaf in jax.tree.leaves(merged)} == {jnp.dtype(jnp.float32)}


def test_digests_tell_bases_apart():
    config, base, *_ = read("qwen2")
    found = lora.digest(base)
    placed = jax.device_put(base, shardings.param_shardings(published.make_mesh((1, 2, 2)), base))
    assert found == lora.digest(placed)
    kernel = base["layers"]["mlp"]["up"]["kernel"]

    def changed(kernel):
        layers = base["layers"] | {"mlp": base["layers"]["mlp"] | {"up": {"kernel": kernel}}}
        return lora.digest(base | {"layers": layers})

    assert changed(kernel) == found
    others = [
        changed(kernel[::-1]),
        changed(kernel[:, ::-1]),
        changed(kernel[..., ::-1]),
        changed(kernel.at[1, 3, 5].multiply(1 + 2**-23)),
        changed(-kernel),
        lora.digest(
            policy.cast_kernels(base, dataclasses.replace(config, compute_dtype="bfloat16"))
        ),
    ]
    assert len({found, *others}) == 7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": ("lm_head",)}, r"targets must be some of q_proj, .*down_proj.*\('lm_head',\)"),
        ({"targets": ()}, r"targets must be some of"),
        ({"targets": ("q_proj", "q_proj")}, r"targets must be some of .* each once"),
        ({"targets": ("all-linear", "q_proj")}, r"'all-linear' alone"),
        ({"targets": ("q_proj", 3)}, r"targets must be some of"),
        ({"rank": 0}, r"rank must be between 1 and .*q_proj is 16 by 32; got 0"),
        ({"rank": 17}, r"q_proj is 16 by 32; got 17"),
        ({"alpha": float("nan")}, r"alpha must be positive and finite; got nan"),
        ({"alpha": float("inf")}, r"alpha must be positive and finite; got inf"),
        ({"alpha": 0.0}, r"alpha must be positive and finite; got 0"),
        ({"base_dtype": "int8"}, r"base_dtype must be one of bfloat16, float32; got 'int8'"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_experts_are_refused_by_name():
    mixture = shapes.config(num_experts=2, experts_per_token=1)
    with pytest.raises(ValueError, match=r"experts of a mixture.*gate_proj, up_proj, down_proj"):
        make(mixture)
    assert make(mixture, targets=("o_proj", "q_proj")).targets == ("q_proj", "o_proj")


def test_sides_are_those_of_the_matrices():
    """For every target the largest rank is the smaller side of the matrix that there is."""
    config = shapes.config(num_kv_heads=1, mlp_dim=12)
    base = shapes.params(config)
    for target, path in lora.TARGETS.items():
        part, name = path.split("/")
        most = min(base["layers"][part][name]["kernel"].shape[1:])
        assert make(config, targets=(target,), rank=most).rank == most
        with pytest.raises(ValueError, match=rf"{target} is \d+ by \d+; got {most + 1}"):
            make(config, targets=(target,), rank=most + 1)
