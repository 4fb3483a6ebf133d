"""Pictures of a report: views, nearest neighbours, and the map of features.

They need the run's shards and its newest checkpoint. If either is missing, a line says so and the rest is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from leoclr.cli.config.augmentation import augmentation_spec
from leoclr.cli.config.settings import Settings
from leoclr.cli.image_folders import as_shards
from leoclr.cli.plotting.drawing import fit_image
from leoclr.cli.plotting.pictures import neighbours_picture, views_picture
from leoclr.cli.reporting.embedding_plot import EmbeddingPlot, MapKind, places
from leoclr.cli.reporting.run_facts import ReportedRun
from leoclr.cli.run.encoders import LoadedEncoder, load_encoder
from leoclr.cli.run.folder import feature_folder
from leoclr.datasets.errors import LeoclrError
from leoclr.datasets.randomness import Permutation
from leoclr.datasets.shards.index import NO_LABEL, Index
from leoclr.datasets.shards.locate import open_data
from leoclr.datasets.shards.reader import SampleReader
from leoclr.datasets.wording import first_line
from leoclr.evals.features.cache import FeatureCache, feature_key
from leoclr.evals.features.extract import Features, check_features, extract_features
from leoclr.evals.probes.knn import nearest_neighbours

_PICTURED = 3
_QUERIES = 8
_NEIGHBOURS = 8
_CELLS = 24
_THUMBNAIL = 42


@dataclass
class Pictures:
    """What could be drawn of a run."""

    views: Image.Image | None = None
    neighbours: Image.Image | None = None
    map: EmbeddingPlot | None = None
    thumbnails: Image.Image | None = None
    encoder: LoadedEncoder | None = None
    from_data: str = ""


def draw_pictures(run: ReportedRun, samples: int, kind: MapKind, advance: Callable[[int], None]) -> Pictures:
    """Everything that the run's data and weights allow; what is missing is added to the run's problems.

    Args:
        samples: How many images the map and the neighbours are taken from.
        advance: Called with the number of images whose features are done.
    """
    pictures = Pictures()
    data = run.part("data")
    train = _open(run, data.get("train"), "training data")
    if train is not None:
        pictures.views = _views(run, train)
    try:
        pictures.encoder = load_encoder(run.folder.path)
    except LeoclrError as error:
        run.problems.append(f"No map and no neighbours: {error}")
    val = _open(run, data.get("val"), "validation data") if data.get("val") else None
    index = val if val is not None else train
    if pictures.encoder is None or index is None or samples == 0:
        return pictures
    pictures.from_data = "validation" if val is not None else "training"
    try:
        _draw_features(pictures, pictures.encoder, _some(index, samples), kind, advance)
    except LeoclrError as error:
        run.problems.append(f"No map and no neighbours: {error}")
    return pictures


def _draw_features(
    pictures: Pictures, encoder: LoadedEncoder, index: Index, kind: MapKind, advance: Callable[[int], None]
) -> None:
    features = _features(encoder, index, advance)
    reader = SampleReader(index)
    classes = _class_names(index, features.numbers.tolist()) if index.labelled else None
    if len(features.features) > 1:
        pictures.neighbours = _neighbours(features, reader, classes)
    if kind != "none" and len(features.features) > 2:
        found, method = places(features.features, kind)
        pictures.map = EmbeddingPlot(
            found, [index.key(number) for number in features.numbers.tolist()], classes, method
        )
        pictures.thumbnails = thumbnails(found, lambda row: reader.image(int(features.numbers[row])))


def _open(run: ReportedRun, specs: object, name: str) -> Index | None:
    if not isinstance(specs, list) or not specs or not all(isinstance(spec, str) for spec in specs):
        run.problems.append(f"run.json does not say where the {name} lies.")
        return None
    try:
        return open_data(as_shards(specs, announce=False))
    except LeoclrError as error:
        run.problems.append(f"The {name} cannot be opened: {error}")
        return None


def anonymous_views(run: ReportedRun) -> Image.Image | None:
    """What the model sees of some training images, without the names of their files; None where the data has gone."""
    train = _open(run, run.part("data").get("train"), "training data")
    return _views(run, train, named=False) if train is not None else None


def _views(run: ReportedRun, index: Index, named: bool = True) -> Image.Image | None:
    try:
        settings = Settings.model_validate(run.part("settings"))
        reader = SampleReader(index)
        numbers = range(min(_PICTURED, len(index)))
        images = [reader.image(number) for number in numbers]
        names = [index.key(number) if named else f"image {number + 1}" for number in numbers]
        spec = augmentation_spec(settings)
        return views_picture(images, names, spec, settings.view_policy, settings.train.seed, size=160)
    except (LeoclrError, ValidationError) as error:
        run.problems.append(f"The views cannot be drawn: {first_line(error)}")
        return None


def _some(index: Index, samples: int) -> Index:
    """A fixed random part of the data: the same images in every report."""
    count = min(samples, len(index))
    return index.subset(np.sort(Permutation(len(index), 0)(np.arange(count))))


def _features(encoder: LoadedEncoder, index: Index, advance: Callable[[int], None]) -> Features:
    cache = FeatureCache(feature_folder(encoder.run))
    key = feature_key(encoder.identity, index.content_digest, encoder.preprocessing, "float32 on cpu")
    features = cache.load(key, index)
    if features is None:
        features = extract_features(
            encoder.backbone, index, encoder.preprocessing, batch_size=64, max_bad_share=0.5, advance=advance
        )
        check_features(features, index, "report")
        if not features.skipped:  # `leoclr eval` allows fewer bad images
            cache.store(key, features)
    return features


def _neighbours(features: Features, reader: SampleReader, classes: Sequence[str] | None) -> Image.Image:
    """One image of each class, or some images, with those of the others that are most like it."""
    labels = features.labels if classes is not None else np.arange(len(features.labels))
    queries = np.unique(labels, return_index=True)[1][:_QUERIES]
    found = torch.from_numpy(features.features)
    # The first neighbour is the query itself, or its double: it is left out by number.
    similarity, rows = nearest_neighbours(found, found[queries], _NEIGHBOURS + 1)
    kept = [
        [(row, alike) for row, alike in zip(own, values, strict=True) if row != query][:_NEIGHBOURS]
        for query, own, values in zip(queries.tolist(), rows.tolist(), similarity.tolist(), strict=True)
    ]
    images = [[reader.image(int(features.numbers[row])) for row, _ in line] for line in kept]
    return neighbours_picture(
        [reader.image(int(features.numbers[query])) for query in queries],
        images,
        None if classes is None else [classes[query] for query in queries],
        None if classes is None else [[classes[row] for row, _ in line] for line in kept],
        [[alike for _, alike in line] for line in kept],
        title=f"The most similar of {len(features.features):,} images",
        size=88,
    )


def thumbnails(found: NDArray[np.float64], image: Callable[[int], Image.Image]) -> Image.Image:
    """The images themselves on a grid, each in the cell where it lies; one image a cell, the nearest to its middle.

    Args:
        found: Places in [0, 1], shape `(n, 2)`.
        image: The image of a row.
    """
    cells = np.minimum((found * _CELLS).astype(int), _CELLS - 1)
    distance = np.abs(found * _CELLS - cells - 0.5).sum(axis=1)
    canvas = Image.new("RGBA", (_CELLS * _THUMBNAIL, _CELLS * _THUMBNAIL), (0, 0, 0, 0))
    taken: set[tuple[int, int]] = set()
    for row in np.argsort(distance, kind="stable").tolist():
        cell = (int(cells[row, 0]), int(cells[row, 1]))
        if cell in taken:
            continue
        taken.add(cell)
        tile = fit_image(image(row), _THUMBNAIL - 2, _THUMBNAIL - 2)
        across, down = ((_THUMBNAIL - side) // 2 for side in tile.size)
        canvas.paste(tile, (cell[0] * _THUMBNAIL + across, cell[1] * _THUMBNAIL + down))
    return canvas


def _class_names(index: Index, numbers: Sequence[int]) -> list[str]:
    labels = index.label[list(numbers)].tolist()
    return [index.classes[label] if NO_LABEL < label < len(index.classes) else f"class {label}" for label in labels]
