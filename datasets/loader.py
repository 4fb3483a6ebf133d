"""From the plan to batches of augmented views, in worker processes.

The unit of work is a whole step: a worker reads, decodes and augments all images of one, and steps come back in
order. What a step holds depends on its number alone, so workers add speed and change nothing, and starting at any
step costs the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from leoclr.datasets.augment import UNIFORMS, AugmentationSpec, augment
from leoclr.datasets.errors import BadImage, DataError
from leoclr.datasets.index import Index
from leoclr.datasets.plan import Plan
from leoclr.datasets.randomness import hash_key, uniforms
from leoclr.datasets.reader import SampleReader
from leoclr.datasets.views import ViewPolicy
from leoclr.datasets.workers import load_batches

_SUBSTITUTES = 100


@dataclass
class Batch:
    """One rank's part of a step.

    Attributes:
        step: Its number, from 0 over the whole run.
        views: By view name, uint8, shape `(n, 3, size, size)`, channels last in memory.
        samples: Sample numbers, int64, shape `(n,)`.
        bad: One line for each image that could not be used; another sample took its place.
        error: Why the step could not be made at all (a shard has gone), or None.
    """

    step: int
    views: dict[str, Tensor]
    samples: Tensor
    bad: list[str]
    error: str | None = None

    def pin_memory(self) -> Batch:
        """The same batch where a GPU can fetch it by itself (called by torch's DataLoader)."""
        return replace(self, views={name: pixels.pin_memory() for name, pixels in self.views.items()})


class StepDataset(Dataset[Batch]):
    """The steps of a run by number. An unreadable image is replaced by another sample, chosen by its number alone,
    so that every batch is full and the same everywhere."""

    def __init__(self, index: Index, plan: Plan, policy: ViewPolicy, spec: AugmentationSpec) -> None:
        self.reader = SampleReader(index)
        self.plan = plan
        self.policy = policy
        self.spec = spec

    def __len__(self) -> int:
        return self.plan.steps_per_epoch

    def __getitem__(self, step: int) -> Batch:
        planned = self.plan.step(step)
        samples = planned.samples.copy()
        bad: list[str] = []
        size = self.spec.image_size
        views = {name: np.empty((len(samples), size, size, 3), np.uint8) for name in self.policy.views}
        try:
            self.reader.prefetch(samples.tolist())
            images = [self._readable(samples, row, planned.epoch, bad) for row in range(len(samples))]
        except DataError as error:
            return Batch(step, {}, torch.from_numpy(samples), bad, str(error))
        for view, (name, kind) in enumerate(self.policy.views.items()):
            numbers = uniforms(self.plan.seed, planned.epoch, samples, view, UNIFORMS)
            for row, image in enumerate(images):
                views[name][row] = augment(image, self.spec, kind, numbers[row])
        tensors = {name: torch.from_numpy(pixels).permute(0, 3, 1, 2) for name, pixels in views.items()}
        return Batch(step, tensors, torch.from_numpy(samples), bad)

    def _readable(self, samples: NDArray[np.int64], row: int, epoch: int, bad: list[str]) -> Image.Image:
        planned = int(samples[row])
        for attempt in range(_SUBSTITUTES):
            try:
                return self.reader.image(int(samples[row]))
            except BadImage as error:
                bad.append(str(error))
                word = int(hash_key(self.plan.seed, epoch, planned, attempt)[0])
                samples[row] = word % self.plan.size
        raise DataError(f"{_SUBSTITUTES} images in a row cannot be decoded; the last: {bad[-1]}")


def batches(dataset: StepDataset, start: int, stop: int, workers: int, pin_memory: bool = False) -> Iterator[Batch]:
    """The steps from `start` to before `stop`, in order; see `leoclr.datasets.workers`. Raises DataError."""
    return load_batches(dataset, range(start, stop), workers, pin_memory)
