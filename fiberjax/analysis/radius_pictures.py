"""Pictures of the radii that classical trust regions guarantee, and of what is left of them.

The functions drawn are those of `fiberjax.trust_region`.
"""

from collections.abc import Sequence

import numpy as np

from fiberjax import trust_region
from fiberjax.analysis.style import BLUE, GREY, ORANGE, SHADES, Picture, finish, grid


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
