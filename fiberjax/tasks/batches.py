"""What the streams hand out: padded batches, built on the host, and their verifiers' rewards."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fiberjax.tasks.domains import Domain
from fiberjax.tasks.encoded import EncodedExamples
from fiberjax.tasks.rewards import Case, rewards_of
from fiberjax.tasks.rewards.base import Rewards


@dataclasses.dataclass(frozen=True)
class PromptBatch:
    """Prompts of one RL step, one row each; a row's G samples are one prompt group.

    Attributes:
      tokens: int32[B, P], prompts padded on the left.
      mask: bool[B, P], true at the prompt's tokens.
      prompt_index: int64[B], the prompt's place in the stream's ``examples``.
      domain: int64[B], the domain's place in the stream's ``domains``.
      prompts: B texts.
      answers: B final answers, for the verifier.
      accepted: B tuples of all accepted answers; () where there is but the one of ``answers``.
      rows: B mappings of the columns that rewards read; () where there are none.
    """

    tokens: np.ndarray
    mask: np.ndarray
    prompt_index: np.ndarray
    domain: np.ndarray
    prompts: list[str]
    answers: list[str]
    accepted: list[tuple[str, ...]] = dataclasses.field(default_factory=list)
    rows: Sequence[Mapping[str, Any]] = ()


@dataclasses.dataclass(frozen=True)
class SupervisedBatch:
    """Solved examples, several packed in a row; none sees another. S = P + C.

    Attributes:
      tokens: int32[B, S], prompt, solution and end of sequence of each example, then padding.
      positions: int32[B, S], from 0 in each example.
      segment_ids: int32[B, S], 1, 2, ... the examples of a row, 0 at padding.
      loss_mask: bool[B, S], true at the solution's tokens and the end of sequence: the tokens to
        be predicted, each from the one before it.
    """

    tokens: np.ndarray
    positions: np.ndarray
    segment_ids: np.ndarray
    loss_mask: np.ndarray


def left_padded(rows: Sequence[Sequence[int] | np.ndarray], width: int, pad_id: int) -> np.ndarray:
    """Returns int32[B, width], each row ending at the right edge."""
    tokens = np.full((len(rows), width), pad_id, np.int32)
    for row, ids in enumerate(rows):
        if len(ids) > width:
            raise ValueError(f"row {row} has {len(ids)} tokens, the window holds {width}")
        tokens[row, width - len(ids) :] = ids
    return tokens


def prompt_batch(
    examples: EncodedExamples, prompt_index: np.ndarray, max_prompt_tokens: int
) -> PromptBatch:
    """Returns the batch of the given prompts, in the given order.

    Example: every held-out prompt, in order, for evaluation:
    ``prompt_batch(examples, np.arange(len(examples)), 32)``.

    Raises:
      ValueError: a prompt longer than the window, or a character outside the vocabulary.
    """
    chosen = [examples[i] for i in prompt_index]
    rows = [examples.prompts[i] for i in prompt_index]
    tokens = left_padded(rows, max_prompt_tokens, examples.vocabulary.pad_id)
    lengths = np.array([len(row) for row in rows])
    return PromptBatch(
        tokens=tokens,
        mask=np.arange(max_prompt_tokens) >= max_prompt_tokens - lengths[:, None],
        prompt_index=np.asarray(prompt_index, np.int64),
        domain=np.array([examples.domain_of(int(i)) for i in prompt_index], np.int64),
        prompts=[example.prompt for example in chosen],
        answers=[example.answer for example in chosen],
        accepted=[example.answers for example in chosen],
        rows=[example.row for example in chosen],
    )


def reward_completions(
    domains: Sequence[Domain], batch: PromptBatch, completions: Sequence[str]
) -> Rewards:
    """Returns the verifiers' rewards, [B, G]: of several accepted answers the best.

    Each domain's verifier is asked once for all its completions.

    Args:
      domains: the domains that ``batch.domain`` counts along.
      batch: B prompts.
      completions: B · G texts, the G samples of a prompt next to each other.

    Raises:
      ValueError: the number of completions is not a positive multiple of the prompts'; or a
        reward is not a finite number, or failed where that ends the run.
    """
    prompts = len(batch.prompts)
    samples = len(completions) // prompts
    if samples == 0 or samples * prompts != len(completions):
        raise ValueError(f"{len(completions)} completions for {prompts} prompts")
    best = np.full(prompts * samples, -np.inf, np.float32)
    failed = np.zeros(prompts * samples, bool)
    for place, domain in enumerate(domains):
        cases, whose = [], []
        for row in map(int, np.flatnonzero(batch.domain == place)):
            answers = batch.accepted[row] if batch.accepted else (batch.answers[row],)
            kept = batch.rows[row] if batch.rows else {}
            for index in range(row * samples, (row + 1) * samples):
                for answer in answers:
                    cases.append(Case(batch.prompts[row], answer, completions[index], kept))
                    whose.append(index)
        if cases:
            found = rewards_of(domain.verify, domain.name, cases)
            np.maximum.at(best, whose, found.reward)
            np.logical_or.at(failed, whose, found.failed)
    return Rewards(best.reshape(prompts, samples), failed.reshape(prompts, samples))


def process_rows(size: int, process_index: int, process_count: int) -> slice:
    """Returns the rows of a global batch that belong to one process."""
    if size < 1 or process_count < 1 or size % process_count != 0:
        raise ValueError(f"a batch of {size} rows cannot be split over {process_count} processes")
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index is {process_index}, expected 0..{process_count - 1}")
    share = size // process_count
    return slice(process_index * share, (process_index + 1) * share)
