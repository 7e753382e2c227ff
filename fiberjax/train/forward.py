"""The policy over the rows of a batch, forward and back, in micro-batches where memory is short.

Old and reference log-probabilities come from here too: by the very program that the updates
differentiate, at the same temperature.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from fiberjax.layout import Layout, make_layout
from fiberjax.parallel import mesh, shardings
from fiberjax.policy import TokenOutputs, TransformerConfig, bind, chunked_token_outputs

Rows = tuple[jax.Array, ...]
"""Tokens, positions, segment ids of rows, each int32[B, S]; and their routes, to replay them."""

Forward = Callable[[Any, Rows], TokenOutputs]


def make_forward(
    config: TransformerConfig,
    device_mesh: Mesh,
    layout: Layout,
    temperature: Any,
    chunk: int,
    *,
    entropy_gradient: bool,
) -> Forward:
    """The policy as a function of parameters and rows, over the layout's completion columns.

    The table of logits is gathered once, and each shard works through its own rows: left to the
    compiler, every chunk of columns would gather it, and add its gradient over devices, again.

    Args:
      config: shape of the policy.
      device_mesh: from `mesh.make_mesh`.
      layout: its mask says how many columns are completions.
      temperature: divides the logits; float32[].
      chunk: columns whose logits exist at a time.
      entropy_gradient: whether entropies have a gradient, or are constants.
    """
    of_hidden = _make_head(
        device_mesh, layout, temperature, chunk, entropy_gradient=entropy_gradient
    )

    def forward(params: Any, rows: Rows) -> TokenOutputs:
        model = bind(config, params, placement=shardings.placement(device_mesh, config))
        return of_hidden(model, model.hidden(*rows), rows)

    return forward


def _make_head(
    device_mesh: Mesh, layout: Layout, temperature: Any, chunk: int, *, entropy_gradient: bool
) -> Callable[[Any, jax.Array, Rows], TokenOutputs]:
    """From the policy and its activations over rows to its outputs; arguments as `make_forward`."""

    def of_hidden(model: Any, hidden: jax.Array, rows: Rows) -> TokenOutputs:
        tokens, _, segment_ids = rows[:3]
        start = tokens.shape[1] - layout.mask.shape[1]
        hidden = hidden[:, start - 1 : -1]
        targets = jnp.where(segment_ids[:, start:] != 0, tokens[:, start:], 0)

        def local(hidden: Any, kernel: Any, targets: Any, temperature: Any) -> TokenOutputs:
            return chunked_token_outputs(
                hidden,
                kernel,
                targets,
                temperature=temperature,
                chunk=chunk,
                entropy_gradient=entropy_gradient,
            )

        arguments = (hidden, model.unembedding().astype(hidden.dtype), targets, temperature)
        if mesh.row_shards(device_mesh) == 1:
            # The partitioner refuses a loop that is manual over axes of size one alone.
            return local(*arguments)
        return jax.shard_map(
            local,
            mesh=device_mesh,
            in_specs=(mesh.ROWS, mesh.REPLICATED, mesh.ROWS, mesh.REPLICATED),
            out_specs=mesh.ROWS,
            axis_names=set(mesh.ROW_AXES),
        )(*arguments)

    return of_hidden


def make_log_probs(
    config: TransformerConfig,
    device_mesh: Mesh,
    chunk: int,
    num_micro_batches: int,
    *,
    routes: bool = False,
) -> Callable[[Any, Rows, Any, Any], Any]:
    """Compiles the policy's own log-probabilities of whole rollouts.

    Args:
      config: shape of the policy.
      device_mesh: from `mesh.make_mesh`.
      chunk: columns whose logits exist at a time.
      num_micro_batches: into how many parts the rows are cut.
      routes: whether to tell which experts each token was sent to; of a mixture alone.

    Returns:
      `(params, rows, mask, temperature)` -> float32[R, C] on the mesh, nats: of the completions,
      the last C columns, whose real tokens the mask names; with `routes`, a pair with these,
      integer[R, P + C, L, k]. Rows and mask are this process's, on the host.
    """

    def log_probs(params: Any, rows: Rows, layout: Layout, temperature: Any) -> Any:
        of_hidden = _make_head(device_mesh, layout, temperature, chunk, entropy_gradient=False)

        def of_part(part: Rows) -> Any:
            model = bind(config, params, placement=shardings.placement(device_mesh, config))
            if not routes:
                return of_hidden(model, model.hidden(*part), part).log_prob
            hidden, taken = model.routed(*part)
            return of_hidden(model, hidden, part).log_prob, taken

        return in_micro_batches(of_part, rows, num_micro_batches)

    compiled = jax.jit(log_probs, out_shardings=NamedSharding(device_mesh, mesh.ROWS))

    def of_rollouts(params: Any, rows: Rows, mask: Any, temperature: Any) -> Any:
        layout = mesh.place(device_mesh, make_layout(mask), mesh.ROWS)
        return compiled(params, mesh.place(device_mesh, rows, mesh.ROWS), layout, temperature)

    return of_rollouts


def split_rows(x: jax.Array, parts: int, together: int = 1) -> jax.Array:
    """`[B, ...]` as `[n, B/n, ...]`; part j takes rows j, n + j, ..., so devices keep theirs.

    Blocks of `together` rows stay together: part j then takes blocks j, n + j, ...
    """
    blocks = x.reshape(-1, parts, together, *x.shape[1:]).swapaxes(0, 1)
    return blocks.reshape(parts, -1, *x.shape[1:])


def merge_rows(x: jax.Array, together: int = 1) -> jax.Array:
    """Undoes `split_rows`."""
    blocks = x.reshape(len(x), -1, together, *x.shape[2:]).swapaxes(0, 1)
    return blocks.reshape(-1, *x.shape[2:])


def in_micro_batches(function: Callable[[Any], Any], rows: Any, parts: int) -> Any:
    """Applies a function of rows to `parts` splits of them, one after the other, and merges."""
    if parts == 1:
        return function(rows)
    split = jax.tree.map(lambda x: split_rows(x, parts), rows)
    return jax.tree.map(merge_rows, jax.lax.map(function, split))
