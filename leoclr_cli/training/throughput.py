"""How fast training goes, and how much of the time it waits for data."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Measures from one reading to the next.

    Args:
        step: The step before the first one that is measured.
        images: Images in a step, over all processes.
    """

    def __init__(self, step: int, images: int) -> None:
        self._images = images
        self._since, self._step, self._waited = time.monotonic(), step, 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The block waits for data."""
        began = time.monotonic()
        yield
        self._waited += time.monotonic() - began

    def read(self, step: int) -> tuple[float, float]:
        """Images per second, and the share of time spent waiting, since the last reading."""
        now = time.monotonic()
        elapsed = max(1e-9, now - self._since)
        result = (step - self._step) * self._images / elapsed, self._waited / elapsed
        self._since, self._step, self._waited = now, step, 0.0
        return result
