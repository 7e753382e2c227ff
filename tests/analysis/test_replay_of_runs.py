"""Replays of a run: its own updates again, bit for bit, and what a policy makes of objectives."""

import dataclasses
import json
import runpy

import jax
import numpy as np
import pytest
import tiny
from absl import flags

import fiberjax as fj
from fiberjax import experiment
from fiberjax.analysis import batch as batches
from fiberjax.analysis import pictures, through
from fiberjax.analysis import reproduce as reproduction
from fiberjax.analysis.replay import replay
from fiberjax.analysis.reproduce import Compared, Reproduction, reproduce
from fiberjax.analysis.unfold import PARAMETERS, unfold
from fiberjax.policy import lora
from fiberjax.run import identity, kept_files
from fiberjax.run.checkpoints import Checkpoints
from fiberjax.run.keeping import Keeper
from fiberjax.run.trainer import Trainer
from fiberjax.run.warm_start import starting_params


@pytest.fixture(scope="module")
def run(tmp_path_factory, scratch):
    """Two iterations of the tiny experiment and what they leave, without evaluations."""
    config = tiny.get_config("silent_sequence")
    config.tasks.data_dir = str(scratch / "data")
    config.warm_start.directory = str(scratch / "warm_starts")
    config.keep.rollouts = "every 1"
    config.diagnostics.every = 1
    config.training.mismatch = "truncate"
    config.control.kind = "anneal"
    config.warm_start.steps = 200
    built = experiment.from_config(config, jax.devices()[:1])
    folder = tmp_path_factory.mktemp("run")
    identity.claim(folder, built, config.to_json_best_effort())
    keeper = Keeper(built, folder, 0, print)
    trainer = Trainer(built, None, keeper=keeper)
    start = jax.tree.map(lambda leaf: leaf.copy(), starting_params(built))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, built.abstract_state())
    state, stream = jax.device_put(built.fresh_state(start), shardings), built.prompt_stream()
    with Checkpoints(folder / "checkpoints", keep=2) as saved:
        for iteration, factor in enumerate((1.0, 0.5)):
            state, _ = trainer.iterate(state, stream, iteration, factor)
            saved.save(iteration + 1, state, {})
    return folder


@pytest.fixture(scope="module")
def policies(run):
    return [fj.load_policy(run, iteration, devices=jax.devices()[:1]) for iteration in (0, 1)]


@pytest.mark.parametrize("iteration", [1, None])
def test_the_updates_of_a_run_are_made_again_bit_for_bit(run, iteration, capsys):
    made = reproduce(run, iteration, devices=jax.devices())
    assert made.bitwise and made.close and made.largest == 0
    by_name = {}
    for each in made.compared:
        by_name.setdefault(each.name, []).append(each.replayed)
    assert len(by_name["actor/grad_norm"]) == 4 and len(by_name) > 40
    assert max(by_name["actor/grad_norm"]) > 0
    if iteration == 1:  # Of the second, rewards are alike.
        assert len(set(by_name["actor/pg_loss"])) == 4
        assert max(by_name["gate/clip_fraction/trajectory"]) > 0
    made.print()
    assert "equal bit for bit" in capsys.readouterr().out
    assert json.loads(made.to_json())["bitwise"] is True


@pytest.mark.parametrize(
    ("kept", "saved", "newest"),
    [([1, 10, 21, 30], [20, 30], 21), ([1, 10], [20], 1), ([10], [20], None), ([], [], None)],
)
def test_by_default_the_newest_that_can_be_made_again_is(tmp_path, kept, saved, newest):
    for folder, names in (("rollouts", map(kept_files.name, kept)), ("checkpoints", saved)):
        for name in names:
            (tmp_path / folder / str(name)).mkdir(parents=True)
    (tmp_path / "checkpoints" / "best").mkdir(parents=True)
    assert reproduction._newest(tmp_path) == newest


def test_the_gate_of_a_run_has_the_budgets_of_the_iteration(run):
    for iteration, budget in ((1, 4e-3), (2, 2e-3)):
        (found,) = list(batches.chosen(fj.load_rollouts(run, iteration), ["run"], None).values())[
            1:
        ]
        np.testing.assert_allclose(found.gate.budgets["budgets"]["group"], budget, rtol=1e-6)
        assert found.weighting == "trajectory"


def test_what_is_not_made_again_is_told():
    found = Reproduction(3, (Compared(0, 1, "a", 1.0, 1.01), Compared(0, 1, "b", np.nan, np.nan)))
    assert not found.bitwise and not found.close
    assert found.largest == pytest.approx(0.01 / 1.01) and "1 of 2" in found.words()
    assert Compared(0, 0, "a", 1e-9, 2e-9).difference == pytest.approx(1e-4)
    assert Compared(0, 0, "a", 1.0, np.nan).difference == np.inf


def test_a_replay_under_the_policy_before_has_the_logged_numbers(run, policies):
    kept = fj.load_rollouts(run, 1)
    first = kept.meta["updates"][0]
    logged = first["metrics"]
    found = replay(kept, ["run"], policy=policies[0], minibatch=first["minibatch"])
    row = found.row("run")
    assert row.gradient_norm == pytest.approx(logged["actor/grad_norm"], rel=1e-5)
    assert -row.surrogate == pytest.approx(logged["actor/pg_loss"], abs=1e-7)
    assert row.open_share == pytest.approx(1, abs=1e-5) and found.before.kl == 0
    for level, fraction in row.clipped.items():
        name = "actor/pg_clipfrac" if level == "any" else f"gate/clip_fraction/{level}"
        assert fraction == logged[name] == 0


def test_gradients_and_steps_through_a_policy_are_those_of_the_objective(run, policies):
    kept, policy = fj.load_rollouts(run, 1), policies[1]
    found = replay(kept, ["grpo", "gspo"], policy=policy, step=1e-3)
    assert found.before.kl > 0 and len({row.gradient_norm for row in found.rows}) == 3
    forward = through.Through(policy, kept)
    np.testing.assert_allclose(found.log_prob, policy.log_prob(kept), atol=1e-6)

    # The same by differences along a direction: of the surrogate, of a policy that moves.
    gate, row = fj.gate("gspo", clip_low=9.0, clip_high=9.0), found.row("gspo")
    open_ = replay(kept, {"open": gate}, policy=policy)
    direction = forward.gradient(policy.params, open_.coefficients["open"])
    norm = float(np.sqrt(sum(float(np.sum(leaf**2)) for leaf in jax.tree.leaves(direction))))
    assert norm == pytest.approx(open_.row("open").gradient_norm, rel=1e-5)

    def surrogate(step):
        moved = jax.tree.map(lambda p, g: p + step * g / norm, policy.params, direction)
        log_ratio = policy_at(policy, moved).log_prob(kept) - kept.old_log_prob
        credit = kept.advantage * kept.sample_weight
        return float(fj.surrogate(gate(log_ratio, credit, kept.layout), credit, kept.layout).value)

    slope = (surrogate(2e-3) - surrogate(-2e-3)) / 4e-3
    assert slope == pytest.approx(norm, rel=2e-2)
    cosines = found.gradient_cosines
    np.testing.assert_allclose(np.diag(cosines), 1, atol=1e-6)
    np.testing.assert_allclose(cosines, cosines.T)
    assert row.gradient_cosine == cosines[0, 2]
    length = np.sqrt(sum(float(np.sum(leaf**2)) for leaf in jax.tree.leaves(policy.params)))
    gradient = forward.gradient(policy.params, found.coefficients["gspo"])
    moved = jax.tree.map(
        lambda p, g: p + 1e-3 * length * g / row.gradient_norm, policy.params, gradient
    )
    after = kept.with_log_prob(policy_at(policy, moved).log_prob(kept))
    assert replay(after, ["gspo"]).before.kl == pytest.approx(row.kl, rel=1e-3)
    assert replay(after, ["gspo"]).before.reward == pytest.approx(row.reward, rel=1e-4)


def policy_at(policy, params):
    return dataclasses.replace(policy, params=params)


def test_steps_of_a_policy_unfold_and_are_drawn(run, policies, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "DPI", 30)
    kept = fj.load_rollouts(run, 1)
    found = unfold(kept, "run", policy=policies[0], steps=3, rate=1e-3)
    assert found.space == PARAMETERS and "adam at 0.001" in found.about
    assert found.series["kl"][0] == 0 < found.series["kl"][1]
    assert [file.name for file in found.plot(tmp_path)] == ["unfold.png"]
    found = replay(kept, ["run", "grpo"], policy=policies[1])
    files = {file.stem for file in found.plot(tmp_path)}
    assert files == {"clipped", "cosines", "objectives", "steps", "weights"}


def test_adapters_are_told_from_what_they_adapt():
    spec = lora.LoRA(2, 8.0, ("q_proj",), "float32")
    base = {"layers": {"attn": {"q_proj": {"kernel": np.ones((1, 4, 4))}}}, "norm": np.ones(3)}
    own = {"lora_a": np.full((1, 4, 2), 2.0), "lora_b": np.full((1, 2, 4), 3.0)}
    trained = {"layers": {"attn": {"q_proj": own}}}
    found = through.split(spec, lora.attached(spec, base, trained))
    jax.tree.map(np.testing.assert_array_equal, found, (trained, base))
    assert through.split(None, base) == (base, None)


def test_the_command_prints_tables_and_refuses_in_one_line(run, tmp_path, capsys, monkeypatch):
    one = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *args: one)
    monkeypatch.setattr(pictures, "DPI", 30)
    values = flags.FlagValues()
    monkeypatch.setattr(flags, "FLAGS", values)
    names = ("string", "integer", "float", "bool", "enum")
    for name in names:
        define = getattr(flags, f"DEFINE_{name}")
        monkeypatch.setattr(
            flags, f"DEFINE_{name}", lambda *a, of=define, **k: of(*a, flag_values=values, **k)
        )
    values["verbosity"] = flags.Flag(flags.IntegerParser(), None, "verbosity", 0, "")
    command = runpy.run_path("experiments/replay.py")

    def call(*arguments):
        values.unparse_flags()
        for name in values:
            values[name].unparse()
        left = values(["replay.py", str(run), f"--output={tmp_path}", *arguments])
        command["main"](left)

    call("--iteration=1", "--policy=1", "--objectives=run,grpo:clip_high=.3")
    assert "grpo clip_high=0.3" in capsys.readouterr().out
    written = json.loads((tmp_path / "000001" / "replay.json").read_text())
    assert [row["label"] for row in written["rows"]][1] == "run"
    call("--policy=none", "--sweep=silent_sequence:trajectory=.01,.1")
    assert (tmp_path / "000002" / "sweep.png").exists()
    for arguments, told in (
        (["--objectives=gzpo"], "error: gate preset 'gzpo' does not exist"),
        (["--iteration=9", "--objectives=run"], "error: .*holds no iteration 9; it holds 1, 2"),
        (
            ["--policy=7", "--objectives=run"],
            "error: .*no checkpoint of iteration 7; there are 1, 2",
        ),
        (["--policy=x", "--objectives=run"], "error: --policy must be 'newest', 'best', 'none' or"),
        (["--sweep=gspo"], "error: --sweep=gspo: expected objective:budget=value"),
    ):
        with pytest.raises(SystemExit, match=told) as error:
            call(*arguments)
        assert "\n" not in str(error.value)
