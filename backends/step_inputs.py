"""Step inputs: values that the host computes for every step, such as a shuffle or a schedule's value.

Methods call `step_input`. A step that is replayed as a CUDA graph runs no Python on the host, so values computed there
would not change. They are kept in buffers instead, which the same functions fill before each replay. A method that
reads its progress in any other way is detected, and its steps are not replayed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from leoclr.backends.method import Progress, Schedule

Make = Callable[[Progress], Tensor]
_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio: keys lie far apart


class WatchedProgress(Progress):
    """The progress of a step that may be replayed.

    Attributes:
        read: Where anything but `step_input` has first looked at it; empty where nothing has.
    """

    read = ""

    def __getattribute__(self, name: str) -> Any:
        if name in Progress._fields or name in ("epoch", "share"):
            self._note(sys._getframe(1))
        return super().__getattribute__(name)

    def __getitem__(self, key: Any) -> Any:
        self._note(sys._getframe(1))
        return super().__getitem__(key)

    def __iter__(self) -> Iterator[Any]:
        self._note(sys._getframe(1))
        return super().__iter__()

    def _note(self, reader: FrameType) -> None:
        """Remember the line that reads, or that asks a schedule of leoclr to."""
        while reader.f_globals["__name__"] == "leoclr.backends.schedules" and reader.f_back is not None:
            reader = reader.f_back
        code = reader.f_code
        self.read = self.read or f"{Path(code.co_filename).name}, line {reader.f_lineno}, in {code.co_name}"

    def unwatched(self) -> Progress:
        """The same, for a function of `step_input`."""
        return Progress(*(tuple.__getitem__(self, place) for place in range(len(Progress._fields))))


class StepInputs:
    """The buffers of one step, in the order in which it asks for them."""

    def __init__(self) -> None:
        self._made: list[tuple[Make, Tensor]] = []
        self._next = 0

    @contextmanager
    def serving(self) -> Iterator[None]:
        """The block is the step: its values come from the buffers, which the first time makes."""
        global _serving
        before, _serving, self._next = _serving, self, 0
        try:
            yield
        finally:
            _serving = before

    def fill(self, now: Progress) -> None:
        """Compute all values for a step. The host does not wait for the device."""
        for make, buffer in self._made:
            buffer.copy_(_pinned(make(now), buffer.device), non_blocking=True)

    def take(self, make: Make, now: Progress, device: torch.device) -> Tensor:
        """The next buffer."""
        if self._next == len(self._made):
            self._made.append((make, sent(make(_plain(now)), device)))
        self._next += 1
        return self._made[self._next - 1][1]


_serving: StepInputs | None = None


def step_input(make: Make, now: Progress, device: torch.device) -> Tensor:
    """`make(now)`, a tensor of always the same shape that the host computes, on the device. The host does not wait."""
    if _serving is not None:
        return _serving.take(make, now, device)
    return sent(make(_plain(now)), device)


def step_number(schedule: Schedule, now: Progress, device: torch.device) -> float | Tensor:
    """`schedule(now)`: a number, or a float64 scalar on the device where the step may be replayed."""
    if _serving is None:
        return schedule(now)
    return step_input(lambda now: torch.tensor(schedule(now), dtype=torch.float64), now, device)


def step_generator(seed: int, now: Progress, key: int = 0) -> torch.Generator:
    """A generator on the CPU for what is drawn for the whole batch of a step: the same in every process, and at its
    beginning with every call.

    Args:
        seed: `facts.seed`.
        key: Another number gives other numbers. Built-in methods draw with 0.
    """
    return torch.Generator().manual_seed((seed * 1_000_003 + now.step + key * _GOLDEN) % 2**64)


def _plain(now: Progress) -> Progress:
    return now.unwatched() if isinstance(now, WatchedProgress) else now


def _pinned(value: Tensor, device: torch.device) -> Tensor:
    return value.pin_memory() if device.type == "cuda" and torch.cuda.is_available() else value


def sent(value: Tensor, device: torch.device) -> Tensor:
    """A value of the host on the device. The host does not wait."""
    return _pinned(value, device).to(device, non_blocking=True)
