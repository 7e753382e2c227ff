"""Every bad input is one clear ValueError, before anything compiles; the rest builds."""

import dataclasses
import json
import math
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from fiberjax import experiment
from fiberjax.tasks import VERIFIERS, loading

ROOT = pathlib.Path(__file__).parents[1]

compilations = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, duration, **_: (
        compilations.append(event) if event.endswith("backend_compile_duration") else None
    )
)


def change(config, path, value):
    """Sets one value, past the type checks, as code that makes configs could."""
    *sections, name = path.split(".")
    for section in sections:
        config = config[section]
    with config.ignore_type(), config.unlocked():
        config[name] = value


BAD = [
    ("rollout.sampels", 8, r"config\.rollout\.sampels does not exist; did you mean 'samples'"),
    ("trainin", {}, r"config\.trainin does not exist; did you mean 'training'"),
    ("seed", -1, r"config: seed must be at least 0; got -1"),
    ("seed", 2**32, r"config: seed must be at least -2³¹ and below 2³¹; got 4294967296"),
    ("seed", True, r"config\.seed must be int; got True"),
    ("iterations", 0, r"config: iterations must be positive; got 0"),
    ("plugins", "own.py", r"config\.plugins must be tuple; got 'own\.py'"),
    ("plugins", ("none.py",), r"config\.plugins: none\.py does not exist"),
    ("writers", "jsonl", r"config\.writers must be tuple; got 'jsonl'"),
    ("writers", (), r"config: writers must be names, each once, and 'jsonl' among them; got \(\)"),
    ("writers", ("tensorboard",), r"config: writers must be names, each once, and 'jsonl'"),
    ("writers", ("jsonl", "jsonl"), r"config: writers must be names, each once"),
    ("writers", ("jsonl", "csv"), r"config: writers must be names of jsonl, tensorboard, wandb;"),
    ("advantage", "grppo", r"config\.advantage must be one of grpo, .*got 'grppo'"),
    # Gates.
    ("gate.levels.trajectory.budget", 0.0, r"config\.gate\.levels\.trajectory\.budget = 0\.0"),
    ("gate.levels.group.budget", -0.1, r"config\.gate\.levels\.group\.budget = -0\.1"),
    ("gate.levels.domain.budget", (0.1, 0), r"config\.gate\.levels\.domain\.budget = 0"),
    ("gate.epsilon", 0.0, r"config\.gate\.epsilon = 0\.0"),
    ("gate.order", ("trajectory", "city"), r"config\.gate\.order names 'city'.*choose from"),
    (
        "gate.levels.city",
        {"budget": 0.1},
        r"config\.gate\.levels\.city is not in config\.gate\.order",
    ),
    ("gate.name", "fibrepo", r"config\.gate\.name = 'fibrepo' is not a gate; choose from"),
    ("gate.variant", "newest", r"config\.gate\.variant = 'newest': choose from"),
    ("levels", (("city", ""),), r"config\.gate\.order names 'group'.*choose from"),
    ("levels", (("group", ""), ("domain", "zone")), r"column 'zone', which domain .* row 1 does"),
    # Rows.
    ("rollout.prompts", 7, r"config\.rollout\.prompts = 7 does not divide into 2 minibatches"),
    ("training.micro_batches", 3, r"config\.training\.micro_batches = 3 does not divide the 16"),
    ("rollout.samples", 0, r"config\.rollout: samples must be positive; got 0"),
    ("rollout.resample", -1, r"config\.rollout: resample must be at least 0; got -1"),
    (
        "rollout.temperature",
        0.0,
        r"config\.rollout: temperature must be in \[0\.001, 1000\]; got 0\.0",
    ),
    ("rollout.top_p", 1.5, r"config\.rollout: top_p must be in \(0, 1\]; got 1\.5"),
    ("rollout.slots", -1, r"config\.rollout: slots must be at least 0; got -1"),
    ("rollout.cache_dtype", "fp8", r"cache_dtype must be one of , bfloat16, int8; got 'fp8'"),
    ("rollout.cache_dtype", "int8", r"rollout\.cache_dtype = 'int8' rounds .*mismatch = 'none'"),
    ("rollout.engine", "vllm", r"config\.rollout: engine must be one of own, http; got 'vllm'"),
    ("server.reload", "load", r"config\.server: reload must be a path that begins with /"),
    ("server.reload_body", "{", r"config\.server: reload_body must be JSON .*got '\{'"),
    ("server.timeout", 0.0, r"config\.server: timeout must be positive; got 0\.0"),
    ("server.dtype", "int8", r"config\.server: dtype must be one of float32, bfloat16"),
    ("rollout.shuffle_rewards", 1, r"config\.rollout\.shuffle_rewards must be bool; got 1"),
    ("training.weighting", "tokens", r"weighting must be one of trajectory, token, constant"),
    ("training.kl_estimator", "k1", r"kl_estimator must be one of k2, k3; got 'k1'"),
    ("training.mismatch_cap", 1.0, r"mismatch_cap must be above 1"),
    ("training.mismatch_floor", 1.0, r"mismatch_floor must be in \(0, 1\); got 1\.0"),
    ("training.edge", "behaviour", r"edge must be one of update, direct; got 'behaviour'"),
    ("training.epochs", 0, r"config\.training: epochs must be positive"),
    ("training.chunk", -1, r"config\.training: chunk must be at least 0; got -1"),
    ("lora.rank", -1, r"config\.lora: rank must be at least 0; got -1"),
    ("lora.rank", 99, r"config\.lora: rank must be between 1 and .*q_proj is 16 by 16; got 99"),
    ("lora.rank", 2.0, r"config\.lora\.rank must be int; got 2\.0"),
    ("lora.targets", "q_proj", r"config\.lora\.targets must be tuple; got 'q_proj'"),
    ("lora", {"rank": 2}, r"config\.lora\.alpha is missing"),
    ("warm_start.steps", -1, r"config\.warm_start: steps must be at least 0"),
    ("warm_start.flawed", 1.5, r"config\.warm_start: flawed must be in \[0, 1\]; got 1\.5"),
    ("warm_start.optimizer", "lion", r"optimizer must be one of adamw, muon, sgd; got 'lion'"),
    ("warm_start.weight_decay", -1.0, r"config\.warm_start: weight_decay must be at least 0"),
    ("evaluation.samples", 0, r"config\.evaluation: samples must be positive"),
    ("checkpoint.every", 0, r"config\.checkpoint: every must be positive"),
    ("curriculum.sigma", 0.0, r"config\.curriculum: sigma must be positive"),
    ("curriculum.rate", 0.0, r"config\.curriculum: rate must be in \(0, 1\]; got 0\.0"),
    ("curriculum.rate", 1.5, r"config\.curriculum: rate must be in \(0, 1\]; got 1\.5"),
    ("curriculum.domain_probability", {"city": 0.5}, r"domain_probability names 'city'"),
    ("optimizer.name", "adam2", r"config\.optimizer: name must be one of .*; got 'adam2'"),
    ("optimizer.schedule", "wavy", r"config\.optimizer: schedule must be one of .*'wavy'"),
    ("optimizer.b1", 1.0, r"config\.optimizer: b1 must be in \[0, 1\); got 1\.0"),
    ("optimizer.b2", -0.1, r"config\.optimizer: b2 must be in \[0, 1\); got -0\.1"),
    ("optimizer.warmup_steps", -1, r"config\.optimizer: warmup_steps must be at least 0"),
    ("optimizer.weight_decay", -1.0, r"config\.optimizer: weight_decay must be at least 0"),
    ("optimizer.clip_norm", -1.0, r"config\.optimizer: clip_norm must be at least 0"),
    ("optimizer.decay_all", 1, r"config\.optimizer\.decay_all must be bool; got 1"),
    ("optimizer.learning_rate", -1.0, r"config\.optimizer: learning_rate must be positive"),
    ("optimizer.moment_dtype", "int8", r"config\.optimizer: moment_dtype must be one of .*'int8'"),
    ("mesh.data", 3, r"mesh data=3, fsdp=1, sequence=1, tensor=1 does not fit 1 devices"),
    ("mesh.date", 1, r"config\.mesh\.date does not exist; did you mean 'data'"),
    # Policy, windows, data.
    ("policy.head_dim", 7, r"config\.policy: head_dim must be even"),
    ("policy.vocab_size", 3, r"config\.policy\.vocab_size must be 0 or at least"),
    ("policy.num_kv_heads", 3, r"config\.policy: num_kv_heads must divide num_heads"),
    ("window.prompt", 0, r"config\.window: prompt must be in \[1, 16777216\]; got 0"),
    (
        "window.prompt",
        4,
        r"the prompt has \d+ tokens, the longest of .* config\.window\.prompt = 4",
    ),
    ("window.completion", 2, r"the solution has \d+ tokens"),
    ("tasks.domains", {}, r"config\.tasks: domains is empty and there is no file"),
    ("tasks.domains", {"sorting": {}}, r"sorting"),
    ("tasks.domains", {"sort": {"length": 3}}, r"length"),
    (
        "tasks.vocabulary",
        "words",
        r"config\.tasks\.vocabulary must be 'characters' or 'ascii';",
    ),
    ("tasks.vocabulary", "no.json", r"got 'no\.json' \(a tokenizer of a published model is config"),
    ("model.tokenizer", "no.json", r"config\.model\.tokenizer = 'no\.json': it does not exist"),
    ("model.system", "Be brief.", r"config\.model: system is of a published model's tokenizer"),
    ("model.stop", ("\n",), r"config\.model: stop is of a published model's tokenizer, and there"),
    ("tasks.num_train", 0, r"config\.tasks: num_train must be in \[1, 10000000\]; got 0"),
    ("tasks.pass_threshold", math.nan, r"config\.tasks: pass_threshold must be finite; got nan"),
    ("tasks.test_file", "x.jsonl", r"test_file 'x\.jsonl' is given without a file"),
    ("tasks.verifier", "math", r"config\.tasks: verifier = 'math' says how rows are read"),
    ("tasks.verifiers", (("sort", "exact"),), r"verifiers = \(.*\) says how rows are read"),
    ("tasks.columns.prompt", "question", r"columns\.prompt = 'question' says how rows are read"),
    ("tasks.layout", "gsm8k", r"layout = 'gsm8k' says how rows are read"),
    ("tasks.keep", ("source",), r"keep = \('source',\) says how rows are read"),
    ("tasks.data_dir", "README.md", r"config\.tasks\.data_dir: 'README\.md' is a file; expected"),
    ("tasks.file", ",", r"config\.tasks: ,: the file ends in"),
    ("tasks.reasoning_gym", "(1,)", r"tasks\.reasoning_gym: expected a name, .*got 1"),
    ("rewards.format", "a+", r"config\.rewards\.format = 'a\+' is read by the verifier 'format'"),
    ("rollout.top_k", 10000, r"config\.rollout\.top_k = 10000: expected at most the \d+ tokens"),
    ("evaluation.top_k", 10000, r"config\.evaluation\.top_k = 10000: expected at most the"),
    ("tasks.file", "none.jsonl", r"none\.jsonl: no such file"),
]


@pytest.mark.parametrize(
    ("path", "value", "message"), BAD, ids=[f"{path}={value}" for path, value, _ in BAD]
)
def test_bad_options_are_refused_before_anything_compiles(
    make_config, one_device, path, value, message
):
    config = make_config()
    change(config, path, value)
    before = len(compilations)
    with pytest.raises(ValueError, match=message) as error:
        experiment.from_config(config, one_device)
    assert "\n" not in str(error.value)
    assert len(compilations) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"server.url": "127.0.0.1:8000"}, r"config\.server\.url must be like 'http://.*got '127"),
        ({"server.url": "http://a:99999"}, r"config\.server\.url must be like 'http://"),
        ({"server.model": ""}, r"config\.server\.model must be given"),
        ({"server.folder": ""}, r"config\.server\.folder must be given"),
        ({"training.mismatch": "none"}, r"mismatch = 'none' would not correct it: expected one of"),
        (
            {"model.folder": "./weights"},
            r"config\.server\.folder = 'weights' is config\.model\.folder.*expected a copy of it",
        ),
        ({"rollout.slots": 4}, r"config\.rollout\.slots = 4 is of the compiled loop"),
        (
            {"rollout.cache_dtype": "int8"},
            r"cache_dtype = 'int8' is of the compiled loop.*expected ''",
        ),
        ({"rollout.top_k": 4}, r"config\.rollout: engine = 'http' does not say .* top_k = 4"),
        ({"rollout.top_p": 0.5}, r"expected top_k = 0 and top_p = 1\.0"),
    ],
    ids=str,
)
def test_what_a_server_needs_is_asked_for_before_anything_compiles(
    make_config, one_device, changes, message
):
    config = make_config()
    config.rollout.engine, config.training.mismatch = "http", "truncate"
    config.server.update({"url": "http://127.0.0.1:1", "model": "policy", "folder": "weights"})
    config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=message):
        experiment.from_config(config, one_device)


def test_the_mismatch_is_not_corrected_twice(make_config, one_device):
    config = make_config()
    config.training.edge, config.training.mismatch = "direct", "icepop"
    message = r"config\.training: edge = \"direct\".* mismatch = 'icepop'"
    with pytest.raises(ValueError, match=message):
        experiment.from_config(config, one_device)


ROWS = [
    {"prompt": f"{a}+{b}=", "answer": str(a + b), "domain": "sums" if a % 2 else "more"}
    for a in range(10)
    for b in range(8)
]


@pytest.fixture
def from_rows(tmp_path, make_config, one_device):
    """Builds the tiny experiment over a JSONL file of the given rows."""

    def make(rows, **tasks):
        path = tmp_path / "own.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = make_config()
        config.tasks.update({"file": str(path)} | tasks)
        return experiment.from_config(config, one_device)

    return make


def test_a_file_of_ones_own_replaces_the_families(from_rows):
    built = from_rows(ROWS)
    assert set(built.domain_names) == {"sums", "more"}
    held_out = {e.prompt for domain in built.test for e in domain.source}
    trained = {e.prompt for domain in built.train for e in domain.source}
    assert held_out and not held_out & trained
    assert held_out | trained == {row["prompt"] for row in ROWS}


def test_solutions_of_a_file_must_reach_the_threshold(from_rows, monkeypatch):
    monkeypatch.setitem(
        VERIFIERS, "partial", lambda prompt, answer, completion: 0.5 * bool(completion)
    )
    rows = [row | {"solution": "1" + row["answer"]} for row in ROWS]
    assert from_rows(rows, verifier="partial", pass_threshold=0.5)
    with pytest.raises(ValueError, match="row 1: the verifier does not accept the row's own"):
        from_rows(rows, verifier="partial")


def test_held_out_rows_may_come_from_a_file_of_their_own(from_rows, tmp_path):
    path = tmp_path / "test.jsonl"
    path.write_text(json.dumps({"prompt": "9+9=", "answer": "18", "domain": "sums"}) + "\n")
    built = from_rows(ROWS, test_file=str(path))
    assert [domain.name for domain in built.test] == ["sums"]
    assert sum(len(domain.source) for domain in built.train) == len(ROWS)
    path.write_text(json.dumps({"prompt": "9+9=", "answer": "18", "domain": "city"}) + "\n")
    with pytest.raises(ValueError, match="'city'"):
        from_rows(ROWS, test_file=str(path))
    path.write_text(json.dumps({"prompt": "9" * 40, "answer": "18", "domain": "sums"}) + "\n")
    with pytest.raises(ValueError, match=r"held-out .*test\.jsonl, row 1: the prompt has 41"):
        from_rows(ROWS, test_file=str(path))


def test_a_policy_is_described_without_any_data(make_config, one_device):
    config = make_config()
    whole = experiment.from_config(config, one_device)
    config.tasks.file = "gone.jsonl"
    with pytest.raises(ValueError, match=r"gone\.jsonl: no such file"):
        experiment.from_config(config, one_device)
    built = experiment.from_config(config, one_device, loading.no_domains)
    assert built.policy == whole.policy
    assert built.abstract_state() == whole.abstract_state()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "the file has no rows"),
        ([{"prompt": "1+1="}], r"own\.jsonl, row 1: no answer"),
        ([{"prompt": "1+1=", "answer": ""}], r"own\.jsonl, row 1: no answer"),
        ([*ROWS, {"prompt": "1" * 40, "answer": "1"}], r"row 81: the prompt has 41 tokens"),
        ([*ROWS, {"prompt": "1?", "answer": "1"}], r"row 81"),
        ([row | {"answer": "1" * 30} for row in ROWS], r"the solution has 31 tokens"),
        ([row | {"domain": "mean"} for row in ROWS], "a domain cannot be called 'mean'"),
        ([row | {"domain": "std"} for row in ROWS], "a domain cannot be called 'std'"),
        ([row | {"domain": "overall"} for row in ROWS], "a domain cannot be called 'overall'"),
    ],
)
def test_bad_files_are_refused(from_rows, rows, message):
    before = len(compilations)
    with pytest.raises(ValueError, match=message):
        from_rows(rows)
    assert len(compilations) == before


def test_without_a_warm_start_solutions_may_be_longer_than_the_window(make_config, one_device):
    config = make_config()
    config.window.completion = 2
    with pytest.raises(ValueError, match=r"the solution has 4 tokens.*the window holds"):
        experiment.from_config(config, one_device)
    config.warm_start.steps = 0
    assert experiment.from_config(config, one_device).window.completion == 2


def test_only_procedural_solutions_are_flawed(from_rows, make_config, one_device):
    def tokens(built, flawed):
        phase = dataclasses.replace(built.warm_start, flawed=flawed)
        return next(dataclasses.replace(built, warm_start=phase).supervised_stream()).tokens

    drawn, read = experiment.from_config(make_config(), one_device), from_rows(ROWS)
    assert not np.array_equal(tokens(drawn, 0.0), tokens(drawn, 1.0))
    np.testing.assert_array_equal(tokens(read, 0.0), tokens(read, 1.0))


def test_rows_must_divide_over_the_mesh(make_config, devices):
    config = make_config()
    config.mesh.data = 8
    with pytest.raises(ValueError, match=r"2 minibatches over 8 row shards"):
        experiment.from_config(config, devices)
    config.rollout.prompts = 16
    with pytest.raises(ValueError, match=r"config\.evaluation\.batch = 4 does not divide over 8"):
        experiment.from_config(config, devices)
    config.evaluation.batch = 8
    config.warm_start.batch_size = 12
    with pytest.raises(
        ValueError, match=r"config\.warm_start\.batch_size = 12 does not divide over 8"
    ):
        experiment.from_config(config, devices)
    config.warm_start.steps = 0
    assert experiment.from_config(config, devices).mesh.size == 8


def command(*arguments):
    """Runs `experiments/train.py` as a user does; the finished process."""
    return subprocess.run(
        [sys.executable, "experiments/train.py", "--config=tests/tiny.py", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"XLA_FLAGS": ""},
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.rollout.sampels=8", "sampels"),
        ("--config.rollout.samples=many", "many"),
        ("--config.gate.levels.city.budget=0.1", "error: config.gate.levels.city.budget: "),
        ("--config=configs/quickstart.py:clipped", "gate preset 'clipped' does not exist"),
        ("--config=configs/none.py", "configs/none.py"),
        ("--confg.seed=1", "confg"),
    ],
)
def test_a_mistyped_override_ends_the_command(tmp_path, override, message):
    done = command(f"--workdir={tmp_path / 'run'}", override)
    assert done.returncode != 0
    assert message in done.stderr
    assert len(done.stderr.splitlines()) <= 2
    assert not (tmp_path / "run").exists()


def test_a_refused_value_ends_the_command_with_one_line(tmp_path):
    done = command(f"--workdir={tmp_path / 'run'}", "--config.gate.epsilon=0")
    assert done.returncode == 1
    assert done.stderr.startswith("error: config.gate.epsilon = 0.0: expected a number above 0")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_a_folder_that_cannot_be_written_ends_the_command_with_one_line(tmp_path, scratch):
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "run"
    done = command(f"--workdir={folder}", f"--config.tasks.data_dir={scratch / 'data'}")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: workdir '{folder}' cannot be written")
    assert done.stderr.count("\n") == 1
