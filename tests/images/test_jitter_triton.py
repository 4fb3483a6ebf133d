"""The jitter's kernels, which run here in Triton's interpreter, beside the operations one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from leoclr.backends.networks.batchnorm_groups import why_no_triton
from leoclr.datasets.images import augment_device
from leoclr.datasets.images.augment_device import draw_all
from leoclr.datasets.images.augmentation import UNIFORMS, AugmentationSpec
from leoclr.datasets.randomness import uniforms

jitter: Any = pytest.importorskip("leoclr.datasets.images.jitter_triton", exc_type=ImportError).jitter
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.skipif(DEVICE == "cuda" and why_no_triton() is not None, reason="Triton does not start here")


@pytest.mark.parametrize(
    ("size", "views", "memory_format"),
    [(9, 40, torch.contiguous_format), (33, 4, torch.channels_last)],  # the larger one in more than one program
)
def test_a_kernel_jitters_as_the_operations_one_by_one(size: int, views: int, memory_format: Any) -> None:
    spec = AugmentationSpec(size, brightness=0.9, contrast=0.9, saturation=0.9, hue=0.5)
    parameters = draw_all(spec, uniforms(2, 0, np.arange(views), 0, UNIFORMS))
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (views, 3, size, size), generator=generator, dtype=torch.uint8)
    pixels[:, :, :, 0], pixels[:, :, 0] = 255, 0  # the ends of the range, and greys without a hue
    expected = augment_device._jitter(pixels, parameters[:, :, None, None, None])
    found = jitter(pixels.contiguous(memory_format=memory_format).to(DEVICE), parameters.to(DEVICE)).cpu()
    assert found.dtype == torch.float32 and found.is_contiguous()
    assert (expected != pixels).flatten(1).any(dim=1).sum() > views / 2
    different = (found != expected).float().mean().item()
    assert different <= (0 if DEVICE == "cpu" else 0.01)  # a GPU multiplies and adds in one rounding
    assert (found - expected).abs().mean() < 0.01
