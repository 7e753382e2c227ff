"""Published checkpoints are read as transformers reads them, and written so that it can.

`tests/data/checkpoints` were made by transformers (`tests/data/make_checkpoints.py`).
"""

import dataclasses
import hashlib
import json
import shutil
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fiberjax import experiment, policy
from fiberjax.policy import weights
from fiberjax.run import warm_start

from . import published, shapes

CHECKPOINTS = published.FOLDER
CONFIGS = {kind: published.config(kind) for kind in published.KINDS}
placed, load = published.placed, published.load


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
    assert weights.read_shape(tmp_path) == weights.read_shape(CHECKPOINTS / kind)
    written = json.loads((tmp_path / "config.json").read_text())
    theirs = json.loads((CHECKPOINTS / kind / "config.json").read_text())
    # What the policy does not know: the longest sequence, and beside experts a dense layer's width.
    unknown = {"max_position_embeddings", *({"intermediate_size"} if config.num_experts else ())}
    shared = written.keys() & theirs.keys() - unknown
    assert {"model_type", "architectures", "hidden_size", "tie_word_embeddings"} <= shared
    assert {key: written[key] for key in shared} == {key: theirs[key] for key in shared}


def test_a_folder_says_every_field_of_the_shape():
    """And none that says how it is computed."""
    found = weights.read_shape(CHECKPOINTS / "qwen3")
    names = {field.name for field in dataclasses.fields(policy.TransformerConfig)}
    assert found.keys() == names - {"compute_dtype", "remat", "attention"}
    assert found["qk_norm"] and not found["qkv_bias"] and found["rope_theta"] == 5000.0


def test_mistral_slides_unless_its_window_is_null(tmp_path):
    folder = copy(tmp_path, "mistral")
    found = weights.read_shape(folder)
    assert (found["layer_pattern"], found["sliding_window"]) == (("sliding",), 5)
    described = json.loads((folder / "config.json").read_text())
    for said, window in (({"sliding_window": None}, 0), ({}, 4096)):
        del described["sliding_window"]
        described |= said
        (folder / "config.json").write_text(json.dumps(described))
        assert weights.read_shape(folder)["sliding_window"] == window
        described.setdefault("sliding_window", None)


def test_a_null_in_a_section_counts_as_absent(tmp_path):
    scaling = {"rope_type": None, "type": "linear", "factor": 2.0, "low_freq_factor": None}
    folder = copy(tmp_path, "llama", rope_scaling=scaling, rope_parameters=None)
    found = weights.read_shape(folder)
    assert (found["rope_type"], found["rope_scaling"]) == ("linear", (("factor", 2.0),))


def test_gemma_is_read_in_both_spellings(tmp_path):
    """Layers by a pattern, bases beside each other; defaults as the family has them."""
    folder = copy(tmp_path, "gemma3")
    expected = weights.read_shape(folder)
    assert expected["layer_pattern"] == ("sliding", "sliding", "full")
    assert (expected["rope_theta"], expected["local_rope_theta"]) == (5000.0, 50.0)
    assert expected["rope_scaling"] == (("factor", 4.0),) and expected["sliding_window"] == 4
    described = json.loads((folder / "config.json").read_text())
    del described["layer_types"], described["rope_parameters"]
    older = {"sliding_window_pattern": 3, "rope_theta": 5000.0, "rope_local_base_freq": 50}
    older |= {"rope_scaling": {"rope_type": "linear", "factor": 4}}
    (folder / "config.json").write_text(json.dumps(described | older))
    assert weights.read_shape(folder) == expected
    for name in ("head_dim", "query_pre_attn_scalar", "tie_word_embeddings", "sliding_window"):
        del described[name]
    (folder / "config.json").write_text(json.dumps(described | {"num_hidden_layers": 18}))
    found = weights.read_shape(folder)
    assert found["layer_pattern"] == ("sliding",) * 5 + ("full",)
    assert (found["rope_theta"], found["local_rope_theta"]) == (1e6, 1e4)
    assert (found["head_dim"], found["query_pre_attn_scalar"]) == (256, 256.0)
    assert found["tie_embeddings"] and found["sliding_window"] == 4096


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0, only None"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention is True, only"),
        ({"hidden_activation": "silu"}, "hidden_activation is 'silu', only 'gelu_pytorch_tanh'"),
        ({"rope_parameters": {"rope_theta": 1.0}}, "rope_parameters.rope_theta is not understood"),
    ],
)
def test_what_gemma_has_not_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        weights.read_shape(copy(tmp_path, "gemma3", **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mlp_only_layers": [0]}, r"mlp_only_layers is \[0\], only \[\] is supported"),
        ({"decoder_sparse_step": 2}, "decoder_sparse_step is 2, only 1 is supported"),
        ({"num_experts_per_tok": 5}, r"experts_per_token must be in \[1, 4\] for num_experts = 4"),
        ({"moe_intermediate_size": 0}, "moe_intermediate_size is 0, expected a positive integer"),
    ],
)
def test_experts_that_are_not_understood_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        weights.read_shape(copy(tmp_path, "qwen3_moe", **changes))


def test_experts_are_counted_by_either_name(tmp_path):
    folder = copy(tmp_path, "qwen3_moe", num_local_experts=None, num_experts=4)
    assert weights.read_shape(folder) == weights.read_shape(CHECKPOINTS / "qwen3_moe")


def test_epsilons_are_compared_as_float32(tmp_path):
    config = CONFIGS["llama"]
    assert config.norm_epsilon == 1e-5
    folder = copy(tmp_path, "llama", rms_norm_eps=9.999999747378752e-06)
    weights.check(folder, config)
    with pytest.raises(ValueError, match=r"norm_epsilon is 1.1e-05, the checkpoint has 9.99"):
        weights.check(folder, dataclasses.replace(config, norm_epsilon=1.1e-5))


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
        (
            {"rope_scaling": {"type": "linear", "factor": 2}},
            "rope_type is 'default', the checkpoint has 'linear'; config.policy.rope_scaling is",
        ),
        ({"rope_scaling": {"type": "longrope"}}, "rope type is 'longrope', expected one of"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5, only 1.0 is supported"),
        ({"hidden_size": None}, "hidden_size is missing, expected a positive integer"),
        ({"num_hidden_layers": "2"}, "num_hidden_layers is '2', expected a positive integer"),
        ({"tie_word_embeddings": 0}, "tie_word_embeddings is 0, expected true or false"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is {'bits': 4}, only None"),
        (
            {"use_sliding_window": True, "layer_types": None, "max_window_layers": 1}
            | {"sliding_window": 8},
            r"layer_pattern is \('full',\), the checkpoint has \('full', 'sliding'\); "
            "config.policy.sliding_window is 0, the checkpoint has 8",
        ),
        ({"layer_types": ["full_attention"]}, "layer_types names 1 layers, expected 2"),
        ({"layer_types": ["full_attention", "chunked"]}, r"layer_types is .*, expected kinds of"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "but use_sliding_window is off"),
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


def test_a_tied_head_that_is_another_is_refused(tmp_path):
    """What transformers unties by itself, by a config that says the contrary."""
    folder = damage(
        copy(tmp_path, "qwen2"),
        lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] * 2}),
    )
    with pytest.raises(
        ValueError, match=r"safetensors: lm_head\.weight differs from model\.embed_tokens"
    ):
        load(folder, CONFIGS["qwen2"])


def test_an_index_says_which_files_are_the_model(tmp_path):
    """A shard that an earlier save left is passed over; one that is named must be there."""
    expected, folder = load(CHECKPOINTS / "qwen2", CONFIGS["qwen2"]), copy(tmp_path, "qwen2")
    shutil.copy(folder / "model.safetensors", folder / "model-00002-of-00002.safetensors")
    damage(folder, lambda t: [t.update({name: 2 * of}) for name, of in t.items()])
    stale, shard = folder / "model-00009-of-00009.safetensors", "model-00002-of-00002.safetensors"
    (folder / "model.safetensors").rename(stale)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": shard}}))
    chex.assert_trees_all_equal(load(folder, CONFIGS["qwen2"]), expected)
    for said, message in (
        ({"weight_map": {"a": "model-7.safetensors"}}, "names model-7.safetensors, which is not"),
        ({"weight_map": {"a": f"../{folder.name}/{shard}"}}, "which is not in the folder"),
        ({"weight_map": {"a": 3}}, r"index\.json cannot be read \(TypeError"),
        ({"weight_map": []}, r"index\.json cannot be read \(AttributeError"),
        ({}, r"index\.json cannot be read \(KeyError"),
    ):
        index.write_text(json.dumps(said))
        with pytest.raises(ValueError, match=message):
            load(folder, CONFIGS["qwen2"])


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
    with pytest.raises(ValueError, match="no published family has a policy of this shape"):
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
    assert (
        weights.fingerprint(tmp_path)
        == found[0]
        == hashlib.blake2b(hashlib.blake2b(content).digest(), digest_size=8).hexdigest()
    )


def test_a_fingerprint_is_of_the_files_that_are_loaded(tmp_path):
    names = [f"pytorch_model-0000{k}-of-00002.safetensors" for k in (1, 2)]
    index = {"weight_map": {"a": names[0], "b": names[1]}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    found = set()
    for contents in ((b"1", b"2"), (b"1", b"3"), (b"4", b"2")):
        for name, content in zip(names, contents, strict=True):
            (tmp_path / name).write_bytes(content)
        found.add(weights.fingerprint(tmp_path))
    assert len(found) == 3


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
