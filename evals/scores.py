"""Scores: metrics and protocol in one form, for tables and JSON.

Test features carry labels in training's numbering (`leoclr.evals.classes.match_classes`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch

from leoclr.datasets.files import ignore
from leoclr.evals.accuracy import IntArray, Predictions, predictions
from leoclr.evals.features.extract import Features
from leoclr.evals.finetuning.labelled_crops import LabelledCrops
from leoclr.evals.finetuning.supervised import Schedule
from leoclr.evals.probes.knn import DEFAULT_CHUNK, MAJORITY_K, TEMPERATURE, WEIGHTED_K, classify, nearest_neighbours
from leoclr.evals.probes.linear import GRID, HOLDOUT_SHARE, LinearProbe, Metric, Normalisation, equal_length, fit_probe
from leoclr.evals.probes.logistic import SolverName
from leoclr.evals.probes.sgd import MOMENTUM, SCHEDULE, SgdProbe
from leoclr.evals.probes.whitening import ENOUGH_IMAGES, SHRINKAGE, Whitening

TIES = "equal votes go to the class of the nearer neighbour"
_CHAOTIC_RATE = 3.0  # from here on short trainings by SGD were seen to amplify rounding


class Predicted(NamedTuple):
    """Predictions, and the sample numbers, in the test data, of the images that they are for."""

    numbers: IntArray
    predictions: Predictions


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        key: Its name in JSON.
        label: Its name in the table.
        values: Metric name (top1, top5) to a share in [0, 1].
        half_widths: Half of the 95 % interval of some of the values, over the draws of what was drawn at random.
        image_half_widths: The same over the test images.
    """

    key: str
    label: str
    values: dict[str, float]
    half_widths: dict[str, float] = field(default_factory=dict)
    image_half_widths: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Score:
    """What an evaluation found.

    Attributes:
        rows: The table.
        protocol: How the classifier was made, in lines for a person.
        details: Further values for JSON.
        notes: One line for each thing that makes the numbers less than they seem.
        predictions: For each test image, by the key of the row that they make, or another name.
    """

    rows: tuple[Row, ...]
    protocol: tuple[str, ...]
    details: dict[str, Any]
    notes: tuple[str, ...] = ()
    predictions: Mapping[str, Predicted] = field(default_factory=dict)

    def with_intervals(self) -> Score:
        """The same, each row that predictions make with its intervals over the test images."""
        rows = []
        for row in self.rows:
            made = self.predictions.get(row.key)
            halves = made.predictions.half_widths() if made is not None else {}
            own = {metric: half for metric, half in halves.items() if metric in row.values}
            rows.append(replace(row, image_half_widths=own | row.image_half_widths))
        return replace(self, rows=tuple(rows))


def knn_score(
    train: Features,
    test: Features,
    *,
    device: torch.device | str = "cpu",
    chunk: int = DEFAULT_CHUNK,
    whiten: bool = False,
) -> Score:
    """Both customary k-NN classifiers: many weighted neighbours, and few equal ones.

    Args:
        device: Where the similarities are computed.
        chunk: Similarities that are held at a time, 4 bytes each.
        whiten: Whether to whiten the features first, by the training features.
    """
    details: dict[str, Any] = {"temperature": TEMPERATURE, "whitened": whiten}
    whitened: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    if whiten:
        train, test = (replace(part, features=equal_length(part.features)) for part in (train, test))
        whitening = Whitening.of(train.features)
        train, test = (replace(part, features=whitening(part.features)) for part in (train, test))
        details["largest_share_of_variance"] = whitening.largest_share
        whitened = (
            "features of unit length whitened by the training features: less their mean, each direction scaled to the "
            f"same variance ({SHRINKAGE:g} of the mean variance added); before, one direction of "
            f"{len(whitening.mean_D)} held {whitening.largest_share:.0%} of the variance",
        )
        if len(train.features) < ENOUGH_IMAGES * len(whitening.mean_D):
            notes = (
                f"{len(train.features):,} training images are few to whiten {len(whitening.mean_D):,} dimensions: at "
                f"less than {ENOUGH_IMAGES} for each, distances between them are nearly equal and say little",
            )
    weighted_k, majority_k = min(WEIGHTED_K, len(train.labels)), min(MAJORITY_K, len(train.labels))
    weighted, majority = knn_predictions(train, test, ((weighted_k, TEMPERATURE), (majority_k, None)), device, chunk)
    rows = (
        Row("weighted", f"k = {weighted_k}, tau = {TEMPERATURE}", weighted.accuracies()),
        Row("majority", f"k = {majority_k}, majority", majority.accuracies()),
    )
    protocol = (
        f"k-NN, exact, cosine similarity: k = {weighted_k} with votes exp(similarity / {TEMPERATURE}); "
        f"k = {majority_k} with equal votes; {TIES}",
        *whitened,
    )
    found = {"weighted": Predicted(test.numbers, weighted), "majority": Predicted(test.numbers, majority)}
    details["k"] = [weighted_k, majority_k]
    return Score(rows, protocol, details, notes, found)


def linear_score(
    train: Features,
    test: Features,
    *,
    normalise: Normalisation = "standard",
    grid: Sequence[float] = GRID,
    metric: Metric = "top1",
    seed: int = 0,
    solver: SolverName = "scikit-learn",
    device: torch.device | str = "cpu",
    per_class: bool = False,
    advance: Callable[[int], None] = ignore,
) -> Score:
    """The linear probe on features. `metric` chooses the regularisation, `seed` is that of the hold-out, `advance`
    counts fits, `per_class` adds the mean over classes; for the rest see `fit_probe`."""
    probe = fit_probe(
        train.features,
        train.labels,
        normalise=normalise,
        grid=grid,
        metric=metric,
        seed=seed,
        solver=solver,
        device=device,
        advance=advance,
    )
    found = linear_predictions(probe, test)
    values = found.accuracies() | ({"mean_per_class": found.mean_per_class()} if per_class else {})
    rows = (
        Row("linear", f"linear probe, C = {probe.c:g}", values),
        Row("holdout", "hold-out of the training data", {metric: probe.holdout[probe.c]}),
    )
    predicted = {"linear": Predicted(test.numbers, found)}
    return Score(rows, (linear_protocol(probe, seed, solver),), linear_details(probe), probe.notes, predicted)


def sgd_score(probe: SgdProbe, test: Features, crops: LabelledCrops, schedule: Schedule) -> Score:
    """The linear probe that `leoclr.evals.probes.sgd` trained on `crops` by `schedule`."""
    found = predictions(torch.from_numpy(probe.scores(test.features)), torch.from_numpy(test.labels))
    rows = [Row("linear", f"linear probe by SGD, lr {probe.learning_rate:g}", found.accuracies())]
    choice = f"learning rate {probe.learning_rate:g}"
    if probe.holdout:
        rows.append(Row("holdout", "hold-out of the training data", {"top1": probe.holdout[probe.learning_rate]}))
        choice = (
            f"learning rate out of {', '.join(f'{rate:g}' for rate in probe.holdout)}, chosen on a stratified "
            f"{HOLDOUT_SHARE:.0%} of the training data (seed {crops.seed}) with layers that never see it; the layer "
            "that is scored learns from all of it"
        )
    protocol = (
        f"a linear layer on the frozen encoder by SGD, momentum {MOMENTUM:g}, no weight decay, batch of at most "
        f"{crops.batch_size}, {schedule.protocol}; {choice}; the last epoch counts",
        f"training images: {crops.protocol}; {crops.batches_protocol}",
    )
    notes: tuple[str, ...] = ()
    if schedule.epochs < SCHEDULE.epochs and probe.learning_rate >= _CHAOTIC_RATE:
        notes = (
            f"{schedule.epochs} of the protocol's {SCHEDULE.epochs} epochs at learning rate {probe.learning_rate:g}: "
            "a trial. So short a training amplifies rounding, and the figure differs by up to a point between devices "
            "and numbers of threads",
        )
    details = {
        "epochs": schedule.epochs,
        "learning_rate": probe.learning_rate,
        "holdout": [{"learning_rate": rate, "accuracy": accuracy} for rate, accuracy in probe.holdout.items()],
        "backbone_unchanged": True,  # or there would be no probe
    }
    return Score(tuple(rows), protocol, details, notes, {"linear": Predicted(test.numbers, found)})


def knn_predictions(
    train: Features,
    test: Features,
    votings: Sequence[tuple[int, float | None]],
    device: torch.device | str,
    chunk: int,
) -> list[Predictions]:
    """The predictions of each (k, temperature), the first of which has the largest k, from one search."""
    train_labels_N, test_labels_M = (torch.from_numpy(part.labels).to(device) for part in (train, test))
    train_ND, test_MD = (torch.from_numpy(part.features).to(device) for part in (train, test))
    similarity_MK, neighbour_MK = nearest_neighbours(train_ND, test_MD, votings[0][0], chunk)
    labels_MK, class_count = train_labels_N[neighbour_MK], int(train_labels_N.max()) + 1
    return [
        classify(similarity_MK[:, :k], labels_MK[:, :k], test_labels_M, class_count, temperature, chunk)
        for k, temperature in votings
    ]


def linear_predictions(probe: LinearProbe, test: Features) -> Predictions:
    """The predictions of a linear probe for test features."""
    return predictions(torch.from_numpy(probe.scores(test.features)), torch.from_numpy(test.labels))


def linear_protocol(probe: LinearProbe, seed: int, solver: SolverName) -> str:
    """How the probe was made, in words."""
    features = "standardised" if probe.normalise == "standard" else "L2-normalised (to sqrt of their dimension)"
    grid = ", ".join(f"{c:g}" for c in probe.holdout)
    by = "" if probe.metric == "top1" else " by the mean over classes"
    return (
        f"logistic regression (L-BFGS) on {features} features; C out of {grid}, chosen{by} on a stratified "
        f"{HOLDOUT_SHARE:.0%} of the training data (seed {seed}), then fitted to all of it"
        f"{'' if solver == 'scikit-learn' else '; computed by torch, in float32'}"
    )


def linear_details(probe: LinearProbe) -> dict[str, Any]:
    """What was chosen and out of what, for JSON."""
    return {
        "c": probe.c,
        "holdout": [{"c": c, "accuracy": accuracy} for c, accuracy in probe.holdout.items()],
        "chosen_by": probe.metric,
        "normalise": probe.normalise,
    }
