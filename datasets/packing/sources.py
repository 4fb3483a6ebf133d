"""Sources of images: a folder, a tar or zip archive, Parquet files, or a torchvision data set.

All of them look the same from outside: the names of the files that matter (images, and `.json` and `.txt` that may
belong to an image), and the bytes of any one of them, in any order and from several threads at once. What the names
mean, such as splits and classes, is decided in `leoclr.datasets.packing.arrangement`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from leoclr.datasets.errors import DataError
from leoclr.datasets.files import ignore
from leoclr.datasets.images.file_names import is_image
from leoclr.datasets.notes import Notes
from leoclr.datasets.packing.archives import ZipSource, open_zip, plain_tar, spooled_tar
from leoclr.datasets.packing.file_kinds import OtherFiles, advice, kind_suffix
from leoclr.datasets.packing.file_names import check_encoding
from leoclr.datasets.packing.folder_source import FolderSource
from leoclr.datasets.packing.layouts import Reading
from leoclr.datasets.packing.parquet_source import BY_SCHEMA, PARQUET, Columns, ParquetSource
from leoclr.datasets.packing.torchvision_source import TORCHVISION_NAMES, TorchvisionSource

_BY_NAME = {".tar": "tar", ".tar.gz": "gzip", ".tgz": "gzip", ".zip": "zip", PARQUET: "parquet"}
ARCHIVE_SUFFIXES = tuple(_BY_NAME)
_BEGINNINGS = {b"PK\x03\x04": "zip", b"PK\x05\x06": "zip", b"\x1f\x8b": "gzip", b"PAR1": "parquet"}
_OTHER_ARCHIVES = {
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"Rar!": "RAR",
    b"7z\xbc\xaf": "7-Zip",
}


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
    def other_files(self) -> OtherFiles:
        """Files that were passed over because they are neither."""
        ...

    @property
    def repeated(self) -> Sequence[str]:
        """Folders that were passed over because links lead to them a second time."""
        ...

    @property
    def notes(self) -> Notes:
        """What else was passed over."""
        ...

    @property
    def reading(self) -> Reading | None:
        """Splits and classes, where the source itself says them; None where they are in the names."""
        ...

    def read(self, path: str) -> bytes:
        """The content of one of `paths`; BadImage where it cannot be read or is larger than an image may be."""
        ...

    def size(self, path: str) -> int | None:
        """The length of one of `paths` in bytes; None where it is not known without reading."""
        ...

    def stamp(self, path: str) -> tuple[int, int] | None:
        """Length and time of modification in ns, by which a changed file is known; None where there is none."""
        ...


@contextmanager
def open_source(
    name: str,
    scratch: Path,
    root: Path | None = None,
    download: bool = False,
    advance: Callable[[int], None] = ignore,
    encoding: str | None = None,
    columns: Columns = BY_SCHEMA,
) -> Iterator[Source]:
    """Open a source until the block ends.

    Args:
        name: A folder of images or of Parquet files, a file that ends in one of `ARCHIVE_SUFFIXES`, or the name of a
            torchvision data set.
        scratch: Folder for what a compressed tar or Parquet unpacks to, which can only be read front to back. The file
            there has no name and vanishes with the process, however that ends.
        root: Where torchvision keeps its data sets.
        download: Whether torchvision may fetch the data set.
        advance: Called with the number of bytes of an archive, or files of a folder, that were gone through.
        columns: Of Parquet files; other sources have none.
        encoding: Of names that are not ASCII and do not say what they are; UTF-8 where None.
    """
    check_encoding(encoding)
    path = Path(name)
    kind = _kind_of(path) if path.is_file() else None
    if kind not in (None, "parquet") or (name in TORCHVISION_NAMES and not path.exists()):
        _check_columns(name, columns)
    if path.is_dir():
        folder = FolderSource(path, encoding, advance)
        if folder.tables and not any(is_image(name) for name in folder.paths):
            files = sorted(path / table for table in folder.tables)
            with tempfile.TemporaryFile(dir=scratch) as spool:
                try:
                    source = ParquetSource(name, files, spool, columns, advance)
                except DataError as error:  # the images may lie in what is beside the tables
                    others = advice(folder.other_files.keys() - {PARQUET})
                    raise DataError("; ".join((str(error), *others))) from error
                source.notes.update(folder.notes)
                yield source
        else:
            _check_columns(name, columns)
            yield folder
    elif kind == "parquet":
        with tempfile.TemporaryFile(dir=scratch) as spool:
            yield ParquetSource(name, [path], spool, columns, advance)
    elif kind == "zip":
        with open_zip(path) as archive:
            yield ZipSource(path, archive, encoding)
    elif kind == "gzip":
        with tempfile.TemporaryFile(dir=scratch) as spool:
            yield spooled_tar(path, spool, advance, encoding)
    elif kind == "tar":
        with path.open("rb") as file:
            yield plain_tar(path, file, advance, encoding)
    elif path.exists():
        hint = "".join(f"; {line}" for line in advice([kind_suffix(name)])) if path.is_file() else ""
        raise DataError(f"{path}: neither a folder nor an archive ({', '.join(ARCHIVE_SUFFIXES)}){hint}")
    elif name in TORCHVISION_NAMES:
        yield TorchvisionSource(name, root or Path("data"), download)
    else:
        known = ", ".join(TORCHVISION_NAMES)
        raise DataError(f"{name}: no such folder or archive, nor a torchvision data set ({known})")


def _check_columns(name: str, columns: Columns) -> None:
    """DataError where columns are named, of a source that has none."""
    options = {"--image-member": columns.image, "--label-member": columns.label}
    if named := [option for option, column in options.items() if column is not None]:
        raise DataError(
            f"{name}: {' and '.join(named)}: for Parquet files only; the names of folders are the classes here, and "
            "shards (tar files of samples) need no packing: `leoclr index` takes their members"
        )


def _kind_of(path: Path) -> str | None:
    """What kind of archive a file of one of `ARCHIVE_SUFFIXES` is: by its bytes, as many a name says another one after
    a browser or mirror has uncompressed it, and by its name where these do not tell. None for other suffixes.

    Raises:
        DataError: It is an archive of a kind that is not read.
    """
    suffix = next((suffix for suffix in ARCHIVE_SUFFIXES if path.name.lower().endswith(suffix)), None)
    if suffix is None:
        return None
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    for beginning, other in _OTHER_ARCHIVES.items():
        if start.startswith(beginning):
            raise DataError(f"{path}: an archive of {other}, which is not read: unpack it, and name the folder")
    if start[257:262] == b"ustar":
        return "tar"
    return next((kind for beginning, kind in _BEGINNINGS.items() if start.startswith(beginning)), _BY_NAME[suffix])
