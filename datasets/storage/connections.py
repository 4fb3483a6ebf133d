"""GET requests over persistent connections, with deadlines and safe redirects.

The standard library's http.client, TLS certificates verified, through a proxy where one is named. A connection is used
by one thread at a time and then kept for the next; a forked process opens its own.
"""

from __future__ import annotations

import atexit
import functools
import os
import socket
import ssl
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from leoclr.datasets.errors import DataError
from leoclr.datasets.storage.credentials import credential_for
from leoclr.datasets.storage.proxies import new_connection, proxy_for, proxy_headers
from leoclr.datasets.storage.retries import Patience, TryAgain

MAX_REDIRECTS = 5
_CONNECT_SECONDS = 10.0
_REDIRECTS = (301, 302, 303, 307, 308)
_IDLE_PER_SERVER = 32
_SAFE = "/%:@!$&'()*+,;=~"

_Server = tuple[int, str, str]  # process, scheme, host and port
_idle: dict[_Server, deque[HTTPConnection]] = {}


@contextmanager
def get(url: str, name: str, headers: Mapping[str, str], patience: Patience) -> Iterator[HTTPResponse]:
    """The answer to a GET, its body still to be read inside the block.

    Args:
        url: May hold a signature in its query; it is never shown.
        name: The address as errors show it.

    Raises:
        TryAgain: No connection, or no answer in time. Also from the block, when its reading fails so.
        DataError: A redirect to somewhere it must not go, or a certificate that does not hold.
    """
    for _ in range(MAX_REDIRECTS + 1):
        parts = _http_url(url, name)
        with _answer(parts, name, headers, patience) as response:
            target = response.getheader("Location")
            if response.status not in _REDIRECTS or target is None:
                yield response
                return
        url = _redirected(url, target, name)
    raise DataError(f"{name}: redirected more than {MAX_REDIRECTS} times")


@contextmanager
def _answer(parts: SplitResult, name: str, headers: Mapping[str, str], patience: Patience) -> Iterator[HTTPResponse]:
    server = (os.getpid(), parts.scheme, parts.netloc)
    connection: HTTPConnection | None = None
    response: HTTPResponse | None = None
    whole = False
    try:
        with _failures_named(name, patience):
            connection = _connected(server, parts, patience)
            with _deadline(connection, patience.request):
                response = _send(connection, parts, headers)
                yield response
            whole = not response.will_close and (response.isclosed() or response.length == 0)
    finally:
        if response is not None:
            response.close()
        if connection is not None:
            _keep(server, connection) if whole else connection.close()


@contextmanager
def _failures_named(name: str, patience: Patience) -> Iterator[None]:
    """Errors of sockets and of http.client as ours. Their own text is left out: it may quote the URL."""
    try:
        yield
    except TimeoutError:
        raise TryAgain(f"not a byte for {patience.silence:g} s") from None
    except ssl.SSLCertVerificationError as error:
        raise DataError(f"{name}: the server's certificate does not hold ({error.verify_message})") from None
    except OSError as error:
        raise TryAgain(error.strerror or type(error).__name__) from None
    except HTTPException as error:
        raise TryAgain(f"a broken answer ({type(error).__name__})") from None
    except UnicodeError:
        raise DataError(f"{name}: the server's name is not one") from None


def _http_url(url: str, name: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise DataError(f"{name}: not an address of a web server")
    return parts


def _redirected(url: str, target: str, name: str) -> str:
    """Where a redirect leads: to http or https, and never from https to http."""
    try:
        following = urljoin(url, target)
    except ValueError:
        raise DataError(f"{name}: redirected to something that is no address") from None
    before, after = urlsplit(url).scheme, urlsplit(following).scheme
    if after not in ("http", "https") or (before, after) == ("https", "http"):
        raise DataError(f"{name}: refused a redirect from {before} to {after}")
    return following


def _connected(server: _Server, parts: SplitResult, patience: Patience) -> HTTPConnection:
    """An idle connection that is still open, or a new one."""
    waiting = _idle.setdefault(server, deque())
    while True:
        try:
            connection = waiting.pop()
        except IndexError:
            break
        if _still_open(connection):
            return connection
        connection.close()
    connection = new_connection(parts, _CONNECT_SECONDS, _tls())
    try:
        connection.connect()
    except TimeoutError:
        raise TryAgain(f"no connection within {_CONNECT_SECONDS:g} s") from None
    connection.sock.settimeout(patience.silence)
    return connection


def _still_open(connection: HTTPConnection) -> bool:
    """Whether the server has neither closed an idle connection nor sent what nobody asked for."""
    if connection.sock is None:
        return False
    timeout = connection.sock.gettimeout()
    try:
        connection.sock.settimeout(0)
        connection.sock.recv(1)  # TLS sockets know no MSG_PEEK; any byte or the end makes the connection unusable
    except (BlockingIOError, ssl.SSLWantReadError):
        connection.sock.settimeout(timeout)
        return True
    except OSError:
        pass
    return False


def _keep(server: _Server, connection: HTTPConnection) -> None:
    waiting = _idle.setdefault(server, deque())
    if len(waiting) < _IDLE_PER_SERVER:
        waiting.append(connection)
    else:
        connection.close()


@atexit.register
def close_idle() -> None:
    """Close the connections that nobody uses now."""
    for waiting in _idle.values():
        while waiting:
            waiting.pop().close()


def _send(connection: HTTPConnection, parts: SplitResult, headers: Mapping[str, str]) -> HTTPResponse:
    credential = credential_for(parts)
    query = parts.query or (credential[1:] if credential.startswith("?") else "")
    target = quote(parts.path or "/", safe=_SAFE) + (f"?{quote(query, safe=_SAFE + '?')}" if query else "")
    sent = {"Accept-Encoding": "identity", "User-Agent": "leoclr", **headers}
    if credential and not credential.startswith("?"):
        sent["Authorization"] = credential
    if parts.scheme == "http" and (proxy := proxy_for(parts)):  # https goes through a tunnel and needs none of this
        target, sent = f"http://{parts.netloc}{target}", {**sent, **proxy_headers(proxy)}
    connection.request("GET", target, headers=sent)
    return connection.getresponse()


@contextmanager
def _deadline(connection: HTTPConnection, seconds: float) -> Iterator[None]:
    """End a connection that takes too long in all, wherever its reader waits: a server may drip byte by byte."""
    sock = connection.sock
    passed = threading.Event()

    def end() -> None:
        passed.set()
        with suppress(OSError):
            socket.socket.shutdown(sock, socket.SHUT_RDWR)  # TLS's own would leave its reader with ciphertext

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    except (OSError, HTTPException):
        if not passed.is_set():
            raise
    finally:
        timer.cancel()
    if passed.is_set():  # where the reader takes it for the end of the answer, too
        raise TryAgain(f"not done after {seconds:g} s")


@functools.cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()
