"""Which options may change when a run is resumed: one table, read by `identity`.

What decides a past update stays as it was, or the run would not be one that its config describes.
What only the updates to come depend on may change, and is logged; what no update depends on may
change freely.
"""

import dataclasses
import fnmatch
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

Kind = Literal["free", "logged", "fixed"]


@dataclasses.dataclass(frozen=True)
class Change:
    """An option of a run that is given another value than the run has.

    Attributes:
      option: dotted path.
      before: its value in the run, as JSON.
      after: the value given.
    """

    option: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.option} {self.before!r} → {self.after!r}"

    @property
    def of_numbers(self) -> bool:
        """Whether both values are numbers, or lists of them."""
        return _numbers(self.before) and _numbers(self.after)


def _always(change: Change, config: Mapping[str, Any]) -> bool:
    return True


@dataclasses.dataclass(frozen=True)
class Rule:
    """What holds for some options.

    Attributes:
      options: patterns of dotted paths, as `fnmatch` reads them.
      kind: "free": changes at once. "logged": changes, is said in one line and kept in the run
        folder. "fixed": is refused.
      why: a clause that begins with what the options do.
      where: whether it holds for a change, in a run of this config; always by default.
    """

    options: tuple[str, ...]
    kind: Kind
    why: str
    where: Callable[[Change, Mapping[str, Any]], bool] = _always


def _schedule(change: Change, config: Mapping[str, Any]) -> bool:
    return config["optimizer"]["schedule"] != "constant"


def _course(change: Change, config: Mapping[str, Any]) -> bool:
    curriculum = config["curriculum"]
    annealed = config["control"]["kind"] == "anneal"
    return curriculum["start"] != curriculum["end"] or annealed


def _lagging(change: Change, config: Mapping[str, Any]) -> bool:
    return config["rollout"]["lag"] > 0


def _budget(change: Change, config: Mapping[str, Any]) -> bool:
    return change.of_numbers


RULES: tuple[Rule, ...] = (
    Rule(
        ("iterations",),
        "fixed",
        "the schedule's learning rates of past updates follow from it; under "
        "optimizer.schedule = 'constant' it may change",
        _schedule,
    ),
    Rule(
        ("iterations",),
        "logged",
        "the curriculum's target and annealed budgets go by it from then on",
        _course,
    ),
    Rule(
        ("iterations",),
        "logged",
        "what a lag would have sampled beyond the end was not, and is then by a later policy",
        _lagging,
    ),
    Rule(("iterations",), "free", "it only says where the run ends"),
    Rule(
        ("training.unpaid_iterations",), "free", "it only says where a run stops that pays nothing"
    ),
    Rule(
        ("rewards.workers", "rewards.golds", "rewards.shown"),
        "free",
        "they say how rewards are computed and looked at",
    ),
    Rule(
        (
            *(f"rewards.{name}" for name in ("seconds", "megabytes", "failed", "truncated")),
            "rewards.overlong_*",
        ),
        "logged",
        "completions to come are rewarded by them",
    ),
    Rule(("checkpoint.*", "keep.*", "writers"), "free", "they say what is kept of a run"),
    Rule(("diagnostics.*",), "free", "they say which updates are looked at"),
    Rule(("stop.*",), "free", "it only says where the run ends"),
    Rule(("evaluation.*",), "free", "it measures, and what was measured before is measured again"),
    Rule(("tasks.data_dir", "warm_start.directory"), "free", "they say where things are kept"),
    Rule(
        (
            *("rollout.max_rows", "rollout.slots"),
            *("training.micro_batches", "training.packing", "training.chunk"),
            *("training.old_log_probs", "training.old_log_probs_gap"),
        ),
        "logged",
        "they change the rounding alone",
    ),
    Rule(("mesh.*", "rollout.devices"), "logged", "it changes the rounding alone"),
    Rule(("optimizer.learning_rate",), "logged", "updates to come take it"),
    Rule(
        ("gate.*",), "logged", "updates to come take budgets, which are the gate's numbers", _budget
    ),
    Rule(
        tuple(f"control.{name}" for name in ("target", "gain", "end", "largest")),
        "logged",
        "the factor of budgets or steps goes on from where it is",
    ),
    Rule(
        (
            *("training.entropy_coefficient", "training.kl_coefficient", "training.target_kl"),
            "training.router_replay",
        ),
        "logged",
        "updates to come take them",
    ),
    Rule(
        ("rollout.resample", "rollout.engine", "rollout.lag", "rollout.cache_dtype"),
        "logged",
        "iterations to come draw by it",
    ),
    Rule(("server.dtype",), "logged", "iterations to come draw from weights that are rounded so"),
    Rule(("server.*",), "free", "they say where another program is, and how it is asked"),
    Rule(("training.nonfinite",), "logged", "updates to come are left out by it"),
    Rule(("seed",), "fixed", "every draw follows from it"),
    Rule(("model.*", "policy.*", "window.*"), "fixed", "the checkpoints are of this policy"),
    Rule(("warm_start.*",), "fixed", "the run began with it"),
    Rule(("tasks.*", "levels", "curriculum.*"), "fixed", "they decided which prompts were drawn"),
    Rule(("*",), "fixed", "past updates were made with it"),
)
"""The first that matches an option, and where it holds."""


def rule_of(change: Change, config: Mapping[str, Any]) -> Rule:
    """The rule for a change of a run.

    Args:
      change: one option.
      config: of the run, as JSON.

    >>> rule_of(Change("checkpoint.every", 20, 5), {}).kind
    'free'
    >>> rule_of(Change("gate.levels.group.budget", 0.1, 0.2), {}).kind
    'logged'
    >>> rule_of(Change("gate.name", "ppo", "gspo"), {}).kind
    'fixed'
    """
    return next(
        rule
        for rule in RULES
        if any(fnmatch.fnmatchcase(change.option, pattern) for pattern in rule.options)
        and rule.where(change, config)
    )


def refusal(changes: Sequence[Change], config: Mapping[str, Any]) -> str:
    """Why changes that are fixed are refused, all in one line; "" where none is.

    Args:
      changes: of any kind.
      config: of the run, as JSON.
    """
    reasons: dict[str, list[Change]] = {}
    for change in changes:
        rule = rule_of(change, config)
        if rule.kind == "fixed":
            reasons.setdefault(rule.why, []).append(change)
    if not reasons:
        return ""
    fixed = [change for change in changes if any(change in of for of in reasons.values())]
    why = "; ".join(
        f"{', '.join(f'config.{change.option}' for change in of)}: {clause}"
        for clause, of in reasons.items()
    )
    return f"it differs in {listed(fixed)}. They stay as they are ({why})"


def listed(changes: Sequence[Change]) -> str:
    """The options with both values."""
    return ", ".join(
        f"config.{change.option} ({change.before!r} there, {change.after!r} here)"
        for change in changes
    )


def _numbers(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(map(_numbers, value))
    return isinstance(value, int | float) and not isinstance(value, bool)
