"""Kept rollouts of sixteen trajectories, and texts that would like to be markup."""

import functools

import numpy as np

from fiberjax.analysis import tokens
from fiberjax.run.kept import Kept, from_arrays

ROWS, COLUMNS = 16, 6
GATES = ("fiberpo_domain", "silent_domain", "gspo")
HOSTILE = (
    "<script>document.title = 'taken'</script>",
    "<img src=x onerror=\"document.title = 'taken'\">",
    "</script><svg onload=\"document.title = 'taken'\">",
    "\u202egnissim\x1b[2J\n",
    "{{SCRIPT}}",
    "plain & <b>bold</b>",
)


@functools.cache
def kept() -> Kept:
    """Four prompts of four completions in two domains, in two optimizer batches."""
    random = np.random.default_rng(3)
    row = np.arange(ROWS)
    mask = np.arange(COLUMNS) < random.integers(3, COLUMNS + 1, ROWS)[:, None]
    mask[2, 1] = False  # What another said, in between.
    old = -random.exponential(size=mask.shape)
    drift = random.normal(0, 0.05, mask.shape) + random.normal(0, 0.08, (ROWS, 1))
    drift[5] = [0.3, -0.2, 0.1, 0.0, 0.25, 0.05]
    ids = np.where(np.cumsum(mask[:, ::-1], axis=1)[:, ::-1] > 0, 1, 0)
    ids = ids * (1 + (row[:, None] + np.arange(COLUMNS)) % len(HOSTILE))
    return from_arrays(
        log_prob=old + drift,
        old_log_prob=old,
        mask=mask,
        advantage=random.normal(size=ROWS),
        parents={"group": row // 4, "domain": row // 4 % 2},
        reward=(row % 3 == 0).astype(float),
        tokens=ids,
        texts=["".join(HOSTILE)] * ROWS,
        prompts=[f"{HOSTILE[group]} {group}" for group in row // 4],
        domain=[("sort", HOSTILE[1])[group % 2] for group in row // 4],
        sampler_log_prob=old - 0.01,
        sample_weight=random.uniform(0.5, 1.5, mask.shape),
        minibatch=(row // 4 >= 2).astype(np.int32),
    )


@functools.cache
def under(gate: str) -> tokens.Tokens:
    """The numbers of these rollouts under a gate."""
    entropy = np.random.default_rng(4).exponential(size=kept().mask.shape)
    return tokens.look(kept(), gate, entropy=entropy)


def texts() -> list[list[str]]:
    """The text of every token."""
    return [["" if of == 0 else HOSTILE[of - 1] for of in row] for row in kept().tokens]
