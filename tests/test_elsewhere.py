"""Beside other frameworks: docs/elsewhere.md runs, and docs/names.md's translations hold.

What verl, TRL and google-tunix computed is kept in `tests/data/peers_*.npz`, made by the scripts of
`tests/peers`, which need those frameworks; these tests need none of them.
"""

import functools
import pathlib

import numpy as np
import pytest
from peers import batch as common
from peers.guide import run_blocks

import fiberjax as fj

DATA = pathlib.Path(__file__).parent / "data"
STORED = {**np.load(DATA / "peers_torch.npz"), **np.load(DATA / "peers_tunix.npz")}

TOKEN, TRAJECTORY = {"weighting": "token"}, {"weighting": "trajectory"}
CONSTANT = {"weighting": "constant", "constant_length": common.LENGTH}
SUM = {"weighting": "constant", "constant_length": 1}
CLIP = {"clip_low": common.CLIP_LOW, "clip_high": common.CLIP_HIGH}
PPO = ("ppo", CLIP)
DUAL = ("ppo", {**CLIP, "dual_clip": common.DUAL_CLIP})
GSPO, GSPO_TOKEN = ("gspo", CLIP), ("gspo_token", CLIP)
DELTA = {"delta_low": 0.02, "delta_high": 0.03}
DPPO = {"weight_cap": common.DUAL_CLIP}

TRANSLATIONS = {
    "verl/vanilla/token-mean": (DUAL, TOKEN),
    "verl/vanilla/seq-mean-token-mean": (DUAL, TRAJECTORY),
    "verl/vanilla/seq-mean-token-sum-norm": (DUAL, CONSTANT),
    "verl/vanilla/seq-mean-token-sum": (DUAL, SUM),
    "verl/gspo/token-mean": (GSPO_TOKEN, TOKEN),
    "verl/gspo/seq-mean-token-mean": (GSPO_TOKEN, TRAJECTORY),
    "verl/sapo/seq-mean-token-mean": (("sapo", {}), TRAJECTORY),
    "verl/geo_mean/token-mean": (("gmpo", CLIP), TRAJECTORY),
    "verl/cispo/token-mean": (("cispo", CLIP), TOKEN),
    "verl/dppo_tv/token-mean": (("dppo_tv", {**DELTA, **DPPO}), TOKEN),
    "verl/dppo_kl/token-mean": (("dppo_kl", {"delta": 0.003, **DPPO}), TOKEN),
    "trl/grpo": (PPO, TRAJECTORY),
    "trl/grpo_delta": (DUAL, TRAJECTORY),
    "trl/dr_grpo": (PPO, CONSTANT),
    "trl/bnpo": (PPO, TOKEN),
    "trl/dapo": (PPO, TOKEN),
    "trl/cispo": (("cispo", {"clip_low": 1.0, "clip_high": common.CLIP_HIGH}), TOKEN),
    "trl/sapo": (("sapo", {}), TRAJECTORY),
    "trl/grpo_sequence": (GSPO, TRAJECTORY),
    "trl/dapo_sequence": (GSPO, TOKEN),
    "trl/luspo": (GSPO, SUM),
    "tunix/grpo/token-mean": (PPO, TOKEN),
    "tunix/grpo/sequence-mean-token-mean": (PPO, TRAJECTORY),
    "tunix/grpo/sequence-mean-token-scale": (PPO, CONSTANT),
    "tunix/grpo/seq-mean-token-sum": (PPO, SUM),
    "tunix/grpo_dual_clip/token-mean": (DUAL, TOKEN),
    "tunix/gspo-token/sequence-mean-token-mean": (GSPO_TOKEN, TRAJECTORY),
    "tunix/ppo/token-mean": (PPO, TOKEN),
    "tunix/ppo_dual_clip/token-mean": (DUAL, TOKEN),
}
"""Each loss of another framework: the gate here that it is, and the weighting."""

TOKEN_SUM = "verl/vanilla/token-sum"
TRL_EMPTY_ROW = "trl/grpo_with_an_empty_row"
VERL_EMPTY_ROW = "verl/vanilla_with_an_empty_row/seq-mean-token-mean"

SCORE_WEIGHTS = ("cispo", "dppo_tv", "dppo_kl")
"""Their losses have the gradient of the gate here and another value: see docs/names.md."""


def arrays(data=None):
    """The batch in float32, and its layout."""
    data = common.make() if data is None else data
    log_prob, old_log_prob, advantage = (
        data[name].astype(np.float32) for name in ("log_prob", "old_log_prob", "advantage")
    )
    layout = fj.make_layout(data["mask"], {"group": common.GROUP, "domain": common.DOMAIN})
    return log_prob, old_log_prob, advantage, layout


def compare(stored, gate, weighting, with_value=True):
    log_prob, old_log_prob, advantage, layout = arrays()
    given = {"old_log_prob": old_log_prob} if gate.structure.spec.needs_old_log_prob else {}
    log_ratio = log_prob - old_log_prob
    c = fj.coefficients(gate, log_ratio, advantage, layout, **weighting, **given)
    assert np.abs(c).max() > 0.01
    # A loss is to be minimised, J to be maximised.
    np.testing.assert_allclose(c, -STORED[f"{stored}/gradient"], rtol=0, atol=1e-6)
    if with_value:
        gated = gate(log_ratio, advantage, layout, **given)
        value = fj.surrogate(gated, advantage, layout, **weighting).value
        np.testing.assert_allclose(value, -STORED[f"{stored}/loss"], rtol=0, atol=1e-6)


def test_every_stored_loss_is_compared():
    stored = {name.removesuffix("/loss") for name in STORED if name.endswith("/loss")}
    fiberpo = {name for name in stored if name.startswith("torch/fiberpo_")}
    by_hand = {TOKEN_SUM, TRL_EMPTY_ROW, VERL_EMPTY_ROW}
    assert stored == TRANSLATIONS.keys() | fiberpo | by_hand and len(fiberpo) == 6


@pytest.mark.parametrize("name", TRANSLATIONS)
def test_losses_of_other_frameworks_by_their_names_here(name):
    (preset, options), weighting = TRANSLATIONS[name]
    compare(name, fj.gate(preset, **options), weighting, preset not in SCORE_WEIGHTS)


def test_a_sum_over_tokens_is_the_total_of_the_mean():
    log_prob, old_log_prob, advantage, layout = arrays()
    gated = fj.gate(DUAL[0], **DUAL[1])(log_prob - old_log_prob, advantage, layout)
    total = fj.surrogate(gated, advantage, layout, weighting="token").total
    np.testing.assert_allclose(total, -STORED[f"{TOKEN_SUM}/loss"], atol=1e-5)


@pytest.mark.parametrize("pessimistic", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_fiberpo_in_another_frameworks_autograd(depth, pessimistic):
    preset = ("fiberpo", "fiberpo_group", "fiberpo_domain")[depth - 1]
    suffix = "_pessimistic" if pessimistic else ""
    names = ("trajectory", "group", "domain")[:depth]
    options = {name: common.FIBERPO[name] for name in (*names, "epsilon")}
    compare(f"torch/fiberpo_{depth}{suffix}", fj.gate(preset + suffix, **options), TRAJECTORY)


def test_metrics_of_other_frameworks_by_their_names_here():
    log_prob, old_log_prob, advantage, layout = arrays()
    log_ratio = log_prob - old_log_prob

    def logged(gate, advantage=advantage):
        metrics = fj.diagnostics.gate_metrics(
            gate.structure, log_ratio, advantage, layout, gate.budgets
        )
        return {name: float(reduction.value) for name, reduction in metrics.items()}

    verl = "verl/vanilla/token-mean/metrics/actor/"
    got, with_dual_clip = logged(fj.gate("ppo", **CLIP)), logged(fj.gate(DUAL[0], **DUAL[1]))
    assert got["actor/ppo_kl"] == pytest.approx(STORED[f"{verl}ppo_kl"], abs=1e-6)
    clipped, lower = STORED[f"{verl}pg_clipfrac"], STORED[f"{verl}pg_clipfrac_lower"]
    assert clipped > 0 and lower > 0
    assert got["actor/pg_clipfrac"] == pytest.approx(clipped, abs=1e-6)
    assert with_dual_clip["actor/pg_clipfrac"] == pytest.approx(clipped + lower, abs=1e-6)
    region = STORED["trl/grpo/metrics/clip_ratio/region_mean"]
    assert got["actor/pg_clipfrac"] == pytest.approx(region, abs=1e-6)
    # A closed gate counts whatever the advantage; theirs do not count a zero.
    assert logged(fj.gate("ppo", **CLIP), 0 * advantage)["actor/pg_clipfrac"] > 0


def test_a_row_without_tokens_counts_in_trl_only():
    data = common.make()
    data["mask"][-1] = False
    log_prob, old_log_prob, advantage, layout = arrays(data)
    value = {}
    for name, (preset, options) in {"trl": PPO, "verl": DUAL}.items():
        gated = fj.gate(preset, **options)(log_prob - old_log_prob, advantage, layout)
        value[name] = -fj.surrogate(gated, advantage, layout).value
    kept = (common.ROWS - 1) / common.ROWS
    np.testing.assert_allclose(value["verl"], STORED[f"{VERL_EMPTY_ROW}/loss"], atol=1e-6)
    np.testing.assert_allclose(value["trl"] * kept, STORED[f"{TRL_EMPTY_ROW}/loss"], atol=1e-6)


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo"])
def test_advantages_of_other_frameworks(name):
    estimator, groups = fj.advantages.ESTIMATORS[name], common.ROWS // common.SAMPLES
    reward = common.reward().astype(np.float32)
    got = np.asarray(estimator(reward, common.GROUP, groups))
    np.testing.assert_allclose(got, STORED[f"verl/advantage/{name}"], rtol=1e-5, atol=1e-5)
    if name == "grpo":
        np.testing.assert_allclose(got, STORED["advantage"], rtol=1e-5, atol=1e-5)
    assert np.all(got[common.SAMPLES : 2 * common.SAMPLES] == 0)  # Equal rewards.
    # A group of one has no advantage here; verl gives it its reward.
    alone = estimator(reward, np.arange(common.ROWS), common.ROWS)
    assert not np.any(alone)
    np.testing.assert_allclose(STORED["verl/advantage_of_groups_of_one"], reward, atol=1e-5)


@pytest.fixture(scope="module")
def task():
    return functools.partial(run_blocks, "The task")


def test_a_flax_loop_learns(task):
    scope = task("Flax")
    assert len(scope["rewards"]) == 20


def test_an_equinox_loop_learns(task):
    pytest.importorskip("equinox")
    assert len(task("Equinox")["rewards"]) == 20
