"""Prediction files, one line per test image, and the comparison of two of them."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from leoclr.datasets.errors import EvaluationError
from leoclr.datasets.files import writable
from leoclr.datasets.json_text import parse_json_text
from leoclr.datasets.shards.index import Index
from leoclr.evals.mcnemar import Comparison, compare
from leoclr.evals.scores import Predicted

_COLUMNS = ("classifier", "key", "label", "prediction", "right", "score")
_READ = ("classifier", "key", "label", "right")
_MAX_BYTES = 1 << 32


def write_predictions(path: Path, predictions: Mapping[str, Predicted], train: Index, test: Index) -> None:
    """Write a line for each classifier and image: `classifier` (the row of the table), `key` of the image, `label` and
    `prediction` (names of classes, or numbers where there are none), `right` (1 or 0) and `score` (in [0, 1], of the
    predicted class: its probability or its share of the votes). Comma-separated or JSON, as the suffix says.

    Raises:
        RunError: It cannot be written.
    """
    lines = io.StringIO()
    rows = _rows(predictions, train, test)
    if path.suffix == ".jsonl":
        lines.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    else:
        writer = csv.DictWriter(lines, _COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    with writable(path) as temporary:
        temporary.write_bytes(lines.getvalue().encode("utf-8", errors="surrogateescape"))


def compare_files(first: Path, second: Path) -> dict[str, Comparison]:
    """Compare two files of predictions, by the classifiers that both have.

    Raises:
        EvaluationError: A file is none of predictions, or they are for different images or labels.
    """
    read = [_read(path) for path in (first, second)]
    classifiers = [name for name in read[0] if name in read[1]]
    if not classifiers:
        raise EvaluationError(
            f"{first} has predictions of {', '.join(read[0])}, and {second} of {', '.join(read[1])}: none to compare"
        )
    found = {}
    for name in classifiers:
        one, other = read[0][name], read[1][name]
        both = [image for image in one.right if image in other.right]
        if missing := len(one.right) + len(other.right) - 2 * len(both):
            raise EvaluationError(f"{first} and {second} differ in {missing:,} of their test images ({name})")
        if wrong := [image for image in both if one.labels[image] != other.labels[image]]:
            raise EvaluationError(f"{first} and {second} have different labels for {wrong[0][0]!r}")
        found[name] = compare(*(np.array([part.right[image] for image in both], np.bool_) for part in (one, other)))
    return found


@dataclass
class _Classifier:
    """What a file says of one classifier, by key and the number of its occurrence: keys may repeat."""

    right: dict[tuple[str, int], bool]
    labels: dict[tuple[str, int], str]


def _rows(predictions: Mapping[str, Predicted], train: Index, test: Index) -> Iterator[dict[str, Any]]:
    def name(number: int) -> str | int:
        label = int(train.occurring[number])
        return train.classes[label] if label < len(train.classes) else label

    for classifier, (numbers, found) in predictions.items():
        columns = (numbers, found.labels, found.predicted, found.confidence)
        for number, label, predicted, confidence in zip(*(column.tolist() for column in columns), strict=True):
            values = (test.key(number), name(label), name(predicted), int(label == predicted), round(confidence, 6))
            yield dict(zip(_COLUMNS, (classifier, *values), strict=True))


def _read(path: Path) -> dict[str, _Classifier]:
    found: dict[str, _Classifier] = {}
    seen: Counter[tuple[str, str]] = Counter()
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise EvaluationError(f"{path} is larger than {_MAX_BYTES:,} bytes: no file of predictions")
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
            rows = map(parse_json_text, lines) if path.suffix == ".jsonl" else csv.DictReader(lines)
            for row in rows:
                if missing := [column for column in _READ if column not in row]:
                    had = " ".join(", ".join(map(str, row)).split())[:300] if isinstance(row, dict) else "none"
                    raise EvaluationError(
                        f"{path}: a file of predictions has the columns {', '.join(_COLUMNS)}, apart by commas; this "
                        f"one lacks {', '.join(missing)} and has {had}"
                    )
                classifier, key = str(row["classifier"]), str(row["key"])
                image = (key, seen[classifier, key])
                seen[classifier, key] += 1
                part = found.setdefault(classifier, _Classifier({}, {}))
                part.right[image] = bool(int(row["right"]))
                part.labels[image] = str(row["label"])
    except OSError as error:
        raise EvaluationError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise EvaluationError(f"{path}: no file of predictions, as --predictions writes it ({error!r})") from None
    if not found:
        raise EvaluationError(f"{path}: there are no predictions in it")
    return found
