"""The step share: what it measures, that it is whole on-policy, and what it does to a step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_step
from gates.cases import CASES, LEVELS, flat, problem

from configs.gates import PRESETS, get_gate
from fiberjax import experiment, gates, objective, step_share
from fiberjax.parallel import mesh
from fiberjax.policy import TokenOutputs
from fiberjax.step_share import FORMS, REFERENCES, open_share
from fiberjax.train.batch import batch_specs
from fiberjax.train.update import StepOptions, objective_gradient

STATIC = ("gate", "form", "weighting", "constant_length")
compiled = jax.jit(open_share, static_argnames=STATIC)
EVERY = [name for name in PRESETS if name != "importance"]


def share_of(gate, budgets, p, log_ratio, *, credit=None, **options):
    credit = p.advantage if credit is None else credit
    arrays = (log_ratio, p.advantage, credit, flat(p), budgets)
    return float(compiled(gate, *arrays, old_log_prob=p.old_log_prob, **options))


@pytest.mark.parametrize("weighting", objective.WEIGHTINGS)
@pytest.mark.parametrize("case", ["gspo", "fgh_hold", "ppo"])
def test_the_share_compares_norms_of_coefficients(case, weighting):
    p = problem(dtype=np.float32)
    gate, budgets = CASES[case].build()
    layout, weights = flat(p), np.random.default_rng(3).uniform(0.5, 1.5, p.advantage.shape)
    credit = np.float32(p.advantage * weights)
    options = {"weighting": weighting, "constant_length": 7}

    def coefficients(ratio):
        def value(log_ratio):
            return objective.surrogate(ratio(log_ratio), credit, layout, **options).total

        return np.asarray(jax.grad(value)(p.log_ratio), np.float64)

    length = np.bincount(p.trajectory)[p.trajectory]
    weight = {"trajectory": 1 / length, "token": 1.0, "constant": 1 / 7}[weighting]
    limits = {
        "importance": weight * np.exp(p.log_ratio) * credit,
        "limit": coefficients(lambda log_ratio: gate.limit(log_ratio, layout)),
        "on_policy": weight * credit,
    }
    found = coefficients(lambda log_ratio: gate(log_ratio, p.advantage, layout, budgets))
    for name in REFERENCES:
        expected = min(np.linalg.norm(found) / np.linalg.norm(limits[name]), 1)
        got = share_of(gate, budgets, p, p.log_ratio, credit=credit, form=name, **options)
        np.testing.assert_allclose(got, expected, rtol=1e-5, err_msg=name)
        assert got < 1 or name == "limit"


@pytest.mark.parametrize("preset", EVERY)
def test_on_policy_the_step_is_whole_whatever_the_gate(preset):
    p = problem(dtype=np.float32)
    config = get_gate(preset)
    gate, budgets = gates.from_config(config, LEVELS)
    length = np.bincount(p.trajectory)[p.trajectory]
    advantage = np.float32(p.advantage[np.searchsorted(p.trajectory, p.trajectory)])
    p = dataclasses.replace(p, advantage=advantage)
    assert length.max() > 1
    for form in ("importance", "levels"):
        # The derivative of hierarchies at the point where their bounds meet.
        found = share_of(gate, budgets, p, np.zeros_like(p.log_ratio), form=form)
        np.testing.assert_allclose(found, 1, rtol=2e-6, err_msg=form)


@pytest.mark.parametrize("case", ["gspo", "silent_sequence", "fgh_hold", "importance"])
def test_by_levels_each_shortens_the_step_by_what_it_leaves_open(case):
    p = problem(dtype=np.float32)
    gate, budgets = CASES[case].build()
    layout, credit = flat(p), np.float32(p.advantage * np.linspace(0.5, 1.5, p.advantage.size))
    length = np.bincount(p.trajectory)[p.trajectory]
    whole = np.exp(p.log_ratio) * credit / length
    closed = gate.clipped(p.log_ratio, p.advantage, layout, budgets, old_log_prob=p.old_log_prob)
    shares = [
        np.linalg.norm(whole[~np.asarray(mask)]) / np.linalg.norm(whole) for mask in closed.values()
    ]
    got = share_of(gate, budgets, p, p.log_ratio, credit=credit, form="levels")
    np.testing.assert_allclose(got, np.prod(shares), rtol=1e-5)
    assert sum(share < 1 for share in shares) == {"gspo": 1, "importance": 0}.get(case, 4)


def test_a_gate_that_closes_everything_leaves_no_step():
    p = problem(dtype=np.float32)
    gate, budgets = CASES["ppo"].build()
    away = np.float32(np.sign(p.advantage))
    for name in FORMS:
        assert share_of(gate, budgets, p, away, form=name) == 0, name
    # Without any advantage there is nothing to compare, and no step either.
    nothing = dataclasses.replace(p, advantage=np.zeros_like(p.advantage))
    for name in ("on_policy", "levels"):
        assert share_of(gate, budgets, nothing, p.log_ratio, form=name) == 0, name


def test_a_token_far_away_neither_overflows_nor_hides_a_nan():
    p = problem(dtype=np.float32)
    gate, budgets = CASES["ppo"].build()
    far = p.log_ratio.copy()
    far[np.argmax(p.advantage)] = 60.0
    assert 0 < share_of(gate, budgets, p, far, form="importance") < 1e-20
    assert 0.3 < share_of(gate, budgets, p, far, form="on_policy") < 1
    far[0] = np.nan
    for name in ("on_policy", "levels"):
        assert np.isnan(share_of(gate, budgets, p, far, form=name)), name


def test_an_unknown_reference_is_refused():
    p = problem(dtype=np.float32)
    gate, budgets = CASES["ppo"].build()
    with pytest.raises(ValueError, match=r"step share 'ratio' does not exist; choose from"):
        share_of(gate, budgets, p, p.log_ratio, form="ratio")


def test_the_share_scales_steps_and_decay_and_leaves_the_moments():
    params, gradient = jnp.array([1.0, -2.0, 3.0]), jnp.array([0.3, 0.1, -0.2])
    plain = optax.adamw(0.1, weight_decay=0.5)
    shared = step_share.scale_by_share(plain)
    whole, state = plain.update(gradient, plain.init(params), params)
    for share in (1.0, 0.25, 0.0):
        given = {"share": jnp.float32(share)}
        updates, after = shared.update(gradient, shared.init(params), params, **given)
        np.testing.assert_array_equal(updates, np.float32(share) * whole)
        assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), after, state))


def test_shards_of_the_rows_have_the_share_of_all_tokens():
    found = {}
    for shape in ((1, 1, 1), (4, 2, 1)):
        sizes = dict(zip(("data", "fsdp", "tensor"), shape, strict=True))
        device_mesh = mesh.make_mesh(sizes, jax.devices()[: int(np.prod(shape))])
        batch = small_step.make_batch()
        batch = mesh.place(device_mesh, batch, batch_specs(batch))
        outputs = TokenOutputs(batch.old_log_prob + 0.3 * batch.advantage, batch.old_log_prob)
        for name in FORMS:
            options = StepOptions(step_share=name)
            metrics, _ = jax.jit(
                lambda outputs, batch, device_mesh=device_mesh, options=options: objective_gradient(
                    device_mesh, small_step.GATE, options, outputs, batch, small_step.KNOBS
                )
            )(outputs, batch)
            found[shape, name] = float(metrics["actor/open_share"].value)
    for name in FORMS:
        assert 0 < found[(1, 1, 1), name] < 1, found
        np.testing.assert_allclose(found[(4, 2, 1), name], found[(1, 1, 1), name], rtol=1e-5)


def test_the_compiled_step_is_as_long_as_its_share():
    found = {}
    for name in (None, "importance"):
        options = dataclasses.replace(small_step.OPTIONS, step_share=name)
        step, state, batch = small_step.build((1, 1, 1), options)
        before = jax.device_get(state.params)
        state, metrics = step(state, batch, small_step.KNOBS)
        moved = optax.tree.norm(jax.tree.map(lambda a, b: a - b, state.params, before))
        found[name] = float(moved)
        np.testing.assert_allclose(metrics["actor/update_norm"].value, moved, rtol=1e-4)
        assert ("actor/open_share" in metrics) == (name is not None)
    share = float(metrics["actor/open_share"].value)
    assert 0 < share < 0.9
    np.testing.assert_allclose(found["importance"], share * found[None], rtol=1e-4)


def test_an_optimizer_that_does_not_normalise_is_refused(make_config, one_device):
    config = make_config()
    config.training.step_share = "importance"
    config.optimizer.name = "sgd"
    message = r"config\.training\.step_share = 'importance' is for optimizers that normalise.*'sgd'"
    with pytest.raises(ValueError, match=message):
        experiment.from_config(config, one_device)
    config.optimizer.name = "muon"
    config.training.step_share = "half"
    message = r"config\.training: step_share must be one of none, .*, on_policy, levels; got 'half'"
    with pytest.raises(ValueError, match=message):
        experiment.from_config(config, one_device)
