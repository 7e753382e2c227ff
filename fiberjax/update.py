"""The single compiled step: log-ratios, gates, objective, gradient, optimizer, metrics.

The objective never sees the policy. The policy gives log-probabilities and entropies of every token
of the optimizer batch; the gate hierarchy and the objective, under `shard_map`, turn them into one
cotangent a token; and the policy's pullback turns those into the gradient. Gates couple tokens of
whole trajectories, groups and domains nonlinearly, so micro-batches may split the policy's two
passes but never the objective: any split gives the same gradient.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from fiberjax import diagnostics, kl, mesh, objective
from fiberjax.gates import Gate
from fiberjax.layout import Layout
from fiberjax.policy import TokenOutputs, TransformerConfig, bind, chunked_token_outputs


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What an update changes, and what a checkpoint holds of the policy.

    Attributes:
      params: nested dict of float32 arrays.
      opt_state: the Optax state.
      step: int32[], updates made.
    """

    params: Any
    opt_state: Any
    step: jax.Array


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
    """

    tokens: jax.Array
    positions: jax.Array
    segment_ids: jax.Array
    layout: Layout
    advantage: jax.Array
    old_log_prob: jax.Array
    reference_log_prob: jax.Array
    sample_weight: jax.Array


class Knobs(NamedTuple):
    """Numbers an experiment sweeps without compiling again; all traced.

    Attributes:
      budgets: what `gates.from_config` returns beside the gate.
      temperature: float32[], of the sampler and so of every log-probability.
      entropy_coefficient: float32[], weight of the entropy bonus.
      kl_coefficient: float32[], weight of the KL penalty to the reference policy.
    """

    budgets: Any
    temperature: Any
    entropy_coefficient: Any
    kl_coefficient: Any


@dataclasses.dataclass(frozen=True)
class StepOptions:
    """The static choices of a step; each combination compiles once.

    Attributes:
      weighting: weighting of the objective, a key of `objective.WEIGHTINGS`.
      constant_length: tokens, the denominator of the "constant" weighting.
      kl_estimator: "k2" or "k3"; None leaves the KL term out.
      entropy_bonus: whether the entropy bonus is computed.
      num_micro_batches: splits of the policy's passes; divides the rows of a shard.
      chunk: columns whose logits exist at a time.
    """

    weighting: str = "trajectory"
    constant_length: int = 1
    kl_estimator: str | None = None
    entropy_bonus: bool = False
    num_micro_batches: int = 1
    chunk: int = 128


Rows = tuple[jax.Array, jax.Array, jax.Array]
Forward = Callable[[Any, Rows], TokenOutputs]
Step = Callable[[TrainState, Batch, Knobs], tuple[TrainState, dict[str, jax.Array]]]


def make_step(
    config: TransformerConfig,
    device_mesh: Mesh,
    gate: Gate,
    optimizer: optax.GradientTransformation,
    options: StepOptions,
    shardings: TrainState,
) -> Step:
    """Compiles one update of the policy; returns `(state, batch, knobs) -> (state, metrics)`.

    Args:
      config: shape of the policy.
      device_mesh: from `mesh.make_mesh`.
      gate: from `gates.from_config`.
      optimizer: Optax transformation of the gradient of the loss `−J`.
      options: static choices.
      shardings: of the state, from `mesh.state_shardings`.

    Returns:
      The jitted step. It donates the state: never read the one passed in again. Metrics are
      float32[] on devices; read them while the next step runs.
    """

    def step(
        state: TrainState, batch: Batch, knobs: Knobs
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        forward = make_forward(config, device_mesh, batch.layout, knobs.temperature, options.chunk)
        rows = (batch.tokens, batch.positions, batch.segment_ids)
        # A packed batch has fewer rows than trajectories, and micro-batches of as many rows.
        num_trajectories = batch.layout.sizes[0].shape[0]
        parts = max(1, options.num_micro_batches * len(batch.tokens) // num_trajectories)
        outputs, pullback = outputs_and_pullback(forward, state.params, rows, parts)
        metrics, cotangents = objective_gradient(device_mesh, gate, options, outputs, batch, knobs)
        gradient = pullback(cotangents)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        metrics["actor/grad_norm"] = optax.tree.norm(gradient)
        metrics["actor/update_norm"] = optax.tree.norm(updates)
        params = optax.apply_updates(state.params, updates)
        return TrainState(params, opt_state, state.step + 1), metrics

    replicated = NamedSharding(device_mesh, mesh.REPLICATED)
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, replicated))


def make_forward(
    config: TransformerConfig, device_mesh: Mesh, layout: Layout, temperature: Any, chunk: int
) -> Forward:
    """The policy as a function of parameters and rows, over the layout's completion columns.

    The table of logits is gathered once, and each shard works through its own rows: left to the
    compiler, every chunk of columns would gather it, and add its gradient over devices, again.
    """

    def forward(params: Any, rows: Rows) -> TokenOutputs:
        tokens, positions, segment_ids = rows
        start = tokens.shape[1] - layout.mask.shape[1]
        model = bind(
            config,
            params,
            placement=mesh.placement(device_mesh, config),
        )
        hidden = model.hidden(tokens, positions, segment_ids)[:, start - 1 : -1]
        targets = jnp.where(segment_ids[:, start:] != 0, tokens[:, start:], 0)

        def local(hidden: Any, kernel: Any, targets: Any, temperature: Any) -> TokenOutputs:
            return chunked_token_outputs(
                hidden, kernel, targets, temperature=temperature, chunk=chunk
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

    return forward


def outputs_and_pullback(
    forward: Forward, params: Any, rows: Rows, num_micro_batches: int
) -> tuple[TokenOutputs, Callable[[TokenOutputs], Any]]:
    """The policy's outputs over all rows, and the pullback that gives the *negated* gradient.

    With one micro-batch this is `jax.vjp`: one forward and one backward pass. With more, the
    outputs are computed without residuals, and the pullback runs forward and backward again one
    micro-batch at a time, adding gradients: the same result, at the memory of one micro-batch.

    Args:
      forward: the policy.
      params: its parameters.
      rows: arrays of `[B, S]`; micro-batch j takes rows j, n + j, 2n + j, ... so that each device
        works on rows it holds.
      num_micro_batches: n, divides B.

    Raises:
      ValueError: the rows do not divide.
    """
    n = num_micro_batches
    num_rows = rows[0].shape[0]
    if num_rows % n:
        raise ValueError(f"{num_rows} rows do not divide into {n} micro-batches")

    def negate(gradient: Any) -> Any:
        return jax.tree.map(jnp.negative, gradient)

    if n == 1:
        outputs, pull = jax.vjp(lambda p: forward(p, rows), params)
        return outputs, lambda cotangents: negate(pull(cotangents)[0])

    parts = jax.tree.map(lambda x: mesh.split_rows(x, n), rows)
    outputs = mesh.in_micro_batches(lambda part: forward(params, part), rows, n)

    def pullback(cotangents: TokenOutputs) -> Any:
        def add(total: Any, part: tuple[Rows, TokenOutputs]) -> tuple[Any, None]:
            micro_rows, micro_cotangents = part
            _, pull = jax.vjp(lambda p: forward(p, micro_rows), params)
            return jax.tree.map(jnp.add, total, pull(micro_cotangents)[0]), None

        zeros = jax.tree.map(jnp.zeros_like, params)
        total, _ = jax.lax.scan(
            add, zeros, (parts, jax.tree.map(lambda x: mesh.split_rows(x, n), cotangents))
        )
        return negate(total)

    return outputs, pullback


def objective_gradient(
    device_mesh: Mesh,
    gate: Gate,
    options: StepOptions,
    outputs: TokenOutputs,
    batch: Batch,
    knobs: Knobs,
) -> tuple[dict[str, jax.Array], TokenOutputs]:
    """Metrics, and the gradient of J with respect to every log-probability and entropy.

    Runs under `shard_map` over the rows: gates sum locally, and only tables of the levels that span
    devices, and the scalars, are added over them.
    """

    def local(
        outputs: TokenOutputs, batch: Batch, knobs: Knobs
    ) -> tuple[dict[str, jax.Array], TokenOutputs]:
        def value(outputs: TokenOutputs) -> tuple[jax.Array, dict[str, jax.Array]]:
            return local_objective(gate, options, outputs, batch, knobs, mesh.ROW_AXES)

        (_, metrics), cotangents = jax.value_and_grad(value, has_aux=True)(outputs)
        return metrics, cotangents

    without: Any = {"tokens": None, "positions": None, "segment_ids": None}
    batch = dataclasses.replace(batch, **without)
    return jax.shard_map(
        local,
        mesh=device_mesh,
        in_specs=(mesh.ROWS, batch_specs(batch), mesh.REPLICATED),
        out_specs=(mesh.REPLICATED, mesh.ROWS),
    )(outputs, batch, knobs)


def batch_specs(batch: Batch) -> Batch:
    """Partition specs of a batch: rows everywhere but in the tables above the trajectories."""
    rows = jax.tree.map(lambda _: mesh.ROWS, batch)
    return dataclasses.replace(rows, layout=mesh.layout_specs(batch.layout))


def local_objective(
    gate: Gate,
    options: StepOptions,
    outputs: TokenOutputs,
    batch: Batch,
    knobs: Knobs,
    axis_name: tuple[str, ...],
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The objective J to maximise, and the metrics; float32[] and a dict of float32[].

        J = Σᵢ μᵢ wᵢ G(r)ᵢ Âᵢ + c_H · mean entropy − c_KL · mean KL(π_θ ‖ π_ref)

    All means have the objective's own weights. Totals and counts are added over `axis_name` before
    they are divided.

    Args:
      gate: the ratio gate.
      options: static choices.
      outputs: of the current policy, over this shard's tokens.
      batch: this shard's rows; tokens and positions are not read.
      knobs: traced numbers.
      axis_name: mesh axes that the rows are split over; () outside `shard_map`.
    """
    layout = batch.layout
    weighting: Any = {
        "weighting": options.weighting,
        "constant_length": options.constant_length,
    }

    def value(metric: objective.Metric) -> jax.Array:
        return objective.add_over(metric, axis_name).value

    # Padding may hold anything; masking results alone would leave gradients of `0 · inf`.
    log_prob, old_log_prob, reference_log_prob, advantage, sample_weight = (
        jnp.where(layout.mask, x, 0)
        for x in (
            *(outputs.log_prob, batch.old_log_prob, batch.reference_log_prob),
            *(batch.advantage, batch.sample_weight),
        )
    )
    log_ratio = log_prob - old_log_prob
    gated = gate(log_ratio, advantage, layout, knobs.budgets, old_log_prob=old_log_prob)
    credit = advantage * sample_weight
    surrogate = value(objective.surrogate(gated, credit, layout, **weighting))
    total = surrogate
    metrics = {"actor/pg_loss": -surrogate}
    if options.entropy_bonus:
        bonus = value(objective.mean(outputs.entropy, layout, **weighting))
        total += knobs.entropy_coefficient * bonus
    if options.kl_estimator is not None:
        estimate = kl.LOSSES[options.kl_estimator](log_prob, reference_log_prob)
        penalty = value(objective.mean(estimate, layout, **weighting))
        total -= knobs.kl_coefficient * penalty
        metrics["actor/kl_reference"] = penalty
    entropy = objective.mean(jax.lax.stop_gradient(outputs.entropy), layout, weighting="token")
    metrics["actor/entropy"] = value(entropy)
    frozen = jax.lax.stop_gradient(log_ratio)
    logged = diagnostics.gate_metrics(
        gate, frozen, advantage, layout, knobs.budgets, old_log_prob=old_log_prob
    )
    return total, metrics | {name: value(metric) for name, metric in logged.items()}
