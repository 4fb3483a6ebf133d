"""Training speed and share of time waiting for data, without scoring and saving."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Measures from one reading to the next, and from the first step on.

    Args:
        step: The step before the first one that is measured.
        images: Images in a step, over all processes.
    """

    def __init__(self, step: int, images: int) -> None:
        self._images = images
        self._since, self._step, self._waited = time.monotonic(), step, 0.0
        self._began, self._first = self._since, step

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The block waits for data."""
        began = time.monotonic()
        yield
        self._waited += time.monotonic() - began

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The block is no training: the clock stands still."""
        began = time.monotonic()
        yield
        pause = time.monotonic() - began
        self._since += pause
        self._began += pause

    def read(self, step: int) -> tuple[float, float]:
        """Images per second, and the share of time spent waiting, since the last reading."""
        now = time.monotonic()
        elapsed = max(1e-9, now - self._since)
        result = (step - self._step) * self._images / elapsed, self._waited / elapsed
        self._since, self._step, self._waited = now, step, 0.0
        return result

    def mean(self, step: int) -> float:
        """Images per second since the first step."""
        return (step - self._first) * self._images / max(1e-9, time.monotonic() - self._began)
