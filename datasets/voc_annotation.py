"""Annotations of PASCAL VOC: the boxes that an XML file holds, and whether they are those of its image.

The files are not trusted: expat reads them with bounds, and a document type (and with it every entity) is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple
from xml.parsers import expat

import numpy as np

MAX_OBJECTS = 10_000
_OBJECT = "annotation/object"
_SIDES = ("xmin", "ymin", "xmax", "ymax")
_READ = (
    *("annotation/size", "annotation/size/width", "annotation/size/height"),
    *(f"{_OBJECT}/{name}" for name in ("name", "difficult", "bndbox", *(f"bndbox/{side}" for side in _SIDES))),
)
_DIFFICULT = {"1": True, "1.0": True, "true": True} | dict.fromkeys(("", "0", "0.0", "false", "unspecified"), False)
_BORDER = 2  # pixels: tools count them from 0 or 1, and round
_FAR = 0.1  # of a side of the image: a box that was drawn by hand is not further outside


class Object(NamedTuple):
    """Sides are xmin, ymin, xmax, ymax as written, from 1."""

    name: str
    sides: tuple[float, ...]
    difficult: bool


class Annotation(NamedTuple):
    """The objects, and the width and height of the image as written; None where they are not."""

    objects: tuple[Object, ...]
    size: tuple[float, float] | None


def read_annotation(data: bytes) -> Annotation:
    """Raises ExpatError or ValueError where it is not well-formed, has a document type, or has an object without a
    usable box, or with two."""
    parser = expat.ParserCreate()
    path: list[str] = []
    texts: list[str] = []
    objects: list[dict[str, str]] = []
    image: dict[str, str] = {}

    def start(name: str, attributes: dict[str, str]) -> None:
        path.append(name)
        texts.append("")
        if len(path) > 16:
            raise ValueError("elements inside elements without end")
        if (place := "/".join(path)) == _OBJECT:
            if len(objects) >= MAX_OBJECTS:
                raise ValueError(f"more than {MAX_OBJECTS:,} objects")
            objects.append({})
        elif place in _READ:
            found = objects[-1] if path[1] == "object" else image
            if name in found:
                raise ValueError(f"<{name}> stands twice in its <{path[1] if path[1] != name else path[0]}>")
            found[name] = ""

    def end(name: str) -> None:
        text = texts.pop().strip()
        if "/".join(path) in _READ:
            (objects[-1] if path[1] == "object" else image)[name] = text
        path.pop()

    def text(data: str) -> None:
        if texts:
            texts[-1] += data

    def refuse(*_: object) -> None:
        raise ValueError("it has a document type")

    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, text
    parser.StartDoctypeDeclHandler = refuse
    parser.Parse(data, True)
    return Annotation(tuple(_object(found) for found in objects), _size(image))


def check_boxes(annotation: Annotation, size: tuple[int, int]) -> None:
    """Raise ValueError where boxes were not written for an image of this width and height."""
    there = f"{size[0]} x {size[1]}"
    written = annotation.size
    if written and max(abs(stated - real) for stated, real in zip(written, size, strict=True)) > _BORDER:
        raise ValueError(
            f"its <size> is {written[0]:g} x {written[1]:g} and its image, upright, {there}; write the boxes for the "
            "image as it is, or remove <size> if they fit"
        )
    for name, sides, _ in annotation.objects:
        box = ", ".join(f"{side:g}" for side in sides)
        if max(sides) <= 1 and any(side % 1 for side in sides):
            raise ValueError(f"the box of {name!r} ({box}) is in parts of the image; VOC counts pixels")
        if any(beyond > max(_BORDER, _FAR * size[side % 2]) for side, beyond in enumerate(_beyond(sides, size))):
            raise ValueError(f"the box of {name!r} ({box}) lies far outside of its image of {there} pixels")


def sticks_out(sides: tuple[float, ...], size: tuple[int, int]) -> bool:
    """Whether a box reaches beyond its image by more than tools do that round or count pixels from 0."""
    return max(_beyond(sides, size)) > _BORDER


def inside(sides: tuple[float, ...], size: tuple[int, int]) -> bool:
    """Whether a box covers some of its image."""
    left, top, right, bottom = sides
    width, height = min(right, size[0]) - max(left - 1, 0), min(bottom, size[1]) - max(top - 1, 0)
    return width > 0 and height > 0


def _beyond(sides: tuple[float, ...], size: tuple[int, int]) -> tuple[float, ...]:
    left, top, right, bottom = sides
    return 1 - left, 1 - top, right - size[0], bottom - size[1]


def _object(found: Mapping[str, str]) -> Object:
    missing = [name for name in ("name", *_SIDES) if not found.get(name)]
    if missing:
        raise ValueError(f"an object has no {missing[0]}")
    sides = tuple(float(found[side]) for side in _SIDES)
    if not np.isfinite(sides).all():
        raise ValueError("a box is not finite")
    difficult = found.get("difficult", "")
    if difficult.casefold() not in _DIFFICULT:
        raise ValueError(f"<difficult> is 0 or 1, not {difficult[:40]!r}")
    return Object(found["name"], sides, _DIFFICULT[difficult.casefold()])


def _size(found: Mapping[str, str]) -> tuple[float, float] | None:
    """Some tools write 0, others nothing or a word; that is no size."""
    try:
        width, height = float(found["width"]), float(found["height"])
    except (KeyError, ValueError):
        return None
    return (width, height) if width > 0 and height > 0 else None
