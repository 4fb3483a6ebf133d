"""Scores of class numbers with gaps: the figures of numbers without, in memory that follows the classes that occur."""

from __future__ import annotations

import numpy as np
import torch

from leoclr.datasets.shards.index import Index
from leoclr.evals.classes import match_classes, own_classes
from leoclr.evals.probes.knn import knn_accuracy

WIDE = np.array([7, 52_000, 734_298_112, 2**62], np.int64)


def index_of(labels: list[int], classes: tuple[str, ...] = ()) -> Index:
    count, none = len(labels), np.empty(0, np.uint8)
    column = np.zeros(count, np.int64)
    ends = np.zeros(count, np.int64)
    return Index(
        (), column.astype(np.int32), column, column, np.array(labels), none.astype(np.uint32), none, ends, classes
    )


def test_knn_of_wide_class_numbers_is_that_of_narrow_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    train, test = torch.randn(80, 8, generator=generator), torch.randn(40, 8, generator=generator)
    numbers, tested = torch.arange(80) % 4, torch.arange(40) % 4
    wide = torch.from_numpy(WIDE)
    expected = knn_accuracy(train, numbers, test, tested, 20)
    assert knn_accuracy(train, wide[numbers], test, wide[tested], 20) == expected
    assert knn_accuracy(train, wide[numbers], test, wide[tested], 20, chunk=8) == expected


def test_classes_are_numbered_by_those_that_occur() -> None:
    train, test = index_of([int(WIDE[2]), 7, 52_000, 7]), index_of([52_000, int(WIDE[2])])
    assert own_classes(train)(train.label).tolist() == [2, 0, 1, 0]
    assert match_classes(train, test)(test.label).tolist() == [1, 2]
    named, other = index_of([2, 0], ("a", "b", "c")), index_of([0, 1], ("c", "a"))
    assert match_classes(named, other)(other.label).tolist() == [1, 0]
