"""Multinomial logistic regression by L-BFGS: scikit-learn's, and an equal one on the device for millions of samples.

Both minimise `C * sum of cross-entropies + |W|^2 / 2` (the intercept is not regularised) with SciPy's L-BFGS-B and
scikit-learn's rules for when to stop. N = training samples, D = feature dimension, K = classes that occur.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import optimize
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from leoclr.datasets.errors import EvaluationError
from leoclr.evals.accuracy import FloatArray, IntArray

SolverName = Literal["scikit-learn", "device"]
MAX_ITERATIONS = 1000
# A tenth of scikit-learn's, for a fifth more time; in float32 the line search ends there in any case. Up to 0.3 points
# of accuracy were seen between 1e-4 and the optimum, 0.1 point (two of 2,000 images) from here.
_TOLERANCE = 1e-5
_LOSS_TOLERANCE = 64 * np.finfo(np.float64).eps  # scikit-learn's, as is the next
_LINE_SEARCHES = 50
_SCORES_AT_A_TIME = 2**26  # 256 MiB


class Solver(Protocol):
    """Starts each fit where the one before ended. A copy (`copy.copy`) keeps its weights when the original is fitted
    again."""

    def fit(self, features: FloatArray, labels: IntArray, c: float) -> bool:
        """Find the weights for `(N, D)` features and `(N,)` labels; whether that converged."""

    def weights(self) -> tuple[IntArray, FloatArray, FloatArray]:
        """The classes that occurred, `(K,)`, their weights, `(D, K)`, and their intercepts, `(K,)`."""


class ScikitLearnSolver:
    """scikit-learn's LogisticRegression, on the CPU."""

    def __init__(self) -> None:
        self._model: Any = LogisticRegression(warm_start=True, max_iter=MAX_ITERATIONS, tol=_TOLERANCE)

    def __copy__(self) -> ScikitLearnSolver:
        twin = ScikitLearnSolver()
        twin._model.__dict__.update(self._model.__dict__)  # a fit replaces the arrays, and changes none
        return twin

    def fit(self, features: FloatArray, labels: IntArray, c: float) -> bool:
        self._model.C = c
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            self._model.fit(features, labels)
        return not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)

    def weights(self) -> tuple[IntArray, FloatArray, FloatArray]:
        classes, weights, offsets = self._model.classes_, self._model.coef_.T, self._model.intercept_
        if len(classes) == 2:  # scikit-learn keeps the second class's only
            weights = np.concatenate([np.zeros_like(weights), weights], axis=1)
            offsets = np.concatenate([np.zeros_like(offsets), offsets])
        return classes, weights, offsets


class DeviceSolver:
    """The gradient is computed on the device, in float32, over all samples in chunks of bounded memory. The few vectors
    of L-BFGS itself stay on the host in float64: for ImageNet's 2048 x 1000 weights a twentieth of a second a step.

    Args:
        device: Holds the features too, 4 bytes each.
    """

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self._classes: IntArray = np.empty(0, np.int64)
        self._weights: NDArray[np.float64] = np.empty((0, 0))

    def fit(self, features: FloatArray, labels: IntArray, c: float) -> bool:
        self._classes, targets = np.unique(labels, return_inverse=True)
        shape = (features.shape[1] + 1, len(self._classes))
        if self._weights.shape != shape:
            self._weights = np.zeros(shape)
        try:
            samples = torch.from_numpy(features).to(self.device)
            objective = _Objective(samples, torch.from_numpy(targets).to(self.device), shape, c)
            found = optimize.minimize(
                objective,
                self._weights.ravel(),
                jac=True,
                method="L-BFGS-B",
                options={
                    "maxiter": MAX_ITERATIONS,
                    "maxls": _LINE_SEARCHES,
                    "gtol": _TOLERANCE,
                    "ftol": _LOSS_TOLERANCE,
                },
            )
        except torch.OutOfMemoryError as error:
            raise EvaluationError(
                f"{features.nbytes / 2**30:.1f} GiB of features do not fit on {self.device}; take --device cpu"
            ) from error
        self._weights = found.x.reshape(shape)
        return bool(found.status != 1)  # 1 is the limit of iterations; scikit-learn takes the rest for converged

    def weights(self) -> tuple[IntArray, FloatArray, FloatArray]:
        weights = self._weights.astype(np.float32)
        return self._classes, weights[:-1], weights[-1]


class _Objective:
    """Mean cross-entropy plus penalty, and its gradient, as functions of the weights; the last row is the intercept."""

    def __init__(self, samples_ND: Tensor, targets_N: Tensor, shape: tuple[int, int], c: float) -> None:
        self.samples_ND, self.targets_N, self.shape = samples_ND, targets_N, shape
        self.rows = max(1, _SCORES_AT_A_TIME // shape[1])
        # Of two classes scikit-learn knows the difference of the weights only, which is penalised twice as much.
        self.penalty = (2 if shape[1] == 2 else 1) / (c * len(samples_ND))

    def __call__(self, flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        host = flat.reshape(self.shape)
        weights = torch.from_numpy(host).to(self.samples_ND.device, torch.float32)
        gradient = torch.zeros_like(weights)
        loss = torch.zeros((), dtype=torch.float64, device=weights.device)
        chunks = zip(torch.split(self.samples_ND, self.rows), torch.split(self.targets_N, self.rows), strict=True)
        for samples, targets in chunks:
            logarithms = F.log_softmax(torch.addmm(weights[-1], samples, weights[:-1]), dim=1)
            loss -= logarithms.gather(1, targets[:, None]).sum(dtype=torch.float64)  # float32 stalls line searches
            errors = logarithms.exp_()
            errors[torch.arange(len(targets), device=errors.device), targets] -= 1
            gradient[:-1] += samples.T @ errors
            gradient[-1] += errors.sum(dim=0)
        slopes = gradient.double().cpu().numpy() / len(self.samples_ND)
        slopes[:-1] += self.penalty * host[:-1]
        value = loss.item() / len(self.samples_ND) + 0.5 * self.penalty * float((host[:-1] ** 2).sum())
        return value, slopes.ravel()
