"""A data set of small images that stays decoded on the device and is cropped there.

The samples of a step, their random parameters and the replacements of unreadable images are those of
`leoclr.datasets.loading.loader`. There are no loader processes: the host only draws parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from leoclr.datasets.errors import BadImage, DataError
from leoclr.datasets.files import ignore
from leoclr.datasets.images.augment_device import crop_boxes, draw_all, view_boxes
from leoclr.datasets.images.augmentation import AugmentationSpec, view_specs
from leoclr.datasets.images.decode import decode_pixels
from leoclr.datasets.loading.extras import NO_EXTRAS, Extras, place_of
from leoclr.datasets.loading.loader import SUBSTITUTES, Batch, substitute
from leoclr.datasets.loading.plan import Plan
from leoclr.datasets.loading.view_maker import boxes_of, parameters_of
from leoclr.datasets.loading.workers import load_batches
from leoclr.datasets.randomness import uniforms
from leoclr.datasets.shards.index import Index
from leoclr.datasets.shards.reader import SampleReader
from leoclr.datasets.threads import ordered_map
from leoclr.datasets.views import ViewPolicy

_CHUNK = 256
_CHUNKS_OF_A_WORKER = 4  # for fewer, starting a process takes longer than it saves
_STEPS_AHEAD = 2


@dataclass(frozen=True)
class ResidentImages:
    """All images of a data set.

    Attributes:
        pixels: uint8, shape `(samples, 3, height, width)`, on the device; zero where an image is unreadable.
        bad: What is wrong, by sample number.
    """

    pixels: Tensor
    bad: dict[int, str]


def first_size(index: Index) -> tuple[int, int] | None:
    """(height, width) of the first image that can be read; None where none of the first hundred can."""
    reader = SampleReader(index)
    for number in range(min(SUBSTITUTES, len(index))):
        try:
            height, width, _ = reader.decoded(number, decode_pixels).shape
            return height, width
        except BadImage:
            continue
    return None


def load_resident(
    index: Index, device: torch.device, workers: int, advance: Callable[[int], None] = ignore
) -> ResidentImages | None:
    """Decode every image and bring it to the device; None where they have more than one size.

    Args:
        workers: Loader processes, for this alone.
        advance: Called with the number of images done.

    Raises:
        DataError: A shard has gone or changed.
    """
    size = first_size(index)
    if size is None:
        return None
    pixels = torch.zeros(len(index), 3, *size, dtype=torch.uint8, device=device)
    bad: dict[int, str] = {}
    chunks = _Chunks(index, size)
    for chunk in load_batches(chunks, range(len(chunks)), min(workers, len(chunks) // _CHUNKS_OF_A_WORKER)):
        if chunk.other_size:
            return None
        stop = chunk.start + len(chunk.pixels)
        pixels[chunk.start : stop] = chunk.pixels.to(device).permute(0, 3, 1, 2)
        bad |= chunk.bad
        advance(len(chunk.pixels))
    return ResidentImages(pixels, bad)


def resident_batches(
    images: ResidentImages,
    plan: Plan,
    policy: ViewPolicy,
    spec: AugmentationSpec,
    start: int,
    stop: int,
    extras: Extras = NO_EXTRAS,
) -> Iterator[Batch]:
    """The steps from `start` to before `stop`: what the host draws for them, as `view_maker.ViewMaker` takes it.

    It is drawn in a thread, up to two steps ahead, and pinned where the images are on a GPU.
    """
    height, width = images.pixels.shape[2:]
    specs = view_specs(policy, spec)

    def drawn(step: int) -> Batch:
        planned = plan.step(step)
        samples, bad = _readable(images, plan, planned.epoch, planned.samples)
        draws = extras.labels_of(samples)
        for view, (name, of_view) in enumerate(specs.items()):
            numbers = uniforms(plan.seed, planned.epoch, samples, view, of_view.uniforms)
            draws[parameters_of(name)] = draw_all(of_view, numbers)
            if of_view.kind == "crop":
                boxes = crop_boxes(width, height, of_view, numbers).astype(np.float32)
                draws[boxes_of(name)] = torch.from_numpy(boxes)
            if extras.boxes:
                draws[place_of(name)] = torch.from_numpy(view_boxes(width, height, of_view, numbers))
        batch = Batch(step, {}, torch.from_numpy(samples), bad, draws=draws)
        if not images.pixels.is_cuda:
            return batch
        with torch.cuda.device(images.pixels.device):  # else this thread would begin to use the first GPU, too
            return batch.pin_memory()

    return ordered_map(drawn, range(start, stop), workers=1, ahead=_STEPS_AHEAD)


def _readable(
    images: ResidentImages, plan: Plan, epoch: int, planned: NDArray[np.int64]
) -> tuple[NDArray[np.int64], list[str]]:
    """The samples of a step with others in the place of unreadable ones, and what is wrong with those."""
    samples, bad = planned.copy(), list[str]()
    for row in (row for row, sample in enumerate(planned.tolist()) if sample in images.bad):
        for attempt in range(SUBSTITUTES):
            if int(samples[row]) not in images.bad:
                break
            bad.append(images.bad[int(samples[row])])
            samples[row] = substitute(plan, epoch, int(planned[row]), attempt)
        else:
            raise DataError(f"{SUBSTITUTES} images in a row cannot be decoded; the last: {bad[-1]}")
    return samples, bad


@dataclass
class _Chunk:
    """Neighbouring samples from `start` on: uint8, `(n, height, width, 3)`, unless one has another size."""

    start: int
    pixels: Tensor
    bad: dict[int, str] = field(default_factory=dict)
    other_size: bool = False
    error: str | None = None


class _Chunks(Dataset[_Chunk]):
    """The data set in chunks by number."""

    def __init__(self, index: Index, size: tuple[int, int]) -> None:
        self.reader, self.samples, self.size = SampleReader(index), len(index), size

    def __len__(self) -> int:
        return -(-self.samples // _CHUNK)

    def __getitem__(self, number: int) -> _Chunk:
        start = number * _CHUNK
        numbers = range(start, min(start + _CHUNK, self.samples))
        pixels = np.zeros((len(numbers), *self.size, 3), np.uint8)
        chunk = _Chunk(start, torch.from_numpy(pixels))
        try:
            self.reader.prefetch(numbers)
            for row, sample in enumerate(numbers):
                try:
                    image = self.reader.decoded(sample, decode_pixels)
                except BadImage as error:
                    chunk.bad[sample] = str(error)
                    continue
                if image.shape != pixels.shape[1:]:
                    chunk.other_size = True
                    break
                pixels[row] = image
        except DataError as error:
            chunk.error = str(error)
        return chunk
