"""Training speed, share of time waiting for data and the slowest process, without scoring and saving."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

import torch
from accelerate import Accelerator

from leoclr.backends.distributed import gather
from leoclr.backends.waits import Waits


class Clock:
    """Measures from one reading to the next, and from the first step on.

    Args:
        step: The step before the first one that is measured.
        images: Images in a step, over all processes.
        waits: What of the time is waiting for other processes.
    """

    def __init__(self, step: int, images: int, waits: Waits) -> None:
        self._images, self.waits = images, waits
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
        self.waits.leave_out(pause)

    def read(self, step: int) -> tuple[float, float, float]:
        """Images per second, the share of time spent waiting for data, and this process's own seconds for a step,
        since the last reading."""
        own_seconds = self.waits.own_seconds() / max(1, step - self._step)
        now = time.monotonic()
        elapsed = max(1e-9, now - self._since)
        result = (step - self._step) * self._images / elapsed, self._waited / elapsed, own_seconds
        self._since, self._step, self._waited = now, step, 0.0
        return result

    def mean(self, step: int) -> float:
        """Images per second since the first step."""
        return (step - self._first) * self._images / max(1e-9, time.monotonic() - self._began)


def slowest(own_seconds: float, accelerator: Accelerator) -> dict[str, float]:
    """Which process is the slowest, its own time for a step, and the median of the others', in seconds; nothing where
    there is one process. All must ask at once."""
    if accelerator.num_processes == 1:
        return {}
    found = gather(torch.tensor([own_seconds], device=accelerator.device)).tolist()
    rank = found.index(max(found))
    return {
        "slowest_rank": float(rank),
        "slowest_rank_seconds": found.pop(rank),
        "other_ranks_seconds": median(found),
    }
