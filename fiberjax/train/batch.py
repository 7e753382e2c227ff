"""The optimizer batch: whole prompt groups, as the compiled step reads them."""

import dataclasses
from typing import Any, NamedTuple

import jax

from fiberjax.layout import Layout
from fiberjax.parallel import mesh, shardings


class Rows(NamedTuple):
    """Rows of tokens as the policy reads them; arrays as in `Batch`, on the host or on devices."""

    tokens: Any
    positions: Any
    segment_ids: Any
    routes: Any = None
    columns: Any = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """One optimizer batch, made of whole prompt groups. B rows, S columns, the last T completions.

    Attributes:
      tokens: int32[B, S], prompts and completions.
      positions: int32[B, S], from 0 in each sequence.
      segment_ids: int32[B, S], 0 at padding.
      layout: over the completion columns, `[B, T]`.
      advantage: float32[B, T].
      old_log_prob: float32[B, T], of the policy before the first update on these rollouts; nats.
      reference_log_prob: float32[B, T], of the reference policy; nats. Zeros without a KL term.
      sample_weight: float32[B, T], the correction for sampler and trainer disagreeing; ones
        without one.
      routes: unsigned integer[B, S, L, k], the experts that the policy before the first update sent
        each token to, in each layer, which the updates send it to again; None lets the current
        policy choose.
      columns: int32[B, T], the column that each completion stands in, where several trajectories
        share a row; None where the last T columns are completions.
    """

    tokens: jax.Array
    positions: jax.Array
    segment_ids: jax.Array
    layout: Layout
    advantage: jax.Array
    old_log_prob: jax.Array
    reference_log_prob: jax.Array
    sample_weight: jax.Array
    routes: jax.Array | None = None
    columns: jax.Array | None = None

    @property
    def rows(self) -> Rows:
        """What the policy reads."""
        return Rows(self.tokens, self.positions, self.segment_ids, self.routes, self.columns)

    def without_rows(self) -> "Batch":
        """What the objective reads: the same without what the policy reads."""
        without: Any = dict.fromkeys(Rows._fields)
        return dataclasses.replace(self, **without)


def batch_specs(batch: Batch) -> Batch:
    """Partition specs of a batch: rows everywhere but in the tables above the trajectories."""
    rows = jax.tree.map(lambda _: mesh.ROWS, batch)
    return dataclasses.replace(rows, layout=shardings.layout_specs(batch.layout))
