"""The two files of an index on disk. They are untrusted and read strictly."""

from __future__ import annotations

import json
import mmap
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from safetensors import SafetensorError, safe_open

from leoclr.datasets.errors import DataError, first_fault
from leoclr.datasets.shards.checksums import ChecksumKind

SUFFIX = ".index.json"
COLUMNS_SUFFIX = ".index.safetensors"

COLUMNS: dict[str, np.dtype[Any]] = {
    "shard": np.dtype(np.int32),
    "offset": np.dtype(np.int64),
    "length": np.dtype(np.int64),
    "label": np.dtype(np.int64),
    "crc": np.dtype(np.uint32),
    "key_bytes": np.dtype(np.uint8),
    "key_end": np.dtype(np.int64),
}
_DTYPES = {
    "shard": "I32",
    "offset": "I64",
    "length": "I64",
    "label": "I64",
    "crc": "U32",
    "key_bytes": "U8",
    "key_end": "I64",
}


_Printable = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]*$")]


class _Stored(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class StoredColumns(_Stored):
    file: str
    sha256: str


_SHARD_NAME = r"^[^/\\\x00-\x1f\x7f]+$"


class StoredShard(_Stored):
    name: str = Field(pattern=_SHARD_NAME)
    bytes: int = Field(ge=0, lt=2**63)
    samples: int = Field(ge=0)
    sha256: str | None
    without_image: int = Field(ge=0)
    left_out: dict[_Printable, Annotated[int, Field(ge=0)]] = {}


class StoredIndex(_Stored):
    """`made` holds the options of the command that made the data or the index, so that it can be made again. Indexes
    from before lack it, and `left_out`; both are written only where they hold something, as `checksum`
    where it is not CRC-32."""

    format: Literal[1]
    samples: int
    checksum: ChecksumKind = "crc32"
    labelled: bool
    columns: StoredColumns
    classes: list[_Printable]
    shards: list[StoredShard]
    made: dict[_Printable, JsonValue] = {}


def columns_path(path: Path) -> Path:
    """The file with the rows of an index; DataError where `path` is not named like an index."""
    if not path.name.endswith(SUFFIX):
        raise DataError(f"{path}: an index file ends in {SUFFIX}")
    return path.with_name(path.name.removesuffix(SUFFIX) + COLUMNS_SUFFIX)


def read_json(path: Path) -> StoredIndex:
    """The content of an index's JSON file; DataError where it is missing or is anything else."""
    try:
        if path.exists() and not path.is_file():
            raise DataError(f"{path}: not an index (it is no regular file)")
        return parse_index(path.read_bytes(), path)
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such index file") from None


def parse_index(text: bytes, path: Path) -> StoredIndex:
    """The content of an index's JSON file, whose text is given; DataError where it is anything else."""
    try:
        return StoredIndex.model_validate_json(text)
    except ValidationError as error:
        what = f"not an index that this version reads ({first_fault(error)})"
        raise DataError(f"{path}: {what}; run `leoclr index` again") from None


def refuse_shard_name(name: str) -> None:
    """Raise DataError for the name of a shard that no index can hold."""
    if not re.search(_SHARD_NAME, name):
        raise DataError(f"rename the shard {name!a}: its name must not hold a backslash or a control character")


def map_columns(path: Path) -> dict[str, Any]:
    """The columns as views of the mapped file. safetensors checks the header (no overlap, no holes, no code)."""
    try:
        with safe_open(path, framework="np") as file:
            found = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise DataError(f"{path}: damaged ({error}); run `leoclr index` again") from None
    if found != _DTYPES:
        raise DataError(f"{path}: the columns are not those of an index; run `leoclr index` again")
    with path.open("rb") as opened:
        mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    data_start = 8 + int.from_bytes(mapped[:8], "little")
    header = json.loads(mapped[8:data_start])
    columns = {}
    for name, dtype in COLUMNS.items():
        start, end = header[name]["data_offsets"]
        columns[name] = np.frombuffer(mapped, dtype, (end - start) // dtype.itemsize, data_start + start)
    return columns
