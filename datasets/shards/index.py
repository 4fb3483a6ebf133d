"""The index of a data set of tar shards: the position of every sample, for random access.

On disk it is two files beside the shards: `NAME.index.json`, for people and checks, and `NAME.index.safetensors`, a row
for each sample, which is mapped into memory, not read. The JSON file is written last and holds the digest of the other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from leoclr.datasets.errors import DataError
from leoclr.datasets.files import sha256_file, write_atomic
from leoclr.datasets.shards.checksums import ChecksumKind
from leoclr.datasets.shards.index_format import COLUMNS, columns_path, map_columns, parse_index, read_json
from leoclr.datasets.shards.index_format import COLUMNS_SUFFIX as COLUMNS_SUFFIX
from leoclr.datasets.shards.index_format import SUFFIX as SUFFIX
from leoclr.datasets.shards.labels import NO_LABEL as NO_LABEL
from leoclr.datasets.shards.sample_members import BY_SUFFIX, RECORDED, Members
from leoclr.datasets.storage.addresses import is_remote
from leoclr.datasets.storage.block_cache import BlockCache

_CONTROL = np.isin(np.arange(256), [*range(32), 127])  # by byte
_KEYS_AT_A_TIME = 1 << 20  # bounds what choosing millions of samples takes beside the result


@dataclass(frozen=True)
class Shard:
    """One tar file.

    Attributes:
        path: Its path or address.
        sha256: None where it was not computed.
        checksum: How those of its images were computed.
        without_image: Groups of members that hold no image and are therefore not samples.
        left_out: What of it is not used, and how often: suffixes of what lies in place of an image, texts that are no
            label.
        members: Which members are images and labels.
        beside: Some of the other members that lie beside images; not stored.
        identity: What a remote file must still be, its ETag when the data were opened; not stored.
    """

    path: str
    bytes: int
    samples: int
    sha256: str | None
    without_image: int = 0
    checksum: ChecksumKind = "crc32"
    left_out: Mapping[str, int] = field(default_factory=dict)
    members: Members = BY_SUFFIX
    beside: tuple[str, ...] = ()
    identity: str = ""


@dataclass(frozen=True)
class Index:
    """Where every sample of a data set lies.

    Attributes:
        shards: The tar files.
        shard: Number of a sample's shard, int32, shape `(n,)`; the samples are in shard order.
        offset, length: Where the image's bytes lie in the shard, int64, shape `(n,)`.
        label: Class number, or -1 where there is none, int64, shape `(n,)`.
        crc: Checksum of the image's bytes (see `checksums`), or 0 where it was not computed, uint32, shape `(n,)`.
        key_bytes, key_end: All keys in UTF-8, one behind the other, and where each ends.
        classes: Class names by number; empty where they are not known.
        cache: Where blocks of remote shards are kept; not stored.
        made: The options of the command that made the data or the index.
    """

    shards: tuple[Shard, ...]
    shard: NDArray[np.int32]
    offset: NDArray[np.int64]
    length: NDArray[np.int64]
    label: NDArray[np.int64]
    crc: NDArray[np.uint32]
    key_bytes: NDArray[np.uint8]
    key_end: NDArray[np.int64]
    classes: tuple[str, ...] = ()
    cache: BlockCache | None = None
    made: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.offset)

    def key(self, number: int) -> str:
        """The key of a sample: its name in the shard without suffix."""
        start = int(self.key_end[number - 1]) if number else 0
        return bytes(self.key_bytes[start : int(self.key_end[number])]).decode(errors="replace")

    def keys(self) -> list[str]:
        """The keys of all samples."""
        return [self.key(number) for number in range(len(self))]

    @property
    def labelled(self) -> bool:
        """Whether every sample has a label."""
        return len(self) > 0 and int(self.label.min()) > NO_LABEL

    @cached_property
    def occurring(self) -> NDArray[np.int64]:
        """The class numbers that samples have, ascending; any numbers from 0, with any gaps."""
        found: NDArray[np.int64] = np.unique(self.label[self.label != NO_LABEL])
        return found

    @property
    def class_count(self) -> int:
        """How many classes occur."""
        return len(self.occurring)

    def class_name(self, label: int) -> str:
        """The name of a class, or its number where names are not known."""
        return self.classes[label] if 0 <= label < len(self.classes) else str(label)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over everything but the place of the shards and their checksums, which an index may lack: equal
        digests are equal data in equal order."""
        digest = hashlib.sha256()
        for shard in self.shards:
            digest.update(f"{Path(shard.path).name}\0{shard.bytes}\0{shard.samples}\0".encode())
        digest.update("\0".join(self.classes).encode())
        for column in (self.shard, self.offset, self.length, self.label, self.key_bytes, self.key_end):
            digest.update(np.ascontiguousarray(column).data)
        return digest.hexdigest()

    @cached_property
    def content_digest(self) -> str:
        """`digest` and the images' checksums, for what is kept of their content: images of other colours may have the
        same lengths. The checksums of the shards count too, where they are known."""
        digest = hashlib.sha256(self.digest.encode() + np.ascontiguousarray(self.crc).tobytes())
        for shard in self.shards:
            digest.update(f"\0{shard.sha256}".encode())
        return digest.hexdigest()

    def shared_with(self, other: Index) -> int | None:
        """How many samples have the same bytes as one of `other`, going by length and checksum; None where either index
        lacks checksums that tell."""
        if not (self._tells_images_apart() and other._tells_images_apart()):
            return None
        return int(np.isin(self._contents(), other._contents()).sum())

    def outlines(self) -> NDArray[np.uint64]:
        """A number for each sample, the same for equal bytes: the length, with the checksum where that tells."""
        return self._contents() if self._tells_images_apart() else self.length.astype(np.uint64)

    def _tells_images_apart(self) -> bool:
        return bool(self.crc.all()) and all(shard.checksum != "crc32" for shard in self.shards)

    def _contents(self) -> NDArray[np.uint64]:
        contents: NDArray[np.uint64] = (self.length.astype(np.uint64) << np.uint64(32)) | self.crc
        return contents

    def subset(self, numbers: NDArray[np.int64]) -> Index:
        """The index of some samples, in the order given; shards stay as they are."""
        pieces = [
            self._keys(numbers[start : start + _KEYS_AT_A_TIME]) for start in range(0, len(numbers), _KEYS_AT_A_TIME)
        ]
        lengths = np.concatenate([np.empty(0, np.int64), *(piece[1] for piece in pieces)])
        return Index(
            shards=self.shards,
            shard=self.shard[numbers],
            offset=self.offset[numbers],
            length=self.length[numbers],
            label=self.label[numbers],
            crc=self.crc[numbers],
            key_bytes=np.concatenate([np.empty(0, np.uint8), *(piece[0] for piece in pieces)]),
            key_end=np.cumsum(lengths, dtype=np.int64),
            classes=self.classes,
            cache=self.cache,
            made=self.made,
        )

    def with_shards(self, wanted: Sequence[int]) -> Index:
        """The index of some of the shards, given by number, in the order given."""
        renumbered = np.full(len(self.shards), NO_LABEL, np.int32)
        renumbered[list(wanted)] = np.arange(len(wanted), dtype=np.int32)
        starts = np.searchsorted(self.shard, np.arange(len(self.shards) + 1))
        ranges = [np.arange(starts[number], starts[number + 1], dtype=np.int64) for number in wanted]
        part = self.subset(np.concatenate(ranges) if ranges else np.empty(0, np.int64))
        shards = tuple(self.shards[number] for number in wanted)
        return replace(part, shards=shards, shard=renumbered[part.shard])

    def _keys(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """The keys of some samples, one behind the other, and the length of each."""
        starts = np.where(numbers == 0, 0, self.key_end[numbers - 1])
        lengths = self.key_end[numbers] - starts
        ends = np.cumsum(lengths)
        places = np.arange(lengths.sum()) + np.repeat(starts - (ends - lengths), lengths)
        return self.key_bytes[places], lengths

    def save(self, path: Path) -> None:
        """Write the index to `path`, which ends in `.index.json`, beside the shards it describes."""
        folder = path.parent.resolve()
        for shard in self.shards:
            if not is_remote(shard.path) and Path(shard.path).parent.resolve() != folder:
                raise DataError(f"{path}: an index lies beside its shards, but {shard.path} is elsewhere")
        columns = save({name: np.ascontiguousarray(getattr(self, name)) for name in COLUMNS})
        content = {
            "format": 1,
            "samples": len(self),
            "labelled": self.labelled,
            **({"checksum": kind} if (kind := self._checksum_kind()) != "crc32" else {}),
            "columns": {"file": columns_path(path).name, "sha256": hashlib.sha256(columns).hexdigest()},
            "classes": list(self.classes),
            "shards": [
                {
                    "name": Path(shard.path).name,
                    "bytes": shard.bytes,
                    "samples": shard.samples,
                    "sha256": shard.sha256,
                    "without_image": shard.without_image,
                    **({"left_out": dict(shard.left_out)} if shard.left_out else {}),
                }
                for shard in self.shards
            ],
        }
        if made := self._made():
            content["made"] = made
        text = (json.dumps(content, indent=1) + "\n").encode()
        parse_index(text, path)  # what could not be read again is not written
        write_atomic(columns_path(path), columns)
        write_atomic(path, text)

    def _checksum_kind(self) -> ChecksumKind:
        kinds = {shard.checksum for shard in self.shards} if self.crc.any() else set()
        assert len(kinds) <= 1, "shards that are indexed together have checksums of one kind"
        return kinds.pop() if kinds else "crc32"

    def _made(self) -> dict[str, Any]:
        which = self.shards[0].members if self.shards else BY_SUFFIX
        return {name: value for name, value in self.made.items() if name not in RECORDED} | which.stored()

    @staticmethod
    def load(path: Path, folder: str = "") -> Index:
        """Read an index; DataError where either file is missing, damaged, or does not belong to the other.

        Args:
            folder: Where the shards lie, if not beside `path`: the address that their names are put behind.
        """
        stored = read_json(path)
        columns_file = columns_path(path)
        if not columns_file.is_file():
            raise DataError(f"{columns_file} is missing: it belongs to {path.name}; run `leoclr index` again")
        if sha256_file(columns_file) != stored.columns.sha256:
            raise DataError(f"{columns_file} does not belong to {path.name}; run `leoclr index` again")
        columns = map_columns(columns_file)
        which = Members.of(stored.made)
        shards = tuple(
            Shard(
                f"{folder or path.parent}/{entry.name}",
                entry.bytes,
                entry.samples,
                entry.sha256,
                entry.without_image,
                stored.checksum,
                entry.left_out,
                which,
            )
            for entry in stored.shards
        )
        index = Index(shards=shards, classes=tuple(stored.classes), made=stored.made, **columns)
        if stored.samples != len(index) or not index._consistent():
            raise DataError(f"{path}: the index contradicts itself; run `leoclr index` again")
        return index

    def _consistent(self) -> bool:
        """Whether columns and shards agree. An index file is untrusted: whatever it says, reads stay inside the
        shards, and labels inside the classes."""
        count = len(self)
        if any(len(column) != count for column in (self.shard, self.length, self.label, self.crc, self.key_end)):
            return False
        if sum(shard.samples for shard in self.shards) != count:
            return False
        if not count:
            return not len(self.key_bytes)
        samples = np.repeat(np.arange(len(self.shards)), [shard.samples for shard in self.shards])
        if not np.array_equal(self.shard, samples):
            return False
        sizes = np.array([shard.bytes for shard in self.shards], np.int64)
        return bool(
            self.offset.min() >= 0
            and self.length.min() >= 0
            and (self.offset <= sizes[self.shard] - self.length).all()
            and self.label.min() >= NO_LABEL
            and (not self.classes or self.label.max() < len(self.classes))
            and (np.diff(self.key_end, prepend=0) >= 0).all()
            and self.key_end[-1] == len(self.key_bytes)
            and not _CONTROL[self.key_bytes].any()  # a key is printed
        )
