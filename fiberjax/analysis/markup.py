"""Pages that obey no text: HTML is made of elements, and whatever else is put in is escaped.

A page stands for itself: no script, no request, pictures within it, and a policy that forbids the
rest. Characters that are not printed as themselves stand as signs (`run.shown.visible`).
"""

import base64
import html
from collections.abc import Iterable, Sequence
from typing import Any

from fiberjax.run.shown import visible


class Html(str):
    """Markup that is put into a page as it is; made by `element` and `joined` alone."""

    __slots__ = ()


_EMPTY = ("img", "meta")


def element(tag: str, *children: Any, **attributes: Any) -> Html:
    r"""An element; children that are no `Html` are texts.

    Args:
      tag: its name.
      *children: in order.
      **attributes: `class_` is `class`; one that is None is left out.

    >>> element("p", "a<b\x07", class_='"x')
    '<p class="&quot;x">a&lt;b␇</p>'
    """
    given = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(visible(str(value)))}"'
        for name, value in attributes.items()
        if value is not None
    )
    if tag in _EMPTY:
        return Html(f"<{tag}{given}>")
    return Html(f"<{tag}{given}>{joined(children)}</{tag}>")


def joined(parts: Iterable[Any]) -> Html:
    """Parts one after the other; those that are no `Html` are texts."""
    return Html(
        "".join(
            part if isinstance(part, Html) else html.escape(visible(str(part))) for part in parts
        )
    )


def lines(text: str) -> Html:
    """A text of several lines, each line break kept."""
    return Html("\n".join(joined([line]) for line in text.split("\n")))


def table(header: Sequence[Any], rows: Iterable[Sequence[Any]], *, numbers: int = 0) -> Html:
    """A table that scrolls within the page; cells that are no `Html` are texts.

    Args:
      header: of the columns.
      rows: of cells.
      numbers: how many of the last columns are set to the right.
    """

    def row(tag: str, cells: Sequence[Any]) -> Html:
        first = len(cells) - numbers
        return element(
            "tr",
            *(
                element(tag, cell, class_="number" if at >= first else None)
                for at, cell in enumerate(cells)
            ),
        )

    head = element("thead", row("th", header))
    body = element("tbody", *(row("td", cells) for cells in rows))
    return element("div", element("table", head, body), class_="wide")


def picture(png: bytes, title: str, width: int) -> Html:
    """A picture within the page, `width` CSS pixels wide where there is room."""
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return element("img", src=source, alt=title, width=str(width), loading="lazy")


def page(title: str, *parts: Html) -> str:
    """A whole page."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", Html(STYLE)),
    )
    body = element("body", element("main", *parts))
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


STYLE = """
:root { color-scheme: light dark;
  --ink: #1a1a1a; --soft: #595959; --line: #d9d9d9; --paper: #ffffff; --shade: #f5f6f8;
  --warn: #8a4b00; --warnpaper: #fdf3e4; --good: #00623f; --bad: #a03000; --link: #0b57a4; }
@media (prefers-color-scheme: dark) { :root {
  --ink: #e8e8e8; --soft: #adadad; --line: #3d4148; --paper: #16181c; --shade: #202329;
  --warn: #f0b35e; --warnpaper: #2d2415; --good: #58c998; --bad: #ff9a6b; --link: #7db7f5; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 28px 24px 80px; }
h1 { font-size: 26px; margin: 0 0 2px; line-height: 1.25; }
h2 { font-size: 19px; margin: 44px 0 8px; padding-top: 14px; border-top: 1px solid var(--line); }
h3 { font-size: 15px; margin: 22px 0 6px; }
p { margin: 6px 0; max-width: 78ch; }
ul { margin: 6px 0; padding-left: 22px; max-width: 84ch; }
a { color: var(--link); }
nav { margin: 12px 0 0; font-size: 13.5px; display: flex; flex-wrap: wrap; gap: 4px 16px; }
.soft { color: var(--soft); font-size: 13.5px; }
.summary { background: var(--shade); border-radius: 8px; padding: 12px 18px; margin: 16px 0; }
.wide { overflow-x: auto; margin: 8px 0; }
table { border-collapse: collapse; font-size: 13.5px; }
th, td { text-align: left; vertical-align: top; padding: 4px 14px 4px 0;
  border-bottom: 1px solid var(--line); overflow-wrap: anywhere; min-width: 5ch; max-width: 52ch; }
th:first-child, td:first-child { min-width: 11ch; }
th { font-weight: 600; color: var(--soft); overflow-wrap: normal; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.whole td { font-weight: 600; }
.warning { background: var(--warnpaper); border-left: 4px solid var(--warn); border-radius: 4px;
  padding: 8px 14px; margin: 8px 0; max-width: 92ch; }
.warning b { color: var(--warn); }
.warning p { margin: 2px 0; }
.up { color: var(--good); } .down { color: var(--bad); }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 390px), 1fr));
  gap: 14px; margin: 10px 0; }
figure { margin: 0; } figure.one { margin: 10px 0; }
figure img { display: block; max-width: 100%; height: auto; background: #fff;
  border: 1px solid var(--line); border-radius: 6px; padding: 6px; }
figcaption { font-size: 13px; color: var(--soft); margin-top: 4px; max-width: 80ch; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 14px; margin: 10px 0 18px; }
@media (max-width: 760px) { .pair { grid-template-columns: 1fr; } }
.sample { background: var(--shade); border-radius: 6px; padding: 8px 12px; min-width: 0; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 4px 0; max-height: 22em;
  overflow-y: auto; font: 12.5px/1.45 ui-monospace, "DejaVu Sans Mono", monospace; }
code { font: 0.92em ui-monospace, "DejaVu Sans Mono", monospace; }
summary { cursor: pointer; color: var(--link); }
@media print { main { max-width: none; padding: 0; } pre { max-height: none; }
  figure, .warning, .pair { break-inside: avoid; } }
"""
