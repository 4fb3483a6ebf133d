"""Numbers that a classifier is judged by. M = test samples, C = classes."""

from __future__ import annotations

import torch
from torch import Tensor

TOP_FIVE_CLASSES = 5


def accuracies(scores_MC: Tensor, labels_M: Tensor) -> dict[str, float]:
    """Share of samples, in [0, 1], whose true class has the highest score (top1) or one of the five highest (top5).

    Equal scores are ranked by class number, lowest first, so that the result does not depend on a sort's habits.
    `top5` is left out below five classes.
    """
    return shares(ranks(scores_MC, labels_M), scores_MC.shape[1])


def ranks(scores_MC: Tensor, labels_M: Tensor) -> Tensor:
    """How many classes are ahead of the true one, shape `(M,)`."""
    own_M1 = scores_MC.gather(1, labels_M[:, None])
    lower_class_MC = torch.arange(scores_MC.shape[1], device=scores_MC.device) < labels_M[:, None]
    ahead_MC = (scores_MC > own_M1) | ((scores_MC == own_M1) & lower_class_MC)
    return ahead_MC.sum(dim=1)


def shares(rank_M: Tensor, class_count: int) -> dict[str, float]:
    """The accuracies that such ranks mean."""
    result = {"top1": (rank_M < 1).double().mean().item()}
    if class_count >= TOP_FIVE_CLASSES:
        result["top5"] = (rank_M < TOP_FIVE_CLASSES).double().mean().item()
    return result


def mean_per_class(scores_MC: Tensor, labels_M: Tensor) -> float:
    """Accuracy of each class that has samples, averaged over these classes: every class weighs alike, however many
    samples it has. Equal scores are ranked as in `accuracies`."""
    right_M = (scores_MC.argmax(dim=1) == labels_M).double()  # argmax takes the first of equal ones
    counts_C = torch.bincount(labels_M, minlength=scores_MC.shape[1])
    right_C = torch.zeros_like(counts_C, dtype=torch.double).index_add_(0, labels_M, right_M)
    present_C = counts_C > 0
    return (right_C[present_C] / counts_C[present_C]).mean().item()
