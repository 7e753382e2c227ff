"""The objective of the Ratio Gating Formalism: one sum over tokens, whatever the gate.

    J = Σᵢ μᵢ · G(r)ᵢ · Âᵢ                                                  (maximised)

A gate makes `Gᵢ` of the importance ratios; the weighting `μ` is a separate choice. Everything here
is a pair (total, count): totals over micro-batches and devices are added first and divided last, so
that no split of a batch changes its gradient.

Totals and counts alike are sums over the tokens at hand. Inside `shard_map` those are the tokens of
one shard: the training step, and nobody before it, adds both over the mesh axes that the tokens are
spread over (`add_over`), and over micro-batches (`add`).
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fiberjax import segments
from fiberjax.layout import TRAJECTORY, Layout, assert_tokens

WEIGHTINGS = ("trajectory", "token", "constant")
"""How tokens weigh: trajectories equally, tokens equally, or a sum over a constant length."""


class Mean(NamedTuple):
    """A mean kept as its two parts, `total / count`, both float32[]."""

    total: jax.Array
    count: jax.Array  # type: ignore[assignment]  # tuple.count has no use here

    @property
    def value(self) -> jax.Array:
        """The mean, float32[]; 0 where nothing was counted."""
        return segments.safe_divide(self.total, self.count)


class Sum(NamedTuple):
    """A count or total over all tokens; float32[]."""

    value: jax.Array


class Max(NamedTuple):
    """A largest value over all tokens; float32[]."""

    value: jax.Array


class Min(NamedTuple):
    """A smallest value over all tokens; float32[]."""

    value: jax.Array


class Effective(NamedTuple):
    """An effective sample size, kept as the sums of weights and of their squares; float32[] each.

    References:
      Kish, Survey Sampling, Wiley, 1965.

    >>> weight = jnp.array([1.0, 1.0, 0.0, 0.0])
    >>> float(Effective(jnp.sum(weight), jnp.sum(weight**2), jnp.float32(4)).value)
    0.5
    """

    total: jax.Array
    squares: jax.Array
    count: jax.Array  # type: ignore[assignment]

    @property
    def value(self) -> jax.Array:
        """`(Σw)² / (N Σw²)`, float32[] in (0, 1], 1 where all weigh alike; 0 of nothing."""
        share = segments.safe_divide(self.total, self.squares)
        return share * segments.safe_divide(self.total, self.count)


EDGES = np.exp2(np.arange(-72, 25) / 4).astype(np.float32)
"""Nats. Where quantiles tell two sizes apart: four steps an octave, from 2⁻¹⁸ to 2⁶."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quantile:
    """A quantile of sizes, kept as how many reach each of `EDGES`; exact but for the steps.

    Attributes:
      reaching: float32[97], the number of sizes at or above each edge.
      count: float32[], the number of all.
      share: the quantile, in (0, 1). Static.

    >>> float(quantile(jnp.array([0.01, 0.02, 0.4]), jnp.ones(3), 0.5).value).__round__(3)
    0.02
    """

    reaching: jax.Array
    count: jax.Array
    share: float = dataclasses.field(metadata={"static": True})

    @property
    def value(self) -> jax.Array:
        """The smallest size that a share of all do not exceed, float32[], within 10 %.

        Sizes below the first edge are 0, those of the last edge and beyond are the last; NaN is the
        largest. 0 where nothing was counted.
        """
        below = self.count - self.reaching
        # Counts are sums of fractions: of cells that lie on several devices each adds its part.
        step = jnp.sum(below < self.share * self.count * (1 - 1e-5))
        centres = np.concatenate([[0.0], np.sqrt(EDGES[:-1] * EDGES[1:]), EDGES[-1:]])
        return jnp.asarray(centres, jnp.float32)[step]


def quantile(sizes: jax.Array, weight: jax.Array, share: float) -> Quantile:
    """The quantile of sizes at hand, each counted as often as it weighs; a `Quantile`.

    Args:
      sizes: float[S], at least 0.
      weight: float32[S], 0 for what does not count.
      share: static, in (0, 1); 0.5 is the median.
    """
    # Of a NaN no comparison holds: it reaches every edge.
    reached = ~(sizes[:, None] < EDGES)
    return Quantile(
        reaching=jnp.sum(jnp.where(reached, weight[:, None], 0), axis=0),
        count=jnp.sum(weight),
        share=share,
    )


Reduction = Mean | Sum | Max | Min | Effective | Quantile
"""How a quantity of tokens is joined over micro-batches and devices."""


def token_weight(
    layout: Layout,
    weighting: str,
    *,
    constant_length: int | None = None,
    dtype: jnp.dtype = jnp.float32,
) -> tuple[jax.Array, jax.Array]:
    """What each token adds to a mean's total and to its count; two float[...] of tokens.

        trajectory   μᵢ = 1/T_τ   counting 1/T_τ   the mean over trajectories of their token means
        token        μᵢ = 1       counting 1       the mean over tokens
        constant     μᵢ = 1/L     counting 1/T_τ   token sums over a constant, per trajectory

    Args:
      layout: where the tokens stand; one of its levels is "trajectory".
      weighting: static, one of `WEIGHTINGS`.
      constant_length: static, `L` in tokens; read by "constant" only.
      dtype: static, of the weights.

    Returns:
      The two weights, exactly 0 at padding. Counting `1/T_τ` a token adds up to the number of
      trajectories, also where the tokens of one are spread over devices.

    Raises:
      ValueError: an unknown weighting, or "constant" without a positive length.

    References:
      FPO, arXiv 2603.08239, section 3.1; DAPO, arXiv 2503.14476, eq. 8 (token); Dr. GRPO,
      arXiv 2503.20783, section 3.1 (constant).
    """
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting {weighting!r} does not exist; choose from {WEIGHTINGS}")
    if weighting == "constant" and (constant_length is None or constant_length <= 0):
        raise ValueError(
            f"weighting 'constant' needs constant_length, a number of tokens above 0; "
            f"got {constant_length!r}"
        )
    mask = jnp.asarray(layout.mask, dtype)
    if weighting == "token":
        return mask, mask
    share = 1 / jnp.maximum(layout.tokens_of(TRAJECTORY), 1).astype(dtype)
    per_trajectory = jnp.where(layout.mask, layout.lift_from(share, TRAJECTORY), 0)
    if constant_length is None or weighting != "constant":
        return per_trajectory, per_trajectory
    return mask / constant_length, per_trajectory


def mean(
    values: jax.Array, layout: Layout, *, weighting: str, constant_length: int | None = None
) -> Mean:
    """The weighted mean of any per-token term, such as an entropy or a KL estimate; a `Mean`.

    Args:
      values: float[B, T] or [N], anything at padding.
      layout: where the tokens stand.
      weighting: static, one of `WEIGHTINGS`.
      constant_length: static, tokens; read by "constant" only.

    Returns:
      Total and count over the tokens at hand, float32 or wider; the gradient of the total at a
      token is its weight, exactly 0 at padding.
    """
    assert_tokens({"values": values}, layout.mask)
    dtype = jnp.promote_types(values.dtype, jnp.float32)
    weight, _ = token_weight(layout, weighting, constant_length=constant_length, dtype=dtype)
    values = jnp.where(layout.mask, values.astype(dtype), 0)
    # Tokens or trajectories are counted by cells, which are fewer than the tokens that count.
    counted = layout.tokens_at_hand() if weighting == "token" else layout.shares(TRAJECTORY)
    return Mean(jnp.sum(weight * values), jnp.sum(counted.astype(dtype)))


def surrogate(
    gated_ratio: jax.Array,
    advantage: jax.Array,
    layout: Layout,
    *,
    weighting: str = "trajectory",
    constant_length: int | None = None,
) -> Mean:
    """The objective to maximise, `Σᵢ μᵢ Gᵢ Âᵢ` over its count; a `Mean`.

    Args:
      gated_ratio: float[B, T] or [N], of any gate.
      advantage: float of the same shape, a constant in the gradient.
      layout: where the tokens stand.
      weighting: static, one of `WEIGHTINGS`; "trajectory" is the published one.
      constant_length: static, tokens; read by "constant" only.

    Returns:
      Total and count over the tokens at hand; see `mean`.

    Raises:
      AssertionError: while tracing, shapes differ from that of the layout's mask.

    References:
      FPO, arXiv 2603.08239, section 3.1, the Ratio Gating Formalism.
    """
    assert_tokens({"gated_ratio": gated_ratio, "advantage": advantage}, layout.mask)
    # Both are masked before they meet: padding may hold infinities, and `inf · 0` is NaN.
    gated_ratio = jnp.where(layout.mask, gated_ratio, 0)
    advantage = jnp.where(layout.mask, lax.stop_gradient(advantage), 0)
    contribution = gated_ratio * advantage
    return mean(contribution, layout, weighting=weighting, constant_length=constant_length)


def coefficients(
    gate: Callable[..., jax.Array],
    log_ratio: jax.Array,
    advantage: jax.Array,
    layout: Layout,
    *,
    weighting: str = "trajectory",
    constant_length: int | None = None,
    old_log_prob: jax.Array | None = None,
) -> jax.Array:
    """The objective's gradient in every token's log-probability; the shape of the log ratios.

        cᵢ = ∂J/∂ log π_θ(i),   ∇J = Σᵢ cᵢ ∇ log π_θ(i)

    This is all that another trainer needs of a gate: with the coefficients as constants,
    `(coefficients * log_prob).sum()` has exactly the gradient of J, whatever computes the
    log-probabilities. Made of a whole batch, they may be cut into micro-batches of any kind, whose
    gradients are added and not averaged.

    Args:
      gate: `(log_ratio, advantage, layout) -> gated_ratio`, such as `fiberjax.gate` gives.
      log_ratio: float[B, T] or [N], nats, `log π_θ − log π_old` of the whole batch.
      advantage: float of the same shape.
      layout: where the tokens stand.
      weighting: static, one of `WEIGHTINGS`.
      constant_length: static, tokens; read by "constant" only.
      old_log_prob: float of the same shape, nats; given to gates that need it.

    Returns:
      float32 or wider, of the sign that is maximised, exactly 0 at padding.

    References:
      FPO, arXiv 2603.08239, section 3.1, the Ratio Gating Formalism.

    >>> import numpy as np
    >>> from fiberjax.layout import make_layout
    >>> layout = make_layout(np.array([[True, True], [True, False]]))
    >>> advantage = np.array([[1.0, 1.0], [-1.0, -1.0]])
    >>> coefficients(lambda l, a, layout: jnp.exp(l), np.zeros((2, 2)), advantage, layout).tolist()
    [[0.25, 0.25], [-0.5, 0.0]]
    """
    given = {} if old_log_prob is None else {"old_log_prob": old_log_prob}

    def value(log_ratio: jax.Array) -> jax.Array:
        gated_ratio = gate(log_ratio, advantage, layout, **given)
        return surrogate(
            gated_ratio, advantage, layout, weighting=weighting, constant_length=constant_length
        ).value

    log_ratio = jnp.asarray(log_ratio)
    return jax.grad(value)(log_ratio.astype(jnp.promote_types(log_ratio.dtype, jnp.float32)))


def add(first: Reduction, second: Reduction) -> Reduction:
    """Joins a reduction of two disjoint sets of tokens, such as micro-batches; of the same kind."""
    match first, second:
        case Mean(), Mean():
            return Mean(first.total + second.total, first.count + second.count)
        case Sum(), Sum():
            return Sum(first.value + second.value)
        case Max(), Max():
            return Max(jnp.maximum(first.value, second.value))
        case Min(), Min():
            return Min(jnp.minimum(first.value, second.value))
        case Effective(), Effective():
            return Effective(*(a + b for a, b in zip(first, second, strict=True)))
        case Quantile(), Quantile() if first.share == second.share:
            reaching, count = first.reaching + second.reaching, first.count + second.count
            return Quantile(reaching, count, first.share)
    raise ValueError(f"reductions of two kinds cannot be joined: {first!r} and {second!r}")


def add_over(reduction: Reduction, axis_name: segments.AxisName) -> Reduction:
    """Joins a reduction over mesh axes, in `shard_map`; of the same kind, equal on all devices."""
    if not axis_name:
        return reduction
    match reduction:
        case Mean():
            return Mean(lax.psum(reduction.total, axis_name), lax.psum(reduction.count, axis_name))
        case Sum():
            return Sum(lax.psum(reduction.value, axis_name))
        case Max():
            return Max(lax.pmax(reduction.value, axis_name))
        case Min():
            return Min(lax.pmin(reduction.value, axis_name))
        case Effective():
            return Effective(*(lax.psum(part, axis_name) for part in reduction))
        case Quantile():
            reaching, count = lax.psum((reduction.reaching, reduction.count), axis_name)
            return Quantile(reaching, count, reduction.share)
