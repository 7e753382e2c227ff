"""The shipped example at the size of seconds: a policy that may call a calculator, trained."""

import jax
import numpy as np
import pytest
import tiny
from interruption import interrupted_at

from configs import calculator
from fiberjax import experiment
from fiberjax.run import loop, rollouts
from fiberjax.run.kept_files import load_rollouts
from fiberjax.run.metrics import describe, read_metrics
from fiberjax.tasks.environments import SEPARATOR


@pytest.fixture
def built(scratch):
    config, small = calculator.get_config(), tiny.get_config()
    for section in ("policy", "mesh", "checkpoint"):
        config[section].update(small[section])
    config.iterations = 2
    config.tasks.data_dir = str(scratch / "data")
    # One digit, which calls at once: seconds of a warm start do for it.
    config.tasks.domains.calculation.update({"digits": 1, "calls": 0.8})
    config.tasks.num_train, config.tasks.num_test = 40, 4
    config.window.completion = 42
    config.policy.num_layers = 1
    config.warm_start.directory = str(scratch / "warm_starts")
    config.warm_start.steps, config.warm_start.batch_size = 150, 8
    config.warm_start.learning_rate = 3e-2
    config.rollout.prompts, config.rollout.samples = 8, 4
    config.training.update({"minibatches": 2, "micro_batches": 1, "packing": False})
    config.optimizer.update({"name": "adamw", "warmup_steps": 0})
    # As many rows as rollouts have: one program draws both.
    config.evaluation.update({"prompts": 4, "samples": 4, "batch": 8, "every": 2})
    return experiment.from_config(config, jax.devices()[:1])


def test_a_run_with_a_tool_is_trained_told_and_resumed_bitwise(built, tmp_path, monkeypatch):
    _, whole, _ = loop.train(built, tmp_path / "whole")
    told = read_metrics(tmp_path / "whole")
    trained = told["step"] > 0
    assert (told["turns/replied"][trained] > 0.1).all()
    np.testing.assert_allclose(told["turns/mean"][trained], 1 + told["turns/replied"][trained])
    assert not told["turns/replies_cut"][trained].any()
    assert told["mismatch/log_prob_abs_max"][trained].max() < 1e-4
    assert (told["actor/grad_norm"][trained] > 0).all()
    assert 0 < told["gate/clip_fraction/turn"][trained].max() < 1
    assert np.isfinite(told["evaluation/mean@4/overall"][[0, 2]]).all()
    for name in told:
        assert name == "step" or describe(name).meaning, name

    # What was said stands in the samples: the call, the reply, the answer.
    kept = rollouts.read(tmp_path / "whole").to_pylist()
    said = [row["completion"].split(SEPARATOR) for row in kept]
    assert {1, 3} == set(map(len, said))
    replied = [of for of in said if len(of) == 3]
    assert all(of[0].endswith("</calc>") for of in replied)
    assert all(of[1].isdigit() or of[1] == "error" for of in replied)
    assert {row["split"] for row in kept} == {"train", "held_out"}
    for row, of in zip(kept, said, strict=True):
        assert row["reward"] == (row["answer"] == of[-1])

    # And whole: replies between the policy's turns, which are cells.
    whole_rows = load_rollouts(tmp_path / "whole", 1)
    assert whole_rows.layout.levels[:2] == ("turn", "trajectory")
    files = list((tmp_path / "whole" / "rollouts").iterdir())
    assert [file.name for file in files] == ["000001.parquet"]
    talked = 0
    for row, completion in enumerate(whole_rows.table["completion"].to_pylist()):
        turns = completion.split(SEPARATOR)
        mask, turn = whole_rows.mask[row], whole_rows.turn[row]
        assert set(turn[mask]) == set(range(1 + len(turns) // 2))
        reply = np.flatnonzero(~mask[: np.flatnonzero(mask)[-1]])
        if len(turns) == 3:
            talked += 1
            assert turns[1] in built.vocabulary.decode(whole_rows.tokens[row][reply])
    assert talked

    with interrupted_at(1, monkeypatch):
        loop.train(built, tmp_path / "parts")
    _, parts, _ = loop.train(built, tmp_path / "parts")
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
    assert files[0].read_bytes() == (tmp_path / "parts/rollouts/000001.parquet").read_bytes()
    second = read_metrics(tmp_path / "parts")
    for name, values in told.items():
        if not name.startswith(("timing/", "perf/")):
            np.testing.assert_array_equal(values, second[name], err_msg=name)
