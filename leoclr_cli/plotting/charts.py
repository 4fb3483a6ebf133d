"""Charts drawn with Pillow: dots with intervals in panels, and lines, at twice the display size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from leoclr.cli.plotting.drawing import GROUND, HAIRLINE, INK, QUIET, Colour, font, shorten

# Okabe and Ito's colours, told apart with every kind of colour vision.
PALETTE: tuple[Colour, ...] = (
    (0, 114, 178),
    (213, 94, 0),
    (0, 158, 115),
    (204, 121, 167),
    (86, 180, 233),
    (120, 94, 0),
)
_TEXT = 26
_LINE = 40
_MARGIN = 48
_WIDTH = 1600
_LEAST_POINTS = 2.0  # that a panel spans: what 10,000 test images cannot tell must not look like a difference


@dataclass(frozen=True)
class Dot:
    """One row of a panel: a value with half of its interval, and a reference that is drawn hollow."""

    label: str
    value: float
    half_width: float | None = None
    reference: float | None = None


@dataclass(frozen=True)
class Panel:
    """Rows that share a scale."""

    title: str
    dots: tuple[Dot, ...]


@dataclass(frozen=True)
class Line:
    """A curve; `half_widths` are drawn as a band, where there are any."""

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    half_widths: tuple[float, ...] = ()


def dot_chart(title: str, subtitle: str, panels: Sequence[Panel]) -> Image.Image:
    """Panels below each other, each with a scale of its own, a dot for each row and its value beside it."""
    rows = sum(len(panel.dots) + 3 for panel in panels)
    canvas, pen = _canvas(title, subtitle, _MARGIN * 2 + 3 * _LINE + rows * _LINE)
    names = max((font(_TEXT).getlength(dot.label) for panel in panels for dot in panel.dots), default=0)
    left, right = _MARGIN + round(names) + 40, _WIDTH - _MARGIN - 200
    top = _MARGIN + 3 * _LINE
    colours: dict[str, Colour] = {}
    for panel in panels:
        scale = _Scale.over([edge for dot in panel.dots for edge in _edges(dot)], left, right, _LEAST_POINTS)
        pen.text((_MARGIN, top + _LINE // 2), panel.title, INK, font(_TEXT), anchor="ls")
        bottom = top + (len(panel.dots) + 1) * _LINE
        for tick in scale.ticks:
            pen.line((scale(tick), top + _LINE, scale(tick), bottom), HAIRLINE, 2)
            pen.text((scale(tick), bottom + 30), f"{tick:g}", QUIET, font(22), anchor="ms")
        for number, dot in enumerate(panel.dots):
            y = top + _LINE * 3 // 2 + number * _LINE
            colour = colours.setdefault(dot.label, PALETTE[len(colours) % len(PALETTE)])
            pen.text((left - 24, y), dot.label, INK, font(_TEXT), anchor="rm")
            if dot.reference is not None:
                _disc(pen, scale(dot.reference), y, 10, GROUND, QUIET)
            if dot.half_width is not None:
                pen.line((scale(dot.value - dot.half_width), y, scale(dot.value + dot.half_width), y), colour, 5)
            _disc(pen, scale(dot.value), y, 10, colour, colour)
            interval = f" ± {dot.half_width:.2f}" if dot.half_width is not None else ""
            pen.text((right + 32, y), f"{dot.value:.2f}{interval}", INK, font(_TEXT), anchor="lm")
        top = bottom + 2 * _LINE
    return canvas


def line_chart(
    title: str, subtitle: str, lines: Sequence[Line], x_label: str, y_label: str, logarithmic: bool = False
) -> Image.Image:
    """Curves over a common scale with a legend on the right.

    Args:
        logarithmic: Whether the horizontal scale is; its ticks are then the values themselves.
    """
    height = 1000
    canvas, pen = _canvas(title, subtitle, height)
    legend = max(round(font(_TEXT).getlength(line.label)) for line in lines) + 90
    left, right = _MARGIN + 110, _WIDTH - _MARGIN - legend
    top, bottom = _MARGIN + 4 * _LINE, height - _MARGIN - 2 * _LINE
    points = [math.log10(x) if logarithmic else x for line in lines for x in line.x]
    values = [
        y + sign * half
        for line in lines
        for y, half in zip(line.y, line.half_widths or [0.0] * len(line.y), strict=True)
        for sign in (-1, 1)
    ]
    across, up = _Scale.over(points, left, right), _Scale.over(values, bottom, top)
    for tick in up.ticks:
        pen.line((left, up(tick), right, up(tick)), HAIRLINE, 2)
        pen.text((left - 16, up(tick)), f"{tick:g}", QUIET, font(22), anchor="rm")
    named = sorted({x for line in lines for x in line.x}) if logarithmic else across.ticks
    for tick in named:
        pen.text((across(math.log10(tick) if logarithmic else tick), bottom + 34), f"{tick:.3g}", QUIET, font(22), "ms")
    pen.text(((left + right) / 2, bottom + 84), x_label, INK, font(_TEXT), anchor="ms")
    pen.text((_MARGIN, top - 24), y_label, INK, font(_TEXT), anchor="ls")
    for number, line in enumerate(lines):
        colour = PALETTE[number % len(PALETTE)]
        places = [across(math.log10(x) if logarithmic else x) for x in line.x]
        if line.half_widths:
            upper = [(x, up(y + half)) for x, y, half in zip(places, line.y, line.half_widths, strict=True)]
            lower = [(x, up(y - half)) for x, y, half in zip(places, line.y, line.half_widths, strict=True)]
            band = Image.new("RGBA", canvas.size, (*colour, 0))
            ImageDraw.Draw(band).polygon(upper + lower[::-1], fill=(*colour, 48))
            canvas.paste(band, (0, 0), band)
        pen.line([(x, up(y)) for x, y in zip(places, line.y, strict=True)], colour, 5, joint="curve")
        for x, y in zip(places, line.y, strict=True):
            _disc(pen, x, up(y), 8, colour, colour)
        beside = top + 20 + number * _LINE
        pen.line((right + 24, beside, right + 64, beside), colour, 6)
        pen.text((right + 78, beside), line.label, INK, font(_TEXT), anchor="lm")
    return canvas


@dataclass(frozen=True)
class _Scale:
    """From values to pixels."""

    low: float
    high: float
    start: float
    stop: float
    ticks: tuple[float, ...]

    @staticmethod
    def over(values: Sequence[float], start: float, stop: float, least: float = 1e-9) -> _Scale:
        """A scale that holds all values, and spans `least` or more, with ticks at round numbers."""
        low, high = min(values), max(values)
        if high - low < least:
            half = max(least, 2.0) / 2
            low, high = (low + high) / 2 - half, (low + high) / 2 + half
        raw = (high - low) / 5
        magnitude = 10.0 ** math.floor(math.log10(raw))
        step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= raw)
        first, last = math.floor(low / step), math.ceil(high / step)
        ticks = tuple(round(number * step, 10) for number in range(first, last + 1))
        return _Scale(first * step, last * step, start, stop, ticks)

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start)


def _canvas(title: str, subtitle: str, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    canvas = Image.new("RGB", (_WIDTH, height), GROUND)
    pen = ImageDraw.Draw(canvas)
    title, subtitle = (
        shorten(text, font(size), _WIDTH - 2 * _MARGIN) for text, size in ((title, 36), (subtitle, _TEXT))
    )
    pen.text((_MARGIN, _MARGIN + _LINE // 2), title, INK, font(36), anchor="ls")
    pen.text((_MARGIN, _MARGIN + _LINE * 3 // 2), subtitle, QUIET, font(_TEXT), anchor="ls")
    return canvas, pen


def _edges(dot: Dot) -> list[float]:
    half = dot.half_width or 0.0
    return [dot.value - half, dot.value + half, *([dot.reference] if dot.reference is not None else [])]


def _disc(pen: ImageDraw.ImageDraw, x: float, y: float, radius: int, fill: Colour, outline: Colour) -> None:
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill, outline=outline, width=4)
