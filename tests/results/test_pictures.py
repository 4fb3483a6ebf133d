"""What the pictures show, read back from their pixels."""

from __future__ import annotations

import io
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from leoclr.cli.plotting import drawing
from leoclr.cli.plotting.charts import _Scale
from leoclr.cli.plotting.pictures import neighbours_picture, views_picture
from leoclr.datasets.images.augment_pillow import augment
from leoclr.datasets.images.augmentation import UNIFORMS, AugmentationSpec, crop_box
from leoclr.datasets.randomness import uniforms
from leoclr.datasets.views import POLICIES

BLUE, VERMILION = (0, 114, 178), (213, 94, 0)
GREEN, RED = (0, 135, 90), (204, 51, 34)
MAGENTA = (255, 0, 255)
LEOCLR = POLICIES["leoclr"]
SPEC = AugmentationSpec(32)

Pixels = NDArray[np.uint8]


def noise(width: int = 48, height: int = 32, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def bounds(pixels: Pixels, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of all pixels of exactly this colour."""
    rows, columns = np.nonzero((pixels == colour).all(axis=2))
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def shows(picture: Image.Image, colour: tuple[int, int, int]) -> bool:
    return bool((np.asarray(picture) == colour).all(axis=2).any())


def original_and_views(picture: Image.Image) -> tuple[Pixels, Pixels]:
    """The shown original, which is all magenta but for its boxes, and what is right of it."""
    pixels = np.asarray(picture)
    columns = np.nonzero((pixels == MAGENTA).all(axis=2).any(axis=0))[0]
    gaps = np.nonzero(np.diff(columns) > 20)[0]
    left, right = int(columns[0]), int(columns[gaps[0]] if len(gaps) else columns[-1]) + 1
    rows = np.nonzero((pixels[:, left:right] == MAGENTA).all(axis=2).any(axis=1))[0]
    return pixels[rows[0] : rows[-1] + 1, left:right], pixels[:, right:]


@pytest.mark.parametrize("seed", [0, 1, 7])
@pytest.mark.parametrize("size", [(500, 333), (333, 500), (40, 40)])
def test_boxes_are_drawn_where_crop_box_says(size: tuple[int, int], seed: int) -> None:
    spec = AugmentationSpec(224, crop_scale=(0.2, 0.6), jitter=1.0, hue=0.5)
    picture = views_picture([Image.new("RGB", size, MAGENTA)], ["magenta"], spec, LEOCLR, seed, size=300)
    original, _ = original_and_views(picture)
    height, width = original.shape[:2]

    assert width / height == pytest.approx(size[0] / size[1], rel=0.02)
    for view, colour in ((1, BLUE), (2, VERMILION)):
        box = crop_box(*size, spec, uniforms(seed, 0, np.array([0]), view, UNIFORMS)[0])
        scale = width / size[0]
        assert bounds(original, colour) == pytest.approx([edge * scale for edge in box], abs=1.5)


def test_view_is_shown_as_the_model_gets_it_each_pixel_a_square() -> None:
    image = Image.new("RGB", (64, 48), MAGENTA)
    image.paste(noise(60, 40), (2, 4))
    picture = views_picture([image], ["noise"], SPEC, LEOCLR, seed=3, size=100)
    framed = np.asarray(picture)[:, picture.width // 2 :]  # X1 and X2 are in the right half, the original is not
    left, top, right, bottom = bounds(framed, BLUE)
    expected = augment(image, SPEC, uniforms(3, 0, np.array([0]), 1, UNIFORMS)[0])
    frame = (right - left - 96) // 2

    assert 0 < frame < 10
    shown = framed[top + frame : bottom - frame, left + frame : right - frame]
    assert np.array_equal(shown, expected.repeat(3, axis=0).repeat(3, axis=1))


def test_large_views_are_reduced_to_the_size_asked_for() -> None:
    small, large = (views_picture([noise()], ["noise"], AugmentationSpec(224), LEOCLR, 0, size=n) for n in (96, 192))

    assert large.height - small.height >= 96
    assert small.width < large.width


def test_same_seed_gives_the_same_bytes_and_another_seed_others() -> None:
    first, again, other = (png(views_picture([noise()], ["noise"], SPEC, LEOCLR, seed)) for seed in (0, 0, 1))

    assert first == again
    assert first != other


def test_draws_and_images_each_get_a_row_of_their_own() -> None:
    images = [Image.new("RGB", (32, 32), MAGENTA)] * 2
    single, two_images, two_draws = (
        views_picture(images[:count], ["a", "b"][:count], SPEC, LEOCLR, 0, draws=draws, size=96)
        for count, draws in ((1, 1), (2, 1), (1, 2))
    )

    assert two_images.height == two_draws.height > single.height + 96
    original, _ = original_and_views(two_draws)
    assert not np.array_equal(original[:96], original[-96:]), "the second draw has the boxes of the first"


@pytest.mark.parametrize(("size", "told"), [((48, 32), "squashed to a square"), ((40, 40), "all of the image")])
def test_a_square_image_is_not_said_to_be_squashed(
    size: tuple[int, int], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    captions: list[tuple[str, ...]] = []

    def watched(*arguments: Any, **options: Any) -> Image.Image:
        rows = options.get("rows", arguments[3] if len(arguments) > 3 else ())
        captions.extend(tile.caption for row in rows for tile in row if tile.caption)
        return drawing.sheet(*arguments, **options)

    monkeypatch.setattr("leoclr.cli.plotting.pictures.sheet", watched)
    views_picture([noise(*size)], ["noise"], SPEC, LEOCLR, 0)
    assert told in [caption[0] for caption in captions]


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_every_policy_shows_the_original_and_each_of_its_views(policy: str) -> None:
    widths = {name: views_picture([noise()], ["noise"], SPEC, POLICIES[name], 0).width for name in (policy, "leoclr")}
    missing = len(LEOCLR.views) - len(POLICIES[policy].views)

    assert widths["leoclr"] - widths[policy] == pytest.approx(missing * 224, rel=0.1)


@pytest.mark.parametrize("original", ["squash", "pad", "center"])
@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
def test_images_of_extreme_shape_are_drawn(size: tuple[int, int], original: Literal["squash", "pad", "center"]) -> None:
    spec = AugmentationSpec(32, original=original)
    picture = views_picture([Image.new("RGB", size)], ["a name that is longer than its image is wide"], spec, LEOCLR, 0)

    assert picture.height < 600
    assert picture.width < 1300


def neighbours(own: str, labels: list[str] | None) -> Image.Image:
    images = [noise(seed=number) for number in range(4)]
    neighbour_labels = None if labels is None else [labels]
    return neighbours_picture(images[:1], [images[1:]], [own], neighbour_labels, [[0.9, 0.8, -0.1]], "Neighbours")


def test_neighbours_are_framed_by_class() -> None:
    same, other, mixed = (neighbours("cat", labels) for labels in (["cat"] * 3, ["dog"] * 3, ["dog", "cat", "dog"]))
    unlabelled = neighbours("cat", None)

    assert [shows(same, GREEN), shows(same, RED)] == [True, False]
    assert [shows(other, GREEN), shows(other, RED)] == [False, True]
    assert [shows(unlabelled, GREEN), shows(unlabelled, RED)] == [False, False]
    pixels = np.asarray(mixed)
    assert bounds(pixels, RED)[0] < bounds(pixels, GREEN)[0] < bounds(pixels, GREEN)[2] < bounds(pixels, RED)[2]


def test_class_is_told_by_a_shape_too() -> None:
    same, other = (np.asarray(neighbours(own, ["cat"] * 3)) for own in ("cat", "dog"))
    left, top, right, bottom = bounds(same, GREEN)
    white = [(picture[top:bottom, left:right] == 255).all(axis=2) for picture in (same, other)]

    assert same.shape == other.shape
    assert np.count_nonzero(white[0] != white[1]) > 30


def test_neighbours_differ_in_number_and_size() -> None:
    queries = [noise(8, 8), noise(300, 200)]
    picture = neighbours_picture(queries, [queries, queries[:1]], None, None, [[1.0, 0.5], [0.9]], title="Two queries")

    assert picture.size == neighbours_picture(queries, [queries, queries], None, None, [[1.0, 0.5]] * 2, "Both").size


def test_a_difference_that_no_test_set_can_tell_does_not_fill_a_panel() -> None:
    scale = _Scale.over([49.79, 49.82], 0, 1000, 2.0)
    assert scale.low <= 48.81 and scale.high >= 50.80 and scale(49.82) - scale(49.79) < 16
    assert _Scale.over([10.0, 40.0], 0, 1000, 2.0).ticks == (10.0, 20.0, 30.0, 40.0)
