"""k-nearest-neighbour classification by cosine similarity: exact, float32, bounded memory, any device.

N = training samples, M = test samples, D = feature dimension, K = neighbours, C = classes; a block of similarities has
R rows (test samples) and P columns (training samples).
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from leoclr.evals.accuracy import Predictions, joined, predictions

WEIGHTED_K = 200
TEMPERATURE = 0.1
MAJORITY_K = 20
DEFAULT_CHUNK = 2**26  # 256 MiB of similarities
_MAX_COLUMNS = 2**17
_GROUP = 16
_NUMBER_BITS = 32
_LAST_NUMBER = 2**31 - 1


def knn_accuracy(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    k: int = WEIGHTED_K,
    temperature: float | None = TEMPERATURE,
    chunk: int = DEFAULT_CHUNK,
) -> dict[str, float]:
    """Classify the test features by their nearest training features.

    Args:
        train_features, test_features: Shapes `(N, D)` and `(M, D)`, not yet normalised, on one device.
        train_labels, test_labels: Class numbers from 0, of any size: memory follows the number of those that occur.
        k: Neighbours that vote; all of the training samples where there are fewer.
        temperature: A neighbour's vote weighs exp(similarity / temperature); None counts every vote as one.
        chunk: Similarities, or votes, that are held at a time, 4 bytes each.

    Returns:
        `top1` and, from five classes on, `top5`, each in [0, 1].
    """
    similarity_MK, neighbour_MK = nearest_neighbours(train_features, test_features, k, chunk)
    occurring_C = torch.from_numpy(np.unique(torch.cat([train_labels, test_labels]).cpu().numpy()))
    occurring_C = occurring_C.to(train_labels.device)
    neighbour_labels_MK = torch.searchsorted(occurring_C, train_labels)[neighbour_MK]
    labels_M = torch.searchsorted(occurring_C, test_labels)
    return classify(
        similarity_MK, neighbour_labels_MK, labels_M, len(occurring_C), temperature, chunk=chunk
    ).accuracies()


def classify(
    similarity_MK: Tensor,
    neighbour_labels_MK: Tensor,
    labels_M: Tensor,
    class_count: int,
    temperature: float | None,
    chunk: int = DEFAULT_CHUNK,
) -> Predictions:
    """Let the neighbours, most similar first, vote; see `knn_accuracy` for the weights.

    Classes with equal votes are ranked by their nearest neighbour, and a class without votes after all others, so that
    the figures do not depend on how classes are numbered. A prediction's confidence is its share of the votes.
    """
    rows = max(1, chunk // class_count)
    parts = zip(*(torch.split(part, rows) for part in (similarity_MK, neighbour_labels_MK, labels_M)), strict=True)
    found = []
    for similarity_RK, neighbour_labels_RK, labels_R in parts:
        votes_RC = votes(similarity_RK, neighbour_labels_RK, class_count, temperature)
        share_RC = votes_RC / votes_RC.sum(dim=1, keepdim=True)
        found.append(predictions(votes_RC, labels_R, _nearest_of_class(neighbour_labels_RK, class_count), share_RC))
    return joined(found)


def votes(similarity_MK: Tensor, labels_MK: Tensor, class_count: int, temperature: float | None) -> Tensor:
    """The votes of the neighbours summed per class, shape `(M, C)`, float32. See `knn_accuracy` for the weights."""
    weight_MK = torch.ones_like(similarity_MK) if temperature is None else (similarity_MK / temperature).exp()
    row_M1 = torch.arange(len(labels_MK), device=labels_MK.device)[:, None]
    flat_scores = torch.zeros(len(labels_MK) * class_count, device=similarity_MK.device)
    flat_scores.index_add_(0, (row_M1 * class_count + labels_MK).flatten(), weight_MK.flatten())
    return flat_scores.view(len(labels_MK), class_count)


def _nearest_of_class(labels_MK: Tensor, class_count: int) -> Tensor:
    """The place of each class's nearest neighbour, from 0; K where it has none. Shape `(M, C)`."""
    count, k = labels_MK.shape
    places_MK = torch.arange(k, device=labels_MK.device).expand(count, k)
    nearest_MC = torch.full((count, class_count), k, device=labels_MK.device)
    return nearest_MC.scatter_reduce_(1, labels_MK, places_MK, "amin")


@torch.no_grad()
def nearest_neighbours(train_ND: Tensor, test_MD: Tensor, k: int, chunk: int = DEFAULT_CHUNK) -> tuple[Tensor, Tensor]:
    """The k most similar training samples of every test sample, most similar first.

    Equal similarities are ordered by sample number, lowest first, whatever the chunk and the device. At D = 512 and
    k = 200 the selection adds a sixth to the time of the matrix product.

    Returns:
        Cosine similarities, float32, and sample numbers, int64, both of shape `(M, min(k, N))`.
    """
    test_MD = F.normalize(test_MD.float(), dim=1)
    columns = max(1, min(len(train_ND), chunk, _MAX_COLUMNS))
    rows = max(1, min(len(test_MD), chunk // columns))
    buffer = torch.empty(rows * columns, device=test_MD.device)
    best_MK = torch.empty(len(test_MD), 0, dtype=torch.int64, device=test_MD.device)
    for start in range(0, len(train_ND), columns):
        block_PD = F.normalize(train_ND[start : start + columns].float(), dim=1)
        merged = []
        for test_RD, best_RK in zip(torch.split(test_MD, rows), torch.split(best_MK, rows), strict=True):
            similarity_RP = buffer[: len(test_RD) * len(block_PD)].view(len(test_RD), len(block_PD))
            torch.mm(test_RD, block_PD.T, out=similarity_RP)
            both = torch.cat([best_RK, _best_of_block(similarity_RP, start, k)], dim=1)
            merged.append(both.topk(min(k, both.shape[1]), dim=1).values)
        best_MK = torch.cat(merged)
    return _unpack(best_MK)


def _best_of_block(similarity_RP: Tensor, start: int, k: int) -> Tensor:
    """Packed keys of each row, unordered, the k best among them. `start` is the sample number of the first column."""
    columns = similarity_RP.shape[1]
    if k >= columns:
        return _pack(similarity_RP, torch.arange(start, start + columns, device=similarity_RP.device))
    values, places = _largest(similarity_RP, k + 1)
    best_RK = _pack(values, start + places)
    # Any of several equal values may have been taken. That matters only where they are the least that were.
    numbers_P = torch.arange(start, start + columns, device=similarity_RP.device)
    tied_R = (values == values.amin(dim=1, keepdim=True)).sum(dim=1) > 1
    for row in tied_R.nonzero().flatten().tolist():
        best_RK[row] = _pack(similarity_RP[row], numbers_P).topk(k + 1).values
    return best_RK


def _largest(similarity_RP: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """torch.topk along the rows, unordered, and several times faster where they are long.

    The columns are put in groups. As many groups as values are wanted, those with the largest maxima, hold as many
    values that are at least the smallest of these maxima, and no other group holds one above it: only their values are
    compared. Which of several equal values is taken is as open as with torch.topk.
    """
    groups = similarity_RP.shape[1] // _GROUP
    if groups < 2 * count:
        return similarity_RP.topk(count, dim=1, sorted=False)
    # A group is every `groups`-th column, so that the maxima of neighbours are found together.
    grouped = similarity_RP[:, : groups * _GROUP].view(-1, _GROUP, groups)
    chosen = grouped.amax(dim=1).topk(count, dim=1, sorted=False).indices
    candidates = grouped.gather(2, chosen[:, None, :].expand(-1, _GROUP, -1)).flatten(1)
    left_over = similarity_RP[:, groups * _GROUP :]
    if left_over.shape[1]:
        candidates = torch.cat([candidates, left_over], dim=1)
    values, found = candidates.topk(count, dim=1, sorted=False)
    places = chosen.gather(1, found % count) + groups * (found // count)
    return values, torch.where(found < _GROUP * count, places, found + (groups - count) * _GROUP)


def _pack(similarity: Tensor, number: Tensor) -> Tensor:
    """One int64 that sorts by similarity, then by lowest sample number: an order without ties."""
    return (_sortable(similarity.view(torch.int32)).long() << _NUMBER_BITS) | (_LAST_NUMBER - number)


def _unpack(key: Tensor) -> tuple[Tensor, Tensor]:
    similarity = _sortable((key >> _NUMBER_BITS).int()).view(torch.float32)
    return similarity, _LAST_NUMBER - (key & (2**_NUMBER_BITS - 1))


def _sortable(bits: Tensor) -> Tensor:
    """The bits of a float32 as a signed integer of the same order, and back: negative ones are inverted."""
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
