"""The supervised stream of the warm start: solved examples, shuffled, without end."""

import grain
import numpy as np

from fiberjax.tasks.batches import SupervisedBatch, process_rows
from fiberjax.tasks.encoded import EncodedExamples

# Rows open at a time: more fill better, and hold examples back longer.
_PACKING_BINS = 64


def supervised_batches(
    examples: EncodedExamples,
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
      examples: their solutions are the targets.
      batch_size: rows of a global batch.
      max_prompt_tokens: P.
      max_completion_tokens: C, end of sequence included.
      flawed: share of the targets with one token, never an end of sequence, replaced by another
        of their domain's. Drawn anew each time an example comes by, so that no flaw can be learned
        by heart. A domain of one token only has no other to offer and stays right.
      seed: of the shuffle, and of the flaws.
      process_index: which process's rows.
      process_count: number of processes; divides ``batch_size``.

    Raises:
      ValueError: at once, for an example that does not fit either window or the vocabulary.
    """
    rows = process_rows(batch_size, process_index, process_count)
    examples.check_prompts(max_prompt_tokens)
    examples.check_solutions(max_completion_tokens)
    prompts, solutions, written = examples.prompts, examples.solutions, examples.written
    eos_id = examples.vocabulary.end_ids[0]
    alphabets = [
        np.setdiff1d(
            solutions.span(offset, offset + size)[written.span(offset, offset + size)], [eos_id]
        )
        for offset, size in zip(examples.offsets, examples.sizes, strict=True)
    ]

    def taught(index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        prompt, solution, own = prompts[index], solutions[index], written[index]
        if rng.random() < flawed:
            places = np.flatnonzero(own & (solution != eos_id))
            solution = _spoilt(solution, places, alphabets[examples.domain_of(index)], rng)
        tokens = np.concatenate([prompt, solution, [eos_id]]).astype(np.int32)
        return {
            "tokens": tokens,
            "loss_mask": np.concatenate([np.zeros(len(prompt), bool), own, [True]]),
        }

    width = max_prompt_tokens + max_completion_tokens
    threads = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2 * batch_size)
    order = grain.MapDataset.range(len(examples)).seed(seed).shuffle().repeat()
    dataset = order.random_map(taught)
    packed = grain.experimental.FirstFitPackIterDataset(
        dataset.to_iter_dataset(threads),
        length_struct={"tokens": width, "loss_mask": width},
        num_packing_bins=_PACKING_BINS,
        seed=seed,
        padding_struct={"tokens": examples.vocabulary.pad_id, "loss_mask": False},
    )

    def collate(packed_rows: dict[str, np.ndarray]) -> SupervisedBatch:
        return SupervisedBatch(
            tokens=packed_rows["tokens"][rows],
            positions=packed_rows["tokens_positions"][rows],
            segment_ids=packed_rows["tokens_segment_ids"][rows],
            loss_mask=packed_rows["loss_mask"][rows],
        )

    return iter(packed.batch(batch_size, drop_remainder=True).map(collate))


def _spoilt(
    solution: np.ndarray, places: np.ndarray, alphabet: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Returns the solution with a token of these places replaced by another of the alphabet."""
    if not len(places):
        return solution
    place = int(places[rng.integers(len(places))])
    others = alphabet[alphabet != solution[place]]
    if not len(others):
        return solution
    spoilt = solution.copy()
    spoilt[place] = others[int(rng.integers(len(others)))]
    return spoilt
