"""k-means: centroids of points, and the nearest centroid of each."""

from __future__ import annotations

import torch
from torch import Tensor

_DISTANCES_AT_ONCE = 2**24


@torch.no_grad()
def k_means(points_ND: Tensor, clusters: int, iterations: int, seed: int) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm from points that the seed draws; the same numbers give the same bits on a CPU.

    A cluster that loses all of its points keeps its centroid.

    Args:
        points_ND: In float32 or better, at least as many as clusters.
        iterations: At most; it ends where no point changes its cluster.

    Returns:
        Centroids `(clusters, D)`, and the number of each point's nearest, `(N,)`.
    """
    chosen = torch.randperm(len(points_ND), generator=torch.Generator().manual_seed(seed % 2**64))[:clusters]
    centroids_KD = points_ND[chosen.to(points_ND.device)]
    nearest_N = nearest(points_ND, centroids_KD)
    for _ in range(iterations):
        sizes_K = torch.bincount(nearest_N, minlength=clusters)[:, None]
        sums_KD = torch.zeros_like(centroids_KD).index_add_(0, nearest_N, points_ND)
        centroids_KD = torch.where(sizes_K > 0, sums_KD / sizes_K.clamp_min(1), centroids_KD)
        before_N, nearest_N = nearest_N, nearest(points_ND, centroids_KD)
        if torch.equal(before_N, nearest_N):
            break
    return centroids_KD, nearest_N


def nearest(points_ND: Tensor, centroids_KD: Tensor) -> Tensor:
    """The number of the nearest centroid of each point, `(N,)`; of two at the same distance the first."""
    lengths_K = centroids_KD.square().sum(dim=1)
    parts = torch.split(points_ND, max(1, _DISTANCES_AT_ONCE // len(centroids_KD)))
    with torch.autocast(points_ND.device.type, enabled=False):
        return torch.cat([(lengths_K - 2 * part @ centroids_KD.T).argmin(dim=1) for part in parts])
