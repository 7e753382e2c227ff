"""Published checkpoints are read as transformers reads them, and written so that it can.

`tests/data/checkpoints` were made by transformers (`tests/data/make_checkpoints.py`).
"""

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fiberjax import experiment, policy
from fiberjax.parallel import mesh, shardings
from fiberjax.policy import weights
from fiberjax.run import warm_start

from . import shapes

CHECKPOINTS = Path(__file__).parents[1] / "data" / "checkpoints"
SHAPE = dict(vocab_size=32, embed_dim=16, num_layers=2, num_heads=4, num_kv_heads=2, mlp_dim=24)
SHAPE |= dict(rope_theta=5000.0, norm_epsilon=1e-5)
CONFIGS = {
    "llama": policy.TransformerConfig(head_dim=4, tie_embeddings=False, **SHAPE),
    "qwen2": policy.TransformerConfig(head_dim=4, qkv_bias=True, tie_embeddings=True, **SHAPE),
    "qwen3": policy.TransformerConfig(head_dim=8, qk_norm=True, tie_embeddings=False, **SHAPE),
}


def placed(config, shape=(1, 1, 1)):
    count = int(np.prod(shape))
    device_mesh = mesh.make_mesh(dict(zip(mesh.AXES, shape, strict=True)), jax.devices()[:count])
    abstract = jax.eval_shape(lambda: policy.init(config, jax.random.key(0)))
    return shardings.param_shardings(device_mesh, abstract)


def load(directory, config, shape=(1, 1, 1)):
    return weights.load(directory, config, placed(config, shape))


@pytest.mark.parametrize("kind", CONFIGS)
def test_logits_are_those_of_transformers(kind):
    config = CONFIGS[kind]
    params = load(CHECKPOINTS / kind, config)
    expected = np.load(CHECKPOINTS / kind / "expected.npz")
    tokens = jnp.asarray(expected["tokens"])
    model = policy.bind(config, params)
    found = model.unembed(model.hidden(tokens, *shapes.whole(tokens)))
    np.testing.assert_allclose(found, expected["logits"], atol=2e-5)


@pytest.mark.parametrize("kind", CONFIGS)
def test_what_is_written_is_read(tmp_path, kind):
    config = CONFIGS[kind]
    params = shapes.params(config)
    weights.save(tmp_path / "new", config, params, dtype="float32")
    chex.assert_trees_all_equal(load(tmp_path / "new", config), params)
    weights.save(tmp_path / "new", config, params)
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), params)
    chex.assert_trees_all_equal(load(tmp_path / "new", config), rounded)


@pytest.mark.parametrize("kind", CONFIGS)
def test_what_is_written_has_the_names_that_transformers_uses(tmp_path, kind):
    """The same tensors as its own files, and options that describe the same model."""
    config = CONFIGS[kind]
    weights.save(tmp_path, config, load(CHECKPOINTS / kind, config), dtype="float32")
    expected = {}
    for file in (CHECKPOINTS / kind).glob("*.safetensors"):
        expected |= load_file(file)
    chex.assert_trees_all_equal(load_file(tmp_path / "model.safetensors"), expected)
    written = json.loads((tmp_path / "config.json").read_text())
    theirs = json.loads((CHECKPOINTS / kind / "config.json").read_text())
    shared = written.keys() & theirs.keys()
    assert {"model_type", "architectures", "hidden_size", "tie_word_embeddings"} <= shared
    assert {key: written[key] for key in shared} == {key: theirs[key] for key in shared}


@pytest.mark.parametrize("shape", [(2, 2, 2), (1, 8, 1)], ids=str)
def test_each_device_reads_its_part(monkeypatch, shape):
    """The parameters of one device, in the shardings asked for; no read is of a whole matrix."""
    config = CONFIGS["qwen3"]
    read = []
    original = weights._reader

    def recording(*arguments):
        part = original(*arguments)

        def called(index):
            read.append((arguments[0], part(index).size))
            return part(index)

        return called

    monkeypatch.setattr(weights, "_reader", recording)
    wanted = placed(config, shape)
    split = weights.load(CHECKPOINTS / "qwen3", config, wanted)
    assert all(
        leaf.sharding == sharding
        for leaf, sharding in zip(jax.tree.leaves(split), jax.tree.leaves(wanted), strict=True)
    )
    largest = max(size for path, size in read if path == "layers/mlp/up/kernel")
    assert largest == 2 * 16 * 24 // (shape[1] * shape[2])
    chex.assert_trees_all_equal(
        jax.device_get(split), jax.device_get(load(CHECKPOINTS / "qwen3", config))
    )


def copy(tmp_path, kind="qwen3", **changes):
    """A checkpoint whose config has these changes."""
    folder = shutil.copytree(CHECKPOINTS / kind, tmp_path / "copy")
    described = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(described))
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2', expected one of"),
        ({"hidden_size": 32}, "config.policy.embed_dim is 16, the checkpoint has 32"),
        ({"rope_parameters": {"rope_theta": 1e6}}, "rope_theta is 5000.0, the checkpoint has 1000"),
        ({"rope_scaling": {"type": "yarn"}}, "rope type is 'yarn', only 'default'"),
        ({"use_sliding_window": True}, "use_sliding_window is True, only False"),
        ({"attention_bias": True}, "attention_bias is True, only False"),
        ({"tie_word_embeddings": True}, "tie_embeddings is False, the checkpoint has True"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', only 'silu'"),
    ],
)
def test_configs_that_differ_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        load(copy(tmp_path, **changes), CONFIGS["qwen3"])


def test_every_difference_is_named(tmp_path):
    config = dataclasses.replace(CONFIGS["qwen3"], num_layers=3, mlp_dim=48)
    with pytest.raises(ValueError, match=r"num_layers is 3, .* 2; config.policy.mlp_dim is 48"):
        load(copy(tmp_path), config)


def damage(folder, change):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    return folder


NORM = "model.layers.1.input_layernorm.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(NORM), rf"{NORM} is missing"),
        (lambda t: t.update({NORM: np.zeros(8, np.float32)}), r"is \[8\], expected \[16\]"),
        (lambda t: t.update({NORM: np.zeros(16, np.int8)}), "is I8, expected F32, F16 or BF16"),
        (lambda t: t.update(extra=np.zeros(1, np.float32)), "extra is not of this policy"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tmp_path, change, message):
    folder = damage(copy(tmp_path, "llama"), change)
    with pytest.raises(ValueError, match=message):
        load(folder, CONFIGS["llama"])


def test_tensors_without_meaning_are_passed_over(tmp_path):
    folder = damage(
        copy(tmp_path, "qwen2"),
        lambda t: t.update(
            {"lm_head.weight": t["model.embed_tokens.weight"].copy()}
            | {"model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(2, np.float32)}
        ),
    )
    chex.assert_trees_all_equal(
        load(folder, CONFIGS["qwen2"]), load(CHECKPOINTS / "qwen2", CONFIGS["qwen2"])
    )


def test_folders_that_are_no_checkpoints_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no checkpoint: its config.json cannot be read"):
        load(tmp_path / "nowhere", CONFIGS["llama"])
    folder = copy(tmp_path, "llama")
    (folder / "model.safetensors").write_bytes(b"not tensors at all")
    with pytest.raises(ValueError, match=r"model.safetensors is not a safetensors file"):
        load(folder, CONFIGS["llama"])
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"it holds no model\*.safetensors file"):
        load(folder, CONFIGS["llama"])
    (folder / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"no checkpoint: its config.json cannot be read"):
        load(folder, CONFIGS["llama"])


def test_shapes_without_a_family_are_not_written(tmp_path):
    config = dataclasses.replace(CONFIGS["qwen3"], qkv_bias=True)
    with pytest.raises(ValueError, match="both qk_norm and qkv_bias"):
        weights.save(tmp_path / "new", config, shapes.params(config))
    assert not (tmp_path / "new").exists()


def test_the_extra_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ValueError, match="needs the `hf` extra: safetensors"):
        load(CHECKPOINTS / "llama", CONFIGS["llama"])


def test_a_fingerprint_is_of_every_byte(tmp_path):
    content = bytearray(np.random.default_rng(0).bytes(2**20))
    file = tmp_path / "model.safetensors"
    found = []
    for place in (None, 0, 8_000, 2**19 + 9_001, 2**20 - 1):
        changed = content.copy()
        if place is not None:
            changed[place] ^= 1
        file.write_bytes(changed)
        found.append(weights.fingerprint(tmp_path))
    assert len(set(found)) == len(found)
    file.write_bytes(content)
    assert weights.fingerprint(tmp_path) == found[0]


@pytest.fixture
def published(make_config, one_device, tmp_path):
    """The tiny config, and a checkpoint of its policy that it starts from."""
    config = make_config()
    config.warm_start.directory = str(tmp_path / "warm_starts")
    shape = experiment.from_config(config, one_device).policy
    params = shapes.params(shape)
    weights.save(tmp_path / "weights", shape, params, dtype="float32")
    config.model.folder = str(tmp_path / "weights")
    config.model.tokenizer = "tasks"
    return config, params


def test_a_run_starts_from_published_weights(published, one_device):
    config, params = published
    config.warm_start.steps = 0
    found = warm_start.starting_params(experiment.from_config(config, one_device))
    chex.assert_trees_all_equal(found, params)


def test_a_warm_start_goes_on_from_them_and_is_made_anew_for_others(published, one_device):
    config, params = published
    config.warm_start.steps = 1
    config.warm_start.learning_rate = 1e-9
    config.model.warm_start = True

    def start():
        return warm_start.starting_params(experiment.from_config(config, one_device))

    chex.assert_trees_all_close(start(), params, atol=1e-5)
    shape = experiment.from_config(config, one_device).policy
    other = shapes.params(shape, seed=1)
    weights.save(config.model.folder, shape, other, dtype="float32")
    chex.assert_trees_all_close(start(), other, atol=1e-5)


def test_weights_that_do_not_fit_are_refused_before_the_run(published, one_device):
    config, _ = published
    config.policy.mlp_dim = 48
    config.warm_start.steps = 0
    with pytest.raises(ValueError, match=r"config\.model\.folder = .*mlp_dim is 48"):
        experiment.from_config(config, one_device)
