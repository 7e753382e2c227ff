"""Gates on prefixes: a token is gated by what its trajectory did before it, or does after it.

A cell of a partition holds a token or does not; the prefixes of a trajectory are nested, and every
token ends one. What a gate needs of them are running sums and minima along the trajectory:

    CPPO     how much of a budget the tokens before have spent
    PNPO     the geometric mean of the ratios so far
    MinPRO   the smallest ratio before
    FIPO     the discounted sum of the log ratios from here on

They are constants in the gradient, so that a token is moved by its own score alone. A trajectory
must lie whole on one device; its tokens may stand anywhere in the array, in their order.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from fiberjax import segments
from fiberjax.gates import tokenwise
from fiberjax.gates.channels import prepare
from fiberjax.gates.masks import kept_ratio
from fiberjax.gates.score import moved_probability, unit_score
from fiberjax.layout import TRAJECTORY, Layout, assert_tokens
from fiberjax.segments import Elements, safe_divide, safe_exp


def running_sum(
    values: jax.Array,
    layout: Layout,
    *,
    decay: ArrayLike = 1.0,
    before: bool = False,
    reverse: bool = False,
) -> jax.Array:
    """Sums the values along each trajectory, up to each token; the shape of the values.

        yᵢ = xᵢ + γ yᵢ₋₁        (i − 1, or i + 1 in reverse: the trajectory's own tokens)

    Args:
      values: float of the mask's shape, exactly 0 at padding.
      layout: where the tokens stand.
      decay: `γ`, what a token lets through; traced. Padding lets everything through.
      before: static, leaves the token itself out.
      reverse: static, sums from each token to the end.

    Returns:
      The running sums; at padding, nothing to be read.

    Raises:
      ValueError: trajectories are spread over devices.

    >>> import numpy as np
    >>> from fiberjax.layout import make_layout
    >>> layout = make_layout(np.ones(4, bool), cell_id=np.array([0, 0, 1, 1]))
    >>> running_sum(jnp.array([1.0, 2.0, 3.0, 4.0]), layout).tolist()
    [1.0, 3.0, 3.0, 7.0]
    """
    passed = jnp.where(layout.mask, jnp.asarray(decay, values.dtype), 1)
    elements = (passed, values)
    return segments.running(
        _discounted, elements, _cells(layout), (1, 0), before=before, reverse=reverse
    )[1]


def smallest_before(values: jax.Array, layout: Layout) -> jax.Array:
    """The smallest value before each token in its trajectory, +inf at a first token; same shape.

    Args:
      values: float of the mask's shape, +inf at padding.
      layout: where the tokens stand.

    Raises:
      ValueError: trajectories are spread over devices.
    """
    (least,) = segments.running(_smaller, (values,), _cells(layout), (jnp.inf,), before=True)
    return least


def cppo(
    log_ratio: jax.Array,
    advantage: jax.Array,
    layout: Layout,
    *,
    old_log_prob: jax.Array,
    delta: ArrayLike,
    prefix_delta: ArrayLike,
    last_weight: ArrayLike,
) -> jax.Array:
    """CPPO: a budget of divergence along the prefix; the shape of the log ratios.

        keepₜ:  Âₜ (rₜ − 1) ≤ 0,  or  wₜ Dₜ ≤ min(δ, δ + δ_b Wₜ₋₁ − Sₜ₋₁)
        Dₜ = |π_θ − π_old|,  Sₜ = Σ_{k≤t} w_k D_k,  Wₜ = Σ_{k≤t} w_k

    with `Gₜ = rₜ` where kept, else 0. The weights `wₜ` fall from 1 to `w_T` in equal steps: what
    moves early in a trajectory changes all that follows. A prefix that moved less than `δ_b` a
    token on average leaves the token its whole `δ`. Moving back is always allowed.

    Args:
      log_ratio: float[B, T] or [N], nats.
      advantage: float of the same shape; read for its sign.
      layout: where the tokens stand; trajectories whole on a device.
      old_log_prob: float of the same shape, nats: `log π_old` of the sampled tokens.
      delta: `δ`, what one token may move, a probability; traced. .15, of mixtures of experts .2.
      prefix_delta: `δ_b`, what the tokens of a prefix may move on average, a probability; traced.
      last_weight: `w_T`; traced.

    Returns:
      The gated ratio, 1 at padding; gradient `r` where kept, 0 elsewhere.

    References:
      CPPO, arXiv 2606.10968, eqs. 8 to 10. `D` is there the total variation over the twenty
      likeliest tokens, here that of the sampled one. The paper's calibration of `δ_b` by the
      trajectory's own statistics (eq. 22) is left out.
    """
    drop = _over_budget(
        log_ratio, advantage, layout, old_log_prob, delta, prefix_delta, last_weight
    )
    return kept_ratio(log_ratio, drop, layout)


def cppo_clipped(
    log_ratio: jax.Array,
    advantage: jax.Array,
    layout: Layout,
    *,
    old_log_prob: jax.Array,
    delta: ArrayLike,
    prefix_delta: ArrayLike,
    last_weight: ArrayLike,
) -> dict[str, jax.Array]:
    """The tokens that `cppo` drops; {"token": bool[...]}."""
    return {
        "token": _over_budget(
            log_ratio, advantage, layout, old_log_prob, delta, prefix_delta, last_weight
        )
    }


def prefix_ratio(log_ratio: jax.Array, advantage: jax.Array, layout: Layout) -> jax.Array:
    """The geometric mean of the ratios up to each token, on its score; the limit of PNPO.

        Gₜ = sg(exp((1/t) Σ_{k≤t} ℓ_k)) · exp(ℓₜ − sg(ℓₜ)),   sg = stop_gradient

    Args:
      log_ratio: float[B, T] or [N], nats.
      advantage: not read.
      layout: where the tokens stand; trajectories whole on a device.

    Returns:
      The shape of the log ratios, 1 at padding; `∂G/∂ℓ = G`.
    """
    log_ratio, _ = prepare(log_ratio, advantage, layout.mask)
    drift, count = jax.lax.stop_gradient(log_ratio), layout.mask.astype(log_ratio.dtype)
    mean = safe_divide(running_sum(drift, layout), running_sum(count, layout))
    return jnp.where(layout.mask, safe_exp(mean) * unit_score(log_ratio), 1)


def pnpo(
    log_ratio: jax.Array,
    advantage: jax.Array,
    layout: Layout,
    *,
    clip_low: ArrayLike,
    clip_high: ArrayLike,
) -> jax.Array:
    """PNPO: PPO's rule on the geometric mean of the prefix's ratios; the shape of the log ratios.

        Gₜ = min(sₜ, 1 + ε_hi) if Âₜ ≥ 0, else max(sₜ, 1 − ε_lo),   sₜ = exp((1/t) Σ_{k≤t} ℓ_k)

    Args:
      log_ratio: float[B, T] or [N], nats.
      advantage: float of the same shape; read for its sign.
      layout: where the tokens stand; trajectories whole on a device.
      clip_low: how far below 1 the mean may fall; traced.
      clip_high: how far above 1 the mean may rise; traced.

    Returns:
      The gated ratio, 1 at padding; gradient `sₜ` within the bounds, towards the token itself, and
      0 beyond.

    References:
      PNPO, arXiv 2608.01418, as its summaries describe it: the weight is theirs; that it is a
      constant in the gradient, the side of the bounds and their size are as we read them.
    """
    ratio = prefix_ratio(log_ratio, advantage, layout)
    _, advantage = prepare(log_ratio, advantage, layout.mask)
    return tokenwise.one_sided(ratio, advantage, 1 - clip_low, 1 + clip_high)


def pnpo_clipped(
    log_ratio: jax.Array,
    advantage: jax.Array,
    layout: Layout,
    *,
    clip_low: ArrayLike,
    clip_high: ArrayLike,
) -> dict[str, jax.Array]:
    """The tokens whose prefix is beyond the bound; {"token": bool[...]}."""
    ratio = prefix_ratio(log_ratio, advantage, layout)
    _, advantage = prepare(log_ratio, advantage, layout.mask)
    beyond = tokenwise.beyond(ratio, advantage, 1 - clip_low, 1 + clip_high)
    return {"token": beyond & layout.mask}


def minimum_ratio(log_ratio: jax.Array, advantage: jax.Array, layout: Layout) -> jax.Array:
    """The ratio times the smallest one before it, on the token's score; the limit of MinPRO.

    Arguments and result as `prefix_ratio`; `G₁ = r₁` at a trajectory's first token.
    """
    log_ratio, _ = prepare(log_ratio, advantage, layout.mask)
    drift = jax.lax.stop_gradient(log_ratio)
    least = smallest_before(jnp.where(layout.mask, drift, jnp.inf), layout)
    weight = safe_exp(drift + jnp.where(jnp.isposinf(least), 0, least))
    return jnp.where(layout.mask, weight * unit_score(log_ratio), 1)


def minpro(
    log_ratio: jax.Array,
    advantage: jax.Array,
    layout: Layout,
    *,
    weight_cap: ArrayLike,
) -> jax.Array:
    """MinPRO: the smallest ratio before stands for the whole prefix; the shape of the log ratios.

        Gₜ = sg(min(rₜ · min_{k<t} r_k, c)) · exp(ℓₜ − sg(ℓₜ))

    The exact weight of a token is the product of all ratios up to it; the smallest of those before
    bounds it where the policy left the prefix, and its variance does not grow with the length.

    Args:
      log_ratio: float[B, T] or [N], nats.
      advantage: not read.
      layout: where the tokens stand; trajectories whole on a device.
      weight_cap: `c`, the largest weight; traced.

    Returns:
      The gated ratio, 1 at padding; `∂G/∂ℓ = G`.

    References:
      MinPRO, arXiv 2601.22718, as its summaries describe it; a cap on the weight is ours, and its
      default that of CISPO.
    """
    weight = minimum_ratio(log_ratio, advantage, layout)
    log_ratio, _ = prepare(log_ratio, advantage, layout.mask)
    weight = jnp.minimum(jax.lax.stop_gradient(weight), weight_cap)
    return jnp.where(layout.mask, weight * unit_score(log_ratio), 1)


def minpro_clipped(
    log_ratio: jax.Array,
    advantage: jax.Array,
    layout: Layout,
    *,
    weight_cap: ArrayLike,
) -> dict[str, jax.Array]:
    """The tokens whose weight is capped; {"token": bool[...]}."""
    return {"token": (minimum_ratio(log_ratio, advantage, layout) > weight_cap) & layout.mask}


def fipo(
    log_ratio: jax.Array,
    advantage: jax.Array,
    layout: Layout,
    *,
    half_life: ArrayLike,
    influence_low: ArrayLike,
    influence_high: ArrayLike,
    ratio_cap: ArrayLike,
    ratio_safe: ArrayLike,
    clip_low: ArrayLike,
    clip_high: ArrayLike,
) -> jax.Array:
    """FIPO: PPO's clip, weighed by what becomes of the rest; the shape of the log ratios.

        Gₜ = fₜ · PPO(rₜ),   fₜ = sg(clip(exp Fₜ, f_lo, f_hi)),   Fₜ = Σ_{k≥t} γ^{k−t} ℓ_k

    where tokens whose ratio exceeds `ratio_cap` add nothing to `F`, and a bad token whose ratio
    exceeds `ratio_safe` has no `f` above 1.

    Args:
      log_ratio: float[B, T] or [N], nats.
      advantage: float of the same shape; read for its sign.
      layout: where the tokens stand; trajectories whole on a device.
      half_life: tokens after which a log ratio counts half, `γ = 2^(−1/half_life)`; traced.
      influence_low: `f_lo`, a ratio; traced. At 1 no token is weakened.
      influence_high: `f_hi`, a ratio; traced.
      ratio_cap: the largest ratio that counts; traced.
      ratio_safe: the largest ratio of a bad token that may be strengthened; traced.
      clip_low: PPO's; traced.
      clip_high: PPO's; traced.

    Returns:
      The gated ratio, 1 at padding; gradient `f r` within PPO's bound, 0 beyond.

    References:
      FIPO, arXiv 2603.19835, as ms-swift has it.
    """
    influence = _influence(
        log_ratio,
        advantage,
        layout,
        half_life,
        (influence_low, influence_high),
        (ratio_cap, ratio_safe),
    )
    gated = tokenwise.ppo(log_ratio, advantage, layout, clip_low=clip_low, clip_high=clip_high)
    return influence * gated


def fipo_clipped(
    log_ratio: jax.Array,
    advantage: jax.Array,
    layout: Layout,
    *,
    half_life: ArrayLike,
    influence_low: ArrayLike,
    influence_high: ArrayLike,
    ratio_cap: ArrayLike,
    ratio_safe: ArrayLike,
    clip_low: ArrayLike,
    clip_high: ArrayLike,
) -> dict[str, jax.Array]:
    """The tokens that `fipo` stops or weighs; {"token": bool[...]}."""
    influence = _influence(
        log_ratio,
        advantage,
        layout,
        half_life,
        (influence_low, influence_high),
        (ratio_cap, ratio_safe),
    )
    masks = tokenwise.ppo_clipped(
        log_ratio, advantage, layout, clip_low=clip_low, clip_high=clip_high
    )
    return {"token": masks["token"] | (influence != 1)}


def _cells(layout: Layout) -> jax.Array | None:
    """The trajectory of each token, None where it is a row; refuses trajectories over devices."""
    layout = layout.select((TRAJECTORY,))
    if layout.axis_names[0]:
        raise ValueError(
            f"trajectories are spread over the mesh axes {layout.axis_names[0]}; "
            "gates on prefixes need each whole on one device"
        )
    return layout.token_cells()


def _discounted(left: Elements, right: Elements) -> Elements:
    """`(γ, x)` then `(γ', x')` is `(γ γ', γ' x + x')`."""
    return left[0] * right[0], right[0] * left[1] + right[1]


def _smaller(left: Elements, right: Elements) -> Elements:
    """The smaller of both."""
    return (jnp.minimum(left[0], right[0]),)


def _over_budget(
    log_ratio: jax.Array,
    advantage: jax.Array,
    layout: Layout,
    old_log_prob: jax.Array,
    delta: ArrayLike,
    prefix_delta: ArrayLike,
    last_weight: ArrayLike,
) -> jax.Array:
    """Whether CPPO drops each token; bool[...]."""
    assert_tokens({"old_log_prob": old_log_prob}, layout.mask)
    log_ratio, advantage = prepare(log_ratio, advantage, layout.mask)
    old_log_prob, _ = prepare(old_log_prob, advantage, layout.mask)
    log_ratio, mask = jax.lax.stop_gradient(log_ratio), layout.mask
    moved = jnp.minimum(jnp.abs(moved_probability(log_ratio, old_log_prob)), 1)
    earlier = running_sum(mask.astype(moved.dtype), layout, before=True)
    steps = layout.lift_from(layout.tokens_of(TRAJECTORY), TRAJECTORY) - 1
    fall = (1 - jnp.asarray(last_weight, moved.dtype)) / jnp.maximum(steps, 1)
    weight = jnp.where(mask, 1 - fall * earlier, 0)
    spent = jnp.where(mask, weight * moved, 0)
    saved = running_sum(weight * prefix_delta - spent, layout, before=True)
    allowed = delta + jnp.minimum(saved, 0)
    return (advantage * log_ratio > 0) & (spent > allowed) & mask


def _influence(
    log_ratio: jax.Array,
    advantage: jax.Array,
    layout: Layout,
    half_life: ArrayLike,
    bounds: tuple[ArrayLike, ArrayLike],
    ratios: tuple[ArrayLike, ArrayLike],
) -> jax.Array:
    """FIPO's weights, 1 at padding; constants of the shape of the log ratios."""
    log_ratio, advantage = prepare(log_ratio, advantage, layout.mask)
    log_ratio = jax.lax.stop_gradient(log_ratio)
    ratio, (cap, safe) = safe_exp(log_ratio), ratios
    counted = jnp.where(ratio > cap, 0, log_ratio)
    decay = jnp.exp2(-1 / jnp.asarray(half_life, log_ratio.dtype))
    future = running_sum(counted, layout, decay=decay, reverse=True)
    influence = jnp.clip(safe_exp(future), *bounds)
    bad = (advantage < 0) & (ratio > safe)
    influence = jnp.where(bad, jnp.minimum(influence, 1), influence)
    return jnp.where(layout.mask, influence, 1)
