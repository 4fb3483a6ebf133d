"""Labelled subsets of a training set: a share of every class, or a list of images.

SimCLR's lists for ImageNet (`1percent.txt`, `10percent.txt`) hold file names, one a line.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from leoclr.datasets.errors import EvaluationError
from leoclr.datasets.files import LINE_END
from leoclr.datasets.randomness import stream, uniforms
from leoclr.datasets.shards.index import Index
from leoclr.evals.accuracy import IntArray

_SHOWN = 3
_MAX_LIST_BYTES = 1 << 30


@dataclass(frozen=True)
class LabelSubset:
    """Which samples have labels.

    Attributes:
        numbers: Of the samples, ascending.
        share: Of the training set.
        protocol: How they were chosen, in words that identify it.
    """

    numbers: IntArray
    share: float
    protocol: str


def label_subset(index: Index, labels: str, seed: int) -> LabelSubset:
    """The samples that `labels` means: a share such as "1%", or the name of a file with a list.

    Raises:
        EvaluationError: It is neither, or the list and the data do not go together.
    """
    if labels.endswith("%"):
        percent = parse_percent(labels)
        return balanced_subset(index, percent / 100, seed)
    return listed_subset(index, Path(labels))


def parse_percent(text: str) -> float:
    """The number before a per cent sign, above 0 and at most 100. Raises EvaluationError."""
    try:
        percent = float(text.removesuffix("%"))
    except ValueError:
        percent = -1.0
    if not 0 < percent <= 100:
        raise EvaluationError(f"{text}: expected a share above 0% and up to 100%, such as 1%, or a file with names")
    return percent


def balanced_subset(index: Index, share: float, seed: int) -> LabelSubset:
    """Of each class the same share, rounded, and at least one image. A larger share of the same seed holds the smaller
    ones, so that a curve over shares is not blurred by the choice of the images."""
    draws = uniforms(stream(seed, "label subset"), 0, np.arange(len(index)), 0, 1)[:, 0]
    chosen = [
        members[np.argsort(draws[members])[: max(1, round(share * len(members)))]]
        for members in (np.flatnonzero(index.label == label) for label in np.unique(index.label))
    ]
    numbers = np.sort(np.concatenate(chosen))
    protocol = f"labels of {100 * share:g} % of each class, {len(numbers):,} images (seed {seed})"
    return LabelSubset(numbers, share, protocol if share < 1 else f"labels of all {len(numbers):,} images")


def listed_subset(index: Index, path: Path) -> LabelSubset:
    """The samples that the lines of a file name, by key or by the last part of the key, with or without a suffix.

    Raises:
        EvaluationError: The file cannot be read, or a name matches no sample, or several.
    """
    content = _read(path)
    lines = LINE_END.split(content.decode("utf-8-sig", errors="replace"))
    names = sorted({line.strip() for line in lines} - {""})
    if not names:
        raise EvaluationError(f"{path}: the list is empty; expected one file name a line")
    keys = index.keys()
    places = _places(keys)
    found = [
        places.get(_stem(name)) or [n for n in places.get(_last_part(name), []) if _agree(_stem(name), keys[n])]
        for name in names
    ]
    _refuse(path, "match no sample", (name for name, numbers in zip(names, found, strict=True) if not numbers))
    _refuse(path, "match several samples", (n for n, numbers in zip(names, found, strict=True) if len(numbers) > 1))
    numbers = np.unique(np.array([matches[0] for matches in found], np.int64))
    digest = hashlib.sha256("\n".join(names).encode()).hexdigest()[:12]
    protocol = f"labels of the {len(numbers):,} images that {path.name} lists (SHA-256 of its names {digest})"
    return LabelSubset(numbers, len(numbers) / len(index), protocol)


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > _MAX_LIST_BYTES:
            raise EvaluationError(f"{path} is larger than {_MAX_LIST_BYTES:,} bytes: no list of file names")
        return path.read_bytes()
    except OSError as error:
        raise EvaluationError(
            f"{path}: cannot be read ({error.strerror}); --labels takes a share such as 1% or a file with names"
        ) from error


def _places(keys: list[str]) -> dict[str, list[int]]:
    """Sample numbers by key, and by the last part of the key."""
    places: dict[str, list[int]] = {}
    for number, key in enumerate(keys):
        for name in {key, key.rpartition("/")[2]}:
            places.setdefault(name, []).append(number)
    return places


def _stem(name: str) -> str:
    """Without the suffix, which keys do not have."""
    folder, slash, last = name.rpartition("/")
    return f"{folder}{slash}{last.rpartition('.')[0] or last}"


def _last_part(name: str) -> str:
    return _stem(name).rpartition("/")[2]


def _agree(name: str, key: str) -> bool:
    """Whether one is the end of the other: `frog/0001` is no `airplane/0001`."""
    return f"/{key}".endswith(f"/{name}") or f"/{name}".endswith(f"/{key}")


def _refuse(path: Path, what: str, names: Iterable[str]) -> None:
    wrong = list(names)
    if wrong:
        shown = ", ".join(wrong[:_SHOWN]) + (" and so on" if len(wrong) > _SHOWN else "")
        raise EvaluationError(f"{path}: {len(wrong):,} names {what} of the training data: {shown}")
