"""Sheets of captioned picture tiles, with title and column heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Literal

from PIL import Image, ImageDraw, ImageFont

from leoclr.datasets.files import writable

Colour = tuple[int, int, int]

GROUND: Colour = (255, 255, 255)
INK: Colour = (33, 37, 41)
QUIET: Colour = (98, 106, 114)
HAIRLINE: Colour = (218, 222, 226)
GREEN: Colour = (0, 135, 90)
RED: Colour = (204, 51, 34)


@dataclass(frozen=True)
class Tile:
    """One picture of the sheet, at the size at which it is shown."""

    image: Image.Image
    caption: tuple[str, ...] = ()  # lines below the tile, each shortened where it is wider than the column
    frame: Colour | None = None  # around the tile, outside of its pixels
    mark: Literal["tick", "cross"] | None = None  # in the top right corner


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a PNG file as a whole or not at all; RunError where that cannot be done."""
    with writable(path) as temporary:
        picture.save(temporary, format="PNG")


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's built-in typeface at so many pixels."""
    letters = ImageFont.load_default(size=size)
    assert isinstance(letters, ImageFont.FreeTypeFont)  # what Pillow gives where a size is asked for
    return letters


def fit_image(image: Image.Image, width: int, height: int) -> Image.Image:
    """The image as large as it fits into a box, aspect kept.

    Where it can be enlarged twice or more, the factor is a whole number and pixels stay squares; otherwise it is
    interpolated.
    """
    factor = min(width / image.width, height / image.height)
    if factor >= 2:
        return image.resize((image.width * int(factor), image.height * int(factor)), Image.Resampling.NEAREST)
    size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    return image.resize(size, Image.Resampling.LANCZOS)


def shorten(text: str, letters: ImageFont.FreeTypeFont, width: float) -> str:
    """The text, with its middle replaced by an ellipsis where it is wider than so many pixels."""
    text = " ".join(text.split())
    kept = len(text)
    shown = text
    while letters.getlength(shown) > width and kept > 1:
        kept -= 1
        shown = f"{text[: kept - kept // 2].rstrip()}…{text[len(text) - kept // 2 :].lstrip()}"
    return shown


def sheet(
    title: str, subtitle: str, headings: Sequence[str], rows: Sequence[Sequence[Tile]], text_size: int = 14
) -> Image.Image:
    """Draws the tiles in rows and columns; the first column stands apart, left of a hairline.

    Args:
        title: One line, large.
        subtitle: One line below it, quiet.
        headings: One per column, at least two.
        rows: Tiles; a row may be shorter than `headings`.
        text_size: Height of captions in pixels; everything that is not a tile is measured in it.
    """
    body, large = font(text_size), font(round(text_size * 1.6))
    margin, gap, line = text_size * 2, round(text_size * 1.3), round(text_size * 1.5)
    widths = [
        max(_widest(rows, column), round(body.getlength(heading)), 9 * text_size)
        for column, heading in enumerate(headings)
    ]
    heights = [max(tile.image.height for tile in row) for row in rows]
    lefts = _starts(margin, [width + (gap if column else 3 * gap) for column, width in enumerate(widths)])
    caption = line * max(len(tile.caption) for row in rows for tile in row)
    tops = _starts(margin + 5 * line + gap // 2, [height + caption + gap for height in heights])
    right = max(lefts[-1] - gap, margin + round(max(large.getlength(title), body.getlength(subtitle))))
    bottom = tops[-1] - gap

    canvas = Image.new("RGB", (right + margin, bottom + margin), GROUND)
    pen = ImageDraw.Draw(canvas)
    pen.text((margin, margin + line), title, INK, large, anchor="ls")
    pen.text((margin, margin + 5 * line // 2), subtitle, QUIET, body, anchor="ls")
    for left, width, heading in zip(lefts, widths, headings, strict=False):
        pen.text((left + width / 2, tops[0] - gap // 2 - 2), heading, INK, body, anchor="ms")
    middle = lefts[1] - 3 * gap // 2
    pen.line((middle, tops[0] - gap // 2 - line, middle, bottom), HAIRLINE, width=max(1, text_size // 12))
    for row, top, height in zip(rows, tops, heights, strict=False):
        for left, width, tile in zip(lefts, widths, row, strict=False):
            _place(canvas, tile, (left, top, width, height), text_size)
    return canvas


def _widest(rows: Sequence[Sequence[Tile]], column: int) -> int:
    return max((row[column].image.width for row in rows if column < len(row)), default=0)


def _starts(first: int, lengths: Sequence[int]) -> list[int]:
    """Where each of some stretches that follow each other begins, and where the last one ends."""
    return list(accumulate(lengths, initial=first))


def _place(canvas: Image.Image, tile: Tile, cell: tuple[int, int, int, int], text_size: int) -> None:
    """Puts a tile into the middle of its cell (left, top, width, height), its caption right below the cell."""
    left, top, width, height = cell
    pen = ImageDraw.Draw(canvas)
    x, y = left + (width - tile.image.width) // 2, top + (height - tile.image.height) // 2
    right, bottom = x + tile.image.width - 1, y + tile.image.height - 1
    colour, thickness = (tile.frame, max(3, text_size // 4)) if tile.frame else (HAIRLINE, 1)
    pen.rectangle((x - thickness, y - thickness, right + thickness, bottom + thickness), colour)
    canvas.paste(tile.image, (x, y))
    if tile.mark is not None:
        seal = _seal(tile.mark, colour, round(text_size * 1.6))
        canvas.paste(seal, (right - seal.width * 3 // 4, y - seal.height // 4), seal)
    for number, line in enumerate(tile.caption):
        baseline = top + height + text_size * 3 // 2 + number * round(text_size * 1.4)
        text = shorten(line, font(text_size), width)
        pen.text((left + width / 2, baseline), text, QUIET, font(text_size), anchor="ms")


def _seal(mark: Literal["tick", "cross"], colour: Colour, side: int) -> Image.Image:
    """A disc with a white tick or cross, drawn at four times its size because Pillow does not smooth lines."""
    big = Image.new("RGBA", (side * 4, side * 4), (*colour, 0))
    pen = ImageDraw.Draw(big)
    pen.ellipse((0, 0, side * 4 - 1, side * 4 - 1), fill=(*GROUND, 255))
    pen.ellipse((side // 3, side // 3, side * 4 - 1 - side // 3, side * 4 - 1 - side // 3), fill=(*colour, 255))
    strokes = {
        "tick": [[(0.29, 0.52), (0.44, 0.67), (0.71, 0.36)]],
        "cross": [[(0.34, 0.34), (0.66, 0.66)], [(0.34, 0.66), (0.66, 0.34)]],
    }
    for stroke in strokes[mark]:
        points = [(x * side * 4, y * side * 4) for x, y in stroke]
        pen.line(points, fill=(*GROUND, 255), width=round(side * 0.4), joint="curve")
    return big.resize((side, side), Image.Resampling.LANCZOS)
