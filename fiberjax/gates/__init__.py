"""Gates: what a method makes of the importance ratios, `G(r)`, in `J = Σᵢ μᵢ G(r)ᵢ Âᵢ`.

Every gate is a pure function

    gate(log_ratio, advantage, layout, *, budgets and options) -> gated_ratio

of arrays `[B, T]` or `[N]`. Read them in this order: `channels` (what is computed with),
`tokenwise` (PPO and its kin), `sequence` (GSPO), `apc` (where hierarchies come from), `aggregate`
(one drift and its budget), `bundle` (drift pushed up and down a tower of cells), `hierarchy`
(FiberPO and FGH), `compose` (operators over any gate). `GATES` is the table of names, and
`from_config` builds any of them from a config.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from fiberjax.gates import aggregate, bundle, config, hierarchy, sequence, tokenwise
from fiberjax.gates.config import BY_LEVEL, LEVEL, Budget, Budgets, Gate, GateSpec, Option

__all__ = ["GATES", "Budgets", "Gate", "GateSpec", "from_config"]

_CLIP = {"clip_low": Budget(0.2, "ratio"), "clip_high": Budget(0.2, "ratio")}
_SEQUENCE_CLIP = {"clip_low": Budget(3e-4, "ratio"), "clip_high": Budget(4e-4, "ratio")}
_LEVEL = {"level": LEVEL}
_FIBER = {"epsilon": Budget(0.05, "nats"), "epsilon_negative": Budget(None, "nats")}
_BUNDLE = {
    "variant": Option("published", bundle.VARIANTS),
    "base_gate": Option("rollback", tuple(aggregate.BASE_GATES)),
}
_PPO = GateSpec(tokenwise.ppo, tokenwise.importance, tokenwise.ppo_clipped, _CLIP)
_DAPO = {"clip_low": Budget(0.2, "ratio"), "clip_high": Budget(0.28, "ratio")}

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
    "fgh": GateSpec(
        hierarchy.fgh,
        tokenwise.importance,
        hierarchy.clipped,
        {**_FIBER, "budgets": BY_LEVEL},
        _BUNDLE,
    ),
}
"""Every gate by name, with the defaults and units of its budgets and options."""


def from_config(gate: Mapping[str, Any], layout_levels: Sequence[str]) -> tuple[Gate, Budgets]:
    """Builds a gate from a config; a static, hashable `Gate` and its traced budgets.

    Args:
      gate: a ConfigDict or dict with the gate's `name`, its budgets and options. A hierarchy lists
        its levels in `order`, finest first, with `levels.<level>.budget` in nats for each: a
        number, or a pair plus and minus. Keys left out take the table's defaults.
      layout_levels: the levels of the layouts the gate will see, finest first.

    Returns:
      The gate, and a pytree of float32 arrays, its budgets.

    Raises:
      ValueError: a key is unknown, missing or mistyped, a budget is not a positive number, or a
        level does not exist or lacks its budget; names the path, the value and the choices.

    >>> gate, budgets = from_config({"name": "ppo", "clip_low": 0.1}, ("trajectory",))
    >>> gate.name, round(float(budgets["clip_low"]), 3), round(float(budgets["clip_high"]), 3)
    ('ppo', 0.1, 0.2)
    """
    return config.build(GATES, gate, layout_levels)
