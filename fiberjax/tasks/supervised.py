"""The supervised stream of the warm start: solved examples, shuffled, without end."""

from collections.abc import Sequence

import grain
import numpy as np

from fiberjax.tasks.batches import SupervisedBatch, process_rows
from fiberjax.tasks.domains import Domain, Examples, check_prompt
from fiberjax.tasks.examples import Example
from fiberjax.tasks.vocabulary import Vocabulary, prompt_ids


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
    rows = process_rows(batch_size, process_index, process_count)
    for domain in domains:
        for row in range(len(domain.source)):
            where, example = f"domain {domain.name!r}, row {row + 1}", domain.source[row]
            check_prompt(example, vocabulary, max_prompt_tokens, where=where)
            _check_solution(example, vocabulary, max_completion_tokens, where=where)

    def collate(batch: Sequence[Example]) -> SupervisedBatch:
        return _supervised_batch(
            list(batch)[rows], vocabulary, max_prompt_tokens, max_completion_tokens
        )

    dataset = grain.MapDataset.source(examples).seed(seed).shuffle().repeat()
    dataset = dataset.batch(batch_size, drop_remainder=True, batch_fn=collate)
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


def _check_solution(
    example: Example, vocabulary: Vocabulary, completion_tokens: int, *, where: str
) -> None:
    try:
        length = len(vocabulary.encode(example.solution)) + 1
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if length > completion_tokens:
        raise ValueError(
            f"{where}: the solution has {length} tokens with its end of sequence, the window "
            f"holds max_completion_tokens={completion_tokens}"
        )
