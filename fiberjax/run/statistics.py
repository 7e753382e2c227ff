"""What an evaluation can claim: one number a prompt, then means with 95 % intervals over prompts.

Prompts are the independent units: the k samples of a prompt are not. Values that lie in [0, 1], as
pass rates do, have intervals that know of these bounds (`interval`, `difference`); means of other
rewards have Student's t (`real_interval`).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_Z = 1.959963984540054  # The 97.5 % point of the normal distribution.


class Interval(NamedTuple):
    """An estimate and the limits of its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 lies outside the limits."""
        return self.low > 0 or self.high < 0


def mean_at_k(rewards: np.ndarray) -> np.ndarray:
    """Averages the rewards of every prompt's samples, without bias; `[prompts]`.

    Args:
      rewards: bool or float[prompts, k]. Of rewards 0 and 1 the means are pass rates.

    Returns:
      float64[prompts].

    Raises:
      ValueError: wrong shape, no samples, or a reward that is not finite.
    """
    return _by_prompt(rewards, "rewards").mean(axis=1)


def pass_at_k(passed: np.ndarray, k: int) -> np.ndarray:
    """Estimates without bias the chance that one of `k` samples passes; `[prompts]`.

        pass@k = 1 − C(n − c, k) / C(n, k) = 1 − Πᵢ₌₀ᵏ⁻¹ (n − c − i) / (n − i)

    where `c` of `n` samples pass. The product never forms a large binomial.

    Args:
      passed: bool[prompts, n], or numbers that are 0 or 1; `verifiers.passes` makes it of rewards.
      k: number of tries, 1 ≤ k ≤ n.

    Returns:
      float64[prompts], each in [0, 1].

    Raises:
      ValueError: wrong shape, values other than 0 and 1, or `k` out of range.

    References:
      Chen et al., Evaluating Large Language Models Trained on Code (2021), eq. 1.

    >>> pass_at_k(np.array([[True, False, False, False]]), 2)
    array([0.5])
    """
    passes = _by_prompt(passed, "passed")
    if not np.isin(passes, (0, 1)).all():
        raise ValueError("pass@k needs values that are 0 or 1")
    n = passes.shape[1]
    if not 1 <= k <= n:
        raise ValueError(f"pass@k needs 1 <= k <= {n} (samples of a prompt), got k = {k}")
    tries = np.arange(k)
    failed, prompt = np.unique(n - passes.sum(axis=1), return_inverse=True)
    # All k tries fail: one factor is exactly 0 where fewer than k samples do.
    all_failed = [np.prod((count - tries) / (n - tries)) for count in failed]
    return 1 - np.array(all_failed)[prompt]


def interval(values: np.ndarray) -> Interval:
    """Estimates the mean over prompts with a 95 % interval.

    Wilson's interval, solved for the mean of values in [0, 1] with the variance they show:

        |x̄ − p| ≤ z √(φ p(1 − p) / n),   φ = s² / (x̄(1 − x̄))

    At 0/1 values φ = 1 and it is Wilson's own; averages over k samples of a prompt vary less, and
    φ < 1. Unlike t or bootstrap it keeps its coverage near 0 and 1, where s² = 0 says nothing: φ is
    then 1. It is closed-form, so it needs no seed, and lies in [0, 1].

    Args:
      values: float[prompts], one in [0, 1] a prompt, prompts drawn independently.

    Returns:
      The mean and its limits.

    Raises:
      ValueError: no values, or one outside [0, 1].

    References:
      Wilson, Probable Inference (1927); Brown, Cai and DasGupta, Interval Estimation for a Binomial
      Proportion (2001).
    """
    x = _bounded(values)
    mean = float(x.mean())
    # In [0, 1] the population variance is at most p(1 − p): φ ≤ 1, 0/0 at the ends.
    spread, bound = float(x.var()), mean * (1 - mean)
    phi = min(spread / bound, 1.0) if x.size > 1 and spread > 0 and bound > 0 else 1.0
    a = _Z**2 * phi / x.size
    centre = (mean + a / 2) / (1 + a)
    half = math.sqrt(a * bound + a**2 / 4) / (1 + a)
    return Interval(mean, min(max(centre - half, 0.0), mean), max(min(centre + half, 1.0), mean))


def real_interval(values: np.ndarray) -> Interval:
    """Estimates the mean over prompts of values without bounds, with a 95 % interval.

    Student's t, exact for normal values and good for the means of many others:

        x̄ ∓ t s / √n

    with `t` the 97.5 % point of n − 1 degrees of freedom and `s²` the unbiased variance. One value
    says nothing of its spread: its limits are infinite. The mean change of the same prompts is
    `real_interval(after − before)`.

    Args:
      values: float[prompts], prompts drawn independently.

    Returns:
      The mean and its limits.

    Raises:
      ValueError: no values, or one that is not finite.

    References:
      Student, The Probable Error of a Mean (1908).
    """
    # Few runs have rewards beyond [0, 1], and every start would wait for it.
    from scipy import special

    x = _values(values)
    mean = float(x.mean())
    if x.size == 1:
        return Interval(mean, -math.inf, math.inf)
    half = float(special.stdtrit(x.size - 1, 0.975) * x.std(ddof=1)) / math.sqrt(x.size)
    return Interval(mean, mean - half, mean + half)


def difference(before: np.ndarray, after: np.ndarray) -> Interval:
    """Estimates the mean change of the same prompts, `after − before`, with a 95 % interval.

    Newcombe's interval for paired proportions: with `δ` the distances from the two means to their
    limits (`interval`) and `ρ` the correlation of the pairs,

        low  = θ − √(δ₂₋² − 2ρ δ₂₋ δ₁₊ + δ₁₊²),   high = θ + √(δ₂₊² − 2ρ δ₂₊ δ₁₋ + δ₁₋²)

    Chosen over paired t and bootstrap because both shrink to nothing when few prompts change, which
    is when a change is easily claimed; it needs no seed and lies in [−1, 1].

    Args:
      before: float[prompts], each in [0, 1].
      after: float[prompts], of the same prompts in the same order.

    Returns:
      The mean difference and its limits.

    Raises:
      ValueError: the shapes differ, there are no values, or one is outside [0, 1].

    References:
      Newcombe, Improved Confidence Intervals for the Difference Between Binomial Proportions Based
      on Paired Data (1998), method 10 (without its continuity correction).
    """
    x, y = _bounded(before), _bounded(after)
    if x.shape != y.shape:
        raise ValueError(f"paired values must be of the same prompts, got {x.size} and {y.size}")
    first, second = interval(x), interval(y)
    deviation = float(x.std() * y.std())
    rho = float(np.mean((x - x.mean()) * (y - y.mean()))) / deviation if deviation > 0 else 0.0
    rho = min(max(rho, -1.0), 1.0)

    def combine(a: float, b: float) -> float:
        return math.sqrt(max(a**2 - 2 * rho * a * b + b**2, 0.0))

    theta = second.value - first.value
    down = combine(second.value - second.low, first.high - first.value)
    up = combine(second.high - second.value, first.value - first.low)
    return Interval(theta, theta - down, theta + up)


def mean_of(parts: Sequence[Interval]) -> Interval:
    """Averages independent estimates without weights, such as those of domains.

    The distances to the limits add as root of squares: `x̄ ∓ √(Σ δ∓²) / n`.

    Raises:
      ValueError: there are no parts.

    References:
      Zou and Donner, Construction of Confidence Limits about Effect Measures (2008).
    """
    if not parts:
        raise ValueError("expected at least one estimate to average")
    value = sum(part.value for part in parts) / len(parts)
    down = math.sqrt(sum((part.value - part.low) ** 2 for part in parts)) / len(parts)
    up = math.sqrt(sum((part.high - part.value) ** 2 for part in parts)) / len(parts)
    return Interval(value, value - down, value + up)


def _by_prompt(values: np.ndarray, name: str) -> np.ndarray:
    samples = np.asarray(values, dtype=np.float64)
    if samples.ndim != 2 or samples.shape[1] == 0:
        raise ValueError(f"{name} must be [prompts, k] with k >= 1, got {list(samples.shape)}")
    if not np.isfinite(samples).all():
        raise ValueError(f"{name} must be finite")
    return samples


def _values(values: np.ndarray) -> np.ndarray:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or x.size == 0:
        raise ValueError(f"expected one value a prompt, got shape {list(x.shape)}")
    if not np.isfinite(x).all():
        raise ValueError("values must be finite")
    return x


def _bounded(values: np.ndarray) -> np.ndarray:
    x = _values(values)
    if not ((x >= 0) & (x <= 1)).all():
        raise ValueError("values must lie in [0, 1]")
    return x
