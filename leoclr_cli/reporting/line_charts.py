"""Line charts as inline SVG without scripts, for light and dark pages."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from leoclr.cli.reporting.markup import Html, element, join

_WIDTH, _HEIGHT = 520, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 12, 24
_MOST_POINTS = 240
_MOST_MARKED = 12  # points of a line that are marked each; of more the last
_LARGEST = 1e300  # differences of numbers beyond it may be none
_STRIPS = 60
_LINE = 15
_CHARACTER = 6.4  # width in the chart's font; only the box behind the values depends on it
Format = Callable[[float], str]


@dataclass(frozen=True)
class Axis:
    """The axis along the bottom. On a logarithmic one values lie above 0, and the ticks are the values themselves."""

    name: str
    unit: str = ""
    logarithmic: bool = False

    def place(self, value: float) -> float:
        """A value on the axis's scale."""
        return math.log10(value) if self.logarithmic else value

    def text(self, place: float) -> str:
        """The value at a place."""
        return f"{10**place if self.logarithmic else place:.4g}{self.unit}"


EPOCHS = Axis("epoch")


@dataclass(frozen=True)
class Series:
    """A line: its name, the number of its colour, its points by ascending x."""

    name: str
    colour: int
    points: Sequence[tuple[float, float]]


def svg_line_chart(
    title: str, series: Sequence[Series], show: Format, zero: bool = False, x: Axis = EPOCHS, class_: str = "chart"
) -> Html:
    """A chart of lines.

    Args:
        series: At least one has a point.
        show: Text of a value on the left axis and under the pointer.
        zero: Whether the left axis begins at 0.
        x: The axis along the bottom.
    """
    thinned = [
        Series(one.name, one.colour, [(x.place(across), up) for across, up in thin(one.points, _MOST_POINTS)])
        for one in series
        if one.points
    ]
    xs = [across for one in thinned for across, _ in one.points]
    ys = [y for one in thinned for _, y in one.points]
    x_ticks = sorted(set(xs)) if x.logarithmic else ticks(min([0.0, *xs]), max(xs), 6)
    y_ticks = ticks(min(0.0, *ys) if zero else min(ys), max(ys), 5)
    pad = 0.06 * (x_ticks[-1] - x_ticks[0]) if x.logarithmic else 0.0  # else the first tick lies on the axis's name
    frame = _Frame(x_ticks[0] - pad, max(xs), y_ticks[0], y_ticks[-1])
    lines = [_line(one, frame) for one in thinned]
    drawing = element(
        "svg",
        element("title", f"{title}: {_summary(thinned, show)}"),
        _grid(frame, x_ticks, y_ticks, show, x),
        *lines,
        *_strips(thinned, frame, show, x),
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        role="img",
    )
    return element("figure", element("figcaption", title), drawing, class_=class_)


def ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers, about `count` of them, the first at or below `low` and the last at or above `high`."""
    low, high = (min(max(value, -_LARGEST), _LARGEST) for value in (low, high))
    if not high - low > max(abs(low), abs(high)) * 1e-9 + 1 / _LARGEST:
        pad = abs(high) * 0.1 or 1.0
        low, high = low - pad, high + pad
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * number for number in range(first, last + 1)]


def thin(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most so many points: the means of as many groups of neighbours."""
    if len(points) <= most:
        return list(points)
    edges = [round(number * len(points) / most) for number in range(most + 1)]
    groups = [points[start:stop] for start, stop in zip(edges, edges[1:], strict=False)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


@dataclass(frozen=True)
class _Frame:
    """From values to places in the drawing."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        span = self.x_high - self.x_low or 1.0
        return round(_LEFT + (value - self.x_low) / span * (_WIDTH - _LEFT - _RIGHT), 1)

    def y(self, value: float) -> float:
        span = self.y_high - self.y_low or 1.0
        return round(_HEIGHT - _BOTTOM - (value - self.y_low) / span * (_HEIGHT - _TOP - _BOTTOM), 1)


def _grid(frame: _Frame, x_ticks: Sequence[float], y_ticks: Sequence[float], show: Format, axis: Axis) -> Html:
    marks = []
    for tick in y_ticks:
        y = frame.y(tick)
        marks.append(element("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y, y2=y, class_="grid"))
        marks.append(element("text", show(tick), x=_LEFT - 8, y=y + 4, text_anchor="end"))
    for tick in x_ticks:
        if tick <= frame.x_high:
            marks.append(
                element("text", axis.text(tick), x=frame.x(tick), y=_HEIGHT - _BOTTOM + 17, text_anchor="middle")
            )
    marks.append(element("text", axis.name, x=_LEFT - 8, y=_HEIGHT - _BOTTOM + 17, text_anchor="end"))
    return element("g", *marks, class_="axes", aria_hidden="true")


def _line(one: Series, frame: _Frame) -> Html:
    places = [(frame.x(x), frame.y(y)) for x, y in one.points]
    path = element("polyline", points=" ".join(f"{x:g},{y:g}" for x, y in places), class_=f"line stroke{one.colour}")
    marked = places if len(places) <= _MOST_MARKED else places[-1:]
    return join(path, *(element("circle", cx=x, cy=y, r=3, class_=f"fill{one.colour}") for x, y in marked))


def _strips(series: Sequence[Series], frame: _Frame, show: Format, axis: Axis) -> list[Html]:
    """Invisible upright strips; the one under the pointer shows the values nearest to its middle."""
    longest = max((one.points for one in series), key=len)
    middles = [x for x, _ in thin(longest, _STRIPS)]
    edges = [frame.x_low, *((a + b) / 2 for a, b in zip(middles, middles[1:], strict=False)), frame.x_high]
    strips = []
    for middle, start, stop in zip(middles, edges, edges[1:], strict=False):
        near = [(one, _nearest(one.points, middle)) for one in series]
        near = [(one, point) for one, point in near if start <= point[0] <= stop or len(one.points) < _STRIPS]
        left = frame.x(start)
        hit = element("rect", x=left, y=_TOP, width=max(1.0, frame.x(stop) - left), height=_HEIGHT - _TOP - _BOTTOM)
        strips.append(
            element("g", hit, _tip(near, f"{axis.name} {axis.text(middle)}", middle, frame, show), class_="strip")
        )
    return strips


def _tip(
    near: Sequence[tuple[Series, tuple[float, float]]], heading: str, middle: float, frame: _Frame, show: Format
) -> Html:
    x = frame.x(middle)
    dots = [
        element("circle", cx=frame.x(px), cy=frame.y(py), r=4, class_=f"fill{one.colour}") for one, (px, py) in near
    ]
    texts = [heading, *(f"{show(point[1])}  {one.name}"[:42] for one, point in near)]
    width = 16 + _CHARACTER * max(len(text) for text in texts)
    left = x + 10 if x + 10 + width < _WIDTH else max(0.0, x - 10 - width)
    box = element("rect", x=left, y=_TOP, width=width, height=10 + _LINE * len(texts), rx=5, class_="box")
    lines = [
        element(
            "text", text, x=left + 8, y=_TOP + 17 + _LINE * row, class_=f"ink{near[row - 1][0].colour}" if row else None
        )
        for row, text in enumerate(texts)
    ]
    rule = element("line", x1=x, x2=x, y1=_TOP, y2=_HEIGHT - _BOTTOM, class_="rule")
    return element("g", rule, *dots, box, *lines, class_="tip")


def _nearest(points: Sequence[tuple[float, float]], x: float) -> tuple[float, float]:
    place = bisect_left(points, (x, -math.inf))
    return min(points[max(0, place - 1) : place + 1], key=lambda point: abs(point[0] - x))


def _summary(series: Sequence[Series], show: Format) -> str:
    return "; ".join(f"{one.name} from {show(one.points[0][1])} to {show(one.points[-1][1])}" for one in series)
