"""A published model's folder decides: what it says, what contradicts it, what is wrong in it."""

import ast
import json
import os
import pathlib
import subprocess
import sys

import folders
import jax
import numpy as np
import pytest
import tiny
import tokenizers
from ml_collections import ConfigDict
from safetensors.numpy import load_file, save_file

from fiberjax import experiment, model_folder
from fiberjax.policy import weights
from fiberjax.run import checkpoints, identity, loop, migrations, publish, warm_start
from fiberjax.tasks import chat, loading, published

ROOT = pathlib.Path(__file__).parents[1]
ROWS = [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a in range(6) for b in range(6)]

compilations = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, duration, **_: (
        compilations.append(event) if event.endswith("backend_compile_duration") else None
    )
)


@pytest.fixture(autouse=True)
def _here(monkeypatch, request):
    """Templates run in this process, but where that is what is tested."""
    if "apart" not in request.keywords:
        monkeypatch.setattr(published, "make_frame", folders.frame_here)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A whole folder, which no test changes."""
    return folders.write(tmp_path_factory.mktemp("published") / "model")


@pytest.fixture
def chatting(make_config, tmp_path):
    """The tiny config with prompts of a file and a given folder."""

    def make(folder):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        config = make_config()
        config.tasks.file = str(path)
        config.window.prompt = 48
        config.warm_start.steps = 0
        config.model.folder = str(folder)
        return config

    return make


def test_the_folder_gives_the_shape_and_the_run_trains(kept, chatting, one_device, tmp_path):
    config = model_folder.with_folder(chatting(kept))
    assert config.policy.embed_dim == 16 and config.policy.vocab_size == 264
    config.iterations = 1
    built = experiment.from_config(config, one_device)
    assert built.policy.num_layers == 1 and built.policy.mlp_dim == 24
    placed = jax.tree.map(lambda leaf: leaf.sharding, warm_start.starting_params(built))
    published_params = weights.load(kept, built.policy, placed)
    for x, y in zip(
        jax.tree.leaves(warm_start.starting_params(built)),
        jax.tree.leaves(published_params),
        strict=True,
    ):
        np.testing.assert_array_equal(x, y)
    loop.run(built, tmp_path / "run", config.to_json_best_effort())
    # What is saved is the shape that there was.
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved["policy"]["mlp_dim"] == 24 and saved["model"]["folder"] == kept
    prompts = built.examples.prompts
    assert all(folders.START in prompts[index] for index in range(3))


def test_a_shape_that_contradicts_the_folder_is_refused(kept, chatting, one_device):
    config = chatting(kept)
    config.policy.mlp_dim, config.policy.num_layers = 99, 7
    message = r"config\.policy\.mlp_dim is 99, the folder has 24"
    with pytest.raises(ValueError, match=message) as error:
        model_folder.with_folder(config, ("policy.mlp_dim", "policy.remat"))
    # What the config has of itself makes place.
    assert "num_layers" not in str(error.value) and repr(kept) in str(error.value)
    completed = model_folder.with_folder(config, ("policy.vocab_size",))
    assert completed.policy.mlp_dim == 24 and config.policy.mlp_dim == 99
    # The tokenizer's size, or the folder's, which is larger.
    assert completed.policy.vocab_size == 0
    assert experiment.from_config(completed, one_device).policy.vocab_size == 264
    with pytest.raises(ValueError, match=message):
        experiment.from_config(config, one_device)


def test_without_a_folder_a_config_stays_as_it_is(make_config):
    config = make_config()
    assert model_folder.with_folder(config, ("policy.mlp_dim",)) is config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window.completion": 81}, r"completion = 129 tokens, .* for 128 \(max_position_emb"),
        ({"warm_start.steps": 9}, r"config\.warm_start\.steps = 9 would train .*model\.warm_start"),
        ({"model.tokenizer": "gone"}, r"config\.model\.tokenizer = 'gone': it does not exist"),
        ({"model.chat": "maybe"}, r"config\.model: chat must be one of auto, on, off; got 'maybe'"),
        ({"model.stop": ("",)}, r"config\.model: stop must be texts, none empty; got"),
        ({"model.examples": (("a",),)}, r"config\.model: examples must be pairs of texts, or"),
        ({"model.overrides": {"ends": ()}}, r"overrides must be of context, pad, .*got 'ends'"),
        ({"model.overrides": {"context": "9"}}, r"overrides\.context must be .*got '9'"),
        ({"model.folder": ""}, r"config\.model: stop is of a published model's tokenizer, and"),
        ({"model.folder": "gone"}, r"config\.model\.folder: 'gone' is no checkpoint"),
    ],
)
def test_what_does_not_go_with_a_folder_is_refused(kept, chatting, one_device, change, message):
    config = model_folder.with_folder(chatting(kept))
    config.model.stop = ("\n",)
    before = len(compilations)
    with config.ignore_type(), config.unlocked():
        for path, value in change.items():
            section, name = path.split(".")
            config[section][name] = value
    with pytest.raises(ValueError, match=message):
        experiment.from_config(config, one_device)
    assert len(compilations) == before


def test_a_supervised_phase_on_a_folder_is_there_for_who_asks(kept, chatting, one_device):
    config = model_folder.with_folder(chatting(kept))
    config.warm_start.steps = 9
    config.model.warm_start = True
    built = experiment.from_config(config, one_device)
    # A turn ends with what the template ends it with.
    taught = next(built.supervised_stream())
    assert folders.END in taught.tokens[taught.loss_mask]
    assert folders.PAD not in taught.tokens[taught.loss_mask]


FOREVER = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


def no_tokenizer(folder):
    (folder / "tokenizer.json").unlink()


def truncated(folder):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def missing_shard(folder):
    publish.split(folder, 20_000)
    sorted(folder.glob("model-*.safetensors"))[-1].unlink()


def change(**values):
    def damage(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | values))

    return damage


def template(text):
    return lambda folder: folders.write_tokenizer(folder, template=text)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_tokenizer, "it holds no tokenizer"),
        (truncated, r"model\.safetensors is not a safetensors file"),
        (missing_shard, r"which is not in the folder"),
        (template("{{ raise_exception('never') }}"), r"the chat template: TemplateError: never"),
        (template(FOREVER), r"the chat template does not end within 1 s of processor time"),
        (change(model_type="mamba"), "model_type is 'mamba', expected one of"),
        (
            change(vocab_size=250),
            r"the tokenizer's '.' has the id 250, expected one below 250, the rows",
        ),
        (change(intermediate_size=48), r"mlp.* is \[24, 16\], expected \[48, 16\]"),
    ],
    ids=[
        "no tokenizer",
        "truncated",
        "shard",
        "raises",
        "loops",
        "architecture",
        "vocabulary",
        "shape",
    ],
)
@pytest.mark.apart
def test_a_wrong_folder_is_one_error_before_anything_compiles(
    chatting, one_device, tmp_path, monkeypatch, damage, message
):
    monkeypatch.setattr(chat, "SECONDS", 1)
    folder = folders.write(tmp_path / "model", template=None)
    damage(pathlib.Path(folder))
    before = len(compilations)
    with pytest.raises(ValueError, match=message) as error:
        experiment.from_config(model_folder.with_folder(chatting(folder)), one_device)
    assert str(error.value).startswith("config.model.folder")
    assert len(compilations) == before


@pytest.mark.slow
def test_a_tensor_that_is_not_finite_ends_the_command_with_one_line(tmp_path):
    folder = pathlib.Path(folders.write(tmp_path / "model", template=None))
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] = np.nan
    save_file(tensors, folder / "model.safetensors")
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    done = subprocess.run(
        [
            *(sys.executable, "experiments/train.py", "--config=tests/tiny.py"),
            *(f"--config.model.folder={folder}", f"--config.tasks.file={rows}"),
            *("--config.warm_start.steps=0", "--config.window.prompt=48"),
            f"--workdir={tmp_path / 'run'}",
        ],
        cwd=pathlib.Path(__file__).parents[1],
        capture_output=True,
        text=True,
        env=os.environ | {"XLA_FLAGS": ""},
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    told = done.stderr.splitlines()[-1]
    assert told.startswith("error: config.model.folder = ") and "model.norm.weight in " in told


def test_a_special_token_that_nothing_uses_may_be_beyond_the_embedding(
    chatting, one_device, tmp_path
):
    """As `<image_soft_token>` of Gemma 3: text that spells it is text."""
    turned = folders.byte_tokenizer()
    turned.add_special_tokens([f"<extra{i}>" for i in range(5)])  # Ids 260 to 264, of 264 rows.
    folder = folders.write(tmp_path / "model", tokenizer=turned)
    config = model_folder.with_folder(chatting(folder))
    built = experiment.from_config(config, one_device)
    assert built.vocabulary.size == built.policy.vocab_size == 264
    ids = built.vocabulary.encode_prompt("<extra4>")
    assert max(ids) < 264 and "<extra4>" in built.vocabulary.decode(ids[1:])
    assert built.vocabulary.decode([264, *built.vocabulary.encode("a")]) == "<extra4>a"


@pytest.mark.parametrize(
    "said",
    [
        {"template": folders.CHATML + "{{ '<extra4>' }}"},
        {"template": folders.CHATML.replace("<|im_end|>", "<extra4>")},
        {"template": None, "pad_token": "<extra4>"},
        {"template": None, "generation": {"eos_token_id": [256, 264]}},
    ],
    ids=["template", "turn", "padding", "end"],
)
def test_a_token_that_is_used_has_a_row(chatting, one_device, tmp_path, said):
    turned = folders.byte_tokenizer()
    turned.add_special_tokens([f"<extra{i}>" for i in range(5)])
    folder = folders.write(tmp_path / "model", tokenizer=turned, **said)
    message = (
        r"^config\..*the tokenizer's '<extra4>' has the id 264, expected one below 264, the rows"
    )
    with pytest.raises(ValueError, match=message):
        experiment.from_config(model_folder.with_folder(chatting(folder)), one_device)


def test_one_override_of_the_command_line_is_enough(kept):
    config = tiny.from_command_line(f"--config.model.folder={kept}", "--config.window.prompt=32")
    assert (
        model_folder.with_folder(config, ("model.folder", "window.prompt")).policy.embed_dim == 16
    )


@pytest.mark.slow
@pytest.mark.parametrize("script", ["train", "plan"])
def test_the_commands_refuse_what_contradicts_the_folder(kept, tmp_path, script):
    more = [f"--workdir={tmp_path}"] if script == "train" else ["--topology=v5e:2x2"]
    if script == "plan":
        pytest.importorskip("libtpu")
    done = subprocess.run(
        [
            *(sys.executable, f"experiments/{script}.py", "--config=tests/tiny.py", *more),
            *(f"--config.model.folder={kept}", "--config.policy.num_layers=3"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"error: config.model.folder = {kept!r} says the policy's shape: "
        "config.policy.num_layers is 3, the folder has 1"
    )


def test_options_of_the_chat_come_from_the_command_line():
    shots = "(('2+2?','4'),('shots.jsonl'))"
    config = tiny.from_command_line(
        f"--config.model.examples={shots}", "--config.model.stop=('\\n',)"
    )
    assert config.model.examples == (("2+2?", "4"), "shots.jsonl")
    assert config.model.stop == ("\n",)


def test_what_only_a_published_model_needs_is_imported_with_one():
    """transformers takes seconds, and belongs to an extra."""
    for path in (ROOT / "fiberjax").rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None)]
                extra = {"transformers", "tokenizers", "jinja2", "safetensors"}
                assert not extra & {str(name).partition(".")[0] for name in names}, path


# Runs of before there was `config.model`.


def old_config(config, **values):
    """A config as a run of version 3 saved it."""
    saved = json.loads(config.to_json_best_effort())
    del saved["model"]
    saved["budget_control"] = saved.pop("control")
    saved["warm_start"]["weights"] = values.pop("weights", "")
    names = ("vocabulary", "pad_token", "eos_token", "bos_token")
    saved["tasks"] |= dict.fromkeys(names[1:], "") | values
    return saved | {"version": 3, "plugin_digests": {}}


def test_an_older_run_of_a_folder_goes_on_as_it_was(kept, chatting, one_device, tmp_path, capsys):
    today = model_folder.with_folder(chatting(kept))
    saved = old_config(
        today,
        weights=kept,
        vocabulary=f"{kept}/tokenizer.json",
        pad_token=folders.SPECIAL[0],
        eos_token=folders.SPECIAL[2],
    )
    saved["window"]["completion"] = today.window.completion = 100  # Nobody asked.
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps(saved))
    today.tasks.vocabulary = "ascii"
    settled = identity.settle(tmp_path / "run", today)
    assert "config.model.chat ('off' there, 'auto' here)" in capsys.readouterr().out
    built = experiment.from_config(settled, one_device)
    vocabulary = built.vocabulary
    assert (vocabulary.end_ids, vocabulary.pad_id) == ((folders.END,), folders.PAD)
    assert vocabulary.frame is None
    identity.claim(tmp_path / "run", built, settled.to_json_best_effort())
    # Another folder is another run.
    today.model.folder = "elsewhere"
    with pytest.raises(ValueError, match=r"config\.model\.folder \('.*model' there, 'elsewhere' h"):
        identity.settle(tmp_path / "run", today)


def test_an_older_run_of_weights_alone_keeps_its_characters(kept, make_config, one_device):
    saved = old_config(make_config(), weights=kept, vocabulary="characters")
    model = migrations.migrate(saved, 3)["model"]
    assert (model["folder"], model["tokenizer"], model["warm_start"]) == (kept, "tasks", True)
    config = ConfigDict(migrations.migrate({k: v for k, v in saved.items() if k != "version"}, 3))
    with config.unlocked():
        del config["plugin_digests"]
    built = experiment.from_config(model_folder.with_folder(config), one_device, loading.no_domains)
    assert built.vocabulary.size < 64 and built.policy.vocab_size == 264


# Out again.


def saved_run(config, folder, one_device, *iterations):
    """A run folder with checkpoints of random parameters."""
    built = experiment.from_config(config, one_device, loading.no_domains)
    identity.claim(folder, built, config.to_json_best_effort())
    with checkpoints.Checkpoints(folder / "checkpoints", keep=9) as saved:
        for iteration in iterations:
            params = warm_start.random_params(built.policy, built.mesh, seed=iteration)
            saved.save(iteration, built.fresh_state(params), {})
    return built


def test_what_comes_out_is_what_went_in_with_other_weights(chatting, one_device, tmp_path):
    source = pathlib.Path(
        folders.write(
            tmp_path / "model", config={"auto_map": {"AutoModel": "mine"}, "torch_dtype": "float16"}
        )
    )
    for name in ("mine.py", "LICENSE", "README.md"):
        (source / name).write_text(name)
    config = model_folder.with_folder(chatting(source))
    built = saved_run(config, tmp_path / "run", one_device, 2, 5)
    for iteration, expected in ((None, 5), (2, 2)):
        found, params = loop.saved_params(built, tmp_path / "run", iteration)
        assert found == expected
        output = tmp_path / f"out{expected}"
        publish.publish(built, params, output, dtype="float32", shard_bytes=20_000)
        random = warm_start.random_params(built.policy, built.mesh, seed=expected)
        loaded = weights.load(
            output, built.policy, jax.tree.map(lambda leaf: leaf.sharding, random)
        )
        for x, y in zip(jax.tree.leaves(loaded), jax.tree.leaves(random), strict=True):
            np.testing.assert_array_equal(x, y)
    names = {path.name for path in output.iterdir() if not path.name.startswith("model")}
    assert names == {
        *("config.json", "generation_config.json", "LICENSE"),
        *("tokenizer.json", "tokenizer_config.json"),
    }
    for name in names - {"config.json"}:
        assert (output / name).read_bytes() == (source / name).read_bytes()
    expected = json.loads((source / "config.json").read_text())
    del expected["auto_map"]
    said = json.loads((output / "config.json").read_text())
    assert said == expected | {"torch_dtype": "float32"}
    # In files of at most so much, and listed.
    index = json.loads((output / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in output.glob("model-*"))
    assert len(files) > 1 and set(index["weight_map"].values()) == set(files)
    assert not (output / "model.safetensors").exists()
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert index["metadata"]["total_size"] == total
    # It is a folder to begin with.
    again = model_folder.with_folder(chatting(output))
    assert experiment.from_config(again, one_device).policy == built.policy
    publish.publish(built, params, output)  # One file in place of the many.
    (whole,) = output.glob("model*")
    assert whole.name == "model.safetensors"
    assert whole.stat().st_mode == (output / "config.json").stat().st_mode
    with pytest.raises(ValueError, match="is the folder that the run began with"):
        publish.publish(built, params, source)
    with pytest.raises(ValueError, match=r"no checkpoint of iteration 3; there are 2, 5"):
        loop.saved_params(built, tmp_path / "run", 3)


def test_a_policy_that_began_at_random_brings_its_tokenizer(make_config, one_device, tmp_path):
    config = make_config()
    built = experiment.from_config(config, one_device)
    params = warm_start.random_params(built.policy, built.mesh, seed=1)
    publish.publish(built, params, tmp_path / "out")
    again = make_config()
    again.model.folder = str(tmp_path / "out")
    again.warm_start.steps = 0
    found = experiment.from_config(model_folder.with_folder(again), one_device)
    assert found.policy == built.policy
    assert found.vocabulary.end_ids == built.vocabulary.end_ids
    for text in ("S:312=", "a+b;"):
        ids = built.vocabulary.encode_prompt(text)
        assert found.vocabulary.encode_prompt(text) == ids
        assert found.vocabulary.decode(ids[1:]) == text
    for x, y in zip(found.examples.prompts.ids, built.examples.prompts.ids, strict=True):
        assert x == y
    config.window.completion = 9  # Beyond what the exported policy says it was made for.
    again.window.completion = 9
    with pytest.raises(ValueError, match="was made for 24"):
        experiment.from_config(model_folder.with_folder(again), one_device)


@pytest.mark.parametrize("kind", ["folder", "file", "tasks"])
def test_another_tokenizer_than_the_source_s_comes_out(
    chatting, one_device, tmp_path, kind, monkeypatch
):
    source = pathlib.Path(folders.write(tmp_path / "model", template=None))
    (source / "LICENSE").write_text("terms")
    turned = folders.byte_tokenizer()
    turned.normalizer = tokenizers.normalizers.Lowercase()
    other = pathlib.Path(
        folders.write_tokenizer(
            tmp_path / "other", tokenizer=turned, generation={"eos_token_id": folders.THINK}
        )
    )
    (other / "LICENSE").write_text("other terms")
    named = {"folder": other, "file": other / "tokenizer.json", "tasks": "tasks"}[kind]
    config = chatting(source)
    config.model.tokenizer = str(named)
    config.tasks.vocabulary = "ascii"
    built = experiment.from_config(model_folder.with_folder(config), one_device)
    params = warm_start.random_params(built.policy, built.mesh, seed=1)
    output = pathlib.Path(folders.write(tmp_path / "out"))  # Of an earlier export.
    for name in ("chat_template.jinja", "added_tokens.json"):
        (output / name).write_text("{}")
    publish.publish(built, params, output)
    assert not (output / "added_tokens.json").exists()
    assert not (output / "chat_template.jinja").exists()
    assert (output / "LICENSE").read_text() == "terms"
    again = chatting(output)
    found = experiment.from_config(model_folder.with_folder(again), one_device)
    for name in ("end_ids", "pad_id"):
        assert getattr(found.vocabulary, name) == getattr(built.vocabulary, name)
    assert found.vocabulary.encode_prompt("1+A") == built.vocabulary.encode_prompt("1+A")
    said = json.loads((output / "config.json").read_text())
    assert said["eos_token_id"] == list(built.vocabulary.end_ids)
    assert said["max_position_embeddings"] == 128
    if kind != "tasks":
        with pytest.raises(ValueError, match=r"is the folder of config\.model\.tokenizer"):
            publish.publish(built, params, other)
    monkeypatch.setattr(weights, "save_adapter", lambda folder, *_, **__: _described(folder))
    object.__setattr__(built, "lora", "adapters")
    publish.publish_adapter(built, None, None, tmp_path / "adapter")
    assert (tmp_path / "adapter" / "tokenizer.json").read_bytes() == (
        output / "tokenizer.json"
    ).read_bytes()


def _described(folder):
    """What stands for an adapter."""
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).write_text("{}")


def test_the_effect_of_rounding_is_measured(kept, chatting, one_device):
    built = experiment.from_config(model_folder.with_folder(chatting(kept)), one_device)
    params = jax.tree.map(lambda leaf: 3 * leaf, warm_start.starting_params(built))
    effect = publish.rounding_effect(built.policy, built.vocabulary, params, columns=8)
    assert 0 < effect.tokens <= 32 and 1e-4 < effect.mean <= effect.largest < 1
    none = publish.rounding_effect(
        built.policy, built.vocabulary, params, dtype="float32", columns=8
    )
    assert none.mean == none.largest == none.kl == 0
