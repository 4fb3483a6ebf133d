"""Near copies among images by the cosine of their features: exact, block by block, in bounded memory.

Features are taken less their mean: the features of most encoders share a direction, along which all images look alike.
Images are gone through in an order, the best first. An image whose cosine with an earlier one that is kept reaches the
threshold is a copy of the most similar of these, else it is kept. So every copy resembles an image that stays, which
groups by chains of pairs would not promise.

N = images, D = feature dimension; a block has B images.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leoclr.datasets.files import ignore
from leoclr.evals.features.extract import Features

_IN_MEMORY = 1 << 30  # bytes of features in float32; more are half precision on the disk
_NONE = -2.0  # below every cosine
_LEAST_ROWS = 16


@dataclass(frozen=True)
class Copies:
    """What was found of each image, in the order in which they were gone through.

    Attributes:
        original: Place of the image that it is a copy of; its own where it is kept, int64, shape `(N,)`.
        similarity: Cosine with that image, 1 where it is kept, float32, shape `(N,)`.
    """

    original: NDArray[np.int64]
    similarity: NDArray[np.float32]


def unit_features(
    pieces: Callable[[], Iterable[Features]], places: NDArray[np.int64], count: int, dimension: int, scratch: Path
) -> NDArray[Any]:
    """Centred features of length one, shape `(count, dimension)`.

    Args:
        pieces: The features, each time from the start.
        places: The row of each sample number, or -1 where the sample is left out.
        scratch: Folder for a file without a name, where they are too many for the memory.
    """
    total, seen = np.zeros(dimension), 0
    for piece in pieces():
        total += piece.features.sum(axis=0, dtype=np.float64)
        seen += len(piece.features)
    mean = (total / max(1, seen)).astype(np.float32)
    units: NDArray[Any]
    if count * dimension * 4 <= _IN_MEMORY:
        units = np.zeros((count, dimension), np.float32)
    else:
        with tempfile.TemporaryFile(dir=scratch) as file:
            units = np.memmap(file, np.float16, "w+", shape=(count, dimension))
    for piece in pieces():
        rows = places[piece.numbers]
        centred = piece.features[rows >= 0] - mean
        length = np.linalg.norm(centred, axis=1, keepdims=True)
        units[rows[rows >= 0]] = centred / np.maximum(length, np.finfo(np.float32).tiny)
    return units


@torch.no_grad()
def near_copies(
    unit_ND: NDArray[Any],
    threshold: float,
    *,
    device: torch.device | str = "cpu",
    memory: int = 1 << 29,
    advance: Callable[[int], None] = ignore,
) -> Copies:
    """Compare every image with the kept ones before it.

    Args:
        unit_ND: Features of length one, in the order of the images.
        memory: Bytes for two blocks of features and their cosines.
        advance: Called with the number of pairs that are done; in all N (N + 1) / 2.
    """
    count, dimension = unit_ND.shape
    rows = _rows(memory, dimension)
    original, similarity = np.arange(count), np.ones(count, np.float32)
    device = torch.device(device)
    for start in range(0, count, rows):
        block_BD = _on(unit_ND[start : start + rows], device)
        best_B = torch.full((len(block_BD),), _NONE, device=device)
        place_B = torch.zeros(len(block_BD), dtype=torch.int64, device=device)
        for before in range(0, start, rows):
            kept = before + np.flatnonzero(original[before : before + rows] == np.arange(before, before + rows))
            if len(kept):
                found_B, column_B = (block_BD @ _on(unit_ND[kept], device).T).float().max(dim=1)
                nearer_B = found_B > best_B
                best_B = torch.where(nearer_B, found_B, best_B)
                place_B = torch.where(nearer_B, torch.from_numpy(kept).to(device)[column_B], place_B)
        within_BB = (block_BD @ block_BD.T).float().tril(-1).cpu().numpy()
        _settle(start, within_BB, best_B.cpu().numpy(), place_B.cpu().numpy(), threshold, original, similarity)
        advance(len(block_BD) * start + len(block_BD) * (len(block_BD) + 1) // 2)
    return Copies(original, similarity)


def _settle(
    start: int,
    within_BB: NDArray[np.float32],
    best_B: NDArray[np.float32],
    place_B: NDArray[np.int64],
    threshold: float,
    original: NDArray[np.int64],
    similarity: NDArray[np.float32],
) -> None:
    """Decide about the images of a block in their order, given the best of the blocks before."""
    kept_B = np.ones(len(best_B), np.bool_)
    likely_B = (best_B >= threshold) | (within_BB >= threshold).any(axis=1)
    for row in np.flatnonzero(likely_B).tolist():
        best, place = float(best_B[row]), int(place_B[row])
        if row:
            cosines = np.where(kept_B[:row], within_BB[row, :row], _NONE)
            nearest = int(cosines.argmax())
            if cosines[nearest] > best:
                best, place = float(cosines[nearest]), start + nearest
        if best >= threshold:
            kept_B[row], original[start + row], similarity[start + row] = False, place, best


def _on(rows: NDArray[Any], device: torch.device) -> Tensor:
    """A block on the device: in half precision on a GPU where it is stored so, else float32."""
    stored = torch.from_numpy(np.ascontiguousarray(rows))
    return stored.to(device) if device.type == "cuda" else stored.float()


def _rows(memory: int, dimension: int) -> int:
    """The largest block: 4 (2 B D + B^2) bytes."""
    return max(_LEAST_ROWS, int((dimension**2 + memory / 4) ** 0.5) - dimension)
