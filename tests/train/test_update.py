"""The compiled step: one gradient however the batch is split, and one compilation for all of them.

Batches are four prompt groups of two trajectories in two domains, of ragged lengths, with old
log-probabilities far enough from the policy's that gates act.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_step

from configs.gates import get_gate
from fiberjax import gates
from fiberjax.layout import make_layout, state_ids
from fiberjax.parallel import mesh
from fiberjax.parallel.shardings import state_shardings
from fiberjax.policy import TransformerConfig, chunked_token_outputs, init, token_outputs
from fiberjax.train import forward
from fiberjax.train.batch import Batch, batch_specs
from fiberjax.train.diagnose import make_diagnose
from fiberjax.train.update import Knobs, StepOptions, TrainState, make_step

POLICY = TransformerConfig(
    vocab_size=11, embed_dim=8, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=4, mlp_dim=16
)
ROWS, PROMPT, COMPLETION = 8, 3, 6
TEMPERATURE = 0.8

# Gradient descent whose state keeps the gradient, and the rate as a traced number.
recording = optax.GradientTransformation(
    init=lambda params: {"gradient": jax.tree.map(jnp.zeros_like, params), "rate": jnp.zeros(())},
    update=lambda gradient, state, params=None: (
        jax.tree.map(lambda g: -state["rate"] * g, gradient),
        {"gradient": gradient, "rate": state["rate"]},
    ),
)

LEVELS = ("trajectory", "group", "domain")
# One gate of each kind that a step treats alike; tests/gates/test_contract.py holds all of them to
# the same two theorems without a policy.
EVERY_KIND = (
    *("fiberpo_domain_pessimistic", "gspo", "ppo", "cispo", "sapo", "dppo_tv", "apc"),
    *("cppo", "m2po"),
)


@pytest.fixture(scope="module")
def device_mesh():
    return mesh.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])


@pytest.fixture(scope="module")
def params():
    return init(POLICY, jax.random.key(0))


def log_prob(params, batch):
    """The policy's own log-probabilities of a batch, float32[B, T]."""
    return token_outputs(
        POLICY,
        params,
        batch.tokens,
        batch.positions,
        batch.segment_ids,
        start=PROMPT,
        temperature=TEMPERATURE,
        chunk=COMPLETION,
    ).log_prob


def make_batch(params, *, drift=0.3, rows=slice(None)):
    """A batch whose policy has drifted from the old one by `drift` nats a token, in both ways."""
    rng = np.random.default_rng(0)
    length = rng.integers(1, COMPLETION + 1, ROWS)
    mask = np.arange(COMPLETION) < length[:, None]
    real = np.concatenate([np.ones((ROWS, PROMPT), bool), mask], axis=1)
    group = np.arange(ROWS) // 2
    advantage = rng.normal(size=ROWS).astype(np.float32)
    batch = Batch(
        tokens=np.where(real, rng.integers(0, POLICY.vocab_size, real.shape), 0),
        positions=np.maximum(np.cumsum(real, axis=1) - 1, 0).astype(np.int32),
        segment_ids=real.astype(np.int32),
        layout=None,
        advantage=np.repeat(advantage[:, None], COMPLETION, axis=1),
        old_log_prob=None,
        reference_log_prob=None,
        sample_weight=rng.uniform(0.5, 1.5, mask.shape).astype(np.float32),
    )
    current = np.asarray(log_prob(params, batch))
    noise = rng.normal(size=(2, *mask.shape)).astype(np.float32)
    batch = dataclasses.replace(
        batch,
        old_log_prob=current
        - drift * (noise[0] + np.sign(advantage)[:, None] * (group % 2)[:, None]),
        reference_log_prob=current - noise[1],
    )
    batch = jax.tree.map(lambda x: x[rows], batch)
    used, group = np.unique(group[rows], return_inverse=True)
    mask = mask[rows]
    trajectory = np.broadcast_to(np.arange(len(mask))[:, None], mask.shape)
    layout = make_layout(
        mask,
        {"group": group, "domain": used % 2},
        num_cells={"domain": 2},
        axis_names={"group": mesh.ROW_AXES, "state": mesh.ROW_AXES},
        state_id=state_ids(batch.tokens[:, PROMPT:], mask, group, trajectory),
    )
    return dataclasses.replace(batch, layout=layout)


@functools.cache
def compiled(device_mesh, gate, **options):
    """The step of a gate preset, the shardings of its state, and its knobs."""
    options = {"constant_length": COMPLETION, "chunk": 4} | options
    built, budgets = gates.from_config(get_gate(gate), LEVELS)
    state = jax.eval_shape(lambda: new_state(init(POLICY, jax.random.key(0)), 0.0))
    shardings = state_shardings(device_mesh, state)
    step = make_step(POLICY, device_mesh, built, recording, StepOptions(**options), shardings)
    knobs = Knobs(budgets, np.float32(TEMPERATURE), np.float32(0.1), np.float32(0.2))
    return step, shardings, knobs


def new_state(params, rate):
    """A state of its own: steps donate theirs."""
    params = jax.tree.map(jnp.copy, params)
    opt_state = recording.init(params) | {"rate": jnp.float32(rate)}
    return TrainState(params, opt_state, jnp.zeros((), jnp.int32))


def started(device_mesh, gate, params, rate=0.0, **options):
    """The step of a gate preset, a new state for it, and its knobs."""
    step, shardings, knobs = compiled(device_mesh, gate, **options)
    return step, jax.device_put(new_state(params, rate), shardings), knobs


def gradient_of(device_mesh, gate, params, batch, **options):
    """The gradient of the loss as one vector, and the metrics."""
    step, state, knobs = started(device_mesh, gate, params, **options)
    state, metrics = step(state, place(device_mesh, batch), knobs)
    return flat(state.opt_state["gradient"]), values(metrics)


@functools.cache
def diagnose(device_mesh, gate):
    """The diagnostics of a gate preset, and its budgets as knobs."""
    built, budgets = gates.from_config(get_gate(gate), LEVELS)
    return make_diagnose(device_mesh, built), Knobs(budgets, *np.zeros(3, np.float32))


def looked(device_mesh, gate, params, batch):
    """What the diagnostics say of a batch under a policy."""
    found, knobs = diagnose(device_mesh, gate)
    return values(found(log_prob(params, batch), place(device_mesh, batch), knobs))


def values(metrics):
    """The metrics of a step as numbers."""
    return {name: float(of.value) for name, of in jax.device_get(metrics).items()}


def place(device_mesh, batch):
    return mesh.place(device_mesh, batch, batch_specs(batch))


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def assert_same(a, b, tolerance=1e-5):
    """Equal up to rounding, relative to the largest entry; and not both zero."""
    assert np.abs(b).max() > 0
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())


ALL_TERMS = {"entropy_bonus": True, "kl_estimator": "k3"}


@pytest.mark.parametrize(
    ("gate", "weighting"),
    [
        ("fiberpo_domain", "trajectory"),
        *(
            pytest.param(gate, weighting, marks=pytest.mark.long)
            for gate, weighting in (
                *(("fiberpo_domain", "token"), ("fiberpo_domain", "constant")),
                *(("gspo", "trajectory"), ("gspo", "token"), ("gspo", "constant")),
                *(("ppo", "trajectory"), ("ppo", "token"), ("ppo", "constant")),
            )
        ),
    ],
)
def test_any_split_into_micro_batches_gives_the_same_gradient(device_mesh, params, gate, weighting):
    batch = make_batch(params)
    whole, metrics = gradient_of(device_mesh, gate, params, batch, weighting=weighting, **ALL_TERMS)
    assert looked(device_mesh, gate, params, batch)["actor/pg_clipfrac"] > 0
    for parts in (2, 8) if weighting == "trajectory" else (4,):
        options = {"weighting": weighting, "num_micro_batches": parts, **ALL_TERMS}
        split, split_metrics = gradient_of(device_mesh, gate, params, batch, **options)
        assert_same(split, whole)
        for name, value in metrics.items():
            np.testing.assert_allclose(split_metrics[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("gate", "weighting"), [("fiberpo_domain", "trajectory"), ("ppo", "token")]
)
def test_averaging_the_gradients_of_the_parts_would_be_wrong(device_mesh, params, gate, weighting):
    options = {"weighting": weighting, **ALL_TERMS}
    whole, _ = gradient_of(device_mesh, gate, params, make_batch(params), **options)
    parts = [
        gradient_of(device_mesh, gate, params, make_batch(params, rows=rows), **options)[0]
        for rows in (slice(0, 4), slice(4, 8))
    ]
    assert np.abs(np.mean(parts, axis=0) - whole).max() > 1e-2 * np.abs(whole).max()


@pytest.mark.parametrize("gate", ["fiberpo_domain_pessimistic", "gspo", "ppo", "dppo_tv"])
def test_contents_of_padding_change_nothing(device_mesh, params, gate):
    batch = make_batch(params)
    clean, metrics = gradient_of(device_mesh, gate, params, batch, **ALL_TERMS)
    padded = ("advantage", "old_log_prob", "reference_log_prob", "sample_weight")
    for garbage in np.float32([np.inf, -np.inf, np.nan, 1e6]):
        filled = {
            name: np.where(batch.layout.mask, getattr(batch, name), garbage) for name in padded
        }
        dirty = dataclasses.replace(batch, **filled)
        got, got_metrics = gradient_of(device_mesh, gate, params, dirty, **ALL_TERMS)
        np.testing.assert_array_equal(got, clean, err_msg=str(garbage))
        assert got_metrics == metrics


@pytest.mark.parametrize(
    "gate",
    [
        pytest.param(gate, marks=pytest.mark.long if gate in ("cispo", "sapo", "apc") else ())
        for gate in EVERY_KIND
    ],
)
def test_no_step_and_no_budget_compiles_again(device_mesh, params, gate):
    step, state, knobs = started(device_mesh, gate, params, rate=1.0)
    batch = place(device_mesh, make_batch(params))
    losses = []
    for factor in (1.0, 1.0, 0.5, 2.0):
        budgets = jax.tree.map(lambda b, factor=factor: (b * factor).astype(b.dtype), knobs.budgets)
        given, (state, metrics) = state, step(state, batch, knobs._replace(budgets=budgets))
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given.params))
        losses.append(values(metrics)["actor/pg_loss"])
    assert step._cache_size() == 1  # Also over the tests above that share the step.
    assert losses[0] != losses[-1]
    assert state.step == 4


@pytest.mark.parametrize("gate", EVERY_KIND)
def test_at_the_sampling_policy_every_gate_gives_the_reinforce_gradient(device_mesh, params, gate):
    batch = make_batch(params)
    weight = batch.sample_weight[:, :1].repeat(COMPLETION, axis=1)
    batch = dataclasses.replace(
        batch, old_log_prob=np.asarray(log_prob(params, batch)), sample_weight=weight
    )
    mask = batch.layout.mask

    def reinforce(params):
        credit = jnp.where(mask, batch.advantage * weight * log_prob(params, batch), 0)
        return -jnp.mean(credit.sum(axis=1) / mask.sum(axis=1))

    got, metrics = gradient_of(device_mesh, gate, params, batch)
    assert_same(got, flat(jax.grad(reinforce)(params)))
    if gate != "sapo":  # A soft gate damps a ratio that rounding alone moves from 1.
        assert looked(device_mesh, gate, params, batch)["actor/pg_clipfrac"] == 0
    np.testing.assert_allclose(metrics["is_ratio/max"], 1, atol=1e-5)


def test_a_token_of_weight_zero_is_dropped(device_mesh, params):
    batch = make_batch(params, drift=0.0)
    dropped = np.zeros(batch.layout.mask.shape, bool)
    dropped[0, 0] = True
    weight = np.where(dropped, 0, batch.sample_weight)
    kept, _ = gradient_of(device_mesh, "ppo", params, batch)
    got, _ = gradient_of(
        device_mesh, "ppo", params, dataclasses.replace(batch, sample_weight=weight)
    )
    without = dataclasses.replace(batch, advantage=np.where(dropped, 0, batch.advantage))
    expected, _ = gradient_of(device_mesh, "ppo", params, without)
    np.testing.assert_array_equal(got, expected)
    assert np.abs(got - kept).max() > 1e-3 * np.abs(kept).max()


def test_clip_fraction_rises_from_zero_with_the_policy(device_mesh, params):
    batch = make_batch(params)
    batch = dataclasses.replace(batch, old_log_prob=np.asarray(log_prob(params, batch)))
    for gate in ("fiberpo_domain", "gspo", "ppo"):
        step, state, knobs = started(device_mesh, gate, params, rate=3.0)
        fractions = []
        for _ in range(3):
            found = looked(device_mesh, gate, state.params, batch)
            state, _ = step(state, place(device_mesh, batch), knobs)
            fractions.append(found["actor/pg_clipfrac"])
        assert fractions[0] == 0 and fractions[-1] > 0, (gate, fractions)


def test_entropy_and_kl_terms_have_their_signs(device_mesh, params):
    batch = dataclasses.replace(
        make_batch(params), advantage=np.zeros((ROWS, COMPLETION), np.float32)
    )

    def after(**options):
        step, state, knobs = started(device_mesh, "ppo", params, rate=0.5, **options)
        for _ in range(5):
            state, metrics = step(state, place(device_mesh, batch), knobs)
        return values(metrics)

    still = after()
    assert still["actor/grad_norm"] == 0
    assert after(entropy_bonus=True)["actor/entropy"] > still["actor/entropy"]
    # Of these very tokens: weighed by their ratios they would estimate the policy's own KL.
    penalty = {"kl_estimator": "k2", "kl_ratio_weight": False}
    _, first = gradient_of(device_mesh, "ppo", params, batch, **penalty)
    assert after(**penalty)["actor/kl_reference"] < first["actor/kl_reference"]


def test_the_penalty_weighs_tokens_of_the_old_policy_by_their_ratio(device_mesh, params):
    batch = dataclasses.replace(
        make_batch(params), advantage=np.zeros((ROWS, COMPLETION), np.float32)
    )
    mask = batch.layout.mask

    def penalty(params, weight):
        log_prob_now = jnp.where(mask, log_prob(params, batch), 0)
        reference = jnp.where(mask, batch.reference_log_prob, 0)
        estimate = jnp.where(mask, weight * (log_prob_now - reference) ** 2 / 2, 0)
        return 0.2 * jnp.mean(estimate.sum(axis=1) / mask.sum(axis=1))

    ratio = jnp.exp(jnp.where(mask, log_prob(params, batch) - batch.old_log_prob, 0))
    found = []
    for weighted, weight in ((True, ratio), (False, jnp.ones_like(ratio))):
        options = {"kl_estimator": "k2", "kl_ratio_weight": weighted}
        got, _ = gradient_of(device_mesh, "ppo", params, batch, **options)
        assert_same(got, flat(jax.grad(penalty)(params, weight)))
        found.append(got)
    assert np.abs(found[0] - found[1]).max() > 0.1 * np.abs(found[0]).max()


def test_the_entropy_is_differentiated_for_a_bonus_only(device_mesh, params, monkeypatch):
    asked = []

    def watched(*arguments, entropy_gradient, **options):
        asked.append(entropy_gradient)
        return chunked_token_outputs(*arguments, entropy_gradient=entropy_gradient, **options)

    monkeypatch.setattr(forward, "chunked_token_outputs", watched)
    for bonus in (False, True):
        asked.clear()
        step, state, knobs = started(device_mesh, "ppo", params, entropy_bonus=bonus, chunk=5)
        step.lower(state, place(device_mesh, make_batch(params)), knobs)
        assert set(asked) == {bonus}


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 1)])
def test_beyond_the_target_kl_nothing_changes_and_within_it_all_is_as_without(shape):
    def after(target):
        step, state, batch = small_step.build(shape)
        before = flat(jax.device_get(state))  # Counters and moments too.
        new, metrics = step(state, batch, small_step.KNOBS._replace(target_kl=target))
        return before, flat(jax.device_get(new)), values(metrics)

    before, plain, metrics = after(None)
    drift = metrics["actor/ppo_kl_k3"]
    assert drift > 0 and "actor/stopped_updates" not in metrics
    _, within, metrics = after(np.float32(1.01 * drift))
    np.testing.assert_allclose(within, plain, rtol=1e-5, atol=1e-6)
    assert metrics["actor/stopped_updates"] == 0 and metrics["actor/update_norm"] > 0
    _, beyond, metrics = after(np.float32(0.99 * drift))
    np.testing.assert_array_equal(beyond, before)
    assert (beyond != plain).any()
    assert metrics["actor/stopped_updates"] == 1 and metrics["actor/update_norm"] == 0
    assert metrics["actor/skipped_updates"] == 0


def test_steps_are_as_long_as_their_factor():
    def after(factor):
        step, state, batch = small_step.build((1, 1, 1))
        before = flat(jax.device_get(state.params))
        new, metrics = step(state, batch, small_step.KNOBS._replace(step_factor=factor))
        moments = flat(jax.device_get(new.opt_state))
        return flat(jax.device_get(new.params)) - before, moments, values(metrics)

    whole, moments, metrics = after(None)
    quarter, same, scaled = after(np.float32(0.25))
    np.testing.assert_allclose(quarter, whole / 4, atol=2e-7)
    np.testing.assert_allclose(same, moments, rtol=1e-5, atol=1e-7)
    assert scaled["actor/update_norm"] == pytest.approx(metrics["actor/update_norm"] / 4)


def test_the_new_state_is_written_where_the_old_one_stands():
    """Beside the state a step has arrays as large as the parameters, but no second set of moments.

    On so few tokens that activations are a hundredth of the state. With the moments it is 1.36.
    """
    large = dataclasses.replace(small_step.CONFIG, vocab_size=4096, embed_dim=256, mlp_dim=1024)
    step, state, batch = small_step.build((1, 1, 1), config=large)
    found = step.lower(state, batch, small_step.KNOBS).compile().memory_analysis()
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert found.alias_size_in_bytes >= held  # The state donated is that which comes out.
    assert found.temp_size_in_bytes < 1.1 * held


def test_rows_that_do_not_divide_are_refused(device_mesh, params):
    with pytest.raises(ValueError, match="8 rows do not divide into 3 micro-batches"):
        gradient_of(device_mesh, "ppo", params, make_batch(params), num_micro_batches=3)
