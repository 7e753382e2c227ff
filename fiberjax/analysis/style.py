"""How the pictures of this room look: one palette, one way to finish an axes, figures that show.

A `Picture` is a matplotlib figure that a notebook draws by itself when it is a cell's last value.
Only matplotlib's objects are used, no pyplot, so nothing global is touched. Colours are those of
`fiberjax.run.plots`, told apart with every common colour blindness; lines that share an axes differ
in their dashes too, so that they are told apart in print.
"""

import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, SymLogNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import Image

from fiberjax.run.plots import COLOURS, GREY, HEADING, ORDERED

BLUE, ORANGE, GREEN, PINK, SKY, GOLD, BLACK = COLOURS
SHADES = ORDERED[1:]
"""Four blues from light to dark, for what has an order."""

UP, DOWN = {"color": BLUE, "linestyle": "-"}, {"color": ORANGE, "linestyle": "--"}
"""Lines of good and of bad advantage."""

PADDING = "#D8D8D8"
"""Behind heat maps: where there is no token."""

DPI = 96
"""Of a picture in a notebook; small enough for ten of them in a file that is read as text."""


class Small:
    """A picture of a file, as a notebook shows it: small enough to be kept there."""

    def __init__(self, file: str | os.PathLike[str], *, width: int = 1000):
        """Reads a PNG.

        Args:
          file: of the picture.
          width: it is shrunk to, if it is wider, pixels.
        """
        with Image.open(file) as opened:
            drawn = opened.convert("RGB")
        drawn.thumbnail((width, 10 * width), Image.Resampling.LANCZOS)
        self._png, self._shape = _packed(drawn), drawn.size

    def __repr__(self) -> str:
        return "<Small {}x{}>".format(*self._shape)

    def _repr_png_(self) -> bytes:
        return self._png


class Picture(Figure):
    """A figure that a notebook shows."""

    def png(self, dpi: float = DPI) -> bytes:
        """The picture as a PNG of at most 256 colours, a third of the size of one of all."""
        drawn = io.BytesIO()
        self.savefig(drawn, format="png", dpi=dpi)
        return _packed(Image.open(drawn).convert("RGB"))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the picture as a PNG; returns the file."""
        file = Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(self.png())
        return file

    def _repr_png_(self) -> bytes:
        return self.png()


def grid(
    down: int, across: int, *, width: float = 10.0, height: float = 3.2, **shared: Any
) -> tuple[Picture, np.ndarray]:
    """An empty picture and its axes, [down, across].

    Args:
      down: rows of axes.
      across: columns of axes.
      width: of the picture, inches.
      height: of a row, inches.
      **shared: `sharex`, `sharey`, `width_ratios` and the like, as `Figure.subplots` takes them.
    """
    picture = Picture(
        figsize=(width, height * down), layout=ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.08)
    )
    picture.set_facecolor("white")
    return picture, picture.subplots(down, across, squeeze=False, **shared)


def finish(axes: Axes, title: str, *, x: str = "", y: str = "", legend: Any = None) -> None:
    """Labels an axes that has all its data.

    Args:
      axes: to label.
      title: heading.
      x: what runs from left to right, with its unit.
      y: what runs upwards, with its unit.
      legend: where the legend stands, such as "upper left"; none by default.
    """
    axes.set_title(title, loc="left", **(HEADING | {"fontsize": 9.5}))
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.tick_params(labelsize=8.5)
    axes.grid(visible=True, color="#E4E4E4", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if legend is not None:
        axes.legend(loc=legend, frameon=False, fontsize=8)


def signed_ticks(axes: Axes, values: Sequence[float], *, linear: float) -> None:
    """Makes the vertical axis linear within `±linear` and logarithmic beyond, with these ticks."""
    axes.set_yscale("symlog", linthresh=linear, linscale=0.8)
    axes.set_yticks(values, [f"{value:g}".replace("-", "−") for value in values])
    axes.minorticks_off()


def heat_map(
    axes: Axes,
    matrix: Any,
    title: str,
    *,
    bound: float,
    linear: float | None = None,
    across: Iterable[float] = (),
    down: Iterable[float] = (),
) -> AxesImage:
    """Draws a signed matrix: 0 in white, red above, blue below, NaN in grey; returns the image.

    Args:
      axes: to draw on.
      matrix: float[rows, columns].
      title: heading.
      bound: where the colours end, in the matrix' unit.
      linear: logarithmic beyond ± this; None is linear throughout.
      across: columns before which a thin line stands.
      down: rows before which one stands.
    """
    norm = (
        Normalize(-bound, bound) if linear is None else SymLogNorm(linear, vmin=-bound, vmax=bound)
    )
    shown = np.ma.masked_invalid(np.asarray(matrix, float))
    image = axes.imshow(shown, cmap="RdBu_r", norm=norm, aspect="auto", interpolation="nearest")
    axes.set_facecolor(PADDING)
    for edge in across:
        axes.axvline(edge - 0.5, color=GREY, linewidth=0.6)
    for edge in down:
        axes.axhline(edge - 0.5, color=GREY, linewidth=0.6)
    axes.set_title(title, loc="left", **(HEADING | {"fontsize": 9.5}))
    axes.tick_params(labelsize=8.5)
    return image


def colour_bar(picture: Picture, image: AxesImage, axes: Any, label: str) -> None:
    """Puts the legend of a heat map beside its axes."""
    bar = picture.colorbar(image, ax=axes, shrink=0.9, extend="both")
    bar.set_label(label, fontsize=9)
    bar.ax.tick_params(labelsize=8)


def _packed(drawn: Image.Image) -> bytes:
    """A picture as a PNG of at most 256 colours."""
    packed = io.BytesIO()
    drawn.quantize(256, dither=Image.Dither.NONE).save(packed, format="png", optimize=True)
    return packed.getvalue()


def beyond_budget(axes: Axes, budget: float) -> None:
    """A logarithmic axis beyond the budget, where drift goes far beyond it."""
    ends = axes.get_ylim()
    largest = max(map(abs, ends))
    if budget > 0 and largest > 8 * budget:
        axes.set_yscale("symlog", linthresh=budget, linscale=0.6)
        decades = budget * 10.0 ** np.arange(int(np.log10(largest / budget)) + 1)
        ticks = [tick for tick in (*-decades[::-1], 0.0, *decades) if ends[0] <= tick <= ends[1]]
        axes.set_yticks(ticks, [f"{tick:.3g}".replace("-", "−") for tick in ticks])
        axes.minorticks_off()
        axes.set_ylabel("nats, logarithmic beyond the budget", fontsize=9)
