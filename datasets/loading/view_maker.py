"""Makes the views of a batch on the device, from what the host has drawn: crops of resident images, jitter, blur, flip.

It is the first part of a training step. Shapes depend on no draw and nothing comes from the host, so a CUDA graph can
hold it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from leoclr.datasets.images.augment_device import photometric
from leoclr.datasets.images.augmentation import AugmentationSpec
from leoclr.datasets.images.crop_device import crops, wholes

SAMPLES = " samples"  # names of inputs; a view's name has no space


def parameters_of(view: str) -> str:
    """The name of a view's parameters, as `augment_device.draw_all` returns them."""
    return f"{view} parameters"


def boxes_of(view: str) -> str:
    """The name of a view's boxes: left, top, right, bottom of its crops, float32, `(n, 4)`."""
    return f"{view} boxes"


class ViewMaker:
    """Call it with the inputs of a batch, on the device, for its finished views.

    Args:
        specs: The augmentation of each view.
        images: All images of the data set, uint8, `(samples, 3, height, width)`, where they are resident.
    """

    def __init__(self, specs: Mapping[str, AugmentationSpec], images: Tensor | None = None) -> None:
        self._specs, self._images = specs, images

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """uint8 views by name, `(n, 3, size, size)`, channels last in memory."""
        if self._images is None:
            views = {name: inputs[name] for name in self._specs}
        else:
            views = self._cropped(self._images[inputs[SAMPLES]], inputs)
        drawn = {name: inputs[key] for name in views if (key := parameters_of(name)) in inputs}
        for names in _together({name: (views[name].shape, each.shape) for name, each in drawn.items()}, views):
            blurred = any(self._specs[name].blur > 0 for name in names)
            made = photometric(_joined(views, names), _joined(drawn, names), blurred)
            views |= zip(names, made.chunk(len(names)), strict=True)
        return views

    def _cropped(self, images: Tensor, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        boxes = {name: inputs[boxes_of(name)] for name, spec in self._specs.items() if spec.kind == "crop"}
        views = {name: wholes(images, spec) if spec.kind == "whole" else images for name, spec in self._specs.items()}
        for names in _together({name: self._specs[name].image_size for name in boxes}, boxes):
            made = crops(images, _joined(boxes, names), self._specs[names[0]].image_size)
            views |= zip(names, made.chunk(len(names)), strict=True)
        return views


def _together(kinds: Mapping[str, object], tensors: Mapping[str, Tensor]) -> list[list[str]]:
    """Names of the views that are made in one call: on a GPU, where launching kernels is what it costs, all of one
    kind; on a CPU, whose caches hold less, each by itself. Their pixels are the same either way."""
    alike: dict[object, list[str]] = {}
    for name, kind in kinds.items():
        alike.setdefault(kind if tensors[name].is_cuda else name, []).append(name)
    return list(alike.values())


def _joined(tensors: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    return tensors[names[0]] if len(names) == 1 else torch.cat([tensors[name] for name in names])
