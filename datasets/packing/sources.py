"""Where images to be packed come from: a folder, a tar or zip archive, or a data set of torchvision.

All of them look the same from outside: the names of the files that matter (images, and `.json` and `.txt` that may
belong to an image), and the bytes of any one of them, in any order and from several threads at once. What the names
mean, such as splits and classes, is the business of `leoclr.datasets.packing.arrangement`.

An archive is untrusted. Links, devices, sparse members, absolute names and `..` are refused, a member is read only
when it is at most as large as an image may be, and nothing is ever extracted under a name of the archive's choosing.
"""

from __future__ import annotations

import gzip
import lzma
import os
import stat
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from leoclr.datasets.errors import BadImage, DataError
from leoclr.datasets.files import ignore
from leoclr.datasets.images.decode import IMAGE_SUFFIXES, MAX_BYTES
from leoclr.datasets.packing.torchvision_source import TORCHVISION_NAMES, TorchvisionSource
from leoclr.datasets.shards.tar import members

SIDECAR_SUFFIXES = ("json", "txt")
ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".zip")
_SYSTEM_FILES = ("Thumbs.db", "desktop.ini")
_CHUNK = 1 << 20


class Source(Protocol):
    """Named files that can be read in any order, by several threads at once."""

    @property
    def name(self) -> str:
        """What the user called it, for messages."""
        ...

    @property
    def paths(self) -> Sequence[str]:
        """Images and possible sidecars, with `/` between folders, relative to the top of the source."""
        ...

    @property
    def other_files(self) -> Counter[str]:
        """How many files were passed over because they are neither, by suffix; hidden ones do not count."""
        ...

    @property
    def repeated(self) -> Sequence[str]:
        """Folders that were passed over because links lead to them a second time."""
        ...

    def read(self, path: str) -> bytes:
        """The content of one of `paths`; BadImage where it cannot be read or is larger than an image may be."""
        ...


@contextmanager
def open_source(
    name: str,
    scratch: Path,
    root: Path | None = None,
    download: bool = False,
    advance: Callable[[int], None] = ignore,
) -> Iterator[Source]:
    """Open a source until the block ends.

    Args:
        name: A folder, an archive that ends in one of `ARCHIVE_SUFFIXES`, or the name of a torchvision data set.
        scratch: Folder for what a compressed tar unpacks to, which can only be read front to back. The file there
            has no name and vanishes with the process, however that ends.
        root: Where torchvision keeps its data sets.
        download: Whether torchvision may fetch the data set.
        advance: Called with the number of bytes of an archive that were gone through.
    """
    path = Path(name)
    if path.is_dir():
        yield FolderSource(path)
    elif path.is_file() and path.name.lower().endswith(".zip"):
        with _open_zip(path) as archive:
            yield ZipSource(path, archive)
    elif path.is_file() and path.name.lower().endswith((".tar.gz", ".tgz")):
        with tempfile.TemporaryFile(dir=scratch) as spool:
            yield spooled_tar(path, spool, advance)
    elif path.is_file() and path.name.lower().endswith(".tar"):
        with path.open("rb") as file:
            yield plain_tar(path, file, advance)
    elif path.exists():
        raise DataError(f"{path}: neither a folder nor an archive ({', '.join(ARCHIVE_SUFFIXES)})")
    elif name in TORCHVISION_NAMES:
        yield TorchvisionSource(name, root or Path("data"), download)
    else:
        known = ", ".join(TORCHVISION_NAMES)
        raise DataError(f"{name}: no such folder or archive, nor a torchvision data set ({known})")


def suffix_of(path: str) -> str:
    """The suffix in lower case without its dot; empty where there is none."""
    stem, _, suffix = path.rpartition("/")[2].rpartition(".")
    return suffix.lower() if stem else ""


def is_image(path: str) -> bool:
    """Whether the name says that this is an image."""
    return suffix_of(path) in IMAGE_SUFFIXES


def is_wanted(path: str) -> bool:
    """Whether a file matters: an image or possible sidecar, not hidden, and not a Mac's resource fork."""
    if suffix_of(path) not in SIDECAR_SUFFIXES and not is_image(path):
        return False
    return not is_hidden(path)


def is_hidden(path: str) -> bool:
    """Whether a name or a folder of it begins with a dot, or is a Mac's."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.split("/"))


def count_other(counter: Counter[str], path: str) -> None:
    """Note a file that is passed over, unless it is hidden, as what systems put beside images is."""
    if path.rpartition("/")[2] not in _SYSTEM_FILES and not is_hidden(path):
        suffix = suffix_of(path)
        counter[f".{suffix}" if suffix else "without suffix"] += 1


class FolderSource:
    """A folder and all below it. Links are followed; a folder that is reached twice is listed once, by the name that
    is no link where there is one beside it."""

    def __init__(self, folder: Path) -> None:
        self.name = str(folder)
        self.other_files: Counter[str] = Counter()
        self.repeated: list[str] = []
        self.paths: list[str] = []
        self._folder = folder
        seen: set[str] = set()
        for parent, folders, files in os.walk(folder, followlinks=True, onerror=_raise_unreadable):
            real, below = os.path.realpath(parent), os.path.relpath(parent, folder)
            if real in seen:
                self.repeated.append(below)
                folders.clear()
                continue
            seen.add(real)
            visible = (name for name in folders if not name.startswith("."))
            folders[:] = sorted(visible, key=lambda name: (os.path.islink(os.path.join(parent, name)), name))
            for name in files:
                path = name if below == "." else f"{below}/{name}"
                if is_wanted(path):
                    self.paths.append(path)
                else:
                    count_other(self.other_files, path)

    def read(self, path: str) -> bytes:
        try:
            with open(self._folder / path, "rb") as file:
                _check_size(os.fstat(file.fileno()).st_size)
                return file.read(MAX_BYTES)
        except OSError as error:
            raise BadImage(f"the file cannot be read ({error.strerror})") from error


class TarSource:
    """Members of a tar, or copies of them in a spool file, read at their offsets."""

    repeated = ()

    def __init__(
        self, name: Path, file: BinaryIO, places: dict[str, tuple[int, int]], other_files: Counter[str]
    ) -> None:
        self.name = str(name)
        self.other_files = other_files
        self.paths = list(places)
        self._descriptor = file.fileno()
        self._places = places

    def read(self, path: str) -> bytes:
        offset, size = self._places[path]
        _check_size(size)
        try:
            data = os.pread(self._descriptor, size, offset)
        except OSError as error:
            raise BadImage(f"the archive cannot be read ({error.strerror})") from error
        if len(data) != size:
            raise BadImage(f"the archive ends within it ({len(data):,} of {size:,} bytes)")
        return data


def plain_tar(path: Path, file: BinaryIO, advance: Callable[[int], None]) -> TarSource:
    """List a tar that is not compressed; its images are read where they lie. DataError where it is damaged, cut, or
    more than one archive in a file: what lies behind such a place would be missing without a word."""
    places: dict[str, tuple[int, int]] = {}
    other_files: Counter[str] = Counter()
    position = 0
    for member in members(file, path):
        name = _checked_name(path, member.name)
        if member.kind == "file" and is_wanted(name):
            places[name] = (member.offset, member.size)
        elif member.kind == "file":
            count_other(other_files, name)
        elif member.kind != "folder":
            raise DataError(
                f"{path}: {member.name!r} is a link or device; an archive must hold plain files and folders only"
            )
        advance(member.offset - position)
        position = member.offset
    return TarSource(path, file, places, other_files)


def spooled_tar(path: Path, spool: BinaryIO, advance: Callable[[int], None]) -> TarSource:
    """Unpack a gzipped tar to `spool`, as one file, and list that."""
    position = 0
    try:
        with path.open("rb") as raw, gzip.GzipFile(fileobj=raw) as stream:
            while chunk := stream.read(_CHUNK):  # to the end: only there does gzip compare the checksum
                spool.write(chunk)
                advance(raw.tell() - position)
                position = raw.tell()
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataError(f"{path}: not such an archive, damaged or truncated ({error})") from error
    spool.flush()
    return plain_tar(path, spool, ignore)


class ZipSource:
    """Members of a zip, read where they lie."""

    repeated = ()

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.name = str(path)
        self.other_files: Counter[str] = Counter()
        self._archive = archive
        self._members: dict[str, zipfile.ZipInfo] = {}
        for member in archive.infolist():
            name = _checked_name(path, member.filename.replace("\\", "/"))
            if member.is_dir():
                continue
            if stat.S_ISLNK(member.external_attr >> 16):
                raise DataError(f"{path}: {name!r} is a link; an archive must hold plain files and folders only")
            if member.flag_bits & 1:
                raise DataError(f"{path}: {name!r} is encrypted; unpack the archive first")
            if is_wanted(name):
                self._members[name] = member
            else:
                count_other(self.other_files, name)
        self.paths = list(self._members)

    def read(self, path: str) -> bytes:
        member = self._members[path]
        _check_size(member.file_size)  # zipfile gives out no more than this, whatever the compressed data hold
        try:
            return self._archive.read(member)
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, OSError) as error:
            raise BadImage(f"the archive's member is damaged ({error})") from error


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise DataError(f"{path}: not a zip archive, or truncated ({error})") from error


def _checked_name(path: Path, name: str) -> str:
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or "\0" in name:
        raise DataError(f"{path}: refused the member name {name!r}; names must stay inside the archive")
    return "/".join(parts)


def _check_size(size: int) -> None:
    if size > MAX_BYTES:
        raise BadImage(f"the file has {size:,} bytes; the limit is {MAX_BYTES:,}")


def _raise_unreadable(error: OSError) -> None:
    raise DataError(f"{error.filename}: the folder cannot be read ({error.strerror})") from error
