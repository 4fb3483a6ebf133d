"""Where in its image each view lies: the boxes that the executors cut, in shares of the image.

A box is left, top, right, bottom, each as a share of the upright image's width or height. Where the view is mirrored,
left and right are exchanged, so that the point at (x, y) of the view, in shares of its side, always lies at
`left + x * (right - left)`, `top + y * (bottom - top)` of the image. A padded view reaches beyond 0 and 1. Strong
operations (`AugmentationSpec.strong`) may turn and shear a view, which no box can say.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from leoclr.datasets.images.augment_device import crop_boxes
from leoclr.datasets.images.augmentation import FLIP, AugmentationSpec, Uniforms, crop_box, placed

Shares = tuple[float, float, float, float]


def view_box(width: int, height: int, spec: AugmentationSpec, uniforms: Uniforms) -> Shares:
    """The box of one view of an upright image of `width` x `height` pixels, from uniforms of shape `(spec.uniforms,)`.

    With reduced decoding, which cuts at whole pixels of the smaller image, the view may begin and end up to one of its
    own pixels further out.
    """
    if spec.kind == "crop":
        left, top, right, bottom = crop_box(width, height, spec, uniforms)
        box = left / width, top / height, right / width, bottom / height
    else:
        box = _of_whole(width, height, spec)
    left_share, top_share, right_share, bottom_share = box
    return (right_share, top_share, left_share, bottom_share) if uniforms[FLIP] < spec.flip else box


def view_boxes(width: int, height: int, spec: AugmentationSpec, uniforms: NDArray[np.float64]) -> NDArray[np.float32]:
    """`view_box` for views of many images of one size, from uniforms of shape `(n, spec.uniforms)`: `(n, 4)`."""
    if spec.kind == "crop":
        boxes = crop_boxes(width, height, spec, uniforms) / (width, height, width, height)
    else:
        boxes = np.tile(_of_whole(width, height, spec), (len(uniforms), 1))
    mirrored = uniforms[:, FLIP, None] < spec.flip
    return np.where(mirrored, boxes[:, [2, 1, 0, 3]], boxes).astype(np.float32)


def _of_whole(width: int, height: int, spec: AugmentationSpec) -> Shares:
    left, top, across, down = placed(width, height, spec)
    size = spec.image_size
    return -left / across, -top / down, (size - left) / across, (size - top) / down
