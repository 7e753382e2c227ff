"""Token dumps of other trainers, made into what is kept of rollouts.

A dump has a row a sequence and the columns that the trainer itself has in the batch of an update,
under the trainer's own names: padded or not, as lists. `from_parquet` reads them from a Parquet
file, `from_jsonl` from lines of JSON, as prime-rl's trainer exports them:

| here | "verl" | "trl" | "prime-rl" |
|---|---|---|---|
| completion | responses | completion_ids | token_ids from the first token of the loss on |
| mask | response_mask | completion_mask, tool_mask | loss_mask |
| prompt | prompts, attention_mask | prompt_ids, prompt_mask | token_ids before |
| advantage | advantages | advantages | advantages |
| old policy | old_log_probs | old_per_token_logps | inference_logprobs |
| policy | *log_probs* | *per_token_logps* | *trainer_logprobs* |
| sampler | *rollout_log_probs* | *sampling_per_token_logps* | inference_logprobs |
| reference | *ref_log_prob* | *ref_per_token_logps* | *ref_logprobs* |
| weight | *rollout_is_weights* | *importance_sampling_ratio* | |
| reward | *token_level_rewards* | *rewards* | *reward* |
| group | *uid* | *group* | *group* |
| domain | *data_source* | *domain* | *env_name* |
| texts | *prompt*, *completion* | *prompt*, *completion* | *prompt*, *completion* |

Those in italics may be missing, and so may prompts. Where no column names the group, equal prompts
are one; a domain becomes the level above. Rewards of verl may be scores, token_level_scores or
rm_scores; without an attention_mask nothing is padding. Of prime-rl, whose ratios are the trainer's
over the sampler's, tokens may be input_ids, as in its micro-batches, and sequences that are packed
into a row are told apart by `position_ids`.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fiberjax import storage
from fiberjax.run.kept import Kept, from_arrays

Rows = list[np.ndarray]
"""An array of each row, of any lengths."""


def from_parquet(path: str | os.PathLike[str], *, format: str) -> Kept:
    """The token dump of another trainer as `Kept`.

        kept = fj.from_parquet("dump.parquet", format="verl")

    Args:
      path: of the file.
      format: "verl", "trl" or "prime-rl", which names its columns; see the module.

    Raises:
      ValueError: there is no such file or format, or a column is missing or not as expected; names
        the file and the column.
    """
    _known(format)
    near = storage.local(path)
    if not near.is_file():
        raise ValueError(f"{path} does not exist, or is a folder: expected a Parquet file")
    try:
        table = pq.read_table(near)
    except (pa.ArrowException, OSError, ValueError) as error:
        told = " ".join(str(error).split())
        raise ValueError(f"{path} is no whole Parquet file: {told}") from None
    return _made(path, table, format)


def from_jsonl(path: str | os.PathLike[str], *, format: str) -> Kept:
    """The same of lines of JSON, an object a sequence.

        kept = fj.from_jsonl("token_exports/step_3", format="prime-rl")

    Args:
      path: of the file, or of a folder whose `*.jsonl` are one batch, as the ranks' are.
      format: as for `from_parquet`.

    Raises:
      ValueError: there is no such file or format, a line is no JSON object, or a column is missing
        or not as expected; names the file, and the line or the column.
    """
    _known(format)
    near, rows = storage.local(path), []
    files = sorted(near.glob("*.jsonl")) if near.is_dir() else [near]
    if not all(file.is_file() for file in files):
        raise ValueError(f"{path} does not exist: expected lines of JSON, or a folder of *.jsonl")
    for file in files:
        for number, line in enumerate(file.read_bytes().splitlines(), 1):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{file}, line {number}, is no JSON: {error}") from None
            if not isinstance(row, dict):
                raise ValueError(f"{file}, line {number}, is no JSON object")
            rows.append(row)
    try:
        table = pa.Table.from_pylist(rows)
    except pa.ArrowException as error:
        raise ValueError(f"{path} has lines that do not go together: {error}") from None
    return _made(path, table, format)


def _known(format: str) -> None:
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}; got {format!r}")


def _made(path: str | os.PathLike[str], table: pa.Table, format: str) -> Kept:
    if table.num_rows == 0:
        raise ValueError(f"{path} has no rows")
    try:
        return from_arrays(**FORMATS[format](_Dump(table)))
    except ValueError as error:
        raise ValueError(f"{path}, read as {format}: {error}") from None


class _Dump:
    """The columns of a file, checked as they are asked for."""

    def __init__(self, table: pa.Table):
        self._table = table.combine_chunks()
        self.rows = table.num_rows

    def has(self, name: str) -> bool:
        """Whether there is such a column, with values."""
        names = self._table.column_names
        return name in names and self._table[name].null_count < self.rows

    def column(self, name: str) -> pa.ChunkedArray:
        """One that has a value in every row."""
        if not self.has(name):
            names = ", ".join(self._table.column_names)
            raise ValueError(f"column {name!r} is missing; the file has {names}")
        column = self._table[name]
        if column.null_count:
            row = column.is_null().to_pylist().index(True)
            raise ValueError(f"column {name!r} has no value in row {row}")
        return column

    def lists(self, name: str) -> Rows:
        """Numbers of tokens, by row; of a column of one number a row, lists of one."""
        column = self.column(name)
        listed = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
        values = pc.list_flatten(column) if listed else column
        of = values.type
        if not (pa.types.is_integer(of) or pa.types.is_floating(of) or pa.types.is_boolean(of)):
            raise ValueError(f"column {name!r} must have numbers, or lists of them; it has {of}")
        if values.null_count:
            raise ValueError(f"column {name!r} has a list with a null in it; expected numbers")
        lengths = pc.list_value_length(column).to_numpy() if listed else np.ones(self.rows, int)
        return np.split(values.to_numpy(), np.cumsum(lengths)[:-1])

    def tokens(self, name: str, lengths: Sequence[int], *, one: bool = False) -> Rows:
        """`lists` of these lengths; where `one` may, one value stands for all of its row."""
        rows = self.lists(name)
        for number, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            if len(row) == 1 and one:
                rows[number] = np.repeat(row, length)
            elif len(row) != length:
                raise ValueError(
                    f"column {name!r} has {len(row)} values in row {number}; expected {length}"
                )
        return rows

    def of_rows(self, name: str) -> list[Any] | None:
        """A text or number of each row; None where there is no such column."""
        if not self.has(name):
            return None
        column = self.column(name)
        if pa.types.is_nested(column.type):
            raise ValueError(f"column {name!r} must have one value a row; it has {column.type}")
        return column.to_pylist()


class _Names(NamedTuple):
    """What a trainer calls the numbers of tokens: those there must be, and those there may be."""

    needed: Mapping[str, str]
    known: Mapping[str, str]

    def read(self, dump: _Dump, lengths: Sequence[int]) -> dict[str, Rows]:
        """What there is of them, by the names of `from_arrays`."""
        there = {name: column for name, column in self.known.items() if dump.has(column)}
        named = {**self.needed, **there}
        return {
            name: dump.tokens(column, lengths, one=name in ("advantage", "sample_weight"))
            for name, column in named.items()
        }


VERL = _Names(
    {"tokens": "responses", "advantage": "advantages", "old_log_prob": "old_log_probs"},
    {
        "log_prob": "log_probs",
        "sampler_log_prob": "rollout_log_probs",
        "reference_log_prob": "ref_log_prob",
        "sample_weight": "rollout_is_weights",
    },
)
TRL = _Names(
    {"tokens": "completion_ids", "advantage": "advantages", "old_log_prob": "old_per_token_logps"},
    {
        "log_prob": "per_token_logps",
        "sampler_log_prob": "sampling_per_token_logps",
        "reference_log_prob": "ref_per_token_logps",
        "sample_weight": "importance_sampling_ratio",
    },
)
PRIME_RL = _Names(
    {"advantage": "advantages", "old_log_prob": "inference_logprobs"},
    {"log_prob": "trainer_logprobs", "reference_log_prob": "ref_logprobs"},
)


def _verl(dump: _Dump) -> dict[str, Any]:
    mask = dump.lists("response_mask")
    said = mask
    prompts = dump.lists("prompts") if dump.has("prompts") else None
    if dump.has("attention_mask"):
        whole = dump.lists("attention_mask")
        before = [row[: max(len(row) - len(of), 0)] for row, of in zip(whole, mask, strict=True)]
        ends = [len(a) + len(b) for a, b in zip(before, mask, strict=True)]
        whole = dump.tokens("attention_mask", ends)
        said = [row[len(of) :] for row, of in zip(whole, before, strict=True)]
        if prompts is not None:
            read = dump.tokens("prompts", list(map(len, before)))
            prompts = [of[row != 0] for of, row in zip(read, before, strict=True)]
    found, reward = VERL.read(dump, list(map(len, mask))), None
    for name in ("rm_scores", "token_level_scores", "token_level_rewards"):
        if dump.has(name):
            reward = [float(row.sum()) for row in dump.lists(name)]
    group = dump.of_rows("uid")
    return _arrays(mask, said, found) | _of_rows(dump, group, prompts, reward, "data_source")


def _trl(dump: _Dump) -> dict[str, Any]:
    said = dump.lists("completion_mask")
    mask, lengths = said, list(map(len, said))
    if dump.has("tool_mask"):
        mask = [a * b for a, b in zip(said, dump.tokens("tool_mask", lengths), strict=True)]
    found, prompts = TRL.read(dump, lengths), None
    if dump.has("prompt_ids"):
        prompts = dump.lists("prompt_ids")
        if dump.has("prompt_mask"):
            real = dump.tokens("prompt_mask", list(map(len, prompts)))
            prompts = [of[row != 0] for of, row in zip(prompts, real, strict=True)]
    group = dump.of_rows("group")
    return _arrays(mask, said, found) | _of_rows(dump, group, prompts, dump.of_rows("rewards"))


def _prime_rl(dump: _Dump) -> dict[str, Any]:
    mask = dump.lists("loss_mask")
    lengths = list(map(len, mask))
    found, starts = PRIME_RL.read(dump, lengths), [np.zeros(1, int)] * dump.rows
    name = "input_ids" if dump.has("input_ids") else "token_ids"
    found["tokens"] = dump.tokens(name, lengths)
    if dump.has("position_ids"):
        starts = [np.flatnonzero(row == 0) for row in dump.tokens("position_ids", lengths)]
    if any(len(of) > 1 for of in starts):
        for name in ("reward", "group", "env_name", "prompt", "completion"):
            if dump.has(name):
                raise ValueError(f"column {name!r} is of rows, but rows hold several sequences")

    def cut(rows: Rows) -> Rows:
        return [
            part for row, of in zip(rows, starts, strict=True) for part in np.split(row, of[1:])
        ]

    # Without a token of the loss it is padding.
    pieces = [(of, int(np.argmax(of != 0))) for of in cut(mask)]
    used = [(k, of, at) for k, (of, at) in enumerate(pieces) if np.any(of != 0)]
    if len(used) < dump.rows and all(len(of) == 1 for of in starts):
        raise ValueError("column 'loss_mask' has a row without a token of the loss")
    cuts = {name: cut(rows) for name, rows in found.items()}
    behind = {name: [rows[k][at:] for k, _, at in used] for name, rows in cuts.items()}
    behind["sampler_log_prob"] = behind["old_log_prob"]
    prompts = [cuts["tokens"][k][:at] for k, _, at in used]
    masks = [of[at:] for _, of, at in used]
    group, reward = dump.of_rows("group"), dump.of_rows("reward")
    return _arrays(masks, masks, behind) | _of_rows(dump, group, prompts, reward, "env_name")


def _arrays(mask: Rows, said: Rows, found: Mapping[str, Rows]) -> dict[str, Any]:
    """Rows as arrays of as many columns as the longest one has tokens, zeros behind them.

    Args:
      mask: 0 at tokens that the loss does not count.
      said: 0 at padding.
      found: numbers of tokens, each row as long as its mask.
    """
    real = [(a != 0) | (b != 0) for a, b in zip(said, mask, strict=True)]
    ends = [1 + int(np.flatnonzero(of)[-1]) if of.any() else 0 for of in real]
    columns = max(1, *ends)

    def padded(rows: Rows, kind: Any) -> np.ndarray:
        whole = np.zeros((len(rows), columns), kind)
        for row, (of, end) in enumerate(zip(rows, ends, strict=True)):
            whole[row, :end] = of[:end]
        return whole

    kinds = {"tokens": np.int64}
    arrays = {name: padded(rows, kinds.get(name, np.float32)) for name, rows in found.items()}
    return {"log_prob": None, "mask": padded(mask, np.float32)} | arrays


def _of_rows(
    dump: _Dump,
    group: list[Any] | None,
    prompts: Rows | None,
    reward: list[Any] | None,
    domain: str = "domain",
) -> dict[str, Any]:
    """What is of a sequence: its cells, its reward, its texts."""
    if group is None and prompts is not None:
        number: dict[bytes, int] = {}
        keys = (of.astype(np.int64).tobytes() for of in prompts)
        group = [number.setdefault(key, len(number)) for key in keys]
    domains = dump.of_rows(domain)
    parents = {} if group is None else {"group": group}
    if domains is not None:
        domains = list(map(str, domains))
        parents["domain"] = domains
    return {
        "parents": parents,
        "reward": reward,
        "prompt_tokens": prompts,
        "domain": domains,
        "prompts": dump.of_rows("prompt"),
        "texts": dump.of_rows("completion"),
    }


FORMATS: Mapping[str, Callable[[_Dump], dict[str, Any]]] = {
    "verl": _verl,
    "trl": _trl,
    "prime-rl": _prime_rl,
}
"""What reads each trainer's dump; arguments of `from_arrays`."""
