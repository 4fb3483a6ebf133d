"""The linear probe: multinomial logistic regression (scikit-learn, L-BFGS) on frozen features.

The regularisation is chosen on a part of the training set; the test set has no influence on the probe. N = training
samples, M = test samples, D = feature dimension, C = classes.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from leoclr.datasets.errors import EvaluationError
from leoclr.datasets.files import ignore
from leoclr.evals.classes import IntArray, stratified_holdout

FloatArray = NDArray[np.float32]
Normalisation = Literal["standard", "l2"]

GRID = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
HOLDOUT_SHARE = 0.2
_MAX_ITERATIONS = 1000
_TOLERANCE = 1e-4  # scikit-learn's; 1e-5 doubles the time and moves accuracies by less than 0.1 %


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
        holdout: Accuracy in [0, 1] on the held-out part of the training set, by C.
        notes: One line for each thing to know: a fit that did not converge, a C on the grid's edge.
    """

    normalise: Normalisation
    shift: FloatArray
    scale: FloatArray
    coefficients: FloatArray
    intercept: FloatArray
    c: float
    holdout: dict[float, float]
    notes: tuple[str, ...]

    def scores(self, features: FloatArray) -> FloatArray:
        """Of every class, shape `(M, C)`; the highest is the prediction."""
        if self.normalise == "l2":
            features = equal_length(features)
        weights = self.scale[:, None] * self.coefficients
        scores: FloatArray = features @ weights + (self.intercept - self.shift @ weights)
        return scores


def fit_probe(
    features: FloatArray,
    labels: IntArray,
    *,
    normalise: Normalisation = "standard",
    grid: Sequence[float] = GRID,
    holdout_share: float = HOLDOUT_SHARE,
    seed: int = 0,
    advance: Callable[[int], None] = ignore,
) -> LinearProbe:
    """Choose C on a stratified hold-out of the training set, then fit on all of it.

    The fits go from strong to weak regularisation, each starting where the last ended, which makes the grid cost
    little more than its hardest fit.

    Args:
        features, labels: Training set, shapes `(N, D)` and `(N,)`; class numbers from 0.
        grid: Values of C.
        seed: Of the hold-out.
        advance: Called with 1 after each fit, once more than the grid has values.

    Raises:
        EvaluationError: There is one class, or the normalisation is unknown.
    """
    if normalise not in get_args(Normalisation):
        raise EvaluationError(f"normalise is one of {', '.join(get_args(Normalisation))}, not {normalise!r}")
    if len(np.unique(labels)) < 2:
        raise EvaluationError("a linear probe needs training samples of at least two classes")
    grid = sorted(grid)
    kept, held = stratified_holdout(labels, holdout_share, seed)
    holdout, path = _search(features, labels, kept, held, normalise, grid, advance)
    c = max(grid, key=lambda value: (holdout[value], -value))

    shift, scale = _normalisation(features, normalise)
    model = path[c]
    converged = _fit(model, _apply(features, normalise, shift, scale), labels)
    advance(1)
    coefficients, intercept = _by_class(model)
    notes = _notes(c, grid, holdout, converged)
    return LinearProbe(normalise, shift, scale, coefficients, intercept, c, holdout, notes)


def equal_length(features: FloatArray) -> FloatArray:
    """Each row scaled to the length sqrt(D), so that one grid of C suits both normalisations; rows of zeros stay."""
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    scaled: FloatArray = features * (features.shape[1] ** 0.5 / np.maximum(norms, np.finfo(np.float32).tiny))
    return scaled


def _search(
    features: FloatArray,
    labels: IntArray,
    kept: IntArray,
    held: IntArray,
    normalise: Normalisation,
    grid: Sequence[float],
    advance: Callable[[int], None],
) -> tuple[dict[float, float], dict[float, LogisticRegression]]:
    """Hold-out accuracy and the model fitted to the rest of the training set, by C. `grid` ascends."""
    shift, scale = _normalisation(features[kept], normalise)
    kept_features = _apply(features[kept], normalise, shift, scale)
    held_features = _apply(features[held], normalise, shift, scale)
    model = LogisticRegression(warm_start=True, max_iter=_MAX_ITERATIONS, tol=_TOLERANCE)
    holdout, path = {}, {}
    for c in grid:
        model.C = c
        _fit(model, kept_features, labels[kept])
        holdout[c] = float(np.mean(model.predict(held_features) == labels[held]))
        path[c] = copy.copy(model)
        advance(1)
    return holdout, path


def _fit(model: LogisticRegression, features: FloatArray, labels: IntArray) -> bool:
    """Fit from where the model is; whether that converged. No warning gets out."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(features, labels)
    return not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)


def _normalisation(features: FloatArray, normalise: Normalisation) -> tuple[FloatArray, FloatArray]:
    if normalise == "l2":
        return np.zeros(features.shape[1], np.float32), np.ones(features.shape[1], np.float32)
    scaler = StandardScaler().fit(features)  # constant dimensions get the scale 1
    return scaler.mean_.astype(np.float32), (1 / scaler.scale_).astype(np.float32)


def _apply(features: FloatArray, normalise: Normalisation, shift: FloatArray, scale: FloatArray) -> FloatArray:
    return equal_length(features) if normalise == "l2" else (features - shift) * scale


def _by_class(model: LogisticRegression) -> tuple[FloatArray, FloatArray]:
    """Weights and intercepts with a column for every class number up to the largest."""
    weights, offsets = model.coef_.T, model.intercept_
    if len(model.classes_) == 2:  # scikit-learn keeps the second class's only
        weights = np.concatenate([np.zeros_like(weights), weights], axis=1)
        offsets = np.concatenate([np.zeros_like(offsets), offsets])
    class_count = int(model.classes_.max()) + 1
    coefficients = np.zeros((len(weights), class_count), np.float32)
    intercept = np.full(class_count, -np.inf, np.float32)
    coefficients[:, model.classes_] = weights
    intercept[model.classes_] = offsets
    return coefficients, intercept


def _notes(c: float, grid: Sequence[float], holdout: dict[float, float], converged: bool) -> tuple[str, ...]:
    notes = []
    place = list(grid).index(c)
    if len(grid) > 1 and place in (0, len(grid) - 1):
        neighbour = grid[1] if place == 0 else grid[-2]
        if holdout[c] > holdout[neighbour]:
            notes.append(f"C = {c:g} lies on the edge of the grid {grid[0]:g}..{grid[-1]:g}; the best may lie beyond")
    if not converged:
        notes.append(f"the probe did not converge in {_MAX_ITERATIONS} iterations at C = {c:g}")
    return tuple(notes)
