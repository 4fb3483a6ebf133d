"""The fast executor beside Pillow's, which is torchvision's bit for bit: photographs, and the same drawn parameters.

Differences are means over all pixels and channels, in levels of 255.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_images

from leoclr.datasets.errors import BadImage
from leoclr.datasets.images import augment_opencv as fast_augment
from leoclr.datasets.images import augment_pillow as augment
from leoclr.datasets.images.augmentation import UNIFORMS, AugmentationSpec, Photometric, draw
from leoclr.datasets.images.decode import decode_image, decode_pixels
from leoclr.datasets.images.executors import EXECUTORS, one_view
from leoclr.datasets.loading.loader import StepDataset, batches
from leoclr.datasets.loading.plan import Plan
from leoclr.datasets.randomness import uniforms
from leoclr.datasets.shards.locate import open_data
from leoclr.datasets.views import POLICIES, ViewKind

Pixels = NDArray[np.uint8]
SPEC = AugmentationSpec(224)


@pytest.fixture(scope="module")
def photographs() -> list[Pixels]:
    return [image.copy() for image in load_sample_images().images]


@pytest.fixture(scope="module")
def squares(photographs: list[Pixels]) -> list[Pixels]:
    return [
        fast_augment.square(image, SPEC, numbers(number))
        for number in range(12)
        for image in photographs
    ]  # fmt: skip


def numbers(sample: int, view: int = 0) -> NDArray[np.float64]:
    drawn: NDArray[np.float64] = uniforms(0, 0, np.array([sample]), view, UNIFORMS)[0]
    return drawn


def difference(one: Pixels, other: object) -> float:
    return float(np.abs(one.astype(int) - np.asarray(other).astype(int)).mean())


def drawn(
    jitter: str = "", factor: float = 1.0, grayscale: bool = False, blur: float = 0.0, flip: bool = False
) -> Photometric:
    return Photometric(((jitter, factor),) if jitter else (), grayscale, blur, flip)


@pytest.mark.parametrize(
    ("operation", "mean", "worst"),
    [
        ([drawn("brightness", factor) for factor in (0.6, 0.9, 1.1, 1.4)], 0.1, 0.3),
        ([drawn("contrast", factor) for factor in (0.6, 0.9, 1.1, 1.4)], 0.1, 0.3),
        ([drawn("saturation", factor) for factor in (0.6, 0.9, 1.1, 1.4)], 0.2, 0.4),
        ([drawn("hue", turn) for turn in (-0.1, -0.03, 0.03, 0.1)], 1.0, 1.5),
        ([drawn(grayscale=True)], 0.05, 0.1),
        ([drawn(blur=sigma) for sigma in (0.1, 0.5, 1.0, 2.0)], 0.5, 1.0),
        ([drawn(flip=True), drawn()], 0.0, 0.0),
    ],
    ids=["brightness", "contrast", "saturation", "hue", "grayscale", "blur", "flip"],
)
def test_each_operation_is_pillows_but_for_rounding(
    operation: list[Photometric], mean: float, worst: float, squares: list[Pixels]
) -> None:
    found = [
        difference(fast_augment.apply(square.copy(), one), augment.apply(Image.fromarray(square), one))
        for square in squares
        for one in operation
    ]
    assert np.mean(found) <= mean and max(found) <= worst


@pytest.mark.parametrize(("size", "blur"), [(224, 0.5), (32, 0.0)])
@pytest.mark.parametrize("kind", ["whole", "crop"])
def test_whole_views_are_within_a_level_in_the_mean(
    size: int, blur: float, kind: ViewKind, photographs: list[Pixels]
) -> None:
    spec = AugmentationSpec(size, blur=blur, crop_scale=(0.08, 1.0))
    found = []
    for sample in range(30):
        image = photographs[sample % 2]
        if size == 32:
            image = np.array(Image.fromarray(image).resize((32, 32)))
        view = fast_augment.augment(image, replace(spec, kind=kind), numbers(sample))
        assert view.shape == (size, size, 3) and view.dtype == np.uint8
        found.append(
            difference(view, augment.augment(Image.fromarray(image), replace(spec, kind=kind), numbers(sample)))
        )
    assert np.mean(found) <= 1.0 and max(found) <= 2.5


@pytest.mark.parametrize("original", ["squash", "pad", "center"])
def test_the_original_becomes_a_square_alike(original: str, photographs: list[Pixels]) -> None:
    spec = AugmentationSpec(96, original=original)  # type: ignore[arg-type]
    for image in photographs:
        square = fast_augment.square(image, replace(spec, kind="whole"), numbers(0))
        assert difference(square, augment.whole(Image.fromarray(image), spec)) <= 0.6


@pytest.mark.parametrize("size", [(500, 375), (20, 300), (16, 16), (1, 1)])
def test_every_size_gives_a_view(size: tuple[int, int], photographs: list[Pixels]) -> None:
    image = np.array(Image.fromarray(photographs[0]).resize(size))
    kinds: list[ViewKind] = ["whole", "crop"]
    for kind in kinds:
        view = fast_augment.augment(image, replace(AugmentationSpec(32), kind=kind), numbers(1))
        assert view.shape == (32, 32, 3)


def test_the_image_is_left_alone_and_the_same_numbers_give_the_same_view(photographs: list[Pixels]) -> None:
    before = photographs[0].copy()
    one, other = (fast_augment.augment(photographs[0], SPEC, numbers(3)) for _ in range(2))
    assert np.array_equal(one, other) and np.array_equal(photographs[0], before)


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "GIF", "damaged", "text"])
def test_both_executors_read_and_refuse_the_same(name: str, photographs: list[Pixels]) -> None:
    buffer = io.BytesIO()
    if name in ("damaged", "text"):
        Image.fromarray(photographs[0]).save(buffer, "JPEG")
        data = buffer.getvalue()[:200] if name == "damaged" else b"not an image"
        for executor in ("fast", "pillow"):
            with pytest.raises(BadImage):
                EXECUTORS[executor](data, [replace(SPEC, kind="whole")], [numbers(0)])
        return
    Image.fromarray(photographs[0]).save(buffer, name)
    plain = AugmentationSpec(224, kind="whole", jitter=0, grayscale=0, blur=0, flip=0)
    fast, reference = (
        EXECUTORS[executor](buffer.getvalue(), [plain], [numbers(0)])[0][0] for executor in ("fast", "pillow")
    )
    assert difference(fast, reference) <= 1.0


def test_jitter_in_any_order_is_pillows(squares: list[Pixels]) -> None:
    """Operations that are joined into one matrix stand for those that follow each other, clipping included."""
    orders = [draw(SPEC, numbers(sample, view=2)) for sample in range(60)]
    orders = [Photometric(one.jitter, False, 0.0, False) for one in orders if one.jitter]
    assert len({tuple(name for name, _ in one.jitter) for one in orders}) > 12
    found = [
        difference(fast_augment.apply(square.copy(), one), augment.apply(Image.fromarray(square), one))
        for square, one in zip(squares * 3, orders, strict=False)
    ]
    assert np.mean(found) <= 1.0 and max(found) <= 2.0


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def test_the_fast_decoder_gives_pillows_pixels(photographs: list[Pixels]) -> None:
    """Colour, sampling, orientation, depth: for all there is one answer, to the bit."""
    image = Image.fromarray(photographs[0]).resize((131, 77))
    deep = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    files = {
        **{f"subsampling {kind}": encoded(image, "JPEG", subsampling=kind) for kind in (0, 1, 2)},
        **{f"orientation {turn}": encoded(image, "JPEG", exif=turned(turn)) for turn in (1, 3, 6, 9)},
        **{mode: encoded(image.convert(mode), "JPEG") for mode in ("L", "CMYK", "YCbCr")},
        "RGB": encoded(image, "JPEG", keep_rgb=True),
        "progressive": encoded(image, "JPEG", progressive=True),
        "palette": encoded(image.convert("P"), "PNG"),
        "16 bit": encoded(deep, "PNG"),
        "transparent": encoded(image.convert("RGBA"), "WEBP"),
    }
    for name, data in files.items():
        pixels = decode_pixels(data)
        np.testing.assert_array_equal(pixels, np.asarray(decode_image(data)), err_msg=name)
        assert pixels.flags.writeable, name  # torch warns of others


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}])
def test_damaged_jpegs_are_refused_by_both_decoders_or_by_none(options: dict[str, object]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    good = encoded(Image.fromarray(noise), "JPEG", **options)
    generator = np.random.default_rng(1)
    refused = 0
    for attempt in range(400):
        data = bytearray(good)
        if attempt % 4 == 0:
            data = data[: generator.integers(2, len(good))]
        for place in generator.integers(0, len(data), attempt % 3):
            data[place] = generator.integers(256)
        try:
            expected = np.asarray(decode_image(bytes(data)))
        except BadImage:
            refused += 1
            with pytest.raises(BadImage):
                decode_pixels(bytes(data))
        else:
            np.testing.assert_array_equal(decode_pixels(bytes(data)), expected)
    assert 50 < refused < 350


def test_workers_change_no_pixel(make_shards: Callable[..., Path]) -> None:
    index = open_data([str(make_shards((9, 4, 14), bad=(3, 11)))])
    spec = AugmentationSpec(12, executor="fast")
    loaded = [
        list(batches(StepDataset(index, Plan.of(index, 6, 3), POLICIES["leoclr"], spec), 0, 8, workers))
        for workers in (0, 2)
    ]
    for alone, shared in zip(*loaded, strict=True):
        assert alone.bad == shared.bad
        assert all(torch.equal(alone.views[name], shared.views[name]) for name in ("x", "x1", "x2"))


def test_pictures_show_what_the_executor_makes(photographs: list[Pixels]) -> None:
    image = Image.fromarray(photographs[1])
    fast, pillow = (
        one_view(image, AugmentationSpec(64, executor=executor), numbers(5)) for executor in ("fast", "pillow")
    )
    np.testing.assert_array_equal(fast, fast_augment.augment(photographs[1], AugmentationSpec(64), numbers(5)))
    np.testing.assert_array_equal(pillow, augment.augment(image, AugmentationSpec(64), numbers(5)))
    assert (fast != pillow).any()
