"""APC: a trust region without constraints, where samples share a budget, and where FiberPO starts.

A state (prompt and prefix) with `T_s` samples may move by `Σ |xᵢ| ≤ T_s δ` in all; each sample gets
what the others have left:

    Gᵢ = 1 + clip(xᵢ, ±Bᵢ⁺),   Bᵢ = T_s δ − Σ_{j ≠ i} |xⱼ|,   xᵢ = rᵢ − 1

The derivation of FiberPO goes on from here, each stage a gate of its own:

    (a) `delta` from TRPO's radius at γ (`trust_region.tv_radius`)   level "state", form "ratio"
    (b) γ-relaxation: `delta` is free                                level "state", form "ratio"
    (c) log approximation: `xᵢ = ℓᵢ`, `Gᵢ = exp clip(ℓᵢ, ±Bᵢ⁺)`      level "state", form "log"
    (d) the trajectory couples instead of the state                  level "trajectory"
    (e) the clip falls apart into base and fiber: `hierarchy.fiberpo`

The equivalence with sample-based TV-TRPO (see `trust_region`) holds for (a) and (b).
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from fiberjax import segments
from fiberjax.gates import aggregate
from fiberjax.gates.channels import prepare
from fiberjax.layout import STATE, Layout
from fiberjax.segments import safe_exp

FORMS = ("ratio", "log")


def apc(
    log_ratio: jax.Array,
    advantage: jax.Array,
    layout: Layout,
    *,
    delta: ArrayLike,
    level: str = STATE,
    form: str = "ratio",
) -> jax.Array:
    """The APC gate; the shape of the log ratios.

        Gᵢ = 1 + clip(rᵢ − 1, ±Bᵢ⁺)   or, form "log",   Gᵢ = exp clip(ℓᵢ, ±Bᵢ⁺)

    Args:
      log_ratio: float[B, T] or [N], nats.
      advantage: not read.
      layout: where the tokens stand; with states where they couple.
      delta: `δ`, the mean deviation a state may have, twice a total variation (form "ratio") or
        nats (form "log"); traced.
      level: static, "state" or a level of the layout: whose tokens share a budget.
      form: static, "ratio" or "log".

    Returns:
      The gated ratio, 1 at padding. A closed token's gradient is that of its bound: its siblings'
      drift takes from its budget.

    Raises:
      ValueError: level "state" of a layout without states, or an unknown form.

    References:
      FPO, arXiv 2603.08239, Definition 3.2 and Theorem 3.3.

    >>> import numpy as np
    >>> from fiberjax.layout import make_layout
    >>> layout = make_layout(np.ones((1, 2), bool))
    >>> drift = jnp.array([[0.1, 0.0]])
    >>> gated = apc(drift, drift, layout, delta=0.02, level="trajectory", form="log")
    >>> [round(g, 3) for g in gated[0].tolist()]  # Of a budget of 0.04 the first left nothing.
    [1.041, 1.0]
    """
    deviation, bound = _bounds(log_ratio, advantage, layout, delta, level, form)
    gated = aggregate.clip(deviation, bound)
    return jnp.where(layout.mask, safe_exp(gated) if form == "log" else 1 + gated, 1)


def clipped(
    log_ratio: jax.Array,
    advantage: jax.Array,
    layout: Layout,
    *,
    delta: ArrayLike,
    level: str = STATE,
    form: str = "ratio",
) -> dict[str, jax.Array]:
    """The tokens beyond what the others left them; bool[...] under the level's name."""
    deviation, bound = _bounds(log_ratio, advantage, layout, delta, level, form)
    return {level: (jnp.abs(deviation) > bound) & layout.mask}


def _bounds(
    log_ratio: jax.Array,
    advantage: jax.Array,
    layout: Layout,
    delta: ArrayLike,
    level: str,
    form: str,
) -> tuple[jax.Array, jax.Array]:
    """Each token's deviation and what is left of its unit's budget; two of the tokens' shape."""
    if form not in FORMS:
        raise ValueError(f"form {form!r} does not exist; choose from {FORMS}")
    log_ratio, _ = prepare(log_ratio, advantage, layout.mask)
    deviation = log_ratio if form == "log" else safe_exp(log_ratio) - 1
    magnitude = jnp.abs(deviation)
    if level == STATE:
        if layout.state_id is None:
            raise ValueError("gate 'apc' couples states, but the layout has no state_id")
        ids, axes = layout.state_id, layout.state_axes
        used = segments.segment_sum(magnitude, ids, layout.num_states, axis_name=axes)
        ones = jnp.asarray(layout.mask, magnitude.dtype)
        count = segments.segment_sum(ones, ids, layout.num_states, axis_name=axes)
        left = segments.spread(count * delta - used, ids) + magnitude
    else:
        layout = layout.select((level,))
        used = layout.pushforward_tokens(magnitude)
        count = jnp.asarray(layout.sizes[0], magnitude.dtype)
        left = layout.lift_tokens(count * delta - used) + magnitude
    # A comparison instead of a maximum: at exactly nothing left the bound has no gradient.
    return deviation, jnp.where(left > 0, left, 0)
