"""Configs of gates: presets, overrides from the command line, and refusals that say why."""

import copy
import dataclasses
import sys

import chex
import jax
import numpy as np
import pytest
from absl import flags
from cases import LEVELS, hierarchy
from ml_collections import config_dict
from ml_collections.config_flags import config_flags

from configs.gates import PRESETS, get_gate
from fiberjax import diagnostics, gates
from fiberjax.gates import tokenwise
from fiberjax.gates.hierarchy import Hierarchy, clipped, fgh, inspect
from fiberjax.layout import make_layout


@pytest.mark.parametrize("name", PRESETS)
def test_presets_build(name):
    gate, budgets = gates.from_config(get_gate(name), LEVELS)
    assert hash(gate) == hash(gates.from_config(get_gate(name), LEVELS)[0])
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(budgets))


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "importance"])
def test_a_preset_names_every_option_of_its_gate(name):
    """What a config does not name cannot be overridden on a command line."""
    spec = gates.GATES[PRESETS[name]["name"]]
    names = {*spec.budgets, *spec.options} - {"budgets"}
    if not spec.score_weight:
        names |= {"pessimistic", "dual_clip", "recovery"}
    assert names <= set(get_gate(name))


def test_presets_are_copies_and_unknown_ones_are_named():
    get_gate("ppo").clip_low = 9.0
    assert get_gate("ppo").clip_low == 0.2
    with pytest.raises(ValueError, match=r"'pppo' does not exist.*'ppo'"):
        get_gate("pppo")


def test_presets_are_data_without_jax():
    import subprocess

    code = "import sys, configs.gates; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    ("argument", "want"),
    [("0.2", (0.2, 0.2)), ("(0.1,0.08)", (0.1, 0.08)), ("1", (1, 1)), ("0.1,0.3", (0.1, 0.3))],
)
def test_a_budget_from_the_command_line(argument, want, monkeypatch):
    values = flags.FlagValues()
    argv = [
        "main",
        f"--config.gate.levels.trajectory.budget={argument}",
        "--config.gate.dual_clip=3",
        "--config.gate.deviation=ratio",
        "--config.gate.alpha=0.5",
    ]
    # config_flags finds its overrides on the process's command line.
    monkeypatch.setattr(sys, "argv", argv)
    config = config_dict.ConfigDict({"gate": get_gate("fiberpo_domain")})
    holder = config_flags.DEFINE_config_dict("config", config, flag_values=values)
    values(argv)
    gate, budgets = gates.from_config(holder.value.gate, LEVELS)
    np.testing.assert_allclose(budgets["budgets"]["trajectory"], want, rtol=1e-6)
    assert (budgets["dual_clip"], budgets["alpha"]) == (3, 0.5)
    assert dict(gate.options)["deviation"] == "ratio"


def without(config, *path):
    config = copy.deepcopy(config)
    inner = config
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return config


def with_budget(value):
    config = hierarchy(2)
    config["levels"] = {**config["levels"], "group": {"budget": value}}
    return config


GROUP = r"config\.gate\.levels\.group\.budget"
REFUSALS = [
    ({}, r"config\.gate\.name is missing.*fgh"),
    ({"name": "pp"}, r"config\.gate\.name = 'pp'.*'ppo'"),
    ({"name": "ppo", "clip_hi": 0.2}, r"config\.gate\.clip_hi = 0.2.*clip_high"),
    ({"name": "ppo", "clip_high": 0.0}, r"config\.gate\.clip_high = 0\.0.*above 0"),
    ({"name": "ppo", "clip_high": "0.2"}, r"config\.gate\.clip_high = '0\.2'"),
    ({"name": "ppo", "clip_high": True}, r"config\.gate\.clip_high = True"),
    ({"name": "ppo", "clip_high": None}, r"config\.gate\.clip_high = None"),
    ({"name": "minpro", "weight_cap": 0.5}, r"weight_cap = 0\.5: expected at least 1 \(ratio\)"),
    ({"name": "fipo", "influence_high": 0.5}, r"influence_high = 0\.5: expected at least 1"),
    ({"name": "ppo", "pessimistic": 1}, r"config\.gate\.pessimistic = 1.*False, True"),
    ({"name": "ppo", "dual_clip": 0.5}, r"config\.gate\.dual_clip = 0\.5.*above 1"),
    ({"name": "cispo", "pessimistic": True}, r"config\.gate\.pessimistic = True.*weight"),
    ({"name": "dppo_kl", "dual_clip": 3.0}, r"config\.gate\.dual_clip = 3\.0.*weight"),
    ({"name": "gspo", "level": "turn"}, r"config\.gate\.level = 'turn'.*'trajectory'"),
    (without(hierarchy(2), "order"), r"config\.gate\.order is missing.*trajectory"),
    (without(hierarchy(2), "levels"), r"config\.gate\.levels is missing"),
    (without(hierarchy(2), "levels", "group"), r"config\.gate\.levels\.group is missing"),
    ({**hierarchy(2), "order": "group"}, r"config\.gate\.order = 'group'.*tuple"),
    ({**hierarchy(2), "order": ("group", "trajectory")}, r"config\.gate\.order.*finest first"),
    ({**hierarchy(2), "order": ("trajectory", "turn")}, r"order names 'turn'.*'domain'"),
    ({**hierarchy(2), "order": ("trajectory",)}, r"(?s)config\.gate\.levels\.group is not in"),
    (hierarchy(2, name="fiberpo"), r"config\.gate\.order.*1 level"),
    (hierarchy(2, variant="exakt"), r"config\.gate\.variant = 'exakt'.*'exact'"),
    (with_budget(-0.1), GROUP + r" = -0\.1.*above 0"),
    (with_budget((0.1, 0.0)), GROUP),
    (with_budget((0.1, 0.2, 0.3)), GROUP + r".*pair"),
    (with_budget(()), GROUP),
    (with_budget("inf"), GROUP + r" = 'inf'"),
    (with_budget(float("nan")), GROUP + " must be finite; got nan"),
    (with_budget(float("inf")), GROUP + " must be finite; got inf"),
    (with_budget(1e-50), GROUP + " = 1e-50: .*finite and as float32"),
    (with_budget(None), GROUP + " = None"),
]


@pytest.mark.parametrize(("config", "message"), REFUSALS, ids=[m for _, m in REFUSALS])
def test_refusals_name_path_value_and_choices(config, message):
    for form in (config, config_dict.ConfigDict(config)):
        with pytest.raises(ValueError, match=message):
            gates.from_config(form, LEVELS)


def test_a_hierarchy_of_ones_own_logs_its_regimes():
    """What an entry says is asked, not which function it names."""

    def doubled(budget):
        return Hierarchy(budgets={"group": 2 * budget}, epsilon=0.1)

    def gate(log_ratio, advantage, layout, *, budget):
        return fgh(log_ratio, advantage, layout, doubled(budget))

    def own_clipped(log_ratio, advantage, layout, *, budget):
        return clipped(log_ratio, advantage, layout, doubled(budget))

    def own_inspect(log_ratio, advantage, layout, *, budget):
        return inspect(log_ratio, advantage, layout, doubled(budget))

    def metrics(spec):
        table = {**gates.GATES, "own": spec}
        built, budgets = gates.from_config({"name": "own"}, LEVELS, table=table)
        return diagnostics.gate_metrics(built, l, a, layout, budgets)

    layout = make_layout(np.ones((4, 3), bool), {"group": np.array([0, 0, 1, 1])})
    l, a = np.random.default_rng(0).normal(0, 0.2, (2, 4, 3)).astype(np.float32)
    budgets = {"budget": gates.Budget(0.02, "nats")}
    spec = gates.GateSpec(gate, tokenwise.importance, own_clipped, budgets)
    assert not any("regime" in name for name in metrics(spec))
    found = metrics(dataclasses.replace(spec, inspect=own_inspect))
    config = {
        "name": "fgh",
        "epsilon": 0.1,
        "order": ("group",),
        "levels": {"group": {"budget": 0.04}},
    }
    known, budgets = gates.from_config(config, ("trajectory", "group"))
    chex.assert_trees_all_close(
        found, diagnostics.gate_metrics(known, l, a, layout, budgets), rtol=1e-6
    )
    assert "gate/channel/group/plus" in found and "gate/regime/G-I" in found


def test_gates_that_need_old_log_probs_say_so():
    gate, budgets = gates.from_config({"name": "dppo_tv"}, LEVELS)
    assert gate.spec.needs_old_log_prob
    with pytest.raises(ValueError, match=r"'dppo_tv' needs old_log_prob"):
        gate(np.zeros(3), np.zeros(3), None, budgets)
