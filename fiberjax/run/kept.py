"""Kept rollouts as arrays: those of a run, or anybody's log-probabilities.

`kept_files.load_rollouts` reads those of a run; `from_arrays` makes the same of arrays in hand.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from fiberjax.layout import TRAJECTORY, TURN, Layout, make_layout
from fiberjax.run import rollouts

OF_TRAJECTORIES = (*rollouts.SCHEMA.names, "credit", "policy_version")
"""The columns of `Kept.table`, as far as they are known."""


@dataclasses.dataclass(frozen=True, eq=False)
class Kept:
    """Trajectories as they were trained on, R rows, C columns behind the prompt; on the host.

    Attributes:
      layout: over [R, C], levels finest first; a row without a token that counts is no cell of it.
      tokens: int32[R, C]; 0 where nothing stands.
      advantage: float32[R, C].
      old_log_prob: float32[R, C], nats: what ratios are taken over.
      log_prob: float32[R, C], nats, of the policy looked at; None where that is the old policy.
      sampler_log_prob: float32[R, C], nats; None where it is not known, as all that follow.
      reference_log_prob: float32[R, C], nats.
      sample_weight: float32[R, C].
      table: a row a trajectory, the columns of `OF_TRAJECTORIES` that are known.
      prompt_tokens: int32 of each row.
      turn: int32[R, C], which of the policy's turns.
      row: int32[R], place in the global batch.
      minibatch: int32[R].
      meta: of the file, see `kept_files`; {} of arrays.
    """

    layout: Layout
    tokens: np.ndarray
    advantage: np.ndarray
    old_log_prob: np.ndarray
    log_prob: np.ndarray | None
    sampler_log_prob: np.ndarray | None
    reference_log_prob: np.ndarray | None
    sample_weight: np.ndarray | None
    table: pa.Table
    prompt_tokens: list[np.ndarray] | None
    turn: np.ndarray
    row: np.ndarray
    minibatch: np.ndarray
    meta: dict[str, Any]

    @property
    def mask(self) -> np.ndarray:
        """The tokens that the loss counts; bool[R, C]."""
        return np.asarray(self.layout.mask)

    @property
    def log_ratio(self) -> np.ndarray:
        """`log_prob − old_log_prob`, float32[R, C], nats; 0 off the mask, or of the old policy."""
        if self.log_prob is None:
            return np.zeros(self.mask.shape, np.float32)
        return np.where(self.mask, self.log_prob - self.old_log_prob, np.float32(0))

    def with_log_prob(self, log_prob: np.ndarray) -> "Kept":
        """The same trajectories under another policy.

        Args:
          log_prob: float[R, C], nats.

        Raises:
          ValueError: it is of another shape.
        """
        return dataclasses.replace(self, log_prob=of_tokens("log_prob", log_prob, self.mask))


def from_arrays(
    *,
    log_prob: np.ndarray | None,
    old_log_prob: np.ndarray,
    mask: np.ndarray,
    advantage: np.ndarray,
    parents: Mapping[str, Sequence[Any] | np.ndarray] | None = None,
    reward: Sequence[float] | np.ndarray | None = None,
    tokens: np.ndarray | None = None,
    texts: Sequence[str] | None = None,
    prompts: Sequence[str] | None = None,
    domain: Sequence[str] | None = None,
    sampler_log_prob: np.ndarray | None = None,
    reference_log_prob: np.ndarray | None = None,
    sample_weight: np.ndarray | None = None,
    prompt_tokens: Sequence[np.ndarray] | None = None,
    turn: np.ndarray | None = None,
    minibatch: np.ndarray | None = None,
) -> Kept:
    """Anybody's log-probabilities as `Kept`: R trajectories, a row each, padded to C tokens.

        kept = fj.from_arrays(
            log_prob=log_prob, old_log_prob=old, mask=mask, advantage=advantage,
            parents={"group": prompt_id},
        )

    Args:
      log_prob: float[R, C], nats, of the policy looked at; None where that is the old policy.
      old_log_prob: float[R, C], nats, of the policy before the first update.
      mask: bool[R, C], or zeros and ones: the tokens that the loss counts.
      advantage: float[R], or [R, C].
      parents: for each level above the trajectory, finest first, which of its cells each trajectory
        is in, [R]: numbers or texts. What shares a cell must share those of the levels above.
      reward: float[R].
      tokens: int[R, C].
      texts: what each trajectory says, behind its prompt.
      prompts: of each trajectory, as texts.
      domain: of each trajectory.
      sampler_log_prob: float[R, C], nats.
      reference_log_prob: float[R, C], nats.
      sample_weight: float[R, C].
      prompt_tokens: int of each trajectory's prompt.
      turn: int[R, C], which of the policy's turns, from 0; they become cells below the trajectory.
      minibatch: int[R], which optimizer batch.

    Raises:
      ValueError: names the argument, and what was expected.
    """
    mask = np.asarray(mask)
    if mask.ndim != 2 or not (mask.dtype == np.bool_ or np.isin(mask, (0, 1)).all()):
        raise ValueError(
            f"mask must be bool[R, C], or zeros and ones; got {mask.dtype} of shape {mask.shape}"
        )
    mask = mask.astype(bool)
    rows, columns = mask.shape
    advantage = np.asarray(advantage)
    if advantage.ndim == 1 and len(advantage) == rows:
        advantage = np.repeat(advantage[:, None], columns, axis=1)
    given = {
        "log_prob": log_prob,
        "old_log_prob": old_log_prob,
        "advantage": advantage,
        "sampler_log_prob": sampler_log_prob,
        "reference_log_prob": reference_log_prob,
        "sample_weight": sample_weight,
    }
    by_token: dict[str, Any] = {
        name: None if of is None else _finite(name, of_tokens(name, of, mask), mask)
        for name, of in given.items()
    }
    if by_token["old_log_prob"] is None:
        raise ValueError("old_log_prob must be float[R, C]; got None")
    number = {
        name: np.zeros(mask.shape, np.int32) if of is None else _whole(name, of, mask.shape)
        for name, of in {"tokens": tokens, "turn": turn}.items()
    }
    known = {
        "domain": ("domain", domain),
        "prompts": ("prompt", prompts),
        "texts": ("completion", texts),
        "reward": ("reward", reward),
    }
    table: dict[str, Any] = {"length": pa.array(mask.sum(axis=1, dtype=np.int32))}
    for name, (column, of) in known.items():
        if of is not None:
            table[column] = _column(name, of, rollouts.SCHEMA.field(column).type, rows)
    if prompt_tokens is not None and len(prompt_tokens) != rows:
        raise ValueError(f"prompt_tokens must be {rows} sequences; got {len(prompt_tokens)}")
    if minibatch is None:
        minibatch = np.zeros(rows, np.int32)
    return Kept(
        layout=layout_of_rows(mask, None if turn is None else number["turn"], dict(parents or {})),
        tokens=number["tokens"],
        table=pa.table({name: table[name] for name in OF_TRAJECTORIES if name in table}),
        prompt_tokens=None
        if prompt_tokens is None
        else [np.asarray(of, np.int32) for of in prompt_tokens],
        turn=number["turn"],
        row=np.arange(rows, dtype=np.int32),
        minibatch=_whole("minibatch", minibatch, (rows,)),
        meta={},
        **by_token,
    )


def _column(name: str, of: Any, kind: pa.DataType, rows: int) -> pa.Array:
    if len(of) != rows:
        raise ValueError(f"{name} must be one for each of {rows} trajectories; got {len(of)}")
    try:
        return pa.array(np.asarray(of, np.float32) if kind == pa.float32() else list(of), kind)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise ValueError(f"{name} must be {kind} of each trajectory: {error}") from None


def _finite(name: str, of: np.ndarray, mask: np.ndarray) -> np.ndarray:
    bad = np.argwhere(~np.isfinite(of) & mask)
    if len(bad):
        row, column = map(int, bad[0])
        raise ValueError(
            f"{name} is {of[row, column]} at row {row}, column {column}: expected a finite number "
            "wherever the mask is True"
        )
    return of


def _whole(name: str, of: Any, shape: tuple[int, ...]) -> np.ndarray:
    of = np.asarray(of)
    if of.shape != shape or of.dtype.kind not in "iu" or np.any((of < 0) | (of >= 2**31)):
        raise ValueError(
            f"{name} must be whole numbers of shape {shape}, 0 or more; got {of.dtype} of shape "
            f"{of.shape}"
        )
    return of.astype(np.int32)


def of_tokens(name: str, of: Any, mask: np.ndarray) -> np.ndarray:
    """An array of tokens as float32[R, C], 0 off the mask."""
    of = np.asarray(of)
    if of.shape != mask.shape or of.dtype.kind not in "fiu":
        raise ValueError(
            f"{name} must be float of the mask's shape {mask.shape}; got {of.dtype} of shape "
            f"{of.shape}"
        )
    return np.where(mask, of, 0).astype(np.float32)


def layout_of_rows(mask: np.ndarray, turn: np.ndarray | None, ids: Mapping[str, Any]) -> Layout:
    """The layout of rows.

    Args:
      mask: bool[R, C].
      turn: int32[R, C], where turns are cells.
      ids: by level above the trajectory, finest first, each row's cell, [R].

    Raises:
      ValueError: ids of another number, or that do not nest.
    """
    rows, columns = mask.shape
    parents: dict[str, np.ndarray] = {}
    finest, cell_id = TRAJECTORY, None
    if turn is not None:
        if rows and columns and int(turn.max()) >= columns:
            raise ValueError(f"turn is {int(turn.max())}; expected less than {columns} columns")
        turns = int(turn.max(initial=0)) + 1
        finest, cell_id = TURN, np.arange(rows)[:, None] * turns + turn
        parents[TRAJECTORY] = np.repeat(np.arange(rows), turns)
    below, cells, count = TRAJECTORY, np.arange(rows), rows
    for name, of in ids.items():
        of = np.asarray(of)
        if of.shape != (rows,) or of.dtype.kind not in "iuUO" or name in (TURN, TRAJECTORY):
            raise ValueError(
                f"level {name!r} must give the cell of each of {rows} trajectories, numbers or "
                f"texts, and not be called {TURN!r} or {TRAJECTORY!r}; got {of.dtype} of shape "
                f"{of.shape}"
            )
        found, above = np.unique(of.astype(str) if of.dtype == object else of, return_inverse=True)
        parent = np.zeros(count, np.int64)
        parent[cells] = above
        wrong = np.flatnonzero(parent[cells] != above)
        if len(wrong):
            first = int(wrong[0])
            other = int(np.flatnonzero((cells == cells[first]) & (above != above[first]))[0])
            raise ValueError(
                f"level {below!r} does not lie within {name!r}: rows {min(first, other)} and "
                f"{max(first, other)} share a cell of the first and not of the second"
            )
        parents[name] = parent
        below, cells, count = name, above, len(found)
    return make_layout(mask, parents, cell_id=cell_id, finest=finest)
