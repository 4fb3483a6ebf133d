"""Atomic writes: a reader sees the old content or the new, never a mixture."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import stat
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from itertools import islice
from pathlib import Path

from leoclr.datasets.errors import DataError, RunError

CHUNK_BYTES = 1 << 20
_MOST_NAMES = 10_000  # of a folder that are looked through for one that was meant
LINE_END = re.compile("\r\n|\r|\n")  # and no other character that Unicode has for one, which names may hold


def ignore(count: int) -> None:
    """The `advance` of a caller who shows no progress."""


def did_you_mean(path: Path) -> str:
    """`; did you mean OTHER?` for a path that is not there, where another of nearly that name is; else nothing."""
    gone = next((part for part in reversed((path, *path.parents)) if not os.path.exists(part)), path)
    try:
        with os.scandir(gone.parent) as entries:
            names = [entry.name for entry in islice(entries, _MOST_NAMES)]
    except OSError:
        return ""
    others = (gone.with_name(name) / path.relative_to(gone) for name in get_close_matches(gone.name, names, cutoff=0.6))
    return next((f"; did you mean {other}?" for other in others if other.exists()), "")


def cache_root() -> Path:
    """Where this system keeps what can be made or fetched again: `leoclr` in the user's cache folder.

    Raises:
        DataError: The user has no home folder, and XDG_CACHE_HOME names no other.
    """
    try:
        if sys.platform == "darwin":
            return Path.home() / "Library" / "Caches" / "leoclr"
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "leoclr"
    except RuntimeError:
        raise DataError("this user has no home folder; set XDG_CACHE_HOME to a folder for caches") from None


def fsync_folder(folder: Path) -> None:
    """Make a rename inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def new_file_mode(folder: Path) -> int:
    """The mode that `open` gives a new file in `folder`: as the umask, or the folder's default ACL, says.

    Libraries that write through private temporary files (safetensors) leave 0600, which no colleague can read. A probe
    file tells the mode: asking for the umask would change it for all threads of the process.
    """
    probe = folder / f".{uuid.uuid4().hex}.tmp"
    descriptor = os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        return stat.S_IMODE(os.fstat(descriptor).st_mode)
    finally:
        os.close(descriptor)
        probe.unlink()


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; what lies there becomes `path` when the block ends well.

    When the block raises, also by Ctrl-C, the temporary file is removed and `path` stays as it was. The file gets the
    mode of any new file there, whatever wrote it.

    Raises:
        IsADirectoryError: `path` is a folder.
        OSError: `path` is a device, a pipe or a socket, which a rename would remove from the system.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder; name a file in it", str(path))
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "is a device, pipe or socket; name a file", str(path))
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        temporary.chmod(new_file_mode(path.parent))
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):  # a folder that cannot be written at all
            temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


@contextmanager
def refused_in_a_line(path: Path) -> Iterator[None]:
    """The block writes `path`, a file or folder: what the system refuses becomes a RunError that names it."""
    try:
        yield
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror or error})") from error


@contextmanager
def writable(path: Path) -> Iterator[Path]:
    """`atomic_path` for a file that a user asked for; its folder is made where there is none.

    Raises:
        RunError: It cannot be written.
    """
    with refused_in_a_line(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            yield temporary


@contextmanager
def filled_folder(folder: Path, stale: Sequence[str] = ()) -> Iterator[Path]:
    """Yield a hidden folder inside `folder`, made where there is none; when the block ends well its files move into
    `folder` one by one, each replacing the file of its name. Other files there stay: it may be a clone of a repository.

    When the block raises, `folder` is as it was.

    Args:
        stale: Names of files in `folder` that go when the block ends well, unless they are among the new ones.

    Raises:
        OSError: `folder` is a file, or cannot be written to.
    """
    there = folder.exists()
    folder.mkdir(exist_ok=True)
    temporary = folder / f".{uuid.uuid4().hex[:8]}.tmp"
    try:
        temporary.mkdir()
        yield temporary
        mode = new_file_mode(folder)
        for name in stale:
            (folder / name).unlink(missing_ok=True)
        for file in sorted(temporary.iterdir()):
            file.chmod(mode)
            with file.open("rb+") as written:
                os.fsync(written.fileno())
            os.replace(file, folder / file.name)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        if not there:
            folder.rmdir()
        raise
    temporary.rmdir()
    fsync_folder(folder)


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path` as a whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def sha256_file(path: Path, advance: Callable[[int], None] = ignore) -> str:
    """SHA-256 of a file in hexadecimal; `advance` is called with the number of bytes read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            advance(len(chunk))
    return digest.hexdigest()
