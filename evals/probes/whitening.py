"""Whitening of features, so that every direction counts alike in a similarity.

Where a few directions hold most of the variance of the features, they decide which images are neighbours, and what the
others know is lost to k-NN. A score of whitened features beside the usual one tells the two cases apart: features that
know little, and features that are nearly of few dimensions. N = samples, D = feature dimension.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leoclr.evals.accuracy import FloatArray

SHRINKAGE = 1e-4  # of the mean variance, added to that of each direction: a direction without variance stays small
ENOUGH_IMAGES = 10  # for each dimension; as many images as dimensions are all at the same distance once whitened
_ROWS = 2**14  # that are float64 at a time


@dataclass(frozen=True)
class Whitening:
    """Takes the mean of the training features away and gives all directions the same variance.

    The matrix is the symmetric one (ZCA), which does not depend on how a solver chooses its eigenvectors.

    Attributes:
        mean_D: float64.
        matrix_DD: float64.
        largest_share: Of the variance, in [0, 1]: that of the direction with the most.
    """

    mean_D: NDArray[np.float64]
    matrix_DD: NDArray[np.float64]
    largest_share: float

    @classmethod
    def of(cls, train_ND: FloatArray) -> Whitening:
        """The whitening of these features. It costs N D^2 multiplications, and D^3 for the eigenvalues."""
        mean_D = train_ND.mean(axis=0, dtype=np.float64)
        covariance_DD = np.zeros((train_ND.shape[1],) * 2)
        for start in range(0, len(train_ND), _ROWS):
            centred = train_ND[start : start + _ROWS].astype(np.float64) - mean_D
            covariance_DD += centred.T @ centred / len(train_ND)
        variance_D, direction_DD = np.linalg.eigh(covariance_DD)
        variance_D = variance_D.clip(min=0)
        scale_D = (variance_D + SHRINKAGE * variance_D.mean() + np.finfo(np.float64).tiny) ** -0.5
        share = float(variance_D[-1] / variance_D.sum()) if variance_D[-1] else 0.0
        return cls(mean_D, (direction_DD * scale_D) @ direction_DD.T, share)

    def __call__(self, features_MD: FloatArray) -> FloatArray:
        """Whitened features, float32, of the shape of those given."""
        parts = [features_MD[start : start + _ROWS] for start in range(0, len(features_MD), _ROWS)]
        return np.concatenate([((part - self.mean_D) @ self.matrix_DD).astype(np.float32) for part in parts])
