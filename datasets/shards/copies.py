"""Images with the same bytes in a data set, one by one and by the shard."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable
from contextlib import closing
from functools import partial

import numpy as np
from numpy.typing import NDArray

from leoclr.datasets.errors import DataError
from leoclr.datasets.files import ignore
from leoclr.datasets.images.decode import MAX_BYTES
from leoclr.datasets.packing.duplicates import content_digest, repeated_rows
from leoclr.datasets.shards.index import Index
from leoclr.datasets.shards.reader import SampleReader

_IMAGES_COMPARED = 16  # of shards that are alike, where their index has no checksums


def exact_copies(index: Index, advance: Callable[[int], None] = ignore) -> dict[int, int]:
    """For each image that is the same bytes as an earlier one, the number of the first of them.

    Only images whose length, and whose checksum if the index has one that tells, is another's too are read.

    Args:
        advance: Called with the number of images that are done.
    """
    _, inverse, counts = np.unique(index.outlines(), return_inverse=True, return_counts=True)
    candidates = np.flatnonzero(counts[inverse] > 1)
    advance(len(index) - len(candidates))
    reader = SampleReader(index)
    digests = np.empty((len(candidates), 2), np.uint64)
    for row, number in enumerate(candidates.tolist()):
        digests[row] = np.frombuffer(content_digest(reader.read(number)), np.uint64)
        advance(1)
    return {int(candidates[copy]): int(candidates[first]) for copy, first in repeated_rows(digests)}


def repeated_shards(index: Index) -> list[list[str]]:
    """The paths of shards that hold the same images under the same keys in the same order, in groups of two or more.

    Keys and lengths are compared, then the checksums that the index has. Where it has none that tell, a few images of
    the shards whose keys and lengths are equal are read.
    """
    counts = np.bincount(index.shard, minlength=len(index.shards))
    ends = np.cumsum(counts)
    starts = ends - counts
    sizes = np.bincount(index.shard, weights=index.length, minlength=len(index.shards))

    def outline(number: int) -> bytes:
        """A digest of keys and lengths."""
        start, end = int(starts[number]), int(ends[number])
        first = int(index.key_end[start - 1]) if start else 0
        digest = hashlib.blake2b(index.key_bytes[first : int(index.key_end[end - 1])].tobytes())
        digest.update((index.key_end[start:end] - first).tobytes())
        digest.update(index.length[start:end].tobytes())
        return digest.digest()

    groups = _divided([np.flatnonzero(counts).tolist()], lambda number: (counts[number], sizes[number]))
    groups = _divided(groups, outline)
    told, others = [], []
    for group in groups:
        crcs = [index.crc[starts[number] : ends[number]] for number in group]
        kinds = {index.shards[number].checksum for number in group}
        if kinds == {"blake2b"} and all(crc.all() for crc in crcs):
            told += _divided([group], lambda number: index.crc[starts[number] : ends[number]].tobytes())
        elif all(index.shards[number].sha256 for number in group):
            told += _divided([group], lambda number: index.shards[number].sha256)
        else:
            others.append(group)
    if others:
        with closing(SampleReader(index)) as reader:
            for share in np.linspace(0, 1, _IMAGES_COMPARED):
                places = starts + ((counts - 1) * share).astype(np.int64)
                others = _divided(others, partial(_content, reader, places))
    return [[index.shards[number].path for number in group] for group in sorted([*told, *others])]


def _divided(groups: list[list[int]], fact: Callable[[int], Hashable]) -> list[list[int]]:
    """The groups divided into those with an equal fact, without those of one."""
    found = []
    for group in groups:
        alike: dict[Hashable, list[int]] = defaultdict(list)
        for number in group:
            alike[fact(number)].append(number)
        found += [part for part in alike.values() if len(part) > 1]
    return found


def _content(reader: SampleReader, places: NDArray[np.int64], number: int) -> Hashable:
    """The content of an image of a shard; of one that cannot be read, what no other one has."""
    sample = int(places[number])
    if reader.index.length[sample] > MAX_BYTES:  # not to be held in memory
        return None
    try:
        return content_digest(reader.read(sample))
    except DataError:
        return sample
