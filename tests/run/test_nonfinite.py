"""Updates that are not finite: left out, counted, kept for replay; a run of them stopped."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fiberjax import advantages, experiment
from fiberjax.run import loop, nonfinite
from fiberjax.run.checkpoints import Checkpoints, newest
from fiberjax.run.metrics import read_metrics
from fiberjax.run.trainer import Trainer
from fiberjax.run.warm_start import starting_params
from fiberjax.train.update import NOT_FINITE, SKIPPED, TERMS

pytestmark = pytest.mark.looked


@pytest.fixture
def build(make_config, one_device):
    def make(**changes):
        config = make_config()
        flat = {name.replace("__", "."): value for name, value in changes.items()}
        config.update_from_flattened_dict({"warm_start.steps": 0} | flat)
        return experiment.from_config(config, one_device)

    return make


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def same(one, other):
    return all(a.tobytes() == b.tobytes() for a, b in zip(leaves(one), leaves(other), strict=True))


def copied(state):
    return jax.tree.map(jnp.array, state)


def test_an_update_that_is_not_finite_is_as_if_it_were_not(build, tmp_path):
    """Of four updates one is poisoned: the others make what they would alone, and it is kept."""
    built = build(training__epochs=1, training__minibatches=4)
    watched = nonfinite.NonFinite(built)
    trainer = Trainer(
        built, None, updates=lambda *of: (seen.append(of), watched.observe(tmp_path, *of))
    )
    seen = []
    start = jax.jit(built.fresh_state)(starting_params(built))
    collected = trainer.collect(start.params, built.prompt_stream(), 0)
    order = np.random.default_rng((built.seed, 0)).permutation(4)
    expected = copied(start)
    for j in np.delete(order, 2):
        expected, *_ = trainer._step(expected, collected.batches[j], built.knobs)
    bad = collected.batches[order[2]]
    poisoned = dataclasses.replace(bad, advantage=bad.advantage.at[1, 0].set(jnp.nan))
    batches = [poisoned if j == order[2] else of for j, of in enumerate(collected.batches)]
    found, scalars = trainer.update(copied(start), collected._replace(batches=batches), 0)
    assert same(found, expected) and int(found.step) == 3
    assert scalars[SKIPPED] == 1.0 and not any(name.startswith(NOT_FINITE) for name in scalars)
    assert all(np.isfinite(value) for value in scalars.values())
    assert watched.problem is None and watched.get_state() == {"in_a_row": 0}
    # What is kept names the terms and the prompts, and the step says the same of it again.
    assert sorted(path.name for path in (tmp_path / "nonfinite").iterdir()) == [
        *("000001-3.json", "000001-3.npz"),
    ]
    told = json.loads((tmp_path / "nonfinite" / "000001-3.json").read_text())
    assert told["not_finite"] == ["loss", "gradient"]
    assert told["arrays_not_finite"] == ["advantage"]
    assert told["metrics"]["actor/grad_norm"] == "nan"
    asked = [built.examples[int(i)].prompt for i in collected.prompts[order[2]]]
    assert [row["prompt"] for row in told["prompts"]] == asked and len(asked) == 2
    again = nonfinite.replayed(tmp_path / "nonfinite" / "000001-3.npz", collected.batches[0])
    assert same(again, poisoned)
    kept, metrics, _ = trainer._step(copied(start), again, built.knobs)
    assert same(kept, start)
    assert [of for of in TERMS if metrics[NOT_FINITE + of].value] == told["not_finite"]
    iteration, updates = seen[0]
    assert iteration == 1 and [bool(made.terms) for made in updates] == [False, False, True, False]


def broken(reward, group_id, num_groups):
    return reward * np.nan


def test_five_in_a_row_stop_a_run_which_is_saved(build, tmp_path, monkeypatch, capsys):
    built = build()  # Four updates an iteration.
    monkeypatch.setitem(advantages.ESTIMATORS, "grpo", broken)
    start = leaves(starting_params(built))
    with pytest.raises(
        SystemExit, match=r"updates in a row were not finite.*of iteration 2, in lo"
    ):
        loop.train(build(), tmp_path)
    assert "update 1 of iteration 1 is not finite in loss" in capsys.readouterr().out
    rows = read_metrics(tmp_path)
    assert list(rows[SKIPPED]) == [4, 4] and "actor/pg_loss" not in rows
    assert newest(tmp_path / "checkpoints") == 2
    with Checkpoints(tmp_path / "checkpoints", keep=1) as saved:
        found = saved.restore(built.abstract_state())
    assert same(found.state.params, start) and int(found.state.step) == 0
    # With an advantage that is a number again, the same command goes on.
    monkeypatch.undo()
    _, state, _ = loop.train(built, tmp_path)
    assert newest(tmp_path / "checkpoints") == 4 and int(state.step) == 8
    assert list(read_metrics(tmp_path)[SKIPPED]) == [4, 4, 0, 0]


def test_a_run_may_stop_at_the_first_one(build, tmp_path, monkeypatch):
    monkeypatch.setitem(advantages.ESTIMATORS, "grpo", broken)
    with pytest.raises(FloatingPointError, match=r"update 1 of iteration 1 is not finite in loss"):
        loop.train(build(training__nonfinite="stop"), tmp_path)
    assert list(read_metrics(tmp_path)["step"]) == [1]
    assert newest(tmp_path / "checkpoints") == 0


@pytest.mark.parametrize("option", ["skip", "stop"])
def test_a_state_that_is_lost_ends_the_run_and_is_not_saved(build, tmp_path, option, capsys):
    """A finite gradient with a step beyond float32; the run goes on from the checkpoint before."""
    rate = {"optimizer__learning_rate": 3e38, "optimizer__warmup_steps": 0}
    rate |= {"optimizer__name": "adamw", "optimizer__weight_decay": 100.0}
    with pytest.raises(FloatingPointError, match=r"iteration 1 is not finite in state;.*smaller"):
        loop.train(build(training__nonfinite=option, **rate), tmp_path)
    assert "stay as they were" not in capsys.readouterr().out
    assert newest(tmp_path / "checkpoints") == 0
    told = json.loads((tmp_path / "nonfinite" / "000001-1.json").read_text())
    assert told["not_finite"] == ["state"] and told["arrays_not_finite"] == []


def made(*terms):
    return nonfinite.Made(terms, {}, None, np.zeros(0, int), 0)


def test_five_in_a_row_are_counted_over_iterations_and_kills(build, tmp_path, monkeypatch):
    monkeypatch.setattr(nonfinite, "_keep", lambda *of: "kept")
    good, bad = made(), made("gradient")
    built = build()
    counted = nonfinite.NonFinite(built)
    for updates in ([bad] * 4, [good, bad, bad], [bad, bad]):
        counted.observe(tmp_path, 1, updates)
    assert counted.problem is None and counted.get_state() == {"in_a_row": 4}
    resumed = nonfinite.NonFinite(built)
    resumed.set_state(counted.get_state())
    for of in (counted, resumed):
        of.observe(tmp_path, 2, [bad])
        assert "5 updates in a row" in of.problem and "update 1 of iteration 2" in of.problem
    resumed.set_state(counted.get_state())  # After the stop it begins anew.
    assert resumed.get_state() == {"in_a_row": 0}
    resumed.set_state(None)


def test_a_checkpoint_that_is_not_finite_is_refused(build, tmp_path):
    built = build(iterations=1)
    with Checkpoints(tmp_path / "checkpoints", keep=1) as saved:
        state = jax.jit(built.fresh_state)(starting_params(built))
        first = jax.tree.map(lambda x: x.at[(0,) * x.ndim].set(jnp.nan), state.params)
        saved.save(1, dataclasses.replace(state, params=first), {})
        with pytest.raises(ValueError, match="checkpoint of iteration 1 is not finite in params/"):
            loop.begin(built, saved)
