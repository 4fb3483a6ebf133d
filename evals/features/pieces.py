"""Features of a data set in pieces on disk: bounded memory, and a killed process loses only its current piece.

Pieces begin and end between two batches, so that the batches, and with them the last bits of the features, are the
same whether or not the work was interrupted.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from leoclr.datasets.errors import DataError, EvaluationError
from leoclr.datasets.files import write_atomic
from leoclr.datasets.shards.index import Index
from leoclr.evals.features.extract import MAX_BAD_SHARE, Features
from leoclr.evals.features.stored import read_features, write_features

PIECE_BYTES = 64 * 2**20
_PIECE_SECONDS = 30.0
_FIRST_BATCHES = 4
_SUFFIX = ".safetensors"
_PLAN = "plan.json"

Extract = Callable[[Index, float], Features]


@dataclass(frozen=True)
class Piece:
    """The features of the samples from `start` to `stop` (exclusive), in one file."""

    path: Path
    start: int
    stop: int


class PieceFolder:
    """The pieces that are there, the first samples first and without gaps.

    Args:
        path: Made when first written to.
        plan: What decides the features. The folder of another plan is refused.

    Raises:
        EvaluationError: The folder holds something else.
    """

    def __init__(self, path: Path, plan: Mapping[str, Any]) -> None:
        self.path = path
        self._plan = json.dumps(plan, indent=1, sort_keys=True).encode()
        self.pieces: list[Piece] = []
        if not any(path.glob(f"*{_SUFFIX}")):
            return
        try:
            same = (path / _PLAN).read_bytes() == self._plan
        except OSError:
            same = False
        if not same:
            raise EvaluationError(
                f"{path} holds unfinished features of another encoder, other data or another protocol; remove it to "
                "begin anew"
            )
        self._find()

    @property
    def done(self) -> int:
        """Samples that need no more work."""
        return self.pieces[-1].stop if self.pieces else 0

    def add(self, features: Features, stop: int) -> None:
        """Write the piece that follows, as a whole or not at all; its sample numbers count from the first of all."""
        start = self.done
        self.path.mkdir(parents=True, exist_ok=True)
        if not self.pieces:
            write_atomic(self.path / _PLAN, self._plan)
        path = self.path / f"{start:012d}-{stop:012d}{_SUFFIX}"
        write_features(path, features)
        self.pieces.append(Piece(path, start, stop))

    def read(self, index: Index) -> Iterator[Features]:
        """The features of each piece; DataError for a piece that was damaged on the disk."""
        for piece in self.pieces:
            try:
                yield read_features(piece.path, index)
            except (OSError, ValueError) as error:
                raise DataError(f"{piece.path} cannot be read ({error}); remove it and run the command again") from None

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _find(self) -> None:
        """Take the readable pieces that follow each other; delete what lies behind a gap."""
        for path in sorted(self.path.glob(f"*{_SUFFIX}")):
            start, _, stop = path.stem.partition("-")
            if start.isdigit() and stop.isdigit() and int(start) == self.done < int(stop) and _readable(path):
                self.pieces.append(Piece(path, int(start), int(stop)))
            else:
                path.unlink()


def extract_pieces(
    folder: PieceFolder,
    index: Index,
    extract: Extract,
    *,
    batch_size: int,
    dimension: int,
    piece_bytes: int = PIECE_BYTES,
    max_bad_share: float = MAX_BAD_SHARE,
) -> None:
    """Extract what is missing, piece by piece. The first is small; each is twice the last until one takes half a minute
    or `piece_bytes`.

    Args:
        extract: Features of an index, given how many of its images may be undecodable, as a share.
        dimension: Of a feature, to know how many samples a piece may have.

    Raises:
        DataError, EvaluationError: Too many images are bad; features are not finite.
    """
    most = max(1, piece_bytes // (4 * dimension * batch_size))
    batches = min(_FIRST_BATCHES, most)
    bad = sum(len(features.skipped) for features in folder.read(index))
    while folder.done < len(index):
        began, start = time.monotonic(), folder.done
        stop = min(len(index), start + batches * batch_size)
        part = index.subset(np.arange(start, stop))
        features = extract(part, (max_bad_share * len(index) - bad) / len(part))
        _check_finite(features, part)
        bad += len(features.skipped)
        folder.add(replace(features, numbers=features.numbers + start), stop)
        if time.monotonic() - began < _PIECE_SECONDS / 2:
            batches = min(2 * batches, most)


def _check_finite(features: Features, index: Index) -> None:
    broken = np.flatnonzero(~np.isfinite(features.features).all(axis=1))
    if len(broken):
        first = index.key(int(features.numbers[broken[0]]))
        raise EvaluationError(f"the features of {first!r} are NaN or infinite; the encoder has diverged")


def _readable(path: Path) -> bool:
    try:
        with safe_open(path, framework="np") as file:
            return {"features", "numbers"} <= set(file.keys())
    except (OSError, SafetensorError):
        return False
