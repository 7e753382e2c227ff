"""What the policy wrote, as files: one schema for all that is kept of rollouts.

A run folder holds `samples/` with a Parquet file an iteration and split, such as
`000010-train.parquet`. The schema of its rows, and of whatever else is kept of rollouts, whose
further columns stand after these:

| column | type | meaning |
|---|---|---|
| iteration | int32 | iterations finished with the one that drew it, from 1; 0 is before the first |
| split | string | "train", or "held_out": of an evaluation |
| domain | string | of the prompt |
| prompt | string | as the data has it, without what a chat template puts around it |
| completion | string | what the policy wrote, decoded; of several turns all that was said |
| answer | string | what is right, as the data has it |
| extracted | string | what the verifier took for the answer; null where it says nothing of it |
| reward | float32 | of the completion |
| length | int32 | tokens that the policy wrote, the end of sequence included |
| finished | bool | whether it ended by itself, not by the window |
| prompt_index | int64 | the prompt's place among the split's examples |
| sample | int32 | which of the prompt's completions, from 0 |

Between turns and replies stands U+001E. Any reader of Parquet reads the files;
`pyarrow.parquet.read_table("runs/quickstart/samples")` reads all. A draw depends on the seed and
the iteration alone, so that a resumed run writes the same bytes. Texts are data: a half of a
surrogate, which UTF-8 cannot hold, is written as its escape.
"""

import io
import os
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fiberjax import disk, storage
from fiberjax.experiment import Experiment
from fiberjax.parallel import mesh
from fiberjax.tasks.environments import SEPARATOR
from fiberjax.tasks.rewards import extracted
from fiberjax.train.rollout import Rollouts
from fiberjax.train.turns import spoken

FOLDER = "samples"
_NAME = re.compile(r"[0-9]+-[a-z_]+\.parquet")
TRAIN, HELD_OUT = "train", "held_out"

SCHEMA = pa.schema(
    [
        pa.field("iteration", pa.int32(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("domain", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("completion", pa.string(), nullable=False),
        pa.field("answer", pa.string(), nullable=False),
        pa.field("extracted", pa.string()),
        pa.field("reward", pa.float32(), nullable=False),
        pa.field("length", pa.int32(), nullable=False),
        pa.field("finished", pa.bool_(), nullable=False),
        pa.field("prompt_index", pa.int64(), nullable=False),
        pa.field("sample", pa.int32(), nullable=False),
    ]
)
"""The columns of the table above."""


def rank(domain: np.ndarray) -> np.ndarray:
    """Which of its domain's prompts each one is, counted from 0 in their order; int64[prompts].

    >>> rank(np.array([1, 0, 1, 1, 0]))
    array([0, 0, 1, 2, 1])
    """
    order = np.argsort(domain, kind="stable")
    sizes = np.bincount(domain)
    within = np.arange(len(domain)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    ranks = np.empty(len(domain), np.int64)
    ranks[order] = within
    return ranks


def first_of_each_domain(experiment: Experiment, drawn: Rollouts, samples: int) -> np.ndarray:
    """Rows of the global batch, int[n], in its order: a completion of each domain's first prompts.

    Every process must call it, and all get the same.

    Args:
      experiment: of the run.
      drawn: this process's rollouts.
      samples: prompts of each domain.
    """
    domain = mesh.gather(experiment.mesh, drawn.prompts.domain)
    return np.flatnonzero(rank(domain) < samples) * drawn.group_size


def table(
    experiment: Experiment, drawn: Rollouts, rows: np.ndarray, *, iteration: int, split: str
) -> pa.Table:
    """Rows of rollouts by `SCHEMA`; every process must call it, and all get the same.

    Args:
      experiment: of the run.
      drawn: this process's rollouts.
      rows: int[n], which ones of the global batch.
      iteration: for the column of that name.
      split: `TRAIN` or `HELD_OUT`, which says whose examples the prompts are.
    """
    examples = experiment.examples if split == TRAIN else experiment.held_out
    width = drawn.mask.shape[1]
    prompt_index, tokens, mask, turn, reward, finished = (
        mesh.gather(experiment.mesh, of)
        for of in (
            drawn.prompts.prompt_index,
            drawn.tokens[:, -width:],
            drawn.mask,
            drawn.turn,
            drawn.reward,
            drawn.finished,
        )
    )
    found = []
    for row in map(int, rows):
        index = int(prompt_index[row // drawn.group_size])
        domain, example = examples.domains[examples.domain_of(index)], examples[index]
        said = spoken(
            experiment.vocabulary, experiment.turns.role, tokens[row], mask[row], turn[row]
        )
        completion = SEPARATOR.join(said)
        answer = extracted(domain.verify, experiment.turns.text(said))
        found.append(
            {
                "iteration": iteration,
                "split": split,
                "domain": _utf8(domain.name),
                "prompt": _utf8(example.prompt),
                "completion": _utf8(completion),
                "answer": _utf8(example.answer),
                "extracted": None if answer is None else _utf8(str(answer)),
                "reward": float(reward[row]),
                "length": int(mask[row].sum()),
                "finished": bool(finished[row]),
                "prompt_index": index,
                "sample": row % drawn.group_size,
            }
        )
    return pa.Table.from_pylist(found, schema=SCHEMA)


def _utf8(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


class Folder:
    """The `samples/` of a run: files of iterations, up to a size.

    Args:
      directory: of the run.
      iteration: that the run goes on from: files of later ones, which a killed run left, are
        removed.
      limit: bytes that the files may have together before another is written.

    Attributes:
      full: whether a file was left out for the limit.
    """

    def __init__(self, directory: Path, iteration: int, limit: float):
        self.full = False
        self._path = directory / FOLDER
        self._limit = limit
        self._sizes: dict[str, int] = {}
        for file in files_in(self._path):
            if int(file.name.partition("-")[0]) > iteration:
                file.unlink()
            else:
                self._sizes[file.name] = storage.size(file)

    def write(self, rows: pa.Table) -> Path | None:
        """Writes the rows of one iteration and split; the file, old or new and never a half.

        None, and `full` from then on, where the files before it have reached the limit.
        """
        split, iteration = rows["split"][0].as_py(), rows["iteration"][0].as_py()
        file = self._path / f"{iteration:06d}-{split}.parquet"
        before = sum(size for name, size in self._sizes.items() if name != file.name)
        if self.full or before >= self._limit:
            self.full = True
            return None
        write_whole("the samples", rows, file)
        self._sizes[file.name] = storage.size(file)
        return file


def files_in(folder: Path) -> list[Path]:
    """The files that runs write, in order; what else lies there is passed over."""
    files = storage.matching(folder, "*.parquet")
    return [file for file in files if _NAME.fullmatch(file.name)]


def write_whole(what: str, rows: pa.Table, file: Path, **options: Any) -> None:
    """Writes a Parquet file, old or new and never a half.

    Args:
      what: is written, for the error of a full disk.
      rows: of the file.
      file: in a folder that is made.
      options: of pyarrow.

    Raises:
      NoRoom: the disk is full.
    """
    with disk.writing(what, file):
        written = io.BytesIO()
        pq.write_table(rows, written, compression="zstd", **options)
        storage.write(file, written.getvalue())


def kept_of_evaluations(experiment: Experiment) -> int:
    """Completions of each domain that are kept of an evaluation; 0 for none."""
    return experiment.keep.samples if experiment.keep.every > 0 else 0


def seen_before_training(experiment: Experiment) -> int:
    """Completions of each domain that are seen before training: kept, or shown alone."""
    shown = experiment.rewards.shown if experiment.tasks.of_rows else 0
    return max(kept_of_evaluations(experiment), shown)


def first_rows(samples: pa.Table, most: int) -> pa.Table:
    """The first rows of each domain of a table, so many at most."""
    codes = samples["domain"].combine_chunks().dictionary_encode().indices
    return samples.filter(pa.array(rank(codes.to_numpy()) < most))


def open_folder(experiment: Experiment, directory: Path, iteration: int) -> Folder | None:
    """The `samples/` of a run that goes on from an iteration; None where none is to be written."""
    if jax.process_index() > 0 or experiment.keep.every == 0:
        return None
    return Folder(directory, iteration, experiment.keep.megabytes * 1e6)


def read(directory: str | os.PathLike[str]) -> pa.Table:
    """Reads the samples of a run, by iteration, held-out ones first; a table of `SCHEMA`.

    Args:
      directory: the run folder.

    Raises:
      ValueError: it holds none, or a file that is not of the schema.
    """
    files = files_in(storage.place(directory) / FOLDER)
    if not files:
        raise ValueError(f"{str(directory)!r} holds no {FOLDER}/ of a run")
    return pa.concat_tables(list(map(read_file, files)))


def read_file(file: Path) -> pa.Table:
    """Reads one file of samples, or of kept rollouts: the columns of `SCHEMA`.

    Raises:
      ValueError: it holds none.
    """
    try:
        # Of a file with further columns, those of the schema.
        return pq.read_table(io.BytesIO(file.read_bytes())).select(SCHEMA.names).cast(SCHEMA)
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise ValueError(f"{file} holds no samples of a run: {error}") from None
