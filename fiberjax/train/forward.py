"""The policy over the rows of a batch, forward and back, in micro-batches where memory is short.

Old and reference log-probabilities come from here too: by the very program that the updates
differentiate, at the same temperature.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fiberjax.parallel import mesh, shardings
from fiberjax.policy import TokenOutputs, TransformerConfig, bind, chunked_token_outputs
from fiberjax.policy.row_parts import in_parts
from fiberjax.train import packing
from fiberjax.train.batch import Rows

Forward = Callable[[Any, Rows], TokenOutputs]


def make_forward(
    config: TransformerConfig,
    device_mesh: Mesh,
    window: int,
    temperature: Any,
    chunk: int,
    *,
    entropy_gradient: bool,
    row_axes: tuple[str, ...] = mesh.ROW_AXES,
) -> Forward:
    """The policy as a function of parameters and rows, over their completions.

    The table of logits is gathered once, and each shard works through its own rows: left to the
    compiler, every chunk of columns would gather it, and add its gradient over devices, again.
    Where columns lie apart, each works through all of its own, those of prompts too.

    Args:
      config: shape of the policy.
      device_mesh: from `mesh.make_mesh`.
      window: how many of the last columns are completions, where rows do not name theirs.
      temperature: divides the logits; float32[].
      chunk: as many logits exist at a time as so many columns have; 0: as 64 MiB hold.
      entropy_gradient: whether entropies have a gradient, or are constants.
      row_axes: mesh axes that the rows are split over; without `data`, those of one replica.
    """
    of_hidden = _make_head(
        device_mesh, window, temperature, chunk, row_axes, entropy_gradient=entropy_gradient
    )
    placement = shardings.placement(device_mesh, config, row_axes=row_axes)

    def forward(params: Any, rows: Rows) -> TokenOutputs:
        model = bind(config, params, placement=placement)
        return of_hidden(model, model.hidden(*rows[:4]), rows)

    return forward


def _make_head(
    device_mesh: Mesh,
    window: int,
    temperature: Any,
    chunk: int,
    row_axes: tuple[str, ...] = mesh.ROW_AXES,
    *,
    entropy_gradient: bool,
) -> Callable[[Any, jax.Array, Rows], TokenOutputs]:
    """From the policy and its activations over rows to its outputs; arguments as `make_forward`."""
    outputs = functools.partial(
        chunked_token_outputs,
        chunk=chunk,
        entropy_gradient=entropy_gradient,
        parts=device_mesh.shape["tensor"],
    )

    def of_hidden(model: Any, hidden: jax.Array, rows: Rows) -> TokenOutputs:
        def local(hidden: Any, kernel: Any, rows: Any, temperature: Any) -> TokenOutputs:
            tokens, columns = jnp.where(rows.segment_ids != 0, rows.tokens, 0), rows.columns
            if columns is None:
                start = tokens.shape[1] - window
                hidden, targets = hidden[:, start - 1 : -1], tokens[:, start:]
            else:
                hidden = jnp.take_along_axis(hidden, columns[..., None] - 1, axis=1)
                targets = jnp.take_along_axis(tokens, columns, axis=1)
            return outputs(hidden, kernel, targets, temperature=temperature)

        rows = rows._replace(routes=None)
        if device_mesh.shape["sequence"] > 1:
            every = _of_every_column(
                device_mesh, row_axes, outputs, model, hidden, rows, temperature
            )
            return TokenOutputs(*(_completions(of, rows, window) for of in every))
        arguments = (hidden, model.unembedding().astype(hidden.dtype), rows, temperature)
        if mesh.row_shards(device_mesh) == 1:
            # The partitioner refuses a loop that is manual over axes of size one alone.
            return local(*arguments)
        return jax.shard_map(
            lambda hidden, kernel, *others: local(hidden, _of_shard(kernel, row_axes), *others),
            mesh=device_mesh,
            in_specs=(P(row_axes), mesh.REPLICATED, P(row_axes), mesh.REPLICATED),
            out_specs=P(row_axes),
            axis_names=set(mesh.ROW_AXES),
            # Mapped over replicas, what is the same on all of them would have to say so.
            check_vma=row_axes == mesh.ROW_AXES,
        )(*arguments)

    return of_hidden


def _of_shard(kernel: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """The table, with a gradient of each shard's own, which are added up once.

    Left to the loop over blocks of it, each block's would be added up by itself.
    """
    return jax.lax.pcast(kernel, axes, to="varying")


def _of_every_column(
    device_mesh: Mesh,
    row_axes: tuple[str, ...],
    outputs: Callable[..., TokenOutputs],
    model: Any,
    hidden: jax.Array,
    rows: Rows,
    temperature: Any,
) -> TokenOutputs:
    """The outputs at each column of what follows it, `[B, S]`; columns lie on several devices."""
    apart = P(row_axes, "sequence")
    tokens = jnp.where(rows.segment_ids != 0, rows.tokens, 0)

    def local(hidden: Any, kernel: Any, targets: Any, temperature: Any) -> TokenOutputs:
        kernel = _of_shard(kernel, (*row_axes, "sequence"))
        return outputs(hidden, kernel, targets, temperature=temperature)

    return jax.shard_map(
        local,
        mesh=device_mesh,
        in_specs=(apart, mesh.REPLICATED, apart, mesh.REPLICATED),
        out_specs=apart,
        axis_names={*mesh.ROW_AXES, "sequence"},
        check_vma=row_axes == mesh.ROW_AXES,
    )(hidden, model.unembedding().astype(hidden.dtype), jnp.roll(tokens, -1, 1), temperature)


def _completions(outputs: jax.Array, rows: Rows, window: int) -> jax.Array:
    """Of outputs at every column those of what the completions' tokens follow, `[B, T]`."""
    if rows.columns is None:
        return outputs[:, outputs.shape[1] - window - 1 : -1]
    return jnp.take_along_axis(outputs, rows.columns - 1, axis=1)


class Replicas(NamedTuple):
    """The policy in replicas that each have a gradient of their own, until these are joined.

    Left to the compiler, gradients are added over replicas in every micro-batch; so it is once.

    Attributes:
      forward: of parameters from `spread`, over rows as before.
      spread: from parameters to what each replica holds of them, a leading axis over `data`.
      joined: from a gradient with that axis to the sum.
    """

    forward: Forward
    spread: Callable[[Any], Any]
    joined: Callable[[Any], Any]


def in_replicas(device_mesh: Mesh, placed: Any, of_one: Forward) -> Replicas:
    """The policy with one set of parameters a replica.

    Args:
      device_mesh: from `mesh.make_mesh`, with several replicas.
      placed: shardings of the parameters that are trained, a pytree like them.
      of_one: the policy over the rows of one replica: `make_forward` without `data` in its axes.
    """
    count = device_mesh.shape["data"]

    def held(sharding: NamedSharding) -> NamedSharding:
        return NamedSharding(device_mesh, P("data", *sharding.spec))

    def spread(params: Any) -> Any:
        return jax.tree.map(
            lambda x, sharding: jax.lax.with_sharding_constraint(
                jnp.broadcast_to(x, (count, *x.shape)), held(sharding)
            ),
            params,
            placed,
        )

    def joined(gradient: Any) -> Any:
        return jax.tree.map(
            lambda x, sharding: jax.lax.with_sharding_constraint(x.sum(0), sharding),
            gradient,
            placed,
        )

    def forward(spread: Any, rows: Rows) -> TokenOutputs:
        parted = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), rows)
        outputs = jax.vmap(of_one, spmd_axis_name="data")(spread, parted)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), outputs)

    return Replicas(forward, spread, joined)


def make_log_probs(
    config: TransformerConfig,
    device_mesh: Mesh,
    chunk: int,
    num_micro_batches: int,
    *,
    packed: bool = False,
    routes: bool = False,
) -> Callable[[Any, Rows, Any, Any], Callable[[], tuple[Any, Any]]]:
    """Compiles the policy's own log-probabilities of whole rollouts.

    Args:
      config: shape of the policy.
      device_mesh: from `mesh.make_mesh`.
      chunk: as many logits exist at a time as so many columns have; 0: as 64 MiB hold.
      num_micro_batches: into how many parts the rows are cut.
      packed: whether the policy reads several trajectories in a row, as many as find room.
      routes: whether to tell which experts each token was sent to; of a mixture alone.

    Returns:
      `(params, rows, mask, temperature) -> wait`, which begins them. `wait()` gives float32[R, C],
      nats: of the completions, the last C columns, whose shape the mask has, and anything where no
      token is; and integer[R, P + C, L, k] with `routes`, else None. All are this process's, on the
      host, one trajectory a row.
    """

    @functools.partial(
        jax.jit, static_argnums=(3, 4), out_shardings=NamedSharding(device_mesh, mesh.ROWS)
    )
    def log_probs(params: Any, rows: Rows, temperature: Any, window: int, parts: int) -> Any:
        of_hidden = _make_head(device_mesh, window, temperature, chunk, entropy_gradient=False)

        def of_part(part: Rows) -> Any:
            model = bind(config, params, placement=shardings.placement(device_mesh, config))
            if not routes:
                return of_hidden(model, model.hidden(*part[:4]), part).log_prob
            hidden, taken = model.routed(*part[:3])
            return of_hidden(model, hidden, part).log_prob, taken

        return in_parts(of_part, rows, parts)

    def of_rollouts(params: Any, rows: Rows, mask: Any, temperature: Any) -> Any:
        rows, window, parts = Rows(*rows), mask.shape[1], num_micro_batches
        fewer = packing.choose(device_mesh, rows.segment_ids, window, parts) if packed else None
        if fewer is not None:
            parts = max(1, parts * fewer.rows // fewer.unpacked)
            rows, window = packing.pack_rows(rows, fewer), fewer.targets
        placed = mesh.place(device_mesh, rows, mesh.ROWS)
        begun = log_probs(params, placed, temperature, window, parts)

        def wait() -> tuple[Any, Any]:
            log_prob, taken = begun if routes else (begun, None)
            log_prob = mesh.local_values(log_prob)
            taken = None if taken is None else mesh.local_values(taken)
            if fewer is not None:
                log_prob = fewer.unpack_completions(log_prob)
                taken = None if taken is None else fewer.unpack(taken)
            return log_prob, taken

        return wait

    return of_rollouts
