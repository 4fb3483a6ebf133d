"""`augmentation.reduced_decoding`: a JPEG is decoded at no higher resolution than its views need."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_images

from leoclr.datasets.errors import BadImage
from leoclr.datasets.images import augment_opencv as fast_augment
from leoclr.datasets.images.augmentation import UNIFORMS, AugmentationSpec, crop_box
from leoclr.datasets.images.decode import decode_pixels
from leoclr.datasets.images.executors import EXECUTORS
from leoclr.datasets.randomness import uniforms
from leoclr.datasets.views import ViewKind

KINDS: tuple[ViewKind, ...] = ("whole", "crop", "crop")
WIDTH, HEIGHT = 1277, 851  # in no way multiples of eight


def photograph(format: str = "JPEG", width: int = WIDTH, height: int = HEIGHT, **options: object) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(load_sample_images().images[0]).resize((width, height), Image.Resampling.BICUBIC)
    image.save(buffer, format, **options)
    return buffer.getvalue()


def numbers(sample: int) -> list[NDArray[np.float64]]:
    return [uniforms(0, 0, np.array([sample]), view, UNIFORMS)[0] for view in range(len(KINDS))]


def of_views(spec: AugmentationSpec) -> list[AugmentationSpec]:
    return [replace(spec, kind=kind) for kind in KINDS]


def constant(value: float) -> Callable[[int, int], float]:
    return lambda width, height: value


@pytest.mark.parametrize(("spare", "factor"), [(0.5, 1), (1.9, 1), (2.0, 2), (3.9, 2), (4.0, 4), (7.9, 4), (30.0, 8)])
def test_what_is_spare_decides_the_resolution(spare: float, factor: int) -> None:
    assert decode_pixels(photograph(), constant(spare)).shape == (-(-HEIGHT // factor), -(-WIDTH // factor), 3)
    data = photograph(width=1280, height=848)
    pixels, full = decode_pixels(data, constant(spare)), Image.fromarray(decode_pixels(data))
    alike = np.asarray(full.resize((1280 // factor, 848 // factor), Image.Resampling.BOX)).astype(int)
    assert np.abs(pixels - alike).mean() < 2.0


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_other_formats_are_decoded_in_full(format: str) -> None:
    assert decode_pixels(photograph(format), constant(8.0)).shape == (HEIGHT, WIDTH, 3)


def test_what_pillow_must_decode_is_decoded_in_full() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_pixels(photograph(exif=exif), constant(8.0)).shape == (WIDTH, HEIGHT, 3)


@pytest.mark.parametrize("original", ["squash", "pad", "center"])
def test_a_turned_image_keeps_its_proportions(original: Literal["squash", "pad", "center"]) -> None:
    """The size that decides what is drawn is the upright one."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data, spec = photograph(exif=exif), replace(AugmentationSpec(96, executor="fast"), original=original)
    full, reduced = (
        EXECUTORS["fast"](data, of_views(replace(spec, reduced_decoding=choice)), numbers(0))
        for choice in (False, True)
    )
    assert full[1] == reduced[1] == (HEIGHT, WIDTH)
    np.testing.assert_array_equal(full[0], reduced[0])


def test_damage_is_refused_as_ever() -> None:
    for data in (photograph()[:3000], b"not an image"):
        with pytest.raises(BadImage):
            decode_pixels(data, constant(8.0))


@pytest.mark.parametrize("executor", ["fast", "device"])
@pytest.mark.parametrize("size", [48, 96, 200])
def test_no_view_gets_fewer_pixels_than_it_has(size: int, executor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one in full resolution would have been more than twice as large as needed, or it is in full."""
    data, heights = photograph(), []
    decode = decode_pixels

    def watched(data: bytes, spare: Callable[[int, int], float] | None = None) -> NDArray[np.uint8]:
        pixels = decode(data, spare)
        heights.append(len(pixels))
        return pixels

    monkeypatch.setattr(fast_augment, "decode_pixels", watched)
    spec = AugmentationSpec(size, executor=executor, reduced_decoding=True)  # type: ignore[arg-type]
    for sample in range(20):
        EXECUTORS[executor](data, of_views(spec), numbers(sample))
        boxes = [crop_box(WIDTH, HEIGHT, spec, drawn) for drawn in numbers(sample)[1:]]
        sides = [side for left, top, right, bottom in boxes for side in (right - left, bottom - top)]
        factor = round(HEIGHT / heights[-1])
        spare = min(*sides, HEIGHT) / size
        assert factor <= max(spare, 1) < 2 * max(factor, 1) or factor == 8
    assert len(set(heights)) > 1 or size == 48


def test_the_views_are_nearly_those_of_the_whole_image() -> None:
    data = photograph()
    full, reduced = (AugmentationSpec(96, executor="fast", reduced_decoding=choice) for choice in (False, True))
    differences = [
        np.abs(one.astype(int) - other).mean()
        for sample in range(20)
        for one, other in zip(
            EXECUTORS["fast"](data, of_views(full), numbers(sample))[0],
            EXECUTORS["fast"](data, of_views(reduced), numbers(sample))[0],
            strict=True,
        )
    ]
    assert 0 < np.mean(differences) < 4.0 and max(differences) < 12.0


def test_an_image_that_is_small_already_gives_the_same_views() -> None:
    data = photograph(width=90, height=70)
    full, reduced = (AugmentationSpec(64, executor="fast", reduced_decoding=choice) for choice in (False, True))
    for one, other in zip(
        EXECUTORS["fast"](data, of_views(full), numbers(0))[0],
        EXECUTORS["fast"](data, of_views(reduced), numbers(0))[0],
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)
