"""`--preset auto`: settings for some images on some device, each with its reason; a pure function.

It starts from the recipe of the data set that the images resemble: CIFAR-10 for small ones, STL-10 for those up to
128 px, ImageNet for larger ones, with the method's own values where the recipe has some. What depends on the number of
the images and on the machine is changed as below. None of these rules was searched for; they are what is usual.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from leoclr.cli.config.preset_files import Chosen
from leoclr.datasets.wording import counted

_LARGEST_SIDE = {"cuda": 224, "cpu": 96}
_SIDES = (224, 192, 160, 128, 96, 64, 48, 32)
_SMALL_STEM = {"cuda": 64, "cpu": 40}  # up to which side images keep their resolution in the first layers
_MANY = 20_000  # images that ResNet-50 is worth its cost for
_STEPS_AN_EPOCH = 8  # at least: smaller batches where there are few images
_LEAST_BATCH, _CPU_BATCH = 16, 128
_LEAST_GROUP = 8  # images that BatchNorm's statistics are taken over
_STEPS = 20_000  # that a run should have, if this takes no more than the epochs below
_MOST_EPOCHS = 1000
_FEW_KEYS, _MOST_KEYS = 256, 65536  # about a tenth of the images, which would be too few negatives of few images
_HUGE = 2_000_000  # images of which half the recipe's epochs are enough
_CPU_IMAGES = 10_000_000  # that a CPU is given to see in all: a day or a few
_WARMUP_STEPS = 100


class Machine(NamedTuple):
    """What a run can use.

    Attributes:
        device: "cpu" or "cuda".
        bf16: Whether the device computes in bfloat16.
        processors: Of the host.
        free: Bytes free on the device, for a reason's words; None where the system does not say.
    """

    device: str
    bf16: bool
    processors: int
    free: int | None = None


class Images(NamedTuple):
    """What is known of the images: how many there are, and the median of their shorter sides in pixels."""

    total: int
    side: int


class _Choices:
    """The values so far; what the user has given stays."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.values: dict[str, tuple[Any, str]] = {}
        self._given = given

    def put(self, key: str, value: Any, reason: str) -> Any:
        """Choose a value, unless one is given; the one that holds."""
        if key in self._given:
            return self._given[key]
        self.values[key] = (value, reason)
        return value

    def plain(self) -> dict[str, Any]:
        """Without reasons."""
        return {key: value for key, (value, _) in self.values.items()}


def choose(
    images: Images,
    machine: Machine,
    given: Mapping[str, Any],
    recipe: Callable[[str], Mapping[str, Any]],
    fitting: Callable[[Chosen], int],
) -> Chosen:
    """The preset and the values over it.

    Args:
        given: What the user has said, by dotted key; the other values follow from it.
        recipe: The settings of a preset, with the method's own values.
        fitting: How many images of a step fit into the memory of the device, for choices without a batch size.
    """
    for side in _sides(images, machine, given):
        made = _Choices(given)
        base = _network(made, images, machine, side)
        fit = fitting(Chosen(base, dict(made.values)))
        if fit >= min(_LEAST_BATCH, images.total):
            break
    _schedule(made, images, machine, base, recipe(base), fit)
    return Chosen(base, made.values)


def _sides(images: Images, machine: Machine, given: Mapping[str, Any]) -> list[int]:
    """The side that views should have, and smaller ones in case the memory is too little for it."""
    if "data.image_size" in given:
        return [given["data.image_size"]]
    most = _LARGEST_SIDE[machine.device]
    first = images.side if images.side < _SIDES[-1] else next(side for side in _SIDES if side <= min(images.side, most))
    return [first, *(side for side in _SIDES if side < first)]


def _network(made: _Choices, images: Images, machine: Machine, side: int) -> str:
    """Choose what decides the memory that an image takes; the name of the preset."""
    what = f"images of {images.side} px" + (", on a CPU" if machine.device == "cpu" and images.side > side else "")
    side = made.put("data.image_size", side, what)
    base = "cifar10" if side <= 40 else "stl10" if side <= 128 else "imagenet"
    small = side <= _SMALL_STEM[machine.device]
    made.put("encoder.stem", "cifar" if small else "imagenet", f"views of {side} px")
    large = side > 128 and images.total >= _MANY and machine.device == "cuda"
    made.put("encoder.backbone", "resnet50" if large else "resnet18", f"{_many(images)}, views of {side} px")
    precision = "float32" if machine.device == "cpu" else "bf16" if machine.bf16 else "fp16"
    made.put("train.precision", precision, f"the {'CPU' if machine.device == 'cpu' else 'GPU'}")
    workers = min(16, machine.processors) if machine.device == "cuda" else max(1, machine.processors // 2)
    made.put("run.workers", workers, counted(machine.processors, "processor"))
    for key, value in (("mean", (0.485, 0.456, 0.406)), ("std", (0.229, 0.224, 0.225))):
        made.put(f"augmentation.{key}", value, "usual for photographs")
    if images.side >= 4 * side:
        made.put("augmentation.reduced_decoding", True, f"images of {images.side} px for views of {side}")
    return base


def _schedule(made: _Choices, images: Images, machine: Machine, base: str, recipe: Mapping[str, Any], fit: int) -> None:
    """Choose batch, queue, rate and length."""
    usual = recipe["data.batch_size"]
    batch = made.put("data.batch_size", *_batch(images, machine, made.plain(), usual, base, fit))
    steps = max(1, images.total // batch)
    if recipe["backend"] == "moco":
        splits = _power(min(8, max(1, batch // _LEAST_GROUP)))
        made.put("moco.bn_splits", splits, f"groups of {batch // splits} of the {batch} images of a batch")
        few = min(_FEW_KEYS, _power(images.total // 2))
        queue = max(batch, few, min(_MOST_KEYS, _power(images.total // 10)))
        made.put("moco.queue", queue, f"{_many(images)}: about a tenth of them, more of few")
        decay = 0.99 if steps < 200 else 0.995 if steps < 1000 else 0.999
        made.put("moco.momentum", decay, f"{counted(steps, 'step')} an epoch")
    rate = recipe["optimizer.lr"]
    made.put("optimizer.lr", _rounded(rate * batch / usual), f"{rate:g} for a batch of {usual} in {base}, scaled")
    epochs = made.put("train.epochs", *_epochs(images, machine, recipe["train.epochs"], batch))
    warmup = max(recipe["optimizer.warmup_epochs"], math.ceil(_WARMUP_STEPS / steps))
    warmup = min(float(warmup), epochs / 10)
    first = counted(round(warmup * steps), "step")
    made.put("optimizer.warmup_epochs", warmup, f"the first {first} of {epochs * steps:,}")


def _batch(
    images: Images, machine: Machine, chosen: Mapping[str, Any], usual: int, base: str, fit: int
) -> tuple[int, str]:
    """The batch of the recipe, or the largest power of two that the memory, the images and the processor allow."""
    few = min(images.total, max(_LEAST_BATCH, images.total // _STEPS_AN_EPOCH))
    free = "" if machine.free is None else f" of {machine.free / (1 << 30):.1f} GiB"
    limits = [
        (usual, f"as in {base}"),
        (_power(few), f"{_many(images)}: {counted(images.total // _power(few), 'step')} an epoch"),
        (_power(fit), f"{counted(fit, 'image')} fit into the free memory{free}"),
    ]
    if machine.device == "cpu" and chosen.get("data.image_size", 0) > 40:
        limits.append((_CPU_BATCH, "a CPU gains nothing from more"))
    return min(limits, key=lambda limit: limit[0])


def _epochs(images: Images, machine: Machine, usual: int, batch: int) -> tuple[int, str]:
    """The recipe's, more for few images and less for many."""
    least = usual if images.total <= _HUGE else max(1, usual // 2)
    wanted = math.ceil(_STEPS * batch / images.total)
    epochs = max(least, min(max(_MOST_EPOCHS, usual), wanted))
    if epochs > least:
        epochs = int(_rounded(epochs, 2))
    reason = f"{_many(images)}: {epochs * max(1, images.total // batch):,} steps"
    if machine.device == "cpu" and epochs * images.total > _CPU_IMAGES:
        epochs = max(1, _CPU_IMAGES // images.total)
        reason = f"{_many(images)}: {epochs * images.total:,} views of each kind, about a day or more on a CPU"
    return epochs, reason


def _many(images: Images) -> str:
    return counted(images.total, "image")


def _power(number: int) -> int:
    """The largest power of two up to a number, at least 1."""
    return 1 << max(0, number.bit_length() - 1)


def _rounded(number: float, digits: int = 3) -> float:
    return float(f"{number:.{digits}g}")
