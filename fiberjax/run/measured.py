"""What an iteration is measured by: its rollouts, what they were paid, and its updates.

Numbers by the names of `metrics.METRICS`, over all processes.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from fiberjax import objective, options
from fiberjax.parallel import mesh
from fiberjax.train import resample
from fiberjax.train.rollout import Rollouts
from fiberjax.train.update import NOT_FINITE, Metrics


class Paid(NamedTuple):
    """What completions of all processes were paid, along the batches that were drawn.

    Attributes:
      reward: float32[R], of the verifiers.
      credit: float32[R], what advantages are made of; see `rewards.shaping`.
      counted: bool[R], which ones count in the loss and in their group's statistics.
    """

    reward: np.ndarray
    credit: np.ndarray
    counted: np.ndarray


def joined(pending: list[Metrics]) -> dict[str, float]:
    """The metrics of an iteration's updates, over all their tokens; numbers by name."""
    read = jax.device_get(pending)
    return {
        name: float(functools.reduce(objective.add, [step[name] for step in read]).value)
        for name in (read[0] if read else ())
        if not name.startswith(NOT_FINITE)
    }


def mismatch_metrics(
    device_mesh: Mesh, log_prob: np.ndarray, sampler_log_prob: np.ndarray, mask: np.ndarray
) -> dict[str, float]:
    """How far apart trainer and sampler stand on the same tokens; numbers by name.

    Args:
      device_mesh: joins the processes.
      log_prob: float32[R, C], of the trainer; this process's rows, nats.
      sampler_log_prob: float32[R, C], of the same distribution by the sampler; nats.
      mask: bool[R, C], the real tokens.
    """
    gap = np.where(mask, np.abs(log_prob - sampler_log_prob), 0.0)
    # Of the behaviour's ratios, over the largest: no sum is infinite.
    log_ratio = np.where(mask, log_prob - sampler_log_prob, -np.inf).astype(np.float64)
    top = mesh.gather(device_mesh, log_ratio.max(axis=1)).max()
    ratio = np.exp(log_ratio - top) if np.isfinite(top) else np.zeros_like(log_ratio)
    largest, total, tokens, ratios, squares = (
        mesh.gather(device_mesh, of)
        for of in (
            *(gap.max(axis=1), gap.sum(axis=1), mask.sum(axis=1)),
            *(ratio.sum(axis=1), (ratio**2).sum(axis=1)),
        )
    )
    scalars = {
        "mismatch/log_prob_abs_max": float(largest.max()),
        "mismatch/log_prob_abs_mean": float(total.sum() / tokens.sum()),
    }
    if squares.sum() > 0:
        effective = float(ratios.sum() ** 2 / (squares.sum() * tokens.sum()))
        scalars["mismatch/effective_sample_size"] = effective
    return scalars


def turn_metrics(device_mesh: Mesh, drawn: Sequence[Rollouts]) -> dict[str, float]:
    """How many turns episodes have, and how whole their replies are; numbers by name.

    Args:
      device_mesh: joins the processes.
      drawn: this process's rows of each batch of prompts that was drawn, trained on or not.
    """

    def gathered(of: Callable[[Rollouts], np.ndarray]) -> np.ndarray:
        return np.concatenate([mesh.gather(device_mesh, of(rollouts)) for rollouts in drawn])

    turns = 1 + gathered(lambda rollouts: rollouts.turn.max(axis=1))
    cut = gathered(lambda rollouts: rollouts.replies_cut).sum()
    return {
        "turns/mean": float(turns.mean()),
        "turns/replied": float(np.mean(turns > 1)),
        "turns/replies_cut": float(cut / max((turns - 1).sum(), 1)),
        "turns/failed": float(gathered(_replies_failed).sum()),
    }


def _replies_failed(rollouts: Rollouts) -> np.ndarray:
    assert rollouts.replies_failed is not None
    return rollouts.replies_failed


def _failed(rollouts: Rollouts) -> np.ndarray:
    assert rollouts.failed is not None
    return rollouts.failed


def rollout_metrics(
    device_mesh: Mesh,
    drawn: Sequence[Rollouts],
    paid: Paid,
    domain_names: tuple[str, ...],
) -> dict[str, float]:
    """Rewards by domain, answer lengths, truncation, and groups that teach nothing; by name.

    Args:
      device_mesh: joins the processes.
      drawn: this process's rows of each batch of prompts that was drawn, trained on or not.
      paid: what they are paid, those of all processes.
      domain_names: in the order that ids count them.
    """

    def gathered(of: Callable[[Rollouts], np.ndarray]) -> np.ndarray:
        return np.concatenate([mesh.gather(device_mesh, of(rollouts)) for rollouts in drawn])

    def kept(rollouts: Rollouts) -> np.ndarray:
        return np.where(rollouts.mask, np.exp(rollouts.log_kept), 1.0)

    length = gathered(lambda rollouts: rollouts.mask.sum(axis=1))
    finished = gathered(lambda rollouts: rollouts.finished)
    least = gathered(lambda rollouts: kept(rollouts).min(axis=1))
    left_out = gathered(lambda rollouts: (1.0 - kept(rollouts)).sum(axis=1))
    rewards, size = paid.reward, drawn[0].group_size
    by_group = rewards.reshape(-1, size)
    domain = gathered(lambda rollouts: rollouts.prompts.domain)
    scalars = {
        "reward/mean": float(rewards.mean()),
        "reward/std": float(rewards.std()),
        "frac_reward_zero_std": float(np.mean(~resample.differ(paid.credit, size, paid.counted))),
        "response_length/mean": float(length.mean()),
        "response_length/max": float(length.max()),
        "response_length/clip_ratio": float(1 - finished.mean()),
        "rollout/kept_mass/mean": float(1 - left_out.sum() / length.sum()),
        "rollout/kept_mass/min": float(least.min()),
    }
    if drawn[0].failed is not None:
        scalars["verifier/failed"] = float(gathered(_failed).sum())
    counted = [rollouts.held for rollouts in drawn if rollouts.held is not None]
    if len(counted) == len(drawn):
        steps = np.concatenate([mesh.gather(device_mesh, held) for held in counted])
        scalars["rollout/wasted_steps"] = float(1 - length.sum() / steps.sum())
    for index, name in enumerate(domain_names):
        if np.any(domain == index):
            scalars[f"reward/{name}"] = float(by_group[domain == index].mean())
    return scalars


def credit_metrics(rewards: options.Rewards, paid: Paid) -> dict[str, float]:
    """How far what is trained on differs from the rewards, where it may; by name."""
    if rewards.truncated == "score" and rewards.overlong_cache == 0:
        return {}
    counted = paid.counted
    mean = float(paid.credit[counted].mean()) if counted.any() else 0.0
    return {"credit/mean": mean, "credit/left_out": float(1 - counted.mean())}
