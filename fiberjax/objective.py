"""The objective of the Ratio Gating Formalism: one sum over tokens, whatever the gate.

    J = Σᵢ μᵢ · G(r)ᵢ · Âᵢ                                                  (maximised)

A gate makes `Gᵢ` of the importance ratios; the weighting `μ` is a separate choice. Everything here
is a pair (total, count): totals over micro-batches and devices are added first and divided last, so
that no split of a batch changes its gradient.
"""

from typing import NamedTuple

import jax

from fiberjax import segments


class Mean(NamedTuple):
    """A mean kept as its two parts, `total / count`, both float32[]."""

    total: jax.Array
    count: jax.Array

    @property
    def value(self) -> jax.Array:
        """The mean, float32[]; 0 where nothing was counted."""
        return segments.safe_divide(self.total, self.count)
