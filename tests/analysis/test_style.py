"""Pictures: their files, axes and colours."""

import io

import numpy as np
import pytest
from matplotlib.colors import SymLogNorm
from PIL import Image

from fiberjax.analysis import style


def drawn(picture):
    return Image.open(io.BytesIO(picture.png(dpi=40)))


def test_a_picture_shows_itself_small_and_is_saved(tmp_path):
    picture, ((axes,),) = style.grid(1, 1, width=4, height=3)
    axes.plot([0, 1], [0, 1], label="line")
    style.finish(axes, "A title", x="x, nats", y="y", legend="best")
    image = Image.open(io.BytesIO(picture._repr_png_()))
    assert image.mode == "P" and image.size == (4 * style.DPI, 3 * style.DPI)
    with Image.open(picture.save(tmp_path / "deep" / "a.png")) as saved:
        assert saved.size == image.size
    assert axes.get_xlabel() == "x, nats" and axes.get_title(loc="left") == "A title"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["line"]


def test_a_heat_map_is_white_at_0_and_grey_where_there_is_nothing():
    picture, ((axes,),) = style.grid(1, 1, width=3, height=3)
    matrix = np.array([[1.0, 0.0], [-1.0, np.nan]])
    image = style.heat_map(axes, matrix, "map", bound=1.0, across=(1,), down=(1,))
    colours = image.to_rgba(image.get_array())
    red, white, blue = colours[0, 0], colours[0, 1], colours[1, 0]
    assert red[0] > red[2] and blue[2] > blue[0] and min(white[:3]) > 0.95
    assert colours[1, 1, 3] == 0 and axes.get_facecolor()[:3] == pytest.approx(
        (0.847,) * 3, abs=1e-2
    )
    assert len(axes.lines) == 2
    style.colour_bar(picture, image, axes, "unit")
    assert [of.get_ylabel() for of in picture.axes] == ["", "unit"]
    scaled = style.heat_map(axes, matrix, "map", bound=1.0, linear=0.1)
    assert isinstance(scaled.norm, SymLogNorm)


def test_ticks_of_a_signed_axis_are_those_that_are_asked_for():
    _, ((axes,),) = style.grid(1, 1)
    axes.plot([0, 1], [-8, 8])
    style.signed_ticks(axes, (-8, -0.5, 0, 8), linear=1.0)
    assert [text.get_text() for text in axes.get_yticklabels()] == ["−8", "−0.5", "0", "8"]


def test_a_file_is_shrunk_and_never_enlarged(tmp_path):
    for width, expected in ((3000, 1000), (400, 400)):
        Image.new("RGB", (width, width // 2), "white").save(tmp_path / "a.png")
        small = style.Small(tmp_path / "a.png")
        image = Image.open(io.BytesIO(small._repr_png_()))
        assert image.size == (expected, expected // 2) and image.mode == "P"
        assert repr(small) == f"<Small {expected}x{expected // 2}>"
