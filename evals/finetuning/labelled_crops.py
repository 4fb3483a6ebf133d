"""Labelled random crops for training a classifier.

They come from the plan and the loader of pre-training, so a crop is a pure function of (seed, epoch, sample), and
training may begin at any epoch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from leoclr.datasets.errors import DataError
from leoclr.datasets.images.augmentation import AugmentationSpec
from leoclr.datasets.images.normalise import normalise
from leoclr.datasets.loading.device_feed import to_device
from leoclr.datasets.loading.loader import StepDataset, batches
from leoclr.datasets.loading.plan import Plan, StepSamples
from leoclr.datasets.randomness import stream
from leoclr.datasets.shards.index import Index
from leoclr.datasets.views import View, ViewPolicy
from leoclr.evals.classes import own_classes
from leoclr.evals.features.extract import MAX_BAD_SHARE, choose_workers

CROP_SCALE = (0.08, 1.0)  # torchvision's RandomResizedCrop, which MoCo, SimCLR and BYOL leave as it is
_VIEW = "image"
_POLICY = ViewPolicy("crop", {_VIEW: View()}, ())


class WholeEpochs(Plan):
    """Every sample once an epoch, in steps of nearly equal size, at most `batch_size` each: 400 samples in batches of
    256 are two steps of 200. A step has two samples at least, which BatchNorm needs, where there are two."""

    @property
    def steps_per_epoch(self) -> int:
        return max(1, min(-(-self.size // self.batch_size), self.size // 2))

    def step(self, number: int) -> StepSamples:
        epoch, step = divmod(number, self.steps_per_epoch)
        start, stop = (edge * self.size // self.steps_per_epoch for edge in (step, step + 1))
        return StepSamples(epoch, self.order(epoch, np.arange(start, stop)))


@dataclass(frozen=True)
class LabelledCrops:
    """Random crops of a labelled data set, half of them flipped, in an order that the seed and the epoch decide.

    Attributes:
        index: Every sample has a label.
        image_size: Side of the crops in pixels.
        mean, std: Of the normalisation, per channel.
        batch_size: Most images in a step.
    """

    index: Index
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    batch_size: int
    seed: int

    @property
    def plan(self) -> WholeEpochs:
        """Which images make up which step."""
        seed = stream(self.seed, "labelled crops")
        return WholeEpochs((len(self.index),), min(self.batch_size, len(self.index)), seed)

    @property
    def batches_protocol(self) -> str:
        """The steps of an epoch in words."""
        images, steps = len(self.index), self.plan.steps_per_epoch
        most = f"at most {-(-images // steps)}" if images % steps else f"{images // steps}"
        return f"all {images:,} images each epoch, in {steps:,} step{'' if steps == 1 else 's'} of {most}"

    @property
    def class_count(self) -> int:
        """How many classes occur."""
        return self.index.class_count

    @property
    def protocol(self) -> str:
        """The views in words."""
        scale = f"{CROP_SCALE[0]:g}-{CROP_SCALE[1]:g}"
        return f"random crops of {scale} of the area to {self.image_size} px (bilinear), half of them flipped"

    def batches(
        self, first_step: int, last_step: int, device: torch.device, workers: int = -1
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Normalised images, `(n, 3, size, size)`, their classes (see `own_classes`) and their sample numbers, `(n,)`,
        step by step.

        Raises:
            DataError: A shard has gone, or more images than one in a thousand cannot be decoded in an epoch.
        """
        spec = AugmentationSpec(self.image_size, crop_scale=CROP_SCALE, jitter=0.0, grayscale=0.0, blur=0.0)
        dataset = StepDataset(self.index, self.plan, _POLICY, spec)
        workers = choose_workers(last_step - first_step) if workers < 0 else workers
        labels = torch.from_numpy(own_classes(self.index)(self.index.label))
        bad: list[str] = []
        for batch in batches(dataset, first_step, last_step, workers, device.type == "cuda"):
            if batch.step % len(dataset) == 0:
                bad.clear()
            bad += batch.bad
            if len(bad) > max(1.0, MAX_BAD_SHARE * len(self.index)):
                raise DataError(f"{len(bad)} images of an epoch cannot be decoded, {bad[0]} first")
            images = normalise(batch.views[_VIEW].to(device, non_blocking=True), self.mean, self.std)
            yield images, to_device(labels[batch.samples], device), to_device(batch.samples, device)
