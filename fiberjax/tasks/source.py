"""The two data streams: RL prompts drawn by curriculum, and supervised warm-start batches.

Both are grain iterators: their state is JSON, and restoring it gives the same next batch, bit
for bit. Both draw a global batch that depends on (seed, step) alone and keep the rows of one
process, so the number of hosts does not change what is trained on.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import grain
import numpy as np

from fiberjax.tasks import curriculum
from fiberjax.tasks.domains import Domain, Examples, check_prompts
from fiberjax.tasks.examples import Example
from fiberjax.tasks.vocabulary import Vocabulary, prompt_ids


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
    """

    tokens: np.ndarray
    mask: np.ndarray
    prompt_index: np.ndarray
    domain: np.ndarray
    prompts: list[str]
    answers: list[str]


@dataclasses.dataclass(frozen=True)
class SupervisedBatch:
    """Solved examples, laid out as the sampler lays out a rollout. S = P + C.

    Attributes:
      tokens: int32[B, S], the prompt padded on the left to P, then the solution and end of
        sequence padded on the right to C.
      mask: bool[B, S], true at every token that is not padding.
      loss_mask: bool[B, S], true at the solution's tokens and the end of sequence: the tokens to
        be predicted, each from the one before it.
    """

    tokens: np.ndarray
    mask: np.ndarray
    loss_mask: np.ndarray


def left_padded(rows: Sequence[Sequence[int]], width: int, pad_id: int) -> np.ndarray:
    """Returns int32[B, width], each row ending at the right edge."""
    tokens = np.full((len(rows), width), pad_id, np.int32)
    for row, ids in enumerate(rows):
        if len(ids) > width:
            raise ValueError(f"row {row} has {len(ids)} tokens, the window holds {width}")
        tokens[row, width - len(ids) :] = ids
    return tokens


def prompt_batch(
    examples: Examples, prompt_index: np.ndarray, vocabulary: Vocabulary, max_prompt_tokens: int
) -> PromptBatch:
    """Returns the batch of the given prompts, in the given order.

    Example: every held-out prompt, in order, for evaluation:
    ``prompt_batch(examples, np.arange(len(examples)), vocabulary, 32)``.

    Raises:
      ValueError: a prompt longer than the window, or a character outside the vocabulary.
    """
    chosen = [examples[i] for i in prompt_index]
    rows = [prompt_ids(vocabulary, example.prompt) for example in chosen]
    tokens = left_padded(rows, max_prompt_tokens, vocabulary.pad_id)
    lengths = np.array([len(row) for row in rows])
    return PromptBatch(
        tokens=tokens,
        mask=np.arange(max_prompt_tokens) >= max_prompt_tokens - lengths[:, None],
        prompt_index=np.asarray(prompt_index, np.int64),
        domain=np.array([examples.domain_of(int(i)) for i in prompt_index], np.int64),
        prompts=[example.prompt for example in chosen],
        answers=[example.answer for example in chosen],
    )


def score(domains: Sequence[Domain], batch: PromptBatch, completions: Sequence[str]) -> np.ndarray:
    """Returns the verifiers' rewards, float32[B, G].

    Args:
      domains: the domains that ``batch.domain`` counts along.
      batch: B prompts.
      completions: B · G texts, the G samples of a prompt next to each other.

    Raises:
      ValueError: the number of completions is not a positive multiple of the prompts'.
    """
    prompts = len(batch.prompts)
    samples = len(completions) // prompts
    if samples == 0 or samples * prompts != len(completions):
        raise ValueError(f"{len(completions)} completions for {prompts} prompts")
    rewards = np.zeros((prompts, samples), np.float32)
    for row in range(prompts):
        verify = domains[batch.domain[row]].verify
        for sample in range(samples):
            text = completions[row * samples + sample]
            rewards[row, sample] = verify(batch.prompts[row], batch.answers[row], text)
    return rewards


class PromptStream(grain.DatasetIterator[PromptBatch]):
    """The prompts of RL: a domain by √(valid prompts), then a prompt by curriculum weight.

    The draw of step t is a function of (seed, t, pass rates); within a batch no prompt comes
    twice unless its domain has run out. If every prompt is solved, all count as valid again,
    with equal weight. The pass rates move only through ``observe``, which the loop calls before
    it asks for the next batch.

    Args:
      domains: where prompts come from; ``PromptBatch.domain`` counts along them.
      vocabulary: tokenizer.
      num_prompts: prompts of a global batch.
      max_prompt_tokens: P, begin of sequence included.
      total_steps: T of the curriculum.
      seed: of the draws.
      start: target pass rate at step 0.
      end: target pass rate at step T.
      sigma: width of the curriculum, in probability.
      rate: how far one batch of rollouts moves a pass rate.
      domain_probability: fixed probabilities of some domains, by name.
      process_index: this process draws rows [index · B/count, (index + 1) · B/count).
      process_count: number of processes; divides ``num_prompts``.

    Raises:
      ValueError: at once, for a prompt that does not fit the window or the vocabulary, an
        unknown domain name, or sizes that do not divide.
    """

    def __init__(
        self,
        domains: Sequence[Domain],
        vocabulary: Vocabulary,
        *,
        num_prompts: int,
        max_prompt_tokens: int,
        total_steps: int,
        seed: int = 0,
        start: float = 0.8,
        end: float = 0.2,
        sigma: float = 0.15,
        rate: float = 0.5,
        domain_probability: Mapping[str, float] | None = None,
        process_index: int = 0,
        process_count: int = 1,
    ):
        super().__init__()
        self.examples = Examples(domains)
        self.domains = self.examples.domains
        self.vocabulary = vocabulary
        self.num_prompts = num_prompts
        self.max_prompt_tokens = max_prompt_tokens
        self.total_steps = total_steps
        self.seed = seed
        self.start, self.end, self.sigma, self.rate = start, end, sigma, rate
        self._overrides = _overrides(self.domains, domain_probability)
        self._rows = _rows(num_prompts, process_index, process_count)
        for domain in self.domains:
            every = (domain.source[i] for i in range(len(domain.source)))
            check_prompts(every, vocabulary, max_prompt_tokens, where=f"domain {domain.name!r}")
        self.step = 0
        self.pass_rate = np.full(len(self.examples), np.nan)
        # Refuses overrides and a schedule that cannot be drawn from, before the first step.
        self._draw()

    @property
    def target(self) -> float:
        """The pass rate that the next batch aims at."""
        return curriculum.target_pass_rate(
            self.step, self.total_steps, start=self.start, end=self.end
        )

    def __next__(self) -> PromptBatch:
        """Returns the next batch, this process's rows."""
        drawn = self._draw()[self._rows]
        self.step += 1
        return prompt_batch(self.examples, drawn, self.vocabulary, self.max_prompt_tokens)

    def _draw(self) -> np.ndarray:
        """Returns the prompt indices of the global batch, int64[num_prompts]."""
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, self.step])))
        log_weight = curriculum.log_prompt_weights(self.pass_rate, self.target, sigma=self.sigma)
        if np.all(np.isneginf(log_weight)):
            log_weight = np.zeros_like(log_weight)
        spans = [
            slice(offset, offset + size)
            for offset, size in zip(self.examples.offsets, self.examples.sizes, strict=True)
        ]
        valid = [int(np.sum(log_weight[span] > -np.inf)) for span in spans]
        probability = curriculum.domain_probabilities(valid, self._overrides)
        counts = rng.multinomial(self.num_prompts, probability)
        drawn = [
            span.start + _weighted_draw(rng, log_weight[span], int(count))
            for span, count in zip(spans, counts, strict=True)
        ]
        # Shuffled, so that every process and minibatch sees every domain.
        return rng.permutation(np.concatenate(drawn))

    def observe(self, prompt_index: np.ndarray, rewards: np.ndarray) -> None:
        """Moves the pass rates of the prompts just tried.

        On several processes, pass what all of them tried, so that their tables stay equal.

        Args:
          prompt_index: int[B].
          rewards: float[B, G] in [0, 1].
        """
        self.pass_rate = curriculum.updated_pass_rate(
            self.pass_rate, prompt_index, rewards, rate=self.rate
        )

    def get_state(self) -> dict[str, Any]:
        """Returns the step and the profiled pass rates, as JSON values."""
        profiled = np.flatnonzero(~np.isnan(self.pass_rate))
        return {
            "step": self.step,
            "examples": repr(self.examples),
            "profiled": profiled.tolist(),
            "pass_rate": self.pass_rate[profiled].tolist(),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from a state of ``get_state``.

        Raises:
          ValueError: the state belongs to other data.
        """
        if state["examples"] != repr(self.examples):
            raise ValueError(
                f"the saved prompt stream is over {state['examples']}, this one over "
                f"{self.examples!r}"
            )
        self.step = int(state["step"])
        self.pass_rate = np.full(len(self.examples), np.nan)
        self.pass_rate[np.array(state["profiled"], np.int64)] = state["pass_rate"]

    def __repr__(self) -> str:
        return f"PromptStream({self.examples!r}, step={self.step})"


def supervised_batches(
    domains: Sequence[Domain],
    vocabulary: Vocabulary,
    *,
    batch_size: int,
    max_prompt_tokens: int,
    max_completion_tokens: int,
    seed: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator[SupervisedBatch]:
    """Returns an endless iterator of ``SupervisedBatch``, reshuffled every epoch.

    All examples of all domains are shuffled together. The iterator's ``get_state`` and
    ``set_state`` (and Orbax, through grain) resume at the exact next batch.

    Args:
      domains: their ``solution``s are the targets.
      vocabulary: tokenizer.
      batch_size: rows of a global batch.
      max_prompt_tokens: P.
      max_completion_tokens: C, end of sequence included.
      seed: of the shuffle.
      process_index: which process's rows.
      process_count: number of processes; divides ``batch_size``.

    Raises:
      ValueError: at once, for an example that does not fit either window or the vocabulary.
    """
    examples = Examples(domains)
    rows = _rows(batch_size, process_index, process_count)
    for domain in domains:
        where = f"domain {domain.name!r}"
        every = [domain.source[i] for i in range(len(domain.source))]
        check_prompts(every, vocabulary, max_prompt_tokens, where=where)
        _check_solutions(every, vocabulary, max_completion_tokens, where=where)

    def collate(batch: Sequence[Example]) -> SupervisedBatch:
        return _supervised_batch(
            list(batch)[rows], vocabulary, max_prompt_tokens, max_completion_tokens
        )

    dataset = grain.MapDataset.source(examples).seed(seed).shuffle().repeat()
    dataset = dataset.batch(batch_size, batch_fn=collate)
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)))


def _supervised_batch(
    batch: Sequence[Example], vocabulary: Vocabulary, prompt_tokens: int, completion_tokens: int
) -> SupervisedBatch:
    tokens = np.full((len(batch), prompt_tokens + completion_tokens), vocabulary.pad_id, np.int32)
    mask = np.zeros(tokens.shape, bool)
    loss_mask = np.zeros(tokens.shape, bool)
    for row, example in enumerate(batch):
        prompt = prompt_ids(vocabulary, example.prompt)
        target = [*vocabulary.encode(example.solution), vocabulary.eos_id]
        start, stop = prompt_tokens - len(prompt), prompt_tokens + len(target)
        tokens[row, start:stop] = prompt + target
        mask[row, start:stop] = True
        loss_mask[row, prompt_tokens:stop] = True
    return SupervisedBatch(tokens, mask, loss_mask)


def _check_solutions(
    examples: Sequence[Example], vocabulary: Vocabulary, completion_tokens: int, *, where: str
) -> None:
    for row, example in enumerate(examples, start=1):
        try:
            length = len(vocabulary.encode(example.solution)) + 1
        except ValueError as error:
            raise ValueError(f"{where}, row {row}: {error}") from None
        if length > completion_tokens:
            raise ValueError(
                f"{where}, row {row}: the solution has {length} tokens with its end of sequence, "
                f"the window holds max_completion_tokens={completion_tokens}"
            )


def _weighted_draw(rng: np.random.Generator, log_weight: np.ndarray, count: int) -> np.ndarray:
    """Returns ``count`` indices drawn by weight, none twice before all valid ones came once.

    The largest of log w + Gumbel noise are a draw without replacement (Gumbel top-k), which
    needs no normalised weights and so survives weights that underflow.
    """
    valid = np.flatnonzero(log_weight > -np.inf)
    rounds = []
    while count > 0:
        keys = log_weight[valid] + rng.gumbel(size=len(valid))
        rounds.append(valid[np.argsort(-keys, kind="stable")[:count]])
        count -= len(rounds[-1])
    return np.concatenate(rounds) if rounds else np.zeros(0, np.int64)


def _overrides(
    domains: Sequence[Domain], domain_probability: Mapping[str, float] | None
) -> list[float | None]:
    given = {} if domain_probability is None else dict(domain_probability)
    names = [domain.name for domain in domains]
    for name in given:
        if name not in names:
            raise ValueError(
                f"domain_probability names {name!r}, expected one of {', '.join(names)}"
            )
    return [given.get(name) for name in names]


def _rows(size: int, process_index: int, process_count: int) -> slice:
    """Returns the rows of a global batch that belong to one process."""
    if size < 1 or process_count < 1 or size % process_count != 0:
        raise ValueError(f"a batch of {size} rows cannot be split over {process_count} processes")
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index is {process_index}, expected 0..{process_count - 1}")
    share = size // process_count
    return slice(process_index * share, (process_index + 1) * share)
