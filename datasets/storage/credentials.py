"""Credentials for HTTP servers, read from the environment variable LEOCLR_HTTP_AUTH only.

One line for each server: its origin, `=`, and either a query that is added to every request (signed addresses) or the
value of the Authorization header:

    https://account.blob.core.windows.net=?sv=2025-01-05&sig=...
    https://data.example.org=Bearer eyJhbGciOi...

A line holds for that scheme, host and port alone: a redirect to another host, or from https to http, takes nothing
along. S3 takes its credentials as boto3 finds them (AWS_ACCESS_KEY_ID, AWS_PROFILE, an instance's role, ...).
"""

from __future__ import annotations

import os
from urllib.parse import SplitResult, urlsplit

from leoclr.datasets.errors import DataError

VARIABLE = "LEOCLR_HTTP_AUTH"
_DEFAULT_PORTS = {"https": 443, "http": 80}


def credential_for(url: SplitResult) -> str:
    """What LEOCLR_HTTP_AUTH says for the server of `url`: `?QUERY`, a header's value, or "" for nothing."""
    origin = _origin(url)
    for number, line in enumerate(os.environ.get(VARIABLE, "").splitlines(), start=1):
        server, equals, value = line.strip().partition("=")
        if not server:
            continue
        if not equals or not value.strip() or not value.isprintable() or not value.isascii():
            raise DataError(f"{VARIABLE}, line {number}: expected https://HOST=?QUERY or https://HOST=Bearer TOKEN")
        if _origin(_split(server, number)) == origin:
            return value.strip()
    return ""


def _split(server: str, number: int) -> SplitResult:
    try:
        parts = urlsplit(server)
        plain = parts.scheme in _DEFAULT_PORTS and parts.hostname and "@" not in parts.netloc
        parts.port  # noqa: B018 - raises where it is not a number
    except ValueError:
        plain = False
    if not plain or parts.path.strip("/"):
        raise DataError(f"{VARIABLE}, line {number}: before the = stands a server, such as https://data.example.org")
    return parts


def _origin(url: SplitResult) -> tuple[str, str, int]:
    return url.scheme, (url.hostname or "").lower(), url.port or _DEFAULT_PORTS[url.scheme]
