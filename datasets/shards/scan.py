"""Build an index by reading the headers of tar shards, from leoclr or another tool.

Members are grouped into samples as webdataset does it: the key is the path up to the first dot of the base name.
Where webdataset would lose or mix samples without a word, this refuses: a truncated shard (also on a member
boundary), two archives in one file, members of a sample that are not adjacent, two images under one key.
Labels are not needed for pre-training, so that those that cannot be used are counted and not refused.
Without checksums nothing but labels is read; an image's bytes are only measured.
"""

from __future__ import annotations

import os
import re
import shlex
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from leoclr.datasets.errors import DataError
from leoclr.datasets.files import ignore, sha256_file
from leoclr.datasets.images.file_names import IMAGE_SUFFIXES
from leoclr.datasets.shards.checksums import NO_CHECKSUM, checksum_of
from leoclr.datasets.shards.index import NO_LABEL, Index, Shard
from leoclr.datasets.shards.index_format import refuse_shard_name
from leoclr.datasets.shards.joining import MOST_REASONS, SHOWN_TEXT, UNUSABLE_LABEL, joined, shown_text
from leoclr.datasets.shards.labels import MAX_NAMES, renumbered
from leoclr.datasets.shards.sample_members import BY_SUFFIX, LABEL_SUFFIX, Members
from leoclr.datasets.shards.tar import REFUSED_IN_NAMES, Member, members

NO_IMAGE = "no image: "  # how reasons begin in Shard.left_out
_METADATA = re.compile(r"__[^/]*__(/|$)")  # webdataset passes over such files and folders at the top
_MOST_MEMBERS = 64  # of a sample that are looked at


@dataclass
class _Sample:
    """The members of one key."""

    key: str
    images: dict[str, Member] = field(default_factory=dict)
    labels: dict[str, Member] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)


class _Rows:
    """The samples of one shard, as columns: a few dozen bytes each however many there are."""

    def __init__(self, file: BinaryIO, path: str, which: Members) -> None:
        self.offset, self.length, self.label, self.key_end = (array("q") for _ in range(4))
        self.keys = bytearray()
        self.without_image = 0
        self.beside: set[str] = set()
        self._left_out: Counter[str] = Counter()
        self._names: dict[str, int] = {}
        self._file, self._path, self._which = file, path, which

    def close(self, sample: _Sample | None) -> None:
        """Take a sample whose members have all been seen."""
        if sample is None:
            return
        image = self._image(sample)
        if image is None:
            self.without_image += 1
            for suffix in sample.others[:1]:
                self._leave_out(NO_IMAGE, f".{suffix[:SHOWN_TEXT]}")
            return
        self.offset.append(image.offset)
        self.length.append(image.size)
        self.label.append(self._label(sample))
        self.keys += sample.key.encode()
        self.key_end.append(len(self.keys))
        if len(self.beside) < MOST_REASONS:
            self.beside.update(sample.others)

    def labels(self) -> tuple[NDArray[np.int64], tuple[str, ...], dict[str, int]]:
        """The class numbers, the class names (in alphabetical order, if the labels are names), and what was left out.

        Until here a name is a negative number, below that of no label.
        """
        label = np.array(self.label, np.int64)
        named = label < NO_LABEL
        names = sorted(self._names)
        if named.any() and (label > NO_LABEL).any() or len(names) > MAX_NAMES:
            texts = list(self._names)
            for number, count in Counter(label[named].tolist()).items():
                self._leave_out(UNUSABLE_LABEL, shown_text(texts[NO_LABEL - 1 - number]), count)
            label[named], names = NO_LABEL, []
        if names:
            label = np.where(named, NO_LABEL - 1 - label, NO_LABEL)
            label = renumbered(label, list(self._names), names)
        return label, tuple(names), dict(self._left_out)

    def _image(self, sample: _Sample) -> Member | None:
        if not sample.images:
            return None
        name = self._which.chosen(list(sample.images), self._which.images)
        if name is None:
            first, second = list(sample.images)[:2]
            pack = shlex.join(("leoclr", "shard", str(self._path), "OUT"))
            raise DataError(
                f"{self._path}: two images under the key {sample.key!r}; keys end at the first dot of the name, so "
                f"that .{first} and .{second} are of one sample; `leoclr index --image-member {first}` takes one, or "
                f"if they are images of their own, `{pack}` gives them keys without dots"
            )
        return sample.images[name]

    def _label(self, sample: _Sample) -> int:
        if not sample.labels:
            return NO_LABEL
        name = self._which.chosen(list(sample.labels), (self._which.label_name or LABEL_SUFFIX,))
        if name is None:
            return self._unusable(f".{' or .'.join(list(sample.labels)[:2])}; --label-member says which")
        member = sample.labels[name]
        if member.size > self._which.label_bytes:
            return self._unusable(f"{member.size:,} bytes")
        self._file.seek(member.offset)
        data = self._file.read(member.size)
        found = self._which.parse(data)
        if isinstance(found, int):
            return found
        if found is None or (found not in self._names and len(self._names) > MAX_NAMES):
            return self._unusable(shown_text(data.decode(errors="replace").strip()))
        return NO_LABEL - 1 - self._names.setdefault(found, len(self._names))

    def _unusable(self, what: str) -> int:
        self._leave_out(UNUSABLE_LABEL, what)
        return NO_LABEL

    def _leave_out(self, kind: str, what: str, count: int = 1) -> None:
        known = f"{kind}{what}" in self._left_out or len(self._left_out) < MOST_REASONS
        self._left_out[f"{kind}{what if known else 'others'}"] += count


def build_index(
    paths: Sequence[Path],
    classes: Sequence[str] = (),
    checksum: bool = True,
    advance: Callable[[int], None] = ignore,
    which: Members = BY_SUFFIX,
) -> Index:
    """Index tar shards.

    Args:
        paths: The shards, in the order that the index shall have; at least one.
        classes: Class names by number, where they are known.
        checksum: Whether to compute each shard's SHA-256 and each image's checksum, which reads all of it.
        advance: Called with the bytes of each shard that is done.
        which: Which members are images and labels.

    Raises:
        DataError: A shard is missing, is not a plain tar, is truncated, or groups its members in a way that cannot
            be trusted; or a label is not below the number of classes, or not among their names.
    """
    parts = []
    for path in paths:
        part = _index_shard(path, checksum, which)
        parts.append(part)
        advance(part.shards[0].bytes)
    return joined(parts, classes)


def _index_shard(path: Path, checksum: bool, which: Members) -> Index:
    refuse_shard_name(path.name)
    try:
        if path.exists() and not path.is_file():
            raise DataError(f"{path}: cannot be read (it is no regular file)")
        with path.open("rb") as file:
            part = index_file(file, str(path), checksum, which)
        digest = sha256_file(path) if checksum else None
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such shard") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    return replace(part, shards=(replace(part.shards[0], sha256=digest),))


def index_file(file: BinaryIO, path: str, checksum: bool, which: Members = BY_SUFFIX) -> Index:
    """Index one shard that is open for reading; the index calls it `path`. The SHA-256 is left out. Labels that are
    names number these in alphabetical order."""
    rows = _scan(file, path, which)
    count = len(rows.offset)
    label, classes, left_out = rows.labels()
    shard = Shard(
        path,
        file.seek(0, os.SEEK_END),
        count,
        None,
        rows.without_image,
        checksum="blake2b",
        left_out=left_out,
        members=which,
        beside=tuple(sorted(rows.beside)),
    )
    return Index(
        shards=(shard,),
        shard=np.zeros(count, np.int32),
        offset=np.array(rows.offset, np.int64),
        length=np.array(rows.length, np.int64),
        label=label,
        crc=_checksums(file, rows) if checksum else np.full(count, NO_CHECKSUM, np.uint32),
        key_bytes=np.frombuffer(bytes(rows.keys), np.uint8),
        key_end=np.array(rows.key_end, np.int64),
        classes=classes,
    )


def _checksums(file: BinaryIO, rows: _Rows) -> NDArray[np.uint32]:
    crc = np.empty(len(rows.offset), np.uint32)
    for row, (offset, length) in enumerate(zip(rows.offset, rows.length, strict=True)):
        file.seek(offset)
        crc[row] = checksum_of(file, length)
    return crc


def _scan(file: BinaryIO, path: str, which: Members) -> _Rows:
    rows = _Rows(file, path, which)
    seen: set[str] = set()
    current: _Sample | None = None
    for member in members(file, path):
        key, name = _split_name(path, member, which)
        if not key:
            continue
        if current is None or current.key != key:
            if key in seen:
                raise DataError(f"{path}: the members of sample {key!r} are not adjacent, or the key stands twice")
            rows.close(current)
            current = _Sample(key)
            seen.add(key)
        _add(path, current, name, member, which)
    rows.close(current)
    return rows


def _add(path: str, sample: _Sample, name: str, member: Member, which: Members) -> None:
    kinds = ((sample.images, which.may_be_image(name), "images"), (sample.labels, which.may_be_label(name), "labels"))
    for found, fits, kind in kinds:
        if fits and name in found:
            raise DataError(f"{path}: two {kind} under the key {sample.key!r}; {member.name!r} stands twice")
        if fits and len(found) < _MOST_MEMBERS:
            found[name] = member
    if not any(fits for _, fits, _ in kinds) and len(sample.others) < _MOST_MEMBERS:
        sample.others.append(name)


def _split_name(path: str, member: Member, which: Members) -> tuple[str, str]:
    """Key and suffix in lower case; ("", "") for what belongs to no sample."""
    name = member.name
    folder, slash, base = name.rpartition("/")
    stem, dot, suffix = base.partition(".")
    if not dot or not stem or _METADATA.match(name):
        return "", ""  # folders, names without suffix, dotfiles, metadata
    suffix = suffix.lower()
    used = suffix.rpartition(".")[2] in (*IMAGE_SUFFIXES, LABEL_SUFFIX)
    if member.kind == "link" and (used or which.may_be_image(suffix) or which.may_be_label(suffix)):
        raise DataError(
            f"{path}: {name!r} is a link; a shard must hold the files themselves (tar -h --hard-dereference)"
        )
    if member.kind != "file":
        return "", ""
    if name.startswith("/") or ".." in folder.split("/") or REFUSED_IN_NAMES.search(name):
        raise DataError(f"{path}: refused the member name {name!r}")
    return folder + slash + stem, suffix
