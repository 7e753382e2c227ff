"""Gates: what a method makes of the importance ratios, `G(r)`, in `J = Σᵢ μᵢ G(r)ᵢ Âᵢ`.

Every gate is a pure function

    gate(log_ratio, advantage, layout, *, budgets and options) -> gated_ratio

of arrays `[B, T]` or `[N]`; those of DPPO and CPPO also take `old_log_prob`, and a hierarchy's
budgets and options are one value, a `Hierarchy` or a `SilentHierarchy`. Read them in this order:

    channels    what gates compute with
    tokenwise   PPO and its kin
    score       CISPO, SAPO, DPPO
    sequence    GSPO, GMPO, VESPO, TOPR
    masks       M2PO, TRM, OPSM, TVPO: a token is kept or dropped
    prefix      CPPO, PNPO, MinPRO, FIPO: what stands before a token, or after it
    apc         a shared budget without constraints, where FiberPO starts
    aggregate   one drift and its budget
    bundle      drift pushed up and down a tower of cells
    scales      what the budgets of its levels are measured in
    hierarchy   FiberPO and FGH
    levelwise   its levels with advantages of their own
    silent      a hierarchy whose closed levels leave no push
    compose     operators over any gate

`GATES` is the table of names, and `from_config` builds any of them from a config.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from fiberjax.bounds import named
from fiberjax.gates import (
    aggregate,
    apc,
    bundle,
    channels,
    compose,
    config,
    hierarchy,
    levelwise,
    masks,
    prefix,
    scales,
    score,
    sequence,
    silent,
    tokenwise,
)
from fiberjax.gates.config import (
    BY_LEVEL,
    LEVEL,
    NAMED,
    TOKEN,
    Budget,
    Budgets,
    Gate,
    GateSpec,
    Option,
)
from fiberjax.layout import TRAJECTORY

__all__ = [
    "GATES",
    "Budget",
    "Budgets",
    "Gate",
    "GateSpec",
    "Option",
    "aggregate",
    "apc",
    "bundle",
    "channels",
    "compose",
    "config",
    "from_config",
    "hierarchy",
    "levelwise",
    "masks",
    "prefix",
    "scales",
    "score",
    "sequence",
    "silent",
    "tokenwise",
]

_CLIP = {
    "clip_low": Budget(0.2, "ratio", width=True),
    "clip_high": Budget(0.2, "ratio", width=True),
}
_SEQUENCE_CLIP = {
    "clip_low": Budget(3e-4, "ratio", width=True),
    "clip_high": Budget(4e-4, "ratio", width=True),
}
_LEVEL = {"level": LEVEL}
_PPO = GateSpec(tokenwise.ppo, tokenwise.importance, tokenwise.ppo_clipped, _CLIP, couples=TOKEN)
_DAPO = {
    "clip_low": Budget(0.2, "ratio", width=True),
    "clip_high": Budget(0.28, "ratio", width=True),
}
_HIERARCHY = GateSpec(
    hierarchy.fgh,
    tokenwise.importance,
    hierarchy.clipped,
    {
        "budgets": BY_LEVEL,
        "epsilon": Budget(0.05, "nats", width=True),
        "epsilon_negative": Budget(None, "nats", width=True),
        "alpha": Budget(None, "exponent of the base weight"),
        "upper_negative": Budget(None, "nats", width=True),
    },
    {
        "variant": Option("published", bundle.VARIANTS),
        "base_gate": Option("rollback", tuple(aggregate.BASE_GATES)),
        "lift": Option("plain", bundle.LIFTS),
        "signs": Option("token", bundle.SIGNS),
        "deviation": Option("log", hierarchy.DEVIATIONS),
        "budget_scale": Option("none", hierarchy.SCALES),
    },
    dual_clip_past=True,
    settings=hierarchy.Hierarchy,
    inspect=hierarchy.inspect,
    couples=NAMED,
)

GATES: Mapping[str, GateSpec] = {
    "importance": GateSpec(
        tokenwise.importance, tokenwise.importance, tokenwise.never, couples=TOKEN
    ),
    "clip": GateSpec(
        tokenwise.clip, tokenwise.importance, tokenwise.clip_clipped, _CLIP, couples=TOKEN
    ),
    "ppo": _PPO,
    "grpo": _PPO,
    "dapo": GateSpec(
        tokenwise.ppo, tokenwise.importance, tokenwise.ppo_clipped, _DAPO, couples=TOKEN
    ),
    "gspo": GateSpec(
        sequence.gspo,
        sequence.sequence_ratio,
        sequence.gspo_clipped,
        _SEQUENCE_CLIP,
        _LEVEL,
        limit_options=("level",),
        couples=NAMED,
    ),
    "gspo_token": GateSpec(
        sequence.gspo_token,
        sequence.sequence_ratio_token,
        sequence.gspo_clipped,
        _SEQUENCE_CLIP,
        _LEVEL,
        limit_options=("level",),
        couples=NAMED,
    ),
    "gmpo": GateSpec(
        sequence.gmpo,
        sequence.sequence_ratio,
        sequence.gmpo_clipped,
        {"clip_low": Budget(0.4, "nats", width=True), "clip_high": Budget(0.4, "nats", width=True)},
        _LEVEL,
        limit_options=("level",),
        couples=NAMED,
    ),
    "cispo": GateSpec(
        score.cispo,
        tokenwise.importance,
        tokenwise.clip_clipped,
        {
            "clip_low": Budget(1.0, "ratio", width=True),
            "clip_high": Budget(4.0, "ratio", width=True),
        },
        score_weight=True,
        couples=TOKEN,
    ),
    "sapo": GateSpec(
        score.sapo,
        tokenwise.importance,
        score.sapo_clipped,
        {
            "temperature_positive": Budget(1.0, "one over a ratio"),
            "temperature_negative": Budget(1.05, "one over a ratio"),
        },
        score_weight=True,
        couples=TOKEN,
    ),
    "dppo_tv": GateSpec(
        score.dppo_tv,
        tokenwise.importance,
        score.dppo_tv_clipped,
        {
            "delta_low": Budget(0.2, "probability", width=True),
            "delta_high": Budget(0.2, "probability", width=True),
            "weight_cap": Budget(20.0, "ratio", least=1),
        },
        score_weight=True,
        needs_old_log_prob=True,
        couples=TOKEN,
    ),
    "dppo_kl": GateSpec(
        score.dppo_kl,
        tokenwise.importance,
        score.dppo_kl_clipped,
        {"delta": Budget(0.05, "nats", width=True), "weight_cap": Budget(20.0, "ratio", least=1)},
        score_weight=True,
        needs_old_log_prob=True,
        couples=TOKEN,
    ),
    "vespo": GateSpec(
        sequence.vespo,
        tokenwise.importance,
        sequence.vespo_clipped,
        {
            "k_positive": Budget(2.0, "power of a ratio"),
            "lambda_positive": Budget(3.0, "one over a ratio"),
            "k_negative": Budget(3.0, "power of a ratio"),
            "lambda_negative": Budget(2.0, "one over a ratio"),
        },
        _LEVEL,
        score_weight=True,
        couples=NAMED,
    ),
    "topr": GateSpec(
        sequence.topr,
        tokenwise.importance,
        sequence.topr_clipped,
        {"weight_cap": Budget(1.0, "ratio", least=1)},
        {**_LEVEL, "form": Option("product", sequence.FORMS)},
        score_weight=True,
        couples=NAMED,
    ),
    "m2po": GateSpec(
        masks.m2po,
        tokenwise.importance,
        masks.m2po_clipped,
        {"second_moment": Budget(0.04, "nats squared")},
        score_weight=True,
    ),
    "trm": GateSpec(
        masks.trm,
        tokenwise.importance,
        masks.trm_clipped,
        {"largest": Budget(0.1, "nats", width=True), "mean": Budget(0.002, "nats", width=True)},
        _LEVEL,
        score_weight=True,
        couples=NAMED,
    ),
    "opsm": GateSpec(
        masks.opsm,
        tokenwise.importance,
        masks.opsm_clipped,
        {"delta": Budget(0.5, "nats", width=True), **_CLIP},
        _LEVEL,
        score_weight=True,
        couples=NAMED,
    ),
    "tvpo": GateSpec(
        masks.tvpo,
        tokenwise.importance,
        masks.tvpo_clipped,
        {"delta": Budget(0.2, "mean deviation", width=True)},
        _LEVEL,
        score_weight=True,
        couples=NAMED,
    ),
    "cppo": GateSpec(
        prefix.cppo,
        tokenwise.importance,
        prefix.cppo_clipped,
        {
            "delta": Budget(0.15, "probability", width=True),
            "prefix_delta": Budget(0.02, "probability", width=True),
            "last_weight": Budget(0.8, "weight, the first token's is 1"),
        },
        score_weight=True,
        needs_old_log_prob=True,
        couples=TRAJECTORY,
    ),
    "pnpo": GateSpec(
        prefix.pnpo, prefix.prefix_ratio, prefix.pnpo_clipped, _CLIP, couples=TRAJECTORY
    ),
    "minpro": GateSpec(
        prefix.minpro,
        prefix.minimum_ratio,
        prefix.minpro_clipped,
        {"weight_cap": Budget(5.0, "ratio", least=1)},
        score_weight=True,
        couples=TRAJECTORY,
    ),
    "fipo": GateSpec(
        prefix.fipo,
        tokenwise.importance,
        prefix.fipo_clipped,
        {
            "half_life": Budget(32.0, "tokens"),
            "influence_low": Budget(1.0, "ratio"),
            "influence_high": Budget(1.2, "ratio", least=1),
            "ratio_cap": Budget(10.0, "ratio"),
            "ratio_safe": Budget(4.0, "ratio"),
            **_DAPO,
        },
        score_weight=True,
        couples=TRAJECTORY,
    ),
    "apc": GateSpec(
        apc.apc,
        tokenwise.importance,
        apc.clipped,
        {"delta": Budget(0.1, "mean deviation, or nats", width=True)},
        {"level": config.UNIT, "form": Option("ratio", apc.FORMS)},
        couples=NAMED,
    ),
    "fiberpo": dataclasses.replace(_HIERARCHY, depth=1),
    "fiberpo_domain": dataclasses.replace(_HIERARCHY, depth=3),
    "fgh": _HIERARCHY,
    "silent": GateSpec(
        silent.silent,
        silent.limit,
        silent.clipped,
        {
            "budgets": BY_LEVEL,
            "epsilon": Budget(0.2, "nats", width=True),
            "epsilon_negative": Budget(None, "nats", width=True),
            "weight_cap": Budget(3.0, "ratio", least=1),
        },
        {
            "signal": Option("drift", silent.SIGNALS),
            "budget_scale": Option("none", scales.SCALES),
            "weight": Option("token", silent.WEIGHTS),
        },
        limit_options=("weight",),
        score_weight=True,
        settings=silent.SilentHierarchy,
        held=silent.held,
        couples=NAMED,
    ),
}
"""Every gate by name, with the defaults and units of its budgets and options."""


def from_config(
    gate: Mapping[str, Any],
    layout_levels: Sequence[str],
    *,
    table: Mapping[str, GateSpec] = GATES,
    path: str = "config.gate",
) -> tuple[Gate, Budgets]:
    """Builds a gate from a config; a static, hashable `Gate` and its traced budgets.

    Args:
      gate: a ConfigDict or dict with the gate's `name`, its budgets and options. A hierarchy lists
        its levels in `order`, finest first, with `levels.<level>.budget` in nats for each: a
        number, or a pair plus and minus. Keys left out take the table's defaults.
      layout_levels: the levels of the layouts the gate will see, finest first.
      table: the gates to choose from; `{**GATES, "mine": GateSpec(...)}` adds one.
      path: of the config, for errors.

    Returns:
      The gate, and a pytree of float32 arrays, its budgets.

    Raises:
      ValueError: a key is unknown, missing or mistyped, a budget is not a positive number, or a
        level does not exist or lacks its budget; names the path, the value and the choices.

    >>> gate, budgets = from_config({"name": "ppo", "clip_low": 0.1}, ("trajectory",))
    >>> gate.name, round(float(budgets["clip_low"]), 3), round(float(budgets["clip_high"]), 3)
    ('ppo', 0.1, 0.2)
    """
    with named(path):
        return config.build(table, gate, layout_levels, path)
