"""FiberPO and the Fibration Gating Hierarchy: trust regions at several scales at once.

    G = exp(log W + f)

`log W` is the gated drift of the cells above a token, `f` the gated part that is the token's own.
One level, trajectories, is FiberPO; trajectories, prompt groups and domains are FiberPO-Domain.
The papers state that the hierarchy needs no new primitive; the recursion in `bundle` is our own
derivation of it, fixed by its limits: one level is FiberPO exactly, open gates give `G = r`, and
the Jacobian at `ℓ = 0` is the identity.

The code below is arranged by what it costs. A token's log gated ratio is `ℓ` (or `±ε` where its
fiber is clipped) plus one number that it shares with the tokens of its cell and class, a class
being its channel and whether its fiber is open. So forward and backward each move tokens with one
scatter and two gathers, whatever the number of levels, and automatic differentiation of these
lines is the closed Jacobian.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from fiberjax.gates import aggregate, bundle, scales
from fiberjax.gates.aggregate import clip
from fiberjax.gates.channels import MINUS, channel, prepare, sign
from fiberjax.layout import Layout
from fiberjax.segments import class_spread, safe_exp

DEVIATIONS = ("log", "ratio")
SCALES = ("none", "dispersion")
"""Of `scales.SCALES`: a channel sums sizes, whose mean does not shrink with their number."""

LARGEST_LOG_RATIO = 20.0
"""Nats. Log ratios are held to ± this before ratio deviations are made of them."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Hierarchy:
    """The levels of a hierarchy and their budgets: a pytree of these, the rest is static.

    A jitted function takes it like any array: other numbers never retrace, another structure does.

    Attributes:
      budgets: for each gated level its budget in nats: one number, or plus and minus, or such pairs
        for each of its cells, float[S_k, 2]. Levels nest in the layout's order; those without a
        budget are passed over.
      epsilon: budget of a token's own drift, nats.
      epsilon_negative: another such budget where the advantage is negative; None for the same.
      variant: "published" or "exact" (see `bundle`). Static.
      base_gate: "rollback" (published) or "hold". Static.
      lift: "plain", or "bounded", where no cell is moved by its siblings (see `bundle`). Static.
      signs: "token", or "resigned" (see `bundle`). Static.
      deviation: what drifts: "log" ratios, or "ratio", `r − 1`, on budgets without a unit. Static.
      alpha: `α`, an exponent of the base weight; None for 1.
      upper_negative: budget of a token's own drift upwards where the advantage is negative; None
        for the same as downwards.
      budget_scale: "none", or "dispersion" (see `scales`). Static.

    The last five are options that the authors have published in code since, where "token", "log",
    None and "none" are the published method.

    Raises:
      ValueError: a choice that does not exist, or the exact bundle re-signed.

    >>> options = Hierarchy(budgets={"trajectory": (0.11, 0.09), "group": 0.06}, epsilon=0.05)
    >>> dataclasses.replace(options, variant="exact").variant, len(jax.tree.leaves(options))
    ('exact', 4)
    """

    budgets: Mapping[str, ArrayLike | tuple[ArrayLike, ArrayLike]]
    epsilon: ArrayLike
    epsilon_negative: ArrayLike | None = None
    alpha: ArrayLike | None = None
    upper_negative: ArrayLike | None = None
    variant: str = dataclasses.field(default="published", metadata={"static": True})
    base_gate: str = dataclasses.field(default="rollback", metadata={"static": True})
    lift: str = dataclasses.field(default="plain", metadata={"static": True})
    signs: str = dataclasses.field(default="token", metadata={"static": True})
    deviation: str = dataclasses.field(default="log", metadata={"static": True})
    budget_scale: str = dataclasses.field(default="none", metadata={"static": True})

    def __post_init__(self) -> None:
        """Refuses what does not exist."""
        for name, value, choices in (
            ("variant", self.variant, bundle.VARIANTS),
            ("base_gate", self.base_gate, tuple(aggregate.BASE_GATES)),
            ("lift", self.lift, bundle.LIFTS),
            ("signs", self.signs, bundle.SIGNS),
            ("deviation", self.deviation, DEVIATIONS),
            ("budget_scale", self.budget_scale, SCALES),
        ):
            if value not in choices:
                raise ValueError(f"{name} {value!r} does not exist; choose from {choices}")
        if self.variant == "exact" and self.signs == "resigned":
            raise ValueError(
                "signs 'resigned' needs variant 'published': the channels of the exact bundle are "
                "means over tokens of their own and have no difference to sign"
            )


def fgh(
    log_ratio: jax.Array, advantage: jax.Array, layout: Layout, hierarchy: Hierarchy
) -> jax.Array:
    """Fibration Gating Hierarchy over any nesting of cells; the shape of the log ratios.

        Bₖ(y) = g(Rₖ⁺(y); Cₖ⁺, nₖ) − g(Rₖ⁻(y); Cₖ⁻, nₖ),   log Wᵢ = Σₖ Bₖ(cellₖ(i))
        fᵢ = clip(lᵢuᵢ, ±ε) − clip(lᵢvᵢ, ±ε),   uᵢ = lᵢℓᵢ − S₁^(lᵢ),   vᵢ = −S₁^(−lᵢ)
        Gᵢ = exp(log Wᵢ + fᵢ)

    With the bounded lift, `Σₖ Bₖ` is clipped on its way down, level by level and channel by
    channel, to lie between 0 and the cell's own drift (`bundle.log_weight`).

    The exact bundle gates each channel as a cell of its own:

        Gᵢ = exp(lᵢ Σₖ g(Rₖ^(lᵢ); Cₖ^(lᵢ), nₖ^(lᵢ)) + clip(ℓᵢ − lᵢS₁^(lᵢ), ±ε))

    With ratio deviations, `rᵢ − 1` stands for `ℓᵢ` throughout, held to ±20 nats, and
    `Gᵢ = 1 + log Wᵢ + fᵢ`, which budgets near 1 may leave below 0.

    Args:
      log_ratio: float[B, T] or [N], nats; bfloat16 is computed in float32.
      advantage: float of the same shape; read for its sign with `epsilon_negative` or
        `upper_negative`, for its size where budgets follow the dispersion, else not at all.
      layout: where the tokens stand.
      hierarchy: levels, budgets and variant.

    Returns:
      The gated ratio, 1 at padding. `∂ log G/∂ℓ` is block-diagonal over the coarsest cells, the
      identity where every gate is open, and constant in the advantage. With `α` open gates give
      `log G = ℓ + (α − 1) Dᵢ` instead, `D` the signed mean drift of the token's finest cell, and
      the operators of `compose` still compare with `r`.

    Raises:
      ValueError: a level that the layout lacks, or no level at all.

    References:
      Fibration Policy Optimization, arXiv 2603.08239; FiberPO: arXiv 2604.03044, eqs. 1 to 5.
    """
    state = inspect(log_ratio, advantage, layout, hierarchy)
    ratio = hierarchy.deviation == "ratio"
    return jnp.where(layout.mask, 1 + state.gated if ratio else safe_exp(state.gated), 1)


def fiberpo(
    log_ratio: jax.Array, advantage: jax.Array, layout: Layout, hierarchy: Hierarchy
) -> jax.Array:
    """FiberPO, the hierarchy of one level; the shape of the log ratios.

        w_τ = g(S⁺_τ; C⁺, T_τ) − g(S⁻_τ; C⁻, T_τ),   Gᵢ = exp(w_τ + fᵢ)

    Args:
      log_ratio: float[B, T] or [N], nats.
      advantage: float of the same shape (see `fgh`).
      layout: where the tokens stand.
      hierarchy: its one level, budgets and variant.

    Returns:
      The gated ratio; see `fgh`.

    Raises:
      ValueError: more levels than one.

    References:
      JoyAI-LLM Flash report, arXiv 2604.03044, Definition 3.1, eqs. 1 to 5.
    """
    if len(hierarchy.budgets) != 1:
        raise ValueError(
            f"FiberPO has one level, but the budgets name {tuple(hierarchy.budgets)}; "
            "`fgh` takes any number"
        )
    return fgh(log_ratio, advantage, layout, hierarchy)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Gating:
    """What the hierarchy decided, for the gate itself, its clip masks and the diagnostics.

    Attributes:
      layout: the layout of the gated levels.
      tower: drift, residuals and sizes of every level.
      budgets: for each level, float[2] or [S_k, 2], nats.
      own_drift: float[...], nats: `u`, the token's drift beyond its cell's channel.
      own_budget: float[...], nats: `ε`, what that drift is held to.
      fiber_clipped: bool[...]: the token's part is clipped, `|u| > ε`.
      gated: float[...]: what is left of the token's deviation, `log G` in nats, or `G − 1`.
      base_gate: what gated the levels, one of `aggregate.BASE_GATES`. Static.
    """

    layout: Layout
    tower: bundle.Tower
    budgets: tuple[jax.Array, ...]
    own_drift: jax.Array
    own_budget: jax.Array
    fiber_clipped: jax.Array
    gated: jax.Array
    base_gate: str = dataclasses.field(metadata={"static": True})

    @property
    def held(self) -> scales.Held:
        """The sizes of every level's residuals, and the budgets."""
        return scales.Held(self.layout, tuple(map(jnp.abs, self.tower.residual)), self.budgets)


def inspect(
    log_ratio: jax.Array, advantage: jax.Array, layout: Layout, hierarchy: Hierarchy
) -> Gating:
    """The hierarchy's decisions along with its result; arguments as `fgh`, a `Gating`."""
    variant, base_gate = hierarchy.variant, hierarchy.base_gate
    log_ratio, advantage = prepare(log_ratio, advantage, layout.mask)
    layout, pairs = scales.per_cell(hierarchy.budgets, hierarchy.budget_scale, advantage, layout)
    if hierarchy.deviation == "ratio":  # This is what drifts, from here to the end.
        log_ratio = jnp.expm1(clip(log_ratio, jnp.asarray(LARGEST_LOG_RATIO, log_ratio.dtype)))
    dtype = log_ratio.dtype
    tower = bundle.tower(log_ratio, layout, variant=variant, signs=hierarchy.signs)
    weight = bundle.log_weight(tower, layout, pairs, base_gate=base_gate, lift=hierarchy.lift)
    if hierarchy.alpha is not None:
        weight = weight * hierarchy.alpha

    bounds = _token_bounds(hierarchy, dtype)
    kind = jnp.where(advantage < 0, len(bounds) - 1, 0)
    channels = channel(log_ratio) + 2 * kind
    drift = jnp.tile(tower.drift[0], len(bounds))
    shared = _shared(weight, tower.drift[0], bounds, variant)

    # Which class a token is in is a comparison, without a gradient.
    centre = class_spread(jax.lax.stop_gradient(drift), layout.cell_id, channels)
    own = jax.lax.stop_gradient(jnp.abs(log_ratio)) - centre
    upwards = sign(log_ratio) * jnp.sign(own)
    bound = _bound_of(bounds, advantage, upwards > 0)
    clipped = jnp.abs(own) > bound
    signs = jnp.tile(jnp.array([1, -1], dtype), len(bounds))
    table = jnp.concatenate([shared - signs * drift, shared], axis=-1)
    number = channels + jnp.where(clipped, 2 * len(bounds), 0)
    fiber = jnp.where(clipped, upwards * bound, log_ratio)
    return Gating(
        layout=layout,
        tower=tower,
        budgets=pairs,
        own_drift=jnp.where(layout.mask, own, 0),
        own_budget=jnp.where(layout.mask, bound, 0),
        fiber_clipped=clipped & layout.mask,
        gated=fiber + class_spread(table, layout.cell_id, number),
        base_gate=base_gate,
    )


def _token_bounds(hierarchy: Hierarchy, dtype: jnp.dtype) -> jax.Array:
    """Budgets of a token's own drift, down and up; float[E, 2], E = 2 if they differ by `Â`."""
    epsilon, upper = hierarchy.epsilon, hierarchy.upper_negative
    down = epsilon if hierarchy.epsilon_negative is None else hierarchy.epsilon_negative
    bounds = [epsilon, epsilon]
    if hierarchy.epsilon_negative is not None or upper is not None:
        bounds += [down, down if upper is None else upper]
    return jnp.stack([jnp.asarray(b, dtype) for b in bounds]).reshape(-1, 2)


def _bound_of(bounds: jax.Array, advantage: jax.Array, upwards: jax.Array) -> jax.Array:
    """The budget that each token's own drift is held to; the shape of the advantages."""
    both = [jnp.where(upwards, pair[1], pair[0]) for pair in bounds]
    return both[0] if len(both) == 1 else jnp.where(advantage < 0, both[1], both[0])


def _shared(weight: jax.Array, drift: jax.Array, bound: jax.Array, variant: str) -> jax.Array:
    """What the tokens of a cell share, by token budget and channel; float[S_1, 2 E], nats.

    Published: `log W + clip(S⁻, ε)` for tokens of PLUS, `log W − clip(S⁺, ε)` for those of MINUS,
    with the lower and the upper of two budgets.
    Exact: `±` the gated drift of the token's own channel.
    """
    signs = jnp.array([1, -1], weight.dtype)
    if variant == "exact":
        return jnp.tile(weight * signs, bound.shape[0])
    both = weight @ signs
    opposite = [clip(drift[:, ::-1], b) * signs for b in bound]
    return jnp.concatenate([both[:, None] + part for part in opposite], axis=-1)


def clipped(
    log_ratio: jax.Array, advantage: jax.Array, layout: Layout, hierarchy: Hierarchy
) -> dict[str, jax.Array]:
    """The tokens whose own row of `∂ log G/∂ℓ` each level's gate changes; bool[...] by level.

    Arguments as `fgh`. The level "token" is the fiber gate, of both terms of `f`.
    """
    state = inspect(log_ratio, advantage, layout, hierarchy)
    layout, token = state.layout, state.fiber_clipped
    log_ratio, advantage = prepare(log_ratio, advantage, layout.mask)
    channels = channel(log_ratio)
    if hierarchy.variant == "published":
        bounds = _token_bounds(hierarchy, log_ratio.dtype)
        opposite = class_spread(state.tower.drift[0][:, ::-1], layout.cell_id, channels)
        token = token | (opposite > _bound_of(bounds, advantage, channels == MINUS))
    if hierarchy.deviation == "ratio":
        token = token | (jnp.abs(log_ratio) > LARGEST_LOG_RATIO)
    masks = {"token": token & layout.mask}
    tables = bundle.changed(
        state.tower, layout, state.budgets, base_gate=state.base_gate, lift=hierarchy.lift
    )
    for level, table in zip(layout.levels, tables, strict=True):
        if hierarchy.variant == "published":
            # Every token of the cell moves both channels' weights.
            table = jnp.broadcast_to(jnp.any(table, axis=-1, keepdims=True), table.shape)
        lifted = class_spread(table.astype(jnp.int32), layout.cell_id, channels) > 0
        masks[level] = lifted & layout.mask
    return masks
