"""Build HTML and SVG from Python values.

Everything that is not markup already is escaped, because the text comes from untrusted files."""

from __future__ import annotations

import html
from typing import Any

_VOID = frozenset({"meta", "img", "br", "col"})
_CONTROL = {number: "\N{REPLACEMENT CHARACTER}" for number in (*range(9), 11, 12, *range(14, 32), 127)}


class Html(str):
    """Text that is markup: made by `element`, `join` and constants of the program, never out of a file."""


def element(name: str, /, *children: object, **attributes: object) -> Html:
    """An element. Children that are not Html are escaped, and so are all attributes.

    Args:
        attributes: Underscores stand for dashes, a trailing one is dropped (`class_`); None leaves one out.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Html(f"<{name}{written}>")
    return Html(f"<{name}{written}>{join(*children)}</{name}>")


def join(*children: object) -> Html:
    """Children one behind the other, those that are not Html escaped."""
    return Html("".join(child if isinstance(child, Html) else escape(child) for child in children))


def escape(value: object) -> str:
    """A value as text without any meaning to a browser."""
    return html.escape(str(value).translate(_CONTROL), quote=True)


def table(headings: list[object], rows: list[list[object]], **attributes: Any) -> Html:
    """A table with a row of headings; the first cell of each row is its heading."""
    head = element("tr", *(element("th", heading, scope="col") for heading in headings))
    body = [
        element("tr", element("th", row[0], scope="row"), *(element("td", cell) for cell in row[1:])) for row in rows
    ]
    whole = element("table", element("thead", head), element("tbody", *body), **attributes)
    return element("div", whole, class_="scroll")
