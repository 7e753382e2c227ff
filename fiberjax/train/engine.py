"""Who draws the completions: the compiled loop of `policy.sample`, or another program.

The loop is the default, and a `Sampler` runs it itself. Anything else is an `Engine`: weights are
pushed to it, prompts go in, completions with their log-probabilities come out. What comes from
another program is checked before anything is trained on it.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from fiberjax.policy import Samples


@dataclasses.dataclass(frozen=True)
class Draws:
    """How completions are drawn, all of a call alike.

    Attributes:
      max_new_tokens: of a completion, its end included.
      vocab_size: ids are below it.
      end_ids: the tokens that end a completion.
      pad_id: fills rows after the end.
      temperature: positive; 0 takes the likeliest token.
      top_k: 0 for all tokens.
      top_p: 1.0 for all tokens.
    """

    max_new_tokens: int
    vocab_size: int
    end_ids: tuple[int, ...]
    pad_id: int
    temperature: float
    top_k: int
    top_p: float


class Engine(Protocol):
    """Draws completions with weights that are pushed to it."""

    def push(self, params: Any) -> None:
        """Has what is drawn from now on drawn with these parameters of the policy."""

    def complete(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], draws: Draws
    ) -> Samples:
        """One completion of each prompt, on the host; row by row from its prompt and seed alone.

        Args:
          prompts: token ids, begin of sequence included.
          seeds: below 2³¹.
          draws: how.
        """


@dataclasses.dataclass(frozen=True)
class Completion:
    """What an engine says of one prompt, not yet believed.

    Attributes:
      tokens: ids.
      log_probs: of each of them, under the distribution that it was drawn from; nats.
      stopped: whether it says that an end token ended it, rather than the limit.
    """

    tokens: Sequence[Any]
    log_probs: Sequence[Any]
    stopped: bool


# A log-probability above 0 by no more than rounding counts as 0.
_ROUNDING = 1e-4


def problem(completion: Completion, draws: Draws) -> str:
    """What is wrong with a completion; "" where nothing is."""
    tokens, log_probs = completion.tokens, completion.log_probs
    if not 1 <= len(tokens) <= draws.max_new_tokens:
        return f"{len(tokens)} tokens; expected 1 to {draws.max_new_tokens}"
    if len(log_probs) != len(tokens):
        return f"{len(log_probs)} log-probabilities for {len(tokens)} tokens"
    for at, token in enumerate(tokens):
        if type(token) is not int or not 0 <= token < draws.vocab_size:
            return f"token {at} is {token!r:.40}; expected an id in [0, {draws.vocab_size})"
    for at, value in enumerate(log_probs):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or value > _ROUNDING:
            return f"log-probability {at} is {value!r:.40}; expected a finite one, at most 0"
    early = [at for at, token in enumerate(tokens[:-1]) if token in draws.end_ids]
    if early:
        return f"token {early[0]} of {len(tokens)} ends a completion, but others follow"
    ended = tokens[-1] in draws.end_ids
    if completion.stopped and not ended:
        return (
            f"it says that an end token stopped it, but its last token, {tokens[-1]}, is not one "
            f"of {list(draws.end_ids)}: end tokens must come with the others"
        )
    if not ended and len(tokens) < draws.max_new_tokens:
        return (
            f"{len(tokens)} tokens without an end; expected {draws.max_new_tokens}: its own limit "
            "of a sequence may be shorter"
        )
    return ""


def table(completions: Sequence[Completion], draws: Draws) -> Samples:
    """Completions that have no `problem`, as arrays; what an engine left out is not known."""
    shape = (len(completions), draws.max_new_tokens)
    tokens = np.full(shape, draws.pad_id, np.int32)
    log_prob = np.zeros(shape, np.float32)
    length = np.array([len(of.tokens) for of in completions], np.int32)
    for row, of in enumerate(completions):
        tokens[row, : length[row]] = of.tokens
        log_prob[row, : length[row]] = np.minimum(np.array(of.log_probs, np.float32), 0)
    finished = np.array([of.tokens[-1] in draws.end_ids for of in completions])
    samples: Any = (tokens, log_prob, np.zeros(shape, np.float32), length, finished, length)
    return Samples(*samples)
