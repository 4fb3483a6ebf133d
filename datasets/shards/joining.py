"""Several indexes as one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from leoclr.datasets.errors import DataError
from leoclr.datasets.shards.concatenation import concatenate
from leoclr.datasets.shards.index import NO_LABEL, Index
from leoclr.datasets.shards.labels import renumbered

UNUSABLE_LABEL = "no label: "
MOST_REASONS = 8  # that are told apart in a shard
SHOWN_TEXT = 40


def joined(parts: Sequence[Index], classes: Sequence[str] = ()) -> Index:
    """The index of shards that were read one by one, with class names by number where `classes` gives them.

    Where some shards have class numbers and others names, the names are no labels.

    Raises:
        DataError: A label is not below the number of classes, or not among their names.
    """
    if any(part.classes for part in parts) and any(part.class_count and not part.classes for part in parts):
        parts = [_without_names(part) if part.classes else part for part in parts]
    return with_classes(concatenate(parts), classes) if classes else concatenate(parts)


def with_classes(index: Index, classes: Sequence[str]) -> Index:
    """The index with these class names; DataError where a label has none."""
    label = index.label
    if index.classes:
        label = renumbered(label, index.classes, classes)
    wrong = np.flatnonzero((label >= len(classes)) | ((label == NO_LABEL) & (index.label != NO_LABEL)))
    if classes and len(wrong):
        what = index.class_name(int(index.label[wrong[0]]))
        raise DataError(
            f"sample {index.key(int(wrong[0]))} has class {what}, but there are {len(classes)} names"
            + (f", {classes[0]!r} first" if index.classes else "")
        )
    return replace(index, label=label, classes=tuple(classes))


def _without_names(part: Index) -> Index:
    numbers, counts = np.unique(part.label[part.label != NO_LABEL], return_counts=True)
    texts = [f"{UNUSABLE_LABEL}{shown_text(part.classes[number])}" for number in numbers[:MOST_REASONS]]
    found = Counter(dict(zip(texts, counts.tolist(), strict=False)))
    found[f"{UNUSABLE_LABEL}others"] = int(counts[MOST_REASONS:].sum())
    shard = replace(part.shards[0], left_out=dict(+(Counter(part.shards[0].left_out) + found)))
    return replace(part, shards=(shard,), label=np.full(len(part), NO_LABEL, np.int64), classes=())


def shown_text(text: str) -> str:
    """A text of the file's, printable and short."""
    return ascii(text[:SHOWN_TEXT]) + ("..." if len(text) > SHOWN_TEXT else "")
