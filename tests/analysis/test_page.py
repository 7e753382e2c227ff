"""The page: its numbers are the library's, and no text that it shows is ever markup."""

import base64
import hashlib
import html.parser
import json
import re
import struct
import zlib

import looked
import numpy as np
import pytest

from fiberjax.analysis import blocks, page, why
from fiberjax.run.shown import visible


@pytest.fixture(scope="module")
def text():
    return page.page(
        looked.under("fiberpo_domain"),
        title=f"run {looked.HOSTILE[2]}",
        texts=looked.texts(),
        notes=[looked.HOSTILE[1]],
    )


class Elements(html.parser.HTMLParser):
    """The elements of a page, with what stands in its scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.found, self.inside = [], {}
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data):
        if self.found and self.found[-1][0] in ("script", "style", "title"):
            tag, attributes = self.found[-1]
            self.inside.setdefault((tag, attributes.get("id")), data)


def unpacked(block):
    """What a block holds: its JSON, and its numbers."""
    raw = zlib.decompress(base64.b64decode(block))
    (length,) = struct.unpack("<I", raw[:4])
    return json.loads(raw[4 : 4 + length]), np.frombuffer(raw[4 + length :], "<f4")


def test_the_numbers_of_a_page_are_the_library_s_bit_by_bit():
    found = looked.under("fiberpo_domain")
    data = blocks.Pages(found, looked.texts())
    names = [of.name for of in data.quantities]
    assert names[:4] == ["coefficient", "log_ratio", "advantage", "gated_ratio"]
    assert {"part open", "part domain", "part token", "entropy", "sampler_gap"} <= set(names)
    for rows, block in zip(data.groups, data.blocks(), strict=True):
        said, numbers = unpacked(block)
        at = 0
        for row, trajectory in zip(rows, said["trajectories"], strict=True):
            counted = np.flatnonzero(found.kept.mask[row])
            assert trajectory["counted"] == counted.tolist()
            assert trajectory["fate"] == found.fate[row, counted].tolist()
            for of in data.quantities:
                part = numbers[at : at + len(counted)]
                np.testing.assert_array_equal(part, of.values[row, counted])
                at += len(counted)
            for column, steps in zip(counted, trajectory["why"], strict=True):
                told = [tuple(said["sentences"][k]) for k in steps]
                assert told == [tuple(step) for step in why.why(found, row, int(column))]
        assert at == len(numbers)
    quantity = {of.name: of.values for of in data.quantities}
    np.testing.assert_array_equal(quantity["coefficient"], found.coefficient)
    np.testing.assert_array_equal(quantity["log_ratio"], found.kept.log_ratio)


def test_the_index_is_of_every_trajectory():
    found = looked.under("gspo")
    index = blocks.Pages(found).index()
    assert [group["rows"] for group in index["groups"]] == [
        list(range(4 * g, 4 * g + 4)) for g in range(4)
    ]
    rows = index["rows"]
    assert [of["reward"] for of in rows] == found.kept.table["reward"].to_pylist()
    assert [index["regimes"][of["regime"]] for of in rows] == found.regime
    assert [of["counted"] for of in rows] == found.kept.mask.sum(axis=1).tolist()
    np.testing.assert_array_equal([of["drift"] for of in rows], found.drift())
    assert sum(of["vanished"] for of in rows) == (found.fate == 4).sum() > 0
    assert {index["domains"][of["domain"]] for of in rows} == {"sort", visible(looked.HOSTILE[1])}
    full = {of["name"]: of["full"] for of in index["quantities"]}
    sizes = np.abs(found.coefficient[found.coefficient != 0])
    assert full["coefficient"] == pytest.approx(np.quantile(sizes, 0.98))
    assert "e+" not in page.escaped(index) and "NaN" not in page.escaped(index)


def test_texts_are_no_markup(text):
    elements = Elements(text).found
    tags = [tag for tag, _ in elements]
    # The index, a block a group, and the page's own.
    assert tags.count("script") == 6 and tags.count("style") == 1
    assert not {"img", "svg", "iframe", "link", "object", "b"} & set(tags)
    assert not [name for _, of in elements for name in of if name.startswith("on")]
    assert not [of for _, of in elements if "src" in of or of.get("href", "#")[0] != "#"]
    assert text.count("{{SCRIPT}}") == 0 and "\u202e" not in text and "\x1b" not in text
    assert json.loads(Elements(text).inside["script", "index"])["gate"].startswith("fgh: ")


def test_blocks_show_what_does_not_print(text):
    said = unpacked(re.search(r'id="block-0">([^<]*)<', text)[1])[0]
    written = [piece for of in said["trajectories"] for piece in of["texts"]]
    assert visible(looked.HOSTILE[3]) in written and "⟨U+202E⟩gnissim␛[2J␊" in written
    assert looked.HOSTILE[0] in written and said["prompt"] == f"{looked.HOSTILE[0]} 0"


def test_the_policy_allows_the_page_s_own_script_and_style_alone(text):
    found = Elements(text)
    content = next(of["content"] for _, of in found.found if "http-equiv" in of)
    directives = dict(part.strip().split(" ", 1) for part in content.split(";"))
    assert directives["default-src"] == directives["base-uri"] == "'none'"
    for tag, directive in (("script", "script-src"), ("style", "style-src")):
        inside = found.inside[tag, None].encode()
        digest = base64.b64encode(hashlib.sha256(inside).digest()).decode()
        assert directives[directive] == f"'sha256-{digest}'"
    script = found.inside["script", None]
    for word in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "fetch("):
        assert word not in script


def test_pieces_put_a_character_where_it_is_whole():
    class Bytes:
        """A token a byte of UTF-8."""

        end_ids = (0,)

        def decode(self, ids):
            return bytes(ids).decode("utf-8", "replace")

    ids = [*"aß…".encode(), 0]
    assert blocks.pieces(Bytes(), ids) == ["a", "", "ß", "", "", "…", blocks.END]
    assert blocks.pieces(Bytes(), [97, 0xE2, 0x80]) == ["a", "", "\ufffd"]


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"row 0 has \d tokens and 0 texts"):
        blocks.Pages(looked.under("gspo"), [[]] * looked.ROWS)


def test_a_page_is_written_whole(tmp_path):
    path = page.write(tmp_path / "look" / "a.html", "<p>ß</p>")
    assert path.read_text(encoding="utf-8") == "<p>ß</p>"
    assert [file.name for file in path.parent.iterdir()] == ["a.html"]
