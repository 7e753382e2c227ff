"""The prompt stream of RL: a domain, then a prompt by curriculum.

A grain iterator whose state is JSON; restoring it gives the same next batch, bit for bit. The
global batch depends on (seed, step, pass rates) alone and each process keeps its rows, so the
number of processes does not change what is trained on.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import grain
import numpy as np

from fiberjax.tasks import curriculum
from fiberjax.tasks.batches import PromptBatch, process_rows, prompt_batch
from fiberjax.tasks.domains import Domain
from fiberjax.tasks.encoded import EncodedExamples
from fiberjax.tasks.rewards import passes


class PromptStream(grain.DatasetIterator[PromptBatch]):
    """The prompts of RL: a domain by √(valid prompts), then a prompt by curriculum weight.

    The draw of step t is a function of (seed, t, pass rates); within a batch no prompt comes
    twice unless its domain has run out. If every prompt is solved, all count as valid again,
    with equal weight. The pass rates move only through ``observe``, which the loop calls before
    it asks for the next batch.

    Args:
      examples: where prompts come from; ``PromptBatch.domain`` counts along their domains.
      num_prompts: prompts of a global batch.
      max_prompt_tokens: P, begin of sequence included.
      total_steps: T of the curriculum.
      seed: of the draws.
      start: target pass rate at step 0.
      end: target pass rate at step T.
      sigma: width of the curriculum, in probability.
      rate: how far one batch of rollouts moves a pass rate.
      pass_threshold: the least reward of a completion that passes.
      domain_probability: fixed probabilities of some domains, by name.
      process_index: this process draws rows [index · B/count, (index + 1) · B/count).
      process_count: number of processes; divides ``num_prompts``.

    Raises:
      ValueError: at once, for a prompt that does not fit the window or the vocabulary, an
        unknown domain name, or sizes that do not divide.
    """

    def __init__(
        self,
        examples: EncodedExamples,
        *,
        num_prompts: int,
        max_prompt_tokens: int,
        total_steps: int,
        seed: int = 0,
        start: float = 0.8,
        end: float = 0.2,
        sigma: float = 0.15,
        rate: float = 0.5,
        pass_threshold: float = 1.0,
        domain_probability: Mapping[str, float] | None = None,
        process_index: int = 0,
        process_count: int = 1,
    ):
        super().__init__()
        self.examples = examples
        self.domains = examples.domains
        self.num_prompts = num_prompts
        self.max_prompt_tokens = max_prompt_tokens
        self.total_steps = total_steps
        self.seed = seed
        self.start, self.end, self.sigma, self.rate = start, end, sigma, rate
        self.pass_threshold = pass_threshold
        self._overrides = _overrides(self.domains, domain_probability)
        self._rows = process_rows(num_prompts, process_index, process_count)
        examples.check_prompts(max_prompt_tokens)
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
        return prompt_batch(self.examples, drawn, self.max_prompt_tokens)

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
          rewards: float[B, G]; those of at least ``pass_threshold`` pass.
        """
        passed = passes(rewards, self.pass_threshold)
        self.pass_rate = curriculum.updated_pass_rate(
            self.pass_rate, prompt_index, passed, rate=self.rate
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
