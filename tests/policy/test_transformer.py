import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fiberjax import policy

from . import shapes


@pytest.fixture(scope="module")
def config():
    return shapes.config()


@pytest.fixture(scope="module")
def params(config):
    return shapes.params(config)


@functools.partial(jax.jit, static_argnums=0)
def hidden(config, params, tokens, positions, segment_ids):
    return policy.bind(config, params).hidden(tokens, positions, segment_ids)


def test_causality_through_gradients(config, params):
    """The output at column t has a gradient in exactly the inputs up to t."""
    model = policy.bind(config, params)
    tokens = jnp.arange(6)[None]  # distinct, so that embedding rows stand for columns
    positions, segments = shapes.whole(tokens)

    def at(kernel, column):
        changed = params | {"embed": {"kernel": kernel}}
        return policy.bind(config, changed).hidden(tokens, positions, segments)[0, column].sum()

    gradient_at = jax.jit(jax.grad(at))
    for column in range(6):
        gradient = gradient_at(model.embed.kernel[...], column)
        reached = np.abs(gradient[:6]).sum(axis=1) > 0
        np.testing.assert_array_equal(reached, np.arange(6) <= column)


def test_left_padding_is_inert(config, params):
    tokens = shapes.tokens(3, 5)
    expected = hidden(config, params, tokens, *shapes.whole(tokens))
    positions, segments = shapes.whole(tokens)
    pad = ((0, 0), (4, 0))
    for garbage in (0, 7, -3, 10**6):
        got = hidden(
            config,
            params,
            jnp.pad(tokens, pad, constant_values=garbage),
            jnp.pad(positions, pad, constant_values=garbage),
            jnp.pad(segments, pad),
        )
        assert np.isfinite(got).all()
        np.testing.assert_allclose(got[:, 4:], expected, atol=2e-6)


def test_padding_has_finite_gradients(config, params):
    tokens = shapes.tokens(2, 4)
    positions, _ = shapes.whole(tokens)
    segments = jnp.array([[0, 0, 1, 1], [0, 0, 0, 0]])
    gradient = jax.grad(lambda p: hidden(config, p, tokens, positions, segments).sum())(params)
    chex.assert_tree_all_finite(gradient)


def test_packed_equals_unpacked(config, params):
    first, second = shapes.tokens(1, 3, seed=2), shapes.tokens(1, 4, seed=3)
    packed = jnp.concatenate([first, second], axis=1)
    positions = jnp.array([[0, 1, 2, 0, 1, 2, 3]])
    segments = jnp.array([[1, 1, 1, 2, 2, 2, 2]])
    got = hidden(config, params, packed, positions, segments)
    alone = [hidden(config, params, x, *shapes.whole(x)) for x in (first, second)]
    np.testing.assert_allclose(got, np.concatenate(alone, axis=1), atol=2e-6)
    # The wrong answer, for scale: what one long sequence gives.
    wrong = hidden(config, params, packed, *shapes.whole(packed))
    assert np.abs(got - wrong)[:, 3:].max() > 1e-2


def test_grouped_heads_equal_repeated_heads(config, params):
    """Two key heads for four query heads are four key heads, repeated in pairs."""
    many = dataclasses.replace(config, num_kv_heads=config.num_heads)

    def repeat(x):
        heads = x.reshape(*x.shape[:-1], config.num_kv_heads, config.head_dim)
        return jnp.repeat(heads, 2, axis=-2).reshape(*x.shape[:-1], -1)

    attention = params["layers"]["attention"]
    repeated = {name: jax.tree.map(repeat, attention[name]) for name in ("k", "v")}
    changed = params | {"layers": params["layers"] | {"attention": attention | repeated}}
    tokens = shapes.tokens(2, 6)
    np.testing.assert_allclose(
        hidden(config, params, tokens, *shapes.whole(tokens)),
        hidden(many, changed, tokens, *shapes.whole(tokens)),
        atol=2e-6,
    )


def reference_hidden(config, params, tokens):
    """The decoder of one sequence in NumPy float64, head by head."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def norm(x, scale):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_epsilon) * scale

    def turn(x):
        half = config.head_dim // 2
        frequency = config.rope_theta ** (-2 * np.arange(half) / config.head_dim)
        angle = np.arange(len(x))[:, None] * frequency
        z = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * angle)
        return np.concatenate([z.real, z.imag], axis=1)

    x = params["embed"]["kernel"][tokens]
    for index in range(config.num_layers):
        p = jax.tree.map(lambda leaf: leaf[index], params["layers"])  # noqa: B023
        a, m = p["attention"], p["mlp"]
        h = norm(x, p["attention_norm"]["scale"])
        q, k, v = (h @ a[n]["kernel"] + a[n]["bias"] for n in "qkv")
        out = []
        for head in range(config.num_heads):
            group = head // (config.num_heads // config.num_kv_heads)
            one = slice(head * config.head_dim, (head + 1) * config.head_dim)
            other = slice(group * config.head_dim, (group + 1) * config.head_dim)
            qh = turn(norm(q[:, one], a["q_norm"]["scale"]))
            kh = turn(norm(k[:, other], a["k_norm"]["scale"]))
            scores = np.where(np.tri(len(x)) > 0, qh @ kh.T / np.sqrt(config.head_dim), -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            out.append(weights / weights.sum(-1, keepdims=True) @ v[:, other])
        x = x + np.concatenate(out, axis=1) @ a["o"]["kernel"]
        h = norm(x, p["mlp_norm"]["scale"])
        gate = h @ m["gate"]["kernel"]
        x = x + (gate / (1 + np.exp(-gate)) * (h @ m["up"]["kernel"])) @ m["down"]["kernel"]
    return norm(x, params["final_norm"]["scale"])


def test_agrees_with_numpy(config, params):
    tokens = shapes.tokens(1, 7)
    got = hidden(config, params, tokens, *shapes.whole(tokens))
    np.testing.assert_allclose(got[0], reference_hidden(config, params, tokens[0]), atol=1e-5)


def test_decode_in_pieces_equals_hidden(config, params):
    tokens = shapes.tokens(2, 7)
    positions, segments = shapes.whole(tokens)
    segments = segments.at[1, :2].set(0)
    positions = positions.at[1].add(-2)
    expected = hidden(config, params, tokens, positions, segments)
    decode = jax.jit(lambda *args: policy.bind(config, params).decode(*args))
    cache = policy.init_cache(config, 2, 9)
    pieces = []
    for at in (slice(0, 3), slice(3, 4), slice(4, 7)):
        out, cache = decode(tokens[:, at], positions[:, at], segments[:, at], cache)
        pieces.append(out)
    got = np.concatenate(pieces, axis=1)
    real = np.asarray(segments) > 0
    np.testing.assert_allclose(got[real], np.asarray(expected)[real], atol=2e-6)
    assert int(cache.length) == 7


def test_tied_embedding_is_the_unembedding(config):
    tied = dataclasses.replace(config, tie_embeddings=True)
    params = policy.init(tied, jax.random.key(0))
    assert "head" not in params
    model = policy.bind(tied, params)
    x = jax.random.normal(jax.random.key(1), (2, 3, tied.embed_dim))
    np.testing.assert_allclose(model.unembed(x), x @ params["embed"]["kernel"].T, atol=1e-6)
    untied = policy.init(config, jax.random.key(0))
    assert untied["head"]["kernel"].shape == untied["embed"]["kernel"].shape
    model = policy.bind(config, untied)
    np.testing.assert_allclose(model.unembed(x), x @ untied["head"]["kernel"].T, atol=1e-6)
    assert policy.num_params(config) - policy.num_params(tied) == untied["head"]["kernel"].size


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_remat_changes_nothing(config, params, remat):
    tokens = shapes.tokens(2, 5)

    def gradient(config):
        loss = lambda p: jnp.sum(hidden(config, p, tokens, *shapes.whole(tokens)) ** 2)  # noqa: E731
        return jax.jit(jax.grad(loss))(params)

    chex.assert_trees_all_close(
        gradient(dataclasses.replace(config, remat=remat)), gradient(config), rtol=1e-4, atol=1e-4
    )


def test_bfloat16_compute_keeps_float32_masters_and_logits(config, params):
    half = dataclasses.replace(config, compute_dtype="bfloat16")
    tokens = shapes.tokens(2, 5)
    chex.assert_trees_all_equal_dtypes(policy.init(half, jax.random.key(0)), params)
    out = hidden(half, params, tokens, *shapes.whole(tokens))
    assert out.dtype == jnp.bfloat16
    assert policy.bind(half, params).unembed(out).dtype == jnp.float32
    exact = hidden(config, params, tokens, *shapes.whole(tokens))
    np.testing.assert_allclose(out.astype(jnp.float32), exact, atol=0.15)


def test_placement_sees_everything_by_name(config, params):
    seen = set()

    class Recording(policy.Placement):
        def activation(self, x, name):
            seen.add((name, x.shape))
            return x

        def kernel(self, kernel, split):
            seen.add((split, kernel.shape))
            return kernel

    tokens = shapes.tokens(2, 5)
    policy.bind(config, params, placement=Recording()).hidden(tokens, *shapes.whole(tokens))
    assert seen == {
        ("activation", (2, 5, 16)),
        ("heads", (2, 5, 4, 8)),
        ("heads", (2, 5, 2, 8)),
        ("mlp", (2, 5, 24)),
        ("out", (16, 32)),  # q
        ("out", (16, 16)),  # k, v
        ("in", (32, 16)),  # o
        ("out", (16, 24)),  # gate, up
        ("in", (24, 16)),  # down
    }


def test_parameter_paths(config):
    shapes_ = jax.eval_shape(lambda: policy.init(config, jax.random.key(0)))
    paths = jax.tree_util.tree_flatten_with_path(shapes_)[0]
    found = {"/".join(k.key for k in path): leaf.shape for path, leaf in paths}
    assert found == {
        "embed/kernel": (11, 16),
        "layers/attention_norm/scale": (2, 16),
        "layers/attention/q/kernel": (2, 16, 32),
        "layers/attention/k/kernel": (2, 16, 16),
        "layers/attention/v/kernel": (2, 16, 16),
        "layers/attention/o/kernel": (2, 32, 16),
        "layers/attention/q/bias": (2, 32),
        "layers/attention/k/bias": (2, 16),
        "layers/attention/v/bias": (2, 16),
        "layers/attention/q_norm/scale": (2, 8),
        "layers/attention/k_norm/scale": (2, 8),
        "layers/mlp_norm/scale": (2, 16),
        "layers/mlp/gate/kernel": (2, 16, 24),
        "layers/mlp/up/kernel": (2, 16, 24),
        "layers/mlp/down/kernel": (2, 24, 16),
        "final_norm/scale": (16,),
        "head/kernel": (11, 16),
    }


def test_init_under_jit_and_with_split(config):
    key = jax.random.key(3)
    eager = policy.init(config, key)
    compiled = jax.jit(policy.init, static_argnums=0)(config, key)
    chex.assert_trees_all_close(eager, compiled, atol=1e-6)
    module = policy.Transformer(config, rngs=nnx.Rngs(params=key))
    graphdef, state = nnx.split(module)
    tokens = shapes.tokens(1, 3)
    np.testing.assert_allclose(
        jax.jit(nnx.merge(graphdef, state).hidden)(tokens, *shapes.whole(tokens)),
        hidden(config, eager, tokens, *shapes.whole(tokens)),
        atol=1e-6,
    )


QWEN25 = dict(qkv_bias=True, rope_theta=1e6)
QWEN3_MOE = dict(tie_embeddings=False, qk_norm=True, num_experts=128, experts_per_token=8)
GEMMA3 = dict(qk_norm=True, post_norms=True, norm_offset=True, scale_embeddings=True)


@pytest.mark.parametrize(
    ("published", "shape"),
    [
        (494_032_768, dict(dims=(151936, 896, 24, 14, 2, 64, 4864), **QWEN25)),
        (1_543_714_304, dict(dims=(151936, 1536, 28, 12, 2, 128, 8960), **QWEN25)),
        (
            7_615_616_512,
            dict(dims=(152064, 3584, 28, 28, 4, 128, 18944), tie_embeddings=False, **QWEN25),
        ),
        (596_049_920, dict(dims=(151936, 1024, 28, 16, 8, 128, 3072), qk_norm=True)),
        (8_030_261_248, dict(dims=(128256, 4096, 32, 32, 8, 128, 14336), tie_embeddings=False)),
        (268_098_176, dict(dims=(262144, 640, 18, 4, 1, 256, 2048), **GEMMA3)),
        (999_885_952, dict(dims=(262144, 1152, 26, 4, 1, 256, 6912), **GEMMA3)),
        (7_241_732_096, dict(dims=(32000, 4096, 32, 32, 8, 128, 14336), tie_embeddings=False)),
        (30_532_122_624, dict(dims=(151936, 2048, 48, 32, 4, 128, 768), **QWEN3_MOE)),
    ],
    ids=[
        *("qwen2.5-0.5b", "qwen2.5-1.5b", "qwen2.5-7b", "qwen3-0.6b", "llama3-8b"),
        *("gemma3-270m", "gemma3-1b", "mistral-7b", "qwen3-30b-a3b"),
    ],
)
def test_published_parameter_counts(published, shape):
    names = ("vocab_size", "embed_dim", "num_layers", "num_heads", "num_kv_heads", "head_dim")
    dims = dict(zip((*names, "mlp_dim"), shape.pop("dims"), strict=True))
    assert policy.num_params(policy.TransformerConfig(**dims, **shape)) == published


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(num_heads=4, num_kv_heads=3), "num_kv_heads must divide num_heads"),
        (dict(head_dim=7), "head_dim must be even"),
        (dict(compute_dtype="float16"), "compute_dtype must be one of"),
        (dict(remat="some"), "remat must be one of"),
        (dict(num_layers=0), r"num_layers must be in \[1, 1000\]; got 0"),
        (dict(rope_theta=float("nan")), "rope_theta must be finite; got nan"),
        (dict(layer_pattern=("full", "half")), r"layer_pattern must be kinds of \['full', 'sli"),
        (dict(layer_pattern=()), "layer_pattern must be kinds of"),
        (dict(layer_pattern="full"), "layer_pattern must be kinds of"),
        (dict(layer_pattern=("sliding",)), "sliding_window must be positive for layers"),
        (dict(local_rope_theta=1e4), "local_rope_theta must be 0 where no layer slides, got 10000"),
        (dict(query_pre_attn_scalar=-1.0), "query_pre_attn_scalar must be at least 0; got -1.0"),
        (dict(num_experts=4), r"experts_per_token must be in \[1, 4\] for num_experts = 4, got 0"),
        (dict(experts_per_token=1), r"experts_per_token must be in \[0, 0\]"),
        (dict(num_experts=-1), r"num_experts must be in \[0, 65536\]; got -1"),
        (dict(norm_topk_prob=True), "norm_topk_prob must be False without experts"),
        (dict(activation="relu"), r"activation must be one of \['silu', 'gelu_tanh'\], got 'relu'"),
        (dict(sliding_window=4), r"sliding_window must be 0 for layers \['full'\], got 4"),
    ],
)
def test_bad_shapes_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        shapes.config(**changes)


def test_offset_norms_begin_as_the_others(config):
    """A fresh policy is the same function, whether its scales begin at 1 or count from it."""
    tokens = shapes.tokens(2, 5)
    offset = dataclasses.replace(config, norm_offset=True)
    plain, counted = (policy.init(c, jax.random.key(0)) for c in (config, offset))
    np.testing.assert_array_equal(
        hidden(config, plain, tokens, *shapes.whole(tokens)),
        hidden(offset, counted, tokens, *shapes.whole(tokens)),
    )
    assert not np.any(counted["layers"]["attention_norm"]["scale"])


@pytest.mark.parametrize(
    ("num_layers", "pattern", "shortest"),
    [
        (4, ("full",) * 4, ("full",)),
        (5, ["sliding", "full", "sliding", "full", "sliding"], ("sliding", "full")),
        (3, ("full", "sliding", "sliding"), ("full", "sliding", "sliding")),
        (2, ("sliding",) * 5 + ("full",), ("sliding",)),
    ],
)
def test_patterns_of_layers_are_kept_in_their_shortest_form(num_layers, pattern, shortest):
    config = shapes.config(
        num_layers=num_layers, layer_pattern=pattern, sliding_window=4 * ("sliding" in shortest)
    )
    assert config.layer_pattern == shortest and len(config.sliding) == num_layers
    repeated = [*pattern] * num_layers
    assert config.sliding == tuple(kind == "sliding" for kind in repeated[:num_layers])


def test_parameters_of_another_shape_are_refused(config, params):
    tied = dataclasses.replace(config, tie_embeddings=True)
    with pytest.raises(ValueError, match="params do not fit the config"):
        policy.bind(tied, params)
