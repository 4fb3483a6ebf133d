"""Checksums of a few samples, by which a resumed run knows the images of shards whose index has none."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

import numpy as np

from leoclr.datasets.images.decode import MAX_BYTES
from leoclr.datasets.shards.checksums import NO_CHECKSUM, checksum
from leoclr.datasets.shards.index import Index
from leoclr.datasets.shards.reader import SampleReader
from leoclr.datasets.storage.addresses import is_remote

_SAMPLES = 256


def spot_check(index: Index) -> list[int]:
    """Checksums of samples at even distances, at most 256: those in the index, else of what is read now; 0 for remote
    samples, whose shards have an identity.

    Raises:
        DataError: A shard has changed or cannot be read.
    """
    with closing(SampleReader(index)) as reader:
        return [_checksum(reader, number) for number in _numbers(index)]


def changed_sample(index: Index, before: Sequence[int], now: Sequence[int]) -> int | None:
    """The first sample whose bytes are others than before, by what `spot_check` found in equal indexes."""
    for number, old, new in zip(_numbers(index), before, now, strict=False):
        if NO_CHECKSUM not in (old, new) and old != new:
            return number
    return None


def _numbers(index: Index) -> list[int]:
    return [int(number) for number in np.unique(np.linspace(0, len(index) - 1, _SAMPLES).astype(np.int64))]


def _checksum(reader: SampleReader, number: int) -> int:
    index = reader.index
    shard, stored = index.shards[int(index.shard[number])], int(index.crc[number])
    if shard.checksum == "blake2b" and stored != NO_CHECKSUM:
        return stored
    if is_remote(shard.path) or index.length[number] > MAX_BYTES:
        return NO_CHECKSUM
    return checksum(reader.read(number))
