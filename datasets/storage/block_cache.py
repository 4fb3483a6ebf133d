"""A bounded disk cache for blocks of remote files, shared by all processes of a machine.

A block is 4 MiB of one version of one file: its name is the SHA-256 of the full address, the file's identity (ETag)
and the block's number, so equal base names in `train/` and `val/`, or a replaced file, never meet. A block is written
under another name and renamed, so it is there as a whole or not at all. While one process fetches a block the others
wait for it. The blocks unused for longest give way before the limit is reached.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from leoclr.datasets.errors import DataError
from leoclr.datasets.files import cache_root
from leoclr.datasets.storage.opening import Storage

BLOCK_BYTES = 1 << 22
DEFAULT_BYTES = 20 << 30
FETCHES = 8  # at a time
_LOCK_DIGITS = 3
_TOUCH_SECONDS = 60.0  # a block that was used since is not marked as used again
_ABANDONED_SECONDS = 3600.0
_SCANS = 1024  # the folder is measured whenever a process has added this part of the limit


class BlockCache:
    """Blocks in a folder.

    Args:
        folder: Made where it is missing; by default `leoclr/blocks` in the user's cache folder.
        limit: Bytes that the blocks may take in all.
    """

    def __init__(self, folder: Path | None = None, limit: int = DEFAULT_BYTES) -> None:
        self._folder = folder
        self.limit = limit
        self._unmeasured = limit

    @property
    def folder(self) -> Path:
        """Where the blocks lie. Looked up when it is needed: local data needs no home folder."""
        self._folder = self._folder or cache_root() / "blocks"
        return self._folder

    def prepare(self) -> None:
        """Make the folder; DataError where it cannot be written, or the limit holds less than sixteen blocks."""
        if self.limit < 16 * BLOCK_BYTES:
            raise DataError(f"a cache of {self.limit:,} bytes is too small; it takes at least {16 * BLOCK_BYTES:,}")
        try:
            for name in ("locks", *(f"{number:02x}" for number in range(256))):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
            probe = self.folder / f".{uuid.uuid4().hex}.tmp"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise DataError(
                f"{self.folder}: remote shards are cached here, but it cannot be written ({error.strerror}); "
                "name another folder with --set run.cache=FOLDER"
            ) from None

    def holds(self, name: str, size: int) -> bool:
        """Whether a block is here."""
        try:
            return self._path(name).stat().st_size == size
        except OSError:
            return False

    def read(self, name: str, size: int, start: int, length: int) -> bytes | None:
        """Part of a block of `size` bytes, or None where the block is not here."""
        try:
            descriptor = os.open(self._path(name), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            status = os.fstat(descriptor)
            if status.st_size != size:
                return None
            if time.time() - status.st_mtime > _TOUCH_SECONDS:
                with suppress(OSError):
                    os.utime(descriptor)
            return os.pread(descriptor, length, start)
        finally:
            os.close(descriptor)

    def fill(self, name: str, size: int, fetch: Callable[[], bytes]) -> bytes | None:
        """Make sure that a block is here. Returns it where this call fetched it, None where it was here already."""
        with self._lock(name):
            if self.holds(name, size):
                return None
            data = fetch()
            self._store(name, data)
            return data

    def drop(self, name: str) -> None:
        """Forget a block."""
        self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self.folder / name[:2] / name

    def _store(self, name: str, data: bytes) -> None:
        """Write a block. On a disk that stays full after eviction the data are used this once and not kept."""
        self._unmeasured += len(data)
        with suppress(OSError):
            if self._unmeasured > self.limit // _SCANS:
                self._make_room(self.limit)
            try:
                self._write(name, data)
            except OSError:
                self._make_room(self.limit // 2)
                self._write(name, data)

    def _write(self, name: str, data: bytes) -> None:
        path = self._path(name)
        temporary = path.with_name(f".{name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())  # the name must not survive a power cut that the content does not
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise

    def _make_room(self, limit: int) -> None:
        """Remove the blocks unused for longest where less than a sixteenth of `limit` is free. That part is what other
        processes may add before they measure; one process at a time removes."""
        with self._lock("evicting", wait=False) as locked:
            if not locked:
                return
            blocks = sorted(self._blocks())
            total = sum(size for _, size, _ in blocks)
            if total > limit - limit // 16:
                for _, size, path in blocks:
                    if total <= limit - limit // 8:
                        break
                    path.unlink(missing_ok=True)
                    total -= size
            self._unmeasured = 0

    def _blocks(self) -> Iterator[tuple[float, int, Path]]:
        """When each block was last used, its size and path. Files that a killed process left half are removed."""
        now = time.time()
        for folder in os.scandir(self.folder):
            if len(folder.name) != 2 or not folder.is_dir():
                continue
            for entry in os.scandir(folder):
                with suppress(FileNotFoundError):  # removed meanwhile
                    status = entry.stat()
                    if entry.name.startswith(".") and now - status.st_mtime > _ABANDONED_SECONDS:
                        os.unlink(entry)
                    else:
                        yield status.st_mtime, status.st_size, Path(entry.path)

    @contextmanager
    def _lock(self, name: str, wait: bool = True) -> Iterator[bool]:
        """Hold one of 4096 locks among the threads and processes of this machine; yields whether it is held. A lock
        ends with its process. Where the file system has no locks a block may be fetched twice, which does no harm."""
        path = self.folder / "locks" / name[:_LOCK_DIGITS]
        descriptor, held = -1, True
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            held = False
        except OSError:
            pass  # goes without
        try:
            yield held
        finally:
            if descriptor >= 0:
                os.close(descriptor)


class CachedStorage:
    """A remote file of known size and identity, read through a cache."""

    def __init__(self, storage: Storage, cache: BlockCache, address: str, identity: str, size: int) -> None:
        self._storage = storage
        self._cache = cache
        self._version = f"{address}\0{identity}\0{BLOCK_BYTES}"
        self._identity = identity
        self._size = size

    def size(self) -> int:
        return self._size

    def identity(self) -> str:
        return self._identity

    def read(self, offset: int, length: int) -> bytes:
        parts = []
        position, end = offset, offset + length
        while position < end:
            block = position // BLOCK_BYTES
            stop = min(end, (block + 1) * BLOCK_BYTES)
            parts.append(self._part(block, position - block * BLOCK_BYTES, stop - position))
            position = stop
        return b"".join(parts)

    def missing(self, offset: int, length: int) -> list[int]:
        """The blocks of a range that are not in the cache."""
        blocks = range(offset // BLOCK_BYTES, -(-(offset + length) // BLOCK_BYTES))
        return [block for block in blocks if not self._cache.holds(self._name(block), self._block_size(block))]

    def fetch(self, block: int) -> bytes | None:
        """Bring a block into the cache. Returns it where it was not there."""
        start, size = block * BLOCK_BYTES, self._block_size(block)
        return self._cache.fill(self._name(block), size, lambda: self._storage.read(start, size))

    def bring(self, offset: int, length: int) -> None:
        """Fetch what is missing of a range, several blocks at a time."""
        with ThreadPoolExecutor(FETCHES) as threads:
            for _ in threads.map(self.fetch, self.missing(offset, length)):
                pass

    def drop(self, offset: int, length: int) -> None:
        """Forget the blocks of a range, whose bytes were found to be wrong."""
        for block in range(offset // BLOCK_BYTES, -(-(offset + length) // BLOCK_BYTES)):
            self._cache.drop(self._name(block))

    def close(self) -> None:
        self._storage.close()

    def _part(self, block: int, start: int, length: int) -> bytes:
        name, size = self._name(block), self._block_size(block)
        part = self._cache.read(name, size, start, length)
        if part is None and (whole := self.fetch(block)) is not None:
            return whole[start : start + length]
        if part is None:  # fetched by another process while this one waited, unless the disk is too full to keep it
            part = self._cache.read(name, size, start, length)
        return part if part is not None else self._storage.read(block * BLOCK_BYTES + start, length)

    def _block_size(self, block: int) -> int:
        return min(BLOCK_BYTES, self._size - block * BLOCK_BYTES)

    def _name(self, block: int) -> str:
        return hashlib.sha256(f"{self._version}\0{block}".encode()).hexdigest()
