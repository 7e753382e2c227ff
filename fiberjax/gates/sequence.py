"""Gates on a whole trajectory's ratio, its geometric mean (GSPO, GMPO) or product (VESPO, TOPR)."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from fiberjax.gates import tokenwise
from fiberjax.gates.channels import prepare
from fiberjax.gates.score import unit_score
from fiberjax.layout import Layout
from fiberjax.segments import safe_divide, safe_exp

FORMS = ("product", "mean")
"""What stands for a trajectory's ratio: the product of its tokens' ratios, or their mean."""


def trajectory_mean(values: jax.Array, layout: Layout, level: str) -> jax.Array:
    """The mean over each token's cell; broadcasts against the values.

    Args:
      values: float[...], exactly 0 at padding.
      layout: where the tokens stand.
      level: static, the level whose cells are averaged over.
    """
    layout = layout.select((level,))
    total = layout.pushforward_tokens(values)
    return layout.lift_tokens(safe_divide(total, layout.sizes[0].astype(values.dtype)))


def trajectory_sum(values: jax.Array, layout: Layout, level: str) -> jax.Array:
    """The sum over each token's cell; arguments and shape as `trajectory_mean`."""
    layout = layout.select((level,))
    return layout.lift_tokens(layout.pushforward_tokens(values))


def sequence_ratio(
    log_ratio: jax.Array, advantage: jax.Array, layout: Layout, *, level: str = "trajectory"
) -> jax.Array:
    """The ratio of a trajectory, `s_τ = exp(mean_τ ℓ)`, at each token; the limit of GSPO.

    Args:
      log_ratio: float[B, T] or [N], nats.
      advantage: not read.
      layout: where the tokens stand.
      level: static, the level whose cells share a ratio.

    Returns:
      The shape of the log ratios, 1 at padding; gradient `s_τ/T_τ` between tokens of a trajectory.
    """
    log_ratio, _ = prepare(log_ratio, advantage, layout.mask)
    return jnp.where(layout.mask, safe_exp(trajectory_mean(log_ratio, layout, level)), 1)


def gspo(
    log_ratio: jax.Array,
    advantage: jax.Array,
    layout: Layout,
    *,
    clip_low: ArrayLike,
    clip_high: ArrayLike,
    level: str = "trajectory",
) -> jax.Array:
    """GSPO: PPO's rule on the ratio of a trajectory; the shape of the log ratios.

        Gᵢ = min(s_τ, 1 + ε_hi) if Âᵢ ≥ 0, else max(s_τ, 1 − ε_lo),   s_τ = exp(mean_τ ℓ)

    Args:
      log_ratio: float[B, T] or [N], nats.
      advantage: float of the same shape; read for its sign.
      layout: where the tokens stand.
      clip_low: how far below 1 the ratio may fall; traced. Far smaller than PPO's: a mean of many
        log ratios hardly moves.
      clip_high: how far above 1 the ratio may rise; traced.
      level: static, the level whose cells share a ratio.

    Returns:
      The gated ratio, 1 at padding; gradient `s_τ/T_τ` between any two tokens of a trajectory
      within the bounds, 0 beyond.

    References:
      GSPO, arXiv 2507.18071, eqs. 5 to 7.

    >>> import numpy as np
    >>> from fiberjax.layout import make_layout
    >>> layout = make_layout(np.ones((1, 2), bool))
    >>> drift = jnp.array([[0.2, 0.0]])
    >>> gated = gspo(drift, drift, layout, clip_low=0.05, clip_high=0.05)
    >>> [round(g, 3) for g in gated[0].tolist()]
    [1.05, 1.05]
    """
    ratio = sequence_ratio(log_ratio, advantage, layout, level=level)
    _, advantage = prepare(log_ratio, advantage, layout.mask)
    return tokenwise.one_sided(ratio, advantage, 1 - clip_low, 1 + clip_high)


def gspo_clipped(
    log_ratio: jax.Array,
    advantage: jax.Array,
    layout: Layout,
    *,
    clip_low: ArrayLike,
    clip_high: ArrayLike,
    level: str = "trajectory",
) -> dict[str, jax.Array]:
    """The tokens whose trajectory's ratio is beyond the bound; bool[...] under the level's name."""
    ratio = sequence_ratio(log_ratio, advantage, layout, level=level)
    _, advantage = prepare(log_ratio, advantage, layout.mask)
    return {level: tokenwise.beyond(ratio, advantage, 1 - clip_low, 1 + clip_high) & layout.mask}


def sequence_ratio_token(
    log_ratio: jax.Array, advantage: jax.Array, layout: Layout, *, level: str = "trajectory"
) -> jax.Array:
    """The value of `sequence_ratio` with the gradient of a token; the limit of GSPO's token form.

        Gᵢ = sg(s_τ) · exp(ℓᵢ − sg(ℓᵢ)),   sg = stop_gradient

    Arguments as `sequence_ratio`; gradient `s_τ δᵢⱼ`.
    """
    masked, _ = prepare(log_ratio, advantage, layout.mask)
    ratio = jax.lax.stop_gradient(sequence_ratio(log_ratio, advantage, layout, level=level))
    return ratio * unit_score(masked)


def gspo_token(
    log_ratio: jax.Array,
    advantage: jax.Array,
    layout: Layout,
    *,
    clip_low: ArrayLike,
    clip_high: ArrayLike,
    level: str = "trajectory",
) -> jax.Array:
    """GSPO's token form: its value, each token moved by its own gradient; shape of the log ratios.

    Arguments as `gspo`. The gradient is `s_τ δᵢⱼ` within the bounds and 0 beyond, so that tokens
    with advantages of their own are not averaged.

    References:
      GSPO, arXiv 2507.18071, section 4.3.
    """
    ratio = sequence_ratio_token(log_ratio, advantage, layout, level=level)
    _, advantage = prepare(log_ratio, advantage, layout.mask)
    return tokenwise.one_sided(ratio, advantage, 1 - clip_low, 1 + clip_high)


def gmpo(
    log_ratio: jax.Array,
    advantage: jax.Array,
    layout: Layout,
    *,
    clip_low: ArrayLike,
    clip_high: ArrayLike,
    level: str = "trajectory",
) -> jax.Array:
    """GMPO: the geometric mean of clipped ratios; the shape of the log ratios.

        Gᵢ = exp(mean_τ c),   cⱼ = min(ℓⱼ, ε_hi) if Âⱼ > 0, max(ℓⱼ, −ε_lo) if Âⱼ < 0, else ℓⱼ

    Args:
      log_ratio: float[B, T] or [N], nats.
      advantage: float of the same shape; read for its sign.
      layout: where the tokens stand.
      clip_low: how far a log ratio may fall, nats; traced.
      clip_high: how far a log ratio may rise, nats; traced.
      level: static, the level whose cells share a ratio.

    Returns:
      The gated ratio, 1 at padding; gradient `G/T_τ` towards every unclipped token of the
      trajectory, 0 towards the clipped ones.

    References:
      GMPO, arXiv 2507.20673, eq. 4.
    """
    bounded, _ = _bounded(log_ratio, advantage, layout, clip_low, clip_high)
    return jnp.where(layout.mask, safe_exp(trajectory_mean(bounded, layout, level)), 1)


def gmpo_clipped(
    log_ratio: jax.Array,
    advantage: jax.Array,
    layout: Layout,
    *,
    clip_low: ArrayLike,
    clip_high: ArrayLike,
    level: str = "trajectory",
) -> dict[str, jax.Array]:
    """The tokens of trajectories with a clipped token; bool[...] under the level's name.

    The tokens of a trajectory share one row of the Jacobian, which any clipped token changes.
    """
    _, clipped = _bounded(log_ratio, advantage, layout, clip_low, clip_high)
    share = trajectory_mean(clipped.astype(jnp.float32), layout, level)
    return {level: (share > 0) & layout.mask}


def vespo(
    log_ratio: jax.Array,
    advantage: jax.Array,
    layout: Layout,
    *,
    k_positive: ArrayLike,
    lambda_positive: ArrayLike,
    k_negative: ArrayLike,
    lambda_negative: ArrayLike,
    level: str = "trajectory",
) -> jax.Array:
    """VESPO: a kernel of the trajectory's whole ratio, on the score; the shape of the log ratios.

        Gᵢ = sg(W^k e^{λ(1 − W)}) · exp(ℓᵢ − sg(ℓᵢ)),   W = exp Σ_τ ℓ

    The kernel is 1 on-policy, largest at `W = k/λ`, and fades on both sides. `W` is not normalised
    by length: long trajectories leave the kernel sooner.

    Args:
      log_ratio: float[B, T] or [N], nats; of the current policy over the one that sampled.
      advantage: float of the same shape; read for its sign.
      layout: where the tokens stand.
      k_positive: `k` where `Â ≥ 0`; traced.
      lambda_positive: `λ` where `Â ≥ 0`; traced.
      k_negative: `k` where `Â < 0`; traced.
      lambda_negative: `λ` where `Â < 0`; traced.
      level: static, the level whose cells share a ratio.

    Returns:
      The gated ratio, 1 at padding; `∂G/∂ℓ = G`.

    References:
      VESPO, arXiv 2602.10693, Algorithm 1.

    >>> import numpy as np
    >>> from fiberjax.layout import make_layout
    >>> layout = make_layout(np.ones((1, 2), bool))
    >>> drift = jnp.log(jnp.array([[2.0, 1.0]]))
    >>> kernel = {"k_positive": 2.0, "lambda_positive": 3.0}
    >>> kernel |= {"k_negative": 3.0, "lambda_negative": 2.0}
    >>> [round(g, 4) for g in vespo(drift, drift, layout, **kernel)[0].tolist()]
    [0.1991, 0.1991]
    """
    log_ratio, advantage = prepare(log_ratio, advantage, layout.mask)
    drift = trajectory_sum(jax.lax.stop_gradient(log_ratio), layout, level)
    k = jnp.where(advantage >= 0, k_positive, k_negative).astype(log_ratio.dtype)
    decay = jnp.where(advantage >= 0, lambda_positive, lambda_negative).astype(log_ratio.dtype)
    kernel = jnp.exp(decay + k * drift - decay * safe_exp(drift))
    return jnp.where(layout.mask, kernel * unit_score(log_ratio), 1)


def vespo_clipped(
    log_ratio: jax.Array,
    advantage: jax.Array,
    layout: Layout,
    *,
    k_positive: ArrayLike,
    lambda_positive: ArrayLike,
    k_negative: ArrayLike,
    lambda_negative: ArrayLike,
    level: str = "trajectory",
) -> dict[str, jax.Array]:
    """The tokens that `vespo` weighs otherwise than by their ratio; bool[...] by level's name."""
    gated = vespo(
        log_ratio,
        advantage,
        layout,
        k_positive=k_positive,
        lambda_positive=lambda_positive,
        k_negative=k_negative,
        lambda_negative=lambda_negative,
        level=level,
    )
    return {level: gated != tokenwise.importance(log_ratio, advantage, layout)}


def topr(
    log_ratio: jax.Array,
    advantage: jax.Array,
    layout: Layout,
    *,
    weight_cap: ArrayLike,
    form: str = "product",
    level: str = "trajectory",
) -> jax.Array:
    """TOPR: good trajectories weigh 1, bad ones their tapered ratio; the shape of the log ratios.

        Gᵢ = sg(wᵢ) · exp(ℓᵢ − sg(ℓᵢ)),   wᵢ = 1 if Âᵢ ≥ 0, else min(s_τ, c)

    Args:
      log_ratio: float[B, T] or [N], nats.
      advantage: float of the same shape; read for its sign.
      layout: where the tokens stand.
      weight_cap: `c`, the largest weight of a bad trajectory; traced.
      form: static, one of `FORMS`: `s_τ` is the product of the ratios, or their geometric mean.
      level: static, the level whose cells share a ratio.

    Returns:
      The gated ratio, 1 at padding; `∂G/∂ℓ = G`.

    References:
      TOPR, arXiv 2503.14286; verl takes the mean.
    """
    masked, signs = prepare(log_ratio, advantage, layout.mask)
    joined = {"product": trajectory_sum, "mean": trajectory_mean}[form]
    ratio = safe_exp(joined(jax.lax.stop_gradient(masked), layout, level))
    weight = jnp.where(signs >= 0, 1, jnp.minimum(ratio, weight_cap)).astype(masked.dtype)
    return jnp.where(layout.mask, weight * unit_score(masked), 1)


def topr_clipped(
    log_ratio: jax.Array,
    advantage: jax.Array,
    layout: Layout,
    *,
    weight_cap: ArrayLike,
    form: str = "product",
    level: str = "trajectory",
) -> dict[str, jax.Array]:
    """The tokens that `topr` weighs otherwise than by their ratio; bool[...] by level's name."""
    gated = topr(log_ratio, advantage, layout, weight_cap=weight_cap, form=form, level=level)
    return {level: gated != tokenwise.importance(log_ratio, advantage, layout)}


def _bounded(
    log_ratio: jax.Array,
    advantage: jax.Array,
    layout: Layout,
    clip_low: ArrayLike,
    clip_high: ArrayLike,
) -> tuple[jax.Array, jax.Array]:
    """Log ratios bounded on the side their advantage rewards, and where the bound binds."""
    log_ratio, advantage = prepare(log_ratio, advantage, layout.mask)
    high = (advantage > 0) & (log_ratio > clip_high)
    low = (advantage < 0) & (log_ratio < -jnp.asarray(clip_low))
    bound = jnp.where(high, clip_high, -jnp.asarray(clip_low)).astype(log_ratio.dtype)
    return jnp.where(high | low, bound, log_ratio), high | low
