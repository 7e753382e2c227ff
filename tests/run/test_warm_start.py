"""The warm start: made once, read ever after, and made anew when what it depends on changes."""

import json
import pathlib

import jax
import numpy as np
import pytest

from fiberjax import experiment
from fiberjax.policy import weights
from fiberjax.run import checkpoints, warm_start
from fiberjax.seeds import EVALUATION
from fiberjax.tasks import Domain, Example, prompt_batch


@pytest.fixture
def count_training(monkeypatch):
    """Replaces training by random parameters; a list that grows by one at each."""
    made = []

    def train(options, config, device_mesh, params, *rest):
        made.append(options.steps)
        return params

    monkeypatch.setattr(warm_start, "_train", train)
    return made


@pytest.fixture
def config(make_config, tmp_path):
    config = make_config()
    config.warm_start.directory = str(tmp_path / "warm_starts")
    return config


def start(config, one_device):
    return warm_start.starting_params(experiment.from_config(config, one_device))


def assert_equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_the_second_run_reads_what_the_first_made(config, one_device, count_training):
    first = start(config, one_device)
    second = start(config, one_device)
    assert count_training == [400]
    assert_equal(first, second)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, (first, second))
    assert shardings[0] == shardings[1]


def test_no_steps_keep_the_random_parameters(config, one_device, count_training):
    config.warm_start.steps = 0
    built = experiment.from_config(config, one_device)
    assert_equal(
        warm_start.starting_params(built),
        warm_start.random_params(built.policy, built.mesh, seed=config.seed),
    )
    assert count_training == []
    assert not pathlib.Path(config.warm_start.directory).exists()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("gate.epsilon", 0.2),
        ("rollout.temperature", 0.7),
        ("training.epochs", 1),
        ("optimizer.learning_rate", 1e-3),
        ("iterations", 9),
        ("evaluation.prompts", 3),
        ("rollout.max_rows", 2),
        ("tasks.pass_threshold", 0.5),
    ],
)
def test_what_comes_later_does_not_matter(config, one_device, count_training, path, value):
    start(config, one_device)
    config.update_from_flattened_dict({path: value})
    start(config, one_device)
    assert len(count_training) == 1


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("seed", 1),
        ("policy.mlp_dim", 40),
        ("policy.rope_theta", 5000.0),
        ("tasks.seed", 1),
        ("tasks.num_train", 41),
        ("tasks.domains.sort.max_length", 4),
        ("window.prompt", 15),
        ("window.completion", 9),
        ("warm_start.steps", 401),
        ("warm_start.flawed", 0.5),
        ("warm_start.optimizer", "muon"),
        ("warm_start.learning_rate", 1e-3),
    ],
)
def test_what_it_depends_on_makes_another(config, one_device, count_training, path, value):
    start(config, one_device)
    config.update_from_flattened_dict({path: value})
    start(config, one_device)
    assert len(count_training) == 2


def test_a_file_is_known_by_its_contents(config, one_device, count_training, tmp_path):
    path = tmp_path / "own.jsonl"
    config.tasks.file = str(path)
    for answer in ("1", "1", "2"):
        rows = [{"prompt": f"{a}+{b}=", "answer": answer} for a in range(9) for b in range(9)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        start(config, one_device)
    assert len(count_training) == 2


def rows_of(*pairs):
    """Loads these prompts and answers as the one domain, whatever the config says."""
    source = tuple(Example(prompt, answer, answer, "sums") for prompt, answer in pairs)
    domains = (Domain("sums", source, str.__eq__),)
    return lambda tasks, keep: (domains, domains)


def test_data_is_known_by_its_contents(config, one_device, count_training):
    """Same names and numbers of rows, other rows."""
    for last in ("2", "3", "2"):
        load = rows_of(("1+0=", "1"), ("1+1=", last))
        warm_start.starting_params(experiment.from_config(config, one_device, load))
    assert len(count_training) == 2


def test_a_tokenizer_is_known_by_what_it_makes_of_the_data(
    config, one_device, count_training, tmp_path
):
    import tokenizers

    path = tmp_path / "tokenizer.json"
    config.model.tokenizer = str(path)
    config.model.overrides = {"pad": "<pad>", "end": ("</s>",)}
    load = rows_of(("1+0=", "1"), ("1+1=", "2"))
    for characters in ("012+=xyz", "210+=xyz", "012+=zyx"):  # The last: other tokens, not taught.
        tokens = {token: i for i, token in enumerate(("<pad>", "</s>", *characters))}
        tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(tokens, unk_token="<pad>"))
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
        tokenizer.save(str(path))
        warm_start.starting_params(experiment.from_config(config, one_device, load))
    assert len(count_training) == 2


def folders(config):
    """What is kept, by name; nothing half-made."""
    directory = pathlib.Path(config.warm_start.directory)
    return sorted(path.name for path in directory.iterdir()) if directory.exists() else []


@pytest.mark.parametrize(
    ("steps", "rate", "message"),
    [
        (5, 1e30, r"not finite at step [1-5] in .*(loss|state).*; nothing is kept"),
        # A last update that overflows, after a loss like any other.
        (1, 3e38, r"not finite at step 1 in state, at a loss of \d.*nothing is kept"),
    ],
)
def test_a_warm_start_that_diverges_is_not_kept(config, one_device, steps, rate, message):
    config.warm_start.steps = steps
    config.warm_start.learning_rate = rate
    config.warm_start.weight_decay = 100.0
    for _ in range(2):  # Nor found by the next run.
        with pytest.raises(FloatingPointError, match=message):
            start(config, one_device)
    assert folders(config) == []


@pytest.fixture
def published(config, one_device, tmp_path):
    """Points the config at a checkpoint of its own policy; writes it, with one number as given."""
    policy = experiment.from_config(config, one_device).policy
    mesh = experiment.from_config(config, one_device).mesh
    config.model.folder = str(tmp_path / "published")
    config.model.tokenizer, config.model.warm_start = "tasks", True

    def write(number):
        params = warm_start.random_params(policy, mesh, seed=5)
        up = params["layers"]["mlp"]["up"]
        up["kernel"] = up["kernel"].at[0, 1, 2].set(number)
        weights.save(config.model.folder, policy, params, dtype="float32")

    return write


@pytest.mark.parametrize("steps", [0, 1])
@pytest.mark.parametrize("number", [np.nan, -np.inf])
def test_published_weights_that_are_not_finite_are_refused(
    config, one_device, published, steps, number
):
    published(number)
    config.warm_start.steps = steps
    with pytest.raises(
        ValueError, match=r"layers\.0\.mlp\.up_proj\.weight in .*model\.safetensors$"
    ) as error:
        start(config, one_device)
    assert "config.model.folder" in str(error.value)
    assert folders(config) == []


def test_published_weights_are_read_only_to_train_from_them(
    config, one_device, published, count_training, monkeypatch
):
    read = []
    load = weights.load
    monkeypatch.setattr(weights, "load", lambda *of: read.append(of) or load(*of))
    published(0.5)
    first = start(config, one_device)
    assert_equal(start(config, one_device), first)
    assert len(read) == len(count_training) == 1
    published(0.25)
    start(config, one_device)
    assert len(read) == len(count_training) == 2


def test_what_another_run_kept_in_the_meantime_is_what_all_start_from(
    config, one_device, monkeypatch
):
    """A slower run trains too, and takes what the faster one kept."""
    made = []

    def train(options, policy, device_mesh, params, *rest):
        other = warm_start.random_params(policy, device_mesh, seed=len(made))
        made.append(other)
        if len(made) == 1:
            start(config, one_device)  # Overtakes.
        return other

    monkeypatch.setattr(warm_start, "_train", train)
    found = start(config, one_device)
    assert len(made) == 2
    assert_equal(found, made[1])
    assert_equal(start(config, one_device), made[1])
    assert len(folders(config)) == 1 and len(made) == 2


def test_an_interrupted_save_leaves_nothing_that_looks_complete(
    config, one_device, count_training, monkeypatch
):
    class Interrupted(Exception):
        pass

    def interrupted(*of):
        raise Interrupted

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "_renamed", interrupted)
        with pytest.raises(Interrupted):
            start(config, one_device)
    assert folders(config) == []
    start(config, one_device)
    assert len(count_training) == 2 and len(folders(config)) == 1


def test_what_is_damaged_is_made_anew(config, one_device, count_training, capsys):
    first = start(config, one_device)
    (folder,) = pathlib.Path(config.warm_start.directory).iterdir()
    data = max(folder.rglob("d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    capsys.readouterr()
    assert_equal(start(config, one_device), first)
    assert len(count_training) == 2
    (line,) = capsys.readouterr().out.splitlines()
    assert "the warm start is made anew: " in line and data.name in line
    assert_equal(start(config, one_device), first)
    assert len(count_training) == 2 and len(folders(config)) == 1


def test_it_teaches(make_config, one_device):
    config = make_config()
    built = experiment.from_config(config, one_device)
    prompts = prompt_batch(built.examples, np.arange(64), built.window.prompt)

    def reward(params):
        sampler = built.sampler(built.train)
        return sampler(params, prompts, samples=4, stream=EVALUATION, step=0).reward.mean()

    random = warm_start.random_params(built.policy, built.mesh, seed=0)
    assert reward(warm_start.starting_params(built)) > reward(random) + 0.05
