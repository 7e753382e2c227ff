"""The page of a run's own iteration: which policy it is under, and what is said without one."""

import dataclasses
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny
from test_page import unpacked

import fiberjax as fj
from fiberjax import experiment
from fiberjax.analysis import look
from fiberjax.run import identity, loop
from fiberjax.train.batch import Rows
from fiberjax.train.forward import make_forward


def some(prompt, answer, completion):
    """Pays for a completion as it is long, so that a group's differ."""
    return len(completion) % 3 / 2


@pytest.fixture(scope="module")
def run(scratch, tmp_path_factory):
    """A run of one iteration, which it kept."""
    config, folder = tiny.get_config(), tmp_path_factory.mktemp("look") / "<b>run"
    config.tasks.data_dir = str(scratch / "data")
    config.iterations = 1
    config.warm_start.steps = 0
    config.keep.update({"rollouts": "1", "show_every": 0})
    config.evaluation.update({"prompts": 1, "samples": 1})
    config = identity.settle(folder, config)
    built = experiment.from_config(config, jax.devices()[:1])
    train = tuple(dataclasses.replace(domain, verify=some) for domain in built.train)
    loop.run(dataclasses.replace(built, train=train), folder, config.to_json_best_effort())
    return folder


def numbers(path, kept):
    """The numbers of a page's tokens by quantity, in the order of the rows."""
    text = path.read_text(encoding="utf-8")
    names = re.findall(r'"name":"([^"]*)","label"', text)
    found = {name: [] for name in names}
    for block in re.findall(r'id="block-\d+">([^<]*)<', text):
        said, values = unpacked(block)
        for trajectory in said["trajectories"]:
            count = len(trajectory["counted"])
            for k, name in enumerate(names):
                found[name].append(values[k * count : (k + 1) * count])
            values = values[len(names) * count :]
    assert sum(map(len, found["log_ratio"])) == kept.mask.sum()
    return {name: np.concatenate(of) for name, of in found.items()}


def test_a_page_is_of_the_policy_after_the_updates(run):
    looked = look.look(run)
    assert looked.path == run / "look" / "000001.html"
    assert looked.notes[0].startswith("The policy after iteration 1, which has had the updates")
    kept, policy = fj.load_rollouts(run), fj.load_policy(run, 1)
    kept = kept.with_log_prob(policy.log_prob(kept))
    found = numbers(looked.path, kept)
    # A group's rows stand beside each other in a batch.
    np.testing.assert_allclose(found["log_ratio"], kept.log_ratio[kept.mask], atol=1e-5)
    assert np.abs(found["log_ratio"]).max() > 1e-3
    text = looked.path.read_text(encoding="utf-8")
    assert "<h1>&lt;b&gt;run, iteration 1</h1>" in text


def test_entropies_are_those_of_the_policy(run):
    kept, policy = fj.load_rollouts(run), fj.load_policy(run, 1)
    entropy = look.entropy(policy, kept)
    assert not np.any(entropy[~kept.mask])
    # What is drawn at random is as surprising on average as the policy's entropy says.
    built = policy.experiment
    rows, mask, places = look.policies.rows_of(kept, built)
    assert np.all(entropy[kept.mask] > 0) and entropy.max() <= np.log(built.policy.vocab_size)
    forward = make_forward(
        *(built.policy, built.mesh, mask.shape[1], built.knobs.temperature, 4),
        entropy_gradient=False,
    )
    whole = np.asarray(forward(policy.params, Rows(*rows)).entropy)[places, : kept.mask.shape[1]]
    np.testing.assert_allclose(entropy[kept.mask], whole[kept.mask], rtol=1e-5)


def test_without_a_checkpoint_the_page_says_that_nothing_moved(run, tmp_path):
    (tmp_path / "rollouts").mkdir()
    for name in ("config.json", "rollouts/000001.parquet"):
        shutil.copy(run / name, tmp_path / name)
    looked = look.look(tmp_path, 1, gate="gspo", output=tmp_path / "first.html")
    assert looked.path.name == "first.html"
    assert looked.notes[0].startswith("There is no policy after iteration 1 to look at")
    assert looked.notes[0].endswith("all log ratios are 0, and no gate is closed.")
    found = numbers(looked.path, fj.load_rollouts(run))
    assert not np.any(found["log_ratio"]) and np.any(found["coefficient"])
    assert "entropy" not in found


def test_what_is_not_there_is_named(run, tmp_path):
    with pytest.raises(ValueError, match="no iteration 7; it holds 1"):
        look.look(run, 7)
    kept = fj.load_rollouts(run)
    with pytest.raises(ValueError, match="99"):
        look.under(kept, run, 99)
    shutil.copy(run / "rollouts" / "000001.parquet", tmp_path / "000001.parquet")
    with pytest.raises(ValueError, match=r"holds no config\.json of a run"):
        look.look(tmp_path / "000001.parquet", policy=1)


@pytest.mark.long
def test_the_command_says_what_is_wrong_in_a_line(tmp_path):
    ended = subprocess.run(
        [sys.executable, "experiments/look.py", str(tmp_path)], capture_output=True, text=True
    )
    assert ended.returncode == 1 and ended.stdout == ""
    assert ended.stderr.startswith("error: ") and "holds no rollouts/" in ended.stderr
    assert ended.stderr.count("\n") == 1
