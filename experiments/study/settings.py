"""What the study runs, as plain data: one setting a run, lists of settings by figure and stage.

A setting is the difference from `BASE`, where a batch sees 32 updates at a constant learning rate:
enough for the trust region to be what decides. Every figure changes one thing around it.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

BASE: Mapping[str, Any] = {
    "iterations": 15,
    "rollout.prompts": 64,
    "rollout.samples": 16,
    "training.epochs": 4,
    "training.minibatches": 8,
    "optimizer.name": "muon",
    "optimizer.schedule": "constant",
    "optimizer.learning_rate": 1e-3,
    "optimizer.warmup_steps": 0,
    "optimizer.clip_norm": 0.0,
    "evaluation.prompts": 200,
    "evaluation.samples": 4,
}
"""Options beside those of `configs/quickstart.py`, by their dotted paths."""

SEEDS = (0, 1, 2, 3, 4)
"""Of what is reported."""

TUNING_SEEDS = (100, 101)
"""Of the runs that budgets are chosen by; never of what is reported."""

EVALUATE_EVERY = 5
"""Iterations between evaluations on held-out prompts, beside those at the start and the end."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """One run.

    Attributes:
      method: what the run is called in figures and tables.
      gate: a preset of `fiberjax.presets`.
      overrides: dotted path of an option -> its value, on top of `BASE`; `gate.…` too.
      staleness: iterations between sampling a batch and training on it.
      noise: standard deviation of the noise on the sampler's logits.
      seed: of sampling; the warm start is the same for all.
    """

    method: str
    gate: str
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    staleness: int = 0
    noise: float = 0.0
    seed: int = 0

    @property
    def options(self) -> dict[str, Any]:
        """All options by their dotted paths, those of `BASE` included."""
        return {**BASE, **self.overrides}

    def identity(self) -> dict[str, Any]:
        """What makes it another run, as JSON gives it back: everything but the method's name."""
        fields = {
            "gate": self.gate,
            "options": self.options,
            "staleness": self.staleness,
            "noise": self.noise,
            "seed": self.seed,
        }
        return json.loads(json.dumps(fields))

    def at(self, seed: int, **overrides: Any) -> "Setting":
        """The setting at another seed, with further overrides: `optimizer__name="sgd"`."""
        given = {path.replace("__", "."): value for path, value in overrides.items()}
        return dataclasses.replace(self, seed=seed, overrides={**self.overrides, **given})


def _over(settings: Sequence[Setting], seeds: Sequence[int]) -> tuple[Setting, ...]:
    """Every setting at every seed, all settings of a seed before the next one."""
    return tuple(setting.at(seed) for seed in seeds for setting in settings)


TABLE = tuple(
    Setting(name, name)
    for name in (
        "gspo",
        "grpo",
        "fiberpo_domain_pessimistic",
        "dppo_tv",
        "importance",
        "fiberpo_domain",
    )
)
"""Shipped budgets, side by side."""


def _hierarchy(name: str, preset: str, budget: float) -> Setting:
    """A pessimistic hierarchy that holds, over the exact bundle, one budget at every level."""
    levels = {
        "fiberpo_pessimistic": ("trajectory",),
        "fiberpo_domain_pessimistic": ("trajectory", "group", "domain"),
    }[preset]
    budgets = {f"gate.levels.{level}.budget": budget for level in levels}
    options = {"gate.variant": "exact", "gate.base_gate": "hold", "gate.epsilon": 0.2}
    return Setting(f"{name} {budget:g}", preset, options | budgets)


TRIALS = tuple(
    _hierarchy(name, preset, budget)
    for name, preset in (
        ("trajectory alone", "fiberpo_pessimistic"),
        ("three levels", "fiberpo_domain_pessimistic"),
    )
    for budget in (1e-3, 3e-4)
)
"""Tight budgets in a form that does not push when closed."""


def _shared(method: str, preset: str, **overrides: Any) -> Setting:
    """A gate with the step as long as the share that it leaves open."""
    options = {path.replace("__", "."): value for path, value in overrides.items()}
    return Setting(method, preset, {"training.step_share": "importance", **options})


SHARED = (
    _shared("silent: three levels", "silent_domain"),
    _shared("GSPO", "gspo"),
    _shared("silent: trajectory", "silent_trajectory"),
    _shared("silent: three levels, residuals", "silent_residual"),
    _shared("GRPO", "grpo"),
    _shared("FiberPO-Domain, pessimistic", "fiberpo_domain_pessimistic"),
)
"""The step share, over gates that fall silent and gates that do not."""

UNSHARED = (
    Setting("silent: three levels, whole steps", "silent_domain"),
    Setting("silent: trajectory, whole steps", "silent_trajectory"),
)
"""What the step share adds to the silent hierarchies."""

HARD = tuple(
    setting.at(0, optimizer__learning_rate=3e-3)
    for setting in (SHARED[0], SHARED[1], SHARED[2], TABLE[0], TABLE[1])
)
"""Three times the learning rate, at which every gate with whole steps collapses."""


def table(stage: int) -> tuple[Setting, ...]:
    """Shipped budgets and tight ones; two seeds in stage 1."""
    return _over((*TABLE, *TRIALS), SEEDS[:2] if stage == 1 else SEEDS)


def share(stage: int) -> tuple[Setting, ...]:
    """The step share and the silent hierarchy; two seeds in stage 1."""
    return _over((*SHARED, *UNSHARED), SEEDS[:2] if stage == 1 else SEEDS)


def hard(stage: int) -> tuple[Setting, ...]:
    """The same at three times the learning rate; two seeds in stage 1."""
    return _over(HARD, SEEDS[:2] if stage == 1 else SEEDS)


FIGURES: Mapping[str, Callable[[int], tuple[Setting, ...]]] = {
    "table": table,
    "share": share,
    "hard": hard,
}
"""Name of a figure -> its settings by stage, in the order they run."""
