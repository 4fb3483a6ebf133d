"""Building an index by reading the headers of tar shards, ours or another tool's.

Members are grouped into samples as webdataset does it: the key is the path up to the first dot of the base name.
Where webdataset would lose or mix samples without a word, this refuses: a truncated shard (also on a member
boundary), two archives in one file, members of a sample that are not adjacent, two images under one key.
Without checksums nothing but labels is read; an image's bytes are only measured.
"""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from leoclr.datasets.errors import DataError
from leoclr.datasets.files import crc_of, ignore, sha256_file
from leoclr.datasets.images.decode import IMAGE_SUFFIXES
from leoclr.datasets.shards.index import MAX_CLASSES, NO_CRC, NO_LABEL, Index, Shard, concatenate
from leoclr.datasets.shards.tar import REFUSED_IN_NAMES, Member, members

_MAX_LABEL_BYTES = 32
_MAX_LABEL_DIGITS = len(str(MAX_CLASSES - 1))
_METADATA = re.compile(r"__[^/]*__(/|$)")  # webdataset passes over such files and folders at the top


@dataclass
class _Sample:
    """What the members of one key said."""

    key: str
    offset: int = NO_LABEL
    length: int = 0
    label: int = NO_LABEL


@dataclass
class _Rows:
    """The samples of one shard, as columns: a few dozen bytes each however many there are."""

    offset: array[int] = field(default_factory=lambda: array("q"))
    length: array[int] = field(default_factory=lambda: array("q"))
    label: array[int] = field(default_factory=lambda: array("q"))
    keys: bytearray = field(default_factory=bytearray)
    key_end: array[int] = field(default_factory=lambda: array("q"))
    without_image: int = 0

    def close(self, sample: _Sample | None) -> None:
        """Take a sample whose members have all been seen."""
        if sample is None:
            return
        if sample.offset == NO_LABEL:
            self.without_image += 1
            return
        self.offset.append(sample.offset)
        self.length.append(sample.length)
        self.label.append(sample.label)
        self.keys += sample.key.encode()
        self.key_end.append(len(self.keys))


def build_index(
    paths: Sequence[Path],
    classes: Sequence[str] = (),
    checksum: bool = True,
    advance: Callable[[int], None] = ignore,
) -> Index:
    """Index tar shards.

    Args:
        paths: The shards, in the order that the index shall have; at least one.
        classes: Class names by number, where they are known.
        checksum: Whether to compute each shard's SHA-256 and each image's CRC-32, which reads all of it.
        advance: Called with the bytes of each shard that is done.

    Raises:
        DataError: A shard is missing, is not a plain tar, is truncated, or groups its members in a way that cannot
            be trusted; or a label is not below the number of classes.
    """
    parts = []
    for path in paths:
        part = _index_shard(path, checksum)
        parts.append(part)
        advance(part.shards[0].bytes)
    return with_classes(concatenate(parts), classes)


def with_classes(index: Index, classes: Sequence[str]) -> Index:
    """The index with class names by number; DataError where a label has none."""
    index = replace(index, classes=tuple(classes))
    if classes and len(index) and index.label.max() >= len(classes):
        worst = int(index.label.argmax())
        raise DataError(f"sample {index.key(worst)} has class {index.label[worst]}, but there are {len(classes)} names")
    return index


def _index_shard(path: Path, checksum: bool) -> Index:
    try:
        with path.open("rb") as file:
            part = index_file(file, str(path), checksum)
        digest = sha256_file(path) if checksum else None
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such shard") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    return replace(part, shards=(replace(part.shards[0], sha256=digest),))


def index_file(file: BinaryIO, path: str, checksum: bool) -> Index:
    """Index one shard that is open for reading; the index calls it `path`. The SHA-256 is left out."""
    rows = _scan(file, path)
    count = len(rows.offset)
    return Index(
        shards=(Shard(path, file.seek(0, os.SEEK_END), count, None, rows.without_image),),
        shard=np.zeros(count, np.int32),
        offset=np.array(rows.offset, np.int64),
        length=np.array(rows.length, np.int64),
        label=np.array(rows.label, np.int64),
        crc=_checksums(file, rows) if checksum else np.full(count, NO_CRC, np.uint32),
        key_bytes=np.frombuffer(bytes(rows.keys), np.uint8),
        key_end=np.array(rows.key_end, np.int64),
    )


def _checksums(file: BinaryIO, rows: _Rows) -> NDArray[np.uint32]:
    crc = np.empty(len(rows.offset), np.uint32)
    for row, (offset, length) in enumerate(zip(rows.offset, rows.length, strict=True)):
        file.seek(offset)
        crc[row] = crc_of(file, length)
    return crc


def _scan(file: BinaryIO, path: str) -> _Rows:
    rows = _Rows()
    seen: set[str] = set()
    current: _Sample | None = None
    for member in members(file, path):
        key, suffix = _split_name(path, member)
        if not key:
            continue
        if current is None or current.key != key:
            if key in seen:
                raise DataError(f"{path}: the members of sample {key!r} are not adjacent, or the key stands twice")
            rows.close(current)
            current = _Sample(key)
            seen.add(key)
        if suffix == "cls":
            if current.label != NO_LABEL:
                raise DataError(f"{path}: two labels under the key {key!r}; keys end at the first dot of the name")
            current.label = _label(path, member, file)
        elif suffix.rpartition(".")[2] in IMAGE_SUFFIXES:
            if current.offset != NO_LABEL:
                raise DataError(f"{path}: two images under the key {key!r}; keys end at the first dot of the name")
            current.offset, current.length = member.offset, member.size
    rows.close(current)
    return rows


def _split_name(path: str, member: Member) -> tuple[str, str]:
    """Key and suffix in lower case; ("", "") for what belongs to no sample."""
    name = member.name
    folder, slash, base = name.rpartition("/")
    stem, dot, suffix = base.partition(".")
    if not dot or not stem or _METADATA.match(name):
        return "", ""  # folders, names without suffix, dotfiles, metadata
    if member.kind == "link" and suffix.lower().rpartition(".")[2] in (*IMAGE_SUFFIXES, "cls"):
        raise DataError(
            f"{path}: {name!r} is a link; a shard must hold the files themselves (tar -h --hard-dereference)"
        )
    if member.kind != "file":
        return "", ""
    if name.startswith("/") or ".." in folder.split("/") or REFUSED_IN_NAMES.search(name):
        raise DataError(f"{path}: refused the member name {name!r}")
    return folder + slash + stem, suffix.lower()


def _label(path: str, member: Member, file: BinaryIO) -> int:
    file.seek(member.offset)
    text = file.read(min(member.size, _MAX_LABEL_BYTES)).strip()
    if member.size > _MAX_LABEL_BYTES or not text.isdigit() or len(text) > _MAX_LABEL_DIGITS:
        raise DataError(f"{path}: {member.name!r} holds {text!r}; a .cls member is a class number from 0")
    return int(text)
