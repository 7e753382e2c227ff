"""The levels of a run above the trajectory, as data: which prompts share a cell, and which cells.

A run names its levels finest first, each with the column of the data that says who belong together:

    (("group", ""), ("topic", "topic"), ("domain", "domain"))

The empty column is the prompt itself: a cell is the group of a prompt's completions. Columns must
nest: all prompts of a topic lie in one domain. Cells are numbered over the whole data set, so that
tables keep one static size over all batches.

One level may stand below the trajectory: `("turn", "turn")`, named first, whose cells are the turns
of the policy in its trajectory (`config.turns`).
"""

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fiberjax.layout import STATE, TRAJECTORY, TURN
from fiberjax.tasks.domains import Domain
from fiberjax.tasks.examples import Example

PROMPT = ""
"""The column of the level whose cells are prompt groups."""

RESERVED = (TRAJECTORY, STATE, "token", "open")
"""What a level cannot be called: these name the level below all of them, and parts of a gate."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclasses.dataclass(frozen=True)
class Levels:
    """Where every prompt of the data stands; use `make_levels`, which checks.

    Attributes:
      names: of the levels above the trajectory, finest first.
      turns: whether the turns of a trajectory are cells, below it.
      of_prompts: whether the finest of them is the prompt group.
      cell: int32[prompts], each prompt's cell in the finest level that is a column.
      parents: for each column level but the coarsest, int32[cells]: its cell in the next.
      sizes: the number of cells of each column level.
    """

    names: tuple[str, ...]
    turns: bool
    of_prompts: bool
    cell: np.ndarray
    parents: tuple[np.ndarray, ...]
    sizes: tuple[int, ...]

    @property
    def of_layout(self) -> tuple[str, ...]:
        """The levels of a layout, finest first."""
        return (*((TURN,) if self.turns else ()), TRAJECTORY, *self.names)

    @property
    def num_cells(self) -> dict[str, int]:
        """Static table sizes of the column levels, as `make_layout` takes them."""
        return dict(zip(self.names[self.of_prompts :], self.sizes, strict=True))

    def tables(self, prompt_index: np.ndarray, samples: int) -> dict[str, np.ndarray]:
        """The parent maps above the trajectories of a batch of whole prompt groups.

        They are as `make_layout` takes them.

        Args:
          prompt_index: int[G], each group's prompt.
          samples: completions of a prompt, which stand together.
        """
        tables = {}
        if self.of_prompts:
            tables[self.names[0]] = np.arange(len(prompt_index) * samples) // samples
        for name, parent in zip(
            self.names[self.of_prompts :], (self.cell[prompt_index], *self.parents), strict=False
        ):
            tables[name] = parent if tables else np.repeat(parent, samples)
        return tables


def check_names(levels: Any) -> tuple[tuple[str, str], ...]:
    """The pairs (name, column) of a config, checked as far as no data is needed.

    Raises:
      ValueError: not pairs of texts; a name that is reserved, repeated or no identifier; turns or a
        prompt level that are not the finest.
    """
    path = "config.levels"
    if isinstance(levels, str) or not isinstance(levels, Sequence):
        raise ValueError(f"{path} must be pairs (name, column), finest first; got {levels!r}")
    for pair in levels:
        if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
            raise ValueError(f"{path} must be pairs (name, column), finest first; got {pair!r}")
        name, column = pair
        if type(name) is not str or type(column) is not str:
            raise ValueError(f"{path} must be pairs of texts; got {pair!r}")
        if name in RESERVED or not _NAME.fullmatch(name):
            raise ValueError(
                f"{path} names a level {name!r}: expected letters, digits and _, and none of "
                f"{', '.join(RESERVED)}"
            )
        if name == TURN and (column != TURN or pair is not levels[0]):
            raise ValueError(
                f"{path} names the level {TURN!r}, whose cells are the turns of a trajectory: "
                f"expected ({TURN!r}, {TURN!r}), before all others; got {levels!r}"
            )
    names = [name for name, _ in levels]
    columns = [column for _, column in levels]
    for what, values in (("name", names), ("column", columns)):
        for value in values:
            if values.count(value) > 1:
                raise ValueError(f"{path} has the {what} {value!r} twice; expected each once")
    if PROMPT in columns[1 + (TURN in names) :]:
        raise ValueError(
            f"{path} has the prompt group ({names[columns.index(PROMPT)]!r}, with an empty column) "
            "above other levels; it is the finest above the trajectory"
        )
    return tuple((name, column) for name, column in levels)


def above(levels: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """The pairs of `check_names` that stand above the trajectory."""
    return tuple(pair for pair in levels if pair[0] != TURN)


def of_layout(levels: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """The levels of a layout, finest first, from the pairs of `check_names`."""
    higher = above(levels)
    turns = (TURN,) if len(higher) < len(levels) else ()
    return (*turns, TRAJECTORY, *(name for name, _ in higher))


def columns_of(levels: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """The columns that the levels read, beside the prompt and its domain."""
    return tuple(column for _, column in above(levels) if column not in (PROMPT, "domain"))


def make_levels(levels: Sequence[tuple[str, str]], domains: Sequence[Domain]) -> Levels:
    """Numbers the cells of every level over the training prompts.

    Args:
      levels: of `check_names`.
      domains: the training domains; their prompts are counted along `Examples`.

    Raises:
      ValueError: an example lacks a column, or two levels do not nest; names the rows.
    """
    turns, levels = len(above(levels)) < len(levels), above(levels)
    columns = [(name, column) for name, column in levels if column != PROMPT]
    where = [(d, row) for d, domain in enumerate(domains) for row in range(len(domain.source))]
    cells, sizes = [], []
    for _, column in columns:
        if column == "domain":
            cells.append(np.array([d for d, _ in where], np.int32))
            sizes.append(len(domains))
            continue
        number: dict[str, int] = {}
        values = [
            _column(domains[d].source[row], column, _shown(domains, d, row)) for d, row in where
        ]
        cells.append(np.array([number.setdefault(v, len(number)) for v in values], np.int32))
        sizes.append(max(len(number), 1))
    parents = [
        _parents(fine, coarse, size, (columns[k][0], columns[k + 1][0]), domains, where)
        for k, ((fine, coarse), size) in enumerate(
            zip(itertools.pairwise(cells), sizes, strict=False)
        )
    ]
    return Levels(
        names=tuple(name for name, _ in levels),
        turns=turns,
        of_prompts=len(columns) < len(levels),
        cell=cells[0] if cells else np.zeros(len(where), np.int32),
        parents=tuple(parents),
        sizes=tuple(sizes),
    )


def _column(example: Example, column: str, where: str) -> str:
    """An example's text in a column."""
    values: Mapping[str, str] = dict(example.columns)
    if column not in values:
        raise ValueError(
            f"config.levels reads the column {column!r}, which {where} does not have; it has "
            f"{', '.join(('domain', *values))}"
        )
    return values[column]


def _parents(
    fine: np.ndarray,
    coarse: np.ndarray,
    size: int,
    names: tuple[str, str],
    domains: Sequence[Domain],
    where: Sequence[tuple[int, int]],
) -> np.ndarray:
    """The coarse cell of each fine cell, int32[size]; 0 where a fine cell has no prompt."""
    parent = np.zeros(size, np.int32)
    parent[fine] = coarse
    wrong = np.flatnonzero(parent[fine] != coarse)
    if wrong.size:
        second = int(np.flatnonzero((fine == fine[wrong[0]]) & (coarse != coarse[wrong[0]]))[-1])
        raise ValueError(
            f"config.levels: {names[0]!r} does not lie within {names[1]!r}: "
            f"{_shown(domains, *where[wrong[0]])} and {_shown(domains, *where[second])} share the "
            f"first and not the second"
        )
    return parent


def _shown(domains: Sequence[Domain], domain: int, row: int) -> str:
    return f"domain {domains[domain].name!r}, row {row + 1}"
