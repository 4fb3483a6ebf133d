"""The random crops of the robustness test, and what is made of their accuracies."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from leoclr.evals.features.extract import Features
from leoclr.evals.robustness import RandomCrop, crop_drop, cut_share, square_part
from leoclr.evals.robustness_score import Part, ProbeKind, robustness_score


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
    assert not np.array_equal(crop, RandomCrop(32, seed=3, draw=1)(image, 7))


def test_draws_of_neighbouring_seeds_are_not_shared() -> None:
    image = ramp(80, 60)
    crops = [RandomCrop(32, seed, draw)(image, 7).tobytes() for seed in range(4) for draw in range(5)]
    assert len(set(crops)) == 20


def test_a_crop_holds_nothing_of_what_lies_outside() -> None:
    """A bright frame around the part that is cut out does not show in it, as it would through a filter that reaches
    beyond the rim."""
    for share in (0.08, 0.4):
        part = square_part(32, 0, 0, share)
        place = np.arange(37 * 37).reshape(37, 37) // 4
        taken = np.zeros((37, 37), bool)
        shown = part(Image.fromarray(np.stack([place % 256, place // 256, 0 * place], 2).astype(np.uint8)), 3)
        assert shown.shape == (32, 32, 3)
        side = round((share * 37 * 37) ** 0.5)
        for top in range(38 - side):
            for left in range(38 - side):
                inside = Image.fromarray(np.full((37, 37, 3), 255, np.uint8))
                inside.paste((0, 0, 0), (left, top, left + side, top + side))
                taken[top : top + side, left : left + side] |= not part(inside, 3).any()
        assert taken.sum() == side * side  # exactly one place, and all black there


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
    crops = (RandomCrop(224, 0), RandomCrop(224, 1), RandomCrop(224, 0, 1), RandomCrop(224, 0, scale=(0.2, 1.0)))
    assert len({crop.protocol for crop in crops}) == 4
    assert RandomCrop(224, 5, 2).protocol == (
        "resized to 256 x 256 px (bicubic), random part of 0.08-1 of the area cut out and resized to 224 px (bicubic), "
        "seed 5, draw 2"
    )
    assert "random square of 10 px" in square_part(32, 0, 0, 0.08).protocol


def test_the_intervals_are_students_over_draws_and_normal_over_images() -> None:
    random = np.random.default_rng(0)
    centre, drawn = (random.random(shape) < 0.7 for shape in (200, (5, 200)))
    drop = crop_drop(centre.astype(float), drawn.astype(float))
    means = drawn.mean(axis=1)
    deviation = math.sqrt(sum((value - means.mean()) ** 2 for value in means) / 4)
    assert drop.mean == pytest.approx(means.mean()) and drop.drop == pytest.approx(centre.mean() - means.mean())
    assert drop.over_draws == pytest.approx(2.7764 * deviation / math.sqrt(5), rel=1e-4)  # t of 4 degrees of freedom
    share = centre.mean()
    assert drop.centre_over_images == pytest.approx(1.96 * math.sqrt(share * (1 - share) / 199), rel=1e-4)
    differences = [float(one) - float(np.mean(many)) for one, many in zip(centre, drawn.T, strict=True)]
    spread = sum((value - np.mean(differences)) ** 2 for value in differences) / 199
    assert drop.drop_over_images == pytest.approx(1.96 * math.sqrt(spread / 200), rel=1e-4)
    assert crop_drop(centre.astype(float), drawn[:1].astype(float)).over_draws is None


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
    assert 0 < rows["drop"].image_half_widths["top1"] < 0.2 and rows["centre"].image_half_widths["top1"] == 0
    assert score.predictions.keys() == {"centre", *(f"random, draw {draw}" for draw in range(4))}
    assert "4 draws of the crops: an interval over so few says little" in score.notes[-1]
    assert len(score.details["random"]["top5"]) == 4
    assert "over 4 draws of the crops" in score.protocol[0]
    (part,) = robustness_score(train, centre, crops, [Part(0.08, 0.073, crops)], probe=probe).rows[3:]
    assert part.key == "part_0.08" and part.label == "square part, 7.3% of the area"
    assert part.values["top1"] == rows["random"].values["top1"]


def test_a_square_part_has_its_share_of_the_area_and_is_square() -> None:
    image = ramp(300, 200)
    for share in (0.08, 0.4, 1.0):
        found = [square_part(64, 0, draw, share)(image, 5) for draw in range(5)]
        assert [area(crop) for crop in found] == pytest.approx([cut_share(64, share)] * 5, abs=0.05)
    assert np.array_equal(square_part(64, 0, 0, 1.0)(image, 1), square_part(64, 0, 9, 1.0)(image, 2))
    assert not np.array_equal(square_part(64, 0, 0, 0.4)(image, 1), square_part(64, 0, 9, 0.4)(image, 1))


def test_whole_pixels_are_cut_and_their_share_is_told() -> None:
    assert [f"{cut_share(32, share):.3f}" for share in (0.08, 0.15, 0.25, 1.0)] == ["0.073", "0.143", "0.237", "1.000"]
