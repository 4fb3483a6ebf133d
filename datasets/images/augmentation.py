"""Random parameters of a view: the crop and the photometric operations.

Drawing and applying are separate. Here uniform numbers become the parameters of one view; `augment_pillow`,
`augment_opencv` and `augment_device` apply them. The order of the operations is MoCo-v2's with BYOL's solarisation:
crop and resize, colour jitter, grayscale, blur, solarise, flip, and what `strong` adds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from leoclr.datasets.errors import BadImage
from leoclr.datasets.images.decode import MAX_PIXELS
from leoclr.datasets.images.strong import DRAWS, Strong, operations
from leoclr.datasets.views import ViewKind, ViewPolicy

Box = tuple[int, int, int, int]
Shares = tuple[float, float, float, float]
Uniforms = NDArray[np.float64]

CROP_ATTEMPTS = 10
UNIFORMS = 2 * CROP_ATTEMPTS + 12  # of a view without solarisation; numbers of later operations follow these
SOLARIZE_THRESHOLD = 128
JITTER_ORDERS = tuple(itertools.permutations(("brightness", "contrast", "saturation", "hue")))
PAD_COLOUR = (124, 116, 104)  # the mean of ImageNet, so that padding is near zero after normalisation

# Where each photometric number of a view stands among its uniforms. New operations append; none is ever moved, so that
# a run of an earlier version keeps its pixels.
FLIP, JITTER, BRIGHTNESS, CONTRAST, SATURATION, HUE, ORDER, GRAYSCALE, BLUR, SIGMA, SOLARIZE = range(
    2 * CROP_ATTEMPTS + 2, 2 * CROP_ATTEMPTS + 13
)
STRONG = SOLARIZE + 1


@dataclass(frozen=True)
class AugmentationSpec:
    """Which operations a view has, and their ranges. The fields are those of the `augmentation` settings, and:

    Attributes:
        image_size: Side of the view in pixels.
        kind: "whole" keeps all of the image, "crop" takes a random part.
        strong: Random operations of FixMatch's fourteen that follow, each with probability 0.5.
    """

    image_size: int
    kind: ViewKind = "crop"
    executor: Literal["device", "fast", "pillow"] = "pillow"
    reduced_decoding: bool = False
    original: Literal["squash", "pad", "center"] = "squash"
    crop_scale: tuple[float, float] = (0.2, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    grayscale: float = 0.2
    blur: float = 0.5
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize: float = 0.0
    strong: int = 0

    @property
    def uniforms(self) -> int:
        """How many uniform numbers a view takes."""
        return STRONG + DRAWS * self.strong if self.strong else UNIFORMS + (self.solarize > 0)


@dataclass(frozen=True)
class Photometric:
    """What was drawn for one view, apart from its crop.

    Attributes:
        jitter: (operation, factor) in the order they are applied; empty where there is no jitter. The factor of hue
            is a turn in [-0.5, 0.5], the others multiply.
        blur: Standard deviation in pixels, 0 for none.
        strong: Names and values of strong operations, in order.
    """

    jitter: tuple[tuple[str, float], ...]
    grayscale: bool
    blur: float
    flip: bool
    solarize: bool = False
    strong: Strong = ()


def view_specs(policy: ViewPolicy, spec: AugmentationSpec) -> Mapping[str, AugmentationSpec]:
    """The augmentation of each view of a policy: `spec` with the view's kind, size and changes."""
    return {
        name: replace(spec, kind=view.kind, image_size=view.side(spec.image_size), **view.changes)
        for name, view in policy.views.items()
    }


def crop_box(width: int, height: int, spec: AugmentationSpec, uniforms: Uniforms) -> Box:
    """(left, top, right, bottom) of a random crop, distributed as torchvision's RandomResizedCrop."""
    low, high = math.log(spec.crop_ratio[0]), math.log(spec.crop_ratio[1])
    for attempt in range(CROP_ATTEMPTS):
        area = width * height * _between(spec.crop_scale, uniforms[2 * attempt])
        ratio = math.exp(low + (high - low) * uniforms[2 * attempt + 1])
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left = int((width - crop_width + 1) * uniforms[2 * CROP_ATTEMPTS])
            top = int((height - crop_height + 1) * uniforms[2 * CROP_ATTEMPTS + 1])
            return left, top, left + crop_width, top + crop_height
    return widest_centre(width, height, spec.crop_ratio)


def draw(spec: AugmentationSpec, uniforms: Uniforms) -> Photometric:
    """Turn the uniform numbers of one view into what its photometric operations do."""
    numbers: list[float] = uniforms.tolist()
    strengths = (spec.brightness, spec.contrast, spec.saturation)
    drawn = {
        name: max(0.0, 1 - strength) + (1 + strength - max(0.0, 1 - strength)) * uniform
        for name, strength, uniform in zip(JITTER_ORDERS[0], strengths, numbers[BRIGHTNESS:HUE], strict=False)
    }
    drawn["hue"] = spec.hue * (2 * numbers[HUE] - 1)
    active = {"brightness": spec.brightness, "contrast": spec.contrast, "saturation": spec.saturation, "hue": spec.hue}
    names = JITTER_ORDERS[int(numbers[ORDER] * len(JITTER_ORDERS))] if numbers[JITTER] < spec.jitter else ()
    return Photometric(
        jitter=tuple((name, drawn[name]) for name in names if active[name] > 0),
        grayscale=numbers[GRAYSCALE] < spec.grayscale,
        blur=_between(spec.blur_sigma, numbers[SIGMA]) if numbers[BLUR] < spec.blur else 0.0,
        flip=numbers[FLIP] < spec.flip,
        solarize=spec.solarize > 0 and numbers[SOLARIZE] < spec.solarize,
        strong=operations(numbers[STRONG : spec.uniforms]) if spec.strong else (),
    )


def placed(width: int, height: int, spec: AugmentationSpec) -> tuple[int, int, int, int]:
    """(left, top, width, height) of a whole image on the square; left and top are below zero where it is cut."""
    size = spec.image_size
    if spec.original == "squash":
        return 0, 0, size, size
    side = max(width, height) if spec.original == "pad" else min(width, height)
    across, down = (max(1, round(length * size / side)) for length in (width, height))
    if across * down > MAX_PIXELS:
        raise BadImage(f"the image of {width} x {height} pixels is too thin: it would be resized to {across} x {down}")
    width, height = across, down
    return (size - width) // 2, (size - height) // 2, width, height


def view_box(width: int, height: int, spec: AugmentationSpec, uniforms: Uniforms) -> Shares:
    """Where in an upright image of `width` x `height` pixels a view lies: left, top, right, bottom, in shares of them.

    Left and right are exchanged where the view is mirrored, so that its point at (x, y), in shares of its side, is that
    at `left + x * (right - left)`, `top + y * (bottom - top)` of the image in any case. A padded view reaches beyond 0
    and 1. Reduced decoding, whose pixels are larger, may put the rim of a crop up to a pixel of the view further out.
    What `strong` turns and shears is in no box.
    """
    if spec.kind == "crop":
        left, top, right, bottom = crop_box(width, height, spec, uniforms)
        box = left / width, top / height, right / width, bottom / height
    else:
        box = whole_box(width, height, spec)
    return (box[2], box[1], box[0], box[3]) if uniforms[FLIP] < spec.flip else box


def whole_box(width: int, height: int, spec: AugmentationSpec) -> Shares:
    """`view_box` of a whole image that is not mirrored."""
    size = spec.image_size
    left, top, across, down = placed(width, height, spec)
    return -left / across, -top / down, (size - left) / across, (size - top) / down


def _between(limits: tuple[float, float], uniform: float) -> float:
    return limits[0] + (limits[1] - limits[0]) * float(uniform)


def widest_centre(width: int, height: int, ratios: tuple[float, float]) -> Box:
    """The largest centred box whose ratio is allowed: what torchvision takes when ten draws did not fit."""
    crop_width, crop_height = width, height
    if width / height < ratios[0]:
        crop_height = max(1, round(width / ratios[0]))
    elif width / height > ratios[1]:
        crop_width = max(1, round(height * ratios[1]))
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    return left, top, left + crop_width, top + crop_height
