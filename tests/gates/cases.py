"""Every gate with budgets that bind, its loop-written reference, and a problem to run them on."""

import dataclasses
from typing import Any

import numpy as np
import reference

from fiberjax import gates
from fiberjax.layout import Layout, make_layout

LEVELS = ("trajectory", "group", "domain")


@dataclasses.dataclass(frozen=True)
class Problem:
    """Tokens in the flat arrangement, and where they stand in rows."""

    log_ratio: np.ndarray
    advantage: np.ndarray
    old_log_prob: np.ndarray
    trajectory: np.ndarray
    group: np.ndarray
    domain: np.ndarray
    state: np.ndarray

    @property
    def parents(self) -> dict[str, np.ndarray]:
        return {"group": self.group, "domain": self.domain}


def problem(
    seed: int = 0, scale: float = 0.2, tokens: int = 40, dtype: Any = np.float64
) -> Problem:
    """Eleven trajectories in five groups in two domains; advantages differ within trajectories."""
    rng = np.random.default_rng(seed)
    trajectories = 11
    trajectory = np.sort(np.r_[np.arange(trajectories), rng.integers(0, 11, tokens - 11)])
    return Problem(
        log_ratio=(rng.normal(0, scale, tokens)).astype(dtype),
        advantage=rng.normal(size=tokens).astype(dtype),
        old_log_prob=(-rng.exponential(1, tokens) - 1).astype(dtype),
        trajectory=trajectory,
        group=np.array([0, 0, 1, 1, 1, 2, 3, 3, 4, 4, 4]),
        domain=np.array([0, 0, 1, 1, 1]),
        state=rng.integers(0, 12, tokens),
    )


def flat(p: Problem) -> Layout:
    """The tokens end to end."""
    return make_layout(
        np.ones(p.trajectory.shape, bool), p.parents, cell_id=p.trajectory, state_id=p.state
    )


@dataclasses.dataclass(frozen=True)
class Case:
    """A gate's config and its reference; `levels` counts those of a hierarchy."""

    config: dict[str, Any]
    reference: Any
    state: bool = False

    def build(self):
        return gates.from_config(self.config, LEVELS)

    def expected(self, p: Problem) -> np.ndarray:
        config = {k: v for k, v in self.config.items() if k not in ("name", "pessimistic")}
        parents = [p.group, p.domain]
        if "order" in config:
            levels = config.pop("levels")
            pairs = [np.broadcast_to(levels[level]["budget"], 2) for level in config.pop("order")]
            config.pop("variant", None)
            config["budgets"] = pairs
        if self.config["name"] == "apc":
            level = config.pop("level")
            config["unit"] = p.state if level == "state" else p.trajectory
        if gates.GATES[self.config["name"]].needs_old_log_prob:
            config["old_log_prob"] = p.old_log_prob
        return self.reference(p.log_ratio, p.advantage, p.trajectory, parents, **config)


def hierarchy(depth: int, **options: Any) -> dict[str, Any]:
    budgets = {"trajectory": (0.11, 0.09), "group": (0.06, 0.05), "domain": 0.03}
    return {
        "name": "fgh",
        "epsilon": 0.1,
        "order": LEVELS[:depth],
        "levels": {level: {"budget": budgets[level]} for level in LEVELS[:depth]},
        **options,
    }


def silent(depth: int, **options: Any) -> dict[str, Any]:
    return hierarchy(depth, name="silent", weight_cap=1.3, **options)


CLIP = {"clip_low": 0.1, "clip_high": 0.15}
EXACT = {"variant": "exact"}

CASES: dict[str, Case] = {
    "importance": Case({"name": "importance"}, reference.importance),
    "clip": Case({"name": "clip", **CLIP}, reference.plain_clip),
    "ppo": Case({"name": "ppo", **CLIP}, reference.ppo),
    "grpo": Case({"name": "grpo", **CLIP}, reference.ppo),
    "dapo": Case({"name": "dapo", **CLIP}, reference.ppo),
    "gspo": Case({"name": "gspo", "clip_low": 0.02, "clip_high": 0.03}, reference.gspo),
    "gspo_token": Case({"name": "gspo_token", "clip_low": 0.02, "clip_high": 0.03}, reference.gspo),
    "gmpo": Case({"name": "gmpo", **CLIP}, reference.gmpo),
    "cispo": Case({"name": "cispo", **CLIP}, reference.plain_clip),
    "sapo": Case(
        {"name": "sapo", "temperature_positive": 1.0, "temperature_negative": 2.0}, reference.sapo
    ),
    "dppo_tv": Case(
        {"name": "dppo_tv", "delta_low": 0.02, "delta_high": 0.03, "weight_cap": 1.3},
        reference.dppo_tv,
    ),
    "dppo_kl": Case({"name": "dppo_kl", "delta": 0.003, "weight_cap": 1.3}, reference.dppo_kl),
    "vespo": Case(
        {
            "name": "vespo",
            "k_positive": 2.0,
            "lambda_positive": 3.0,
            "k_negative": 3.0,
            "lambda_negative": 2.0,
        },
        reference.vespo,
    ),
    "topr": Case({"name": "topr", "weight_cap": 1.1}, reference.topr),
    "m2po": Case({"name": "m2po", "second_moment": 0.03}, reference.m2po),
    "trm": Case({"name": "trm", "largest": 0.03, "mean": 0.03}, reference.trm),
    "opsm": Case({"name": "opsm", "delta": 0.01, **CLIP}, reference.opsm),
    "tvpo": Case({"name": "tvpo", "delta": 0.15}, reference.tvpo),
    "cppo": Case(
        {"name": "cppo", "delta": 0.04, "prefix_delta": 0.01, "last_weight": 0.6}, reference.cppo
    ),
    "pnpo": Case({"name": "pnpo", **CLIP}, reference.pnpo),
    "minpro": Case({"name": "minpro", "weight_cap": 1.1}, reference.minpro),
    "fipo": Case(
        {
            "name": "fipo",
            "half_life": 2.0,
            "influence_low": 0.9,
            "influence_high": 1.1,
            "ratio_cap": 1.3,
            "ratio_safe": 1.05,
            **CLIP,
        },
        reference.fipo,
    ),
    "apc_state": Case(
        {"name": "apc", "delta": 0.2, "level": "state", "form": "ratio"}, reference.apc
    ),
    "apc_log": Case({"name": "apc", "delta": 0.2, "level": "state", "form": "log"}, reference.apc),
    "apc_sequence": Case(
        {"name": "apc", "delta": 0.2, "level": "trajectory", "form": "log"}, reference.apc
    ),
    "fiberpo": Case(hierarchy(1, name="fiberpo"), reference.fgh),
    "fgh2": Case(hierarchy(2), reference.fgh),
    "fiberpo_domain": Case(hierarchy(3, name="fiberpo_domain"), reference.fgh),
    "fgh_by_sign": Case(hierarchy(3, epsilon_negative=0.03), reference.fgh),
    "fgh_hold": Case(hierarchy(3, base_gate="hold"), reference.fgh),
    "fgh_variants": Case(
        hierarchy(3, lift="bounded", signs="resigned", deviation="ratio", upper_negative=0.3),
        reference.fgh,
    ),
    "exact1": Case(hierarchy(1, **EXACT), reference.exact),
    "exact3": Case(hierarchy(3, **EXACT), reference.exact),
    "exact_by_sign": Case(hierarchy(2, epsilon_negative=0.03, **EXACT), reference.exact),
    "exact_hold": Case(hierarchy(2, base_gate="hold", **EXACT), reference.exact),
    "silent": Case(
        silent(3, epsilon_negative=0.15, signal="residual", budget_scale="noise"), reference.silent
    ),
    "silent_sequence": Case(silent(3, weight="trajectory"), reference.silent),
}
"""Every entry of the name table at least once."""

SOFT = ("sapo", "vespo", "topr", "fipo")
"""Those that infinite budgets do not open, and that weigh nearly every token that moved."""

PREFIX = ("cppo", "pnpo", "minpro", "fipo")
"""Those whose trajectories must lie whole on one device."""
