"""Tar and zip archives as sources of images.

An archive is untrusted. Links, devices, sparse members, absolute names and `..` are refused, a member is read only
when it is at most as large as an image may be, and nothing is ever extracted under a name of the archive's choosing.
"""

from __future__ import annotations

import gzip
import lzma
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from leoclr.datasets.errors import BadImage, DataError
from leoclr.datasets.files import CHUNK_BYTES, ignore
from leoclr.datasets.images.decode import MAX_BYTES
from leoclr.datasets.images.file_names import is_image
from leoclr.datasets.notes import Notes
from leoclr.datasets.packing.file_kinds import OtherFiles, is_wanted, note_bare_folders
from leoclr.datasets.packing.file_names import is_text, recoded, zip_name
from leoclr.datasets.packing.layouts import Reading
from leoclr.datasets.shards.tar import members

_TWICE = "names that stand twice in the archive, of which the last counts"
_END = b"PK\5\6"  # of a zip; then 18 bytes, the last two of which are the length of a comment
_END_BYTES = 22
_LONGEST_END = _END_BYTES + (1 << 16)
_READ = (
    zipfile.ZIP_STORED,
    zipfile.ZIP_DEFLATED,
    zipfile.ZIP_BZIP2,
    zipfile.ZIP_LZMA,
    getattr(zipfile, "ZIP_ZSTANDARD", zipfile.ZIP_STORED),  # Python 3.14
)
_UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    NotImplementedError,
    OSError,
    RuntimeError,
    ValueError,
)


class PlacesSource:
    """Files that lie one behind the other in an open file, read at their offsets."""

    reading: Reading | None = None

    repeated = ()

    def __init__(self, name: str, file: BinaryIO, archives: Sequence[Path]) -> None:
        """`archives` are what the files in `file` come from."""
        self.name = name
        self.modified = max((path.stat().st_mtime_ns for path in archives), default=0)
        self.other_files = OtherFiles()
        self.notes = Notes()
        self._descriptor = file.fileno()
        self._places: dict[str, tuple[int, int]] = {}

    @property
    def paths(self) -> list[str]:
        return list(self._places)

    def add(self, path: str, offset: int, size: int) -> None:
        """List a file."""
        if path in self._places:
            self.notes.add(_TWICE, path)
        self._places[path] = (offset, size)

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

    def size(self, path: str) -> int | None:
        return self._places[path][1]

    def stamp(self, path: str) -> tuple[int, int] | None:
        return self._places[path][1], self.modified


def plain_tar(path: Path, file: BinaryIO, advance: Callable[[int], None], encoding: str | None = None) -> PlacesSource:
    """List a tar that is not compressed; its images are read where they lie. DataError where it is damaged, cut, or
    more than one archive in a file: what lies behind such a place would be missing without a word."""
    source = PlacesSource(str(path), file, [path])
    position, folders = 0, set[str]()
    for member in members(file, path):
        name = _checked_name(path, recoded(member.name, encoding))
        if member.kind == "file" and is_wanted(name):
            source.add(name, member.offset, member.size)
        elif member.kind == "file":
            source.other_files.note(name, source.notes)
            folders.add(name.rpartition("/")[0])
        elif member.kind == "folder":
            folders.add(name)
        else:
            raise DataError(
                f"{path}: {member.name!r} is a link or device; an archive must hold plain files and folders only"
            )
        advance(member.offset - position)
        position = member.offset
    note_bare_folders(source.notes, folders, filter(is_image, source.paths))
    return source


def spooled_tar(
    path: Path, spool: BinaryIO, advance: Callable[[int], None], encoding: str | None = None
) -> PlacesSource:
    """Unpack a gzipped tar to `spool`, as one file, and list that."""
    position = 0
    try:
        with path.open("rb") as raw, gzip.GzipFile(fileobj=raw) as stream:
            while chunk := stream.read(CHUNK_BYTES):  # to the end: only there does gzip compare the checksum
                spool.write(chunk)
                advance(raw.tell() - position)
                position = raw.tell()
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataError(f"{path}: not such an archive, damaged or truncated ({error})") from error
    spool.flush()
    return plain_tar(path, spool, ignore, encoding)


class ZipSource:
    """Members of a zip, read where they lie."""

    reading: Reading | None = None

    repeated = ()

    def __init__(self, path: Path, archive: zipfile.ZipFile, encoding: str | None = None) -> None:
        self.name = str(path)
        self.other_files = OtherFiles()
        self.notes = Notes()
        self._archive = archive
        self._members: dict[str, zipfile.ZipInfo] = {}
        folders = set[str]()
        for member in archive.infolist():
            stored = zip_name(member, encoding).replace("\\", "/")
            name = _checked_name(path, stored)
            if stored.endswith("/"):
                folders.add(name)
                continue
            if stat.S_ISLNK(member.external_attr >> 16):
                raise DataError(f"{path}: {name!r} is a link; an archive must hold plain files and folders only")
            if member.flag_bits & 1:
                raise DataError(f"{path}: {name!r} is encrypted; unpack the archive first")
            if member.compress_type not in _READ:
                raise DataError(
                    f"{path}: {name!r} is compressed by a method that is not read ({member.compress_type}; Windows "
                    "writes 9, deflate64, for large files); unpack the archive first"
                )
            if not is_wanted(name):
                self.other_files.note(name, self.notes)
                folders.add(name.rpartition("/")[0])
                continue
            if not is_text(name):
                raise DataError(
                    f"{path}: the name {name!a} is not UTF-8, and the archive does not say what it is; give "
                    "--encoding, such as gbk, shift_jis, cp437 or cp1252"
                )
            if name in self._members:
                self.notes.add(_TWICE, name)
            self._members[name] = member
        self.paths = list(self._members)
        note_bare_folders(self.notes, folders, filter(is_image, self.paths))

    def read(self, path: str) -> bytes:
        member = self._members[path]
        _check_size(member.file_size)  # zipfile gives out no more than this, whatever the compressed data hold
        try:
            return self._archive.read(member)
        except _UNREADABLE as error:
            raise BadImage(f"the archive's member is damaged ({error})") from error

    def size(self, path: str) -> int | None:
        return self._members[path].file_size

    def stamp(self, path: str) -> tuple[int, int] | None:
        return self._members[path].file_size, self._members[path].CRC


def open_zip(path: Path) -> zipfile.ZipFile:
    """DataError where it is no zip archive, a damaged one, or more than one in a file: the list at the end is that of
    one of them, and the others would be missing without a word."""
    try:
        archive = zipfile.ZipFile(path)
    except _UNREADABLE as error:
        raise DataError(f"{path}: not a zip archive, damaged or truncated ({error})") from error
    if _is_joined(path, min((member.header_offset for member in archive.infolist()), default=archive.start_dir)):
        archive.close()
        raise DataError(f"{path}: several zip archives in one file, of which only one could be read; separate them")
    return archive


def _is_joined(path: Path, first: int) -> bool:
    """Whether another archive ends before the entry at `first` or begins behind the end. A program that unpacks itself,
    an entry that was deleted, and filling do not count."""
    with path.open("rb") as file:
        begin = max(0, first - _LONGEST_END)
        file.seek(begin)
        before = file.read(max(0, first - begin))  # in a damaged archive `first` may be anything
        file.seek(max(0, file.seek(0, os.SEEK_END) - _LONGEST_END))
        last = file.read()
    return _behind_end(before) == b"" or (_behind_end(last) or b"").startswith((b"PK\3\4", _END))


def _behind_end(data: bytes) -> bytes | None:
    """What follows the last end of an archive in `data`, without zeros at either side; None where there is no end."""
    end = data.rfind(_END)
    comment = end + _END_BYTES
    if end < 0 or comment > len(data):
        return None
    (length,) = struct.unpack("<H", data[comment - 2 : comment])
    return data[comment + length :].strip(b"\0") if comment + length <= len(data) else None


def _checked_name(path: Path, name: str) -> str:
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or "\0" in name:
        raise DataError(f"{path}: refused the member name {name!r}; names must stay inside the archive")
    return "/".join(parts)


def _check_size(size: int) -> None:
    if size > MAX_BYTES:
        raise BadImage(f"the file has {size:,} bytes; the limit is {MAX_BYTES:,}")
