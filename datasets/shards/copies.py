"""Images with the same bytes in a data set."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from leoclr.datasets.files import ignore
from leoclr.datasets.packing.duplicates import content_digest, repeated_rows
from leoclr.datasets.shards.index import Index
from leoclr.datasets.shards.reader import SampleReader


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
