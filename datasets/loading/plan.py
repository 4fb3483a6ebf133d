"""The plan: the samples of every step, as a pure function without state.

The order of an epoch is a permutation computed from (seed, epoch). Step `s` of an epoch takes the positions
`s * batch .. (s + 1) * batch` of that order, and rank `r` the r-th equal part of them. So every rank makes the same
number of steps, the number of workers does not enter, and any step of any epoch can be asked for at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from leoclr.datasets.errors import DataError
from leoclr.datasets.randomness import Permutation, hash_key
from leoclr.datasets.shards.index import Index

_ORDER, _SHARDS, _TURN = 1, 2, 3  # keep apart what is drawn under one seed


@dataclass(frozen=True)
class StepSamples:
    """One rank's part of one step: the epoch it belongs to, and the sample numbers."""

    epoch: int
    samples: NDArray[np.int64]


@dataclass(frozen=True)
class Plan:
    """The samples of every step of a run.

    Attributes:
        shard_samples: Samples in each shard, in index order.
        batch_size: Samples in a step, over all ranks; a multiple of `ranks`.
        window: How many samples are mixed at a time. 0 mixes the whole data set, which wants storage that reads any
            place fast. Otherwise the shards are taken in a random order and windows of this size are mixed, so that
            reading moves along a few shards.
    """

    shard_samples: tuple[int, ...]
    batch_size: int
    seed: int
    rank: int = 0
    ranks: int = 1
    window: int = 0

    def __post_init__(self) -> None:
        if self.batch_size % self.ranks:
            raise DataError(f"batch size {self.batch_size} cannot be split over {self.ranks} processes evenly")
        if self.size < self.ranks:
            raise DataError(f"the data set of {self.size} images is smaller than the number of processes, {self.ranks}")
        if self.size < self.batch_size:
            raise DataError(
                f"the batch of {self.batch_size} is larger than the data set of {self.size} images; "
                f"use --batch-size {self.size // self.ranks * self.ranks} or less, or --preset auto alone"
            )

    @staticmethod
    def of(index: Index, batch_size: int, seed: int, rank: int = 0, ranks: int = 1, window: int = 0) -> Plan:
        """The plan for the data of an index."""
        return Plan(tuple(shard.samples for shard in index.shards), batch_size, seed, rank, ranks, window)

    @cached_property
    def size(self) -> int:
        """Samples in the data set."""
        return sum(self.shard_samples)

    @property
    def steps_per_epoch(self) -> int:
        """Full steps in an epoch. The remainder, less than a batch, is left out; another one each epoch."""
        return self.size // self.batch_size

    def step(self, number: int) -> StepSamples:
        """This rank's samples in a step, counted from 0 over the whole run."""
        epoch, step = divmod(number, self.steps_per_epoch)
        share = self.batch_size // self.ranks
        start = step * self.batch_size + self.rank * share
        return StepSamples(epoch, self.order(epoch, np.arange(start, start + share)))

    def order(self, epoch: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The sample numbers at some positions of an epoch's order."""
        if not self.window:
            return Permutation(self.size, self.seed, epoch, _ORDER)(positions)
        mixed = np.empty_like(positions)
        for window in np.unique(positions // self.window):
            inside = positions // self.window == window
            start = int(window) * self.window
            size = min(self.window, self.size - start)
            permutation = Permutation(size, self.seed, epoch, _ORDER, int(window))
            mixed[inside] = start + permutation(positions[inside] - start)
        # Turned by a random amount, so that windows, and with them the remainder, begin elsewhere each epoch.
        mixed = (mixed + int(hash_key(self.seed, epoch, _TURN)[0]) % self.size) % self.size
        ends, shifts = _shard_order(self.shard_samples, self.seed, epoch)
        samples: NDArray[np.int64] = mixed + shifts[np.searchsorted(ends, mixed, side="right")]
        return samples


@lru_cache(maxsize=2)
def _shard_order(shard_samples: tuple[int, ...], seed: int, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The shards in the epoch's random order: where each ends, and what leads from a place in it to the sample."""
    sizes = np.array(shard_samples, np.int64)
    shards = Permutation(len(sizes), seed, epoch, _SHARDS)(np.arange(len(sizes)))
    first_samples = (np.cumsum(sizes) - sizes)[shards]
    ends = np.cumsum(sizes[shards])
    return ends, first_samples - (ends - sizes[shards])
