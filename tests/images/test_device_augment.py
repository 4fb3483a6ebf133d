"""The augmentations of whole batches, beside Pillow's with the same parameters; and runs that use them."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor

from leoclr.cli.config.resolve import differences, resolve
from leoclr.cli.config.settings import Settings
from leoclr.cli.preflight.auto import DataFacts, settle
from leoclr.cli.training import trainer as training
from leoclr.datasets.images.augment_device import crop_boxes, draw_all, photometric
from leoclr.datasets.images.augment_pillow import apply
from leoclr.datasets.images.augmentation import UNIFORMS, AugmentationSpec, crop_box, draw, view_specs
from leoclr.datasets.loading.device_feed import on_device
from leoclr.datasets.loading.loader import StepDataset, batches
from leoclr.datasets.loading.plan import Plan
from leoclr.datasets.loading.view_maker import ViewMaker
from leoclr.datasets.randomness import uniforms
from leoclr.datasets.shards.locate import open_data
from leoclr.datasets.views import POLICIES

MakeShards = Callable[..., Path]
MakeSettings = Callable[..., Settings]

VIEWS = 24
NOTHING: dict[str, Any] = {
    "jitter": 1.0,
    "brightness": 0.0,
    "contrast": 0.0,
    "saturation": 0.0,
    "hue": 0.0,
    "grayscale": 0.0,
    "blur": 0.0,
    "flip": 0.0,
}


def draws(count: int = VIEWS, seed: int = 1) -> NDArray[np.float64]:
    return uniforms(seed, 0, np.arange(count), 0, UNIFORMS)


def crops(spec: AugmentationSpec) -> list[Image.Image]:
    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    size = (spec.image_size, spec.image_size)
    return [
        (photograph := photographs[row % 2])
        .crop(crop_box(*photograph.size, spec, numbers))
        .resize(size, Image.Resampling.BILINEAR)
        for row, numbers in enumerate(draws())
    ]


def as_batch(images: list[Image.Image]) -> Tensor:
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)


@pytest.mark.parametrize("size", [32, 96])
@pytest.mark.parametrize(
    ("changes", "mean", "largest"),  # differences in levels of 255; the mean is that of the worst view
    [
        ({}, 0.0, 0),
        ({"brightness": 0.4}, 0.0, 0),
        ({"contrast": 0.4}, 0.0, 0),
        ({"saturation": 0.4}, 0.0, 0),
        ({"hue": 0.5}, 0.01, 8),
        ({"grayscale": 1.0}, 0.0, 0),
        ({"flip": 1.0}, 0.0, 0),
        ({"blur": 1.0}, 0.7, 4),
        ({"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}, 0.02, 12),
        ({"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2, "grayscale": 0.2}, 0.05, 30),
    ],
)
def test_each_operation_is_pillows(size: int, changes: dict[str, float], mean: float, largest: int) -> None:
    spec = AugmentationSpec(size, **NOTHING | changes)
    images = crops(spec)
    expected = as_batch([apply(image, draw(spec, numbers)) for image, numbers in zip(images, draws(), strict=True)])
    found = photometric(as_batch(images), draw_all(spec, draws()))
    assert found.dtype == torch.uint8 and found.is_contiguous(memory_format=torch.channels_last)
    difference = (found.int() - expected.int()).abs()
    assert difference.float().mean(dim=(1, 2, 3)).max() <= mean
    assert difference.max() <= largest
    if changes:
        assert (expected.int() - as_batch(images).int()).abs().max() > 0  # something was done


def test_a_view_of_moco_v2_is_pillows_within_a_level() -> None:
    spec = AugmentationSpec(224)
    images = crops(spec)
    expected = as_batch([apply(image, draw(spec, numbers)) for image, numbers in zip(images, draws(), strict=True)])
    difference = (photometric(as_batch(images), draw_all(spec, draws())).int() - expected.int()).abs().float()
    assert difference.mean() <= 0.25 and difference.mean(dim=(1, 2, 3)).max() <= 0.7


def test_all_orders_of_the_jitter_are_drawn_as_one_by_one() -> None:
    spec = AugmentationSpec(8, blur=0.0, brightness=0.9, contrast=0.9, saturation=0.9, hue=0.3)
    numbers = draws(400, seed=2)
    noise = np.random.default_rng(0).integers(0, 256, (400, 8, 8, 3), dtype=np.uint8)
    expected = as_batch(
        [apply(Image.fromarray(image), draw(spec, row)) for image, row in zip(noise, numbers, strict=True)]
    )
    found = photometric(as_batch([Image.fromarray(image) for image in noise]), draw_all(spec, numbers))
    orders = {tuple(name for name, _ in draw(spec, row).jitter) for row in numbers}
    assert len(orders) == 25  # all of them, and none
    difference = (found.int() - expected.int()).abs().float()
    assert difference.mean(dim=(1, 2, 3)).max() < 1 and difference.mean() < 0.02  # hues at the edge of a level


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 2.0, 5.0, 20.0])
def test_any_width_of_the_blur(sigma: float) -> None:
    spec = AugmentationSpec(24, **NOTHING | {"jitter": 0.0, "blur": 1.0}, blur_sigma=(sigma, sigma))
    images = crops(spec)
    expected = as_batch([apply(image, draw(spec, numbers)) for image, numbers in zip(images, draws(), strict=True)])
    difference = (photometric(as_batch(images), draw_all(spec, draws())).int() - expected.int()).abs().float()
    assert difference.mean() < 1


@pytest.mark.parametrize(("width", "height"), [(640, 427), (32, 32), (9, 200), (300, 4)])
@pytest.mark.parametrize("scale", [(0.2, 1.0), (0.9, 1.0)])
def test_crops_are_drawn_as_one_by_one(width: int, height: int, scale: tuple[float, float]) -> None:
    spec = AugmentationSpec(32, crop_scale=scale)
    numbers = draws(300)
    assert crop_boxes(width, height, spec, numbers).tolist() == [
        list(crop_box(width, height, spec, row)) for row in numbers
    ]


def test_a_view_does_not_depend_on_the_rest_of_the_batch() -> None:
    spec = AugmentationSpec(32)
    pixels, parameters = as_batch(crops(spec)), draw_all(spec, draws())
    together = photometric(pixels, parameters)
    alone = torch.cat([photometric(pixels[row : row + 1], parameters[row : row + 1]) for row in range(VIEWS)])
    assert torch.equal(together, alone)


def test_workers_ship_squares_and_what_is_left_to_do(make_shards: MakeShards) -> None:
    index = open_data([str(make_shards((9, 5), bad=(3,)))])

    def views(executor: Any, workers: int) -> list[dict[str, Tensor]]:
        spec = AugmentationSpec(12, executor=executor)
        data = StepDataset(index, Plan.of(index, 6, 3), POLICIES["leoclr"], spec)
        loaded = list(batches(data, 0, 4, workers))
        assert all(bool(batch.draws) == (executor == "device") for batch in loaded)
        finish = ViewMaker(view_specs(POLICIES["leoclr"], spec))
        return [finish(batch.inputs) for batch in on_device(iter(loaded), torch.device("cpu"))]

    device, workers, pillow = views("device", 0), views("device", 2), views("pillow", 0)
    for one, other, reference in zip(device, workers, pillow, strict=True):
        for name in one:
            assert torch.equal(one[name], other[name])
            assert (one[name].int() - reference[name].int()).abs().float().mean() < 1


@pytest.fixture
def settings(tiny_settings: MakeSettings) -> MakeSettings:
    """Two epochs."""
    return partial(tiny_settings, train__epochs="2", run__checkpoint_epochs="0")


def train(chosen: Settings, run: Path, resume: bool = False) -> bytes:
    result = training.train(chosen, run, None, ["test"], resume)
    return (Path(result.checkpoint) / "model.safetensors").read_bytes()


def test_a_run_keeps_the_executor_that_auto_found_at_its_start(
    make_shards: MakeShards, tmp_path: Path, settings: MakeSettings
) -> None:
    data = make_shards((16,))
    device = settings(data, augmentation__executor="device", run__checkpoint_epochs="1")
    whole = train(device, tmp_path / "run")
    recorded = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]
    assert recorded["augmentation"]["executor"] == "device"
    second = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    for file in second.iterdir():
        file.unlink()
    second.rmdir()
    auto = settings(data, run__checkpoint_epochs="1")
    assert auto.augmentation.executor == "auto" and not differences(Settings.model_validate(recorded), auto)
    assert train(auto, tmp_path / "run", resume=True) == whole  # bit for bit, and not with the fast executor's pixels
    assert train(settings(data), tmp_path / "fast") != whole


@pytest.mark.parametrize(
    ("device", "recorded", "executor"),
    [
        ("cpu", None, "fast"),
        ("cuda", None, "device"),
        ("cuda", {"augmentation": {"executor": "fast"}}, "fast"),
        ("cuda", {"augmentation": {}}, "pillow"),
    ],
)
def test_auto_is_settled_by_the_device_and_by_what_a_run_began_with(
    device: str, recorded: dict[str, Any] | None, executor: str
) -> None:
    several_sizes = DataFacts(100, None)
    recorded = recorded and recorded | {"data": {}}
    assert settle(Settings(), device, several_sizes, recorded).augmentation.executor == executor
    fixed = resolve(None, None, {}, {"augmentation.executor": "pillow", "data.resident": "no"}).settings
    assert settle(fixed, device, several_sizes, recorded) == fixed
    assert differences(Settings(), fixed) == ["data.resident: auto -> no", "augmentation.executor: auto -> pillow"]
