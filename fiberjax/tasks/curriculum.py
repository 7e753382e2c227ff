"""Which prompts to draw: domain balance and the Gaussian pass-rate curriculum, in plain NumPy.

References:
  JoyAI, equations 6 and 7.
"""

from collections.abc import Sequence

import numpy as np


def target_pass_rate(step: int, total: int, *, start: float = 0.8, end: float = 0.2) -> float:
    """Returns the pass rate to aim at, a probability that moves linearly over the run.

    μ_t = μ_0 + (μ_T − μ_0) t / T

    Args:
      step: t; steps beyond ``total`` stay at ``end``.
      total: T, steps of the run, at least 1.
      start: μ_0.
      end: μ_T.

    Raises:
      ValueError: ``total`` below 1.

    Example:
      >>> target_pass_rate(50, 100)
      0.5
    """
    if total < 1:
        raise ValueError(f"total is {total}, expected at least one step")
    return start + (end - start) * min(max(step, 0), total) / total


def log_prompt_weights(pass_rate: np.ndarray, target: float, *, sigma: float = 0.15) -> np.ndarray:
    """Returns the log weight of every prompt, float64[N]; exact where the weight underflows.

    log w_i = −½ ((p_i − μ) / σ)²

    A solved prompt (p_i = 1) is dropped: −∞. A prompt that was never tried (p_i NaN) counts as
    sitting on the target: 0, the largest there is, so that every prompt is tried before any
    other far from the target is tried again.

    Args:
      pass_rate: float[N], probability; NaN where not profiled.
      target: μ, see ``target_pass_rate``.
      sigma: σ > 0, width in probability.

    Raises:
      ValueError: σ not positive, or a pass rate outside [0, 1].
    """
    if not sigma > 0:
        raise ValueError(f"sigma is {sigma}, expected a positive width")
    pass_rate = np.asarray(pass_rate, np.float64)
    unprofiled = np.isnan(pass_rate)
    if np.any((pass_rate < 0) | (pass_rate > 1)):
        raise ValueError("a pass rate lies outside [0, 1]")
    log_weight = -0.5 * ((np.where(unprofiled, target, pass_rate) - target) / sigma) ** 2
    return np.where(pass_rate == 1, -np.inf, log_weight)


def prompt_weights(pass_rate: np.ndarray, target: float, *, sigma: float = 0.15) -> np.ndarray:
    """Returns the weight of every prompt, float64[N] in [0, 1]; see ``log_prompt_weights``.

    Example:
      >>> prompt_weights(np.array([0.5, 1.0, np.nan]), 0.5)
      array([1., 0., 1.])
    """
    return np.exp(log_prompt_weights(pass_rate, target, sigma=sigma))


def domain_probabilities(
    valid_counts: Sequence[int] | np.ndarray, overrides: Sequence[float | None] | None = None
) -> np.ndarray:
    """Returns the probability of drawing from each domain, float64[D], summing to 1.

    P(d) ∝ √n_d over the domains without an override; an override is P(d) itself. A domain with
    no valid prompt gets 0, and what it leaves is spread over the others in proportion.

    Args:
      valid_counts: int[D], prompts of each domain that are not dropped.
      overrides: a probability or None for each domain; None for no override at all.

    Raises:
      ValueError: no domain has a valid prompt; an override is outside [0, 1], they sum to more
        than 1, or to less where every domain has one; or nothing is left to draw from.

    Example:
      >>> domain_probabilities([100, 400, 900])
      array([0.16666667, 0.33333333, 0.5       ])
      >>> domain_probabilities([100, 400, 900], [None, None, 0.1])
      array([0.3, 0.6, 0.1])
    """
    counts = np.asarray(valid_counts, np.float64)
    if overrides is None:
        overrides = [None] * len(counts)
    if len(overrides) != len(counts):
        raise ValueError(f"{len(overrides)} overrides for {len(counts)} domains")
    if any(p is not None and not p >= 0 and not p < 0 for p in overrides):
        raise ValueError(f"a domain probability override is not a number: {list(overrides)}")
    fixed = np.array([np.nan if p is None else p for p in overrides], np.float64)
    free = np.isnan(fixed)
    taken = float(fixed[~free].sum())
    if (
        np.any((fixed < 0) | (fixed > 1))
        or taken > 1 + 1e-9
        or (not free.any() and taken < 1 - 1e-9)
    ):
        raise ValueError(
            f"domain probability overrides are {list(overrides)}, expected values in [0, 1] with "
            "sum at most 1, and exactly 1 where every domain has one"
        )
    balance = np.sqrt(counts) * free
    share = balance / balance.sum() if balance.sum() > 0 else balance
    probability = np.where(free, (1 - taken) * share, fixed) * (counts > 0)
    if not probability.sum() > 0:
        raise ValueError(
            f"no domain can be drawn from: valid prompts {counts.astype(int).tolist()}, "
            f"overrides {list(overrides)}"
        )
    return probability / probability.sum()


def pass_rate_shares(pass_rate: np.ndarray) -> dict[str, float]:
    """Returns how the prompts stand, as fractions of all that sum to 1, by name.

    ``untried``; ``never``, a pass rate of 0; ``seldom``, below ½; ``often``, below 1; ``always``.

    Args:
      pass_rate: float[N], probability; NaN where not tried.

    Example:
      >>> pass_rate_shares(np.array([np.nan, 0.0, 0.5, 1.0]))
      {'untried': 0.25, 'never': 0.25, 'seldom': 0.0, 'often': 0.25, 'always': 0.25}
    """
    p = np.asarray(pass_rate, np.float64)
    members = {
        "untried": np.isnan(p),
        "never": p == 0,
        "seldom": (p > 0) & (p < 0.5),
        "often": (p >= 0.5) & (p < 1),
        "always": p == 1,
    }
    return {name: float(np.mean(member)) for name, member in members.items()}


def updated_pass_rate(
    pass_rate: np.ndarray, prompt_index: np.ndarray, passed: np.ndarray, *, rate: float = 0.5
) -> np.ndarray:
    """Returns the pass rates after a batch of rollouts, float64[N].

    p ← s the first time a prompt is seen, p ← p + rate · (s − p) afterwards, where s is the share
    of all its samples in the batch that pass.

    Args:
      pass_rate: float[N]; NaN where not profiled. Not modified.
      prompt_index: int[B], rows of ``pass_rate``; repeats are pooled.
      passed: bool[B, G], which samples pass.
      rate: how far one batch moves a pass rate, in (0, 1].

    Raises:
      ValueError: shapes that do not match, samples that neither pass nor fail, an index outside
        the table, or a rate outside (0, 1].
    """
    index, passed = np.asarray(prompt_index), np.asarray(passed)
    if index.ndim != 1 or passed.ndim != 2 or passed.shape[:1] != index.shape:
        raise ValueError(
            f"prompt_index has shape {index.shape} and passed {passed.shape}, expected [B] and "
            "[B, G]"
        )
    if passed.dtype != bool:
        raise ValueError(f"passed is {passed.dtype}, expected bool")
    if not 0 < rate <= 1:
        raise ValueError(f"rate is {rate}, expected a number in (0, 1]")
    if index.size and not (0 <= index.min() and index.max() < len(pass_rate)):
        raise ValueError(f"a prompt index lies outside the table of {len(pass_rate)} pass rates")
    updated = np.array(pass_rate, np.float64)
    rows, inverse = np.unique(index, return_inverse=True)
    samples = np.bincount(inverse, minlength=len(rows)) * passed.shape[1]
    share = np.bincount(inverse, weights=passed.sum(1), minlength=len(rows)) / samples
    old = updated[rows]
    updated[rows] = np.where(np.isnan(old), share, old + rate * (share - old))
    return updated
