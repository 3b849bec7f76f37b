"""HTML in which everything is escaped unless it was made here. Text in, markup out."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any


class Markup(str):
    """Text that is HTML already and is not escaped again; only this folder makes it."""

    __slots__ = ()


def tag(name: str, *children: str, attributes: Mapping[str, str] | None = None) -> Markup:
    """The element `name` (`"td"`, or `"td.number"` with a class) around its children; text among them is escaped.

    >>> tag("td.number", "<b>", tag("br"), attributes={"title": 'a "quoted" name'})
    '<td class="number" title="a &quot;quoted&quot; name">&lt;b&gt;<br></td>'
    """
    element, _, classes = name.partition(".")
    given = ({"class": classes.replace(".", " ")} if classes else {}) | dict(attributes or {})
    text = "".join(f' {key}="{html.escape(value)}"' for key, value in given.items())
    if element in ("br", "img"):
        return Markup(f"<{element}{text}>")
    return Markup(f"<{element}{text}>{join(children)}</{element}>")


def join(children: Iterable[str]) -> Markup:
    """The children behind each other, text among them escaped.

    >>> join(["a < b", tag("br")])
    'a &lt; b<br>'
    """
    return Markup("".join(child if isinstance(child, Markup) else html.escape(child) for child in children))


def table(head: Iterable[str], rows: Iterable[Iterable[str]], *, numbers: bool = False) -> Markup:
    """A table that scrolls sideways where it must; with `numbers` all columns but the first are aligned as numbers.

    >>> str(table(["a", "b"], [["x", "1"]], numbers=True)).count('class="number"')
    2
    """

    def row(kind: str, cells: Iterable[str]) -> Markup:
        return tag("tr", *(tag(f"{kind}.number" if numbers and index else kind, cell) for index, cell in enumerate(cells)))

    titles = list(head)
    top = [tag("thead", row("th", titles))] if titles else []
    return tag("div.scroll", tag("table", *top, tag("tbody", *(row("td", cells) for cells in rows))))


def embedded(data: Any) -> Markup:
    r"""Data as JSON that may stand inside a `<script>`: no character of it can end the element or begin a comment.

    >>> embedded({"name": "</script>"})
    '{"name":"\\u003c/script\\u003e"}'
    """
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def number(value: float | None) -> str:
    """A number as people read it: four digits, thousands apart, a real minus sign; nothing for None and NaN.

    >>> number(487.25), number(100_000), number(-0.01234), number(float("nan")), number(1e-9)
    ('487.2', '100,000', '−0.01234', '', '1e−09')
    """
    if value is None or math.isnan(value):
        return ""
    large = 1000 <= abs(value) < 1e12 or (abs(value) < 1000 and value == int(value))
    return (f"{value:,.0f}" if large else f"{value:.4g}").replace("-", "−")


def duration(seconds: float) -> str:
    """A length of time in its two largest units.

    >>> duration(8.24), duration(75), duration(7_380)
    ('8.2 s', '1 min 15 s', '2 h 3 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"
