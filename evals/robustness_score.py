"""The robustness score: one classifier on centre and random crops of the test images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from leoclr.datasets.files import ignore
from leoclr.evals.accuracy import Predictions
from leoclr.evals.features.extract import Features
from leoclr.evals.probes.knn import DEFAULT_CHUNK, TEMPERATURE, WEIGHTED_K
from leoclr.evals.probes.linear import Normalisation, fit_probe, solver_of
from leoclr.evals.robustness import FEW_DRAWS, CropDrop, crop_drop
from leoclr.evals.scores import (
    TIES,
    Predicted,
    Row,
    Score,
    knn_predictions,
    linear_details,
    linear_predictions,
    linear_protocol,
)

ProbeKind = Literal["linear", "knn"]


class Part(NamedTuple):
    """Square parts of the test images.

    Attributes:
        share: Of the area, as it was asked for.
        cut: Of the area, in whole pixels.
        features: Of the parts, for each draw.
    """

    share: float
    cut: float
    features: Sequence[Features]


def robustness_score(
    train: Features,
    centre: Features,
    crops: Sequence[Features],
    curve: Sequence[Part] = (),
    *,
    probe: ProbeKind = "linear",
    normalise: Normalisation = "standard",
    seed: int = 0,
    device: torch.device | str = "cpu",
    chunk: int = DEFAULT_CHUNK,
    advance: Callable[[int], None] = ignore,
) -> Score:
    """One classifier, trained on centre crops, on centre and on random crops of the test images.

    Args:
        crops: Features of the same test images, one for each draw.
        curve: Square parts of the same test images; each becomes a row.
        probe: "linear", or "knn" (k = 200, weighted).
    """
    if probe == "linear":
        classifier = _by_linear_probe(train, normalise, seed, device, advance)
    else:
        classifier = _by_knn(train, device, chunk)
    reference, drawn = classifier(centre), [classifier(test) for test in crops]
    drops = _drops(reference, drawn)
    rows = list(_drop_rows(drops))
    for part in curve:
        found = _drops(reference, [classifier(test) for test in part.features])
        values = {metric: drop.mean for metric, drop in found.items()}
        over_images = {metric: drop.mean_over_images for metric, drop in found.items()}
        label = f"square part, {100 * part.cut:.1f}% of the area"
        rows.append(Row(f"part_{part.share:g}", label, values, _over_draws(found), over_images))
    details = classifier.details | {"random": {metric: list(drop.random) for metric, drop in drops.items()}}
    details |= {"parts": {f"part_{part.share:g}": part.cut for part in curve}} if curve else {}
    intervals = (
        "95 % intervals over the test images (normal approximation; that of the drop by the differences within an "
        f"image), and over {len(crops)} draws of the crops (Student's t)"
    )
    notes = classifier.notes
    if len(crops) <= FEW_DRAWS:
        notes = (*notes, _few_draws(len(crops)))
    predicted = {"centre": reference} | {f"random, draw {number}": one for number, one in enumerate(drawn)}
    return Score(tuple(rows), (f"{classifier.protocol}; {intervals}",), details, notes, predicted)


@dataclass(frozen=True)
class _Classifier:
    """What was trained on the centre crops; a call predicts the classes of other images.

    Attributes:
        protocol: How it was made, in words.
        details: The same for JSON.
    """

    predict: Callable[[Features], Predictions]
    protocol: str
    details: dict[str, Any]
    notes: tuple[str, ...] = ()

    def __call__(self, test: Features) -> Predicted:
        return Predicted(test.numbers, self.predict(test))


def _by_linear_probe(
    train: Features, normalise: Normalisation, seed: int, device: torch.device | str, advance: Callable[[int], None]
) -> _Classifier:
    solver = solver_of(device)
    fitted = fit_probe(
        train.features, train.labels, normalise=normalise, seed=seed, solver=solver, device=device, advance=advance
    )
    protocol = linear_protocol(fitted, seed, solver)
    return _Classifier(partial(linear_predictions, fitted), protocol, linear_details(fitted), fitted.notes)


def _by_knn(train: Features, device: torch.device | str, chunk: int) -> _Classifier:
    k = min(WEIGHTED_K, len(train.labels))

    def predict(test: Features) -> Predictions:
        (found,) = knn_predictions(train, test, ((k, TEMPERATURE),), device, chunk)
        return found

    protocol = f"k-NN, exact, cosine similarity: k = {k} with votes exp(similarity / {TEMPERATURE}); {TIES}"
    return _Classifier(predict, protocol, {"k": k, "temperature": TEMPERATURE})


def _few_draws(draws: int) -> str:
    if draws == 1:
        return "one draw of the crops: no interval over draws; take more with --crop-seeds"
    return (
        f"{draws} draws of the crops: an interval over so few says little, be it wide or narrow; take more with "
        "--crop-seeds"
    )


def _drops(centre: Predicted, drawn: Sequence[Predicted]) -> dict[str, CropDrop]:
    """By metric. An image that some view could not be made of is left out of all."""
    everywhere = centre.numbers
    for one in drawn:
        everywhere = np.intersect1d(everywhere, one.numbers)
    masks = [np.isin(one.numbers, everywhere) for one in (centre, *drawn)]
    found = {}
    for metric in centre.predictions.accuracies():
        first, *others = (
            one.predictions.right(metric)[mask] for one, mask in zip((centre, *drawn), masks, strict=True)
        )
        found[metric] = crop_drop(first, np.stack(others))
    return found


def _over_draws(drops: dict[str, CropDrop]) -> dict[str, float]:
    return {metric: drop.over_draws for metric, drop in drops.items() if drop.over_draws is not None}


def _drop_rows(drops: dict[str, CropDrop]) -> tuple[Row, ...]:
    centre, random, drop, random_images, centre_images, drop_images = (
        {metric: float(getattr(one, name)) for metric, one in drops.items()}
        for name in ("centre", "mean", "drop", "mean_over_images", "centre_over_images", "drop_over_images")
    )
    over_draws = _over_draws(drops)
    return (
        Row("centre", "centre crop", centre, {}, centre_images),
        Row("random", "random crop", random, over_draws, random_images),
        Row("drop", "drop", drop, over_draws, drop_images),
    )
