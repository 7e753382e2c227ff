"""Replays on arrays: what is told of each objective is what the library computes by itself."""

import json

import jax
import numpy as np
import pytest

import fiberjax as fj
from fiberjax import diagnostics, step_share
from fiberjax.analysis import batch as batches
from fiberjax.analysis import drift as drifts
from fiberjax.analysis import pictures
from fiberjax.analysis.objectives import parse
from fiberjax.analysis.replay import replay
from fiberjax.analysis.sweep import sweep
from fiberjax.analysis.unfold import LOGITS, unfold

RNG = np.random.default_rng(3)
ROWS, COLUMNS = 16, 8
MASK = np.arange(COLUMNS) < RNG.integers(3, COLUMNS + 1, ROWS)[:, None]
GROUP = np.arange(ROWS) // 4
OLD = -RNG.exponential(0.7, (ROWS, COLUMNS)).astype(np.float32)
DRIFT = RNG.normal(0, 0.12, (ROWS, COLUMNS)) + RNG.normal(0, 0.05, (ROWS, 1))
REWARD = RNG.integers(0, 2, ROWS).astype(np.float32)
ADVANTAGE = np.asarray(fj.advantages.grpo(REWARD, GROUP, 4))
GIVEN = dict(
    mask=MASK,
    advantage=ADVANTAGE,
    old_log_prob=OLD,
    reward=REWARD,
    sample_weight=RNG.uniform(0.5, 1, (ROWS, COLUMNS)),
    minibatch=GROUP % 2,
)
KEPT = fj.from_arrays(
    log_prob=np.minimum(OLD + DRIFT, -1e-3), parents={"group": GROUP, "domain": GROUP // 2}, **GIVEN
)
FIBERPO = ("fiberpo_domain", {"trajectory": 0.03, "group": 0.02})


@pytest.fixture(scope="module")
def found():
    return replay(KEPT, ["gspo", FIBERPO, "silent_sequence", ("grpo", {"weighting": "token"})])


def test_each_row_is_what_the_library_makes_of_the_same_data(found):
    assert found.labels[:2] == ["ungated", "gspo"]
    credit = KEPT.advantage * KEPT.sample_weight
    for label, name, overrides, weighting in (
        ("fiberpo_domain trajectory=0.03 group=0.02", *FIBERPO, "trajectory"),
        ("grpo weighting=token", "grpo", {}, "token"),
    ):
        gate, row = fj.gate(name, **overrides), found.row(label)

        def value(log_ratio, gate=gate, weighting=weighting):
            gated = gate(log_ratio, KEPT.advantage, KEPT.layout)
            return fj.surrogate(gated, credit, KEPT.layout, weighting=weighting).value

        @jax.jit
        def alone(layout, gate=gate, weighting=weighting):
            shared = (KEPT.log_ratio, KEPT.advantage)
            share = step_share.open_share(
                *(gate.structure, *shared, credit, layout, gate.budgets),
                form="importance",
                weighting=weighting,
            )
            clipped = gate.structure.clipped(*shared, layout, gate.budgets)
            return jax.value_and_grad(value)(KEPT.log_ratio), share, clipped

        (expected, coefficients), share, clipped = jax.device_get(alone(KEPT.layout))
        np.testing.assert_allclose(found.coefficients[label], coefficients, rtol=1e-5, atol=1e-8)
        assert row.surrogate == pytest.approx(float(expected), abs=1e-7)
        assert row.open_share == pytest.approx(float(share), rel=1e-5) and row.open_share > 0
        assert list(row.clipped)[:2] == ["any", "token"] and row.clipped["token"] > 0
        for level, mask in clipped.items():
            assert row.clipped[level] == pytest.approx(mask[MASK].mean())
        assert row.clipped["any"] == np.any(list(clipped.values()), axis=0)[MASK].mean()
    measure = jax.jit(lambda layout: diagnostics.effective_sample_sizes(KEPT.log_ratio, layout))
    sizes = measure(KEPT.layout)
    assert list(found.sample_sizes) == ["token", "trajectory", "group", "domain"]
    for level, size in found.sample_sizes.items():
        logged = sizes[f"is_ratio/effective_sample_size/{level}"].value
        assert size == pytest.approx(float(logged), rel=1e-5)


def test_cosines_and_shares_are_those_of_the_coefficients(found):
    flat = np.stack([of[MASK] for of in found.coefficients.values()]).astype(np.float64)
    unit = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    np.testing.assert_allclose(found.cosines, unit @ unit.T, atol=1e-12)
    pushed = flat[0] != 0
    for own, row in zip(flat, found.rows, strict=True):
        assert row.cosine == pytest.approx(unit[0] @ own / np.linalg.norm(own))
        assert row.vanished == np.mean(own[pushed] == 0)
        assert row.turned == np.mean((own * flat[0])[pushed] < 0)
        share = np.abs(own).sum() ** 2 / (own**2).sum() / own.size
        assert row.effective_tokens == pytest.approx(share)
    assert found.row("silent_sequence").vanished > 0 == found.row("silent_sequence").turned
    assert found.rows[2].turned > 0


def test_what_was_drawn_says_of_another_policy():
    total = np.where(MASK, KEPT.log_ratio, 0).sum(axis=1, dtype=np.float64)
    weight = np.exp(total)
    before = batches.drawn(KEPT, KEPT.layout, KEPT.log_prob)
    assert before.reward == pytest.approx(np.average(REWARD, weights=weight))
    assert before.effective == pytest.approx(weight.sum() ** 2 / (weight**2).sum() / ROWS)
    k3 = diagnostics.ratio_metrics(KEPT.log_ratio, KEPT.layout)["actor/ppo_kl_k3"].value
    assert before.kl == pytest.approx(float(k3), rel=1e-4)
    still = batches.drawn(KEPT, KEPT.layout, KEPT.old_log_prob)
    assert (still.kl, still.effective) == (0, 1)
    assert still.reward == pytest.approx(REWARD.mean())


def test_a_minibatch_is_as_if_it_were_alone(found):
    chosen = KEPT.minibatch == 1
    some = {name: of[chosen] if np.shape(of)[:1] == (ROWS,) else of for name, of in GIVEN.items()}
    parents = {"group": GROUP[chosen], "domain": GROUP[chosen] // 2}
    alone = fj.from_arrays(log_prob=KEPT.log_prob[chosen], parents=parents, **some)
    here, there = replay(KEPT, ["silent_sequence"], minibatch=1), replay(alone, ["silent_sequence"])
    for label, coefficients in here.coefficients.items():
        np.testing.assert_allclose(coefficients[chosen], there.coefficients[label], rtol=1e-5)
        assert not coefficients[~chosen].any() and coefficients.any()
    assert here.rows[1].clipped == pytest.approx(there.rows[1].clipped)
    assert here.before == pytest.approx(there.before)


def test_a_sweep_compiles_nothing_and_is_the_replay_of_each_value():
    base = ("silent_sequence", {"group": 9.0, "domain": 9.0})
    first = sweep(KEPT, base, "trajectory", [0.01])
    compiled = batches.look._cache_size()
    swept = sweep(KEPT, base, "trajectory", [0.01, 0.03, (0.06, 0.05), 0.5])
    assert batches.look._cache_size() == compiled
    clipped = [row.clipped["trajectory"] for row in swept.rows]
    assert clipped == sorted(clipped, reverse=True) and clipped[0] > clipped[2] > clipped[3] == 0
    assert swept.rows[0] == first.rows[0]
    assert swept.values.tolist() == [[0.01, 0.01], [0.03, 0.03], [0.06, 0.05], [0.5, 0.5]]
    assert json.loads(swept.to_json())["budget"] == "trajectory"


@pytest.mark.parametrize("asked", [FIBERPO, "silent_sequence", "gspo", "ppo"])
def test_a_drift_is_beyond_its_budget_where_the_gate_clips(asked):
    name, overrides = asked if isinstance(asked, tuple) else (asked, {})
    gate = fj.gate(name, **overrides)

    @jax.jit
    def both(gate, layout):
        held = drifts.levels(gate, KEPT.log_ratio, KEPT.advantage, layout)
        shared = (KEPT.log_ratio, KEPT.advantage, layout, gate.budgets)
        return held, gate.structure.clipped(*shared)

    held, clipped = jax.device_get(both(gate, KEPT.layout))
    for level, of in held.items():
        beyond = of.held > of.budget
        over = drifts.summary(of).over
        np.testing.assert_allclose(over, beyond[of.used].mean(axis=0))
        assert over.max() > 0
        if level == "token":
            cells = beyond.reshape(*MASK.shape, 2)
        else:
            at = [np.asarray(KEPT.layout.lift_from(side, level)) for side in beyond.T]
            cells = np.stack([np.broadcast_to(side, MASK.shape) for side in at], axis=-1)
        if name == "fiberpo_domain":  # Each channel of a cell moves all of its tokens.
            expected, counted = cells.any(axis=-1), MASK
        else:  # What drifts with its advantage.
            expected = np.where(KEPT.advantage >= 0, cells[..., 0], cells[..., 1])
            counted = MASK & (KEPT.advantage != 0)
        np.testing.assert_array_equal(clipped[level][counted], expected[counted], level)


def test_gmpo_holds_tokens_and_other_gates_are_told_without_a_budget():
    gmpo, cispo = (
        drifts.levels(gate, KEPT.log_ratio, KEPT.advantage, KEPT.layout)
        for gate in (fj.gate("gmpo", clip_low=0.3, clip_high=0.2), fj.gate("cispo"))
    )
    np.testing.assert_allclose(gmpo["token"].budget, [0.2, 0.3], rtol=1e-6)
    assert list(cispo) == ["trajectory", "group", "domain"]
    found = drifts.summary(cispo["trajectory"])
    assert np.isnan(found.over).all() and np.isnan(found.budget).all()
    means = [row[mask].mean() for row, mask in zip(KEPT.log_ratio, MASK, strict=True)]
    np.testing.assert_allclose(found.largest, [max(means), -min(means)], rtol=1e-4)


def test_steps_in_a_table_of_logits_are_those_written_out():
    on_policy = KEPT.with_log_prob(KEPT.old_log_prob)
    rate, steps = 0.3, 2
    found = unfold(on_policy, "grpo", steps=steps, rate=rate, optimizer="sgd")
    assert found.space == LOGITS and "logits" in found.about
    log_prob = KEPT.old_log_prob.astype(np.float64)
    gate = fj.gate("grpo")
    credit = KEPT.advantage * KEPT.sample_weight
    for step in range(steps + 1):
        assert found.series["kl"][step] == pytest.approx(
            batches.drawn(KEPT, KEPT.layout, log_prob).kl, rel=2e-3, abs=1e-9
        )

        def value(log_ratio):
            return fj.surrogate(gate(log_ratio, credit, KEPT.layout), credit, KEPT.layout).value

        c = jax.jit(jax.grad(value))((log_prob - KEPT.old_log_prob).astype(np.float32))
        c, p = np.asarray(c), np.where(MASK, np.exp(log_prob), 0.5)
        logit = np.log(p) - np.log1p(-p) + rate * c * (1 - p)
        log_prob = -np.log1p(np.exp(-logit))
    assert found.series["kl"][2] > found.series["kl"][1] > found.series["kl"][0]


def test_a_silent_gate_stops_where_its_budgets_are_and_a_whole_step_does_not():
    on_policy = KEPT.with_log_prob(KEPT.old_log_prob)
    silent, gspo = (
        unfold(on_policy, name, steps=12, rate=0.1) for name in ("silent_sequence", "gspo")
    )
    assert "share left open" in silent.about and "share left open" not in gspo.about
    assert list(silent.drift) == ["trajectory", "group", "domain"]
    drift = silent.drift["trajectory"]
    np.testing.assert_allclose(drift["budget"], 4e-3, rtol=1e-6)
    assert np.abs(drift["largest"][0]).max() < 1e-6 and drift["over"][-1].max() > 0
    assert (
        silent.series["open_share"][0] == pytest.approx(1) and silent.series["open_share"][-1] == 0
    )
    assert silent.series["kl"][-1] == silent.series["kl"][-3] < gspo.series["kl"][-3]
    assert gspo.series["kl"][-1] > gspo.series["kl"][-3]
    np.testing.assert_allclose(gspo.drift["trajectory"]["budget"][0], [4e-4, 3e-4], rtol=1e-3)
    both = json.loads(gspo.to_json())
    assert len(both["series"]["clipped/any"]) == 13


def test_pictures_and_tables_of_what_needs_no_policy(found, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pictures, "DPI", 30)
    swept = sweep(KEPT, "gspo", "clip_high", [1e-3, 1e-1])
    unfolded = unfold(KEPT, "gspo", steps=2)
    for each, names in (
        (found, ["clipped", "cosines", "objectives", "weights"]),
        (swept, ["sweep"]),
        (unfolded, ["unfold"]),
    ):
        files = each.plot(tmp_path / names[0])
        assert sorted(file.stem for file in files) == names
        assert all(file.stat().st_size > 1000 for file in files)
        each.print()
        json.loads(each.to_json())
    printed = capsys.readouterr().out
    assert "16 trajectories" in printed and "clip_high=0.1" in printed and "budget" in printed


STATES = fj.from_arrays(
    log_prob=KEPT.log_prob,
    tokens=np.ones((ROWS, COLUMNS), np.int32),
    prompt_tokens=[np.array([group]) for group in GROUP],
    **GIVEN,
)


def test_a_prompt_that_was_drawn_twice_has_the_states_of_each_group():
    """As the states of a batch in training are."""
    kept = fj.from_arrays(
        log_prob=np.full((4, 2), -1.0),
        old_log_prob=np.full((4, 2), -1.0),
        mask=np.ones((4, 2), bool),
        advantage=np.ones(4),
        parents={"group": np.array([0, 0, 1, 1])},
        tokens=np.array([[5, 6], [5, 7], [5, 6], [8, 6]]),
        prompt_tokens=[np.full(3, 9)] * 4,
    )
    states = np.asarray(batches.seen(kept, batches.chosen(kept, ["apc"], None)).layout.state_id)
    assert len(np.unique(states[:, 0])) == 2 and states[0, 0] == states[1, 0] != states[2, 0]


def test_a_gate_of_ones_own_is_an_objective_by_its_name():
    assert list(replay(KEPT, [fj.gate("gspo", clip_high=0.1)]).objectives)[-1] == "gspo"


def test_states_are_made_of_tokens_where_a_gate_couples_them():
    # All of a prompt's completions say the same, so that a column is a state.
    layout = batches.seen(STATES, {"apc": objective("apc")}).layout
    state, other = np.asarray(layout.state_id), np.roll(MASK, 1, axis=0)
    same = MASK[1:] & MASK[:-1] & (GROUP[1:] == GROUP[:-1])[:, None]
    assert np.array_equal(state[1:][same], state[:-1][same]) and other.any()
    assert len(np.unique(state[MASK])) == sum(MASK[GROUP == g].any(axis=0).sum() for g in range(4))


def objective(name):
    from fiberjax.analysis.objectives import objectives_of

    return objectives_of([name], layout=STATES.layout)[name]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: replay(KEPT, []), r"objectives = \[\]: expected at least one"),
        (lambda: replay(KEPT, "gspo"), r"objectives = 'gspo': expected a list"),
        (lambda: replay(KEPT, ["gspo", "gspo"]), r"'gspo' stands there twice"),
        (lambda: replay(KEPT, ["gzpo"]), r"gate preset 'gzpo' does not exist; choose from"),
        (lambda: replay(KEPT, [("gspo", {"weighting": "x"})]), r"weighting 'x' does not exist"),
        (
            lambda: replay(KEPT, ["run"]),
            r"'run' is the gate of a run, and the rollouts are of none",
        ),
        (lambda: replay(KEPT, {"ungated": "gspo"}), r"label 'ungated' is that of plain"),
        (lambda: replay(KEPT, ["gspo"], minibatch=5), r"minibatch 5 does not exist; .* \[0, 1\]"),
        (lambda: replay(KEPT, ["gspo"], step=0.0), r"step = 0.0: expected a number above 0"),
        (lambda: replay(KEPT, ["apc"]), r"'apc' couples the tokens of a state, .* prompt_tokens"),
        (lambda: replay(STATES, ["silent_sequence"]), r"has a level 'group', which the rollouts"),
        (lambda: sweep(KEPT, "gspo", "clip", [1]), r"no budget 'clip' to sweep; .*'clip_high'"),
        (lambda: sweep(KEPT, "gspo", "clip_high", []), r"values = \[\]: expected numbers"),
        (lambda: unfold(KEPT, "gspo", steps=0), r"steps = 0: expected a whole number"),
        (lambda: unfold(KEPT, "gspo", optimizer="x"), r"optimizer 'x' does not exist"),
        (lambda: unfold(KEPT, "gspo", rate=-1.0), r"rate = -1.0: expected a number above 0"),
        (lambda: parse("gspo:clip_high"), r"'gspo:clip_high': expected name=value"),
    ],
)
def test_refusals_are_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
