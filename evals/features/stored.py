"""Features in a safetensors file, which is read as strictly as any file that somebody may have changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from leoclr.datasets.files import atomic_path
from leoclr.datasets.json_text import parse_json_text
from leoclr.datasets.shards.index import Index
from leoclr.evals.features.extract import Features


def write_features(path: Path, features: Features) -> None:
    """Write features as a whole or not at all; their labels are those of the index and are not written.

    Raises:
        OSError: It cannot be done.
    """
    tensors: dict[str, NDArray[Any]] = {"features": features.features, "numbers": features.numbers}
    with atomic_path(path) as temporary:
        try:
            save_file(tensors, temporary, {"skipped": json.dumps(features.skipped)})
        except SafetensorError as error:  # a full disk, among others
            raise OSError(str(error)) from error


def read_features(path: Path, index: Index) -> Features:
    """Undo `write_features`.

    Args:
        index: Of the samples that the features were computed of.

    Raises:
        OSError: The file is missing or cannot be read.
        ValueError: It is damaged, or holds anything but features of samples of `index`.
    """
    try:
        with safe_open(path, framework="np") as file:
            features, numbers = file.get_tensor("features"), file.get_tensor("numbers")
            skipped = parse_json_text((file.metadata() or {}).get("skipped", ""))
    except SafetensorError as error:
        raise ValueError(str(error)) from None
    if (features.dtype, features.ndim, numbers.dtype, numbers.shape) != (np.float32, 2, np.int64, features.shape[:1]):
        raise ValueError("no table of features")
    if len(numbers) and not 0 <= numbers.min() <= numbers.max() < len(index.label):
        raise ValueError("features of other data")
    if not isinstance(skipped, list) or not all(isinstance(line, str) for line in skipped):
        raise ValueError("no list of what was skipped")
    return Features(features, index.label[numbers], numbers, tuple(skipped))
