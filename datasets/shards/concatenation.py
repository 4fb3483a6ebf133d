"""Concatenate several indexes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from leoclr.datasets.shards.index import NO_LABEL, Index
from leoclr.datasets.shards.labels import renumbered, union_of


def concatenate(indexes: Sequence[Index]) -> Index:
    """One index out of several, in the order given.

    Classes are the same where their names are the same; where names differ, all of them together are the classes.
    Numbers of a data set without names are taken for numbers of those names as far as that can be: where names differ,
    or there are too few, they are no labels.
    """
    if len(indexes) == 1:
        return indexes[0]
    names = {index.classes for index in indexes if index.classes}
    classes = union_of(names)
    labels = [_labels_among(index, classes, numbers_mean_names=len(names) == 1) for index in indexes]
    shard_starts = np.cumsum([0] + [len(index.shards) for index in indexes])
    key_starts = np.cumsum([0] + [len(index.key_bytes) for index in indexes])
    return Index(
        shards=tuple(shard for index in indexes for shard in index.shards),
        shard=np.concatenate([i.shard + np.int32(start) for i, start in zip(indexes, shard_starts, strict=False)]),
        offset=np.concatenate([index.offset for index in indexes]),
        length=np.concatenate([index.length for index in indexes]),
        label=np.concatenate(labels),
        crc=np.concatenate([index.crc for index in indexes]),
        key_bytes=np.concatenate([index.key_bytes for index in indexes]),
        key_end=np.concatenate([i.key_end + start for i, start in zip(indexes, key_starts, strict=False)]),
        classes=classes,
        cache=next((index.cache for index in indexes if index.cache), None),
    )


def _labels_among(index: Index, classes: tuple[str, ...], numbers_mean_names: bool) -> NDArray[np.int64]:
    if index.classes or not classes:
        return renumbered(index.label, index.classes, classes)
    known = index.label < (len(classes) if numbers_mean_names else 0)
    return np.where(known, index.label, NO_LABEL)
