"""Turn the hue of an image on the processor, as Pillow does: in HSV, by whole 255ths of the circle.

Seen around the circle, each channel rises from the least of a pixel's three values to the greatest within a sixth,
stays there for two, falls within one and stays for two. So a turn by two sixths exchanges the channels, and the rest of
a turn, at most one sixth, moves them by a share of the pixel's span, between the least and the greatest. The hue itself
is never computed: sums and comparisons of bytes do, which are exact but for one rounding, at half the time of
OpenCV's way to HSV and back. That is for large images. The 28 calls take longer than the work where an image is small.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

_SMALL = 128 * 128  # pixels; either takes 0.1 ms there
_STEPS = 255  # Pillow's circle


def turn_hue(image: Pixels, turn: float) -> Pixels:
    """The image with other hues; value and saturation stay.

    Args:
        image: RGB, shape `(height, width, 3)`.
        turn: A share of the circle, from -1 to 1; towards 0 to whole 255ths.
    """
    steps = int(turn * _STEPS)
    small = image.shape[0] * image.shape[1] < _SMALL
    return _in_hsv(image, steps) if small else _by_channels(image, steps)


def _in_hsv(image: Pixels, steps: int) -> Pixels:
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    shift = np.zeros((image.shape[1], 3), np.uint8)
    shift[:, 0] = round(steps / _STEPS * 256) % 256  # OpenCV's circle has 256 steps
    hsv += shift  # around the circle, as bytes wrap; adding to every third byte alone would take three times as long
    turned: Pixels = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)
    return turned


def _by_channels(image: Pixels, steps: int) -> Pixels:
    sixths = 6 * steps / _STEPS
    pairs = round(sixths / 2)
    rest = sixths - 2 * pairs
    channels = cv2.split(image)
    greatest, least = cv2.max(channels[0], channels[1]), cv2.min(channels[0], channels[1])
    cv2.max(greatest, channels[2], greatest)
    cv2.min(least, channels[2], least)
    move = cv2.convertScaleAbs(cv2.subtract(greatest, least), alpha=abs(rest))
    above = [cv2.subtract(greatest, channel) for channel in channels]
    below = [cv2.subtract(channel, least) for channel in channels]
    rise, fall = greatest, least  # their memory, which is needed no more
    turned = list(channels)
    for number, channel in enumerate(channels):
        # It rises where the channel ahead of it is about to reach the least, and falls where that nears the greatest.
        ahead = (number + (1 if rest > 0 else 2)) % 3
        cv2.subtract(move, below[ahead], rise)  # 0 where it would be negative
        cv2.min(rise, above[number], rise)
        cv2.subtract(move, above[ahead], fall)
        cv2.min(fall, below[number], fall)
        cv2.add(channel, rise, channel)
        cv2.subtract(channel, fall, channel)
        turned[(number + pairs) % 3] = channel
    merged: Pixels = cv2.merge(turned)
    return merged
