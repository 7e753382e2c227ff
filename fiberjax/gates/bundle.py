"""Fiber bundle gating: drift is pushed up a tower of cells, gated there, and lifted back.

Tokens are the fibers of the finest cells, those the fibers of the next, and so on; any nesting is
data of the layout: turn, trajectory, prompt group, domain, expert, agent, language. Four moves:

    pushforward   S₁ = mean of |ℓ| over a cell's tokens, by channel;  Sₖ₊₁ = mean over children
    residual      Rₖ = Sₖ − lift Sₖ₊₁                                 a cell's own part of the drift
    base gate     g(Rₖ; Cₖ, nₖ)                                       its budget, level by level
    fiber gate    clip(ℓ − l S₁, ±ε)                                  the token's own part

Open gates telescope: the residuals of all levels add up to `S₁`, and with the token's part to `ℓ`.
FiberPO is this with one level, FGH with any number.

`VARIANTS` names two bundles. "published" keeps trajectories as base space: the mean of a channel
divides by all tokens of the cell. "exact" takes trajectory × sign as base space: each channel is a
cell of its own and divides by its own count, so that residuals sum to zero within it (the
reflecting condition) and a zeroed channel leaves no net push.

`LIFTS` names two ways down. "plain" adds up what the gates of all levels leave. A cell that has not
drifted is then moved by its siblings wherever their parent's gate is open and its own is not: its
negative residual is cut short and its parent's drift is not. "bounded" (ours) keeps the gated drift
of every cell between 0 and its own drift.

`SIGNS` names what a cell hands up. "token" (ours): both channels, so that the two directions of its
tokens stay apart all the way up. "resigned" (the authors, in later research code): its signed mean
alone, in the channel of that sign, so that what cancels within a cell is not seen above it. The
residuals still telescope, and those of siblings still sum to zero as `R⁺ − R⁻`, but no longer by
channel: there `min(Sₖ⁺, Sₖ⁻)` of each is left over, for the cell's own gate.
"""

import dataclasses

import jax
import jax.numpy as jnp

from fiberjax.gates import aggregate
from fiberjax.gates.channels import channel
from fiberjax.layout import Layout
from fiberjax.segments import class_sum, safe_divide

VARIANTS = ("published", "exact")
LIFTS = ("plain", "bounded")
SIGNS = ("token", "resigned")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tower:
    """Drift at every level of a layout, finest first.

    Attributes:
      drift: for each level, float[S_k, 2], nats: the mean drift of a cell's children by channel.
      residual: for each level, float[S_k, 2], nats: the drift less the parent's; at the coarsest
        level the drift itself.
      size: for each level, float[S_k, 1] (published) or [S_k, 2] (exact): children counted.
    """

    drift: tuple[jax.Array, ...]
    residual: tuple[jax.Array, ...]
    size: tuple[jax.Array, ...]


def tower(log_ratio: jax.Array, layout: Layout, *, variant: str, signs: str = "token") -> Tower:
    """Pushes masked log ratios up all levels of the layout; a `Tower`.

    Args:
      log_ratio: float[...], nats, exactly 0 at padding.
      layout: the cells, all of whose levels take part.
      variant: static, one of `VARIANTS`.
      signs: static, one of `SIGNS`.

    Returns:
      Drift, residuals and sizes. Linear in `|ℓ|` of each channel, and of each cell's sign where
      cells are re-signed.

    >>> import numpy as np
    >>> from fiberjax.layout import make_layout
    >>> layout = make_layout(np.ones((1, 2), bool))
    >>> drift = tower(jnp.array([[0.2, -0.1]]), layout, variant="published").drift[0]
    >>> [round(s, 3) for s in drift[0].tolist()]
    [0.1, 0.05]
    """
    drift, size = _pushforward_tokens(log_ratio, layout, variant)
    drifts, sizes = [drift], [size]
    for k in range(len(layout.parents)):
        handed = _resigned(drift) if signs == "resigned" else drift
        drift, size = _pushforward(handed, size, layout, k, variant)
        drifts.append(drift)
        sizes.append(size)
    residuals = [
        # An empty channel has no drift of its own to hold against its parent's.
        jnp.where(size > 0, fine - layout.lift(coarse, k), 0)
        for k, (fine, coarse, size) in enumerate(zip(drifts, drifts[1:], sizes, strict=False))
    ]
    return Tower(drift=tuple(drifts), residual=(*residuals, drifts[-1]), size=tuple(sizes))


def _pushforward_tokens(
    log_ratio: jax.Array, layout: Layout, variant: str
) -> tuple[jax.Array, jax.Array]:
    """Mean of `|ℓ|` by channel over the tokens of each finest cell, and the tokens counted."""
    dtype, channels, cells = log_ratio.dtype, channel(log_ratio), layout.sizes[0].shape[0]
    magnitude = jnp.where(channels == 0, log_ratio, -log_ratio)
    axes = layout.axis_names[0]
    total = class_sum(magnitude, layout.cell_id, channels, cells, 2, axis_name=axes)
    if variant == "published":
        size = layout.sizes[0].astype(dtype)[:, None]
    else:
        one = layout.mask.astype(dtype)
        size = class_sum(one, layout.cell_id, channels, cells, 2, axis_name=axes)
    return safe_divide(total, size), size


def _pushforward(
    drift: jax.Array, size: jax.Array, layout: Layout, k: int, variant: str
) -> tuple[jax.Array, jax.Array]:
    """Mean drift of level `k` over the children of each cell of level `k + 1`, and their count."""
    total = layout.pushforward(drift, k)
    if variant == "published":
        size = layout.sizes[k + 1].astype(drift.dtype)[:, None]
    else:
        size = layout.pushforward((size > 0).astype(drift.dtype), k)
    return safe_divide(total, size), size


def _resigned(drift: jax.Array) -> jax.Array:
    """`max(±(S⁺ − S⁻), 0)`: the signed mean of a cell in the channel of its sign; float[S, 2]."""
    net = drift[:, 0] - drift[:, 1]
    return jnp.stack([jnp.where(net >= 0, net, 0), jnp.where(net >= 0, 0, -net)], axis=-1)


def log_weight(
    bundle: Tower,
    layout: Layout,
    budgets: tuple[jax.Array, ...],
    *,
    base_gate: str,
    lift: str = "plain",
) -> jax.Array:
    """Gates every level's residual and lifts the sum to the finest cells; float[S_1, 2], nats.

        Wₖ = g(Rₖ; Cₖ, nₖ) + lift Wₖ₊₁                        plain
        Wₖ = clip(g(Rₖ; Cₖ, nₖ) + lift Wₖ₊₁, 0, Sₖ)           bounded

    Args:
      bundle: the drift of every level.
      layout: the cells.
      budgets: for each level, float[2] or [S_k, 2], nats: plus and minus.
      base_gate: static, one of `aggregate.BASE_GATES`.
      lift: static, one of `LIFTS`.

    Returns:
      The gated drift of each finest cell by channel; equal to `S₁` where every gate is open. Where
      the bounded lift clips to `Sₖ` it has the gradient of `Sₖ`, also where `Sₖ = 0` and both
      bounds meet; where it clips to 0, none.
    """
    return _descend(bundle, layout, budgets, base_gate, lift)[0]


def _descend(
    bundle: Tower, layout: Layout, budgets: tuple[jax.Array, ...], base_gate: str, lift: str
) -> tuple[jax.Array, tuple[tuple[jax.Array, jax.Array], ...]]:
    """The gated drift, and for each level bool[S_k, 2] twice: where it is clipped to `Sₖ`, to 0."""
    gate = aggregate.BASE_GATES[base_gate]
    weight = taken = jnp.zeros_like(bundle.drift[-1])
    bounds = []
    for k in reversed(range(len(bundle.drift))):
        drift, residual = bundle.drift[k], bundle.residual[k]
        gated = gate(residual, budgets[k], bundle.size[k])
        if k + 1 < len(bundle.drift):
            weight, taken = layout.lift(weight, k), layout.lift(taken, k)
        weight = gated + weight
        # What the gates took off, exactly 0 where all are open: `Sₖ − Wₖ` would be rounded.
        taken = (residual - gated) + taken
        whole = zeroed = jnp.zeros(drift.shape, bool)
        if lift == "bounded":
            whole = (taken <= 0) | (drift == 0)
            zeroed = ~whole & (weight < 0)
            weight = jnp.where(whole, drift, jnp.where(zeroed, 0, weight))
            taken = jnp.where(whole, 0, jnp.where(zeroed, drift, taken))
        bounds.append((whole, zeroed))
    return weight, tuple(reversed(bounds))


def closed(bundle: Tower, budgets: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """Where each level's gate is not the identity; for each level bool[S_k, 2]."""
    return tuple(
        jnp.abs(residual) > budget
        for residual, budget in zip(bundle.residual, budgets, strict=True)
    )


def changed(
    bundle: Tower,
    layout: Layout,
    budgets: tuple[jax.Array, ...],
    *,
    base_gate: str,
    lift: str = "plain",
) -> tuple[jax.Array, ...]:
    """The finest cells whose gated drift each level changes; for each level bool[S_1, 2].

    Arguments as `log_weight`. A level changes what its gate closes or its bound zeroes, unless a
    finer cell is clipped on the way down.
    """
    _, bounds = _descend(bundle, layout, budgets, base_gate, lift)
    tables = []
    for k, table in enumerate(closed(bundle, budgets)):
        whole, zeroed = bounds[k]
        table = (table | zeroed) & ~whole
        for j in reversed(range(k)):
            clipped = bounds[j][0] | bounds[j][1]
            table = (layout.lift(table.astype(jnp.int32), j) > 0) & ~clipped
        tables.append(table)
    return tuple(tables)
