"""Comparison of encoders image by image: the first with each of the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from leoclr.evals.mcnemar import Comparison, compare
from leoclr.evals.scores import Predicted


def compared(predictions: Mapping[str, Mapping[str, Predicted]], classifiers: Sequence[str]) -> list[dict[str, Any]]:
    """McNemar's test of the first encoder and each of the others, as JSON; pairs with other test images are left out.

    Args:
        predictions: By the encoder's name and the classifier's.
        classifiers: To compare by.
    """
    (first, one), *others = predictions.items()
    found = []
    for second, other in others:
        tests = {}
        for name in classifiers:
            (numbers, mine), (other_numbers, theirs) = one[name], other[name]
            if np.array_equal(numbers, other_numbers) and np.array_equal(mine.labels, theirs.labels):
                tests[name] = asdict(compare(mine.ranks == 0, theirs.ranks == 0))
        found.append({"first": first, "second": second, "tests": tests})
    return found


def described(pair: Mapping[str, Any]) -> Iterator[str]:
    """A pair of what `compared` found, in lines for a person."""
    for name, test in pair["tests"].items():
        yield f"{pair['first']} less {pair['second']}, {name}: {Comparison(**test)}"
