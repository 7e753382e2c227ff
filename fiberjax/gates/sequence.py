"""Gates on the geometric mean of a whole trajectory's ratios: GSPO, its token form, and GMPO."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from fiberjax.gates import tokenwise
from fiberjax.gates.channels import prepare
from fiberjax.gates.score import unit_score
from fiberjax.layout import Layout
from fiberjax.segments import safe_divide, safe_exp


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
