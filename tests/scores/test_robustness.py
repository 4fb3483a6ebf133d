"""The random crops of the robustness test, and what is made of their accuracies."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from leoclr.evals.features.extract import Features
from leoclr.evals.robustness import RandomCrop, crop_drop, square_part
from leoclr.evals.scores import ProbeKind, robustness_score


def ramp(width: int, height: int) -> Image.Image:
    """Red grows from left to right and green from top to bottom, so that a crop tells where it was taken."""
    red, green = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([red, green, 0 * red], axis=2).astype(np.uint8))


def area(crop: NDArray[np.uint8]) -> float:
    """Share of the ramp that a crop covers."""
    middle = len(crop) // 2
    width, height = (np.ptp(line.astype(float)) / 255 for line in (crop[middle, :, 0], crop[:, middle, 1]))
    return float(width * height)


def test_a_crop_depends_on_seed_and_sample_alone() -> None:
    image = ramp(80, 60)
    crop = RandomCrop(32, seed=3)(image, 7)
    assert crop.shape == (32, 32, 3) and crop.dtype == np.uint8
    assert np.array_equal(crop, RandomCrop(32, seed=3)(image, 7))
    assert not np.array_equal(crop, RandomCrop(32, seed=4)(image, 7))
    assert not np.array_equal(crop, RandomCrop(32, seed=3)(image, 8))


@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.5, 0.6)])
def test_crops_cover_the_share_of_the_area_that_is_asked_for(scale: tuple[float, float]) -> None:
    image = ramp(300, 200)
    areas = [area(RandomCrop(64, seed=0, scale=scale)(image, sample)) for sample in range(200)]
    assert scale[0] - 0.05 < min(areas) < max(areas) < scale[1] + 0.05
    # Draws that do not fit into the square are repeated, which favours small ones.
    assert sum(scale) / 2 - 0.12 < np.mean(areas) < sum(scale) / 2 + 0.02


def test_crops_lie_everywhere() -> None:
    image = ramp(200, 200)
    crops = [RandomCrop(32, seed=1, scale=(0.1, 0.1))(image, sample) for sample in range(200)]
    centres = np.array([[crop[16, 16, 0], crop[16, 16, 1]] for crop in crops]) / 255
    assert centres.min() < 0.25 and centres.max() > 0.75
    assert np.abs(centres.mean(axis=0) - 0.5).max() < 0.06


def test_the_whole_area_is_the_squashed_image() -> None:
    crop = RandomCrop(56, seed=0, scale=(1.0, 1.0))
    expected = ramp(90, 50).resize((64, 64), Image.Resampling.BICUBIC).resize((56, 56), Image.Resampling.BICUBIC)
    found = [crop(ramp(90, 50), sample) for sample in range(10)]
    assert any(np.array_equal(one, np.asarray(expected)) for one in found)


def test_the_protocol_tells_crops_apart() -> None:
    protocols = {RandomCrop(224, 0).protocol, RandomCrop(224, 1).protocol, RandomCrop(224, 0, (0.2, 1.0)).protocol}
    assert len(protocols) == 3
    assert RandomCrop(224, 5).protocol == (
        "resized to 256 x 256 px (bicubic), random crop of 0.08-1 of the area to 224 px, seed 5"
    )


def test_the_interval_is_students() -> None:
    drop = crop_drop(0.9, [0.80, 0.82, 0.81, 0.85, 0.77])
    deviation = math.sqrt(sum((value - 0.81) ** 2 for value in (0.80, 0.82, 0.81, 0.85, 0.77)) / 4)
    assert drop.mean == pytest.approx(0.81)
    assert drop.drop == pytest.approx(0.09)
    assert drop.half_width == pytest.approx(2.7764 * deviation / math.sqrt(5), rel=1e-4)  # t of 4 degrees of freedom
    assert crop_drop(0.9, [0.8]).half_width is None


def blurred(features: Features, noise: float, seed: int) -> Features:
    added = noise * np.random.default_rng(seed).normal(size=features.features.shape)
    return Features(features.features + added.astype(np.float32), features.labels, features.numbers)


@pytest.mark.parametrize("probe", ["linear", "knn"])
def test_the_score_sets_random_beside_centre(probe: ProbeKind) -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 6, 300)
    clean = np.eye(6, dtype=np.float32)[labels] + 0.05 * random.normal(size=(300, 6)).astype(np.float32)
    train = Features(clean[:200], labels[:200], np.arange(200))
    centre = Features(clean[200:], labels[200:], np.arange(100))
    crops = [blurred(centre, 0.6, seed) for seed in range(4)]
    score = robustness_score(train, centre, crops, probe=probe)
    rows = {row.key: row for row in score.rows}
    assert rows["centre"].values["top1"] == 1.0
    assert rows["random"].values["top1"] == pytest.approx(np.mean(score.details["random"]["top1"]))
    assert 0.2 < rows["random"].values["top1"] < 0.95
    assert rows["drop"].values["top1"] == pytest.approx(1.0 - rows["random"].values["top1"])
    assert 0 < rows["random"].half_widths["top1"] < 0.2
    assert len(score.details["random"]["top5"]) == 4
    assert "4 crop seeds" in score.protocol[0]


def test_a_square_part_has_its_share_of_the_area_and_is_square() -> None:
    image = ramp(300, 200)
    for share in (0.08, 0.4, 1.0):
        found = [square_part(64, seed, share)(image, 5) for seed in range(5)]
        assert [area(crop) for crop in found] == pytest.approx([share] * 5, abs=0.05)
    assert np.array_equal(square_part(64, 0, 1.0)(image, 1), square_part(64, 9, 1.0)(image, 2))
    assert not np.array_equal(square_part(64, 0, 0.4)(image, 1), square_part(64, 9, 0.4)(image, 1))
