"""Fine-tune and score a detector: the paper's Table 4 protocol, and a short one for small data.

The images of a step, their flips and sizes, and the sampled regions depend on the seed and the number of the step
alone. A training resumed from its last state therefore ends, on the CPU, with the weights of an uninterrupted one.
"""

from __future__ import annotations

import contextlib
import io
import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from leoclr.datasets.errors import DataError, EvaluationError, SettingsError
from leoclr.datasets.files import ignore
from leoclr.datasets.loading.workers import load_batches
from leoclr.datasets.randomness import Permutation, hash_key, uniforms
from leoclr.datasets.voc import BoxedImage, BoxedImages
from leoclr.evals.finetuning.supervised import load_state, save_state

MOMENTUM = 0.9
_WARMUP_START = 0.001
_DECAY = 0.1


@dataclass(frozen=True)
class DetectionRecipe:
    """How a detector is trained.

    Attributes:
        iterations: Steps of the optimizer.
        batch_size: Images in a step; the learning rate is for this number and nothing is scaled.
        decays: Iterations from which the learning rate is a tenth of what it was.
        warmup: Iterations over which it rises from a thousandth.
        short_sides: See `build_detector`.
        regions: That the head is trained on, for each image.
        candidates: Proposals that go into the suppression of doubles in training; half as many in tests.
        proposals: Regions that are scored in a test image.
    """

    iterations: int
    batch_size: int
    lr: float
    decays: tuple[int, ...]
    warmup: int
    short_sides: tuple[int, ...]
    regions: int
    candidates: int
    proposals: int
    weight_decay: float = 1e-4

    def factor(self, step: int) -> float:
        """What the learning rate is multiplied with in a step, counted from 0."""
        warm = _WARMUP_START + (1 - _WARMUP_START) * min(1.0, step / max(1, self.warmup))
        return float(warm * _DECAY ** bisect_right(self.decays, step))

    @property
    def protocol(self) -> str:
        """The recipe in words."""
        first, last = self.short_sides[0], self.short_sides[-1]
        decays = " and ".join(f"{decay:,}" for decay in self.decays)
        return (
            f"{self.iterations:,} iterations of {self.batch_size} images, SGD, momentum {MOMENTUM:g}, lr {self.lr:g}, "
            f"a tenth from {decays} on, warm-up {self.warmup}, weight decay {self.weight_decay:g}; half of the images "
            f"flipped, short side {first}-{last} px, in tests {last}; {self.regions} regions an image of "
            f"{self.candidates:,} candidates, in tests {self.proposals}; every layer and every BatchNorm learns"
        )


# MoCo's for Detectron2: every BatchNorm learns and counts over the whole batch, which is on one device here.
PAPER = DetectionRecipe(24_000, 16, 0.02, (18_000, 22_000), 100, tuple(range(480, 801, 32)), 512, 12_000, 1_000)
SMALL = DetectionRecipe(1_000, 4, 0.005, (750, 900), 100, (240, 256, 288, 320), 64, 2_000, 200)


def shortened(recipe: DetectionRecipe, iterations: int) -> DetectionRecipe:
    """The recipe for another number of iterations, its decays at the same shares."""
    decays = tuple(round(decay / recipe.iterations * iterations) for decay in recipe.decays)
    values = {**asdict(recipe), "iterations": iterations, "decays": decays}
    return DetectionRecipe(**{**values, "warmup": min(recipe.warmup, iterations // 10)})


def train_detector(
    detector: nn.Module,
    images: BoxedImages,
    recipe: DetectionRecipe,
    *,
    seed: int,
    device: torch.device,
    workers: int = 0,
    state: Path | None = None,
    steps_between_states: int = 500,
    advance: Callable[[int], None] = ignore,
) -> None:
    """Train all parameters, from the last step that `state` holds.

    Raises:
        EvaluationError: The loss is not finite any more, or there is no box to learn from.
        DataError: An image is missing or damaged.
    """
    if not any(len(image.boxes) for image in images.images):
        raise EvaluationError("the training images hold no box")
    optimizer = torch.optim.SGD(
        detector.parameters(), lr=recipe.lr, momentum=MOMENTUM, weight_decay=recipe.weight_decay
    )
    done = load_state(state, detector, optimizer) if state is not None else 0
    advance(done)
    detector.train()
    dataset = _Batches(images, recipe.batch_size, seed)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for step, batch in enumerate(load_batches(dataset, range(done, recipe.iterations), workers), start=done):
            torch.manual_seed(int(hash_key(seed, step)[0]) % 2**63)
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr * recipe.factor(step)
            pixels = [image.to(device).float() / 255 for image in batch.images]
            targets = [{name: value.to(device) for name, value in target.items()} for target in batch.targets]
            loss = torch.stack(list(detector(pixels, targets).values())).sum()
            if not math.isfinite(loss.item()):
                raise EvaluationError(f"the detector's loss is not finite at iteration {step + 1}; try a smaller --lr")
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            advance(1)
            if state is not None and (step + 1) % steps_between_states == 0:
                save_state(state, detector, optimizer, step + 1)


def detect(
    detector: nn.Module, images: BoxedImages, device: torch.device, advance: Callable[[int], None] = ignore
) -> list[dict[str, NDArray[Any]]]:
    """What the detector finds in each image: `boxes` (n, 4), `labels` from 0, `scores`."""
    detector.eval()
    found = []
    with torch.inference_mode():
        for image in images.images:
            pixels = _tensor(image.pixels()).to(device).float() / 255
            boxes = {name: value.cpu().numpy() for name, value in detector([pixels])[0].items()}
            found.append({**boxes, "labels": boxes["labels"] - 1})
            advance(1)
    return found


def average_precision(images: BoxedImages, found: Sequence[dict[str, NDArray[Any]]]) -> dict[str, Any]:
    """AP over thresholds of 0.50 to 0.95 and at 0.50 and 0.75, all in [0, 1], by pycocotools.

    Returns:
        `ap`, `ap50`, `ap75`, and `classes`: the AP50 of each class that the images hold.
    """
    coco, evaluator_of = _pycocotools()
    truth, result = coco(), coco()
    with contextlib.redirect_stdout(io.StringIO()):
        truth.dataset = _coco_truth(images)
        truth.createIndex()
        result.dataset = {**truth.dataset, "annotations": _coco_found(found)}
        result.createIndex()
        evaluator = evaluator_of(truth, result, "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
    precision = evaluator.eval["precision"][:, :, :, 0, -1]  # thresholds, recalls, classes; all sizes, 100 detections
    thresholds = np.round(evaluator.params.iouThrs, 2).tolist()

    def mean(part: NDArray[np.float64]) -> float:
        known = part[part > -1]
        return float(known.mean()) if known.size else 0.0

    half = precision[thresholds.index(0.5)]
    names = {name: half[:, number] for number, name in enumerate(images.classes)}
    return {
        "ap": mean(precision),
        "ap50": mean(half),
        "ap75": mean(precision[thresholds.index(0.75)]),
        "classes": {name: mean(part) for name, part in names.items() if (part > -1).any()},
    }


def require_pycocotools() -> None:
    """Raise SettingsError where it is not installed."""
    _pycocotools()


def _pycocotools() -> tuple[Any, Any]:
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError:
        raise SettingsError("detection needs pycocotools: pip install 'leoclr-cli[detection]'") from None
    return COCO, COCOeval


def _coco_truth(images: BoxedImages) -> dict[str, Any]:
    annotations: list[dict[str, Any]] = []
    for number, image in enumerate(images.images):
        for box, label, hard in zip(image.boxes.tolist(), image.labels.tolist(), image.difficult.tolist(), strict=True):
            # Crowds are nearest to VOC's difficult objects: neither finding nor missing one counts. But a detection of
            # a part of one does not count either, where VOC counts an error.
            annotations.append(_coco_box(len(annotations) + 1, number, label, box) | {"iscrowd": int(hard)})
    categories = [{"id": number, "name": name} for number, name in enumerate(images.classes)]
    return {"images": [{"id": n} for n in range(len(images))], "annotations": annotations, "categories": categories}


def _coco_found(found: Sequence[dict[str, NDArray[Any]]]) -> list[dict[str, Any]]:
    annotations: list[dict[str, Any]] = []
    for number, one in enumerate(found):
        for box, label, score in zip(
            one["boxes"].tolist(), one["labels"].tolist(), one["scores"].tolist(), strict=True
        ):
            annotations.append(_coco_box(len(annotations) + 1, number, label, box) | {"score": score, "iscrowd": 0})
    return annotations


def _coco_box(identity: int, image: int, label: int, box: Sequence[float]) -> dict[str, Any]:
    left, top, right, bottom = box
    size = [right - left, bottom - top]
    return {
        "id": identity,
        "image_id": image,
        "category_id": label,
        "bbox": [left, top, *size],
        "area": size[0] * size[1],
    }


@dataclass
class _Batch:
    images: list[Tensor]
    targets: list[dict[str, Tensor]]
    error: str | None = None


class _Batches(Dataset[_Batch]):
    """The batches by number of the step. Images without a box are left out, as Detectron2 does."""

    def __init__(self, images: BoxedImages, batch_size: int, seed: int) -> None:
        self._images = [image for image in images.images if len(image.boxes)]
        self._batch_size, self._seed = batch_size, seed

    def __getitem__(self, step: int) -> _Batch:
        count = len(self._images)
        positions = np.arange(step * self._batch_size, (step + 1) * self._batch_size)
        numbers = [
            int(Permutation(count, self._seed, p // count)(np.array([p % count]))[0]) for p in positions.tolist()
        ]
        flips = uniforms(self._seed, 0, positions, 0, 1)[:, 0] < 0.5
        try:
            pairs = [_flipped(self._images[n], bool(flip)) for n, flip in zip(numbers, flips, strict=True)]
        except DataError as error:
            return _Batch([], [], str(error))
        return _Batch([pixels for pixels, _ in pairs], [target for _, target in pairs])


def _flipped(image: BoxedImage, flip: bool) -> tuple[Tensor, dict[str, Tensor]]:
    pixels, boxes = _tensor(image.pixels()), torch.from_numpy(image.boxes.copy())
    width, height = pixels.shape[2], pixels.shape[1]
    boxes[:, 0::2].clamp_(0, width)
    boxes[:, 1::2].clamp_(0, height)
    inside = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    if flip:
        pixels = pixels.flip(2)
        boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
    return pixels, {"boxes": boxes[inside], "labels": torch.from_numpy(image.labels)[inside] + 1}


def _tensor(pixels: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)
