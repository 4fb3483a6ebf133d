"""The proxy through which a server is reached, where the environment names one (HTTPS_PROXY, HTTP_PROXY, NO_PROXY)."""

from __future__ import annotations

import ssl
from base64 import b64encode
from http.client import HTTPConnection, HTTPSConnection
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from leoclr.datasets.errors import DataError


def proxy_for(url: SplitResult) -> SplitResult | None:
    """The address of the proxy for a URL; None where the server is reached directly."""
    host = url.netloc.rpartition("@")[2]
    address = getproxies().get(url.scheme)
    if not address or proxy_bypass(host):
        return None
    try:
        proxy = urlsplit(address if "://" in address else f"http://{address}")
        valid = proxy.scheme == "http" and proxy.hostname and proxy.port != 0
    except ValueError:
        valid = False
    if not valid:  # its text may hold a password
        raise DataError(f"{url.scheme.upper()}_PROXY: expected http://HOST:PORT or http://USER:PASSWORD@HOST:PORT")
    return proxy


def new_connection(url: SplitResult, seconds: float, tls: ssl.SSLContext) -> HTTPConnection:
    """A connection to the server of a URL, or to its proxy, not yet open.

    Args:
        seconds: How long opening it may take.
    """
    proxy = proxy_for(url)
    host, port = (proxy or url).hostname or "", (proxy or url).port
    if url.scheme == "http":
        return HTTPConnection(host, port, timeout=seconds)
    connection = HTTPSConnection(host, port or (80 if proxy else None), timeout=seconds, context=tls)
    if proxy:
        connection.set_tunnel(url.hostname or "", url.port or 443, proxy_headers(proxy))
    return connection


def proxy_headers(proxy: SplitResult) -> dict[str, str]:
    """What a proxy is told about who asks."""
    if not proxy.username:
        return {}
    credential = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": f"Basic {b64encode(credential.encode()).decode()}"}
