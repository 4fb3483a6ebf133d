"""Feature files for other programs: a numpy array with keys beside it, or a Parquet table.

Both are written piece by piece, a piece being what is in memory, and appear only when all of it is written.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from leoclr.datasets.errors import SettingsError
from leoclr.datasets.files import atomic_path
from leoclr.datasets.shards.index import NO_LABEL, Index
from leoclr.evals.features.extract import Features

Write = Callable[[Path, Iterable[Features], Index, int, int], list[Path]]


def writer_for(path: Path) -> Write:
    """What writes a file of this name.

    Raises:
        SettingsError: The name ends in neither .npy nor .parquet, or pyarrow is missing.
    """
    if path.suffix == ".npy":
        return write_npy
    if path.suffix != ".parquet":
        raise SettingsError(f"-o {path}: features are written as .npy or .parquet; give such a name")
    if find_spec("pyarrow") is None:
        raise SettingsError(f"-o {path} needs pyarrow: pip install 'leoclr-cli[parquet]', or choose a .npy file")
    return write_parquet


def write_npy(path: Path, pieces: Iterable[Features], index: Index, rows: int, dimension: int) -> list[Path]:
    """A float32 array of shape `(rows, dimension)`, and beside it `NAME.keys.jsonl`: a JSON object for each row with
    its `key` and, where there is one, its `label` and `class`.

    Returns:
        The files that were written.
    """
    keys = path.with_name(f"{path.stem}.keys.jsonl")
    with atomic_path(path) as array_file, atomic_path(keys) as keys_file:
        array = np.lib.format.open_memmap(array_file, mode="w+", dtype=np.float32, shape=(rows, dimension))
        with keys_file.open("w", encoding="utf-8") as lines:
            start = 0
            for piece in pieces:
                array[start : start + len(piece.features)] = piece.features
                start += len(piece.features)
                lines.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in _rows(piece, index))
        array.flush()
        del array
    return [path, keys]


def write_parquet(path: Path, pieces: Iterable[Features], index: Index, rows: int, dimension: int) -> list[Path]:
    """A table with the columns `key`, `label`, `class` (null where there is none) and `features`, a list of
    `dimension` float32 values; a row group for each piece.

    Returns:
        The file that was written.
    """
    import pyarrow
    from pyarrow import parquet

    schema = pyarrow.schema(
        [
            ("key", pyarrow.string()),
            ("label", pyarrow.int64()),
            ("class", pyarrow.string()),
            ("features", pyarrow.list_(pyarrow.float32(), dimension)),
        ]
    )
    with atomic_path(path) as temporary, parquet.ParquetWriter(temporary, schema, compression="zstd") as file:
        for piece in pieces:
            described = list(_rows(piece, index))
            columns = [[row.get(name) for row in described] for name in ("key", "label", "class")]
            vectors = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(piece.features.reshape(-1)), dimension)
            file.write_table(pyarrow.table([*columns, vectors], schema=schema))
    return [path]


def _rows(piece: Features, index: Index) -> Iterable[dict[str, Any]]:
    for number, label in zip(piece.numbers.tolist(), piece.labels.tolist(), strict=True):
        row: dict[str, Any] = {"key": index.key(number)}
        if label != NO_LABEL:
            row["label"] = label
            if label < len(index.classes):
                row["class"] = index.classes[label]
        yield row
