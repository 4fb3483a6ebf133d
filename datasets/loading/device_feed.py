"""Transfer of batches from host to device, with the augmentations that run on the device.

On a GPU both run on a stream of their own, beside the step before: nothing waits but the GPU's own streams for each
other. `Pace` keeps the host from running further ahead than two steps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from leoclr.datasets.images.augment_device import photometric
from leoclr.datasets.loading.loader import Batch

_STEPS_AHEAD = 2


def on_device(loaded: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """The same batches with their views finished, on the device. Raises what `loaded` raises."""
    if device.type != "cuda":
        for batch in loaded:
            yield _finished(batch, device)
        return
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    main = torch.cuda.current_stream(device)
    side.wait_stream(main)  # which wrote what `loaded` may read on the device
    while True:
        with torch.cuda.stream(side):  # `loaded` may work on the device as well
            following = next(loaded, None)
            if following is None:
                return
            finished = _finished(following, device)
        main.wait_stream(side)
        for view in finished.views.values():
            view.record_stream(main)
        yield finished


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


def _finished(batch: Batch, device: torch.device) -> Batch:
    views = {name: to_device(pixels, device) for name, pixels in batch.views.items()}
    parameters = {name: to_device(drawn, device) for name, drawn in batch.parameters.items()}
    for names in _together(views, parameters, device):
        if len(names) == 1:
            views[names[0]] = photometric(views[names[0]], parameters[names[0]])
            continue
        pixels, drawn = (torch.cat([tensors[name] for name in names]) for tensors in (views, parameters))
        views |= zip(names, photometric(pixels, drawn).chunk(len(names)), strict=True)
    return replace(batch, views=views, parameters={})


def _together(views: dict[str, Tensor], parameters: dict[str, Tensor], device: torch.device) -> list[list[str]]:
    """Names of the views that are finished in one call: on a GPU, where launching kernels is what it costs, all of one
    shape; on a CPU, whose caches hold less, each by itself. Their pixels are the same either way."""
    alike: dict[object, list[str]] = {}
    for name, drawn in parameters.items():
        shape = (views[name].shape, drawn.shape) if device.type == "cuda" else name
        alike.setdefault(shape, []).append(name)
    return list(alike.values())
