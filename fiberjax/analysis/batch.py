"""Kept rollouts as an objective reads them, and what one makes of them: one program a gate.

Budgets are traced, and so is everything that differs between batches of one shape: another budget,
another policy or another minibatch compiles nothing.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fiberjax import diagnostics, objective
from fiberjax.analysis.objectives import Asked, Objective, objectives_of, with_states
from fiberjax.layout import TRAJECTORY, TURN, Layout, make_layout, state_ids
from fiberjax.run.kept import Kept

LARGEST_LOG_WEIGHT = 30.0
"""Nats. Weights of whole trajectories are taken within e^±30."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Seen:
    """What an objective sees of the rollouts beside the policy.

    Attributes:
      layout: over [R, C].
      advantage: float32[R, C].
      credit: float32[R, C], advantages times the sample weights.
      old_log_prob: float32[R, C], nats.
    """

    layout: Layout
    advantage: jax.Array
    credit: jax.Array
    old_log_prob: jax.Array


class Look(NamedTuple):
    """What an objective makes of a batch.

    Attributes:
      coefficients: float32[R, C], `∂J/∂ log π_θ` of each token, of what is maximised; 0 at padding.
      surrogate: float32[], J.
      clipped: by level bool[R, C], the tokens whose own row of the Jacobian its gate changes.
    """

    coefficients: jax.Array
    surrogate: jax.Array
    clipped: dict[str, jax.Array]

    def clip_fractions(self, layout: Layout) -> dict[str, float]:
        """The shares of the tokens that any level changes, and each level, finest first."""
        mask = np.asarray(layout.mask)
        names = [name for name in ("token", *layout.levels) if name in self.clipped]
        names += [name for name in self.clipped if name not in names]
        found = {name: np.asarray(self.clipped[name])[mask] for name in names}
        any_level = np.any(list(found.values()), axis=0)
        return {name: float(of.mean()) for name, of in {"any": any_level, **found}.items()}


def chosen(
    kept: Kept, asked: Sequence[Asked] | Mapping[str, Asked], weighting: str | None
) -> dict[str, Objective]:
    """The objectives asked for on these rollouts, `UNGATED` first; see `objectives_of`."""
    return objectives_of(
        asked,
        layout=kept.layout,
        config=kept.meta.get("config"),
        weighting=weighting,
        factor=float(kept.meta.get("budget_factor", 1.0)),
    )


def seen(kept: Kept, objectives: dict[str, Objective], minibatch: int | None = None) -> Seen:
    """The batch of kept rollouts, or that of one minibatch of theirs; its arrays on the host.

    Args:
      kept: the rollouts.
      objectives: that will look at it.
      minibatch: the optimizer batch; None for all trajectories as one batch.

    Raises:
      ValueError: there is no such minibatch, no token counts, or states are needed and not known.
    """
    layout = of_minibatch(kept, minibatch)
    layout = with_states(layout, objectives, lambda: _states(kept))
    weight = kept.sample_weight
    credit = kept.advantage if weight is None else kept.advantage * weight
    arrays: Any = (kept.advantage, credit, kept.old_log_prob)
    return Seen(layout, *arrays)


def of_minibatch(kept: Kept, minibatch: int | None) -> Layout:
    """The layout in which the tokens of one minibatch alone count; of the same shapes.

    Raises:
      ValueError: there is no such minibatch, or no token counts.
    """
    layout, mask = kept.layout, kept.mask
    if minibatch is not None:
        there = sorted(set(kept.minibatch.tolist()))
        if minibatch not in there:
            raise ValueError(f"minibatch {minibatch!r} does not exist; there are {there}")
        mask = mask & (kept.minibatch == minibatch)[:, None]
    if not mask.any():
        raise ValueError("no token of these rollouts counts in the loss")
    finest = layout.levels[0]
    return make_layout(
        mask,
        {name: np.asarray(of) for name, of in zip(layout.levels[1:], layout.parents, strict=True)},
        cell_id=None if layout.cell_id is None else np.asarray(layout.cell_id),
        finest=finest,
        num_cells={
            name: len(size)
            for name, size in zip(layout.levels, layout.sizes, strict=True)
            if finest == TURN or name != TRAJECTORY
        },
    )


def _states(kept: Kept) -> np.ndarray | None:
    """The state that each token was drawn in; None where it cannot be known."""
    prompt = _prompts(kept)
    if prompt is None or kept.prompt_tokens is None:
        return None
    rows, columns = kept.mask.shape
    last = np.where(kept.mask, np.arange(columns) + 1, 0).max(axis=1)
    said = np.arange(columns) < last[:, None]
    trajectory = np.broadcast_to(np.arange(rows)[:, None], said.shape)
    return state_ids(kept.tokens, said, prompt, trajectory)


def _prompts(kept: Kept) -> np.ndarray | None:
    """A number for each trajectory's prompt, equal where it is the same, and of one group."""
    if kept.prompt_tokens is None:
        return None
    group = np.zeros(len(kept.prompt_tokens), int)
    if "group" in kept.layout.levels:
        # A prompt that was drawn twice is two groups, and its states are those of each.
        group = np.asarray(kept.layout.parents[kept.layout.index(TRAJECTORY)])[: len(group)]
    numbers: dict[tuple[int, bytes], int] = {}
    return np.array(
        [
            numbers.setdefault((int(of), prompt.tobytes()), len(numbers))
            for of, prompt in zip(group, kept.prompt_tokens, strict=True)
        ]
    )


@jax.jit
def look(objective_: Objective, log_prob: jax.Array, batch: Seen) -> Look:
    """What an objective makes of a batch under a policy; compiled once a gate and shape.

    Args:
      objective_: the objective.
      log_prob: float32[R, C], nats, of the policy.
      batch: of `seen`.
    """
    layout, gate = batch.layout, objective_.gate
    log_prob, old, advantage, credit = (
        jnp.where(layout.mask, of, 0)
        for of in (log_prob, batch.old_log_prob, batch.advantage, batch.credit)
    )

    def value(log_ratio: jax.Array) -> jax.Array:
        return objective.surrogate(
            gate(log_ratio, advantage, layout, old_log_prob=old),
            credit,
            layout,
            weighting=objective_.weighting,
            constant_length=objective_.constant_length,
        ).value

    log_ratio = log_prob - old
    surrogate, coefficients = jax.value_and_grad(value)(log_ratio)
    clipped = gate.structure.clipped(log_ratio, advantage, layout, gate.budgets, old_log_prob=old)
    return Look(coefficients, surrogate, clipped)


def sample_sizes(log_prob: np.ndarray, batch: Seen) -> dict[str, float]:
    """The effective sample size of the log ratios by level, finest first; see `diagnostics`."""
    sizes = jax.device_get(_sample_sizes(log_prob, batch))
    return {name: float(sizes[name]) for name in ("token", *batch.layout.levels)}


@jax.jit
def _sample_sizes(log_prob: jax.Array, batch: Seen) -> dict[str, jax.Array]:
    log_ratio = jnp.where(batch.layout.mask, log_prob - batch.old_log_prob, 0)
    found = diagnostics.effective_sample_sizes(log_ratio, batch.layout)
    return {name.rpartition("/")[2]: of.value for name, of in found.items()}


def open_share(coefficients: np.ndarray, ungated: np.ndarray) -> float:
    """The share of the coefficients that a gate leaves open, in [0, 1]; as `step_share` has it.

    Args:
      coefficients: float[R, C], of the objective.
      ungated: of plain importance ratios under the same weighting.
    """
    norm, whole = (np.linalg.norm(of.astype(np.float64)) for of in (coefficients, ungated))
    return float(np.minimum(norm / whole, 1.0)) if whole > 0 else 0.0


class Drawn(NamedTuple):
    """What the sampled trajectories say of a policy other than the one that drew them.

    Attributes:
      kl: nats a token, the estimate k3 of KL(old ‖ policy) over the tokens that were drawn.
      reward: the mean reward that the policy would have, by self-normalised importance weights of
        whole trajectories, `Σ w R / Σ w` with `w = exp(Σ ℓ)`; None where no rewards are known.
      effective: the effective sample size of these weights, a share of the trajectories, in (0, 1].
    """

    kl: float
    reward: float | None
    effective: float


def drawn(kept: Kept, layout: Layout, log_prob: np.ndarray) -> Drawn:
    """What the trajectories say of a policy; on the host, in float64.

    Args:
      kept: the rollouts.
      layout: of `seen`: which tokens count.
      log_prob: float[R, C], nats, of the policy.
    """
    mask = np.asarray(layout.mask)
    log_ratio = np.where(mask, np.asarray(log_prob, np.float64) - kept.old_log_prob, 0.0)
    held = mask.any(axis=1)
    total = log_ratio.sum(axis=1)[held]
    weight = np.exp(np.clip(total, -LARGEST_LOG_WEIGHT, LARGEST_LOG_WEIGHT))
    reward = None
    if "reward" in kept.table.column_names:
        paid = kept.table["reward"].to_numpy()[held].astype(np.float64)
        reward = float((weight * paid).sum() / weight.sum())
    with np.errstate(over="ignore"):  # A policy that is gone is infinitely far.
        kl = float((np.expm1(log_ratio) - log_ratio).sum() / mask.sum())
    effective = float(weight.sum() ** 2 / (len(weight) * (weight**2).sum()))
    return Drawn(kl, reward, effective)


def log_prob_of(kept: Kept) -> np.ndarray:
    """The log-probabilities under the policy looked at: as given, or those of the old policy."""
    return kept.old_log_prob if kept.log_prob is None else kept.log_prob
