"""Episodes: the policy's turns and the replies of an environment, put together in rows.

A row is the prompt, the policy's first turn, a reply, its second turn, and so on, without a gap:
one sequence, as a trainer reads it. Each turn is drawn from all that stands before it, padded on
the left to one width a turn, so that every turn has one static shape. Rows whose episode is over
take no further part. An episode of one turn is a completion like any other.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fiberjax.policy import Samples
from fiberjax.tasks import Vocabulary
from fiberjax.tasks.environments import Turns
from fiberjax.tasks.examples import Example
from fiberjax.tasks.rewards.base import Failed

Draw = Callable[[np.ndarray, np.ndarray, np.ndarray, int], Samples | None]
"""`(prompts [N, W], prompt_mask [N, W], rows [N], turn)` -> a turn of each row, on the host.

All processes call it for as many turns as one of them, with no row where none of theirs goes on;
None where none goes on anywhere.
"""


class Episodes(NamedTuple):
    """Episodes, one a row; C columns after the prompt.

    Attributes:
      tokens: int32[R, C], the policy's turns and the replies, then padding.
      real: bool[R, C], what is no padding.
      mask: bool[R, C], the policy's tokens, with the end of each turn.
      turn: int32[R, C], which of the policy's turns a token is of, from 0; 0 elsewhere too.
      log_prob: float32[R, C], as `policy.Samples`, 0 but at the policy's tokens.
      log_kept: float32[R, C], alike.
      finished: bool[R], whether the last turn ended by itself.
      cut: int32[R], replies that are not whole: too long, or not in the vocabulary.
      failed: bool[R], whether the environment failed, which ended the episode.
      held: int32[R], steps for which the row had a place in a batch of the sampler, all turns.
    """

    tokens: np.ndarray
    real: np.ndarray
    mask: np.ndarray
    turn: np.ndarray
    log_prob: np.ndarray
    log_kept: np.ndarray
    finished: np.ndarray
    cut: np.ndarray
    failed: np.ndarray
    held: np.ndarray


def play(
    draw: Draw,
    turns: Turns,
    vocabulary: Vocabulary,
    examples: Sequence[Example],
    prompts: np.ndarray,
    prompt_mask: np.ndarray,
    columns: int,
) -> Episodes:
    """Plays an episode of each row: turns are drawn, and replies asked for between them.

    Args:
      draw: of the sampler.
      turns: how an episode goes.
      vocabulary: of the policy.
      examples: R, what is asked in each row; not read without an environment.
      prompts: int32[R, P], padded on the left.
      prompt_mask: bool[R, P].
      columns: C, of all turns and replies.
    """
    num, width = prompts.shape
    most = turns.tokens(columns)
    tokens = np.full((num, columns), vocabulary.pad_id, np.int32)
    real, mask = np.zeros((2, num, columns), bool)
    turn = np.zeros((num, columns), np.int32)
    log_prob, log_kept = np.zeros((2, num, columns), np.float32)
    (finished, failed), (cut, held) = np.zeros((2, num), bool), np.zeros((2, num), np.int32)
    used = np.zeros(num, np.int64)
    said: list[list[str]] = [[] for _ in range(num)]
    going = np.arange(num)
    for number in range(turns.limit):
        before = width + number * (most + turns.reply)
        window = left_padded(
            np.concatenate([prompts, tokens], axis=1)[going],
            np.concatenate([prompt_mask, real], axis=1)[going],
            before,
            vocabulary.pad_id,
        )
        drawn: Any = draw(*window, going, number)
        if drawn is None:
            break
        written = np.arange(most) < drawn.length[:, None]
        rows = np.broadcast_to(going[:, None], written.shape)[written]
        at = (used[going][:, None] + np.arange(most))[written]
        for table, values in (
            *((tokens, drawn.tokens[written]), (log_prob, drawn.log_prob[written])),
            *((log_kept, drawn.log_kept[written]), (turn, number), (mask, True), (real, True)),
        ):
            table[rows, at] = values
        used[going] += drawn.length
        finished[going] = drawn.finished
        held[going] += drawn.held
        if turns.environment is None or number + 1 == turns.limit:
            break
        for row, length in zip(going, drawn.length, strict=True):
            said[row].append(vocabulary.decode(tokens[row, used[row] - length : used[row]]))
        ended = going[drawn.finished]
        asked = [(examples[int(row)], tuple(said[row])) for row in ended]
        on = []
        for row, reply in zip(ended, turns.replies(asked), strict=True):
            if isinstance(reply, Failed):
                failed[row] = True
            if not isinstance(reply, str):
                continue
            ids, whole = turns.encode_reply(vocabulary, reply, int(tokens[row, used[row] - 1]))
            said[row].append(vocabulary.decode_reply(ids, turns.role))
            tokens[row, used[row] : used[row] + len(ids)] = ids
            real[row, used[row] : used[row] + len(ids)] = True
            used[row] += len(ids)
            cut[row] += not whole
            on.append(row)
        going = np.array(on, np.int64)
    return Episodes(tokens, real, mask, turn, log_prob, log_kept, finished, cut, failed, held)


def left_padded(
    tokens: np.ndarray, real: np.ndarray, width: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """The real tokens of each row at its right edge, in their order; int32 and bool[N, width].

    >>> left_padded(np.array([[0, 5, 6, 0, 7]]), np.array([[0, 1, 1, 0, 1]], bool), 4, 9)
    (array([[9, 5, 6, 7]]), array([[False,  True,  True,  True]]))
    """
    order = np.argsort(real, axis=1, kind="stable")[:, real.shape[1] - width :]
    moved = np.take_along_axis(real, order, axis=1)
    return np.where(moved, np.take_along_axis(tokens, order, axis=1), pad_id), moved


def spoken(
    vocabulary: Vocabulary, role: str, tokens: np.ndarray, mask: np.ndarray, turn: np.ndarray
) -> list[str]:
    """What was said in one row: the policy's turns and the replies alternately.

    Args:
      vocabulary: of the policy.
      role: of who answers.
      tokens: int32[C], behind the prompt.
      mask: bool[C], the policy's.
      turn: int32[C], which of its turns.
    """
    said: list[str] = []
    end = 0
    for number in np.unique(turn[mask]):
        columns = np.flatnonzero(mask & (turn == number))
        if said:
            said.append(vocabulary.decode_reply(tokens[end : columns[0]].tolist(), role))
        end = columns[-1] + 1
        said.append(vocabulary.decode(tokens[columns]))
    return said
