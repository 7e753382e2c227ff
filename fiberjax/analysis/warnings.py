"""Signs of trouble in the metrics of a run: a table of functions, each with its cause and remedy.

A check reads the columns of a run (`metrics.read_metrics`) and its options by dotted path
(`runs.flat`), and says what it saw, or None. "Late" is the last quarter of the iterations, three at
least; what is over a bound for long is so `LONG` times in a row. Bounds are of judgment: what they
find is to be looked at, not proven.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

Columns = Mapping[str, np.ndarray]
Options = Mapping[str, Any]

LONG = 5
"""Values in a row."""
WINDOW = 5
"""Iterations within which a fall is fast."""
NARROW = 0.1
"""Nats a token. An entropy below it has nowhere to fall."""
ALIKE = 0.8
"""Fraction of groups without spread."""
FEW = 0.2
"""Effective sample size of trajectories, over their number."""
APART = 0.02
"""Nats. A mean disagreement of sampler and trainer; rounding of bfloat16 is a third of it."""
CUT = 0.25
"""Fraction of responses."""
SILENT = 0.95
"""Fraction of tokens whose gradient the gate changed."""
FAR = 0.1
"""Nats a token, of the KL within one iteration."""


class Seen(NamedTuple):
    """What a check found.

    Attributes:
      iteration: the first one at which it holds.
      text: a clause with the numbers.
    """

    iteration: int
    text: str


@dataclasses.dataclass(frozen=True)
class Check:
    """One sign of trouble.

    Attributes:
      name: what it is, in a few words.
      find: says what it saw in the columns and options of a run; None where all is well, or where
        the run has not what it reads.
      cause: why that happens.
      remedy: what to change; options without `config.`.
      section: of docs/troubleshooting.md.
    """

    name: str
    find: Callable[[Columns, Options], Seen | None]
    cause: str
    remedy: str
    section: str


class Warned(NamedTuple):
    """A check that found something."""

    check: Check
    seen: Seen


def warnings(columns: Columns, options: Options) -> tuple[Warned, ...]:
    """All that the checks of `CHECKS` find, in their order.

    Args:
      columns: of `read_metrics`.
      options: by dotted path; {} where they are not known.
    """
    found = ((check, check.find(columns, options)) for check in CHECKS)
    return tuple(Warned(check, seen) for check, seen in found if seen is not None)


def entropy_falls(columns: Columns, options: Options) -> Seen | None:
    """The entropy is below half of what it was `WINDOW` iterations before."""
    step, entropy = _finite(columns, "actor/entropy")
    for i in range(1, len(step)):
        near = (step < step[i]) & (step >= step[i] - WINDOW) & (entropy > NARROW)
        if near.any() and entropy[i] < entropy[near].max() / 2:
            first = int(np.flatnonzero(near)[np.argmax(entropy[near])])
            text = f"from {entropy[first]:.3g} nats at iteration {step[first]} to {entropy[i]:.3g}"
            return Seen(int(step[i]), text)
    return None


def no_spread(columns: Columns, options: Options) -> Seen | None:
    """Nearly all groups are paid alike, late in the run."""
    return _late(
        columns,
        "frac_reward_zero_std",
        lambda mean: mean >= ALIKE,
        "{:.0%} of the prompt groups are paid alike, so that they teach nothing",
    )


def unpaid_domain(columns: Columns, options: Options) -> Seen | None:
    """A domain that was never paid, in three iterations at least."""
    for name in columns:
        if name.startswith("reward/") and name not in ("reward/mean", "reward/std"):
            step, reward = _finite(columns, name)
            if len(step) >= 3 and not reward.any():
                domain = name.removeprefix("reward/")
                return Seen(int(step[0]), f"{domain!r} was paid nothing in {len(step)} iterations")
    return None


def reward_falls(columns: Columns, options: Options) -> Seen | None:
    """Late in the run the mean reward is below half of the best quarter's."""
    step, reward = _finite(columns, "reward/mean")
    size = _quarter(step)
    if len(step) < 2 * size:
        return None
    means = np.convolve(reward, np.ones(size) / size, "valid")
    best = int(np.argmax(means))
    if means[best] > 0 and means[-1] < means[best] / 2:
        text = (
            f"from {means[best]:.3g} around iteration {step[best + size // 2]} to {means[-1]:.3g}"
        )
        return Seen(int(step[best + size - 1]), text)
    return None


def over_budget(columns: Columns, options: Options) -> Seen | None:
    """What a level's cells hold against their budget is beyond it in the mean, for long."""
    for level, budget in budgets(options).items():
        for sign, limit in zip(("plus", "minus"), budget, strict=True):
            step, drift = _finite(columns, f"gate/held/{level}/{sign}")
            limits = limit * _factor(columns, step)
            at = _row_of(drift > limits)
            if at is not None:
                text = f"{level} cells hold {drift[at]:.3g} ({sign}) against {limits[at]:.3g}"
                return Seen(int(step[at]), text)
    return None


def far_from_sampler(columns: Columns, options: Options) -> Seen | None:
    """The KL within an iteration is large, late in the run."""
    return _late(
        columns,
        "actor/ppo_kl_k3",
        lambda mean: mean > FAR,
        "the policy moves {:.3g} nats a token from the one that sampled",
    )


def few_effective(columns: Columns, options: Options) -> Seen | None:
    """A few trajectories carry the whole estimate for long."""
    step, size = _finite(columns, "is_ratio/effective_sample_size/trajectory")
    at = _row_of(size < FEW)
    return at if at is None else Seen(int(step[at]), f"{size[at]:.1%} of the trajectories count")


def gate_shut(columns: Columns, options: Options) -> Seen | None:
    """The gate changes nearly every token's gradient, late in the run."""
    return _late(
        columns,
        "actor/pg_clipfrac",
        lambda mean: mean >= SILENT,
        "{:.0%} of the tokens have their gradient changed",
    )


def no_gradient(columns: Columns, options: Options) -> Seen | None:
    """The gradient is exactly 0 for long."""
    step, norm = _finite(columns, "actor/grad_norm")
    at = _row_of(norm == 0, 3)
    return at if at is None else Seen(int(step[at]), "the gradient is exactly 0")


def sampler_differs(columns: Columns, options: Options) -> Seen | None:
    """Sampler and trainer disagree on the same tokens, late in the run, and no lag says why."""
    _, lag = _finite(columns, "rollout/lag")
    if np.any(lag > 0):
        return None
    return _late(
        columns,
        "mismatch/log_prob_abs_mean",
        lambda mean: mean > APART,
        "log-probabilities of the same tokens differ by {:.3g} nats in the mean",
    )


def updates_skipped(columns: Columns, options: Options) -> Seen | None:
    """An update was not finite, and was left out."""
    return _counted(columns, "actor/skipped_updates", "{:.0f} updates were left out")


def cut_off(columns: Columns, options: Options) -> Seen | None:
    """Many responses do not end within the window, late in the run."""
    return _late(
        columns,
        "response_length/clip_ratio",
        lambda mean: mean > CUT,
        "{:.0%} of the responses are cut off",
    )


def verifier_fails(columns: Columns, options: Options) -> Seen | None:
    """Rewards raised, or passed their limits."""
    return _counted(columns, "verifier/failed", "{:.0f} responses had no reward")


def held_out_falls(columns: Columns, options: Options) -> Seen | None:
    """Held-out prompts are worse than at their best, beyond the interval, and training's better."""
    for name in columns:
        if not name.startswith("evaluation/mean@") or not name.endswith("/overall"):
            continue
        step, value = _finite(columns, name)
        trained, reward = _finite(columns, "reward/mean")
        if len(step) < 2 or f"{name}/high" not in columns or len(trained) < 2:
            continue
        best = int(np.argmax(value))
        high = columns[f"{name}/high"][columns["step"] == step[-1]][0]
        around = np.abs(trained - step[best]) <= _quarter(trained) / 2
        late = reward[-_quarter(trained) :].mean()
        if high < value[best] and around.any() and late > reward[around].mean():
            text = f"held-out {value[best]:.3g} → {value[-1]:.3g}, "
            text += f"training {reward[around].mean():.3g} → {late:.3g}"
            return Seen(int(step[best]), text)
    return None


def budgets(options: Options) -> dict[str, tuple[float, float]]:
    """The budgets of a gate's levels, nats, plus and minus; {} where every cell has its own.

    >>> budgets({"gate.levels.group.budget": [0.2, 0.1], "gate.levels.domain.budget": [0.3]})
    {'group': (0.2, 0.1), 'domain': (0.3, 0.3)}
    """
    found: dict[str, tuple[float, float]] = {}
    if options.get("gate.budget_scale", "none") != "none":
        return found
    for path, value in options.items():
        if path.startswith("gate.levels.") and path.endswith(".budget"):
            level = path.removeprefix("gate.levels.").removesuffix(".budget")
            pair = value if isinstance(value, list | tuple) else (value,)
            found[level] = (float(pair[0]), float(pair[-1]))
    return found


def _finite(columns: Columns, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values where a metric is finite; empty where the run has none."""
    values = columns.get(name, np.full(len(columns["step"]), np.nan))
    use = np.isfinite(values)
    return columns["step"][use], values[use]


def _factor(columns: Columns, step: np.ndarray) -> np.ndarray:
    """What the budgets were multiplied by, at these steps."""
    at, factor = _finite(columns, "gate/budget_factor")
    return np.interp(step, at, factor) if len(at) else np.ones(len(step))


def _quarter(step: np.ndarray) -> int:
    return max(3, len(step) // 4)


def _late(columns: Columns, name: str, holds: Callable[[float], bool], text: str) -> Seen | None:
    """Whether the mean over the last quarter is as it should not be."""
    step, values = _finite(columns, name)
    size = _quarter(step)
    if len(step) < size or not holds(float(values[-size:].mean())):
        return None
    return Seen(int(step[-size]), text.format(values[-size:].mean()))


def _counted(columns: Columns, name: str, text: str) -> Seen | None:
    """Whether there were any of what should not be, from the first of them on."""
    step, count = _finite(columns, name)
    if not count.any():
        return None
    return Seen(int(step[np.argmax(count > 0)]), text.format(count.sum()))


def _row_of(holds: np.ndarray, length: int = LONG) -> int | None:
    """The first place of the first so many in a row that hold; None where there are none."""
    for start in range(len(holds) - length + 1):
        if holds[start : start + length].all():
            return start
    return None


CHECKS = (
    Check(
        "updates that were not finite",
        updates_skipped,
        "The logits, the loss or the gradient overflowed; nonfinite/ in the run folder has the "
        "batch and says which term was first.",
        "Lower optimizer.learning_rate, set optimizer.clip_norm, lengthen optimizer.warmup_steps.",
        "Not finite",
    ),
    Check(
        "no gradient",
        no_gradient,
        "No token is credited: every group is paid alike, a group has one sample, or every token "
        "is clipped.",
        "Look at frac_reward_zero_std and actor/pg_clipfrac: easier or harder prompts, more "
        "rollout.samples, or wider budgets.",
        "actor/grad_norm is exactly 0",
    ),
    Check(
        "a domain that is never paid",
        unpaid_domain,
        "The policy cannot do it yet, its answers are cut off, or the verifier does not accept "
        "what it writes.",
        "Read its samples; lengthen warm_start.steps, take easier rows, raise window.completion, "
        "or try the verifier on an answer as it should be.",
        "reward/mean is flat at 0",
    ),
    Check(
        "reward fell",
        reward_falls,
        "The policy moved further on its batches than they tell of, and came to a worse place.",
        "Look at KL, effective sample size and drift of the iterations before; lower "
        "optimizer.learning_rate or the budgets, and keep the best policy by checkpoint.best.",
        "KL grows, is_ratio/max is in the thousands",
    ),
    Check(
        "no spread in groups",
        no_spread,
        "Prompts are all too easy or all too hard for the policy: within a group all are paid "
        "alike, and their advantages are 0.",
        "Lower curriculum.start and end where all is right, raise them where all is wrong; more "
        "rollout.samples; rollout.resample draws others in their place.",
        "frac_reward_zero_std is near 1",
    ),
    Check(
        "entropy falling fast",
        entropy_falls,
        "The policy narrows, often before it has learned; what it no longer samples it cannot "
        "learn from. Where it only came to a form of answer, as in the first iterations of a "
        "published model, it is harmless.",
        "Lower optimizer.learning_rate, make fewer updates a batch, take a larger plus budget, or "
        "add a small training.entropy_coefficient.",
        "actor/entropy falls fast",
    ),
    Check(
        "a budget exceeded for long",
        over_budget,
        "Updates move the cells of a level further than its budget, so that its gate, on "
        "average, pushes back or is shut: the budget decides the step, and not the reward.",
        "Fewer training.epochs or minibatches, a lower optimizer.learning_rate, or a larger "
        "budget of that level.",
        "actor/pg_clipfrac is 1",
    ),
    Check(
        "far from the policy that sampled",
        far_from_sampler,
        "Too many or too long updates on one batch: ratios no longer tell of the same policy.",
        "Lower optimizer.learning_rate, training.epochs, training.minibatches or the budgets.",
        "KL grows, is_ratio/max is in the thousands",
    ),
    Check(
        "small effective sample size",
        few_effective,
        "A few trajectories have nearly all of the weight: the step is made of them, whatever "
        "the mean KL.",
        "Fewer updates a batch, smaller budgets, shorter answers; "
        "control.kind=effective_sample_size holds it.",
        "KL grows, is_ratio/max is in the thousands",
    ),
    Check(
        "the gate is shut",
        gate_shut,
        "Nearly every token is beyond some budget: what is left is little or turned around. "
        "Of a gate whose budget is smaller than any update, as GSPO's, that is its way.",
        "gate/clip_fraction/<level> says which level; a larger budget there, or shorter updates.",
        "actor/pg_clipfrac is 1",
    ),
    Check(
        "sampler and trainer disagree",
        sampler_differs,
        "Both compute the same tokens differently: another precision, another program, or stale "
        "weights.",
        "training.mismatch=truncate weighs tokens by it; policy.compute_dtype=float32 removes "
        "the rounding.",
        "Mismatch is large",
    ),
    Check(
        "many responses are cut off",
        cut_off,
        "The window is too short, or the model does not end its answers.",
        "Raise window.completion; teach the end by warm_start.steps; name what ends an answer "
        "in model.stop.",
        "response_length/clip_ratio is 1",
    ),
    Check(
        "held-out falls while training rises",
        held_out_falls,
        "Training prompts are learned by heart, or the curriculum has come to easier ones.",
        "checkpoint.best keeps the policy of before; more rows, fewer iterations, "
        "stop.metric of the evaluation.",
        "Held-out falls while reward/mean rises",
    ),
    Check(
        "rewards that failed",
        verifier_fails,
        "A verifier raised on a text, or passed rewards.seconds or rewards.megabytes.",
        "Read what the run printed; mend the verifier, or raise the limits.",
        "reward/mean is flat at 0",
    ),
)
"""What is looked for, the most serious first."""
