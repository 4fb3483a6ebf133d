"""Load the batches of a plan, as augmented views, in worker processes.

The unit of work is a whole step: a worker reads, decodes and augments all images of one, and steps come back in
order. What a step holds depends on its number alone, so workers add speed and change nothing, and starting at any
step costs the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from leoclr.datasets.errors import BadImage, DataError
from leoclr.datasets.images.augment_device import draw_all
from leoclr.datasets.images.augmentation import AugmentationSpec, Uniforms, view_box, view_specs
from leoclr.datasets.images.executors import EXECUTORS
from leoclr.datasets.loading.extras import NO_EXTRAS, Extras, place_of
from leoclr.datasets.loading.plan import Plan
from leoclr.datasets.loading.view_maker import SAMPLES, parameters_of
from leoclr.datasets.loading.workers import load_batches
from leoclr.datasets.randomness import hash_key, uniforms
from leoclr.datasets.shards.index import Index
from leoclr.datasets.shards.reader import SampleReader
from leoclr.datasets.views import ViewPolicy

SUBSTITUTES = 100


@dataclass
class Batch:
    """One rank's part of a step.

    Attributes:
        step: Its number, from 0 over the whole run.
        views: By view name, uint8, shape `(n, 3, size, size)`, each with a size of its own, channels last in memory.
            Empty where images are resident.
        samples: Sample numbers, int64, shape `(n,)`.
        bad: One line for each image that could not be used; another sample took its place.
        error: Why the step could not be made at all (a shard has gone), or None.
        draws: What the device still needs to make the views of, for `leoclr.datasets.loading.view_maker`, and what
            else the method asks for (`extras`); empty where views are finished, and there is nothing else.
    """

    step: int
    views: dict[str, Tensor]
    samples: Tensor
    bad: list[str]
    error: str | None = None
    draws: dict[str, Tensor] = field(default_factory=dict)

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What a step computes with: samples, pixels and draws, by names that do not meet."""
        return {SAMPLES: self.samples} | self.views | self.draws

    def map(self, move: Callable[[Tensor], Tensor]) -> Batch:
        """The same batch with its inputs somewhere else."""
        inputs = self.views, {SAMPLES: self.samples} | self.draws
        views, draws = ({name: move(tensor) for name, tensor in each.items()} for each in inputs)
        return replace(self, views=views, draws=draws)

    def pin_memory(self) -> Batch:
        """The same batch where a GPU can fetch it by itself (called by torch's DataLoader)."""
        return self.map(Tensor.pin_memory)


class StepDataset(Dataset[Batch]):
    """The steps of a run by number. An unreadable image is replaced by another sample, chosen by its number alone,
    so that every batch is full and the same everywhere."""

    def __init__(
        self, index: Index, plan: Plan, policy: ViewPolicy, spec: AugmentationSpec, extras: Extras = NO_EXTRAS
    ) -> None:
        self.reader = SampleReader(index)
        self.plan, self.extras = plan, extras
        self.specs = view_specs(policy, spec)
        self.executor = spec.executor

    def __len__(self) -> int:
        return self.plan.steps_per_epoch

    def __getitem__(self, step: int) -> Batch:
        planned = self.plan.step(step)
        samples = planned.samples.copy()
        bad, sizes = list[str](), list[tuple[int, int]]()
        numbers = self._uniforms(planned.epoch, samples)
        views = {
            name: np.empty((len(samples), spec.image_size, spec.image_size, 3), np.uint8)
            for name, spec in self.specs.items()
        }
        try:
            self.reader.prefetch(samples.tolist())
            for row in range(len(samples)):
                drawn = [of_view[row] for of_view in numbers]
                made, size = self._views(samples, row, drawn, planned.epoch, bad)
                for pixels, view in zip(views.values(), made, strict=True):
                    pixels[row] = view
                sizes.append(size)
        except DataError as error:
            return Batch(step, {}, torch.from_numpy(samples), bad, str(error))
        tensors = {name: torch.from_numpy(pixels).permute(0, 3, 1, 2) for name, pixels in views.items()}
        draws = self._draws(planned.epoch, samples, sizes) | self.extras.labels_of(samples)
        return Batch(step, tensors, torch.from_numpy(samples), bad, draws=draws)

    def _uniforms(self, epoch: int, samples: NDArray[np.int64]) -> list[NDArray[np.float64]]:
        """For each view, the numbers of each sample."""
        return [
            uniforms(self.plan.seed, epoch, samples, view, spec.uniforms)
            for view, spec in enumerate(self.specs.values())
        ]

    def _draws(self, epoch: int, samples: NDArray[np.int64], sizes: list[tuple[int, int]]) -> dict[str, Tensor]:
        """What follows from the uniforms of the samples, images of these widths and heights, beside the pixels."""
        draws: dict[str, Tensor] = {}
        if self.executor != "device" and not self.extras.boxes:
            return draws
        for (name, spec), of_view in zip(self.specs.items(), self._uniforms(epoch, samples), strict=True):
            if self.executor == "device":
                draws[parameters_of(name)] = draw_all(spec, of_view)
            if self.extras.boxes:
                boxes = [view_box(*size, spec, own) for size, own in zip(sizes, of_view, strict=True)]
                draws[place_of(name)] = torch.tensor(boxes, dtype=torch.float32)
        return draws

    def _views(
        self, samples: NDArray[np.int64], row: int, numbers: list[Uniforms], epoch: int, bad: list[str]
    ) -> tuple[list[NDArray[np.uint8]], tuple[int, int]]:
        """The views of one sample, or of another one that takes its place in `samples`, and its width and height."""
        specs = tuple(self.specs.values())
        planned = int(samples[row])
        for attempt in range(SUBSTITUTES):
            execute = partial(EXECUTORS[self.executor], specs=specs, uniforms=numbers)
            try:
                return self.reader.decoded(int(samples[row]), execute)
            except BadImage as error:
                bad.append(str(error))
                samples[row] = substitute(self.plan, epoch, planned, attempt)
                numbers = [of_view[0] for of_view in self._uniforms(epoch, samples[row : row + 1])]
        raise DataError(f"{SUBSTITUTES} images in a row cannot be decoded; the last: {bad[-1]}")


def substitute(plan: Plan, epoch: int, planned: int, attempt: int) -> int:
    """The sample that takes the place of `planned` where that, and `attempt` others after it, cannot be read."""
    return int(hash_key(plan.seed, epoch, planned, attempt)[0]) % plan.size


def batches(
    dataset: StepDataset,
    start: int,
    stop: int,
    workers: int,
    pin_memory: bool = False,
    asked_to_stop: Callable[[], bool] = lambda: False,
) -> Iterator[Batch]:
    """The steps from `start` to before `stop`, in order; see `leoclr.datasets.loading.workers`. Raises DataError."""
    return load_batches(dataset, range(start, stop), workers, pin_memory, asked_to_stop)
