"""A run with adapters: what it trains and keeps, what its reference is, and how it is exported."""

import dataclasses
import gc
import json
import os
import pathlib
import subprocess
import sys

import folders
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy
from interruption import interrupted_at

from fiberjax import experiment, model_folder
from fiberjax.policy import lora, weights
from fiberjax.run import base as adapted
from fiberjax.run import checkpoints, identity, loop, publish, warm_start
from fiberjax.run.metrics import read_metrics
from fiberjax.run.trainer import Trainer

ROOT = pathlib.Path(__file__).parents[2]
LORA = {"lora.rank": 2, "lora.alpha": 4.0}


@pytest.fixture
def config(make_config):
    """The tiny config with adapters of a random base, a reference policy and an entropy bonus."""
    config = make_config()
    config.update_from_flattened_dict(
        LORA
        | {
            "lora.base_dtype": "bfloat16",
            "policy.compute_dtype": "bfloat16",
            "iterations": 2,
            "warm_start.steps": 0,
            "training.epochs": 1,
            "training.kl_coefficient": 0.1,
            "training.entropy_coefficient": 0.1,
            "evaluation.samples": 4,  # As many rows as are trained on: one program.
            "evaluation.batch": 8,
        }
    )
    return config


def on_host(tree):
    return jax.tree.map(np.asarray, tree)


def assert_equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def same_run(a, b):
    first, second = read_metrics(a), read_metrics(b)
    for name, values in first.items():
        if not name.startswith(("timing/", "perf/")):
            np.testing.assert_array_equal(values, second[name], err_msg=name)


@pytest.mark.slow
def test_a_run_trains_and_keeps_adapters_alone(config, one_device, tmp_path, monkeypatch):
    """And, interrupted, goes on bitwise; on another base it does not."""
    built = experiment.from_config(config, one_device)
    iterate, held, references = Trainer.iterate, [], []
    table = (built.policy.vocab_size, built.policy.embed_dim)

    def watched(self, state, *arguments):
        gc.collect()
        held.append([leaf.dtype for leaf in jax.live_arrays() if leaf.shape == table])
        return iterate(self, state, *arguments)

    def recorded(self, params, rollouts, *others):
        made = batches(self, params, rollouts, *others)
        references.append((rollouts, [on_host(batch.reference_log_prob) for batch in made[0]]))
        return made

    batches = Trainer._batches
    monkeypatch.setattr(Trainer, "iterate", watched)
    monkeypatch.setattr(Trainer, "_batches", recorded)
    gc.collect()
    _, state, base = loop.train(built, tmp_path / "whole")

    # One base, which is the reference too, and nothing of its size beside it.
    assert held == [[np.dtype("bfloat16")]] * 2
    start = warm_start.starting_params(built)
    assert_equal(base.params, built.base(start))
    moved = jax.tree.map(
        lambda a, b: bool((a != b).any()), state.params, built.fresh_state(start).params
    )
    assert all(jax.tree.leaves(moved)) and len(jax.tree.leaves(moved)) == 2 * 7
    assert {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(state.params)} == {
        *("lora_a", "lora_b")
    }
    # Before the second iteration the adapters have moved, and the reference has not.
    whole = dataclasses.replace(built, lora=None, step=dataclasses.replace(built.step, lora=None))
    trainer = Trainer(whole, start)
    for rollouts, found in references:
        rows = (rollouts.tokens, rollouts.positions, rollouts.segment_ids)
        expected, _ = trainer._log_probs(start, rows, rollouts.mask, np.float32(1))()
        found, expected = (sorted(table.tolist()) for table in (np.concatenate(found), expected))
        assert found == expected
    kept = ocp.StandardCheckpointer().metadata(tmp_path / "whole" / "checkpoints" / "2" / "state")
    sizes = [int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(kept.item_metadata.tree)]
    assert sum(sizes) == sum(leaf.size for leaf in jax.tree.leaves(state)) < 2000

    with interrupted_at(1, monkeypatch):
        loop.train(built, tmp_path / "parts")
    monkeypatch.setattr(
        adapted, "starting_params", lambda _: jax.tree.map(lambda leaf: leaf[::-1], start)
    )
    for call in (loop.train, loop.saved_params):
        with pytest.raises(ValueError, match=r"were trained on other parameters than .*digest"):
            call(built, tmp_path / "parts")
    monkeypatch.setattr(adapted, "starting_params", warm_start.starting_params)
    _, parts, _ = loop.train(built, tmp_path / "parts")
    assert_equal(parts, state)
    same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.fixture
def published(config, tmp_path):
    """The config with adapters of a published model, and prompts of a file."""
    rows = [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a in range(6) for b in range(6)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config.update_from_flattened_dict(
        {
            "tasks.file": str(path),
            "window.prompt": 48,
            "warm_start.steps": 0,
            "model.folder": folders.write(tmp_path / "model"),
            "model.chat": "off",
            "lora.base_dtype": "float32",
            "policy.compute_dtype": "float32",
        }
    )
    return model_folder.with_folder(config)


def saved_run(config, folder, device):
    """A run folder with a checkpoint of adapters of which both matrices matter."""
    built = experiment.from_config(config, device)
    base = adapted.make_base(built)
    state = built.fresh_state(base.params)
    trained = jax.tree.map(lambda x: 0.1 * np.sin(np.arange(x.size)).reshape(x.shape), state.params)
    state = dataclasses.replace(state, params=jax.tree.map(np.float32, trained))
    identity.claim(folder, built, config.to_json_best_effort())
    with checkpoints.Checkpoints(folder / "checkpoints", keep=2) as saved:
        saved.save(1, state, {"base": base.digest})
    return built, state.params, base.params


def export(*arguments):
    return subprocess.run(
        [sys.executable, "experiments/export.py", *arguments],
        cwd=ROOT,
        env=dict(os.environ) | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
    )


def test_adapters_are_exported_merged_or_by_themselves(published, one_device, tmp_path):
    built, trained, base = saved_run(published, tmp_path / "run", one_device)
    iteration, params = loop.saved_params(built, tmp_path / "run")
    assert iteration == 1
    publish.publish(built, params, tmp_path / "merged", dtype="float32")
    placed = jax.tree.map(lambda leaf: leaf.sharding, base)
    merged = weights.load(tmp_path / "merged", built.policy, placed)
    assert_equal(merged, lora.merged(built.lora, base, trained))
    kernel = merged["layers"]["mlp"]["up"]["kernel"]
    up = trained["layers"]["mlp"]["up"]
    np.testing.assert_allclose(
        kernel - base["layers"]["mlp"]["up"]["kernel"], 2 * up["lora_a"] @ up["lora_b"], atol=1e-6
    )

    saved = loop.saved_policy(built, tmp_path / "run")
    source = publish.publish_adapter(built, saved.trained, saved.base.params, tmp_path / "adapter")
    assert str(source) == published.model.folder
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {
        *("adapter_config.json", "adapter_model.safetensors")
    }
    said = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert said["base_model_name_or_path"] == published.model.folder and said["lora_alpha"] == 4
    tensors = safetensors.numpy.load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"
    np.testing.assert_array_equal(tensors[name], up["lora_a"][0].T)
    with pytest.raises(ValueError, match="is the folder that the run began with"):
        publish.publish_adapter(built, trained, base, source)
    with pytest.raises(ValueError, match=r"the run has no adapters: it trained all parameters"):
        publish.publish_adapter(dataclasses.replace(built, lora=None), trained, base, tmp_path)


def test_a_base_that_nobody_published_comes_along(config, one_device, tmp_path):
    built, trained, base = saved_run(config, tmp_path / "run", one_device)
    source = publish.publish_adapter(built, trained, base, tmp_path / "adapter", dtype="bfloat16")
    assert source == tmp_path / "adapter" / "base"
    placed = jax.tree.map(lambda leaf: leaf.sharding, base)
    assert_equal(weights.load(source, built.policy, placed), on_host(base))
    tensors = safetensors.numpy.load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {str(tensor.dtype) for tensor in tensors.values()} == {"bfloat16"}


def test_supervised_steps_make_a_base_of_their_own(published, one_device, tmp_path):
    published.warm_start.steps, published.model.warm_start = 1, True
    taught = tmp_path / "rows.jsonl"
    rows = [json.loads(line) for line in taught.read_text().splitlines()]
    taught.write_text("".join(json.dumps(r | {"solution": r["answer"]}) + "\n" for r in rows))
    built, trained, base = saved_run(published, tmp_path / "run", one_device)
    source = publish.publish_adapter(built, trained, base, tmp_path / "adapter")
    assert source == tmp_path / "adapter" / "base"
    placed = jax.tree.map(lambda leaf: leaf.sharding, base)
    assert_equal(weights.load(source, built.policy, placed), base)
    kernel, first = (
        weights.load(folder, built.policy, placed)["layers"]["mlp"]["up"]["kernel"]
        for folder in (source, published.model.folder)
    )
    assert not np.array_equal(kernel, first)


@pytest.mark.long
def test_adapters_are_exported_from_the_command_line(config, one_device, tmp_path):
    """Also of a run whose base was warm-started, and is found again."""
    config.warm_start.steps = 20
    built, _, base = saved_run(config, tmp_path / "run", one_device)
    out = tmp_path / "adapter"
    done = export(f"--workdir={tmp_path / 'run'}", f"--output={out}", "--adapter")
    assert done.returncode == 0, done.stderr
    assert f"after iteration 1 are in {out}; they adapt {out / 'base'}" in done.stdout
    tensors = safetensors.numpy.load_file(out / "adapter_model.safetensors")
    assert {str(tensor.dtype) for tensor in tensors.values()} == {"float32"}
    placed = jax.tree.map(lambda leaf: leaf.sharding, base)
    assert_equal(weights.load(out / "base", built.policy, placed), on_host(base))


@pytest.mark.long
@pytest.mark.slow
def test_an_iteration_on_a_mesh_is_that_of_one_device(config):
    """The sampler gathers base and adapters over `fsdp`; `tensor` splits their sides."""
    config.policy.compute_dtype = config.lora.base_dtype = "float32"
    config.policy.vocab_size = 64
    config.training.packing, config.training.micro_batches = True, 2

    def run(sizes, count):
        config.mesh.update(sizes)
        built = experiment.from_config(config, jax.devices()[:count])
        base = adapted.make_base(built)
        placed = jax.tree.map(lambda leaf: leaf.sharding, built.abstract_state())
        state = jax.device_put(built.fresh_state(base.params), placed)
        trainer, stream = Trainer(built, base.params), built.prompt_stream()
        for iteration in range(2):
            state, scalars = trainer.iterate(state, stream, iteration)
        return on_host(state.params), scalars, base.digest

    one, many = run({}, 1), run({"data": 2, "fsdp": 2, "tensor": 2}, 8)
    assert one[2] == many[2]
    for name, value in one[1].items():
        if not name.startswith(("timing/", "perf/", "mismatch/")):
            np.testing.assert_allclose(many[1][name], value, rtol=2e-3, atol=1e-4, err_msg=name)
    for a, b in zip(jax.tree.leaves(one[0]), jax.tree.leaves(many[0]), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-3)


@pytest.mark.long
def test_adapters_learn(make_config, one_device):
    """To say one token, for which alone they are rewarded; the base says it once in 59 tokens."""
    config = make_config("grpo")
    config.update_from_flattened_dict(
        LORA
        | {
            "warm_start.steps": 0,
            "rollout.samples": 16,
            "optimizer.learning_rate": 3e-2,
        }
    )
    built = experiment.from_config(config, one_device)
    base = warm_start.starting_params(built)
    base["final_norm"]["scale"] *= 2  # Of a random table, which stays, logits would be too small.
    trainer, stream = Trainer(built, base), built.prompt_stream()
    sampler, shares = trainer._sampler, []

    class Rewarding:
        read, begin = staticmethod(sampler.read), staticmethod(sampler.begin)

        def pay(self, drawn):
            rollouts = sampler.pay(drawn)
            said = (rollouts.tokens[:, -rollouts.mask.shape[1] :] == 7) & rollouts.mask
            reward = said.sum(axis=1) / rollouts.mask.sum(axis=1)
            shares.append(reward.mean())
            return dataclasses.replace(rollouts, reward=reward.astype(np.float32))

    trainer._sampler = Rewarding()
    state = built.fresh_state(base)
    for iteration in range(20):
        state, _ = trainer.iterate(state, stream, iteration)
    assert np.mean(shares[:3]) < 0.1 and np.mean(shares[-3:]) > 0.3
