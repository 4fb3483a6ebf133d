"""The scores that are reported: which numbers, under which protocol, in one form for tables and for JSON.

Test features carry labels in training's numbering (`leoclr.evals.classes.match_classes`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from leoclr.datasets.files import ignore
from leoclr.evals.accuracy import accuracies, mean_per_class
from leoclr.evals.features.extract import Features
from leoclr.evals.finetuning.labelled_crops import Crops
from leoclr.evals.finetuning.supervised import Schedule
from leoclr.evals.probes.knn import DEFAULT_CHUNK, MAJORITY_K, TEMPERATURE, WEIGHTED_K, nearest, votes
from leoclr.evals.probes.linear import GRID, HOLDOUT_SHARE, LinearProbe, Normalisation, fit_probe
from leoclr.evals.probes.logistic import SolverName
from leoclr.evals.probes.sgd import MOMENTUM, SgdProbe
from leoclr.evals.robustness import CropDrop, crop_drop

ProbeKind = Literal["linear", "knn"]


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        key: Its name in JSON.
        label: Its name in the table.
        values: Metric name (top1, top5) to a share in [0, 1].
        half_widths: Half of the 95 % interval of some of the values.
    """

    key: str
    label: str
    values: dict[str, float]
    half_widths: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Score:
    """What an evaluation found.

    Attributes:
        rows: The table.
        protocol: How the classifier was made, in lines for a person.
        details: Further values for JSON.
        notes: One line for each thing that makes the numbers less than they seem.
    """

    rows: tuple[Row, ...]
    protocol: tuple[str, ...]
    details: dict[str, Any]
    notes: tuple[str, ...] = ()


def knn_score(
    train: Features, test: Features, *, device: torch.device | str = "cpu", chunk: int = DEFAULT_CHUNK
) -> Score:
    """Both customary k-NN classifiers: many weighted neighbours, and few equal ones.

    Args:
        device: Where the similarities are computed.
        chunk: Similarities that are held at a time, 4 bytes each.
    """
    weighted_k, majority_k = min(WEIGHTED_K, len(train.labels)), min(MAJORITY_K, len(train.labels))
    similarity_MK, labels_MK, test_labels_M, class_count = _neighbours(train, test, weighted_k, device, chunk)
    weighted_MC = votes(similarity_MK, labels_MK, class_count, TEMPERATURE)
    majority_MC = votes(similarity_MK[:, :majority_k], labels_MK[:, :majority_k], class_count, None)
    rows = (
        Row("weighted", f"k = {weighted_k}, tau = {TEMPERATURE}", accuracies(weighted_MC, test_labels_M)),
        Row("majority", f"k = {majority_k}, majority", accuracies(majority_MC, test_labels_M)),
    )
    protocol = (
        f"k-NN, exact, cosine similarity: k = {weighted_k} with votes exp(similarity / {TEMPERATURE}); "
        f"k = {majority_k} with equal votes",
    )
    return Score(rows, protocol, {"k": [weighted_k, majority_k], "temperature": TEMPERATURE})


def linear_score(
    train: Features,
    test: Features,
    *,
    normalise: Normalisation = "standard",
    grid: Sequence[float] = GRID,
    seed: int = 0,
    solver: SolverName = "scikit-learn",
    device: torch.device | str = "cpu",
    per_class: bool = False,
    advance: Callable[[int], None] = ignore,
) -> Score:
    """The linear probe on features. `seed` is that of the hold-out, `advance` counts fits, `per_class` adds the mean
    over classes; for the rest see `fit_probe`."""
    probe = fit_probe(
        train.features,
        train.labels,
        normalise=normalise,
        grid=grid,
        seed=seed,
        solver=solver,
        device=device,
        advance=advance,
    )
    values = _accuracies(probe, test)
    if per_class:
        scores = torch.from_numpy(probe.scores(test.features))
        values["mean_per_class"] = mean_per_class(scores, torch.from_numpy(test.labels))
    rows = (
        Row("linear", f"linear probe, C = {probe.c:g}", values),
        Row("holdout", "hold-out of the training data", {"top1": probe.holdout[probe.c]}),
    )
    program = "" if solver == "scikit-learn" else "; computed by torch, in float32"
    return Score(rows, (_linear_protocol(probe, seed) + program,), _linear_details(probe), probe.notes)


def sgd_score(probe: SgdProbe, test: Features, crops: Crops, schedule: Schedule) -> Score:
    """The linear probe that `leoclr.evals.probes.sgd` trained on `crops` by `schedule`."""
    scores = torch.from_numpy(probe.scores(test.features))
    label = f"linear probe by SGD, lr {probe.learning_rate:g}"
    rows = [Row("linear", label, accuracies(scores, torch.from_numpy(test.labels)))]
    choice = f"learning rate {probe.learning_rate:g}"
    if probe.holdout:
        rows.append(Row("holdout", "hold-out of the training data", {"top1": probe.holdout[probe.learning_rate]}))
        choice = (
            f"learning rate out of {', '.join(f'{rate:g}' for rate in probe.holdout)}, chosen on a stratified "
            f"{HOLDOUT_SHARE:.0%} of the training data (seed {crops.seed}) with layers that never see it; the layer "
            "that is scored learns from all of it"
        )
    protocol = (
        f"a linear layer on the frozen encoder by SGD, momentum {MOMENTUM:g}, no weight decay, batch "
        f"{crops.plan.batch_size}, {schedule.protocol}; {choice}; the last epoch counts",
        f"training images: {crops.protocol}",
    )
    details = {
        "learning_rate": probe.learning_rate,
        "holdout": [{"learning_rate": rate, "accuracy": accuracy} for rate, accuracy in probe.holdout.items()],
        "backbone_unchanged": True,  # or there would be no probe
    }
    return Score(tuple(rows), protocol, details)


def robustness_score(
    train: Features,
    centre: Features,
    crops: Sequence[Features],
    curve: Mapping[float, Sequence[Features]] | None = None,
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
        crops: Features of the same test images, one for each crop seed.
        curve: The same for crops of a fixed share of the area, by that share; each becomes a row.
        probe: "linear", or "knn" (k = 200, weighted).
    """
    if probe == "linear":
        fitted = fit_probe(train.features, train.labels, normalise=normalise, seed=seed, advance=advance)
        accuracies_of = partial(_accuracies, fitted)
        protocol, details, notes = _linear_protocol(fitted, seed), _linear_details(fitted), fitted.notes
    else:
        k = min(WEIGHTED_K, len(train.labels))
        accuracies_of = partial(_weighted_knn, train, k=k, device=device, chunk=chunk)
        protocol = f"k-NN, exact, cosine similarity: k = {k} with votes exp(similarity / {TEMPERATURE})"
        details, notes = {"k": k, "temperature": TEMPERATURE}, ()
    reference = accuracies_of(centre)
    drops = _drops(reference, [accuracies_of(test) for test in crops])
    rows = list(_drop_rows(drops))
    for share, tests in (curve or {}).items():
        part = _drops(reference, [accuracies_of(test) for test in tests])
        values = {metric: drop.mean for metric, drop in part.items()}
        rows.append(Row(f"part_{share:g}", f"square part, {share:.0%} of the area", values, _half_widths(part)))
    details |= {"random": {metric: list(drop.random) for metric, drop in drops.items()}}
    seeds = f"{len(crops)} crop seeds, 95 % interval by Student's t over them"
    return Score(tuple(rows), (f"{protocol}; {seeds}",), details, notes)


def _drops(centre: dict[str, float], found: Sequence[dict[str, float]]) -> dict[str, CropDrop]:
    return {metric: crop_drop(value, [values[metric] for values in found]) for metric, value in centre.items()}


def _half_widths(drops: dict[str, CropDrop]) -> dict[str, float]:
    return {metric: drop.half_width for metric, drop in drops.items() if drop.half_width is not None}


def _drop_rows(drops: dict[str, CropDrop]) -> tuple[Row, ...]:
    half_widths = _half_widths(drops)
    return (
        Row("centre", "centre crop", {metric: drop.centre for metric, drop in drops.items()}),
        Row("random", "random crop", {metric: drop.mean for metric, drop in drops.items()}, half_widths),
        Row("drop", "drop", {metric: drop.drop for metric, drop in drops.items()}, half_widths),
    )


def _neighbours(
    train: Features, test: Features, k: int, device: torch.device | str, chunk: int
) -> tuple[Tensor, Tensor, Tensor, int]:
    train_labels_N, test_labels_M = (torch.from_numpy(part.labels).to(device) for part in (train, test))
    train_ND, test_MD = (torch.from_numpy(part.features).to(device) for part in (train, test))
    similarity_MK, neighbour_MK = nearest(train_ND, test_MD, k, chunk)
    return similarity_MK, train_labels_N[neighbour_MK], test_labels_M, int(train_labels_N.max()) + 1


def _weighted_knn(train: Features, test: Features, k: int, device: torch.device | str, chunk: int) -> dict[str, float]:
    similarity_MK, labels_MK, test_labels_M, class_count = _neighbours(train, test, k, device, chunk)
    return accuracies(votes(similarity_MK, labels_MK, class_count, TEMPERATURE), test_labels_M)


def _accuracies(probe: LinearProbe, test: Features) -> dict[str, float]:
    return accuracies(torch.from_numpy(probe.scores(test.features)), torch.from_numpy(test.labels))


def _linear_protocol(probe: LinearProbe, seed: int) -> str:
    features = "standardised" if probe.normalise == "standard" else "L2-normalised (to sqrt of their dimension)"
    grid = ", ".join(f"{c:g}" for c in probe.holdout)
    return (
        f"logistic regression (L-BFGS) on {features} features; C out of {grid}, chosen on a stratified "
        f"{HOLDOUT_SHARE:.0%} of the training data (seed {seed}), then fitted to all of it"
    )


def _linear_details(probe: LinearProbe) -> dict[str, Any]:
    return {
        "c": probe.c,
        "holdout": [{"c": c, "accuracy": accuracy} for c, accuracy in probe.holdout.items()],
        "normalise": probe.normalise,
    }
