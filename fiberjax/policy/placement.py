"""Where a policy's arrays lie: what a mesh changes about how it is computed, never what."""

import dataclasses
from collections.abc import Callable

from jax import Array

from fiberjax.policy import attention


@dataclasses.dataclass(frozen=True)
class Placement:
    """One device: everything stays where it is, attention is dense.

    `shardings.placement` makes one for a mesh, which overrides what it must. Hashable, so that it
    can be a static argument.
    """

    def activation(self, x: Array, name: str) -> Array:
        """An activation, on the devices that should hold its parts.

        Args:
          x: the activation.
          name: `"activation"` [B, T, D], `"heads"` [B, T, heads, K], `"mlp"` [B, T, F], or
            `"column"` [B, G, T, K], new keys or values of the cache.
        """
        del name
        return x

    def kernel(self, kernel: Array, split: str) -> Array:
        """A layer's matrix [in, out] in the compute dtype, as its product reads it.

        Args:
          kernel: the matrix, or those of all experts [E, in, out].
          split: `"out"` or `"in"`, the axis that may stay in parts; `"out lora_a"` and the like of
            the two matrices of its adapter; of experts, which stay in parts by themselves,
            `"expert out"` or `"expert in"`: the one that does not.
        """
        del split
        return kernel

    def attend(
        self,
        query: Array,
        key: Array,
        value: Array,
        segment_ids: Array,
        *,
        scale: float | None = None,
        window: Array | int | None = None,
    ) -> Array:
        """What `attention.dense` computes of whole rows."""
        return attention.dense(query, key, value, segment_ids, scale=scale, window=window)

    def experts(
        self,
        local: Callable[..., Array],
        x: Array,
        share: Array,
        expert: Array,
        *kernels: Array,
    ) -> Array:
        """What the experts add to each token, dtype[B, T, D]: the sum over all who hold some.

        Args:
          local: `experts.dispatch`, of the index of the first expert held and what follows here.
          x: dtype[B, T, D].
          share: dtype[B, T, k].
          expert: int32[B, T, k].
          *kernels: of the experts, dtype[E, in, out].
        """
        return local(0, x, share, expert, *kernels)


ONE_DEVICE = Placement()
