"""Pictures of views, of nearest neighbours and of near copies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from PIL import Image, ImageDraw

from leoclr.cli.plotting.drawing import GREEN, GROUND, INK, RED, Colour, Tile, fit_image, font, sheet
from leoclr.datasets.images.augmentation import AugmentationSpec, Box, Photometric, crop_box, draw, view_specs
from leoclr.datasets.images.executors import one_view
from leoclr.datasets.randomness import uniforms
from leoclr.datasets.views import ViewPolicy

_CROP_COLOURS: tuple[Colour, ...] = (  # of Okabe and Ito: apart for the colour-blind too
    (0, 114, 178),  # blue
    (213, 94, 0),  # vermilion
    (0, 158, 115),  # green
    (204, 121, 167),  # purple
    (230, 159, 0),  # orange
    (86, 180, 233),  # sky blue
)
_SQUARE = 112  # side in pixels
_WHOLE = {"squash": "squashed to a square", "pad": "padded to a square", "center": "centre square"}


def views_picture(
    images: Sequence[Image.Image],
    names: Sequence[str],
    spec: AugmentationSpec,
    policy: ViewPolicy,
    seed: int,
    draws: int = 1,
    size: int = 224,
) -> Image.Image:
    """Each image with its crop boxes, and beside it every view as the model gets it, before normalisation.

    Draw e of image i is what training with this seed sees in epoch e of sample i, both counted from 0.

    Args:
        images: RGB, any sizes; one row for each draw of each.
        names: What stands below each image.
        spec: The augmentations.
        policy: Which views there are. Frames of crops have the colours of their boxes.
        draws: Rows per image.
        size: Side of a view in the picture, in pixels. Views of less than half of it are enlarged by the whole
            number that fits, so that pixels stay squares.
    """
    text_size = max(12, size // 16)
    rows = []
    for sample, (image, name) in enumerate(zip(images, names, strict=True)):
        for epoch in range(draws):
            original, *views = _views_row(image, spec, policy, (seed, epoch, sample), size, text_size)
            pixels = f"{image.width} x {image.height} pixels"
            caption = (name, pixels if draws == 1 else f"{pixels}, draw {epoch + 1}")
            rows.append([replace(original, caption=caption), *views])
    pairs = " and ".join(f"{anchor.upper()} to {positive.upper()}" for anchor, positive in policy.pairs)
    pulled = f" The loss pulls {pairs}." if pairs else ""
    return sheet(
        "What the model sees of an image",
        f"Views {policy.name}, seed {seed}, {spec.image_size} x {spec.image_size} pixels.{pulled}",
        ["original", *_headings(policy)],
        rows,
        text_size,
    )


def neighbours_picture(
    query_images: Sequence[Image.Image],
    neighbour_images: Sequence[Sequence[Image.Image]],
    query_labels: Sequence[str] | None,
    neighbour_labels: Sequence[Sequence[str]] | None,
    similarities: Sequence[Sequence[float]],
    title: str,
    size: int = _SQUARE,
) -> Image.Image:
    """Each query with the images whose features are nearest to its own, best first. Of each the central square.

    With labels, a green frame with a tick marks a neighbour of the query's class, a red frame with a cross any other.

    Args:
        query_images: One per row.
        neighbour_images: For each query its neighbours, the most similar first; as many for every query.
        query_labels: Class name of each query; None where there are no labels.
        neighbour_labels: Class name of each neighbour; None where there are no labels.
        similarities: Cosine similarity of each neighbour with its query.
        title: The first line.
        size: Side of the square that each image is fitted into, in pixels.
    """
    rows = []
    same, total = 0, 0
    for row, (query, neighbours) in enumerate(zip(query_images, neighbour_images, strict=True)):
        own = query_labels[row] if query_labels is not None else ""
        tiles = [Tile(_square(query, size), (own,))]
        for rank, (image, similarity) in enumerate(zip(neighbours, similarities[row], strict=True)):
            picture = _square(image, size)
            if neighbour_labels is None:
                tiles.append(Tile(picture, (f"{similarity:.2f}",)))
                continue
            label = neighbour_labels[row][rank]
            alike = label == own
            same, total = same + alike, total + 1
            tiles.append(
                Tile(picture, (f"{similarity:.2f}  {label}",), GREEN if alike else RED, "tick" if alike else "cross")
            )
        rows.append(tiles)
    subtitle = "Below each: cosine similarity"
    if neighbour_labels is not None:
        subtitle += f" and class. {same} of {total} neighbours are of their query's class (green, tick)"
    headings = ["query", *(str(rank) for rank in range(1, max(map(len, rows))))]
    return sheet(title, subtitle, headings, rows, text_size=max(12, size // 9))


def copies_picture(groups: Sequence[Sequence[tuple[Image.Image, str, str]]], subtitle: str) -> Image.Image:
    """A row for each group of near copies: the image that is kept, and its copies. Of each the central square.

    Args:
        groups: Image, name and remark of each; the kept one first.
        subtitle: The second line.
    """
    rows = [[Tile(_square(image, _SQUARE), (remark, name)) for image, name, remark in group] for group in groups]
    headings = ["kept", *(f"copy {number}" for number in range(1, max(map(len, rows))))]
    return sheet("Near copies", subtitle, headings, rows, text_size=max(12, _SQUARE // 9))


def _views_row(
    image: Image.Image,
    spec: AugmentationSpec,
    policy: ViewPolicy,
    place: tuple[int, int, int],
    size: int,
    text_size: int,
) -> list[Tile]:
    """The original with its boxes, then each view. `place` is (seed, epoch, sample)."""
    seed, epoch, sample = place
    colours = _view_colours(policy)
    boxes: dict[str, Box] = {}
    tiles = []
    for view, (name, of_view) in enumerate(view_specs(policy, spec).items()):
        numbers = uniforms(seed, epoch, np.array([sample]), view, of_view.uniforms)[0]
        if of_view.kind == "crop":
            boxes[name] = crop_box(*image.size, of_view, numbers)
            part = f"{_share(boxes[name], image):.0%} of the area"
        else:
            part = _WHOLE[of_view.original] if image.width != image.height else "all of the image"
        pixels = fit_image(Image.fromarray(one_view(image, of_view, numbers)), size, size)
        tiles.append(Tile(pixels, (part, _describe(draw(of_view, numbers))), colours[name]))
    height = tiles[0].image.height
    original = fit_image(image, height * 4 // 3, height)
    return [Tile(_with_boxes(image, original, boxes, colours, text_size)), *tiles]


def _view_colours(policy: ViewPolicy) -> dict[str, Colour]:
    crops = [name for name, view in policy.views.items() if view.kind == "crop"]
    colours = {name: _CROP_COLOURS[number % len(_CROP_COLOURS)] for number, name in enumerate(crops)}
    return {name: colours.get(name, INK) for name in policy.views}


def _headings(policy: ViewPolicy) -> list[str]:
    """Such as "X: whole image, anchor" and "X1: crop"."""
    anchors = {anchor for anchor, _ in policy.pairs}
    kinds = {"whole": "whole image", "crop": "crop"}
    return [
        f"{name.upper()}: {kinds[view.kind]}{', anchor' if name in anchors else ''}"
        for name, view in policy.views.items()
    ]


def _share(box: Box, image: Image.Image) -> float:
    left, top, right, bottom = box
    return (right - left) * (bottom - top) / (image.width * image.height)


def _describe(drawn: Photometric) -> str:
    """The photometric operations of a view, in the order they are applied."""
    operations = [
        "jitter" if drawn.jitter else "",
        "grey" if drawn.grayscale else "",
        f"blur {drawn.blur:.1f}" if drawn.blur else "",
        "solarise" if drawn.solarize else "",
        "flip" if drawn.flip else "",
    ]
    return ", ".join(filter(None, operations)) or "colours as they are"


def _with_boxes(
    image: Image.Image, shown: Image.Image, boxes: Mapping[str, Box], colours: Mapping[str, Colour], text_size: int
) -> Image.Image:
    """Draws boxes given in pixels of `image` on `shown`, the same image at another size, each with its name.

    The outer edge of a line is the edge of the crop; a thin white line inside sets it off from dark ground.
    """
    canvas = ImageDraw.Draw(shown)
    across, down = shown.width / image.width, shown.height / image.height
    thickness = max(2, text_size // 5)
    edges = {}
    for name, box in boxes.items():
        left, top = round(box[0] * across), round(box[1] * down)
        right, bottom = max(left, round(box[2] * across) - 1), max(top, round(box[3] * down) - 1)
        edges[name] = (left, top, right, bottom)
        if min(right - left, bottom - top) > 2 * thickness:
            inside = (left + thickness, top + thickness, right - thickness, bottom - thickness)
            canvas.rectangle(inside, outline=GROUND)
        canvas.rectangle(edges[name], outline=colours[name], width=thickness)
    letters = font(text_size)
    height = round(text_size * 1.3)
    for number, (name, (left, top, right, bottom)) in enumerate(edges.items()):
        width = round(letters.getlength(name.upper())) + text_size // 2
        # Boxes may coincide and their tags must not: they alternate between top left and bottom right.
        x, y = (left, top) if number % 2 == 0 else (right - width + 1, bottom - height + 1)
        canvas.rectangle((x, y, x + width - 1, y + height - 1), fill=colours[name])
        canvas.text((x + width / 2, y + height * 0.78), name.upper(), GROUND, letters, anchor="ms")
    return shown


def _square(image: Image.Image, side: int) -> Image.Image:
    """The central square of an image, enlarged or reduced."""
    shorter = min(image.size)
    left, top = (image.width - shorter) // 2, (image.height - shorter) // 2
    return fit_image(image.crop((left, top, left + shorter, top + shorter)), side, side)
