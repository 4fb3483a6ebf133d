"""The turn of the hue beside the same in float64, pixel by pixel."""

from __future__ import annotations

import colorsys
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from leoclr.datasets.images import hue

Pixels = NDArray[np.uint8]
TURNS = (-1.0, -0.5, -0.4, -0.17, -0.1, -0.01, 0.0, 0.004, 0.03, 0.1, 0.25, 0.34, 0.5, 0.99)


def reference(image: Pixels, turn: float) -> NDArray[np.float64]:
    steps = int(turn * 255) / 255
    turned = np.empty(image.shape)
    for place in np.ndindex(image.shape[:2]):
        hue, saturation, value = colorsys.rgb_to_hsv(*(image[place] / 255))
        turned[place] = colorsys.hsv_to_rgb((hue + steps) % 1, saturation, value)
    return turned * 255


def colours() -> Pixels:
    """Random ones, greys, and all with channels of 0, 1, 127, 128, 254 and 255."""
    levels = np.array([0, 1, 127, 128, 254, 255], np.uint8)
    corners = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(-1, 3)
    greys = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    noise = np.random.default_rng(0).integers(0, 256, (552, 3), dtype=np.uint8)
    return np.concatenate([corners, greys, noise]).reshape(32, 32, 3)


@pytest.mark.parametrize("turn", TURNS)
def test_large_images_are_turned_exactly(turn: float) -> None:
    image = np.tile(colours(), (4, 4, 1))
    turned = hue.turn_hue(image, turn)
    assert turned.shape == image.shape and turned.flags.c_contiguous
    assert np.abs(turned[:32, :32] - reference(colours(), turn)).max() <= 0.5 + 1e-9
    assert np.array_equal(turned, np.tile(turned[:32, :32], (4, 4, 1)))


@pytest.mark.parametrize("turn", TURNS)
def test_small_ones_within_the_steps_of_eight_bits(turn: float) -> None:
    difference = np.abs(hue.turn_hue(colours(), turn) - reference(colours(), turn))
    assert difference.mean() < 1.5 and difference.max() < 13


@pytest.mark.parametrize("way", [hue._in_hsv, hue._by_channels])
def test_the_image_is_left_alone(way: Callable[[Pixels, int], Pixels]) -> None:
    image = colours()
    way(image, 20)
    assert np.array_equal(image, colours())
