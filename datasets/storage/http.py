"""Shards on a web server, read by range requests.

A web server is untrusted and may fail in any way. Each response must be the requested range of a file with unchanged
size and ETag; truncated responses are requested again from the byte reached.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator
from http.client import HTTPResponse, responses
from urllib.parse import urlsplit

from leoclr.datasets.errors import DataError, Missing
from leoclr.datasets.storage.addresses import shown
from leoclr.datasets.storage.connections import get
from leoclr.datasets.storage.retries import Patience, TryAgain, read_resuming

_CHUNK = 1 << 18
_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")
_NOTHING_LEFT = re.compile(r"bytes \*/([0-9]{1,18})")
_NO_TAG = uuid.uuid4().hex  # where a server does not say which file it is, no later process may take blocks for its own
_MAY_PASS = (408, 425, 429)


class _Empty(Exception):
    """The file has no bytes at all, so there is no range to ask for."""


class HttpStorage:
    """A file on a web server.

    Args:
        address: Without credentials; shown in errors.
        identity: What the file must still be; "" takes what is found first.
        patience: How long to wait, and how often to try.
        url: Gives the URL for each request, where that is not the address (signed ones expire).
        access_hint: What to look at when the server refuses access.
    """

    def __init__(
        self,
        address: str,
        identity: str = "",
        patience: Patience | None = None,
        url: Callable[[], str] | None = None,
        access_hint: str = "set LEOCLR_HTTP_AUTH, or renew what it holds",
    ) -> None:
        self._name = shown(address)
        self._identity = identity
        self._size = -1
        self._patience = patience or Patience()
        self._url = url or (lambda: address)
        self._access_hint = access_hint

    def size(self) -> int:
        if self._size < 0:
            self._ask()
        return self._size

    def identity(self) -> str:
        if not self._identity:
            self._ask()
        return self._identity

    def read(self, offset: int, length: int) -> bytes:
        if not length:
            return b""
        try:
            return read_resuming(self._name, offset, length, self._request, self._patience)
        except _Empty:
            raise DataError(f"{self._name}: is empty; it has changed") from None

    def close(self) -> None:
        """Nothing to do: connections belong to the process and serve all shards of a server."""

    def _ask(self) -> None:
        """Learn size and identity from the first byte. HEAD would do, but signed URLs are good for GET alone, and
        only a range shows that the server answers ranges."""
        try:
            read_resuming(self._name, 0, 1, self._request, self._patience)
        except _Empty:
            pass

    def _request(self, offset: int, length: int) -> Iterator[bytes]:
        asked = f"bytes={offset}-{offset + length - 1}"
        with get(self._url(), self._name, {"Range": asked}, self._patience) as response:
            left = self._checked(response, offset, length)
            while left and (chunk := response.read1(min(left, _CHUNK))):
                left -= len(chunk)
                if left < 0:  # a chunk of a negative size makes http.client read on
                    raise DataError(f"{self._name}: the answer contradicts itself on its length")
                yield chunk
            if not left:
                response.read1(1)  # meets the end of the body, so that the connection can be kept

    def _checked(self, response: HTTPResponse, offset: int, length: int) -> int:
        """The number of bytes that follow, once the answer is found to be what was asked for."""
        if response.status != 206:
            self._refused(response)
        match = _RANGE.fullmatch(response.getheader("Content-Range", ""))
        if match is None:
            raise DataError(f"{self._name}: a partial answer that does not say which part it is")
        first, last, size = (int(number) for number in match.groups())
        self._same(response, size)
        declared = response.getheader("Content-Length")
        if first != offset or not first <= last < min(offset + length, size):
            raise DataError(f"{self._name}: asked for bytes {offset}-{offset + length - 1}, got {first}-{last}")
        if declared is not None and declared != str(last - first + 1):
            raise DataError(f"{self._name}: the answer contradicts itself on its length")
        if response.getheader("Content-Encoding", "identity") != "identity":
            raise DataError(f"{self._name}: the server recodes the file; shards must come as they are")
        return last - first + 1

    def _same(self, response: HTTPResponse, size: int) -> None:
        """Note what the file is, or see that it still is."""
        tag = response.getheader("ETag", "").removeprefix("W/") or response.getheader("Last-Modified", "") or _NO_TAG
        identity = f"{tag}-{size}"
        if self._identity and identity != self._identity:
            raise DataError(f"{self._name} has changed on the server since it was first read")
        self._identity, self._size = identity, size

    def _refused(self, response: HTTPResponse) -> None:
        status = response.status
        answer = f"{status} {responses.get(status, '')}".strip()
        if status in (404, 410):
            raise Missing(f"{self._name}: there is nothing there ({answer})")
        if status in (401, 403):
            raise DataError(f"{self._name}: access refused ({answer}); {self._access_hint}")
        if status in _MAY_PASS or status >= 500:
            asked = response.getheader("Retry-After", "")
            raise TryAgain(f"the server answered {answer}", float(asked) if asked.isdecimal() else 0.0)
        nothing_left = _NOTHING_LEFT.fullmatch(response.getheader("Content-Range", "")) if status == 416 else None
        if nothing_left or (status == 200 and response.getheader("Content-Length") == "0"):
            self._same(response, int(nothing_left[1]) if nothing_left else 0)
            if self._size == 0:
                raise _Empty
            raise DataError(f"{self._name}: ends before the bytes that were asked for")
        if status == 200:
            server = urlsplit(self._name).netloc
            raise DataError(f"{self._name}: {server} does not answer range requests, which shards are read by")
        region = response.getheader("x-amz-bucket-region", "")
        if region.replace("-", "").isalnum():
            raise DataError(f"{self._name}: the bucket is in another region; set AWS_REGION={region}")
        raise DataError(f"{self._name}: the server answered {answer}")
