"""Views equal torchvision's, are pure functions of their uniforms, and the whole view is whole."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as F

from leoclr.datasets.images.augment_pillow import apply, augment, whole
from leoclr.datasets.images.augmentation import UNIFORMS, AugmentationSpec, crop_box, draw, view_specs
from leoclr.datasets.policies.original import OriginalViews
from leoclr.datasets.randomness import uniforms
from leoclr.datasets.views import View, ViewKind, ViewPolicy

NEVER = AugmentationSpec(image_size=24, flip=0, jitter=0, grayscale=0, blur=0)
ALWAYS = AugmentationSpec(image_size=24, flip=1, jitter=1, grayscale=1, blur=1)
SIZES = [(500, 375), (33, 47), (24, 24), (1, 1), (1, 500), (300, 2)]


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def drawn(count: int, seed: int = 0) -> NDArray[np.float64]:
    return uniforms(seed, 0, np.arange(count), 0, UNIFORMS)


def reference(image: Image.Image, spec: AugmentationSpec, numbers: NDArray[np.float64]) -> Image.Image:
    """The same view by torchvision's functions on Pillow images, with Pillow's blur as MoCo has it."""
    size = [spec.image_size, spec.image_size]
    left, top, right, bottom = crop_box(*image.size, spec, numbers) if spec.kind == "crop" else (0, 0, *image.size)
    image = F.resized_crop(image, top, left, bottom - top, right - left, size, InterpolationMode.BILINEAR)
    parameters = draw(spec, numbers)
    adjust = {
        "brightness": F.adjust_brightness,
        "contrast": F.adjust_contrast,
        "saturation": F.adjust_saturation,
        "hue": F.adjust_hue,
    }
    for name, factor in parameters.jitter:
        image = adjust[name](image, factor)
    if parameters.grayscale:
        image = F.rgb_to_grayscale(image, num_output_channels=3)
    if parameters.blur:
        image = image.filter(ImageFilter.GaussianBlur(radius=parameters.blur))
    if parameters.solarize:
        image = F.solarize(image, 128)
    return F.hflip(image) if parameters.flip else image


@pytest.mark.parametrize("kind", ["whole", "crop"])
@pytest.mark.parametrize("solarize", [0.0, 0.3])
@pytest.mark.parametrize("size", SIZES)
def test_views_equal_torchvision_bit_for_bit(size: tuple[int, int], solarize: float, kind: ViewKind) -> None:
    spec = AugmentationSpec(image_size=24, kind=kind, hue=0.5, solarize=solarize)
    image = picture(*size)
    for numbers in uniforms(0, 0, np.arange(40), 0, spec.uniforms):
        view = augment(image, spec, numbers)
        assert view.shape == (24, 24, 3) and view.dtype == np.uint8
        np.testing.assert_array_equal(view, np.asarray(reference(image, spec, numbers)))


def test_a_view_that_may_be_solarised_keeps_its_other_draws() -> None:
    plain, solarised = AugmentationSpec(24), AugmentationSpec(24, solarize=1.0)
    numbers = uniforms(0, 0, np.arange(20), 0, solarised.uniforms)
    for with_one_more, without in zip(numbers, drawn(20), strict=True):
        assert draw(solarised, with_one_more) == replace(draw(plain, without), solarize=True)


def test_the_views_of_a_policy_have_sizes_kinds_and_changes_of_their_own() -> None:
    views = {"x": View("whole"), "strong": View(changes={"blur": 1.0}), "small": View(size=0.5, changes={"flip": 0.0})}
    specs = view_specs(ViewPolicy("own", views, (("x", "small"),)), AugmentationSpec(24))
    assert specs["x"] == AugmentationSpec(24, kind="whole") and specs["strong"] == AugmentationSpec(24, blur=1.0)
    assert specs["small"] == AugmentationSpec(12, flip=0.0)


@pytest.mark.parametrize(
    ("settings", "pairs"),
    [
        ({"anchors": "original"}, "x x1, x x2"),
        ({"anchors": "crops"}, "x1 x, x2 x"),
        ({"crops": 1}, "x x1, x1 x"),
        ({"anchors": "original", "crops": 1, "small": 2}, "x x1, s1 x, s2 x"),
    ],
)
def test_crops_are_pulled_to_the_original_and_never_to_each_other(settings: dict[str, Any], pairs: str) -> None:
    policy = OriginalViews(**settings).policy()
    assert policy.pairs == tuple(tuple(pair.split()) for pair in pairs.split(", "))
    assert set(policy.views) == {name for pair in policy.pairs for name in pair}
    assert policy.views["x"].kind == "whole" and all(
        policy.views[name].kind == "crop" for name in policy.views if name != "x"
    )
    assert [policy.views[name].side(32) for name in policy.views if name[0] == "s"] == [16] * settings.get("small", 0)


def test_uniforms_are_all_the_randomness_there_is() -> None:
    spec, image, numbers = AugmentationSpec(image_size=24), picture(40, 30), drawn(2)
    first = augment(image, spec, numbers[0])
    torch.manual_seed(1)
    np.random.seed(1)
    np.testing.assert_array_equal(augment(image, spec, numbers[0].copy()), first)
    assert (augment(image, spec, numbers[1]) != first).any()
    np.testing.assert_array_equal(np.asarray(image), np.asarray(picture(40, 30)))  # the image itself is left alone


@pytest.mark.parametrize(("width", "height"), [(500, 375), (64, 64), (32, 400)])
def test_crops_are_distributed_as_random_resized_crop(width: int, height: int) -> None:
    torch.manual_seed(0)
    spec, count = AugmentationSpec(image_size=24), 4000
    ours = np.array([crop_box(width, height, spec, numbers) for numbers in drawn(count, seed=3)])
    image = Image.new("L", (width, height))
    theirs = np.array(
        [RandomResizedCrop.get_params(image, list(spec.crop_scale), list(spec.crop_ratio)) for _ in range(count)]
    )
    our_width, our_height = ours[:, 2] - ours[:, 0], ours[:, 3] - ours[:, 1]
    top, left, their_height, their_width = theirs.T
    pairs = {
        "area": (our_width * our_height / (width * height), their_width * their_height / (width * height)),
        "log ratio": (np.log(our_width / our_height), np.log(their_width / their_height)),
        "left": (ours[:, 0] / width, left / width),
        "top": (ours[:, 1] / height, top / height),
    }
    for name, (mine, other) in pairs.items():
        levels = np.unique(np.concatenate([mine, other]))
        below = [np.searchsorted(np.sort(values), levels, side="right") / count for values in (mine, other)]
        assert np.abs(below[0] - below[1]).max() < 0.04, name  # Kolmogorov-Smirnov; p = 0.003
    assert ours.min() >= 0 and ours[:, 2].max() <= width and ours[:, 3].max() <= height


def test_crops_show_a_part() -> None:
    spec = AugmentationSpec(image_size=24, crop_scale=(0.2, 0.5))
    boxes = np.array([crop_box(100, 100, spec, numbers) for numbers in drawn(500)])
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / 10_000
    assert 0.19 < areas.min() < 0.22 and 0.47 < areas.max() < 0.51


def corners_marked(width: int, height: int) -> Image.Image:
    """Grey, with a patch of pure colour in each corner."""
    pixels = np.full((height, width, 3), 128, np.uint8)
    pixels[:20, :20], pixels[:20, -20:], pixels[-20:, :20] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    pixels[-20:, -20:] = (255, 255, 0)
    return Image.fromarray(pixels)


def colours_seen(image: Image.Image) -> set[str]:
    pixels = np.asarray(image).astype(int)
    red, green, blue = (pixels[..., channel] for channel in range(3))
    found = {
        "red": (red > 200) & (green < 60) & (blue < 60),
        "green": (green > 200) & (red < 60) & (blue < 60),
        "blue": (blue > 200) & (red < 60) & (green < 60),
        "yellow": (red > 200) & (green > 200) & (blue < 60),
    }
    return {name for name, where in found.items() if where.any()}


@pytest.mark.parametrize("size", [(200, 100), (100, 200), (120, 120)])
def test_the_whole_view_loses_no_rim(size: tuple[int, int]) -> None:
    every = {"red", "green", "blue", "yellow"}
    image = corners_marked(*size)
    assert colours_seen(whole(image, NEVER)) == every
    assert colours_seen(whole(image, replace(NEVER, original="pad"))) == every
    centre = colours_seen(whole(image, replace(NEVER, original="center")))
    assert centre == (every if size[0] == size[1] else set())


def test_padding_and_centre_keep_proportions() -> None:
    image = Image.new("RGB", (80, 40), (255, 0, 0))
    padded = np.asarray(whole(image, replace(NEVER, original="pad")))
    assert (padded[6:18] == (255, 0, 0)).all()
    assert (padded[:6] == (124, 116, 104)).all() and (padded[18:] == (124, 116, 104)).all()

    striped = np.zeros((40, 80, 3), np.uint8)
    striped[:, 20:60] = 255  # the middle square
    centre = whole(Image.fromarray(striped), replace(NEVER, original="center", image_size=40))
    assert (np.asarray(centre) == 255).all()


def test_the_whole_view_is_augmented_but_not_cropped() -> None:
    image = picture(24, 24)
    plain = np.asarray(image)
    np.testing.assert_array_equal(augment(image, replace(NEVER, kind="whole"), drawn(1)[0]), plain)
    changed = [augment(image, replace(AugmentationSpec(image_size=24), kind="whole"), numbers) for numbers in drawn(50)]
    assert sum((view != plain).any() for view in changed) > 40
    flipped = replace(NEVER, flip=1)
    np.testing.assert_array_equal(augment(image, replace(flipped, kind="whole"), drawn(1)[0]), plain[:, ::-1])


def test_probabilities_of_nought_and_one_are_kept() -> None:
    for numbers in drawn(300):
        never, always = draw(NEVER, numbers), draw(ALWAYS, numbers)
        assert not (never.jitter or never.grayscale or never.blur or never.flip)
        assert len(always.jitter) == 4 and always.grayscale and always.blur and always.flip


def test_what_is_drawn_has_the_stated_frequencies_and_ranges() -> None:
    spec, count = AugmentationSpec(image_size=24), 6000
    all_drawn = [draw(spec, numbers) for numbers in drawn(count)]
    for expected, seen in (
        (spec.jitter, sum(bool(one.jitter) for one in all_drawn)),
        (spec.grayscale, sum(one.grayscale for one in all_drawn)),
        (spec.blur, sum(one.blur > 0 for one in all_drawn)),
        (spec.flip, sum(one.flip for one in all_drawn)),
    ):
        assert abs(seen / count - expected) < 0.025  # four standard deviations

    jittered = [one.jitter for one in all_drawn if one.jitter]
    orders = {tuple(name for name, _ in one) for one in jittered}
    assert len(orders) == 24
    for name, low, high in (
        ("brightness", 0.6, 1.4),
        ("contrast", 0.6, 1.4),
        ("saturation", 0.6, 1.4),
        ("hue", -0.1, 0.1),
    ):
        factors = np.array([dict(one)[name] for one in jittered])
        assert factors.min() >= low and factors.max() < high
        assert abs(factors.mean() - (low + high) / 2) < 0.04 * (high - low)
    blurs = np.array([one.blur for one in all_drawn if one.blur])
    assert 0.1 <= blurs.min() < 0.12 and 1.98 < blurs.max() < 2.0


def test_an_operation_of_strength_nought_is_left_out() -> None:
    spec = replace(ALWAYS, hue=0, saturation=0)
    assert all({name for name, _ in draw(spec, n).jitter} == {"brightness", "contrast"} for n in drawn(20))
    strong = replace(ALWAYS, brightness=3)  # a factor is never negative
    assert min(dict(draw(strong, n).jitter)["brightness"] for n in drawn(300)) >= 0


def test_views_and_samples_draw_independently() -> None:
    spec = AugmentationSpec(image_size=24)
    first, second = (
        np.array([draw(spec, numbers).flip for numbers in uniforms(0, 0, np.arange(4000), view, UNIFORMS)])
        for view in (0, 1)
    )
    assert abs((first == second).mean() - 0.5) < 0.035


def test_apply_leaves_the_mode_alone() -> None:
    for numbers in drawn(20):
        assert apply(picture(8, 8), draw(ALWAYS, numbers)).mode == "RGB"
