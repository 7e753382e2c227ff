"""The warm start: made once, read ever after, and made anew when what it depends on changes."""

import json
import pathlib

import jax
import numpy as np
import pytest

from fiberjax import experiment
from fiberjax.run import warm_start
from fiberjax.seeds import EVALUATION
from fiberjax.tasks import Examples, prompt_batch


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


def test_it_teaches(make_config, one_device):
    config = make_config()
    built = experiment.from_config(config, one_device)
    examples = Examples(built.train)
    prompts = prompt_batch(examples, np.arange(64), built.vocabulary, built.window.prompt)

    def reward(params):
        sampler = built.sampler(built.train)
        return sampler(params, prompts, samples=4, stream=EVALUATION, step=0).reward.mean()

    random = warm_start.random_params(built.policy, built.mesh, seed=0)
    assert reward(warm_start.starting_params(built)) > reward(random) + 0.05
