"""Open local files, web servers and buckets behind one interface."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

from leoclr.datasets.errors import DataError, Missing
from leoclr.datasets.storage.addresses import is_remote, scheme_of
from leoclr.datasets.storage.retries import Patience

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_BUFFER = 1 << 16


class Storage(Protocol):
    """One shard or index, wherever it lies. May be read by several threads at once."""

    def size(self) -> int:
        """Bytes in all; Missing where there is nothing."""
        ...

    def identity(self) -> str:
        """Differs when the content was replaced: the ETag of a remote file, size and time of a local one."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """Exactly these bytes. DataError where they cannot be had, or are no longer those of `identity`."""
        ...

    def close(self) -> None:
        """Let go of what is open. The storage is done with."""
        ...


def open_storage(address: str, identity: str = "", patience: Patience | None = None) -> Storage:
    """The storage behind a path or an address. A server is not asked for anything yet.

    Args:
        identity: What the content must still be; "" takes what is found first.
        patience: How long a server is waited for.
    """
    if not is_remote(address):
        return LocalFile(Path(address))
    if scheme_of(address) == "s3":
        from leoclr.datasets.storage.s3 import open_s3

        return open_s3(address, identity, patience)
    from leoclr.datasets.storage.http import HttpStorage

    return HttpStorage(address, identity, patience)


class LocalFile:
    """A file, read at any place without a position that threads would share. Raises DataError where it cannot be
    opened."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except OSError as error:
            kind = Missing if isinstance(error, FileNotFoundError) else DataError
            raise kind(f"{path}: cannot be read ({error.strerror})") from None

    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def identity(self) -> str:
        status = os.fstat(self._descriptor)
        return f"{status.st_mtime_ns}-{status.st_size}"

    def read(self, offset: int, length: int) -> bytes:
        try:
            data = os.pread(self._descriptor, length, offset)
        except OSError as error:
            raise DataError(f"{self._path}: cannot be read ({error.strerror})") from None
        if len(data) != length:
            raise DataError(f"{self._path}: ended at byte {offset + len(data):,}; it has changed")
        return data

    def close(self) -> None:
        os.close(self._descriptor)


def as_file(storage: Storage) -> BinaryIO:
    """A storage as a file to seek in, for code that reads files."""
    return io.BufferedReader(_StorageFile(storage), _BUFFER)


class _StorageFile(io.RawIOBase):
    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._size = storage.size()
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        return self._position

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        data = self._storage.read(self._position, min(len(view), max(0, self._size - self._position)))
        view[: len(data)] = data
        self._position += len(data)
        return len(data)
