"""Writing files so that a reader sees the old content or the new, never half of one."""

from __future__ import annotations

import errno
import hashlib
import os
import sys
import uuid
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

CHUNK_BYTES = 1 << 20


def ignore(count: int) -> None:
    """The `advance` of a caller who shows no progress."""


def cache_root() -> Path:
    """Where this system keeps what can be made or fetched again: `leoclr` in the user's cache folder."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "leoclr"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "leoclr"


def fsync_folder(folder: Path) -> None:
    """Make a rename inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; what lies there becomes `path` when the block ends well.

    When the block raises, also by Ctrl-C, the temporary file is removed and `path` stays as it was.

    Raises:
        IsADirectoryError: `path` is a folder.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder; name a file in it", str(path))
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path` as a whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def crc_of(file: BinaryIO, length: int) -> int:
    """CRC-32 of the next bytes of a file, read in chunks: a member of a shard may be as large as the shard."""
    crc = 0
    while length > 0 and (chunk := file.read(min(length, CHUNK_BYTES))):
        crc = zlib.crc32(chunk, crc)
        length -= len(chunk)
    return crc


def sha256_file(path: Path, advance: Callable[[int], None] = ignore) -> str:
    """SHA-256 of a file in hexadecimal; `advance` is called with the number of bytes read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            advance(len(chunk))
    return digest.hexdigest()
