"""Transfer of batches from host to device.

On a GPU the copies run on a stream of their own, beside the step before: nothing waits but the GPU's own streams for
each other. `Pace` keeps the host from running further ahead than two steps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import torch
from torch import Tensor

from leoclr.datasets.loading.loader import Batch

_STEPS_AHEAD = 2


def on_device(loaded: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """The same batches with their inputs on the device. Raises what `loaded` raises."""
    if device.type != "cuda":
        yield from loaded
        return
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    main = torch.cuda.current_stream(device)
    for batch in loaded:
        with torch.cuda.stream(side):
            sent = batch.map(lambda tensor: to_device(tensor, device))
        main.wait_stream(side)
        for tensor in sent.inputs.values():
            tensor.record_stream(main)
        yield sent


class Pace:
    """Lets the host be two steps ahead of a GPU and no more, so that memory is bounded. Apart from `on_device`, because
    waiting for the GPU is not waiting for data."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._steps: deque[torch.cuda.Event] = deque()

    def step_taken(self) -> None:
        """To be called after each step."""
        if self._device.type != "cuda":
            return
        self._steps.append(torch.cuda.current_stream(self._device).record_event())
        if len(self._steps) > _STEPS_AHEAD:
            self._steps.popleft().synchronize()


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy on the device that the host does not wait for."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()  # nothing is done where it is already
    return tensor.to(device, non_blocking=True)
