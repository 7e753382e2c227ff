"""What a completion's length and its truncation do to the reward that training takes.

Verifiers say what a text is worth; metrics, pass rates and evaluations are of that. What advantages
are made of may be less: an answer that the window cut may count 0 or not at all, and one that is
nearly as long as the window may be charged for it.
"""

import numpy as np


def overlong(length: np.ndarray, start: int, cache: int) -> np.ndarray:
    """The soft punishment of long completions; float32[R], from 0 down to −1.

        0                        length ≤ start
        (start − length)/cache   up to start + cache
        −1                       beyond

    Args:
      length: int[R], tokens.
      start: the most tokens that cost nothing.
      cache: tokens over which the punishment grows, at least 1.

    References:
      DAPO, arXiv 2503.14476, eq. 13; start is its L_max − L_cache.

    >>> overlong(np.array([12, 13, 16, 20]), 12, 4).tolist()
    [0.0, -0.25, -1.0, -1.0]
    """
    over = (start - length.astype(np.float32)) / np.float32(cache)
    return np.clip(over, -1, 0, dtype=np.float32)


def shaped(
    reward: np.ndarray,
    length: np.ndarray,
    finished: np.ndarray,
    *,
    truncated: str,
    start: int,
    cache: int,
) -> tuple[np.ndarray, np.ndarray]:
    """What advantages are made of.

    Args:
      reward: float32[R], of the verifiers.
      length: int[R], tokens.
      finished: bool[R], whether it ended by itself.
      truncated: what becomes of one that did not: "score" changes nothing, "zero" makes its reward
        0, and under "mask" it does not count.
      start: of `overlong`.
      cache: of `overlong`; 0 punishes nothing.

    Returns:
      float32[R], the rewards; and bool[R], which completions count.

    >>> reward, length, finished = np.ones(2, np.float32), np.array([3, 8]), np.array([True, False])
    >>> shaped(reward, length, finished, truncated="zero", start=6, cache=4)[0].tolist()
    [1.0, -0.5]
    """
    counted = np.ones(len(reward), bool)
    if truncated == "zero":
        reward = np.where(finished, reward, np.float32(0))
    elif truncated == "mask":
        counted = finished.astype(bool)
    if cache > 0:
        reward = reward + overlong(length, start, cache)
    return reward, counted
