"""A batch of groups whose rewards differ, made of several draws of prompts.

A group whose rewards are all equal has advantage 0 in every trajectory: it costs the updates their
tokens and teaches them nothing. Such groups are left out, and further prompts drawn, until the
batch is full or a stated multiple of it was drawn. A batch that is not full then keeps its static
shape: places without a group are rows without tokens, which no mean counts.

References:
  DAPO, arXiv 2503.14476, section 3.2 (dynamic sampling).
"""

from collections.abc import Sequence

import numpy as np
from jax.sharding import Mesh

from fiberjax.parallel import mesh
from fiberjax.tasks import EncodedExamples, prompt_batch
from fiberjax.train.rollout import Rollouts, texts_of


def differ(rewards: np.ndarray, group_size: int, counted: np.ndarray | None = None) -> np.ndarray:
    """Which groups have rewards that are not all equal; bool[groups].

    Args:
      rewards: float[R], those of a group next to each other.
      group_size: G, completions a prompt.
      counted: bool[R], which completions are looked at; all where None.
    """
    if counted is None:
        counted = np.ones(len(rewards), bool)
    high, low = (np.where(counted, rewards, of).reshape(-1, group_size) for of in (-np.inf, np.inf))
    return high.max(axis=1) > low.min(axis=1)


def choose(kept: np.ndarray, size: int, minibatches: int) -> np.ndarray:
    """Which group stands at each place of the batch; int[size], −1 where none does.

    The first groups that are kept, in the order that they were drawn in. Where they are too few,
    every minibatch has as many as another, but for one, spread evenly over its rows and so over the
    devices.

    Args:
      kept: bool[groups], over all draws.
      size: of a full batch, in groups; a multiple of the minibatches.
      minibatches: n; batch j has the places j, n + j, 2n + j, ...

    >>> choose(np.array([True, False, True, True]), 8, 2).tolist()
    [0, 2, -1, -1, 3, -1, -1, -1]
    """
    groups = np.flatnonzero(kept)[:size]
    source = np.full(size, -1)
    for j in range(minibatches):
        mine = groups[j::minibatches]
        rows = np.arange(len(mine)) * (size // minibatches) // max(len(mine), 1)
        source[j::minibatches][rows] = mine
    return source


def assemble(
    device_mesh: Mesh,
    drawn: Sequence[Rollouts],
    source: np.ndarray,
    examples: EncodedExamples,
) -> Rollouts:
    """This process's rows of the batch that `choose` chose; zeros where no group stands.

    Groups move between processes; all of them take part.

    Args:
      device_mesh: from `mesh.make_mesh`.
      drawn: this process's rows of each draw.
      source: int[B], the group of each place, counted along the draws, over all processes.
      examples: where the prompts come from.
    """
    size = drawn[0].group_size
    width = drawn[0].prompts.tokens.shape[1]
    held = source[mesh.local_rows(device_mesh, len(source))]
    rows = (np.maximum(held, 0)[:, None] * size + np.arange(size)).ravel()
    present = np.repeat(held >= 0, size)

    def moved(name: str) -> np.ndarray:
        table = np.concatenate([mesh.gather(device_mesh, getattr(of, name)) for of in drawn])[rows]
        return np.where(present.reshape(-1, *[1] * (table.ndim - 1)), table, table.dtype.type(0))

    index = np.concatenate([mesh.gather(device_mesh, of.prompts.prompt_index) for of in drawn])
    prompts = prompt_batch(examples, index[np.maximum(held, 0)], width)
    tokens, mask, turn = moved("tokens"), moved("mask"), moved("turn")
    return Rollouts(
        tokens=tokens,
        positions=moved("positions"),
        segment_ids=moved("segment_ids"),
        mask=mask,
        turn=turn,
        finished=moved("finished"),
        sampler_log_prob=moved("sampler_log_prob"),
        log_kept=moved("log_kept"),
        reward=moved("reward"),
        replies_cut=moved("replies_cut"),
        prompts=prompts,
        texts=texts_of(examples.turns, examples.vocabulary, tokens[:, width:], mask, turn),
        failed=None if drawn[0].failed is None else moved("failed"),
    )
