"""The supervised stream of the warm start: solved examples, shuffled, without end."""

from collections.abc import Sequence

import grain
import numpy as np

from fiberjax.tasks.batches import SupervisedBatch, process_rows
from fiberjax.tasks.domains import Domain, Examples, check_prompt
from fiberjax.tasks.examples import Example
from fiberjax.tasks.vocabulary import Vocabulary, prompt_ids

# Rows open at a time: more fill better, and hold examples back longer.
_PACKING_BINS = 64


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

    All examples of all domains are shuffled together and packed into rows by first fit, so that
    short answers waste no tokens beside long ones. The iterator's ``get_state`` and ``set_state``
    (and Orbax, through grain) resume at the exact next batch.

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

    def encode(example: Example) -> dict[str, np.ndarray]:
        prompt = prompt_ids(vocabulary, example.prompt)
        target = [*vocabulary.encode(example.solution), vocabulary.eos_id]
        tokens = np.array([*prompt, *target], np.int32)
        return {"tokens": tokens, "loss_mask": np.arange(len(tokens)) >= len(prompt)}

    width = max_prompt_tokens + max_completion_tokens
    threads = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2 * batch_size)
    dataset = grain.MapDataset.source(examples).seed(seed).shuffle().repeat().map(encode)
    packed = grain.experimental.FirstFitPackIterDataset(
        dataset.to_iter_dataset(threads),
        length_struct={"tokens": width, "loss_mask": width},
        num_packing_bins=_PACKING_BINS,
        seed=seed,
        padding_struct={"tokens": vocabulary.pad_id, "loss_mask": False},
    )

    def collate(packed_rows: dict[str, np.ndarray]) -> SupervisedBatch:
        return SupervisedBatch(
            tokens=packed_rows["tokens"][rows],
            positions=packed_rows["tokens_positions"][rows],
            segment_ids=packed_rows["tokens_segment_ids"][rows],
            loss_mask=packed_rows["loss_mask"][rows],
        )

    return iter(packed.batch(batch_size, drop_remainder=True).map(collate))


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
