"""One batch of log-probabilities, advantages and ids that every framework's losses are run on.

NumPy alone, so that it can be imported in any framework's environment. Three prompts of three
samples in two domains, answers of 1 to 9 tokens, float64. Ratios drift far enough for every clip to
bind, and a fifth of the tokens have not moved at all: there `sign(0)` and the clips' bounds are.
"""

import numpy as np

SAMPLES, ROWS, LENGTH = 3, 9, 9
GROUP = np.repeat(np.arange(ROWS // SAMPLES), SAMPLES)
DOMAIN = np.array([0, 1, 0])
"""The prompt group of each row, and the domain of each group."""

CLIP_LOW, CLIP_HIGH, DUAL_CLIP = 0.15, 0.25, 1.6
"""Options that every loss is run with."""

FIBERPO = {
    "trajectory": (0.11, 0.09),
    "group": (0.06, 0.05),
    "domain": (0.03, 0.025),
    "epsilon": 0.05,
}
"""Budgets of FiberPO in nats, plus and minus."""


def reward() -> np.ndarray:
    """One reward a row, float64[B]; the second group's are all equal."""
    values = np.random.default_rng(11).integers(0, 9, ROWS) / 8
    values[SAMPLES : 2 * SAMPLES] = 0.35
    return values


def make() -> dict[str, np.ndarray]:
    """The batch: `mask` bool[B, T]; `log_prob`, `old_log_prob` and `advantage` float64[B, T]."""
    rng = np.random.default_rng(7)
    length = np.array([9, 4, 1, 6, 7, 2, 8, 5, 3])
    mask = np.arange(LENGTH) < length[:, None]
    old_log_prob = -rng.exponential(0.8, (ROWS, LENGTH)) - 1
    drift = rng.normal(0, 0.15, (ROWS, LENGTH)) + rng.normal(0, 0.08, (ROWS, 1))
    drift[rng.random((ROWS, LENGTH)) < 0.2] = 0
    drift[0, 0], drift[3, 1] = 0.7, 0.6  # beyond the dual clip
    scores = rng.random((ROWS // SAMPLES, SAMPLES))
    advantage = (scores - scores.mean(1, keepdims=True)) / scores.std(1, ddof=1, keepdims=True)
    zeros = np.where(mask, 1.0, 0.0)
    return {
        "mask": mask,
        "log_prob": (old_log_prob + drift) * zeros,
        "old_log_prob": old_log_prob * zeros,
        "advantage": np.tile(advantage.reshape(-1, 1), LENGTH) * zeros,
    }
