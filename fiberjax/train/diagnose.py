"""What each level of the gate saw and did in an update, by a program beside the step.

The step gives its tokens' log-probabilities, and `diagnostics.level_metrics` are a function of
these: computed for the updates that are looked at alone, they cost the others nothing, and what is
trained does not depend on which ones these are.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from fiberjax import diagnostics, objective
from fiberjax.gates import Gate
from fiberjax.parallel import mesh
from fiberjax.train.batch import Batch, batch_specs
from fiberjax.train.update import Knobs, Metrics

Diagnose = Callable[[jax.Array, Batch, Knobs], Metrics]


def make_diagnose(device_mesh: Mesh, gate: Gate) -> Diagnose:
    """Compiles the diagnostics of an update; nothing of them is differentiated.

    Args:
      device_mesh: from `mesh.make_mesh`.
      gate: from `gates.from_config`.

    Returns:
      The jitted `(log_prob, batch, knobs) -> metrics` with the log-probabilities of the step
      (`StepOptions.log_prob`), the batch and the knobs that it was given. Metrics are on devices.
    """

    def local(log_prob: jax.Array, batch: Batch, knobs: Knobs) -> Metrics:
        layout = batch.layout
        log_prob, old_log_prob, advantage = (
            jnp.where(layout.mask, x, 0) for x in (log_prob, batch.old_log_prob, batch.advantage)
        )
        metrics = diagnostics.level_metrics(
            gate,
            log_prob - old_log_prob,
            advantage,
            layout,
            knobs.budgets,
            old_log_prob=old_log_prob,
        )
        return {name: objective.add_over(of, mesh.ROW_AXES) for name, of in metrics.items()}

    def diagnose(log_prob: jax.Array, batch: Batch, knobs: Knobs) -> Metrics:
        batch = batch.without_rows()
        return jax.shard_map(
            local,
            mesh=device_mesh,
            in_specs=(mesh.ROWS, batch_specs(batch), mesh.REPLICATED),
            out_specs=mesh.REPLICATED,
        )(log_prob, batch, knobs)

    return jax.jit(diagnose, out_shardings=NamedSharding(device_mesh, mesh.REPLICATED))
