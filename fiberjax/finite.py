"""Whether the numbers of an update are finite, as flags of the program that makes them.

A NaN or an infinity in a parameter is never mended: every update after it is one too. So a step
whose gradient holds one decides by itself, on all devices alike, to leave everything as it was.
"""

from typing import Any

import jax
import jax.numpy as jnp


class NotFinite(FloatingPointError):
    """Training ended at a NaN or an infinity; says where, and what is kept."""


def finite(tree: Any) -> jax.Array:
    """Whether no floating array of a tree holds a NaN or an infinity; bool[], no gradient.

    Arrays that are split over devices count whole, so that all devices have one answer.

    >>> bool(finite({"a": jnp.ones(2), "b": 3})), bool(finite([jnp.array([1.0, jnp.nan])]))
    (True, False)
    """
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    floating = [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    flags = [jnp.isfinite(leaf).all() for leaf in floating]
    return jnp.stack(flags).all() if flags else jnp.ones((), bool)


def choose(flag: jax.Array, new: Any, old: Any) -> Any:
    """The new tree where the flag holds, else the old one, bit for bit.

    Args:
      flag: bool[].
      new: tree of arrays, which may hold anything where the flag does not hold.
      old: another of the same structure, shapes and dtypes.
    """
    return jax.tree.map(lambda a, b: jnp.where(flag, a, b), new, old)
