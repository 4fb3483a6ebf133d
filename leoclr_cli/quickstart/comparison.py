"""Comparison of the quickstart: trained encoder, raw pixels and untrained encoder, by the same scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from leoclr.cli.run.encoders import LoadedEncoder
from leoclr.datasets.shards.index import Index
from leoclr.datasets.wording import aligned
from leoclr.evals.features.extract import Features, extract_features
from leoclr.evals.features.preprocessing import Preprocessing, standard_view
from leoclr.evals.probes.linear import GRID
from leoclr.evals.scores import knn_score, linear_score

FITS = len(GRID) + 1
COLUMNS = {"knn_200": "k-NN, k = 200", "knn_20": "k-NN, k = 20", "linear": "linear probe"}


@dataclass(frozen=True)
class Representation:
    """Something that turns an image into numbers.

    Attributes:
        key: Its name in JSON.
        label: Its name in the table.
    """

    key: str
    label: str
    backbone: nn.Module
    preprocessing: Preprocessing

    def features(self, train: Index, test: Index, advance: Callable[[int], None]) -> tuple[Features, Features]:
        """Of the training and the test images; `advance` is called with the number of images done."""
        return (
            extract_features(self.backbone, train, self.preprocessing, advance=advance),
            extract_features(self.backbone, test, self.preprocessing, advance=advance),
        )


@dataclass(frozen=True)
class ScoreLine:
    """A representation's share of right answers, in [0, 1], by the keys of `COLUMNS`."""

    key: str
    label: str
    accuracy: dict[str, float]


def of_encoder(encoder: LoadedEncoder, key: str, label: str) -> Representation:
    """The features of an encoder, whole images at its size, before the projector."""
    return Representation(key, label, encoder.backbone, encoder.preprocessing)


def of_pixels(side: int) -> Representation:
    """The pixels themselves, from 0 to 1, of images of `side` x `side`."""
    preprocessing = Preprocessing(standard_view(side), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    return Representation("pixels", "raw pixels", nn.Flatten(), preprocessing)


def score(
    representation: Representation, features: tuple[Features, Features], advance: Callable[[int], None]
) -> ScoreLine:
    """Classify the test images by the labelled training images, in the ways of `leoclr eval knn` and `linear`.

    Args:
        features: Of the training and the test images.
        advance: Called with 1 after each of the `FITS` fits of the linear probe.
    """
    train, test = features
    knn = {row.key: row.values["top1"] for row in knn_score(train, test, device=torch.device("cpu")).rows}
    linear = linear_score(train, test, advance=advance).rows[0].values["top1"]
    accuracy = {"knn_200": knn["weighted"], "knn_20": knn["majority"], "linear": linear}
    return ScoreLine(representation.key, representation.label, accuracy)


def table(lines: Sequence[ScoreLine], heading: str) -> str:
    """The lines in aligned columns, in per cent."""
    rows = [[line.label, *(f"{100 * line.accuracy[key]:.1f}" for key in COLUMNS)] for line in lines]
    return aligned([[heading, *COLUMNS.values()], *rows])
