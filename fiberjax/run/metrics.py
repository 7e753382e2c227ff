"""The scalars of a run: their names and units, and the file they are read from.

A run folder holds `metrics.jsonl`, one JSON object a line with its `step`; `writers` writes it, and
other files of the same values.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fiberjax import storage

METRICS_FILE = "metrics.jsonl"


class Metric(NamedTuple):
    """What a name stands for: the unit of its values and their meaning."""

    unit: str
    meaning: str


METRICS: Mapping[str, Metric] = {
    "actor/pg_loss": Metric("reward", "negative surrogate objective, the loss minimised"),
    "actor/ppo_kl": Metric("nats/token", "KL(sampling ‖ current policy), estimate k1: -log ratio"),
    "actor/ppo_kl_k3": Metric(
        "nats/token", "KL(sampling ‖ current policy), estimate k3: ratio - 1 - log ratio, never < 0"
    ),
    "actor/kl_reference": Metric(
        "nats/token", "KL(current ‖ reference policy) as the penalty estimates it"
    ),
    "actor/entropy": Metric("nats/token", "entropy of the next-token distribution"),
    "actor/grad_norm": Metric("norm", "global norm of the gradient before any clipping, mean"),
    "actor/update_norm": Metric("norm", "global norm of the change of the parameters, mean"),
    "actor/grad_momentum_cosine": Metric(
        "cosine", "of the gradient and the optimizer's first moment before it, mean"
    ),
    "actor/skipped_updates": Metric("count", "updates not made, for they were not finite"),
    "actor/stopped_updates": Metric("count", "updates not made, for the target KL was passed"),
    "actor/open_share": Metric("fraction", "share of the step that the gate leaves open, mean"),
    "actor/learning_rate": Metric("rate", "learning rate, mean over the updates"),
    "actor/pg_clipfrac": Metric("fraction", "tokens whose gradient the gate changed"),
    "actor/drift_over_one": Metric(
        "fraction", "tokens whose log ratio is beyond 1 nat, up or down"
    ),
    "is_ratio/mean": Metric("ratio", "importance ratio of tokens, mean"),
    "is_ratio/min": Metric("ratio", "importance ratio of tokens, smallest"),
    "is_ratio/max": Metric("ratio", "importance ratio of tokens, largest"),
    "is_ratio/effective_sample_size/<level>": Metric(
        "fraction", "effective sample size over the number of tokens, or of a level's cells"
    ),
    "response_length/mean": Metric("tokens", "response length, mean"),
    "response_length/max": Metric("tokens", "response length, longest"),
    "response_length/clip_ratio": Metric("fraction", "responses cut at the longest length allowed"),
    "reward/mean": Metric("reward", "reward of sampled responses, mean"),
    "reward/std": Metric("reward", "reward of sampled responses, standard deviation"),
    "reward/<domain>": Metric("reward", "mean reward in a domain: its pass rate where 0 or 1"),
    "frac_reward_zero_std": Metric("fraction", "prompt groups whose rewards are all equal"),
    "verifier/failed": Metric("count", "responses whose reward raised or passed its limits"),
    "credit/mean": Metric(
        "reward", "reward after what length and truncation cost, of responses that count, mean"
    ),
    "credit/left_out": Metric("fraction", "responses that were cut and left out of the loss"),
    "resample/prompts_drawn": Metric("count", "prompts drawn; what is of responses is of them all"),
    "resample/prompts_kept": Metric("count", "prompts whose groups make the batch"),
    "resample/drawn_per_kept": Metric("ratio", "prompts drawn over prompts kept: the cost"),
    "resample/updates_skipped": Metric("count", "updates not made, for want of any group"),
    "batch/fill": Metric("fraction", "places of the batch that hold a group; the rest is padding"),
    "batch/reward/mean": Metric("reward", "reward of the batch alone, groups left out aside, mean"),
    "actor/step_factor": Metric("factor", "what updates were multiplied by"),
    "gate/budget_factor": Metric("factor", "what the gate's budgets were multiplied by"),
    "gate/clip_fraction/<level>": Metric("fraction", "tokens whose gradient a level changed"),
    "gate/held/<level>/<sign>": Metric(
        "nats", "mean of what a level's cells hold against that budget"
    ),
    "gate/channel/<level>/<sign>": Metric("nats", "mean drift of a level's cells, plus or minus"),
    "gate/channel/<level>/<sign>/median": Metric(
        "nats", "median drift of a level's cells, plus or minus, within 10 %"
    ),
    "gate/channel/<level>/<sign>/p99": Metric(
        "nats", "99th percentile of the drift of a level's cells, within 10 %"
    ),
    "gate/quadrant/<name>": Metric(
        "fraction", "tokens whose gradient the gate changed, of those of two signs: Â and log ratio"
    ),
    "gate/fiber_residual": Metric("nats/token", "mean of |u|, what the levels above leave a token"),
    "gate/log_ratio_non_finite": Metric("count", "tokens whose log ratio is NaN or infinite"),
    "gate/regime/<name>": Metric("fraction", "trajectories in a regime, global or local"),
    "mismatch/log_prob_abs_max": Metric(
        "nats", "|sampler - trainer| log-probability before truncation, largest"
    ),
    "mismatch/log_prob_abs_mean": Metric(
        "nats", "|sampler - trainer| log-probability before truncation, mean"
    ),
    "mismatch/effective_sample_size": Metric(
        "fraction", "effective sample size of the trainer's old policy over the sampler, by tokens"
    ),
    "turns/mean": Metric("turns", "turns of the policy in an episode"),
    "turns/replied": Metric("fraction", "episodes in which the environment replied"),
    "turns/replies_cut": Metric(
        "fraction", "replies that the window or the vocabulary did not hold whole"
    ),
    "turns/failed": Metric(
        "count", "episodes that ended where the environment raised or passed its limits"
    ),
    "rollout/lag": Metric("iterations", "finished since the policy that sampled the rollouts"),
    "rollout/kept_mass/mean": Metric("probability", "mass kept by top-k and top-p, mean"),
    "rollout/kept_mass/min": Metric("probability", "mass kept by top-k and top-p, smallest"),
    "rollout/wasted_steps": Metric(
        "fraction", "steps of places in the sampler's batches whose row had ended, of all of them"
    ),
    "curriculum/target": Metric("probability", "pass rate the curriculum aims at"),
    "curriculum/share/<name>": Metric(
        "fraction", "training prompts by their last known pass rate, untried ones among them"
    ),
    "evaluation/<measure>/<domain>": Metric(
        "reward or probability", "held-out prompts while training, mean over prompts or domains"
    ),
    "evaluation/<measure>/<domain>/low": Metric("as the value", "lower limit of its 95 % interval"),
    "evaluation/<measure>/<domain>/high": Metric(
        "as the value", "upper limit of its 95 % interval"
    ),
    "timing/rollout_s": Metric("s", "time to sample and verify a rollout batch"),
    "timing/update_s": Metric("s", "time of the updates on a rollout batch"),
    "timing/total_s": Metric("s", "time of the whole step"),
    "timing/compile_s": Metric(
        "s", "time to compile programs, or to read those kept, since the step before"
    ),
    "timing/watching_s": Metric(
        "s", "time to evaluate after a step, and to keep and show samples and rollouts"
    ),
    "perf/tokens_per_s": Metric("tokens/s", "response tokens sampled a second of the whole step"),
}
"""Every metric the framework writes; `<...>` stands for a domain, level, sign, quadrant or
regime.

What is of updates is over all tokens, cells or updates of an iteration's updates, one as much as
another: totals and counts of minibatches are added first and divided last.
"""


def describe(name: str) -> Metric:
    """Looks a metric up in `METRICS`, filling patterns; one `Metric`, blank where unknown.

    >>> describe("reward/sort").unit, describe("reward/a/b").unit
    ('reward', 'reward')
    """
    if name in METRICS:
        return METRICS[name]
    if name.startswith("reward/"):  # A domain's name may have slashes.
        return METRICS["reward/<domain>"]
    parts = name.split("/")
    for pattern, metric in METRICS.items():
        holes = pattern.split("/")
        if len(holes) == len(parts) and all(
            hole == part or hole.startswith("<") for hole, part in zip(holes, parts, strict=True)
        ):
            return metric
    return Metric("", "")


def read_metrics(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads a run's metrics as columns, each `[steps]`, ordered by step.

    Args:
      path: a `metrics.jsonl`, or the run folder that holds it. A torn last line is left out.

    Returns:
      `step` as int64, every other metric as float64 with NaN where a step lacks it. Rows of one
      step are merged, the later value of a name winning. A file without rows gives `step` alone.

    Raises:
      ValueError: there is no such file, or one of its lines is not a row of metrics.
    """
    file = storage.place(path)
    if file.is_dir():
        file = file / METRICS_FILE
    if not file.is_file():
        raise ValueError(f"no metrics at {file}: expected a run folder or its {METRICS_FILE}")
    rows: dict[int, dict[str, float]] = {}
    for step, row in read_rows(file):
        rows.setdefault(step, {}).update(row)
    steps = sorted(rows)
    names = dict.fromkeys(name for step in steps for name in rows[step])
    columns = {"step": np.array(steps, dtype=np.int64)}
    for name in names:
        columns[name] = np.array([rows[step].get(name, math.nan) for step in steps])
    return columns


def read_rows(file: Path) -> list[tuple[int, dict[str, float]]]:
    """Parses a file into (step, scalars) a line; a last line that a kill tore is left out.

    Raises:
      ValueError: a line is not a row of metrics.
    """
    lines = file.read_bytes().decode("utf-8", "replace").splitlines()
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            step = row.pop("step")
            if not isinstance(step, int):
                raise TypeError
            rows.append((step, {name: float(value) for name, value in row.items()}))
        except (ValueError, TypeError, AttributeError, KeyError):
            if number == len(lines):
                break
            raise ValueError(
                f"{file} line {number} is not a row of metrics: {line[:80]!r}"
            ) from None
    return rows
