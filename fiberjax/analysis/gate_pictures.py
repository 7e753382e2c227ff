"""Pictures of gates: what each leaves of a token's gradient as the token drifts.

Every number is the library's own: gates are called, and differentiated by jax.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fiberjax import probes
from fiberjax.analysis.style import (
    BLACK,
    COLOURS,
    DOWN,
    GREY,
    SHADES,
    UP,
    Picture,
    finish,
    grid,
    signed_ticks,
)
from fiberjax.gates import aggregate
from fiberjax.gates.configured import ConfiguredGate
from fiberjax.layout import Layout, make_layout

TICKS = (-8, -4, -2, -1, 0, 1, 2, 4, 8)


def slopes(
    gate: ConfiguredGate, drift: np.ndarray, advantage: float, *, tokens: int = 8
) -> np.ndarray:
    """What gradient ascent follows as one token of a trajectory drifts; float[drifts].

        ∂ Σⱼ Gⱼ/∂ℓᵢ        over the tokens j of the trajectory; the others stay at ℓ = 0

    Args:
      gate: over trajectories, or tokens alone.
      drift: float[drifts], nats, of the one token.
      advantage: of all tokens; its sign is what counts.
      tokens: of the trajectory.

    >>> from fiberjax.gates.configured import gate
    >>> slopes(gate("ppo"), np.array([0.0, 1.0]), 1.0).tolist()
    [1.0, 0.0]
    """
    layout = make_layout(np.ones((1, tokens), bool))
    advantages = jnp.full((1, tokens), advantage)
    old_log_prob = jnp.full((1, tokens), jnp.log(0.5))

    def slope(drift: jax.Array) -> jax.Array:
        log_ratio = jnp.zeros((1, tokens)).at[0, tokens // 2].set(drift)
        total = jax.grad(lambda l: jnp.sum(gate(l, advantages, layout, old_log_prob=old_log_prob)))
        return total(log_ratio)[0, tokens // 2]

    return np.asarray(jax.jit(jax.vmap(slope))(jnp.asarray(drift, jnp.float32)))


def curves(
    gates: Mapping[str, ConfiguredGate], *, tokens: int = 8, reach: float = 2.2, across: int = 4
) -> Picture:
    """One panel a gate: what is left of a token's gradient as it alone drifts, nats.

    Importance sampling, which gates nothing, is the dotted line in every panel.

    Args:
      gates: by the title of their panels.
      tokens: of the trajectory.
      reach: the largest drift drawn, nats.
      across: panels in a row.
    """
    drift = np.linspace(-reach, reach, 881)
    down = -(-len(gates) // across)
    picture, axes = grid(down, across, width=2.75 * across, height=2.9, sharex=True, sharey=True)
    for ax, (title, gate) in zip(axes.flat, gates.items(), strict=False):
        ax.plot(drift, np.exp(drift), ":", color=GREY, lw=1.4, label="no gate")
        for advantage, label, look in ((1.0, "advantage > 0", UP), (-1.0, "< 0", DOWN)):
            ax.plot(
                drift, slopes(gate, drift, advantage, tokens=tokens), lw=1.7, label=label, **look
            )
        ax.axhline(0, color=GREY, lw=0.8)
        finish(ax, title, legend="upper left")
        signed_ticks(ax, TICKS, linear=1.0)
        ax.set_ylim(-12, 30)
    for ax in axes.flat[len(gates) :]:
        ax.remove()
    for ax in axes[-1]:
        ax.set_xlabel("the token's log ratio, nats", fontsize=9)
    for ax in axes[:, 0]:
        ax.set_ylabel("slope of Σ G", fontsize=9)
    return picture


def base_gates(budget: float = 0.1, sizes: Sequence[int] = (1, 2, 8, 64)) -> Picture:
    """The gate of a cell's drift, and its slope, for cells of several sizes.

    Args:
      budget: `C`, nats.
      sizes: numbers of children, four at most.
    """
    drift = np.linspace(-2.2 * budget, 2.2 * budget, 2001).astype(np.float32)
    picture, ((left, right),) = grid(1, 2, height=3.6)
    for axes, of in ((left, lambda gate: gate), (right, jax.grad)):
        for size, colour in zip(sizes, SHADES, strict=False):
            y = jax.vmap(of(aggregate.rollback), (0, None, None))(drift, budget, float(size))
            axes.plot(drift, y, color=colour, lw=1.6, label=f"rollback, k = {size}")
        y = jax.vmap(of(aggregate.hold), (0, None, None))(drift, budget, 1.0)
        axes.plot(drift, y, ":", color=COLOURS[1], lw=2, label="hold")
        for bound in (-budget, budget):
            axes.axvline(bound, color=GREY, lw=0.8, ls="--")
    finish(
        left,
        f"Gated drift, C = {budget:g}",
        x="drift x, nats",
        y="g(x; C, k), nats",
        legend="lower right",
    )
    finish(right, "Its slope: 1, −k, 0", x="drift x, nats", y="slope of g", legend="lower center")
    signed_ticks(right, (1, 0, -1, -2, *(-k for k in sizes if k > 2)), linear=1.0)
    right.set_ylim(-2 * max(sizes), 2)
    return picture


def own_signals(
    gates: Mapping[str, ConfiguredGate], log_ratio: np.ndarray, words: Sequence[str], layout: Layout
) -> Picture:
    """Tokens of a few trajectories: how far each drifted, and what gates leave of its own signal.

    Args:
      gates: by the label to show them under.
      log_ratio: float[N], nats.
      words: N texts.
      layout: flat, over the N tokens; advantages are all 1.
    """
    cells = np.asarray(layout.cell_id)
    place = np.arange(len(words)) + cells  # A gap between trajectories.
    picture, ((upper,), (lower,)) = grid(2, 1, height=2.5, sharex=True)
    upper.axhspan(np.log(0.8), np.log(1.2), color="#E9E9E9", zorder=0, label="within PPO's clip")
    upper.bar(place, log_ratio, 0.6, color=SHADES[1], label="log ratio")
    for cell in np.unique(cells):
        own = place[cells == cell]
        mean = float(np.maximum(log_ratio[cells == cell], 0).mean())
        label = "upward drift of the trajectory" if cell == 0 else None
        upper.hlines(mean, own[0] - 0.4, own[-1] + 0.4, color=BLACK, lw=1.2, ls="--", label=label)
        upper.text(own[0] - 0.4, mean + 0.01, f"{mean:.3f}", fontsize=8)
    finish(upper, "How far each token drifted", y="nats", legend="upper right")
    width = 0.8 / len(gates)
    for number, (label, gate) in enumerate(gates.items()):
        signal = own_signal(gate, log_ratio, layout)
        lower.bar(
            place + (number - (len(gates) - 1) / 2) * width,
            signal,
            width,
            color=COLOURS[number],
            hatch=("", "///", "...")[number % 3],
            edgecolor="white",
            linewidth=0.3,
            label=label,
        )
    finish(lower, "What is left of its own signal", y="∂G/∂ℓ")
    lower.set_ylim(0, 1.6)
    lower.legend(loc="upper right", frameon=False, fontsize=8, ncols=len(gates))
    lower.set_xticks(place, words)
    for ax in (upper, lower):
        ax.grid(visible=False, axis="x")
    return picture


def own_signal(gate: ConfiguredGate, log_ratio: np.ndarray, layout: Layout) -> np.ndarray:
    """How each token's log ratio moves its own gated ratio, `∂Gᵢ/∂ℓᵢ`; float[N].

    Args:
      gate: called with advantages of 1.
      log_ratio: float[N], nats.
      layout: flat, over the N tokens.
    """
    moved = jnp.asarray(log_ratio, jnp.float32)
    good = jnp.ones_like(moved)
    matrix = probes.jacobian(gate.structure, moved, good, layout, gate.budgets, log=False)
    return np.diag(np.asarray(matrix))
