"""Time that a process waits in exchanges with others.

All processes take as long for a step as the slowest, which hardly waits. What the waits leave of a step is a process's
own time, and tells which one is slow. Nothing is exchanged for it. On a GPU the stream's events measure, so that the
host runs ahead as before; the time in which the stream has nothing to do, for lack of data, is the process's own.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_listening: Waits | None = None


class Waits:
    """Sums the waits of this process while it listens.

    Args:
        device: Where the tensors are that are exchanged.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._begun: Any = None
        self._open: deque[tuple[Any, Any]] = deque()  # of which a GPU has not reached the end
        self._left_out = 0.0
        self._since = self._now()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """`begin` and `end` of this module are these waits'."""
        global _listening
        before, _listening = _listening, self
        try:
            yield
        finally:
            _listening = before

    def begin(self) -> None:
        self._begun = self._now()

    def end(self) -> None:
        if self._begun is None:
            return
        self._open.append((self._begun, self._now()))
        self._begun = None
        while self._open and (self._device.type != "cuda" or self._open[0][1].query()):
            self._left_out += self._between(*self._open.popleft())

    def leave_out(self, seconds: float) -> None:
        """Time that is no part of training."""
        self._left_out += seconds

    def own_seconds(self) -> float:
        """Since the last call, without waits. On a GPU it waits for what is queued."""
        now = self._now()
        if self._device.type == "cuda":
            now.synchronize()
        total = self._between(self._since, now) - self._left_out
        total -= sum(self._between(*span) for span in self._open)
        self._open.clear()
        self._since, self._left_out = now, 0.0
        return max(0.0, total)

    def _now(self) -> Any:
        if self._device.type != "cuda":
            return time.monotonic()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def _between(self, start: Any, stop: Any) -> float:
        if self._device.type != "cuda":
            return float(stop - start)
        return float(start.elapsed_time(stop)) / 1000


def begin() -> None:
    """From now on this process waits for others."""
    if _listening is not None:
        _listening.begin()


def end() -> None:
    """It has them, or was not waiting."""
    if _listening is not None:
        _listening.end()


@contextmanager
def waiting() -> Iterator[None]:
    """The block is an exchange with other processes."""
    begin()
    try:
        yield
    finally:
        end()
