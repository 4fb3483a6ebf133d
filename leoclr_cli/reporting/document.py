"""An HTML document in one file that makes no network requests.

Its content security policy forbids scripts and requests, whatever its text contains.
"""

from __future__ import annotations

from leoclr.cli.reporting.markup import Html, element, join
from leoclr.cli.reporting.style import style_sheet

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def document(title: str, *body: Html) -> Html:
    """The whole document."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", style_sheet()),
    )
    return join(Html("<!doctype html>\n"), element("html", head, element("body", *body), lang="en"))
