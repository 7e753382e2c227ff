"""Gate presets: every method with budgets of its own, as plain data that imports without jax.

    fj.gate("fiberpo_domain", trajectory=0.2, epsilon=0.1)          from arrays
    config.gate = get_gate("fiberpo_domain")                        in a config
    --config.gate.levels.trajectory.budget=0.2 --config.gate.epsilon=0.1

Budgets of trajectories, groups and domains are nats, a number or a pair (plus, minus); `epsilon` is
nats too; `clip_low` and `clip_high` are distances of a ratio from 1. A number that is None is off.
`pessimistic`, `dual_clip` and `recovery` are the operators of `fiberjax.gates.compose`. The values
come from the papers named at each preset, or are ours where it says so.
"""

import copy
from typing import Any

DEFAULT = "silent_sequence"
"""What shipped configs take: the gate that held best where policies drift; see `docs/study.md`."""


def step_share(name: str) -> str:
    """The `training.step_share` that a preset is used with.

    Steps as long as what is left open belong to a silent hierarchy, and are ours; other methods
    take whole steps, as they are published.

    Raises:
      ValueError: there is no preset of that name; names the choices.

    >>> step_share("silent_sequence"), step_share("gspo")
    ('importance', 'none')
    """
    return "importance" if preset(name)["name"] == "silent" else "none"


def preset(name: str) -> dict[str, Any]:
    """A preset by name, as `fiberjax.gates.from_config` takes it; a copy that may be changed.

    Raises:
      ValueError: there is none of that name; names the choices.

    >>> preset("gspo")["clip_high"]
    0.0004
    """
    if name not in PRESETS:
        raise ValueError(f"gate preset {name!r} does not exist; choose from {tuple(PRESETS)}")
    return copy.deepcopy(PRESETS[name])


def _hierarchy(**levels: tuple[float, float]) -> dict[str, Any]:
    """A hierarchy with its levels finest first, and their budgets (plus, minus) in nats."""
    return dict(
        name="fgh",
        pessimistic=False,
        dual_clip=None,
        recovery=False,
        variant="published",
        base_gate="rollback",
        lift="plain",
        signs="token",
        deviation="log",
        budget_scale="none",
        alpha=None,
        epsilon=0.05,
        epsilon_negative=None,
        upper_negative=None,
        order=tuple(levels),
        levels={level: dict(budget=budget) for level, budget in levels.items()},
    )


def _clip(name: str, low: float, high: float) -> dict[str, Any]:
    """A gate that clips ratios at `1 − low` and `1 + high`."""
    return dict(
        name=name,
        pessimistic=False,
        dual_clip=None,
        recovery=False,
        clip_low=low,
        clip_high=high,
    )


def _apc(delta: float, level: str, form: str) -> dict[str, Any]:
    """A stage of the APC chain; meant for the token weighting."""
    return dict(
        name="apc",
        pessimistic=False,
        dual_clip=None,
        recovery=False,
        delta=delta,
        level=level,
        form=form,
    )


def _silent(
    *levels: str, budget: float = 4e-4, signal: str = "drift", weight: str = "token"
) -> dict[str, Any]:
    """A silent hierarchy, one budget at every level, nats: GSPO's upper bound, or one tuned."""
    return dict(
        name="silent",
        epsilon=0.2,
        epsilon_negative=None,
        weight_cap=3.0,
        signal=signal,
        budget_scale="none",
        weight=weight,
        order=levels,
        levels={level: dict(budget=(budget, budget)) for level in levels},
    )


# Ours, to start tuning from: the minus channel is smaller, since the bias of a KL pushes mass down,
# coarser levels are tighter, and the token's own budget is tightest of all.
_TRAJECTORY, _GROUP, _DOMAIN = (0.11, 0.09), (0.06, 0.05), (0.03, 0.025)

PRESETS: dict[str, dict[str, Any]] = {
    "importance": dict(name="importance", pessimistic=False, dual_clip=None, recovery=False),
    # The plain clip, whatever the sign of the advantage: what PPO is the pessimistic form of.
    "clip": _clip("clip", 0.2, 0.2),
    # Fibration Policy Optimization (2603.08239) and JoyAI-LLM Flash (2604.03044), as published.
    "fiberpo": _hierarchy(trajectory=_TRAJECTORY),
    "fiberpo_group": _hierarchy(trajectory=_TRAJECTORY, group=_GROUP),
    "fiberpo_domain": _hierarchy(trajectory=_TRAJECTORY, group=_GROUP, domain=_DOMAIN),
    # Proximal Policy Optimization (1707.06347) and GRPO (2402.03300).
    "ppo": _clip("ppo", 0.2, 0.2),
    "grpo": _clip("grpo", 0.2, 0.2),
    # DAPO (2503.14476): the upper bound is looser, so that rare tokens can grow.
    "dapo": _clip("dapo", 0.2, 0.28),
    # GSPO (2507.18071): the ratio of a whole trajectory hardly moves, hence the tiny bounds.
    "gspo": _clip("gspo", 3e-4, 4e-4) | dict(level="trajectory"),
    "gspo_token": _clip("gspo_token", 3e-4, 4e-4) | dict(level="trajectory"),
    # GMPO (2507.20673): its clip range is nats, (e^-0.4, e^0.4) as a ratio.
    "gmpo": _clip("gmpo", 0.4, 0.4) | dict(level="trajectory"),
    # CISPO (2506.13585) leaves the lower side free; the upper bound of 5 is a common choice.
    "cispo": dict(name="cispo", clip_low=1.0, clip_high=4.0),
    # SAPO (2511.20347): temperatures, one over a ratio.
    "sapo": dict(name="sapo", temperature_positive=1.0, temperature_negative=1.05),
    # DPPO (2602.04879): probabilities for the total variation, nats for the KL.
    "dppo_tv": dict(name="dppo_tv", delta_low=0.2, delta_high=0.2, weight_cap=20.0),
    "dppo_kl": dict(name="dppo_kl", delta=0.05, weight_cap=20.0),
    # CPPO (2606.10968): dense models; of mixtures of experts `delta` is .2.
    "cppo": dict(name="cppo", delta=0.15, prefix_delta=0.02, last_weight=0.8),
    # PNPO (2608.01418) and MinPRO (2601.22718): the bounds are ours, PPO's and CISPO's.
    "pnpo": _clip("pnpo", 0.2, 0.2),
    "minpro": dict(name="minpro", weight_cap=5.0),
    # FIPO (2603.19835): half-life in tokens; DAPO's clip.
    "fipo": dict(
        name="fipo",
        half_life=32.0,
        influence_low=1.0,
        influence_high=1.2,
        ratio_cap=10.0,
        ratio_safe=4.0,
        clip_low=0.2,
        clip_high=0.28,
    ),
    # VESPO (2602.10693): meant for the ratio over the sampler, `config.training.edge = "direct"`.
    "vespo": dict(
        name="vespo",
        level="trajectory",
        k_positive=2.0,
        lambda_positive=3.0,
        k_negative=3.0,
        lambda_negative=2.0,
    ),
    # TOPR (2503.14286): a bad trajectory weighs at most as on-policy.
    "topr": dict(name="topr", level="trajectory", form="product", weight_cap=1.0),
    # LUSPO (2602.05261): GSPO with these bounds and `config.training.weighting = "constant"`, under
    # which trajectories weigh by their length.
    "luspo": _clip("gspo", 2e-3, 2.5e-3) | dict(level="trajectory"),
    # M2PO (2510.01161): nats squared, over the batch.
    "m2po": dict(name="m2po", second_moment=0.04),
    # TRM (2512.23075): nats, of one token and on average.
    "trm": dict(name="trm", level="trajectory", largest=0.1, mean=0.002),
    # OPSM (DeepSeek-V3.2, 2512.02556): the paper gives no bound; this is TRL's, nats a token.
    "opsm": dict(name="opsm", level="trajectory", delta=0.5, clip_low=0.2, clip_high=0.2),
    # TVPO (2603.01365): the bound is ours, the mean deviation of a ratio.
    "tvpo": dict(name="tvpo", level="trajectory", delta=0.2),
    # The derivation of FiberPO, stage by stage (2603.08239, section 3). `delta` is twice a total
    # variation: at γ = 0.99 TRPO's best radius (1 − γ)/(4γ) gives 2 × 0.002525.
    "apc_trpo": _apc(0.00505, "state", "ratio"),
    "apc": _apc(0.1, "state", "ratio"),
    "apc_log": _apc(0.1, "state", "log"),
    "apc_sequence": _apc(0.1, "trajectory", "log"),
}
# Ours: the gate may only lower a token's contribution, never reward drift.
PRESETS |= {
    f"{name}_pessimistic": PRESETS[name] | dict(pessimistic=True)
    for name in ("fiberpo", "fiberpo_group", "fiberpo_domain")
}
# Ours: trajectory × sign as base space, and a gate that holds at its budget instead of falling.
PRESETS["fiberpo_exact"] = PRESETS["fiberpo_pessimistic"] | dict(variant="exact")
PRESETS["fiberpo_hold"] = PRESETS["fiberpo_pessimistic"] | dict(base_gate="hold")
# Ours: a level over its budget leaves no push, and moving back is never closed.
PRESETS |= {
    "silent_trajectory": _silent("trajectory"),
    "silent_domain": _silent("trajectory", "group", "domain"),
    "silent_residual": _silent("trajectory", "group", "domain", signal="residual"),
    "silent_sequence": _silent("trajectory", "group", "domain", budget=4e-3, weight="trajectory"),
}
# Ours: the published hierarchy, but no cell is moved by what its siblings do.
PRESETS["fiberpo_domain_bounded"] = PRESETS["fiberpo_domain"] | dict(lift="bounded")
# The authors' own numbers: a budget δ of .4 halved between the channels, where their text asks for
# ε ≪ δ.
PRESETS["fiberpo_authors"] = _hierarchy(trajectory=(0.2, 0.2)) | dict(epsilon=0.2)
# The authors, in code since then: cells re-signed on their way up, over `r − 1`. Budgets are ours.
PRESETS["fiberpo_domain_resigned"] = PRESETS["fiberpo_domain"] | dict(
    signs="resigned", deviation="ratio"
)
