"""The step share: an optimizer that normalises takes a step as long as the gate leaves open.

Adam and Muon rescale whatever gradient they are given to a full step. A gate that closes nearly
every token leaves a small gradient, mostly noise, and the optimizer undoes the gate: it goes a full
step along that noise. So the update is multiplied by the share of the coefficients that is open,

    share = min(‖c‖ / ‖c°‖, 1),    cᵢ = ∂J/∂ log π_θ(i) of the surrogate,    c° without the gate

over all tokens of an optimizer batch. On-policy it is 1, for every gate; where everything is closed
it is 0 and the parameters stay as they are. The moments of the optimizer see the gradient as it is.

Level by level, with `c°` of plain importance ratios and the tokens that a level does not change,

    share = Πₖ ‖c° on the tokens that level k leaves as they are‖ / ‖c°‖

Levels that close the same tokens then shorten the step once each, and whatever a closed token still
pushes is not counted. Ours; no paper describes either.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.typing import ArrayLike

from fiberjax import objective, segments
from fiberjax.gates import Gate, tokenwise
from fiberjax.gates.config import Budgets
from fiberjax.gates.score import unit_score
from fiberjax.layout import Layout

REFERENCES = ("importance", "limit", "on_policy")
"""What `c°` is made of: plain importance ratios, so that `c°ᵢ = μᵢ rᵢ Âᵢ`; the gate with infinite
budgets; or the policy that sampled, with `c°ᵢ = μᵢ Âᵢ`, which no drifted token inflates."""

FORMS = (*REFERENCES, "levels")
"""What the share is made of: `c` and one of `REFERENCES`, or the product of what every level leaves
open by itself, of plain importance ratios."""


def open_share(
    gate: Gate,
    log_ratio: jax.Array,
    advantage: jax.Array,
    credit: jax.Array,
    layout: Layout,
    budgets: Budgets,
    *,
    form: str,
    weighting: str = "trajectory",
    constant_length: int | None = None,
    old_log_prob: jax.Array | None = None,
    axis_name: segments.AxisName = (),
) -> jax.Array:
    """The share of the coefficients that a gate leaves open, in [0, 1]; float[].

        min(‖c‖ / ‖c°‖, 1),   and 0 where no coefficient differs from 0

    Args:
      gate: of `gates.from_config`.
      log_ratio: float[B, T] or [N], nats, of the optimizer batch; on one shard of its rows.
      advantage: float of the same shape, what the gate sees.
      credit: float of the same shape, what the gated ratios are multiplied by: the advantages, with
        any weights of the samples.
      layout: where the tokens stand.
      budgets: the gate's.
      form: static, one of `FORMS`.
      weighting: static, one of `objective.WEIGHTINGS`.
      constant_length: static, tokens; read by "constant" only.
      old_log_prob: float of the same shape, nats, for gates that need it.
      axis_name: mesh axes that the rows are split over, in `shard_map`; the norms are added over
        them, and the share is equal on all devices.

    Returns:
      The share, a constant in the gradient. It is NaN where a coefficient is.

    Raises:
      ValueError: the form does not exist.

    References:
      Ours.
    """
    if form not in FORMS:
        raise ValueError(f"step share {form!r} does not exist; choose from {FORMS}")

    def gated(log_ratio: jax.Array) -> jax.Array:
        return gate(log_ratio, advantage, layout, budgets, old_log_prob=old_log_prob)

    def ungated(log_ratio: jax.Array) -> jax.Array:
        if form == "on_policy":
            return unit_score(log_ratio)
        if form == "limit":
            return gate.limit(log_ratio, layout)
        return tokenwise.importance(log_ratio, advantage, layout)

    def coefficients(ratio: Any) -> jax.Array:
        def total(log_ratio: jax.Array) -> jax.Array:
            surrogate = objective.surrogate(
                ratio(log_ratio),
                credit,
                layout,
                weighting=weighting,
                constant_length=constant_length,
            )
            return lax.psum(surrogate.total, axis_name) if axis_name else surrogate.total

        return jax.grad(total)(lax.stop_gradient(log_ratio))

    def norm(coefficients: jax.Array) -> jax.Array:
        # Relative to the largest, so that squares neither overflow nor vanish.
        largest = jnp.max(jnp.abs(coefficients))
        largest = lax.pmax(largest, axis_name) if axis_name else largest
        squares = jnp.sum(segments.safe_divide(coefficients, largest) ** 2)
        return largest * jnp.sqrt(lax.psum(squares, axis_name) if axis_name else squares)

    whole = coefficients(ungated)
    unit = norm(whole)
    if form != "levels":
        return jnp.minimum(segments.safe_divide(norm(coefficients(gated)), unit), 1.0)
    closed = gate.clipped(log_ratio, advantage, layout, budgets, old_log_prob=old_log_prob)
    share = segments.safe_divide(unit, unit)
    for mask in closed.values():
        share *= segments.safe_divide(norm(jnp.where(mask, 0, whole)), unit)
    return share


def scale_by_share(
    optimizer: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Multiplies an optimizer's update by `share`, given as an extra argument; an Optax optimizer.

        θ ← θ − share · η (direction + λ θ)

    The decay of the weights shrinks with it: a closed gate leaves the parameters as they are. The
    state is the optimizer's own, moments and step count included, and goes on as if the step had
    been whole.

    Args:
      optimizer: one that normalises. Plain gradient descent takes a short step from a small
        gradient already, and would be shortened twice.

    >>> optimizer = scale_by_share(optax.sgd(1.0))
    >>> gradient = jnp.array([2.0])
    >>> updates, _ = optimizer.update(gradient, optimizer.init(gradient), share=0.25)
    >>> updates.tolist()
    [-0.5]
    """
    inner = optax.with_extra_args_support(optimizer)

    def update(
        updates: Any, state: Any, params: Any = None, *, share: ArrayLike, **extra: Any
    ) -> tuple[Any, Any]:
        updates, state = inner.update(updates, state, params, **extra)
        return jax.tree.map(lambda u: u * jnp.asarray(share, u.dtype), updates), state

    return optax.GradientTransformationExtraArgs(inner.init, update)
