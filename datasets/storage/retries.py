"""Retry requests after temporary faults, from the byte reached."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from leoclr.datasets.errors import DataError
from leoclr.datasets.storage.outages import tell_of_attempt


class TryAgain(Exception):
    """A request failed in a way that may pass. The text is the reason; `wait` is what the server asks for, seconds."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


@dataclass(frozen=True)
class Patience:
    """How long a server is waited for. The defaults ride out a minute without an answer, and end within ten.

    Attributes:
        attempts: Requests in a row that bring less than a MiB before giving up; each continues where the previous one
            was cut.
        first_wait, longest_wait: Seconds between attempts; the wait doubles, and varies by half, so that many
            processes do not come back at the same instant.
        silence: Seconds without a byte after which a connection counts as dead.
        request: Seconds that one request may take in all, against a server that drips.
        quiet: Seconds after which a person is told of further attempts.
    """

    attempts: int = 8
    first_wait: float = 0.5
    longest_wait: float = 30.0
    silence: float = 30.0
    request: float = 60.0
    quiet: float = 1.0

    def wait(self, attempt: int, asked: float) -> float:
        """Seconds before the attempt after this one, counted from 0."""
        return max(min(asked, self.longest_wait), self._backoff(attempt))

    def _backoff(self, attempt: int) -> float:
        return float(min(self.longest_wait, self.first_wait * 2**attempt)) * _JITTER.uniform(0.5, 1.0)


_PROGRESS = 1 << 20  # bytes after which a request was worth it: a large file may take many
_JITTER = random.Random()  # of its own: nobody else's random numbers depend on how a server behaved


def read_resuming(
    name: str, offset: int, length: int, request: Callable[[int, int], Iterator[bytes]], patience: Patience
) -> bytes:
    """The bytes from `offset`, exactly `length` of them.

    Args:
        name: The address as it may be shown.
        request: Called with the offset and length of what is still missing; yields bytes as they come, and may end
            early. TryAgain from it means another attempt, any other exception is final.

    Raises:
        DataError: The last attempt failed too; it says how.
    """
    data = bytearray()
    attempt, began = 0, time.monotonic()
    while True:
        asked, before = 0.0, len(data)
        try:
            for chunk in request(offset + len(data), length - len(data)):
                data += chunk
            reason = f"the connection ended after {len(data):,} of {length:,} bytes"
        except TryAgain as error:
            reason, asked = str(error), error.wait
        if len(data) == length:
            return bytes(data)
        if len(data) - before >= _PROGRESS:
            attempt, began = 0, time.monotonic()
            continue
        attempt += 1
        if attempt == patience.attempts:
            raise DataError(f"{name}: given up after {patience.attempts} attempts; the last: {reason}")
        wait = patience.wait(attempt - 1, asked)
        if time.monotonic() - began >= patience.quiet:
            tell_of_attempt(name, reason, attempt + 1, patience.attempts, wait)
        time.sleep(wait)
