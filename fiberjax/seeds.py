"""Seeds: five streams of randomness under one seed, and a key for every row of a batch.

No two phases of a run ever share a key, and a draw depends on (seed, stream, step, place in the
global batch) alone: not on the number of devices or processes.
"""

import jax
from jax.typing import ArrayLike

TRAINING, EVALUATION, PROFILE, INITIALISATION, ADAPTERS = range(5)
"""The streams."""

STREAMS = 5
"""Their number."""


def of_turn(stream: int, turn: int) -> int:
    """The stream that a turn of an episode is drawn from: the first one's is the stream itself."""
    return stream + STREAMS * turn


@jax.jit
def row_keys(seed: ArrayLike, stream: ArrayLike, step: ArrayLike, places: jax.Array) -> jax.Array:
    """One typed PRNG key for each row; `[R]`, sharded as the places are.

    Args:
      seed: of the run, below 2³¹.
      stream: one of the module's streams, or `of_turn`.
      step: which call of that stream.
      places: int32[R], the row's place in the global batch.
    """
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), stream), step)
    return jax.vmap(lambda place: jax.random.fold_in(key, place))(places)
