"""The silent hierarchy: a level over its budget leaves no push, and moving back is never closed.

A token keeps its own ratio while neither it nor any cell above it has gone beyond its budget in the
direction that the token's advantage asks for; then it is closed, and silent. With `s = +1` where
`Â ≥ 0` and `−1` elsewhere, and the signed mean drift of the published pushforward,

    D₁ = mean of ℓ over a cell's tokens,   Dₖ₊₁ = mean of Dₖ over its children,   Dₖ = Sₖ⁺ − Sₖ⁻
    closedᵢ   ⇔   sᵢ ℓᵢ > ε   or   sᵢ Dₖ(cellₖ(i)) > Cₖ^(sᵢ) at any level k

**The gradient** is a field of coefficients, `∂Gᵢ/∂ℓⱼ = δᵢⱼ · openᵢ · min(rᵢ, c)`: the decisions are
constants, as those of CISPO and DPPO are, and a closed level pushes nothing at all. No continuous
function has this gradient once a cell holds two tokens: raise `ℓ₁` while the cell is open, close it
by `ℓ₂`, take `ℓ₁` back, open it by `ℓ₂`; around this loop the coefficients of `G₁` add up to the
first rise of `r₁`, and those of a gradient would to 0.

**The value** is a surrogate all the same: each constraint takes back its own overshoot, the largest
counts, and never more than the token's own drift with its advantage,

    log Gᵢ = ℓᵢ − sᵢ min(maxₑ overshootₑ, max(sᵢ ℓᵢ, 0)),   capped at log c

It is continuous in ℓ, lies between 0 and ℓ but for the cap, and `Gᵢ Âᵢ ≤ min(rᵢ, c) Âᵢ`: a minimum
of branches, one a constraint. So `G = 1` at `ℓ = 0` whatever the siblings do, and a token that
moved back keeps its ratio in value even where a cell above closes it.

`SIGNALS` names what a level holds against its budget: "drift", or "residual", the part of the drift
that is not the parent's: `Dₖ − Dₖ₊₁`, clipped to lie between 0 and `Dₖ`. Unclipped it would close
cells that stand still because their siblings moved back. Channels instead of signed means are not
offered: `Sₖ⁺` counts the noise of every token and does not shrink with their number, and it would
close a cell that moved back on the whole.

`budget_scale` names what a budget is measured in, one of `scales.SCALES`.

`WEIGHTS` names what an open token weighs: "token", its own ratio `rᵢ`, or "trajectory", the
geometric mean `s_τ` of its trajectory's, which does not carry the noise of single tokens into the
gradient. The second is GSPO's weight, and with one level, `ε = c = ∞`, the coefficients are GSPO's.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from fiberjax.gates import scales, tokenwise
from fiberjax.gates.channels import channel, prepare, sign
from fiberjax.gates.score import unit_score
from fiberjax.gates.sequence import sequence_ratio_token, trajectory_mean
from fiberjax.layout import TRAJECTORY, Layout
from fiberjax.segments import class_spread, safe_exp

SIGNALS = ("drift", "residual")
WEIGHTS = ("token", "trajectory")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class SilentHierarchy:
    """The levels of a silent hierarchy and their budgets: a pytree of these, the rest is static.

    Attributes:
      budgets: for each gated level its budget in nats: one number, or plus and minus, for tokens of
        good and of bad advantages, or such pairs for each of its cells, float[S_k, 2]. Levels nest
        in the layout's order; those without a budget are passed over.
      epsilon: budget of a token's own drift, nats.
      epsilon_negative: another such budget where the advantage is negative; None for the same.
      weight_cap: `c`, the largest weight of a token. Above `e^ε` it holds only bad tokens that
        became likelier, on their way back, whose weight `r` has no other bound. A dual clip holds
        the same tokens; there they are silent beyond `c`, here they weigh `c`.
      signal: one of `SIGNALS`. Static.
      budget_scale: one of `scales.SCALES`. Static.
      weight: one of `WEIGHTS`. Static.

    Raises:
      ValueError: a signal, scale or weight that does not exist.
    """

    budgets: Mapping[str, ArrayLike | tuple[ArrayLike, ArrayLike]]
    epsilon: ArrayLike
    epsilon_negative: ArrayLike | None = None
    weight_cap: ArrayLike
    signal: str = dataclasses.field(default="drift", metadata={"static": True})
    budget_scale: str = dataclasses.field(default="none", metadata={"static": True})
    weight: str = dataclasses.field(default="token", metadata={"static": True})

    def __post_init__(self) -> None:
        """Refuses what does not exist."""
        for name, value, choices in (
            ("signal", self.signal, SIGNALS),
            ("budget_scale", self.budget_scale, scales.SCALES),
            ("weight", self.weight, WEIGHTS),
        ):
            if value not in choices:
                raise ValueError(f"{name} {value!r} does not exist; choose from {choices}")


def silent(
    log_ratio: jax.Array, advantage: jax.Array, layout: Layout, hierarchy: SilentHierarchy
) -> jax.Array:
    """The silent hierarchy over any nesting of cells; the shape of the log ratios.

        Gᵢ = min(exp(mᵢ − sᵢ min(maxₑ overshootₑ, max(sᵢ mᵢ, 0))), c)

    where `mᵢ` is the token's log ratio `ℓᵢ`, or the mean of its trajectory's.

    Args:
      log_ratio: float[B, T] or [N], nats; bfloat16 is computed in float32.
      advantage: float of the same shape; read for its sign, and for its size where budgets follow
        the dispersion.
      layout: where the tokens stand.
      hierarchy: levels, budgets and options.

    Returns:
      The gated ratio, 1 at padding. `∂Gᵢ/∂ℓⱼ = δᵢⱼ min(e^mᵢ, c)` where token `i` is open, 0 where
      it is closed: at most `c` anywhere, and, where tokens weigh their own ratios, at most `e^ε`
      where drift goes with the advantage. With one level, `ε = c = ∞` and budgets
      `(log(1 + ε_hi), −log(1 − ε_lo))`, a token is open where GSPO is, and nowhere else.

    Raises:
      ValueError: a level that the layout lacks, or no level at all.

    References:
      Ours. Closed levels: GSPO, arXiv 2507.18071; moving back is always allowed: DPPO,
      arXiv 2602.04879.

    >>> import numpy as np
    >>> from fiberjax.layout import make_layout
    >>> layout = make_layout(np.ones((2, 2), bool), {"group": np.array([0, 0])})
    >>> budgets = {"trajectory": 0.1, "group": 0.2}
    >>> hierarchy = SilentHierarchy(budgets=budgets, epsilon=0.5, weight_cap=3.0)
    >>> drift, ones = jnp.array([[0.4, 0.0], [0.0, 0.0]]), jnp.ones((2, 2))
    >>> total = lambda l: silent(l, ones, layout, hierarchy).sum()
    >>> jax.grad(total)(drift).tolist()
    [[0.0, 0.0], [1.0, 1.0]]
    """
    log_ratio, side, excess, _ = _excess(log_ratio, advantage, layout, hierarchy)
    moved = jax.lax.stop_gradient(_weighed(log_ratio, layout, hierarchy.weight))
    back = jnp.minimum(excess, jnp.maximum(side * moved, 0))
    weight = jnp.minimum(safe_exp(moved - side * back), hierarchy.weight_cap)
    return jnp.where(excess > 0, weight, weight * unit_score(log_ratio))


def limit(
    log_ratio: jax.Array, advantage: jax.Array, layout: Layout, *, weight: str = "token"
) -> jax.Array:
    """The gate with infinite budgets and cap; the shape of the log ratios.

    Args:
      log_ratio: float[B, T] or [N], nats.
      advantage: not read.
      layout: where the tokens stand.
      weight: static, one of `WEIGHTS`.
    """
    if weight == "token":
        return tokenwise.importance(log_ratio, advantage, layout)
    return sequence_ratio_token(log_ratio, advantage, layout, level=TRAJECTORY)


def clipped(
    log_ratio: jax.Array, advantage: jax.Array, layout: Layout, hierarchy: SilentHierarchy
) -> dict[str, jax.Array]:
    """The tokens that each level closes; bool[...] by level. Arguments as `silent`.

    Those that the cap holds are counted under "token".
    """
    log_ratio, _, _, masks = _excess(log_ratio, advantage, layout, hierarchy)
    moved = _weighed(log_ratio, layout, hierarchy.weight)
    capped = (safe_exp(moved) > hierarchy.weight_cap) & layout.mask
    return {**masks, "token": masks["token"] | capped}


def drift_noise(kl: ArrayLike, tokens: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """Mean and deviation of the drift that a cell shows for no reason of its own; two float[...].

        E D = −κ,   √Var D = √(2κ/N)

    A policy at `κ = KL(old ‖ current)` nats a token from the one that sampled has, over tokens that
    had no part in its updates, log ratios of mean `−κ` and of variance `2κ + O(κ^1.5)`. What a mean
    of `N` of them shows beyond that is the cell's own. A group of `n` trajectories of `T` tokens
    has `N = nT`; where lengths differ, `T` is their harmonic mean. So budgets of `z` deviations are

        z √(2κ/T) ∓ κ       for a trajectory, plus and minus
        z √(2κ/(nT)) ∓ κ    for its group

    and with `budget_scale="noise"`, which divides by the roots of `T` and `n` itself, `z √(2κ)` and
    `z √(2κ/T)`.

    Args:
      kl: `κ`, nats a token, as `actor/ppo_kl_k3` is logged.
      tokens: `N`.

    Returns:
      Mean and deviation, nats.

    References:
      Ours; both moments are those of the score to second order.

    >>> mean, deviation = drift_noise(0.005, 25)
    >>> round(float(mean), 3), round(float(deviation), 3)
    (-0.005, 0.02)
    """
    kl = jnp.asarray(kl)
    return -kl, jnp.sqrt(2 * kl / jnp.asarray(tokens))


def _weighed(log_ratio: jax.Array, layout: Layout, weight: str) -> jax.Array:
    """The log of what each token weighs while it is open and below the cap; float[...], nats."""
    if weight == "token":
        return log_ratio
    return jnp.where(layout.mask, trajectory_mean(log_ratio, layout, TRAJECTORY), 0)


def _excess(
    log_ratio: jax.Array, advantage: jax.Array, layout: Layout, hierarchy: SilentHierarchy
) -> tuple[jax.Array, jax.Array, jax.Array, dict[str, jax.Array]]:
    """How far beyond its budgets each token is, and by which levels.

    Returns:
      The log ratios as gates compute with them; `s`, float[...], +1 and −1; the largest overshoot
      of a token, float[...], nats, a constant, above 0 exactly where it is closed; and by level
      bool[...], where it closes.
    """
    log_ratio, advantage = prepare(log_ratio, advantage, layout.mask)
    drift = jax.lax.stop_gradient(log_ratio)
    layout, drifts, budgets = _held(drift, advantage, layout, hierarchy)
    bound = jnp.asarray(hierarchy.epsilon, drift.dtype)
    if hierarchy.epsilon_negative is not None:
        bound = jnp.where(advantage < 0, hierarchy.epsilon_negative, bound)
    side = sign(advantage)
    own = jnp.maximum(side * drift - bound, 0)

    column = channel(advantage)

    def at_tokens(table: jax.Array) -> jax.Array:
        return class_spread(table, layout.cell_id, column)

    masks = {"token": (own > 0) & layout.mask}
    largest = jnp.zeros((layout.sizes[0].shape[0], 2), drift.dtype)
    for k, (both, budget) in enumerate(zip(drifts, budgets, strict=True)):
        table = jnp.maximum(both - budget, 0)
        for j in reversed(range(k)):
            table = layout.lift(table, j)
        largest = jnp.maximum(largest, table)
        masks[layout.levels[k]] = (at_tokens(table) > 0) & layout.mask
    return log_ratio, side, jnp.maximum(own, at_tokens(largest)), masks


def held(
    log_ratio: jax.Array, advantage: jax.Array, layout: Layout, hierarchy: SilentHierarchy
) -> scales.Held:
    """The signed mean drift, or residual, of every cell and its negative, and the budgets.

    Arguments as `silent`; all constants in gradients, nats.
    """
    log_ratio, advantage = prepare(log_ratio, advantage, layout.mask)
    return _held(jax.lax.stop_gradient(log_ratio), advantage, layout, hierarchy)


def _held(
    drift: jax.Array, advantage: jax.Array, layout: Layout, hierarchy: SilentHierarchy
) -> scales.Held:
    """`held` of prepared arrays, constants."""
    layout, budgets = scales.per_cell(hierarchy.budgets, hierarchy.budget_scale, advantage, layout)
    means = layout.means(drift)
    drifts = []
    for k, moved in enumerate(means):
        if hierarchy.signal == "residual" and k + 1 < len(means):
            residual = moved - layout.lift(means[k + 1], k)
            moved = jnp.clip(residual, jnp.minimum(moved, 0), jnp.maximum(moved, 0))
        drifts.append(jnp.stack([moved, -moved], axis=-1))
    return scales.Held(layout, tuple(drifts), budgets)
