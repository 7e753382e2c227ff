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
    flawed: float = 0.0,
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
      flawed: share of the targets with one token, never the end of sequence, replaced by another
        of their domain's. Drawn anew each time an example comes by, so that no flaw can be learned
        by heart. A domain of one token only has no other to offer and stays right.
      seed: of the shuffle, and of the flaws.
      process_index: which process's rows.
      process_count: number of processes; divides ``batch_size``.

    Raises:
      ValueError: at once, for an example that does not fit either window or the vocabulary.
    """
    examples = Examples(domains)
    rows = process_rows(batch_size, process_index, process_count)
    alphabets: dict[str, set[int]] = {}
    for domain in domains:
        for row in range(len(domain.source)):
            where, example = f"domain {domain.name!r}, row {row + 1}", domain.source[row]
            check_prompt(example, vocabulary, max_prompt_tokens, where=where)
            solution = _solution_ids(example, vocabulary, max_completion_tokens, where=where)
            alphabets.setdefault(example.domain, set()).update(solution)

    def encode(example: Example, rng: np.random.Generator) -> dict[str, np.ndarray]:
        prompt = prompt_ids(vocabulary, example.prompt)
        solution = vocabulary.encode(example.solution)
        if rng.random() < flawed:
            _spoil(solution, alphabets[example.domain], rng)
        tokens = np.array([*prompt, *solution, vocabulary.eos_id], np.int32)
        return {"tokens": tokens, "loss_mask": np.arange(len(tokens)) >= len(prompt)}

    width = max_prompt_tokens + max_completion_tokens
    threads = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2 * batch_size)
    dataset = grain.MapDataset.source(examples).seed(seed).shuffle().repeat().random_map(encode)
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


def _solution_ids(
    example: Example, vocabulary: Vocabulary, completion_tokens: int, *, where: str
) -> list[int]:
    try:
        solution = vocabulary.encode(example.solution)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if len(solution) + 1 > completion_tokens:
        raise ValueError(
            f"{where}: the solution has {len(solution) + 1} tokens with its end of sequence, the "
            f"window holds max_completion_tokens={completion_tokens}"
        )
    return solution


def _spoil(solution: list[int], alphabet: set[int], rng: np.random.Generator) -> None:
    """Replaces one token by another of the alphabet, where there is one."""
    if not solution:
        return
    place = int(rng.integers(len(solution)))
    others = sorted(alphabet - {solution[place]})
    if others:
        solution[place] = others[int(rng.integers(len(others)))]
