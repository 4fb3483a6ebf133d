"""Batches from the host to the device, and the part of the augmentations that is made there.

On a GPU both run on a stream of their own, beside the step before: nothing waits but the GPU's own streams for each
other. The host may be two steps ahead, so that memory is bounded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import replace

import torch

from leoclr.datasets.device_augment import photometric
from leoclr.datasets.loader import Batch

_STEPS_AHEAD = 2


def on_device(loaded: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """The same batches with their views finished, on the device. Raises what `loaded` raises."""
    if device.type != "cuda":
        for batch in loaded:
            yield _finished(batch, device)
        return
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    main = torch.cuda.current_stream(device)
    steps: deque[torch.cuda.Event] = deque()
    for batch in loaded:
        with torch.cuda.stream(side):
            finished = _finished(batch, device)
        main.wait_stream(side)
        for view in finished.views.values():
            view.record_stream(main)
        yield finished
        steps.append(main.record_event())
        if len(steps) > _STEPS_AHEAD:
            steps.popleft().synchronize()


def _finished(batch: Batch, device: torch.device) -> Batch:
    views = {name: pixels.to(device, non_blocking=True) for name, pixels in batch.views.items()}
    for name, parameters in batch.parameters.items():
        views[name] = photometric(views[name], parameters.to(device, non_blocking=True))
    return replace(batch, views=views, parameters={})
