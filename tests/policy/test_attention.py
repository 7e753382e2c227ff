"""The kernel computes what plain attention computes, whatever the rows hold."""

import functools
import importlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fiberjax.policy import TransformerConfig, attention

BATCH, GROUPS, HEAD_DIM = 2, 2, 8
splash = functools.partial(attention.splash, interpret=True)
cudnn = functools.partial(attention.cudnn, implementation="xla")


def inputs(length: int, heads: int = 4, dtype=jnp.float32):
    shapes = [(BATCH, length, heads, HEAD_DIM)] + 2 * [(BATCH, GROUPS, length, HEAD_DIM)]
    keys = jax.random.split(jax.random.key(0), 4)
    parts = [jax.random.normal(k, shape) for k, shape in zip(keys, shapes, strict=False)]
    weight = jax.random.normal(keys[3], shapes[0])
    return [part.astype(dtype) for part in parts], weight


def segments(kind: str, length: int):
    """int32[2, length]; the two rows differ."""
    column = np.arange(length)
    rows = {
        "whole": [np.ones(length), np.ones(length)],
        "left": [column >= 7, column >= length // 2],
        "right": [column < length - 9, column < 3],
        # Three segments and padding; as many segments as tokens.
        "packed": [np.digitize(column, [length // 5, length // 2]) + 1, column + 1],
    }[kind]
    rows = np.array(rows, np.int32)
    if kind == "packed":
        rows[0, -4:] = 0
    return jnp.array(rows)


@pytest.mark.parametrize("kind", ["whole", "left", "right", "packed"])
@pytest.mark.parametrize(
    ("attend", "length"),
    [
        (splash, 70),
        pytest.param(splash, 200, marks=pytest.mark.long),
        (splash, 640),
        pytest.param(cudnn, 70, marks=pytest.mark.long),
        (cudnn, 33),
    ],
    ids=["part", "padded", "blocks", "cudnn", "cudnn odd"],
)
def test_kernels_are_dense(kind, attend, length):
    """Values at every column and all three gradients, over one block and over five."""
    parts, weight = inputs(length)
    ids = segments(kind, length)

    def value_and_gradients(attend):
        def weighted(*parts):
            out = attend(*parts, ids)
            return jnp.sum(out * weight), out

        return jax.jit(jax.value_and_grad(weighted, argnums=(0, 1, 2), has_aux=True))(*parts)

    (_, expected), expected_gradients = value_and_gradients(attention.dense)
    (_, found), gradients = value_and_gradients(attend)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    chex.assert_trees_all_close(gradients, expected_gradients, atol=5e-5)


@pytest.mark.parametrize("attend", [splash, cudnn], ids=["splash", "cudnn"])
@pytest.mark.parametrize("heads", [2, 6])
def test_kernels_share_keys_between_heads(heads, attend):
    """One query head a key head, and three."""
    parts, _ = inputs(30, heads)
    ids = segments("whole", 30)
    found = attend(*parts, ids, scale=0.3)
    np.testing.assert_allclose(found, attention.dense(*parts, ids, scale=0.3), atol=2e-5)


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize(("kind", "length"), [("packed", 70), ("left", 71), ("right", 30)])
def test_what_cudnn_is_asked_for_is_dense(kind, length, window):
    """The same call, computed without cuDNN: values and all three gradients, odd lengths too."""
    parts, weight = inputs(length)
    ids = segments(kind, length)

    def value_and_gradients(attend):
        def weighted(*parts):
            out = attend(*parts, ids, window=window, scale=0.3)
            return jnp.sum(out * weight), out

        return jax.jit(jax.value_and_grad(weighted, argnums=(0, 1, 2), has_aux=True))(*parts)

    asked = functools.partial(attention.cudnn, implementation="xla")
    chex.assert_trees_all_close(
        value_and_gradients(asked), value_and_gradients(attention.dense), atol=5e-5
    )


def windowed(ids, window):
    """Who sees whom, by a loop."""
    rows, columns = ids.shape
    mask = np.zeros((rows, columns, columns), bool)
    for row, query, key in np.ndindex(mask.shape):
        near = key <= query < key + window
        mask[row, query, key] = near and ids[row, query] == ids[row, key]
    return jnp.array(mask)


@pytest.mark.parametrize(("kind", "length"), [("whole", 300), ("packed", 70), ("left", 70)])
def test_windows_are_those_of_a_loop(kind, length):
    """Dense with a window known and traced, and the kernel, in values and gradients."""
    parts, weight = inputs(length)
    ids = segments(kind, length)
    mask, window = windowed(np.asarray(ids), 5), 5

    def run(attend):
        def weighted(*parts):
            out = attend(*parts)
            return jnp.sum(out * weight), out

        return jax.jit(jax.value_and_grad(weighted, argnums=(0, 1, 2), has_aux=True))(*parts)

    expected = run(lambda *parts: attention.masked(*parts, mask))
    traced = run(lambda *parts: attention.dense(*parts, ids, window=jnp.int32(window)))
    chex.assert_trees_all_close(traced, expected, atol=1e-5)
    known = run(lambda *parts: attention.dense(*parts, ids, window=window))
    chex.assert_trees_all_close(known, expected, atol=1e-5)
    for attend in (splash, cudnn):
        kernel = run(lambda *parts, attend=attend: attend(*parts, ids, window=window))
        chex.assert_trees_all_close(kernel[1], expected[1], atol=5e-5)
        np.testing.assert_allclose(kernel[0][1], expected[0][1], atol=2e-5)
    whole = attention.dense(*parts, ids, window=attention.EVERYTHING)
    np.testing.assert_array_equal(whole, attention.dense(*parts, ids))
    assert np.abs(whole - expected[0][1]).max() > 0.1


def test_splash_keeps_the_dtype():
    parts, _ = inputs(30, dtype=jnp.bfloat16)
    ids = segments("packed", 30)
    found, expected = splash(*parts, ids), attention.dense(*parts, ids)
    assert found.dtype == jnp.bfloat16
    chex.assert_trees_all_close(found.astype(jnp.float32), expected.astype(jnp.float32), atol=0.05)


@pytest.mark.parametrize(
    "attend", [attention.dense, splash, cudnn], ids=["dense", "splash", "cudnn"]
)
def test_later_tokens_and_other_segments_are_never_read(attend):
    (query, key, value), _ = inputs(40)
    ids = jnp.repeat(jnp.array([[1, 2], [1, 2]]), 20, axis=1)
    expected = attend(query, key, value, ids)
    outside = (jnp.arange(40) < 20) | (jnp.arange(40) > 30)  # Of column 30.
    changed = jnp.where(outside[None, None, :, None], 1e3, value)
    np.testing.assert_array_equal(attend(query, key, changed, ids)[:, 30], expected[:, 30])


def test_attending_to_nothing_is_finite():
    query, key = jnp.ones((1, 2, 2, 4)), jnp.ones((1, 1, 3, 4))
    mask = jnp.array([[[True, False, True], [False, False, False]]])
    value, gradient = jax.value_and_grad(lambda q: attention.masked(q, key, key, mask).sum())(query)
    assert np.isfinite(value) and np.isfinite(gradient).all()


CUDA = attention.Hardware("cuda", 9.0)


def chosen(hardware: attention.Hardware, tensor: int = 1, **changes) -> str:
    shape = dict(vocab_size=8, embed_dim=8, num_layers=1, num_heads=4, num_kv_heads=2, head_dim=64)
    shape |= dict(mlp_dim=8, compute_dtype="bfloat16")
    return attention.choose(TransformerConfig(**shape | changes), hardware, tensor)


@pytest.mark.parametrize(
    ("hardware", "expected"),
    [
        (attention.Hardware("cpu"), "dense"),
        (attention.Hardware("tpu"), "splash"),
        (CUDA, "cudnn"),
        (attention.Hardware("cuda", 8.0), "cudnn"),
        (attention.Hardware("cuda", 7.5), "dense"),
        (attention.Hardware("rocm"), "dense"),
        (attention.Hardware("another"), "dense"),
    ],
)
def test_auto_takes_the_kernel_of_the_platform(hardware, expected):
    assert chosen(hardware) == expected
    assert chosen(hardware, attention="dense") == "dense"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (dict(compute_dtype="float32"), "needs bfloat16; got float32"),
        (dict(head_dim=136), "needs a head_dim that divides by 8, up to 128; got 136"),
        (dict(head_dim=36), "needs a head_dim that divides by 8, up to 128; got 36"),
        (dict(num_heads=6), "num_heads = 6 must divide by lcm"),
    ],
)
def test_what_cudnn_does_not_take_is_dense_or_refused(changes, told):
    assert chosen(CUDA, 4, **changes) == "dense"
    with pytest.raises(ValueError, match=rf"config\.policy\.attention = 'cudnn' .*{told}"):
        chosen(CUDA, 4, attention="cudnn", **changes)


@pytest.mark.parametrize("platform", ["tpu", "rocm"])
def test_cudnn_is_refused_elsewhere_by_name(platform):
    with pytest.raises(ValueError, match=f"runs on CUDA GPUs.*the mesh is of {platform} devices"):
        chosen(attention.Hardware(platform), attention="cudnn")


def test_cudnn_is_what_a_gpu_would_be_given(monkeypatch):
    """Lowered for CUDA on this machine: a causal flash kernel of the window, forward and back."""
    fused = importlib.import_module("jax._src.cudnn.fused_attention_stablehlo")
    # What it asks of a GPU that is not here.
    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91_300)
    monkeypatch.setattr(fused, "check_compute_capability", lambda capability: True)
    parts, _ = inputs(33, dtype=jnp.bfloat16)
    ids = segments("packed", 33)

    def total(*parts):
        return attention.cudnn(*parts, ids, window=8).astype(jnp.float32).sum()

    traced = jax.jit(jax.grad(total, argnums=(0, 1, 2))).trace(*parts)
    text = traced.lower(lowering_platforms=("cuda",)).as_text().replace("\\22", '"')
    calls = [line for line in text.splitlines() if "custom_call" in line]
    for name in ("__cudnn$fmhaScaleBiasSoftmax(", "__cudnn$fmhaScaleBiasSoftmaxBackward("):
        (call,) = (line for line in calls if name in line)
        assert '"mask_type": "CAUSAL"' in call and '"sliding_window_length": 8' in call
        assert '"is_flash_attention": true' in call and "tensor<2x1x34x34xbf16>" in call
