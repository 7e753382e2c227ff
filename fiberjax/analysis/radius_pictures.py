"""Pictures of the radii that classical trust regions guarantee, and of what is left of them.

The functions drawn are those of `fiberjax.trust_region`.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fiberjax import objective, trust_region
from fiberjax.analysis.style import BLUE, GREEN, GREY, ORANGE, SHADES, Picture, finish, grid
from fiberjax.gates.configured import gate
from fiberjax.layout import make_layout


def radii(*, mark: int = 8192, clip: float = 0.2) -> Picture:
    """The radius of total variation that is guaranteed, and the guarantee within a radius.

    Args:
      mark: a horizon to point at, tokens.
      clip: of PPO, whose total variation in a state is half of it, for comparison.
    """
    horizon = np.geomspace(2, 131072, 200)
    discount = 1 - 1 / horizon
    picture, ((left, right),) = grid(1, 2, height=3.9)
    for values, label, look in (
        (trust_region.horizon_tv_limit(horizon), "H tokens at γ = 1: limit", (ORANGE, "-", 1.6)),
        (trust_region.tv_limit(discount), "discounted: limit", (BLUE, "-", 1.6)),
        (trust_region.horizon_tv_radius(horizon), "H tokens at γ = 1: best", (ORANGE, "--", 3.4)),
        (trust_region.tv_radius(discount), "discounted: best", (BLUE, "--", 1.6)),
    ):
        colour, dashes, width = look
        left.loglog(horizon, values, dashes, color=colour, lw=width, label=label)
    left.axhline(clip / 2, color=GREY, lw=1.2, ls=":", label=f"PPO's clip of {clip:g}")
    at = float(trust_region.horizon_tv_limit(mark))
    left.plot(mark, at, "o", color=ORANGE)
    left.annotate(
        f"H = {mark}: {at:.1e}", (mark, at), (8, 3), textcoords="offset points", fontsize=8
    )
    finish(
        left,
        "The radius that is guaranteed",
        x="horizon H, or 1/(1 − γ), tokens",
        y="total variation α",
        legend="lower left",
    )
    tv = np.geomspace(1e-6, 1, 400)
    for tokens, colour in zip((8, 64, 512, 8192), SHADES, strict=True):
        gain = trust_region.horizon_guarantee(tv, tokens, 1.0)
        right.semilogx(tv, gain, color=colour, lw=1.7, label=f"H = {tokens}")
    right.axhline(0, color=GREY, lw=1)
    right.set_ylim(-0.4, 0.7)
    finish(
        right,
        "What is guaranteed within a radius",
        x="total variation α",
        y="gain, units of the largest advantage",
        legend="upper left",
    )
    return picture


def table(discounts: Sequence[float] = (0.9, 0.99, 0.999, 0.9999, 1.0)) -> str:
    """The radii at a few discounts, as Markdown.

    >>> print(table((1.0,)))
    | γ | limit, TV | best, TV | best, KL in nats |
    |---:|---:|---:|---:|
    | 1 | 0.0e+00 | 0.0e+00 | 0.0e+00 |
    """
    lines = ["| γ | limit, TV | best, TV | best, KL in nats |", "|---:|---:|---:|---:|"]
    for discount in discounts:
        best = trust_region.tv_radius(discount)
        numbers = (trust_region.tv_limit(discount), best, trust_region.kl_from_tv(best))
        cells = " | ".join(f"{float(number):.1e}" for number in numbers)
        lines.append(f"| {discount:g} | {cells} |")
    return "\n".join(lines)


def shared_budget(advantage: np.ndarray, *, delta: float = 0.25, clip: float = 0.2) -> Picture:
    """TRPO's problem on the samples of one state: its solution, and objectives along the way to it.

    Left, the best deviations of the ratios. Right, three objectives on the straight line from the
    old policy, 0, to that solution, 1, and on.

    Args:
      advantage: float[N], of the samples.
      delta: `δ`, the mean deviation that the state may have.
      clip: of PPO.
    """
    samples = len(advantage)
    order = np.argsort(-np.asarray(advantage))
    value_of = jnp.asarray(advantage, jnp.float32)[order]
    state = jnp.zeros(samples, jnp.int32)
    solution = trust_region.solve_tv_trpo(value_of, state, 1, delta=delta)
    picture, ((left, right),) = grid(1, 2, height=3.7)
    place = np.arange(samples)
    left.bar(place - 0.2, value_of, 0.38, color=GREY, label="advantage")
    left.bar(
        place + 0.2,
        solution,
        0.38,
        color=BLUE,
        hatch="///",
        edgecolor="white",
        label=f"best deviation r − 1, mean size {delta:g}",
    )
    left.axhline(0, color=GREY, lw=0.8)
    left.set_xticks(place, [str(number + 1) for number in place])
    finish(left, "TRPO on samples: greed", x="sample", y="advantage, deviation", legend="best")
    way = np.linspace(0, 2, 201).astype(np.float32)
    layout = make_layout(np.ones((1, samples), bool))
    for of, label, colour, dashes in (
        (gate("importance"), "no gate", GREY, ":"),
        (gate("ppo", clip_low=clip, clip_high=clip), f"PPO, clip {clip:g}", ORANGE, "--"),
        (gate("apc", delta=delta, level="trajectory"), f"APC, δ {delta:g}", BLUE, "-"),
    ):

        @jax.jit
        @jax.vmap
        def value(part: jax.Array, of=of) -> jax.Array:
            log_ratio = jnp.log(jnp.maximum(1 + part * solution, 1e-6))[None]
            gated = of(log_ratio, value_of[None], layout)
            return objective.surrogate(gated - 1, value_of[None], layout).value

        right.plot(way, value(way), dashes, color=colour, lw=1.8, label=label)
    right.axvline(1, color=GREEN, lw=1.2, ls="-.", label="TRPO's solution")
    finish(
        right,
        "Objectives on the way there and beyond",
        x="part of the way to TRPO's solution",
        y="gain over the old policy",
        legend="upper left",
    )
    return picture
