"""One iteration: what is reused, what is credited, and that every option runs beside the others."""

import json

import jax
import numpy as np
import pytest

from fiberjax import advantages, experiment
from fiberjax.diagnostics import GLOBAL_REGIMES
from fiberjax.run import warm_start
from fiberjax.run.trainer import Trainer
from fiberjax.run.trainer import shuffled as shuffled_rewards


def trainer_of(built):
    """The trainer of an experiment, its first state, and its reference."""
    start = warm_start.starting_params(built)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, built.abstract_state())
    state = built.fresh_state(jax.tree.map(lambda leaf: leaf.copy(), start))
    return Trainer(built, start), jax.device_put(state, shardings)


def test_the_schedule_reuses_every_minibatch_in_every_epoch(build):
    built = build(training__epochs=3)
    trainer, state = trainer_of(built)
    step, seen = trainer._step, []

    def watched(state, batch, knobs):
        state, metrics = step(state, batch, knobs)
        seen.append((id(batch), jax.device_get(metrics)))
        return state, metrics

    trainer._step = watched
    stream = built.prompt_stream()
    for iteration in range(2):
        seen.clear()
        state, scalars = trainer.iterate(state, stream, iteration)
        assert scalars["reward/std"] > 0
        assert int(state.step) == 6 * (iteration + 1)
        batches = [batch for batch, _ in seen]
        assert len(batches) == 6 and len(set(batches)) == 2
        for epoch in range(3):
            assert len(set(batches[2 * epoch : 2 * epoch + 2])) == 2
        # Old log-probabilities are those of the policy before the first update, and stay: ratios
        # leave 1 with the first update that moves the policy.
        moved = False
        for _, metrics in seen:
            assert (metrics["is_ratio/max"] - metrics["is_ratio/min"] > 1e-3) == moved
            moved |= bool(metrics["actor/update_norm"] > 0)
        assert moved
    assert step._cache_size() == 1


def test_a_group_of_one_learns_nothing(build):
    built = build(rollout__samples=1)
    trainer, state = trainer_of(built)
    _, scalars = trainer.iterate(state, built.prompt_stream(), 0)
    assert scalars["actor/grad_norm"] == 0 and scalars["frac_reward_zero_std"] == 1


def test_shuffled_rewards_reach_the_updates_and_nothing_else(build, monkeypatch):
    credited = []
    estimate = advantages.ESTIMATORS["dr_grpo"]

    def watched(reward, group_id, num_groups):
        credited.append(np.asarray(reward))
        return estimate(reward, group_id, num_groups)

    monkeypatch.setitem(advantages.ESTIMATORS, "dr_grpo", watched)
    scalars = []
    for shuffle in (False, True, True):
        built = build(rollout__shuffle_rewards=shuffle, advantage="dr_grpo")
        trainer, state = trainer_of(built)
        stream = built.prompt_stream()
        scalars.append(trainer.iterate(state, stream, 0)[1] | {"stream": stream.get_state()})
    true, shuffled, again = credited
    assert 0 < true.mean() < 1
    assert not np.array_equal(shuffled, true)
    np.testing.assert_array_equal(np.sort(shuffled), np.sort(true))
    np.testing.assert_array_equal(shuffled, again)
    told = [name for name in scalars[0] if name.startswith(("reward/", "frac_", "stream"))]
    assert len(told) > 4
    for name in told:
        assert scalars[0][name] == scalars[1][name]
    assert scalars[0]["actor/pg_loss"] != scalars[1]["actor/pg_loss"]
    later = shuffled_rewards(true, seed=0, iteration=1)
    assert not np.array_equal(later, shuffled)


@pytest.mark.parametrize("mismatch", ["truncate", "mask"])
def test_all_terms_run_together(build, mismatch):
    built = build(
        "apc",
        training__kl_coefficient=0.1,
        training__entropy_coefficient=0.01,
        training__mismatch=mismatch,
        training__micro_batches=2,
        training__weighting="token",
        rollout__top_p=0.9,
    )
    trainer, state = trainer_of(built)
    stream = built.prompt_stream()
    state, first = trainer.iterate(state, stream, 0)
    _, second = trainer.iterate(state, stream, 1)
    assert np.isfinite(list(second.values())).all()
    assert first["actor/kl_reference"] > 0 and second["actor/kl_reference"] > 0


def test_a_nesting_of_ones_own_is_trained_and_logged(make_config, one_device, tmp_path):
    rows = [
        {"prompt": f"{a}+{b}=", "answer": str(a + b), "topic": f"by {a % 3}", "domain": "sums"}
        for a in range(10)
        for b in range(8)
    ]
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = make_config("fiberpo_group")
    config.tasks.file = str(path)
    config.warm_start.steps = 0
    config.levels = (("prompt", ""), ("topic", "topic"), ("domain", "domain"))
    config.gate.order = ("trajectory", "topic")
    config.gate.levels = {level: {"budget": 0.01} for level in config.gate.order}
    built = experiment.from_config(config, one_device)
    assert built.levels.num_cells == {"topic": 3, "domain": 1}
    trainer, state = trainer_of(built)
    _, scalars = trainer.iterate(state, built.prompt_stream(), 0)
    assert {name for name in scalars if name.startswith("gate/channel/")} == {
        f"gate/channel/{level}/{sign}"
        for level in ("trajectory", "topic")
        for sign in ("plus", "minus")
    }
    assert sum(scalars[f"gate/regime/{name}"] for name in GLOBAL_REGIMES) == pytest.approx(1)
