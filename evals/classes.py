"""Labels of training and test sets: presence, equal meaning, and stratified splits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from leoclr.datasets.errors import EvaluationError
from leoclr.datasets.randomness import stream, uniforms
from leoclr.datasets.shards.index import NO_LABEL, Index
from leoclr.datasets.wording import first_of
from leoclr.evals.accuracy import IntArray

_SHOWN = 5


def check_labels(index: Index, name: str) -> None:
    """Raise EvaluationError, naming the data as `name`, unless there are samples and every one has a label."""
    if not len(index):
        raise EvaluationError(f"{name}: there are no samples")
    missing = int((index.label == NO_LABEL).sum())
    if missing == len(index):
        raise EvaluationError(f"{name}: the samples have no labels; name others, --train-data and --data, that have")
    if missing:
        example = index.key(int(np.argmax(index.label == NO_LABEL)))
        raise EvaluationError(
            f"{name}: {missing} of {len(index)} samples have no label, {example!r} among them; "
            "`leoclr shard --without LIST` packs the others"
        )


@dataclass(frozen=True)
class Numbering:
    """Numbers from 0, without gaps, for the labels of a data set, whatever numbers these are: the memory of a score
    follows the classes that occur.

    Attributes:
        labels: Those that occur, ascending, shape `(c,)`.
        numbers: Of each, shape `(c,)`.
    """

    labels: IntArray
    numbers: IntArray

    def __call__(self, labels: IntArray) -> IntArray:
        """The numbers of labels that occur in the data set, shape `(n,)`."""
        found: IntArray = self.numbers[np.searchsorted(self.labels, labels)]
        return found


def own_classes(index: Index) -> Numbering:
    """The numbers of training's classes: their places among the class numbers that occur."""
    return Numbering(index.occurring, np.arange(index.class_count))


def match_classes(train: Index, test: Index) -> Numbering:
    """The number in training (see `own_classes`) of each class of the test set.

    Classes are matched by name where both sets have names, else by number.

    Raises:
        EvaluationError: Labels are missing, training has one class, or the test set has a class that no training
            sample belongs to.
    """
    check_labels(train, "training data")
    check_labels(test, "test data")
    trained = train.occurring.tolist()
    if len(trained) < 2:
        raise EvaluationError(f"training data: all {len(train)} samples are of class {_name(train, trained[0])}")
    by_name = bool(train.classes) and bool(test.classes)
    numbers = {train.classes[label] if by_name else label: number for number, label in enumerate(trained)}
    tested = test.occurring.tolist()
    found = [numbers.get(test.classes[label] if by_name else label, NO_LABEL) for label in tested]
    absent = [_name(test, label) for label, number in zip(tested, found, strict=True) if number == NO_LABEL]
    if absent:
        raise EvaluationError(
            f"test data: {first_of(absent, _SHOWN)} of {len(tested)} classes have no training sample; "
            f"training has {first_of([_name(train, label) for label in trained], _SHOWN)}"
        )
    return Numbering(test.occurring, np.array(found, np.int64))


def stratified_holdout(
    labels: IntArray, share: float, seed: int, purpose: str = "hold-out"
) -> tuple[IntArray, IntArray]:
    """Split samples so that every class is divided alike.

    Args:
        share: Of each class that is held out, rounded; at least one sample of a class that has two, and never all.
        seed: With the position of a sample, decides which.
        purpose: Of the split. Splits for different purposes are independent under the same seed.

    Returns:
        Positions to keep and positions held out, both ascending.

    Raises:
        EvaluationError: No class has two samples.
    """
    draws = uniforms(stream(seed, purpose), 0, np.arange(len(labels)), 0, 1)[:, 0]
    held = np.zeros(len(labels), np.bool_)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = min(max(1, round(share * len(members))), len(members) - 1)
        held[members[np.argsort(draws[members])[:count]]] = True
    if not held.any():
        raise EvaluationError("nothing can be held out: every class has a single sample")
    return np.flatnonzero(~held), np.flatnonzero(held)


def _name(index: Index, label: int) -> str:
    return repr(index.classes[label]) if label < len(index.classes) else f"number {label}"
