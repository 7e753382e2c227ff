"""Episodes: what stands where in a row, what is the policy's, and what trainer and sampler say."""

import dataclasses

import jax
import numpy as np
import pytest

from fiberjax import experiment, gates
from fiberjax.parallel import mesh
from fiberjax.policy import Samples, TokenOutputs
from fiberjax.run.warm_start import random_params
from fiberjax.seeds import TRAINING, of_turn
from fiberjax.tasks import CharVocabulary
from fiberjax.tasks.environments import Apart, Turns
from fiberjax.tasks.examples import Example
from fiberjax.tasks.rewards import Limits, Target
from fiberjax.tasks.rewards.base import Failed
from fiberjax.train import resample
from fiberjax.train.batch import batch_specs
from fiberjax.train.diagnose import make_diagnose
from fiberjax.train.forward import make_log_probs
from fiberjax.train.minibatches import make_batches
from fiberjax.train.rollout import Sampler
from fiberjax.train.turns import play, spoken
from fiberjax.train.update import Knobs, StepOptions, objective_gradient

V = CharVocabulary()
EOS, BOS, PAD = V.eos_id, V.bos_id, V.pad_id


def echo(example, said):
    """Answers a turn that begins with "a"; the reply names the example and counts the turns."""
    return f"{example.prompt}{len(said)}" if said[-1].startswith("a") else None


class Scripted:
    """Draws what a script says, row by row and turn by turn, and keeps what it was asked."""

    def __init__(self, script, columns):
        self.script, self.columns, self.asked = script, columns, []

    def __call__(self, tokens, mask, rows, turn):
        if not len(rows):
            return None
        self.asked.append((tokens, mask, rows.tolist()))
        ids = [V.encode(self.script[row][turn].rstrip("!")) for row in rows]
        ends = [not self.script[row][turn].endswith("!") for row in rows]
        ids = [[*of, *[EOS] * end] for of, end in zip(ids, ends, strict=True)]
        out = np.full((len(rows), self.columns), PAD, np.int32)
        for row, of in zip(out, ids, strict=True):
            row[: len(of)] = of
        length = np.array([len(of) for of in ids], np.int32)
        log_prob = np.where(np.arange(self.columns) < length[:, None], -1.0 - turn, 0)
        return Samples(out, log_prob, 0 * log_prob, length, np.array(ends), length)


def test_rows_are_one_sequence_of_turns_and_replies():
    # Three turns; one that is over at once; one cut off; one whose last turn calls again.
    script = [["ab", "ac", "d"], ["bb"], ["a", "abc!"], ["a", "a", "ad"]]
    turns = Turns(echo, limit=3, reply=4)
    columns = 3 * 4 + 2 * 4
    prompts = np.array([[PAD, BOS, 9], [BOS, 9, 9], [PAD, PAD, BOS], [PAD, BOS, 9]], np.int32)
    draw = Scripted(script, 4)
    examples = [Example(name, "", "", "d") for name in "pqrs"]
    played = play(draw, turns, V, examples, prompts, prompts != PAD, columns)

    said = [["ab", "p1", "ac", "p3", "d"], ["bb"], ["a", "r1", "abc"], ["a", "s1", "a", "s3", "ad"]]
    for row, of in enumerate(said):
        row_of = (played.tokens[row], played.mask[row], played.turn[row])
        assert spoken(V, "user", *row_of) == of
        # What it is, token by token, without a gap.
        ids, own, number = [], [], []
        for k, text in enumerate(of):
            part = V.encode(text) if k % 2 == 0 else [BOS, *V.encode(text), BOS]
            part += [EOS] * (k % 2 == 0 and (row, k) != (2, 2))
            ids, own = ids + part, own + [k % 2 == 0] * len(part)
            number += [k // 2 if k % 2 == 0 else 0] * len(part)
        count = len(ids)
        np.testing.assert_array_equal(played.tokens[row], [*ids, *[PAD] * (columns - count)])
        np.testing.assert_array_equal(played.real[row], np.arange(columns) < count)
        np.testing.assert_array_equal(played.mask[row, :count], own)
        np.testing.assert_array_equal(played.turn[row, :count], number)
        # The numbers of a draw stand at the policy's own tokens.
        log_prob = np.where(played.mask[row], -1.0 - played.turn[row], 0)
        np.testing.assert_array_equal(played.log_prob[row], log_prob)
    assert played.finished.tolist() == [True, True, False, True]
    assert played.cut.tolist() == [0, 0, 0, 0]
    np.testing.assert_array_equal(played.held, played.mask.sum(axis=1))  # Of all turns.
    # A turn is drawn from all before it, in a width of its own, by those that go on alone.
    assert [(of.shape, rows) for of, _, rows in draw.asked] == [
        ((4, 3), [0, 1, 2, 3]),
        ((3, 11), [0, 2, 3]),
        ((2, 19), [0, 3]),
    ]
    tokens, mask, _ = draw.asked[2]
    whole = [*prompts[0, 1:], *played.tokens[0, : played.mask[0].nonzero()[0][-2]]]
    np.testing.assert_array_equal(tokens[0][mask[0]], whole)
    assert mask[0].argmax() == 19 - len(whole) and (tokens[0][~mask[0]] == PAD).all()


def test_one_turn_asks_nobody():
    draw = Scripted([["ab"]], 7)
    one = np.ones((1, 2), np.int32)
    played = play(draw, Turns(), V, [], one, one > 0, 7)
    assert len(draw.asked) == 1 and played.finished.all() and not played.turn.any()


def test_a_reply_that_does_not_fit_is_cut_and_counted():
    draw = Scripted([["a", "b"]], 3)
    one = np.ones((1, 1), np.int32)
    turns = Turns(lambda example, said: "12345", limit=2, reply=4)
    played = play(draw, turns, V, [Example("p", "", "", "d")], one, one > 0, 10)
    row = (played.tokens[0], played.mask[0], played.turn[0])
    assert spoken(V, "user", *row) == ["a", "12", "b"] and played.cut.tolist() == [1]


def test_an_environment_that_fails_ends_the_episode_and_is_counted():
    class Failing(Apart):
        def many(self, asked):
            return [Failed("why", False) if "b" in said[-1] else "c" for _, said in asked]

    draw = Scripted([["a", "d"], ["ab", "d"], ["ab!", "d"]], 3)
    three = np.ones((3, 1), np.int32)
    turns = Turns(Failing("own", Target("own", "", "own"), Limits()), limit=2, reply=4)
    played = play(draw, turns, V, [Example("p", "", "", "d")] * 3, three, three > 0, 10)
    assert played.failed.tolist() == [False, True, False]  # The last was not asked.
    assert played.turn.max(axis=1).tolist() == [1, 0, 0]
    assert played.finished.tolist() == [True, True, False]


@pytest.fixture(scope="module")
def scratch_config(scratch):
    import tiny

    config = tiny.get_config("fiberpo_domain")
    config.tasks.data_dir = str(scratch / "data")
    config.warm_start.steps = 0
    config.window.completion = 14
    config.levels = (("turn", "turn"), *config.levels)
    config.turns.update({"environment": "echo", "limit": 2, "reply": 4})
    return config


def often(example, said):
    """Random policies rarely say anything: most of what they end is answered."""
    return "ab" if len(said[-1]) % 4 < 3 else None


@pytest.fixture(scope="module")
def drawn(scratch_config):
    built = experiment.from_config(
        scratch_config, jax.devices()[:1], environment_table={"echo": often}
    )
    params = random_params(built.policy, built.mesh, seed=0)
    # Ends come often.
    params["embed"]["kernel"] = params["embed"]["kernel"].at[EOS].multiply(12.0)
    rollouts = sample(built, params, built.sampler(built.train))
    return built, params, rollouts


def sample(built, params, sampler, stream=TRAINING):
    prompts = next(built.prompt_stream())
    return sampler(sampler.read(params), prompts, samples=4, stream=stream, step=0)


def test_sampler_and_trainer_agree_on_every_turn(drawn):
    built, params, rollouts = drawn
    turns = rollouts.turn.max(axis=1)
    assert {0, 1} == set(turns) and 4 < turns.sum() < 28
    replies = (rollouts.segment_ids[:, 16:] > 0) & ~rollouts.mask
    np.testing.assert_array_equal(replies.sum(axis=1), 4 * turns)
    log_probs = make_log_probs(built.policy, built.mesh, built.training.chunk, 1)
    rows = (rollouts.tokens, rollouts.positions, rollouts.segment_ids)
    old, _ = log_probs(params, rows, rollouts.mask, built.knobs.temperature)()
    gap = np.abs(old - rollouts.sampler_log_prob)
    assert gap[rollouts.mask].max() < 1e-4
    assert rollouts.sampler_log_prob[rollouts.mask].mean() < -1
    assert not rollouts.sampler_log_prob[~rollouts.mask].any()
    # The turns after the first have draws of their own.
    assert of_turn(TRAINING, 0) == TRAINING and of_turn(TRAINING, 1) not in range(5)


def test_draws_do_not_depend_on_parts_or_devices(drawn):
    built, params, rollouts = drawn
    device_mesh = mesh.make_mesh({"data": 2, "fsdp": 2, "tensor": 1}, jax.devices()[:4])
    sampler = dataclasses.replace(built.sampler(built.train), mesh=device_mesh, max_rows=3)
    params = jax.device_put(params, jax.NamedSharding(device_mesh, mesh.REPLICATED))
    again = sample(built, params, sampler)
    for name in ("tokens", "mask", "turn", "finished"):
        np.testing.assert_array_equal(getattr(again, name), getattr(rollouts, name))


def test_a_process_whose_episodes_are_over_still_draws_with_the_others(drawn, monkeypatch):
    built, params, _ = drawn
    sampler = built.sampler(built.train)
    shapes, draw = [], Sampler.draw
    monkeypatch.setattr(
        Sampler, "draw", lambda self, *of: shapes.append(of[1].shape) or draw(self, *of)
    )
    keys = lambda places: jax.random.split(jax.random.key(0), len(places))  # noqa: E731
    none = (np.zeros((0, 25), np.int32), np.zeros((0, 25), bool), np.zeros(0, np.int64))
    assert sampler._dispatched(params, *none, keys, 32, whole=False) == [] and not shapes
    monkeypatch.setattr(mesh, "gather", lambda device_mesh, of: np.append(of, 1))
    taken = sampler._dispatched(params, *none, keys, 32, whole=False)
    assert len(sampler._read(taken, 0).tokens) == 0 and shapes == [(32, 25)]


def batches_of(built, rollouts, device_mesh=None, levels=None, packed=0, states=False):
    table = rollouts.sampler_log_prob
    noise = np.random.default_rng(1).normal(0, 0.3, table.shape).astype(np.float32)
    (batch,) = make_batches(
        built.mesh if device_mesh is None else device_mesh,
        rollouts,
        advantage=np.random.default_rng(0).normal(size=len(table)).astype(np.float32),
        old_log_prob=table,
        # Carried along, to be the current policy's.
        reference_log_prob=table + noise,
        sample_weight=np.ones_like(table),
        num_minibatches=1,
        levels=built.levels if levels is None else levels,
        turns=2,
        states=states,
        pack_micro_batches=packed,
    )
    return batch


def test_cells_are_turns_of_trajectories(drawn):
    built, _, rollouts = drawn
    layout = batches_of(built, rollouts).layout
    assert layout.levels == ("turn", "trajectory", "group", "domain")
    cell, turn = np.asarray(layout.cell_id), rollouts.turn
    expected = np.arange(32)[:, None] * 2 + turn
    np.testing.assert_array_equal(cell, np.where(rollouts.mask, expected, 64))
    tokens = np.stack([(rollouts.mask & (turn == k)).sum(axis=1) for k in (0, 1)], axis=1)
    np.testing.assert_array_equal(layout.sizes[0], tokens.ravel())
    np.testing.assert_array_equal(layout.sizes[1], (tokens > 0).sum(axis=1))
    np.testing.assert_array_equal(layout.sizes[2], 4)
    used = np.asarray(layout.sizes[0]) > 0
    parent = np.where(used, np.arange(64) // 2, 32)
    np.testing.assert_array_equal(layout.parents[0], parent)


def gradient(built, batch, device_mesh):
    """The objective's gradient by the place of each token, and the metrics."""
    order = ("turn", "trajectory", "group", "domain")
    config = {"name": "fgh", "epsilon": 0.1, "order": order}
    config["levels"] = {level: {"budget": 0.05} for level in order}
    gate, budgets = gates.from_config(config, order)
    one = np.float32(1)
    found = jax.jit(
        lambda outputs, batch: objective_gradient(
            device_mesh,
            gate,
            StepOptions(kl_estimator=None),
            outputs,
            batch,
            Knobs(budgets, one, one, one),
        )
    )
    outputs = TokenOutputs(batch.reference_log_prob, batch.reference_log_prob)
    metrics, cotangents = found(outputs, batch)
    looked = make_diagnose(device_mesh, gate)
    metrics |= looked(batch.reference_log_prob, batch, Knobs(budgets, one, one, one))
    metrics, slope = jax.device_get((metrics, cotangents.log_prob))
    return {name: of.value for name, of in metrics.items()}, slope


@pytest.mark.long
def test_packed_and_on_a_mesh_turns_are_what_they_are_in_rows(drawn):
    built, _, rollouts = drawn
    # Every token is known by a number of its own.
    numbered = np.arange(rollouts.tokens.size, dtype=np.int32).reshape(rollouts.tokens.shape)
    rollouts = dataclasses.replace(rollouts, tokens=numbered)
    metrics, slope = gradient(built, batches_of(built, rollouts), built.mesh)
    assert metrics["gate/clip_fraction/turn"] > 0
    # What others said has exactly no gradient.
    np.testing.assert_array_equal(slope[~rollouts.mask], 0)
    assert (slope[rollouts.mask] != 0).mean() > 0.2
    device_mesh = mesh.make_mesh({"data": 2, "fsdp": 2, "tensor": 1}, jax.devices()[:4])
    for on, packed in ((device_mesh, 0), (device_mesh, 8)):
        batch = batches_of(built, rollouts, on, packed=packed)
        assert (len(batch.tokens) < 32) == (packed > 0)
        again, found = gradient(built, batch, on)
        mask = np.asarray(batch.layout.mask)
        at = np.asarray(batch.tokens)[:, -mask.shape[1] :][mask]
        row, column = np.divmod(at, rollouts.tokens.shape[1])
        np.testing.assert_allclose(found[mask], slope[row, column - 16], rtol=1e-4, atol=1e-7)
        assert mask.sum() == rollouts.mask.sum() and not found[~mask].any()
        assert again.keys() == metrics.keys()
        for name, value in metrics.items():
            np.testing.assert_allclose(again[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


def test_states_know_what_was_said_between(drawn):
    """Two tokens of one prompt share a state only if all before them is the same, replies too."""
    built, _, rollouts = drawn
    levels = dataclasses.replace(built.levels, turns=False)
    layout = batches_of(built, rollouts, levels=levels, states=True).layout
    state = np.asarray(layout.state_id)
    assert (state[~rollouts.mask] == layout.num_states).all()
    before = {}
    for row, column in zip(*np.nonzero(rollouts.mask), strict=True):
        prefix = (row // 4, rollouts.tokens[row, 16 : 16 + column].tobytes())
        assert before.setdefault(prefix, state[row, column]) == state[row, column]
    assert len(set(before.values())) == len(before)


def test_groups_that_are_kept_keep_their_turns(drawn):
    built, _, rollouts = drawn
    source = np.array([3, -1, 0, 5])
    kept = resample.assemble(built.mesh, [rollouts], source, built.examples)
    for place, group in enumerate(source):
        to, of = (slice(4 * k, 4 * k + 4) for k in (place, group))
        if group < 0:
            assert kept.texts[to] == [""] * 4 and not kept.turn[to].any()
            continue
        assert kept.texts[to] == rollouts.texts[of]
        for name in ("tokens", "mask", "turn", "replies_cut"):
            np.testing.assert_array_equal(getattr(kept, name)[to], getattr(rollouts, name)[of])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"environment": "clock"}, "must be '' or one of echo; got 'clock'"),
        ({"limit": 1}, r"config\.turns: limit must be at least 2 with an environment; got 1"),
        ({"reply": 1}, "have no room for the 2 that stand around every reply"),
        ({"limit": 4}, r"completion = 14 columns have no room for config\.turns\.limit = 4 turns"),
        ({"environment": "", "limit": 1}, "reply must be 0 without an environment; got 4"),
        ({"role": "system"}, "role must be one of user, tool"),
    ],
)
def test_wrong_options_are_refused(scratch_config, options, message):
    config = scratch_config.copy_and_resolve_references()
    config.turns.update(options)
    with pytest.raises(ValueError, match=message):
        experiment.from_config(config, jax.devices()[:1], environment_table={"echo": often})


def test_specs_of_turns_are_split_as_their_rows(drawn):
    built, _, rollouts = drawn
    layout = batch_specs(batches_of(built, rollouts)).layout
    assert layout.sizes == (mesh.ROWS, mesh.ROWS, mesh.REPLICATED, mesh.REPLICATED)
    assert layout.parents == (mesh.ROWS, mesh.ROWS, mesh.REPLICATED)
