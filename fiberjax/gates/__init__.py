"""Gates: what a method makes of the importance ratios, `G(r)`, in `J = Σᵢ μᵢ G(r)ᵢ Âᵢ`.

Every gate is a pure function

    gate(log_ratio, advantage, layout, *, budgets and options) -> gated_ratio

of arrays `[B, T]` or `[N]`; those of DPPO also take `old_log_prob`, and a hierarchy's budgets and
options are one value, a `Hierarchy` or a `SilentHierarchy`. Read them in this order:

    channels    what gates compute with
    tokenwise   PPO and its kin
    score       CISPO, SAPO, DPPO
    sequence    GSPO, GMPO
    apc         a shared budget without constraints, where FiberPO starts
    aggregate   one drift and its budget
    bundle      drift pushed up and down a tower of cells
    hierarchy   FiberPO and FGH
    silent      a hierarchy whose closed levels leave no push
    compose     operators over any gate

`GATES` is the table of names, and `from_config` builds any of them from a config.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from fiberjax.gates import (
    aggregate,
    apc,
    bundle,
    channels,
    compose,
    config,
    hierarchy,
    score,
    sequence,
    silent,
    tokenwise,
)
from fiberjax.gates.config import BY_LEVEL, LEVEL, Budget, Budgets, Gate, GateSpec, Option

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
    "score",
    "sequence",
    "silent",
    "tokenwise",
]

_CLIP = {"clip_low": Budget(0.2, "ratio"), "clip_high": Budget(0.2, "ratio")}
_SEQUENCE_CLIP = {"clip_low": Budget(3e-4, "ratio"), "clip_high": Budget(4e-4, "ratio")}
_LEVEL = {"level": LEVEL}
_PPO = GateSpec(tokenwise.ppo, tokenwise.importance, tokenwise.ppo_clipped, _CLIP)
_DAPO = {"clip_low": Budget(0.2, "ratio"), "clip_high": Budget(0.28, "ratio")}
_HIERARCHY = GateSpec(
    hierarchy.fgh,
    tokenwise.importance,
    hierarchy.clipped,
    {
        "budgets": BY_LEVEL,
        "epsilon": Budget(0.05, "nats"),
        "epsilon_negative": Budget(None, "nats"),
    },
    {
        "variant": Option("published", bundle.VARIANTS),
        "base_gate": Option("rollback", tuple(aggregate.BASE_GATES)),
        "lift": Option("plain", bundle.LIFTS),
    },
    dual_clip_past=True,
    settings=hierarchy.Hierarchy,
    inspect=hierarchy.inspect,
)

GATES: Mapping[str, GateSpec] = {
    "importance": GateSpec(tokenwise.importance, tokenwise.importance, tokenwise.never),
    "clip": GateSpec(tokenwise.clip, tokenwise.importance, tokenwise.clip_clipped, _CLIP),
    "ppo": _PPO,
    "grpo": _PPO,
    "dapo": GateSpec(tokenwise.ppo, tokenwise.importance, tokenwise.ppo_clipped, _DAPO),
    "gspo": GateSpec(
        sequence.gspo,
        sequence.sequence_ratio,
        sequence.gspo_clipped,
        _SEQUENCE_CLIP,
        _LEVEL,
        limit_options=("level",),
    ),
    "gspo_token": GateSpec(
        sequence.gspo_token,
        sequence.sequence_ratio_token,
        sequence.gspo_clipped,
        _SEQUENCE_CLIP,
        _LEVEL,
        limit_options=("level",),
    ),
    "gmpo": GateSpec(
        sequence.gmpo,
        sequence.sequence_ratio,
        sequence.gmpo_clipped,
        {"clip_low": Budget(0.4, "nats"), "clip_high": Budget(0.4, "nats")},
        _LEVEL,
        limit_options=("level",),
    ),
    "cispo": GateSpec(
        score.cispo,
        tokenwise.importance,
        tokenwise.clip_clipped,
        {"clip_low": Budget(1.0, "ratio"), "clip_high": Budget(4.0, "ratio")},
        score_weight=True,
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
    ),
    "dppo_tv": GateSpec(
        score.dppo_tv,
        tokenwise.importance,
        score.dppo_tv_clipped,
        {
            "delta_low": Budget(0.2, "probability"),
            "delta_high": Budget(0.2, "probability"),
            "weight_cap": Budget(20.0, "ratio"),
        },
        score_weight=True,
        needs_old_log_prob=True,
    ),
    "dppo_kl": GateSpec(
        score.dppo_kl,
        tokenwise.importance,
        score.dppo_kl_clipped,
        {"delta": Budget(0.05, "nats"), "weight_cap": Budget(20.0, "ratio")},
        score_weight=True,
        needs_old_log_prob=True,
    ),
    "apc": GateSpec(
        apc.apc,
        tokenwise.importance,
        apc.clipped,
        {"delta": Budget(0.1, "mean deviation, or nats")},
        {"level": config.UNIT, "form": Option("ratio", apc.FORMS)},
    ),
    "fiberpo": dataclasses.replace(_HIERARCHY, depth=1),
    "fiberpo_domain": dataclasses.replace(_HIERARCHY, depth=3),
    "fgh": _HIERARCHY,
    "silent": GateSpec(
        silent.silent,
        tokenwise.importance,
        silent.clipped,
        {
            "budgets": BY_LEVEL,
            "epsilon": Budget(0.2, "nats"),
            "epsilon_negative": Budget(None, "nats"),
            "weight_cap": Budget(3.0, "ratio"),
        },
        {
            "signal": Option("drift", silent.SIGNALS),
            "budget_scale": Option("none", silent.SCALES),
        },
        score_weight=True,
        settings=silent.SilentHierarchy,
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
    return config.build(table, gate, layout_levels, path)
