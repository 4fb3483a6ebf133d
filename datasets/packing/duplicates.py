"""Duplicate images: equal bytes, told by their digests."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from leoclr.datasets.errors import BadImage
from leoclr.datasets.files import ignore
from leoclr.datasets.packing.arrangement import Collection
from leoclr.datasets.packing.sources import Source
from leoclr.datasets.threads import ordered_map

DIGEST_BYTES = 16
Contents = NDArray[np.uint64]  # digests, `(images, 2)`
_PRIORITY = ("test", "val", "train", "", "unlabeled")  # the split that keeps an image which stands in several


def content_digest(data: bytes) -> bytes:
    """A digest by which different images are never taken for equal ones in practice."""
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()


def repeated_rows(contents: Contents) -> list[tuple[int, int]]:
    """(row, first row that equals it), for every row that equals an earlier one."""
    order = np.lexsort((contents[:, 1], contents[:, 0]))  # stable: equal rows stay in order
    equal = np.zeros(len(order), np.bool_)
    equal[1:] = (contents[order[1:]] == contents[order[:-1]]).all(axis=1)
    first = np.maximum.accumulate(np.where(equal, 0, np.arange(len(order))))
    return [(int(order[place]), int(order[first[place]])) for place in np.flatnonzero(equal)]


def shared_rows(contents: Contents, others: Contents) -> int:
    """How many rows equal one of the others."""
    known = len(others)
    both = np.concatenate([others, contents])
    return sum(row >= known > first for row, first in repeated_rows(both))


def find_copies(
    source: Source, collection: Collection, workers: int, advance: Callable[[int], None] = ignore
) -> dict[str, str]:
    """For each image that is the same bytes as an earlier one, the path of the first of them.

    Earlier is what stands in a split that must keep its images (test before val before train), then by name. Only
    images whose length another one has are read; 40 bytes of memory for each image.

    Args:
        advance: Called with 1 for each image that is done.
    """
    splits = sorted(collection.splits, key=_PRIORITY.index)
    paths = [picture.path for split in splits for picture in collection.splits[split]]
    lengths = np.array([-1 if (size := source.size(path)) is None else size for path in paths], np.int64)
    _, inverse, counts = np.unique(lengths, return_inverse=True, return_counts=True)
    candidates = np.flatnonzero((counts[inverse] > 1) | (lengths < 0))
    advance(len(paths) - len(candidates))

    def digest(number: int) -> bytes:
        try:
            return content_digest(source.read(paths[number]))
        except BadImage:  # packing will say so
            return number.to_bytes(DIGEST_BYTES, "big")

    digests = np.empty((len(candidates), 2), np.uint64)
    for row, found in enumerate(ordered_map(digest, candidates.tolist(), workers)):
        digests[row] = np.frombuffer(found, np.uint64)
        advance(1)
    return {paths[candidates[copy]]: paths[candidates[first]] for copy, first in repeated_rows(digests)}


def without_copies(collection: Collection, copy_of: Mapping[str, str]) -> Collection:
    """The collection without the images that are copies, which is noted."""
    splits = {}
    for split, pictures in collection.splits.items():
        dropped = [picture for picture in pictures if picture.path in copy_of]
        if dropped:
            collection.notes.add("left out, copies of other images (--dedupe)", dropped[0].path, len(dropped))
        splits[split] = [picture for picture in pictures if picture.path not in copy_of]
    return replace(collection, splits={split: pictures for split, pictures in splits.items() if pictures})


def note_copies(collection: Collection, copy_of: Mapping[str, str]) -> None:
    """Note how many images are copies, and how many of these have another class than the first."""
    labels = {picture.path: (split, picture.label) for split, found in collection.splits.items() for picture in found}
    for copy, first in sorted(copy_of.items()):
        if labels[copy][1] != labels[first][1]:
            collection.notes.add("copies of an image of another class", f"{copy} and {first}")
        if labels[copy][0] != labels[first][0]:
            collection.notes.add("copies of an image of another split", f"{copy} and {first}")
