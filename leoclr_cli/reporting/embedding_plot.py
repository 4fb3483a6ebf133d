"""Plot of features in two dimensions: SVG dots, coloured and labelled by class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from leoclr.cli.reporting.markup import Html, element

MapKind = Literal["tsne", "pca", "none"]

COLOURS = 10
_SIDE, _MARGIN = 480, 14
_PERPLEXITY = 30.0
_FEWEST_FOR_TSNE = 20
_FIRST_COMPONENTS = 50
_LINE, _WORD = 15, 90  # room for a name


@dataclass(frozen=True)
class EmbeddingPlot:
    """Places of images.

    Attributes:
        places: In [0, 1], shape `(n, 2)`, the second axis downwards.
        keys: Of the images.
        classes: Name of each image's class; None where there are no labels.
        method: How the places were found, in words.
    """

    places: NDArray[np.float64]
    keys: Sequence[str]
    classes: Sequence[str] | None
    method: str


def places(features: NDArray[np.float32], kind: MapKind, seed: int = 0) -> tuple[NDArray[np.float64], str]:
    """Places in [0, 1] for features of shape `(n, d)`, and how they were found. Features are brought to unit length
    first, so that near means a high cosine similarity, as in k-NN."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    if not np.ptp(unit, axis=0).any():
        return np.zeros((len(unit), 2)), "all features are the same: the encoder has collapsed"
    components = max(1, min(_FIRST_COMPONENTS, *unit.shape))
    pca = PCA(components, random_state=seed)
    projected = pca.fit_transform(unit.astype(np.float64))
    share = float(pca.explained_variance_ratio_[:2].sum())
    method = f"PCA of the unit features; the two axes hold {share:.0%} of the variance"
    found = np.zeros((len(unit), 2))
    found[:, : min(2, components)] = projected[:, :2]
    if kind == "tsne" and len(unit) >= _FEWEST_FOR_TSNE:
        perplexity = min(_PERPLEXITY, len(unit) / 4)
        found = TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(projected)
        method = f"t-SNE of the unit features, perplexity {perplexity:g}, seed {seed}: near is alike, far says little"
    low, high = found.min(axis=0), found.max(axis=0)
    return (found - low) / np.maximum(high - low, 1e-12), method


def colour_numbers(classes: Sequence[str]) -> dict[str, int]:
    """A colour for each of the most frequent classes; the others have none."""
    frequent = Counter(sorted(classes)).most_common(COLOURS)
    return {name: number for number, name in enumerate(sorted(name for name, _ in frequent))}


def scatter(plot: EmbeddingPlot) -> Html:
    """The plot as SVG. A dot under the pointer tells its key and class."""
    xy = np.round(_MARGIN + plot.places * (_SIDE - 2 * _MARGIN), 1).tolist()
    classes = plot.classes
    colours = colour_numbers(classes) if classes is not None else {}
    dots = []
    for number, ((x, y), key) in enumerate(zip(xy, plot.keys, strict=True)):
        name = classes[number] if classes is not None else ""
        colour = f"dot class{colours[name]}" if name in colours else "dot"
        dots.append(element("circle", element("title", f"{key}  {name}"), cx=x, cy=y, r=3.4, class_=colour))
    names = _names(np.array(xy), classes, colours) if classes is not None else []
    summary = f"Map of {len(dots)} images" + (f" of {len(set(classes))} classes" if classes is not None else "")
    return element(
        "svg", element("title", summary), *dots, *names, viewBox=f"0 0 {_SIDE} {_SIDE}", role="img", class_="map"
    )


def _names(xy: NDArray[np.float64], classes: Sequence[str], colours: dict[str, int]) -> list[Html]:
    """The name of each coloured class in the middle of its dots, or below where another name is there."""
    labels = np.array(classes)
    middles = {name: np.median(xy[labels == name], axis=0).round(1).tolist() for name in colours}
    names, placed = [], list[tuple[float, float]]()
    for name, (x, y) in sorted(middles.items(), key=lambda one: one[1][1]):
        while any(abs(y - other_y) < _LINE and abs(x - other_x) < _WORD for other_x, other_y in placed):
            y = round(y + 1, 1)
        placed.append((x, y))
        colour = colours[name]
        names.append(element("text", name[:24], x=x, y=y, text_anchor="middle", class_=f"name class{colour}"))
    return names
