"""Write tar shards, each with its SHA-256, and their index."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from array import array
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from leoclr.datasets.images.file_names import IMAGE_SUFFIXES
from leoclr.datasets.packing.duplicates import content_digest
from leoclr.datasets.shards.checksums import checksum
from leoclr.datasets.shards.index import SUFFIX, Index
from leoclr.datasets.shards.scan import build_index
from leoclr.datasets.shards.tar import BLOCK, padded


class ShardFiles:
    """The shards of one folder while they are being written. A context: the last shard is closed at its end."""

    def __init__(
        self,
        folder: Path,
        name: str,
        shard_bytes: int,
        finished: Callable[[Path, str], None] = lambda path, sha256: None,
    ) -> None:
        """`finished` is called with each shard that is complete on the disk, and its SHA-256."""
        self._finished = finished
        self.digests: dict[Path, str] = {}
        self._checksums = array("I")
        self._contents = array("Q")
        self._folder = folder
        self._name = name
        self._shard_bytes = shard_bytes
        self._open: _OpenShard | None = None

    def __enter__(self) -> ShardFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._open is not None and kind is not None:
            self._open.abandon()
        elif self._open is not None:
            self._finish(self._open)

    def take(self, path: Path, sha256: str) -> None:
        """Take over a shard that is finished already, the next by its number."""
        index = build_index([path], checksum=False)
        with path.open("rb") as file:
            for offset, length in zip(index.offset.tolist(), index.length.tolist(), strict=True):
                file.seek(offset)
                self._count(file.read(length))
        self.digests[path] = sha256

    def write(self, key: str, members: Mapping[str, bytes]) -> None:
        """Add a sample: the bytes of its members by suffix."""
        size = sum(BLOCK + padded(len(data)) for data in members.values())
        if self._open is not None and self._open.size + size > self._shard_bytes:
            self._finish(self._open)
        if self._open is None:
            self._open = _OpenShard(self._folder / f"{self._name}-{len(self.digests):06d}.tar")
        self._open.write(key, members)
        for suffix, data in members.items():
            if suffix in IMAGE_SUFFIXES:
                self._count(data)

    @property
    def contents(self) -> NDArray[np.uint64]:
        """A digest of the bytes of each image, shape `(n, 2)`."""
        return np.array(self._contents, np.uint64).reshape(-1, 2)

    def index(self, classes: tuple[str, ...], made: Mapping[str, Any]) -> Index:
        """Read the finished shards' headers back, and save the index beside them; it records `made`."""
        index = build_index(list(self.digests), classes=classes, checksum=False)
        shards = tuple(replace(shard, sha256=self.digests[Path(shard.path)]) for shard in index.shards)
        index = replace(index, shards=shards, crc=np.array(self._checksums, np.uint32), made=made)
        index.save(self._folder / f"{self._name}{SUFFIX}")
        return index

    def _finish(self, shard: _OpenShard) -> None:
        self.digests[shard.path] = shard.finish()
        self._open = None
        self._finished(shard.path, self.digests[shard.path])

    def _count(self, image: bytes) -> None:
        self._checksums.append(checksum(image))
        self._contents.frombytes(content_digest(image))


class _OpenShard:
    """One shard while it is being written; its SHA-256 is computed on the way."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("wb")
        self._digest = hashlib.sha256()
        # As webdataset writes it, whose import takes seconds and half a gigabyte.
        seen: Any = _Tee(self._file, self._digest.update)  # all that a stream of a tar needs of a file
        self._tar = tarfile.open(fileobj=seen, mode="w|", format=tarfile.PAX_FORMAT)

    @property
    def size(self) -> int:
        """Bytes that the samples take so far."""
        return int(self._tar.offset)

    def write(self, key: str, members: Mapping[str, bytes]) -> None:
        for suffix in sorted(members):
            member = tarfile.TarInfo(f"{key}.{suffix}")
            member.size, member.mode, member.mtime = len(members[suffix]), 0o644, 0
            member.uname = member.gname = "leoclr"
            self._tar.addfile(member, io.BytesIO(members[suffix]))
        self._tar.getmembers().clear()  # or a shard of tiny images would take as much memory again

    def finish(self) -> str:
        """Close the shard; its SHA-256 in hexadecimal."""
        try:
            self._tar.close()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        except OSError:
            self.abandon()
            raise
        return self._digest.hexdigest()

    def abandon(self) -> None:
        """Let go of the file without caring for what is in it."""
        for close in (self._tar.close, self._file.close):
            with suppress(OSError, ValueError):  # a full disk answers once more
                close()


class _Tee:
    """A file to write to, and a function that sees all that is written."""

    def __init__(self, file: BinaryIO, seen: Callable[[bytes], None]) -> None:
        self._file = file
        self._seen = seen

    def write(self, data: bytes) -> int:
        self._seen(data)
        return self._file.write(data)
