"""Strong augmentation: its draws, and one answer from all three executors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images
from torch import Tensor

from leoclr.datasets.images import augment_opencv, augment_pillow
from leoclr.datasets.images.augment_device import draw_all, photometric
from leoclr.datasets.images.augmentation import AugmentationSpec, draw, view_specs
from leoclr.datasets.images.strong import KINDS, apply_strong, operations
from leoclr.datasets.images.strong_device import strong
from leoclr.datasets.loading.device_feed import on_device
from leoclr.datasets.loading.loader import StepDataset, batches
from leoclr.datasets.loading.plan import Plan
from leoclr.datasets.loading.resident import load_resident, resident_batches
from leoclr.datasets.loading.view_maker import ViewMaker
from leoclr.datasets.randomness import uniforms
from leoclr.datasets.shards.locate import open_data
from leoclr.datasets.views import View, ViewPolicy

Pixels = NDArray[np.uint8]
NOTHING: dict[str, Any] = {"jitter": 0.0, "grayscale": 0.0, "blur": 0.0, "flip": 0.0}
VALUES = {
    "identity": (0.0,),
    "auto-contrast": (0.0,),
    "equalize": (0.0,),
    "brightness": (0.14, 0.86),
    "contrast": (0.14, 0.5, 0.86),
    "color": (0.14, 0.86),
    "sharpness": (0.14, 0.86),
    "posterize": (4, 5, 7),
    "solarize": (231, 26, 128),
    "rotate": (3, -15, 27),
    "shear-x": (0.03, -0.27),
    "shear-y": (0.15, -0.03),
    "translate-x": (0.27, -0.09),
    "translate-y": (-0.18, 0.09),
}


def pictures(side: int) -> list[Pixels]:
    """Photographs, noise, and pictures of few levels, of one and of none."""
    random = np.random.default_rng(0)
    photographs = [np.asarray(Image.fromarray(one).resize((side, side))) for one in load_sample_images().images]
    noise = random.integers(0, 256, (side, side, 3), dtype=np.uint8)
    few = random.integers(100, 103, (side, side, 3), dtype=np.uint8)
    return [*photographs, noise, few, np.full((side, side, 3), 77, np.uint8), np.zeros((side, side, 3), np.uint8)]


def as_batch(images: list[Pixels]) -> Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("side", [32, 41])
@pytest.mark.parametrize("kind", KINDS)
def test_an_operation_on_the_device_is_pillows_to_the_bit(kind: str, side: int) -> None:
    images = pictures(side)
    for value in VALUES[kind]:
        drawn = () if kind == "identity" else ((kind, value),)
        parameters = torch.tensor([[KINDS.index(kind), round(value * 1000)]] * len(images), dtype=torch.float32)
        expected = [np.asarray(apply_strong(Image.fromarray(image), drawn)) for image in images]
        np.testing.assert_array_equal(strong(as_batch(images), parameters), as_batch(expected), f"{kind} {value}")
        assert kind == "identity" or not np.array_equal(expected[0], images[0])


def test_views_of_five_operations_agree_among_all_executors() -> None:
    spec, images = AugmentationSpec(32, strong=5, **NOTHING), pictures(32) * 20
    numbers = uniforms(0, 0, np.arange(len(images)), 0, spec.uniforms)
    drawn = [draw(spec, row) for row in numbers]
    pillow = [np.asarray(augment_pillow.apply(Image.fromarray(i), one)) for i, one in zip(images, drawn, strict=True)]
    fast = [augment_opencv.apply(image.copy(), one) for image, one in zip(images, drawn, strict=True)]
    np.testing.assert_array_equal(np.stack(fast), np.stack(pillow))
    np.testing.assert_array_equal(photometric(as_batch(images), draw_all(spec, numbers)), as_batch(pillow))


def test_a_whole_strong_view_agrees_as_well_as_a_weak_one() -> None:
    """Where an operation before the strong ones rounds in another way, equalisation makes more of it."""
    spec = AugmentationSpec(32, strong=5)
    images = pictures(32)[:2] * 30
    numbers = uniforms(1, 0, np.arange(len(images)), 0, spec.uniforms)
    views = [augment_pillow.apply(Image.fromarray(i), draw(spec, row)) for i, row in zip(images, numbers, strict=True)]
    expected = as_batch([np.asarray(view) for view in views]).int()
    difference = (photometric(as_batch(images), draw_all(spec, numbers)).int() - expected).abs().float()
    assert difference.mean() < 1.0


@pytest.mark.parametrize("solarize", [0.0, 0.4])
def test_strong_views_keep_the_draws_of_weak_ones(solarize: float) -> None:
    plain = AugmentationSpec(24, solarize=solarize)
    stronger = replace(plain, strong=3)
    for sample in range(20):
        samples = np.array([sample])
        without, with_more = (uniforms(0, 0, samples, 1, spec.uniforms)[0] for spec in (plain, stronger))
        assert replace(draw(stronger, with_more), strong=()) == draw(plain, without)


def test_operations_are_drawn_evenly_applied_half_the_time_and_of_all_levels() -> None:
    count = 4000
    found = [operations(row) for row in uniforms(3, 0, np.arange(count), 0, 20).tolist()]
    kinds = Counter(kind for one in found for kind, _ in one)
    assert set(kinds) == set(KINDS) - {"identity"}
    expected = count * 5 / 2 / len(KINDS)
    assert all(abs(times - expected) < 5 * expected**0.5 for times in kinds.values())
    values = {kind: sorted({value for one in found for name, value in one if name == kind}) for kind in KINDS}
    assert values["brightness"] == [pytest.approx(0.05 + 0.09 * level) for level in range(1, 10)]
    assert values["posterize"] == [4, 5, 6, 7] and values["solarize"] == [256 - 256 * n // 10 for n in range(9, 0, -1)]
    assert values["rotate"] == sorted(sign * 3 * level for level in range(1, 10) for sign in (1, -1))
    assert max(values["shear-x"]) == 0.27 and min(values["translate-y"]) == -0.27


def test_a_view_does_not_depend_on_the_rest_of_the_batch() -> None:
    spec, images = AugmentationSpec(32, strong=5), as_batch(pictures(32))
    parameters = draw_all(spec, uniforms(0, 0, np.arange(len(images)), 0, spec.uniforms))
    alone = [photometric(images[row : row + 1], parameters[row : row + 1]) for row in range(len(images))]
    assert torch.equal(photometric(images, parameters), torch.cat(alone))


def test_solarisation_agrees_among_all_executors() -> None:
    spec, images = AugmentationSpec(32, solarize=0.5, **NOTHING), pictures(32) * 4
    numbers = uniforms(0, 0, np.arange(len(images)), 0, spec.uniforms)
    drawn = [draw(spec, row) for row in numbers]
    assert len({one.solarize for one in drawn}) == 2
    expected = [
        np.asarray(ImageOps.solarize(Image.fromarray(image), 128)) if one.solarize else image
        for image, one in zip(images, drawn, strict=True)
    ]
    fast = [augment_opencv.apply(image.copy(), one) for image, one in zip(images, drawn, strict=True)]
    pillow = [np.asarray(augment_pillow.apply(Image.fromarray(i), one)) for i, one in zip(images, drawn, strict=True)]
    np.testing.assert_array_equal(np.stack(fast), np.stack(expected))
    np.testing.assert_array_equal(np.stack(pillow), np.stack(expected))
    np.testing.assert_array_equal(photometric(as_batch(images), draw_all(spec, numbers)), as_batch(expected))


def test_workers_and_resident_images_make_the_same_strong_views(make_shards: Callable[..., Path]) -> None:
    index = open_data([str(make_shards((12,)))])
    policy = ViewPolicy("own", {"weak": View(), "strong": View(size=0.5, changes={"strong": 5})}, (("weak", "strong"),))
    plan, cpu = Plan.of(index, 6, 3), torch.device("cpu")

    def spec(executor: Any) -> AugmentationSpec:
        return AugmentationSpec(16, executor=executor, blur=0.0)

    def loaded(executor: Any) -> list[dict[str, Tensor]]:
        data, finish = StepDataset(index, plan, policy, spec(executor)), ViewMaker(view_specs(policy, spec(executor)))
        return [finish(batch.inputs) for batch in on_device(batches(data, 0, 2, 0), cpu)]

    images = load_resident(index, cpu, 0)
    assert images is not None
    made = resident_batches(images, plan, policy, spec("device"), 0, 2)
    make = ViewMaker(view_specs(policy, spec("device")), images.pixels)
    resident = [make(batch.inputs) for batch in on_device(made, cpu)]
    for one, other, pillow in zip(loaded("device"), resident, loaded("pillow"), strict=True):
        assert one["strong"].shape == (6, 3, 8, 8)
        for views in (one, other):
            assert (views["strong"].int() - pillow["strong"].int()).abs().float().mean() < 4  # 64 pixels, equalised
