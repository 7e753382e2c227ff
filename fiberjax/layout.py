"""The padded trajectory layout: where every token, trajectory and cell of the hierarchy stands.

Tokens stand in an array of static shape, with a mask for the real ones. The cells of each level
stand in a table of static size, and each level names its parent in the next:

    tokens [B, T] or [N]  --cell_id-->  trajectory [M]  --parents[0]-->  group [G]  --> ...

A level may stand below the trajectory too: the turns of the policy, where a trajectory has several,
are then the finest cells, and the mask leaves out what others said between them.

Padding never needs a special case: a padding token's or an unused cell's parent is the size of the
table above, an id that `segments` leaves out of sums and reads as zero. Three arrangements of the
tokens go through the same functions: one trajectory a row (`cell_id` is None), several packed in a
row, and flat. Where each block of `L` neighbouring tokens holds real tokens of one cell only, as
with prompts between packed completions, ids may be kept by block: sums are then nearly as fast as
in rows. Layouts are built and validated on the host by `make_layout`.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from fiberjax import segments

TURN = "turn"
TRAJECTORY = "trajectory"
STATE = "state"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Layout:
    """Tokens and the tower of levels above them, finest level first.

    Attributes:
      mask: bool[...], `[B, T]` or `[N]`: the real completion tokens. Prompt and padding tokens are
        False.
      cell_id: int32[...] of the mask's shape: the finest-level cell of each token, `S_1` at
        padding; or one id for each block of tokens, the last axis then being shorter; or None when
        row `b` holds the tokens of cell `b` and no other (`S_1 = B`).
      parents: for each level but the coarsest, int32[S_k]: the cell of the next level that holds
        each cell; `S_{k+1}` for unused cells.
      sizes: for each level, int32[S_k]: the number of children of each cell over all devices (for
        the finest level: tokens); 0 for unused cells.
      levels: names of the levels, finest first. One of them is "trajectory". Static.
      axis_names: for each level, the mesh axes over which a cell's children are spread, so that its
        sums must be added over them; () where a cell lives on one device. Static.
      state_id: int32[...] of the mask's shape: the state each token was sampled in, shared by
        tokens of one prompt and prefix (see `state_ids`), `num_states` at padding; None where no
        gate asks. States lie across trajectories, so they are no level of the tower.
      num_states: size of the table of states. Static.
      state_axes: mesh axes over which the tokens of a state are spread. Static.
    """

    mask: jax.Array
    cell_id: jax.Array | None
    parents: tuple[jax.Array, ...]
    sizes: tuple[jax.Array, ...]
    levels: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    axis_names: tuple[tuple[str, ...], ...] = dataclasses.field(metadata={"static": True})
    state_id: jax.Array | None = None
    num_states: int = dataclasses.field(default=0, metadata={"static": True})
    state_axes: tuple[str, ...] = dataclasses.field(default=(), metadata={"static": True})

    def index(self, level: str) -> int:
        """Position of a level, 0 the finest; ValueError naming the choices if there is none."""
        if level not in self.levels:
            raise ValueError(f"level {level!r} does not exist; the layout has {self.levels}")
        return self.levels.index(level)

    def blocks(self, values: jax.Array) -> jax.Array:
        """Token values by block, `[*cell_id.shape, L]`, where ids are kept by block; else as is."""
        if self.cell_id is None or self.cell_id.shape == self.mask.shape:
            return values
        return values.reshape(*self.cell_id.shape, -1)

    def pushforward_tokens(self, values: jax.Array) -> jax.Array:
        """Sums token values over each finest cell; returns `[S_1]`. Values must be masked."""
        values = self.blocks(values)
        if self.cell_id is not None and values.shape != self.cell_id.shape:
            values = segments.row_sums(values)
        return segments.segment_sum(
            values, self.cell_id, self.sizes[0].shape[0], axis_name=self.axis_names[0]
        )

    def pushforward(self, table: jax.Array, k: int) -> jax.Array:
        """Sums a table of level `k` over each cell of level `k + 1`; returns `[S_{k+1}]`."""
        return segments.segment_sum(
            table,
            self.parents[k],
            self.sizes[k + 1].shape[0],
            axis_name=self.axis_names[k + 1],
        )

    def means(self, values: jax.Array) -> tuple[jax.Array, ...]:
        """The mean over every cell's children, of tokens for the finest; for each level float[S_k].

        Values must be masked. Of log ratios this is the signed mean drift, `Sₖ⁺ − Sₖ⁻` of the
        published bundle. Linear in the values; 0 at unused cells.
        """
        means: list[jax.Array] = []
        for k, size in enumerate(self.sizes):
            total = self.pushforward(means[-1], k - 1) if k else self.pushforward_tokens(values)
            means.append(segments.safe_divide(total, size.astype(total.dtype)))
        return tuple(means)

    def lift_tokens(self, table: jax.Array) -> jax.Array:
        """Reads the finest-level table at each token; broadcasts against the mask's shape."""
        values = segments.spread(table, self.cell_id)
        if self.cell_id is None or self.cell_id.shape == self.mask.shape:
            return values
        return segments.widen(values, self.mask.shape)

    def lift(self, table: jax.Array, k: int) -> jax.Array:
        """Reads the table of level `k + 1` at each cell of level `k`; returns `[S_k]`."""
        return segments.spread(table, self.parents[k])

    def token_cells(self) -> jax.Array | None:
        """The finest cell of each token, int32 of the mask's shape; None where a row is a cell."""
        if self.cell_id is None or self.cell_id.shape == self.mask.shape:
            return self.cell_id
        return jnp.repeat(self.cell_id, self.mask.shape[-1] // self.cell_id.shape[-1], axis=-1)

    def tokens_of(self, level: str) -> jax.Array:
        """Number of tokens in each cell of a level; int32[S_k]."""
        count = self.sizes[0]
        for k in range(self.index(level)):
            count = self.pushforward(count, k)
        return count

    def lift_from(self, table: jax.Array, level: str) -> jax.Array:
        """Reads the table of any level at each token; broadcasts against the mask's shape."""
        for k in reversed(range(self.index(level))):
            table = self.lift(table, k)
        return self.lift_tokens(table)

    def tokens_at_hand(self) -> jax.Array:
        """Number of this device's tokens in each finest cell; int32[S_1]."""
        if not self.axis_names[0]:
            return self.sizes[0]
        local = dataclasses.replace(self, axis_names=((),) * len(self.levels))
        return local.pushforward_tokens(self.mask.astype(jnp.int32))

    def shares(self, level: str) -> jax.Array:
        """What the tokens at hand of each finest cell are of its cell in a level; float32[S_1].

        Added over finest cells and devices they count every used cell once.
        """
        tokens = self.tokens_of(level)
        for k in reversed(range(self.index(level))):
            tokens = self.lift(tokens, k)
        at_hand = self.tokens_at_hand()
        return segments.safe_divide(at_hand.astype(jnp.float32), tokens.astype(jnp.float32))

    def select(self, levels: Sequence[str]) -> "Layout":
        """The layout with some of its levels only, parents and sizes composed over the others.

        Args:
          levels: static names, finest first, in the layout's own order.

        Returns:
          A layout over the same tokens whose finest level is `levels[0]`. Inside `shard_map` it
          sums counts over the axes of the levels it keeps.

        Raises:
          ValueError: no level, a level that does not exist, or levels out of order.
        """
        chosen = [self.index(level) for level in levels]
        if not chosen or any(a >= b for a, b in itertools.pairwise(chosen)):
            raise ValueError(
                f"levels must be named finest first, each once, from {self.levels}; got {levels!r}"
            )
        if tuple(levels) == self.levels:
            return self
        cell_id = self.cell_id
        if chosen[0] > 0:
            # Cells are numbered from one, so that the zero of a missing cell means "none".
            number = jnp.arange(1, self.sizes[chosen[0]].shape[0] + 1, dtype=jnp.int32)
            for k in reversed(range(chosen[0])):
                number = self.lift(number, k)
            # In rows this gives one id a row, a block of tokens as long as the row.
            read = segments.spread(number, self.cell_id)
            cell_id = jnp.where(read > 0, read - 1, self.sizes[chosen[0]].shape[0])
        parents, sizes = [], [self.tokens_of(levels[0])]
        for fine, coarse in itertools.pairwise(chosen):
            parent = self.parents[fine]
            for k in range(fine + 1, coarse):
                missing = self.sizes[k + 1].shape[0]
                parent = (
                    jnp.asarray(self.parents[k]).at[parent].get(mode="fill", fill_value=missing)
                )
            parents.append(parent)
            sizes.append(
                segments.segment_sum(
                    (self.sizes[fine] > 0).astype(jnp.int32),
                    parent,
                    self.sizes[coarse].shape[0],
                    axis_name=self._axes(fine + 1, coarse),
                )
            )
        return Layout(
            mask=self.mask,
            cell_id=cell_id,
            parents=tuple(parents),
            sizes=tuple(sizes),
            levels=tuple(levels),
            axis_names=tuple(
                self._axes(below + 1, k)
                for below, k in zip([-1, *chosen[:-1]], chosen, strict=True)
            ),
            state_id=self.state_id,
            num_states=self.num_states,
            state_axes=self.state_axes,
        )

    def all_axes(self) -> tuple[str, ...]:
        """Every mesh axis that the layout's cells or states are spread over, each named once."""
        return tuple(dict.fromkeys((*self._axes(0, len(self.levels) - 1), *self.state_axes)))

    def _axes(self, first: int, last: int) -> tuple[str, ...]:
        """The mesh axes of a sum that runs through several levels at once, each named once."""
        names = (name for axes in self.axis_names[first : last + 1] for name in axes)
        return tuple(dict.fromkeys(names))


def make_layout(
    mask: np.ndarray,
    parents: Mapping[str, np.ndarray] | None = None,
    *,
    cell_id: np.ndarray | None = None,
    finest: str = TRAJECTORY,
    num_cells: Mapping[str, int] | None = None,
    axis_names: Mapping[str, tuple[str, ...]] | None = None,
    state_id: np.ndarray | None = None,
    block_size: int = 1,
) -> Layout:
    """Builds and validates a layout on the host.

    Args:
      mask: bool `[B, T]` or `[N]`, True at real completion tokens.
      parents: ordered, finest first: for each level above the finest, its name and the cell of it
        that holds each cell of the level below, int; −1 where that cell is unused. For example
        `{"group": group_of_trajectory, "domain": domain_of_group}`.
      cell_id: int of the mask's shape, the finest cell of each token (ignored off the mask); None
        when every row is one trajectory.
      finest: name of the finest level.
      num_cells: static table sizes by level name, where they should exceed the ids seen; needed for
        one compiled shape over many batches.
      axis_names: by level name, and "state", the mesh axes over which a cell's children are spread.
      state_id: int of the mask's shape, of `state_ids`; only for gates that couple states.
      block_size: tokens a block; each aligned block must hold real tokens of one cell only. Larger
        blocks are faster. Only with `cell_id`.

    Returns:
      A `Layout` of NumPy arrays, ready to be put on devices.

    Raises:
      ValueError: naming the level, the offending id and what was expected.
    """
    mask = np.asarray(mask)
    parents = dict(parents or {})
    num_cells = dict(num_cells or {})
    axis_names = dict(axis_names or {})
    levels = (finest, *parents)
    if mask.dtype != np.bool_ or mask.ndim not in (1, 2):
        raise ValueError(f"mask must be bool [B, T] or [N]; got {mask.dtype} of shape {mask.shape}")
    if TRAJECTORY not in levels:
        raise ValueError(f"one level must be named {TRAJECTORY!r}; got {levels}")
    for name in (*num_cells, *axis_names):
        if name not in (*levels, STATE):
            raise ValueError(f"level {name!r} does not exist; the layout has {levels}")

    if cell_id is None:
        count = _rows_as_cells(mask, finest, num_cells)
    else:
        expected = len(next(iter(parents.values()))) if parents else None
        cell_id, count = _cells_by_token(mask, np.asarray(cell_id), finest, num_cells, expected)
        cell_id = _by_block(cell_id, count.size, block_size)
    sizes, tables = [count.astype(np.int32)], []
    for below, (name, parent) in zip(levels, parents.items(), strict=False):
        table, count = _parents_of(name, np.asarray(parent), below, count, num_cells.get(name))
        tables.append(table)
        sizes.append(count.astype(np.int32))
    num_states = 0
    if state_id is not None:
        num_states = num_cells.get(STATE, mask.size)
        state_id = np.asarray(state_id)
        if state_id.shape != mask.shape:
            raise ValueError(f"state_id has shape {state_id.shape}, the mask {mask.shape}")
        _check_ids(STATE, state_id[mask], num_states, "tokens")
        state_id = np.where(mask, state_id, num_states).astype(np.int32)
    # NumPy arrays stand for device arrays until they are put on devices.
    arrays: Any = (mask, cell_id, tuple(tables), tuple(sizes), state_id)
    return Layout(
        mask=arrays[0],
        cell_id=arrays[1],
        parents=arrays[2],
        sizes=arrays[3],
        levels=levels,
        axis_names=tuple(tuple(axis_names.get(name, ())) for name in levels),
        state_id=arrays[4],
        num_states=num_states,
        state_axes=tuple(axis_names.get(STATE, ())),
    )


def row_layout(
    mask: jax.Array, parents: Mapping[str, ArrayLike], num_cells: Mapping[str, int]
) -> Layout:
    """The layout of one trajectory a row from traced arrays, for a loss in another trainer's jit.

    What `make_layout` gives for the same rows, without its refusals: values are not known here. A
    cell whose id is outside its parents' table is left out, with all its tokens' share above it.

    Args:
      mask: bool[B, T], True at real completion tokens; may be traced.
      parents: ordered, finest first: for each level above the trajectory, the cell that holds each
        cell of the level below, int[S]; may be traced. A dict that is an argument of a jitted
        function comes out in alphabetical order: make it within.
      num_cells: static, the size of each of those levels' tables.

    Returns:
      A `Layout` with the levels "trajectory" and those of `parents`. A row without a token is no
      trajectory, and a cell without one no cell.

    Raises:
      ValueError: a level without a number of cells, or of another length than the level below.

    >>> layout = jax.jit(lambda m: row_layout(m, {"group": np.array([0, 0])}, {"group": 1}))(
    ...     np.array([[True, True], [True, False]])
    ... )
    >>> [size.tolist() for size in layout.sizes]
    [[2, 1], [2]]
    """
    sizes, tables = [jnp.sum(mask, axis=1, dtype=jnp.int32)], []
    for name, parent in parents.items():
        if name not in num_cells:
            raise ValueError(f"num_cells lacks level {name!r}; got {dict(num_cells)}")
        size, used = num_cells[name], sizes[-1] > 0
        parent = jnp.asarray(parent, jnp.int32)
        if parent.shape != used.shape:
            raise ValueError(
                f"level {name!r} must name a parent for each of the {used.size} cells below; "
                f"got shape {parent.shape}"
            )
        table = jnp.where(used & (parent >= 0) & (parent < size), parent, size)
        tables.append(table)
        sizes.append(segments.segment_sum(used.astype(jnp.int32), table, size))
    levels = (TRAJECTORY, *parents)
    return Layout(mask, None, tuple(tables), tuple(sizes), levels, ((),) * len(levels))


def _rows_as_cells(mask: np.ndarray, finest: str, num_cells: Mapping[str, int]) -> np.ndarray:
    """Tokens of each finest cell where a row is a cell, int[B]."""
    if mask.ndim != 2:
        raise ValueError(f"a flat mask of shape {mask.shape} needs cell_id")
    if num_cells.get(finest, mask.shape[0]) != mask.shape[0]:
        raise ValueError(
            f"one {finest} a row means {mask.shape[0]} cells; num_cells asks for "
            f"{num_cells[finest]}"
        )
    return mask.sum(axis=1)


def _cells_by_token(
    mask: np.ndarray,
    cell_id: np.ndarray,
    finest: str,
    num_cells: Mapping[str, int],
    expected: int | None,
) -> tuple[np.ndarray, np.ndarray]:
    """The finest cell of each token, `S_1` at padding, and the tokens of each cell, int[S_1]."""
    if cell_id.shape != mask.shape:
        raise ValueError(f"cell_id has shape {cell_id.shape}, the mask {mask.shape}")
    seen = int(np.max(cell_id[mask], initial=-1)) + 1 if expected is None else expected
    size = num_cells.get(finest, seen)
    _check_ids(finest, cell_id[mask], size, "tokens")
    return np.where(mask, cell_id, size).astype(np.int32), np.bincount(
        cell_id[mask], minlength=size
    )


def _parents_of(
    name: str, parent: np.ndarray, below: str, children: np.ndarray, size: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """A level's parent map over the cells below, and the number of children of each of its cells.

    Args:
      name: of the level.
      parent: int[S], its cell of each cell below.
      below: name of the level below.
      children: int[S], children of each cell below; one without any is unused.
      size: of the level's table; None for the cells that are seen.
    """
    if parent.shape != children.shape:
        raise ValueError(
            f"level {name!r} must name a parent for each of the {children.size} cells of "
            f"{below!r}; got shape {parent.shape}"
        )
    used = children > 0
    size = int(np.max(parent, initial=-1)) + 1 if size is None else size
    _check_ids(name, parent[used], size, f"cells of {below!r}")
    table = np.where(used, parent, size).astype(np.int32)
    return table, np.bincount(table[used], minlength=size)


def state_ids(
    tokens: np.ndarray, mask: np.ndarray, prompt_id: np.ndarray, trajectory_id: np.ndarray
) -> np.ndarray:
    """The state each token was sampled in: tokens of one prompt and prefix share one; on the host.

    Args:
      tokens: int[B, T] or [N], completion tokens in the order of sampling along the last axis.
      mask: bool of the same shape, True at real completion tokens.
      prompt_id: int[M], the prompt of each trajectory.
      trajectory_id: int of the tokens' shape, the trajectory of each.

    Returns:
      int32 of the tokens' shape, numbered from 0; −1 at padding.

    >>> tokens = np.array([[5, 6, 7], [5, 8, 7]])
    >>> trajectory = np.array([[0, 0, 0], [1, 1, 1]])
    >>> state_ids(tokens, tokens > 0, np.array([0, 0]), trajectory).tolist()
    [[0, 1, 2], [0, 1, 3]]
    """
    tokens, mask = np.asarray(tokens), np.asarray(mask, bool)
    # Lists: reading an array's numbers one by one takes most of the time.
    drawn = tokens[mask].tolist()
    trajectories = np.asarray(trajectory_id)[mask].tolist()
    prompts = np.asarray(prompt_id).tolist()
    # A trie of states: a state is its parent's number and the token that led on from there.
    roots: dict[int, int] = {}
    children: dict[tuple[int, int], int] = {}
    here: dict[int, int] = {}
    states = np.empty(len(drawn), np.int32)
    count = 0
    for position, (trajectory, token) in enumerate(zip(trajectories, drawn, strict=True)):
        if trajectory not in here:
            prompt = prompts[trajectory]
            if prompt not in roots:
                roots[prompt] = count
                count += 1
            here[trajectory] = roots[prompt]
        state = here[trajectory]
        states[position] = state
        step = (state, token)
        if step not in children:
            children[step] = count
            count += 1
        here[trajectory] = children[step]
    ids = np.full(tokens.shape, -1, np.int32)
    ids[mask] = np.unique(states, return_inverse=True)[1]
    return ids


def assert_tokens(arrays: Mapping[str, jax.Array | None], mask: jax.Array) -> None:
    """Asserts, while tracing, that arrays hold one value a token and would not be broadcast.

    Shapes are all that is seen: with as many rows as columns, a transposed array passes.

    Args:
      arrays: by the name of the argument; None where a gate was given none.
      mask: bool[...], of the layout.

    Raises:
      AssertionError: naming the argument, its shape and the mask's.
    """
    for name, array in arrays.items():
        if array is not None:
            chex.assert_shape(
                array,
                jnp.shape(mask),
                custom_message=(
                    f"{name} has shape {jnp.shape(array)}; expected one value a token, the shape "
                    f"{jnp.shape(mask)} of the layout's mask"
                ),
            )


def _by_block(cell_id: np.ndarray, padding: int, block_size: int) -> np.ndarray:
    """The one cell of each block of tokens, or the padding id; the ids themselves at size 1."""
    if block_size < 1 or cell_id.shape[-1] % block_size:
        raise ValueError(
            f"block_size = {block_size} must be at least 1 and divide {cell_id.shape[-1]} tokens"
        )
    blocks = cell_id.reshape(*cell_id.shape[:-1], -1, block_size)
    owner = blocks.min(axis=-1)
    mixed = (blocks != owner[..., None]) & (blocks != padding)
    if mixed.any():
        block = np.argwhere(mixed.any(axis=-1))[0].tolist()
        raise ValueError(
            f"block_size = {block_size}, but block {block} holds tokens of cells "
            f"{np.unique(blocks[tuple(block)]).tolist()}; expected one"
        )
    return owner if block_size > 1 else cell_id


def _check_ids(level: str, ids: np.ndarray, size: int, what: str) -> None:
    """Refuses ids that are not whole numbers in [0, size)."""
    if not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"ids of level {level!r} must be integers; got {ids.dtype}")
    bad = ids[(ids < 0) | (ids >= size)]
    if bad.size:
        raise ValueError(
            f"level {level!r} has {size} cells, but {what} point at {int(bad[0])}; "
            f"expected an id in [0, {size})"
        )
