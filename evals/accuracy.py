"""Predictions of a classifier, and their metrics. M = test samples, C = classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]

TOP_FIVE_CLASSES = 5
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Predictions:
    """The prediction for each test sample.

    Attributes:
        labels: True class numbers, shape `(M,)`.
        predicted: Predicted class numbers, shape `(M,)`.
        confidence: In [0, 1], of the predicted class: its softmax probability, or its share of the votes.
        ranks: How many classes are ranked above the true one; 0 where the prediction is right. Shape `(M,)`.
        class_count: C.
    """

    labels: IntArray
    predicted: IntArray
    confidence: FloatArray
    ranks: IntArray
    class_count: int

    def right(self, metric: str) -> NDArray[np.float64]:
        """1 for each sample that `metric`, top1 or top5, counts as right, else 0."""
        return (self.ranks < {"top1": 1, "top5": TOP_FIVE_CLASSES}[metric]).astype(np.float64)

    def accuracies(self) -> dict[str, float]:
        """Share of samples, in [0, 1], whose true class is ranked first (top1) or among the first five (top5). `top5`
        is left out below five classes."""
        metrics = ("top1", "top5") if self.class_count >= TOP_FIVE_CLASSES else ("top1",)
        return {metric: float(self.right(metric).mean()) for metric in metrics}

    def half_widths(self) -> dict[str, float]:
        """Half of the 95 % intervals of `accuracies` and `mean_per_class`, over the samples. There is none for a single
        sample, whose variance is unknown, nor for the mean over classes where a class has a single one."""
        if len(self.labels) < 2:
            return {}
        found = {metric: half_width(self.right(metric)) for metric in self.accuracies()}
        classes = [self.right("top1")[self.labels == label] for label in np.unique(self.labels)]
        if all(len(right) > 1 for right in classes):
            found["mean_per_class"] = math.hypot(*(half_width(right) for right in classes)) / len(classes)
        return found

    def mean_per_class(self) -> float:
        """Top-1 accuracy of each class that has samples, averaged over these classes: every class weighs alike."""
        counts = np.bincount(self.labels)
        right = np.bincount(self.labels, weights=self.right("top1"))
        return float((right[counts > 0] / counts[counts > 0]).mean())


def predictions(
    scores_MC: Tensor, labels_M: Tensor, order_MC: Tensor | None = None, confidence_MC: Tensor | None = None
) -> Predictions:
    """Rank the classes of each sample by score, highest first.

    Args:
        order_MC: Ranks classes of equal score, lowest first. Where it is equal too, the true class is ranked last, so
            that no figure depends on how classes are numbered. Class numbers when left out.
        confidence_MC: In [0, 1]; the softmax of the scores when left out.
    """
    if order_MC is None:
        order_MC = torch.arange(scores_MC.shape[1], device=scores_MC.device).expand_as(scores_MC)
    if confidence_MC is None:
        confidence_MC = scores_MC.softmax(dim=1)
    own_M1, own_order_M1 = scores_MC.gather(1, labels_M[:, None]), order_MC.gather(1, labels_M[:, None])
    above_MC = (scores_MC > own_M1) | ((scores_MC == own_M1) & (order_MC <= own_order_M1))  # the true class is one
    best_MC = scores_MC == scores_MC.amax(dim=1, keepdim=True)
    predicted_M = order_MC.masked_fill(~best_MC, torch.iinfo(order_MC.dtype).max).argmin(dim=1)
    return Predictions(
        labels=labels_M.cpu().numpy(),
        predicted=predicted_M.cpu().numpy(),
        confidence=confidence_MC.gather(1, predicted_M[:, None])[:, 0].float().cpu().numpy(),
        ranks=(above_MC.sum(dim=1) - 1).cpu().numpy(),
        class_count=scores_MC.shape[1],
    )


def half_width(values_M: NDArray[np.float64]) -> float:
    """Half of the 95 % interval of a mean, by the normal approximation; 0 for a single value."""
    if len(values_M) < 2:
        return 0.0
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    return z * float(np.std(values_M, ddof=1)) / math.sqrt(len(values_M))


def joined(parts: Sequence[Predictions]) -> Predictions:
    """The predictions for the samples of all parts, which share their classes."""
    return Predictions(
        labels=np.concatenate([part.labels for part in parts]),
        predicted=np.concatenate([part.predicted for part in parts]),
        confidence=np.concatenate([part.confidence for part in parts]),
        ranks=np.concatenate([part.ranks for part in parts]),
        class_count=parts[0].class_count,
    )
