"""Extract the features of a frozen backbone for all samples, in the order of the index.

Worker processes read, decode and resize whole batches; normalisation and the forward pass run on the device. What a
sample's pixels are depends on its number alone, so the number of workers changes nothing but the speed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from leoclr.backends.networks.evaluation_mode import evaluation_mode
from leoclr.datasets.errors import BadImage, DataError, EvaluationError
from leoclr.datasets.files import ignore
from leoclr.datasets.images.normalise import normalise
from leoclr.datasets.loading.resident import ResidentImages
from leoclr.datasets.loading.workers import load_batches
from leoclr.datasets.shards.index import Index
from leoclr.datasets.shards.reader import SampleReader
from leoclr.datasets.wording import counted
from leoclr.evals.accuracy import FloatArray, IntArray
from leoclr.evals.features.preprocessing import Preprocessing, TestView, WholeImage

Precision = Literal["float32", "bf16"]

MAX_BAD_SHARE = 0.001
_BATCHES_PER_WORKER = 4
_MAX_WORKERS = 16


@dataclass(frozen=True)
class Features:
    """Features of the samples that could be read.

    Attributes:
        features: Pooled backbone features, before the projector, shape `(n, d)`.
        labels: Class numbers, -1 where there is none, shape `(n,)`.
        numbers: Sample numbers in the index, ascending, shape `(n,)`.
        skipped: One line for each image that could not be decoded.
    """

    features: FloatArray
    labels: IntArray
    numbers: IntArray
    skipped: tuple[str, ...] = ()


def extract_features(
    backbone: nn.Module,
    index: Index,
    preprocessing: Preprocessing,
    *,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    precision: Precision = "float32",
    workers: int = -1,
    max_bad_share: float = MAX_BAD_SHARE,
    advance: Callable[[int], None] = ignore,
    resident: ResidentImages | None = None,
) -> Features:
    """Run a backbone over a data set without changing it: its mode, its BatchNorm statistics and the state of the
    global random generators are as before, so a training loop may call this between two steps.

    Args:
        backbone: From normalised images, `(n, 3, size, size)`, to features, `(n, d)`. It is on `device` already.
        precision: bf16 runs the forward pass under autocast; the features are float32 in any case.
        workers: Loader processes; 0 loads in this one, -1 chooses.
        max_bad_share: Share of the images that may be undecodable; they are left out and named in the result, which
            is empty where all of them may be, and are.
        advance: Called with the number of images done.
        resident: The images of `index`, decoded and on the device, of which the view changes nothing (`shown_whole`).
            Nothing is loaded then, and the features are the same.

    Raises:
        DataError: There are no samples, a shard has gone, or too many images are bad.
    """
    if not len(index):
        raise DataError("there are no samples to extract features from")
    device = torch.device(device)
    dataset = _Batches(index, preprocessing.view, batch_size)
    workers = choose_workers(len(dataset)) if workers < 0 else workers
    loaded = (
        load_batches(dataset, range(len(dataset)), workers, pin_memory=device.type == "cuda")
        if resident is None
        else _resident_batches(resident, batch_size)
    )
    limit = max_bad_share * len(index)
    store = _Store(len(index))
    skipped: list[str] = []
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
    with evaluation_mode(backbone), torch.inference_mode(), autocast:
        for batch in loaded:
            skipped += batch.bad
            if len(skipped) > limit:
                raise DataError(
                    f"{counted(len(skipped), 'image')} cannot be decoded, where {int(limit)} may be left out: "
                    f"{skipped[0]}; `leoclr check` names all of them, and `leoclr shard` packs without them"
                )
            if len(batch.numbers):
                pixels = batch.pixels.to(device, non_blocking=True)
                store.add(batch.numbers, backbone(normalise(pixels, preprocessing.mean, preprocessing.std)))
            advance(len(batch.numbers) + len(batch.bad))
        features, numbers = store.finish()
    if not len(numbers):
        features = np.empty((0, int(getattr(backbone, "feature_dim", 0))), np.float32)
    return Features(features, index.label[numbers], numbers, tuple(skipped))


def check_features(features: Features, index: Index, name: str) -> None:
    """Raise EvaluationError unless the features, of the data called `name`, are finite and differ from each other."""
    count = len(features.features)
    broken = np.flatnonzero(~np.isfinite(features.features).all(axis=1))
    if len(broken):
        first = index.key(int(features.numbers[broken[0]]))
        raise EvaluationError(
            f"{name}: the features of {len(broken)} of {count} images are NaN or infinite, those of "
            f"{first!r} first; the encoder has diverged"
        )
    if count > 1 and (features.features == features.features[0]).all():
        raise EvaluationError(f"{name}: all {count} images have the same features; the encoder has collapsed")


@dataclass
class _Batch:
    """Pixels, uint8, `(n, 3, size, size)`, channels last in memory; sample numbers; undecodable images; what makes
    all of it unusable, or None."""

    pixels: Tensor
    numbers: IntArray
    bad: list[str]
    error: str | None = None

    def pin_memory(self) -> _Batch:
        """Called by torch's DataLoader."""
        return replace(self, pixels=self.pixels.pin_memory())


class _Batches(Dataset[_Batch]):
    """The batches of a data set by number."""

    def __init__(self, index: Index, view: TestView, batch_size: int) -> None:
        self.reader = SampleReader(index)
        self.samples = len(index)
        self.view = view
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-self.samples // self.batch_size)

    def __getitem__(self, batch: int) -> _Batch:
        start = batch * self.batch_size
        size = self.view.image_size
        pixels = np.empty((min(self.batch_size, self.samples - start), size, size, 3), np.uint8)
        numbers: list[int] = []
        bad: list[str] = []
        try:
            self.reader.prefetch(range(start, start + len(pixels)))
            for number in range(start, start + len(pixels)):
                try:
                    pixels[len(numbers)] = self.view(self.reader.image(number), number)
                    numbers.append(number)
                except BadImage as error:
                    bad.append(str(error))
        except DataError as error:
            return _Batch(torch.empty(0), np.empty(0, np.int64), [], str(error))
        filled = torch.from_numpy(pixels[: len(numbers)]).permute(0, 3, 1, 2)
        return _Batch(filled, np.array(numbers, np.int64), bad)


def shown_whole(view: TestView, resident: ResidentImages) -> bool:
    """Whether a view is each of the resident images as it is."""
    return isinstance(view, WholeImage) and resident.pixels.shape[2:] == (view.image_size, view.image_size)


def _resident_batches(resident: ResidentImages, batch_size: int) -> Iterator[_Batch]:
    samples = len(resident.pixels)
    for start in range(0, samples, batch_size):
        there = range(start, min(start + batch_size, samples))
        pixels = resident.pixels[start : start + batch_size]
        bad = [resident.bad[number] for number in there if number in resident.bad]
        if bad:
            pixels = pixels[[number - start for number in there if number not in resident.bad]]
        numbers = np.array([number for number in there if number not in resident.bad], np.int64)
        yield _Batch(pixels.contiguous(memory_format=torch.channels_last), numbers, bad)


class _Store:
    """Collects the outputs on the host, one batch behind, so that a GPU works on the next while one is collected."""

    def __init__(self, samples: int) -> None:
        self._samples = samples
        self._features = np.empty((0, 0), np.float32)
        self._numbers = np.empty(samples, np.int64)
        self._count = 0
        self._waiting: tuple[IntArray, Tensor, torch.cuda.Event | None] | None = None

    def add(self, numbers: IntArray, output: Tensor) -> None:
        before, self._waiting = self._waiting, (numbers, *_to_host(output.float()))
        self._collect(before)

    def finish(self) -> tuple[FloatArray, IntArray]:
        self._collect(self._waiting)
        return self._features[: self._count], self._numbers[: self._count]

    def _collect(self, waiting: tuple[IntArray, Tensor, torch.cuda.Event | None] | None) -> None:
        if waiting is None:
            return
        numbers, output, copied = waiting
        if copied is not None:
            copied.synchronize()
        if not self._count:
            self._features = np.empty((self._samples, output.shape[1]), np.float32)
        stop = self._count + len(numbers)
        self._features[self._count : stop] = output.numpy()
        self._numbers[self._count : stop] = numbers
        self._count = stop


def _to_host(output: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """The same on the host, complete once the event has come; there is none where it is complete already."""
    if output.device.type != "cuda":
        return output, None
    host = torch.empty(output.shape, dtype=output.dtype, pin_memory=True).copy_(output, non_blocking=True)
    return host, torch.cuda.current_stream(output.device).record_event()


def choose_workers(batches: int) -> int:
    """One for each processor but one, at most 16, and none that would have next to nothing to do."""
    return min((os.cpu_count() or 1) - 1, _MAX_WORKERS, batches // _BATCHES_PER_WORKER)
