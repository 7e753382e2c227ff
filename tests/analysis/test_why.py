"""The reasons given for a token's gradient: what they call closed is what the gate closed."""

import dataclasses

import looked
import numpy as np
import pytest

import fiberjax as fj
from fiberjax.analysis import measures, tokens, why
from fiberjax.analysis.measures import number
from fiberjax.analysis.tokens import FATES, VANISHED
from fiberjax.run.kept import from_arrays


def counted():
    return [tuple(map(int, at)) for at in np.argwhere(looked.kept().mask)]


@pytest.mark.parametrize("gate", looked.GATES)
def test_a_step_is_closed_where_the_gate_s_level_is(gate):
    found = looked.under(gate)
    chains, seen = why.Chains(found), set()
    for at in counted():
        for step in chains.of(*at)[1:-1]:
            level = "trajectory" if step.part == "gate" else step.part
            assert step.shut == found.changed[level][at], (at, step)
            seen.add((step.part, step.shut))
    # Each gate was seen open and closed.
    parts = [part for part in found.parts if part != "open"]
    assert {part for part, shut in seen if shut} >= set(parts[-1:])
    assert len(seen) > len(parts)


def test_a_silent_chain_says_where_the_gradient_vanished():
    found = looked.under("silent_domain")
    row, column = map(int, np.argwhere(found.fate == VANISHED)[0])
    steps = why.why(found, row, column)
    assert [step.part for step in steps] == [*found.parts, "left"]
    first = next(step for step in steps if step.shut)
    level, c = found.levels[first.part], int(found.kept.advantage[row, column] < 0)
    for value in (level.held[row, column, c], level.budget[row, column, c]):
        assert number(float(value)) in first.text
    assert first.text.count("as the advantage asks") == 1 and "Changes the coeff" in first.text
    assert steps[-1].text == f"Nothing is left: the gradient vanished at its {first.part}."


def test_a_chain_ends_with_what_is_left():
    for gate in looked.GATES:
        found = looked.under(gate)
        chains = why.Chains(found)
        for at in counted():
            fate, last = FATES[found.fate[at]], chains.of(*at)[-1].text
            words = {"vanished": "vanished", "turned": "turned", "kept": "all of it"}
            assert words.get(fate, " % of it") in last, (fate, last)


def test_a_turned_gradient_is_told():
    found = looked.under("fiberpo_domain")
    turned = np.argwhere(found.fate == FATES.index("turned"))
    assert len(turned) > 0
    for at in turned:
        assert "the gradient turned at" in why.why(found, *map(int, at))[-1].text


@pytest.mark.parametrize(
    "gate", ["clip", "ppo", "gspo", "dppo_tv", "opsm", "tvpo", "pnpo", "minpro", "cispo"]
)
def test_a_measure_is_beyond_its_bound_where_the_gate_closes(gate):
    tight = {
        **{"ppo": {"clip_low": 0.05, "clip_high": 0.05}, "dppo_tv": {"delta_high": 0.01}},
        **{"opsm": {"delta": 0.01, "clip_low": 0.05}, "tvpo": {"delta": 0.05}},
        **{"pnpo": {"clip_low": 0.01, "clip_high": 0.05}, "minpro": {"weight_cap": 1.05}},
        **{"cispo": {"clip_low": 0.1, "clip_high": 0.1}},
    }
    if gate == "clip":
        config = {"name": "clip", "clip_low": 0.05, "clip_high": 0.05}
        made = fj.gates.configured.ConfiguredGate(*fj.gates.from_config(config, ("trajectory",)))
    else:
        made = fj.gate(gate, **tight.get(gate, {}))
    kept = looked.kept()
    masks = made.structure.clipped(
        *(kept.log_ratio, kept.advantage, kept.layout, made.budgets),
        old_log_prob=kept.old_log_prob,
    )
    closed = np.logical_or.reduce([np.asarray(mask) for mask in masks.values()])
    found = dataclasses.replace(looked.under("gspo"), gate=made)
    beyond = np.zeros_like(closed)
    for at in counted():
        for measure in measures.of(found, int(kept.minibatch[at[0]])):
            beyond[at] |= measure.text(at).endswith("beyond.")
    np.testing.assert_array_equal(beyond & kept.mask, closed & kept.mask)
    assert 0 < closed[kept.mask].mean() < 1


def test_a_cell_is_measured_in_its_own_optimizer_batch():
    """Two rows of one domain that drift apart, each in a batch of its own."""
    drift = np.array([[0.2, 0.2], [-0.2, -0.2]])
    kept = from_arrays(
        log_prob=drift - 1,
        old_log_prob=np.full((2, 2), -1.0),
        mask=np.ones((2, 2), bool),
        advantage=np.array([1.0, -1.0]),
        parents={"domain": np.array([0, 0])},
        minibatch=np.array([0, 1]),
    )
    found = tokens.look(kept, ("gspo", {"level": "domain", "clip_high": 0.1, "clip_low": 0.1}))
    said = [why.why(found, row, 0)[1].text for row in (0, 1)]
    assert "is 1.22, allowed is at most 1.1: beyond" in said[0]
    assert "is 0.819, allowed is at least 0.9: beyond" in said[1]


def test_rollback_gives_back_as_many_as_its_channel_holds():
    drift = np.array([[0.13, 0.13, -0.01, -0.01]])
    kept = from_arrays(
        log_prob=drift - 1,
        old_log_prob=np.full((1, 4), -1.0),
        mask=np.ones((1, 4), bool),
        advantage=np.ones(1),
    )
    for name, number_of in (("fiberpo", 4), ("fiberpo_exact", 2)):
        options = {"trajectory": 0.1 if number_of == 2 else 0.06, "epsilon": 5.0}
        found = tokens.look(kept, (name, options | {"pessimistic": False}))
        said = " ".join(step.text for step in why.why(found, 0, 0))
        assert f"every further nat gives back {number_of}" in said


def test_every_gate_without_levels_is_measured_or_told_by_its_mask():
    specs = {spec.gate for spec in fj.gates.GATES.values() if "budgets" not in spec.budgets}
    without = specs - set(measures.MEASURES)
    assert {of.__name__ for of in without} == {"importance", "apc"}
    found = dataclasses.replace(looked.under("gspo"), gate=fj.gate("apc_sequence"))
    row, column = map(int, np.argwhere(found.changed["trajectory"])[0])
    assert why.why(found, row, column)[1].text == "The gate apc changes it at trajectory."


def test_a_token_that_does_not_count_has_no_reasons():
    with pytest.raises(ValueError, match="row 2, column 1 is no token that the loss counts"):
        why.why(looked.under("gspo"), 2, 1)
    with pytest.raises(ValueError, match="row 99"):
        why.why(looked.under("gspo"), 99, 0)
