"""The linear probe: multinomial logistic regression on frozen features.

The regularisation is chosen on a part of the training set; the test set has no influence on the probe. N = training
samples, M = test samples, D = feature dimension, C = classes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from sklearn.preprocessing import StandardScaler

from leoclr.datasets.errors import EvaluationError
from leoclr.datasets.files import ignore
from leoclr.evals.accuracy import FloatArray, IntArray, predictions
from leoclr.evals.classes import stratified_holdout
from leoclr.evals.probes.logistic import MAX_ITERATIONS, DeviceSolver, ScikitLearnSolver, Solver, SolverName

Normalisation = Literal["standard", "l2"]
Metric = Literal["top1", "mean_per_class"]

GRID = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
HOLDOUT_SHARE = 0.2


@dataclass(frozen=True)
class LinearProbe:
    """A trained probe.

    Attributes:
        normalise: What is done to features first: "standard" (the training set's mean and deviation) or "l2" (equal
            length).
        shift, scale: Subtracted from and multiplied with features, shape `(D,)`; 0 and 1 for "l2".
        coefficients: Shape `(D, C)`. The columns of classes without a training sample are zero.
        intercept: Shape `(C,)`; minus infinity for those classes.
        c: The chosen inverse strength of the regularisation, as scikit-learn counts it.
        metric: What chose C.
        holdout: That metric, in [0, 1], on the held-out part of the training set, by C.
        notes: One line for each thing to know: fits that did not converge, a C on the grid's edge.
    """

    normalise: Normalisation
    shift: FloatArray
    scale: FloatArray
    coefficients: FloatArray
    intercept: FloatArray
    c: float
    metric: Metric
    holdout: dict[float, float]
    notes: tuple[str, ...]

    def scores(self, features: FloatArray) -> FloatArray:
        """Of every class, shape `(M, C)`; the highest is the prediction."""
        if self.normalise == "l2":
            features = equal_length(features)
        weights = self.scale[:, None] * self.coefficients
        scores: FloatArray = features @ weights + (self.intercept - self.shift @ weights)
        return scores


def solver_of(device: torch.device | str) -> SolverName:
    """The solver for a device: scikit-learn's on a CPU, which is slow where there is a GPU."""
    return "device" if torch.device(device).type == "cuda" else "scikit-learn"


def fit_probe(
    features: FloatArray,
    labels: IntArray,
    *,
    normalise: Normalisation = "standard",
    grid: Sequence[float] = GRID,
    metric: Metric = "top1",
    seed: int = 0,
    solver: SolverName = "scikit-learn",
    device: torch.device | str = "cpu",
    advance: Callable[[int], None] = ignore,
) -> LinearProbe:
    """Choose C on a stratified hold-out of the training set, then fit on all of it.

    The fits go from strong to weak regularisation, each starting where the last ended, which makes the grid cost
    little more than its hardest fit.

    Args:
        features, labels: Training set, shapes `(N, D)` and `(N,)`; class numbers from 0.
        grid: Values of C.
        metric: Chooses among them.
        seed: Of the hold-out.
        solver: "device" computes on `device`, "scikit-learn" on the CPU; both find the same probe.
        advance: Called with 1 after each fit, once more than the grid has values.

    Raises:
        EvaluationError: There is one class, or the normalisation is unknown.
    """
    if normalise not in get_args(Normalisation):
        raise EvaluationError(f"normalise is one of {', '.join(get_args(Normalisation))}, not {normalise!r}")
    if len(np.unique(labels)) < 2:
        raise EvaluationError("a linear probe needs training samples of at least two classes")
    grid = sorted(grid)
    kept, held = stratified_holdout(labels, HOLDOUT_SHARE, seed)
    start: Solver = ScikitLearnSolver() if solver == "scikit-learn" else DeviceSolver(device)
    holdout, path, stalled = _search(start, features, labels, kept, held, normalise, grid, metric, advance)
    c = max(grid, key=lambda value: (holdout[value], -value))

    shift, scale = _normalisation(features, normalise)
    model = path[c]
    converged = model.fit(_apply(features, normalise, shift, scale), labels, c)
    advance(1)
    coefficients, intercept = _by_class(model)
    notes = (*_edge(c, grid, holdout), *_unconverged(stalled, None if converged else c))
    return LinearProbe(normalise, shift, scale, coefficients, intercept, c, metric, holdout, notes)


def equal_length(features: FloatArray) -> FloatArray:
    """Each row scaled to the length sqrt(D), so that one grid of C suits both normalisations; rows of zeros stay."""
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    scaled: FloatArray = features * (features.shape[1] ** 0.5 / np.maximum(norms, np.finfo(np.float32).tiny))
    return scaled


def _search(
    model: Solver,
    features: FloatArray,
    labels: IntArray,
    kept: IntArray,
    held: IntArray,
    normalise: Normalisation,
    grid: Sequence[float],
    metric: Metric,
    advance: Callable[[int], None],
) -> tuple[dict[float, float], dict[float, Solver], list[float]]:
    """The metric on the hold-out and the solver as it was fitted to the rest of the training set, by C; and the C
    whose fit did not converge. `grid` ascends."""
    shift, scale = _normalisation(features[kept], normalise)
    kept_features = _apply(features[kept], normalise, shift, scale)
    held_features = _apply(features[held], normalise, shift, scale)
    holdout, path, stalled = {}, {}, []
    for c in grid:
        if not model.fit(kept_features, labels[kept], c):
            stalled.append(c)
        coefficients, intercept = _by_class(model)
        scores = torch.from_numpy(held_features @ coefficients + intercept)
        found = predictions(scores, torch.from_numpy(labels[held]))
        holdout[c] = found.accuracies()["top1"] if metric == "top1" else found.mean_per_class()
        path[c] = copy.copy(model)
        advance(1)
    return holdout, path, stalled


def _normalisation(features: FloatArray, normalise: Normalisation) -> tuple[FloatArray, FloatArray]:
    if normalise == "l2":
        return np.zeros(features.shape[1], np.float32), np.ones(features.shape[1], np.float32)
    scaler = StandardScaler().fit(features)  # constant dimensions get the scale 1
    return scaler.mean_.astype(np.float32), (1 / scaler.scale_).astype(np.float32)


def _apply(features: FloatArray, normalise: Normalisation, shift: FloatArray, scale: FloatArray) -> FloatArray:
    return equal_length(features) if normalise == "l2" else (features - shift) * scale


def _by_class(model: Solver) -> tuple[FloatArray, FloatArray]:
    """Weights and intercepts with a column for every class number up to the largest."""
    classes, weights, offsets = model.weights()
    class_count = int(classes.max()) + 1
    coefficients = np.zeros((len(weights), class_count), np.float32)
    intercept = np.full(class_count, -np.inf, np.float32)
    coefficients[:, classes] = weights
    intercept[classes] = offsets
    return coefficients, intercept


def _edge(c: float, grid: Sequence[float], holdout: dict[float, float]) -> tuple[str, ...]:
    place = list(grid).index(c)
    if len(grid) > 1 and place in (0, len(grid) - 1):
        neighbour = grid[1] if place == 0 else grid[-2]
        if holdout[c] > holdout[neighbour]:
            return (f"C = {c:g} lies on the edge of the grid {grid[0]:g}..{grid[-1]:g}; the best may lie beyond",)
    return ()


def _unconverged(search: Sequence[float], final: float | None) -> tuple[str, ...]:
    limit = f"did not converge in {MAX_ITERATIONS:,} iterations"
    notes = []
    if search:
        values = ", ".join(f"{c:g}" for c in search)
        notes.append(f"in the search for C the fit at {values} {limit}; another C might have been chosen")
    if final is not None:
        notes.append(f"the probe {limit} at C = {final:g}")
    return tuple(notes)
