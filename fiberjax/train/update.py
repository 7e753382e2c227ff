"""The single compiled step: log-ratios, gates, objective, gradient, optimizer, metrics.

The objective never sees the policy. The policy gives log-probabilities and entropies of every token
of the optimizer batch; the gate hierarchy and the objective, under `shard_map`, turn them into one
cotangent a token; and the policy's pullback turns those into the gradient. Gates couple tokens of
whole trajectories, groups and domains nonlinearly, so micro-batches split the policy's passes but
never the objective: any split gives the same gradient, by one of the schedules of `passes`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from fiberjax import diagnostics, kl, objective, optimizers, step_share
from fiberjax.finite import choose, finite
from fiberjax.gates import Gate
from fiberjax.layout import TRAJECTORY
from fiberjax.objective import Mean, Reduction, Sum
from fiberjax.parallel import mesh
from fiberjax.policy import TokenOutputs, TransformerConfig, lora
from fiberjax.policy.lora import LoRA
from fiberjax.train import passes
from fiberjax.train.batch import Batch, batch_specs
from fiberjax.train.forward import Forward, in_replicas, make_forward


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What an update changes, and what a checkpoint holds of the policy.

    Attributes:
      params: what is trained, a nested dict of float32 arrays: all parameters of the policy, or
        its adapters.
      opt_state: the Optax state.
      step: int32[], updates made.
    """

    params: Any
    opt_state: Any
    step: jax.Array


class Knobs(NamedTuple):
    """Numbers an experiment sweeps without compiling again; all traced.

    Attributes:
      budgets: what `gates.from_config` returns beside the gate.
      temperature: float32[], of the sampler and so of every log-probability.
      entropy_coefficient: float32[], weight of the entropy bonus.
      kl_coefficient: float32[], weight of the KL penalty to the reference policy.
      target_kl: float32[], nats a token; an update is left out where the policy is farther than
        that from the one before the first update on the batch. None leaves none out.
      step_factor: float32[], what every update is multiplied by; None takes them as they are.
    """

    budgets: Any
    temperature: Any
    entropy_coefficient: Any
    kl_coefficient: Any
    target_kl: Any = None
    step_factor: Any = None


@dataclasses.dataclass(frozen=True)
class StepOptions:
    """The static choices of a step; each combination compiles once.

    Attributes:
      weighting: weighting of the objective, a key of `objective.WEIGHTINGS`.
      constant_length: tokens, the denominator of the "constant" weighting.
      kl_estimator: "k2" or "k3"; None leaves the KL term out.
      kl_ratio_weight: whether the KL term weighs tokens by their ratio; see `kl.loss`.
      entropy_bonus: whether the entropy bonus is computed, and so the entropy differentiated.
      step_share: one of `step_share.FORMS`, where the optimizer's step is to be as long as what the
        gate leaves open; None leaves it whole.
      num_micro_batches: splits of the policy's passes; divides the rows of a shard.
      groups: which rows are one prompt's; between groups, splits may be cheaper.
      chunk: as many logits exist at a time as so many columns have; 0: as 64 MiB hold.
      lora: the adapters that are trained; None trains all parameters.
      log_prob: whether the log-probabilities of the batch's tokens come out too, as `diagnose`
        reads them.
    """

    weighting: str = "trajectory"
    constant_length: int = 1
    kl_estimator: str | None = None
    kl_ratio_weight: bool = True
    entropy_bonus: bool = False
    step_share: str | None = None
    num_micro_batches: int = 1
    groups: passes.Groups = dataclasses.field(default_factory=passes.Groups)
    chunk: int = 0
    lora: LoRA | None = None
    log_prob: bool = False


Metrics = dict[str, Reduction]
"""By name, joined over micro-batches and devices; `objective.add` joins those of several steps."""

Step = Callable[..., Any]
"""`(state, batch, knobs, base, fresh) -> (state, metrics)`, with `StepOptions.log_prob` a third."""

SKIPPED = "actor/skipped_updates"
"""The metric of a step that says whether it was left out: 1, or 0."""

STOPPED = "actor/stopped_updates"
"""The metric of a step that says whether it was beyond `Knobs.target_kl`: 1, or 0."""

TERMS = ("log_ratio", "loss", "gradient", "state")
"""What of an update must be finite, in the order that they are made. Where one of the first three
is not, the update is left out; the last is what it made of parameters and moments, and too late."""

NOT_FINITE = "not_finite/"
"""Before each of `TERMS`, the metric of a step that says whether it was not finite: 1, or 0."""

# What the objective is a sum of, where it is; an entropy without a bonus is only watched.
_LOSSES = ("actor/pg_loss", "actor/kl_reference")


def make_step(
    config: TransformerConfig,
    device_mesh: Mesh,
    gate: Gate,
    optimizer: optax.GradientTransformation,
    options: StepOptions,
    shardings: TrainState,
) -> Step:
    """Compiles one update of the policy.

    Args:
      config: shape of the policy.
      device_mesh: from `mesh.make_mesh`.
      gate: from `gates.from_config`.
      optimizer: Optax transformation of the gradient of the loss `−J`; its update is multiplied by
        the open share where the options ask for that.
      options: static choices.
      shardings: of the state, from `shardings.state_shardings`.

    Returns:
      The jitted `(state, batch, knobs, base, fresh) -> (state, metrics)`; the base is what adapters
      adapt, None without them, and `fresh`, a bool that is False if left out, says that the state
      is the one whose log-probabilities are the batch's old ones. Where the options ask for it a
      third result is the log-probabilities, float32[B, T] over the rows, of the tokens by the
      policy before the update.
      It donates the state: never read the one passed in again.
      Metrics are on devices; read them while the next step runs. Where a log ratio, the loss, the
      open share or the gradient is not finite on any device, the state is the old one bit for bit,
      `SKIPPED` is 1, and so is each of `TERMS` that was not. Beyond the target KL it is the old one
      too, and `STOPPED` is 1. All of that is known before the optimizer's step, which is so
      written where the old state stands and needs no memory of its own. A gradient whose squares
      can be added gives a finite step under each of `optimizers.OPTIMIZERS`; should the new state
      not be finite all the same, `not_finite/state` says so, and it is lost.
    """
    sized = optax.with_extra_args_support(optimizer)
    if options.step_share is not None:
        sized = step_share.scale_by_share(optimizer)

    def step(
        state: TrainState,
        batch: Batch,
        knobs: Knobs,
        base: Any = None,
        fresh: jax.Array | bool = False,
    ) -> tuple[Any, ...]:
        def over(row_axes: tuple[str, ...]) -> Forward:
            whole = make_forward(
                config,
                device_mesh,
                batch.layout.mask.shape[1],
                knobs.temperature,
                options.chunk,
                entropy_gradient=options.entropy_bonus,
                row_axes=row_axes,
            )
            return lambda trained, rows: whole(lora.attached(options.lora, base, trained), rows)

        forward, replicas = over(mesh.ROW_AXES), None
        if device_mesh.shape["data"] > 1:
            of_one = over(mesh.WITHIN_REPLICA)
            replicas = in_replicas(device_mesh, shardings.params, of_one)

        # A packed batch has fewer rows than trajectories, and micro-batches of as many rows.
        num_trajectories = batch.layout.sizes[batch.layout.index(TRAJECTORY)].shape[0]
        parts = max(1, options.num_micro_batches * len(batch.tokens) // num_trajectories)
        shards = mesh.row_shards(device_mesh)
        outputs, metrics, gradient = passes.run(
            forward,
            state.params,
            batch.rows,
            lambda outputs: objective_gradient(device_mesh, gate, options, outputs, batch, knobs),
            passes.split(gate, knobs.budgets, batch.layout, parts, shards, options.groups),
            old=TokenOutputs(batch.old_log_prob, jnp.zeros_like(batch.old_log_prob)),
            fresh=fresh,
            replicas=replicas,
        )
        one = jnp.ones(())  # Of a step: several have the mean of their norms.
        metrics["actor/grad_norm"] = Mean(optax.tree.norm(gradient), one)
        momentum = optimizers.momentum(state.opt_state, gradient)
        if momentum is not None:
            metrics["actor/grad_momentum_cosine"] = optimizers.cosine(gradient, momentum)
        flags = _flags(options, metrics)
        made = jnp.stack(list(flags.values())).all()
        metrics[SKIPPED] = Sum(1.0 - made)
        if knobs.target_kl is not None:
            beyond = made & (metrics["actor/ppo_kl_k3"].value > knobs.target_kl)
            metrics[STOPPED] = Sum(beyond.astype(jnp.float32))
            made &= ~beyond
        extra = {}
        if options.step_share is not None:
            extra["share"] = metrics["actor/open_share"].value
        updates, opt_state = sized.update(gradient, state.opt_state, state.params, **extra)
        if knobs.step_factor is not None:
            updates = jax.tree.map(lambda u: (knobs.step_factor * u).astype(u.dtype), updates)
        metrics["actor/update_norm"] = Mean(jnp.where(made, optax.tree.norm(updates), 0.0), one)
        params = optax.apply_updates(state.params, updates)
        new = choose(made, TrainState(params, opt_state, state.step + 1), state)
        flags["state"] = finite(new)
        metrics |= {NOT_FINITE + term: Sum(1.0 - flag) for term, flag in flags.items()}
        result = (new, metrics)
        return (*result, outputs.log_prob) if options.log_prob else result

    replicated, rows = (NamedSharding(device_mesh, of) for of in (mesh.REPLICATED, mesh.ROWS))
    out = (shardings, replicated, rows) if options.log_prob else (shardings, replicated)
    return jax.jit(step, donate_argnums=0, out_shardings=out)


def _flags(options: StepOptions, metrics: Metrics) -> dict[str, jax.Array]:
    """Whether each term that decides about an update is finite; bool[] by term, of all devices."""
    losses = [metrics[name].value for name in _LOSSES if name in metrics]
    if options.entropy_bonus:
        losses.append(metrics["actor/entropy"].value)
    if options.step_share is not None:
        losses.append(metrics["actor/open_share"].value)
    return {
        "log_ratio": metrics["gate/log_ratio_non_finite"].value == 0,
        "loss": finite(losses),
        "gradient": finite(metrics["actor/grad_norm"].value),
    }


def objective_gradient(
    device_mesh: Mesh,
    gate: Gate,
    options: StepOptions,
    outputs: TokenOutputs,
    batch: Batch,
    knobs: Knobs,
) -> tuple[Metrics, TokenOutputs]:
    """Metrics, and the gradient of J with respect to every log-probability and entropy.

    Runs under `shard_map` over the rows: gates sum locally, and only tables of the levels that span
    devices, and the scalars, are added over them.
    """

    def local(outputs: TokenOutputs, batch: Batch, knobs: Knobs) -> tuple[Metrics, TokenOutputs]:
        def value(outputs: TokenOutputs) -> tuple[jax.Array, Metrics]:
            return local_objective(gate, options, outputs, batch, knobs, mesh.ROW_AXES)

        (_, metrics), cotangents = jax.value_and_grad(value, has_aux=True)(outputs)
        return metrics, cotangents

    batch = batch.without_rows()
    return jax.shard_map(
        local,
        mesh=device_mesh,
        in_specs=(mesh.ROWS, batch_specs(batch), mesh.REPLICATED),
        out_specs=(mesh.REPLICATED, mesh.ROWS),
    )(outputs, batch, knobs)


def local_objective(
    gate: Gate,
    options: StepOptions,
    outputs: TokenOutputs,
    batch: Batch,
    knobs: Knobs,
    axis_name: tuple[str, ...],
) -> tuple[jax.Array, Metrics]:
    """The objective J to maximise, float32[], and the metrics.

        J = Σᵢ μᵢ wᵢ G(r)ᵢ Âᵢ + c_H · mean entropy − c_KL · mean KL(π_θ ‖ π_ref)

    All means have the objective's own weights. Totals and counts are added over `axis_name` before
    they are divided; metrics keep both.

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

    def value(reduction: Reduction) -> jax.Array:
        return objective.add_over(reduction, axis_name).value

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
    surrogate = objective.surrogate(gated, credit, layout, **weighting)
    total = value(surrogate)
    metrics: Metrics = {"actor/pg_loss": Mean(-surrogate.total, surrogate.count)}
    if options.entropy_bonus:
        bonus = objective.mean(outputs.entropy, layout, **weighting)
        total += knobs.entropy_coefficient * value(bonus)
    if options.kl_estimator is not None:
        drift = log_ratio if options.kl_ratio_weight else None
        estimate = kl.LOSSES[options.kl_estimator](log_prob, reference_log_prob, drift)
        penalty = objective.mean(estimate, layout, **weighting)
        total -= knobs.kl_coefficient * value(penalty)
        metrics["actor/kl_reference"] = penalty
    entropy = jax.lax.stop_gradient(outputs.entropy)
    metrics["actor/entropy"] = objective.mean(entropy, layout, weighting="token")
    frozen = jax.lax.stop_gradient(log_ratio)
    metrics |= diagnostics.ratio_metrics(frozen, layout)
    metrics = {name: objective.add_over(of, axis_name) for name, of in metrics.items()}
    if options.step_share is not None:
        share = step_share.open_share(
            gate,
            frozen,
            advantage,
            credit,
            layout,
            knobs.budgets,
            form=options.step_share,
            **weighting,
            old_log_prob=old_log_prob,
            axis_name=axis_name,
        )
        metrics["actor/open_share"] = Mean(share, jnp.ones(()))
    return total, metrics
