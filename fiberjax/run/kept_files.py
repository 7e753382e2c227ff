"""Files of kept rollouts: what an iteration was trained on, whole.

A run folder holds `rollouts/` with a Parquet file of each kept iteration, such as `000010.parquet`;
`keeping` writes them and `load_rollouts` reads them. A row is a trajectory of the batch, in the
batch's order; places that hold none have no row. Columns are those of `rollouts.SCHEMA`, and then:

| column | type | meaning |
|---|---|---|
| prompt_tokens | list<int32> | without padding |
| completion_tokens | list<int32> | behind the prompt: the policy's and replies, up to the last |
| mask | list<bool> | which of these the policy wrote and the loss counts |
| turn | list<int32> | which of the policy's turns, from 0; 0 at replies |
| sampler_log_prob | list<float32> | nats, of the sampler, before truncation (top-k, top-p) |
| old_log_prob | list<float32> | nats, of the trainer's policy before the first update |
| reference_log_prob | list<float32> | nats; null without a KL term |
| sample_weight | list<float32> | of the behaviour edge; null without a correction |
| advantage | list<float32> | of each token |
| credit | float32 | what the advantage was made of |
| row | int32 | place in the global batch |
| minibatch | int32 | which optimizer batch, from 0 |
| cells | map<string, int32> | by level from the trajectory up, the trajectory's cell |
| policy_version | int32 | iterations finished by the policy that drew it |

Lists of a row have one length, but for the prompt's. Numbers of tokens are 0 where the mask is
False. A trajectory whose mask is False throughout was left out of the loss
(`config.rewards.truncated`). The experts that tokens were sent to are not kept.

The file's metadata has under the key `fiberjax` a JSON object: `version` of this format,
`iteration`, `levels` (finest first), `rows` and `columns` of the global batch, `updates` (in their
order: minibatch, and metrics by name, those that are not finite as texts), `updates_before` the
iteration, `budget_factor` of the gate's budgets, `step_factor` of steps where those are controlled,
`config` of the run with its `config_version`, and `fiberjax_version`. Under `fiberjax.sha256`
stands the digest of that text; pages of columns have checksums of their own. Any reader of Parquet
reads the files.
"""

import hashlib
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fiberjax import storage
from fiberjax.layout import TRAJECTORY, TURN
from fiberjax.run import migrations, rollouts
from fiberjax.run.kept import OF_TRAJECTORIES, Kept, layout_of_rows

FOLDER = "rollouts"
KEY, DIGEST = b"fiberjax", b"fiberjax.sha256"
VERSION = 1
"""Of the format."""
MOST_CELLS = 2**31
"""Rows times columns of the arrays of a file, at most."""

TOKEN_COLUMNS = {
    "completion_tokens": pa.int32(),
    "mask": pa.bool_(),
    "turn": pa.int32(),
    "sampler_log_prob": pa.float32(),
    "old_log_prob": pa.float32(),
    "reference_log_prob": pa.float32(),
    "sample_weight": pa.float32(),
    "advantage": pa.float32(),
}
"""What there is of each token behind the prompt."""
NULLABLE = ("reference_log_prob", "sample_weight")

SCHEMA = pa.schema(
    [
        *rollouts.SCHEMA,
        pa.field("prompt_tokens", pa.list_(pa.int32()), nullable=False),
        *(
            pa.field(name, pa.list_(kind), nullable=name in NULLABLE)
            for name, kind in TOKEN_COLUMNS.items()
        ),
        pa.field("credit", pa.float32(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),
        pa.field("minibatch", pa.int32(), nullable=False),
        pa.field("cells", pa.map_(pa.string(), pa.int32()), nullable=False),
        pa.field("policy_version", pa.int32(), nullable=False),
    ]
)
"""The columns of `rollouts.SCHEMA` and of the table above."""


def name(iteration: int) -> str:
    """The name of an iteration's file."""
    return f"{iteration:06d}.parquet"


def described(rows: pa.Table, about: Mapping[str, Any]) -> pa.Table:
    """Rows of `SCHEMA` with what the file says of itself, but for the version, as metadata."""
    text = json.dumps({"version": VERSION} | dict(about), sort_keys=True, allow_nan=False).encode()
    return rows.replace_schema_metadata({KEY: text, DIGEST: _digest(text)})


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest().encode()


def load_rollouts(run: str | os.PathLike[str], iteration: int | None = None) -> Kept:
    """The kept rollouts of an iteration.

    A run that is still going can be read too: its files are whole or not there.

    Args:
      run: the run folder, or one of the files in its `rollouts/`.
      iteration: counted from 1; None for the newest that is kept.

    Returns:
      The trajectories, `log_prob` None: they are of the policy before the first update. Of a run
      under `config.training.edge = "direct"`, whose ratios are taken over the sampler,
      `old_log_prob` is the sampler's and `log_prob` the trainer's before the first update.

    Raises:
      ValueError: there is no such file, or it holds no kept rollouts; names the file and what is
        wrong with it.
    """
    file = _file(storage.place(run), iteration)
    try:
        source = io.BytesIO(file.read_bytes()) if storage.remote(file) else file
        with pq.ParquetFile(source, page_checksum_verification=True) as opened:
            described, table = opened.metadata.metadata or {}, opened.read()
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:  # As damage has it.
        told = " ".join(str(error).split())
        raise ValueError(f"{file} is no whole Parquet file: {told}") from None
    meta = _meta(file, described)
    return _kept(file, meta, _checked(file, table))


def kept_iterations(run: str | os.PathLike[str]) -> list[int]:
    """The iterations whose rollouts a run folder holds, ascending."""
    files = storage.matching(storage.place(run) / FOLDER, "*.parquet")
    names = (file.stem for file in files)
    return sorted(int(name) for name in names if name.isascii() and name.isdigit())


def _file(run: Path, iteration: int | None) -> Path:
    if run.is_file():
        if iteration is not None:
            raise ValueError(
                f"{run} is one iteration's file; expected a run folder, or no iteration"
            )
        return run
    if not run.is_dir():
        raise ValueError(f"{run} does not exist: expected a run folder, or a file of its {FOLDER}/")
    there = kept_iterations(run)
    if not there:
        raise ValueError(
            f"{run} holds no {FOLDER}/ of a run: config.keep.rollouts says of which iterations "
            "they are kept"
        )
    if iteration is None:
        iteration = there[-1]
    if iteration not in there:
        shown = ", ".join(map(str, there[:20])) + (", ..." if len(there) > 20 else "")
        raise ValueError(f"{run / FOLDER} holds no iteration {iteration!r}; it holds {shown}")
    return run / FOLDER / name(iteration)


def _kept(file: Path, meta: dict[str, Any], table: pa.Table) -> Kept:
    lengths = pc.list_value_length(table["completion_tokens"]).to_numpy()
    shape = (len(lengths), max(meta["columns"], int(lengths.max(initial=0))))
    if shape[0] * shape[1] > MOST_CELLS:
        raise ValueError(f"{file} asks for {shape} tokens; expected at most {MOST_CELLS}")
    of: dict[str, Any] = {
        name: _padded(file, table[name], name, lengths, shape) for name in TOKEN_COLUMNS
    }
    mask, turn = of.pop("mask"), of.pop("turn")
    levels, turns = meta["levels"], None
    if levels[0] == TURN:
        levels, turns = levels[1:], turn
    if np.any((turn < 0) | (turn >= max(shape[1], 1))):
        raise ValueError(f"{file}: turn must be from 0 and less than {shape[1]}")
    cells = _cells(file, table["cells"], levels)
    try:
        layout = layout_of_rows(mask, turns, {name: cells[name] for name in levels[1:]})
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    tokens = of.pop("completion_tokens")
    floats: dict[str, Any] = {
        name: None if a is None else np.where(mask, a, np.float32(0)) for name, a in of.items()
    }
    old, log_prob = floats["old_log_prob"], None
    training = meta["config"].get("training")
    if isinstance(training, dict) and training.get("edge") == "direct":
        old, log_prob = floats["sampler_log_prob"], old
    row, minibatch = table["row"].to_numpy(), table["minibatch"].to_numpy()
    if np.any((row < 0) | (row >= meta["rows"])) or len(np.unique(row)) < len(row):
        raise ValueError(f"{file}: row must be different places from 0 to {meta['rows'] - 1}")
    if np.any(minibatch < 0):
        raise ValueError(f"{file}: minibatch must be from 0")
    prompts = table["prompt_tokens"]
    ends = np.cumsum(pc.list_value_length(prompts).to_numpy())
    return Kept(
        layout=layout,
        tokens=tokens,
        advantage=floats["advantage"],
        old_log_prob=old,
        log_prob=log_prob,
        sampler_log_prob=floats["sampler_log_prob"],
        reference_log_prob=floats["reference_log_prob"],
        sample_weight=floats["sample_weight"],
        table=table.select(OF_TRAJECTORIES),
        prompt_tokens=np.split(pc.list_flatten(prompts).to_numpy(), ends[:-1]) if len(ends) else [],
        turn=turn,
        row=row,
        minibatch=minibatch,
        meta=meta,
    )


def _meta(file: Path, found: dict[bytes, bytes]) -> dict[str, Any]:
    """What the file says of itself, checked as far as it is read here."""
    if KEY not in found:
        raise ValueError(
            f"{file} holds no kept rollouts: it has no {KEY.decode()!r} among its metadata"
        )
    if found.get(DIGEST) != _digest(found[KEY]):
        raise ValueError(f"{file} is damaged: its metadata does not have the digest that it names")
    try:
        meta = json.loads(found[KEY])
        version = meta["version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{file}: metadata of kept rollouts cannot be read: {error}") from None
    if version != VERSION:
        raise ValueError(f"{file} is of format version {version!r}; this program reads {VERSION}")
    levels = meta.get("levels")
    expected: dict[str, Any] = {
        "iteration": type(meta.get("iteration")) is int,
        "levels": isinstance(levels, list)
        and all(isinstance(level, str) for level in levels)
        and len(set(levels)) == len(levels)
        and TRAJECTORY in levels[: 1 + (levels[:1] == [TURN])],
        "columns": type(meta.get("columns")) is int and meta["columns"] >= 0,
        "rows": type(meta.get("rows")) is int and meta["rows"] >= 0,
        "config": isinstance(meta.get("config"), dict),
        "updates": isinstance(meta.get("updates"), list),
    }
    for name, fine in expected.items():
        if not fine:
            shown = repr(meta.get(name))[:80]
            raise ValueError(f"{file}: its metadata has {name} = {shown}, which is none of a run")
    try:
        # Numbers that JSON cannot hold stand there as texts.
        meta["updates"] = [
            of | {"metrics": {name: float(value) for name, value in of["metrics"].items()}}
            for of in meta["updates"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file}: its metadata has updates without metrics: {error}") from None
    try:
        meta["config"] = migrations.migrate(meta["config"], meta.get("config_version"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file}: its config is none of a run: {error}") from None
    return meta


def _checked(file: Path, table: pa.Table) -> pa.Table:
    """The columns of `SCHEMA`, none of them null where it must not be."""
    missing = [name for name in SCHEMA.names if name not in table.column_names]
    if missing:
        raise ValueError(f"{file} lacks the columns {', '.join(missing)}")
    columns = {}
    for field in SCHEMA:
        try:
            column = table[field.name].cast(field.type)
        except (pa.ArrowException, ValueError, KeyError):
            raise ValueError(
                f"{file}: column {field.name!r} is {table[field.name].type}, not {field.type}"
            ) from None
        column = pa.concat_arrays(column.chunks) if column.chunks else pa.array([], field.type)
        if column.null_count and not field.nullable:
            raise ValueError(f"{file}: column {field.name!r} has rows without a value")
        columns[field.name] = column
    return pa.table(columns)


def _padded(
    file: Path, column: pa.ChunkedArray, name: str, lengths: np.ndarray, shape: tuple[int, int]
) -> np.ndarray | None:
    """A list of each row as an array of rows, zeros behind them; None where all are null."""
    if len(column) and column.null_count == len(column) and name in NULLABLE:
        return None
    own = pc.list_value_length(column)
    values = pc.list_flatten(column)
    wrong = np.flatnonzero(own.fill_null(-1).to_numpy() != lengths)
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(
            f"{file}: row {row} has {lengths[row]} completion_tokens, and {own[row].as_py()} of "
            f"{name!r}"
        )
    if values.null_count:
        raise ValueError(f"{file}: column {name!r} has tokens without a value")
    padded = np.zeros(shape, TOKEN_COLUMNS[name].to_pandas_dtype())
    padded[np.arange(shape[1]) < lengths[:, None]] = values.to_numpy()
    return padded


def _cells(file: Path, column: pa.ChunkedArray, levels: list[str]) -> dict[str, np.ndarray]:
    """Each row's cell, int64[R], by level."""
    rows = [dict(row) for row in column.to_pylist()]
    for number, row in enumerate(rows):
        for level in levels:
            if row.get(level) is None:
                raise ValueError(
                    f"{file}: cells of row {number} lack the level {level!r}; expected "
                    f"{', '.join(levels)}"
                )
    return {level: np.array([row[level] for row in rows], np.int64) for level in levels}
