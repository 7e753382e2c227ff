"""What a run of the study is, as plain data: a difference from `BASE`.

There a batch sees 32 updates at a constant learning rate: enough for the trust region to be what
decides. Every figure (`experiments.study.figures`) changes one thing around it.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Literal

from experiments.study.rounding import Rounding
from fiberjax.presets import preset

PINNED: Mapping[str, Any] = {
    "advantage": "grpo",
    "budget_control": {"kind": "none", "target": 0.0, "gain": 0.5, "end": 1.0, "largest": 100.0},
    "optimizer.b1": 0.9,
    "optimizer.b2": 0.999,
    "optimizer.weight_decay": 0.0,
    "rollout.temperature": 1.0,
    "training.entropy_coefficient": 0.0,
    "training.kl_coefficient": 0.0,
    "training.micro_batches": 4,
    "training.packing": True,
    "training.step_share": "none",
    "training.target_kl": 0.0,
    "training.weighting": "trajectory",
    "tasks.domains": {
        "brackets": {"min_length": 4, "max_length": 8},
        "reverse": {"min_length": 4, "max_length": 7, "letters": "0123456789"},
        "running_sum": {"min_operands": 5, "max_operands": 6},
        "selection": {"min_length": 6, "max_length": 7},
        "sort": {"min_length": 6, "max_length": 9},
    },
    "window.prompt": 16,
    "window.completion": 52,
    "warm_start.steps": 450,
    "warm_start.batch_size": 64,
    "warm_start.flawed": 0.6,
    "warm_start.optimizer": "muon",
    "warm_start.learning_rate": 1.5e-2,
    "warm_start.weight_decay": 0.01,
}
"""What the quickstart had when the first runs were made, and may not change them by changing.

Records that do not name one of these had it: `records.read` fills it in. So a value here never
changes, and one is added only with the value that all runs before had."""

TODAY: Mapping[str, str] = {"budget_control": "control"}
"""Options by the name that the records have -> what they are called since."""

BASE: Mapping[str, Any] = {
    **PINNED,
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

APART = ("staleness", "noise", "rounding")
"""What a run has beside its options."""

Place = tuple[tuple[str, float | str], ...]
"""Where a run stands: the axes of its figure by name, with its value on each."""


def told(place: Place) -> str:
    """A place in words."""
    return ", ".join(f"{name} = {value_told(value)}" for name, value in place)


def value_told(value: float | str) -> str:
    """A value of an axis in words."""
    return value if isinstance(value, str) else f"{value:g}"


@dataclasses.dataclass(frozen=True)
class Replay:
    """Steps as long as those of another run, whatever the gate of this one does.

    Attributes:
      of: the run whose recorded `actor/open_share` multiplies the learning rate.
      form: its value of every iteration in order, or their mean throughout.
    """

    of: "Setting"
    form: Literal["sequence", "mean"]


@dataclasses.dataclass(frozen=True)
class Setting:
    """One run.

    Attributes:
      method: what the run is called in figures and tables.
      gate: a preset of `fiberjax.presets`.
      overrides: dotted path of an option -> its value, on top of `BASE`; `gate.…` too.
      staleness: iterations between sampling a batch and training on it.
      noise: standard deviation of the noise on the sampler's logits.
      rounding: of the weights that the sampler computes with.
      seed: of sampling; the warm start is the same for all.
      replay: where the learning rate follows another run; None where it is constant.
      axis: where the run stands on the axes of its figure, as in `{"σ": 0.1}`; for pictures alone.
    """

    method: str
    gate: str
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    staleness: int = 0
    noise: float = 0.0
    rounding: Rounding = ""
    seed: int = 0
    replay: Replay | None = None
    axis: Mapping[str, float | str] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        places = [told(tuple(self.axis.items()))] if self.axis else []
        return ", ".join([self.method, *places, f"seed {self.seed}"])

    @property
    def options(self) -> dict[str, Any]:
        """All options by their dotted paths, those of `BASE` included."""
        return {**BASE, **self.overrides}

    def numbers(self) -> dict[str, Any]:
        """Everything about its gate, as JSON gives it back: the preset with the overrides."""
        gate = preset(self.gate)
        for path, value in self.overrides.items():
            section, *names = path.split(".")
            if section == "gate":
                at: Any = gate
                for name in names[:-1]:
                    at = at[name]
                at[names[-1]] = value
        return json.loads(json.dumps(gate))

    def identity(self) -> dict[str, Any]:
        """What makes it another run, as JSON gives it back: all but method's name and axis."""
        fields: dict[str, Any] = {
            "gate": self.gate,
            "options": self.options,
            "staleness": self.staleness,
            "noise": self.noise,
            "seed": self.seed,
        }
        if self.rounding:
            fields["rounding"] = self.rounding
        if self.replay is not None:
            fields["replay"] = {"of": self.replay.of.identity(), "form": self.replay.form}
        return json.loads(json.dumps(fields))

    def at(self, seed: int, **overrides: Any) -> "Setting":
        """The setting at another seed, with further overrides: `optimizer__name="sgd"`."""
        given = {path.replace("__", "."): value for path, value in overrides.items()}
        return dataclasses.replace(self, seed=seed, overrides={**self.overrides, **given})

    def on(self, axis: Mapping[str, float | str], **changes: Any) -> "Setting":
        """The setting at a place of its figure: further overrides, or one of `APART`."""
        fields = {name: changes.pop(name) for name in APART if name in changes}
        moved = self.at(self.seed, **changes)
        return dataclasses.replace(moved, axis={**self.axis, **axis}, **fields)
