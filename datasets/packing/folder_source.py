"""Folders as sources of images."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

from leoclr.datasets.errors import BadImage, DataError
from leoclr.datasets.files import ignore
from leoclr.datasets.images.decode import MAX_BYTES
from leoclr.datasets.images.file_names import is_image, suffix_of
from leoclr.datasets.notes import Notes
from leoclr.datasets.packing.file_kinds import OtherFiles, is_hidden, is_wanted, note_bare_folders, note_hidden_folder
from leoclr.datasets.packing.file_names import file_name
from leoclr.datasets.packing.layouts import Reading


class FolderSource:
    """A folder and all below it. Links are followed; a folder that is reached twice is listed once, by the name that
    is no link where there is one beside it. What is no regular file (a pipe, a socket, a device) is passed over."""

    reading: Reading | None = None

    def __init__(self, folder: Path, encoding: str | None = None, advance: Callable[[int], None] = ignore) -> None:
        self.name = str(folder)
        self.other_files = OtherFiles()
        self.tables: list[str] = []  # Parquet files
        self.repeated: list[str] = []
        self.paths: list[str] = []
        self.notes = Notes()
        self._encoding = encoding
        self._folder = folder
        self._stored_names: dict[str, str] = {}  # of those that are decoded otherwise
        pending, seen, listed = [""], set[str](), list[str]()
        while pending:
            below = pending.pop()
            real = os.path.realpath(folder / below)
            if real in seen:
                self.repeated.append(below)
                continue
            seen.add(real)
            listed.append(file_name(below, encoding))
            try:
                with os.scandir(folder / below) as entries:
                    found = list(entries)
            except OSError as error:
                raise DataError(f"{error.filename}: the folder cannot be read ({error.strerror})") from error
            folders = [entry for entry in found if _is_folder(entry) and not self._is_hidden(below, entry)]
            folders.sort(key=lambda entry: (entry.is_symlink(), entry.name), reverse=True)
            pending += [f"{below}/{entry.name}" if below else entry.name for entry in folders]
            for entry in found:
                if not _is_folder(entry):
                    self._take(f"{below}/{entry.name}" if below else entry.name, entry)
            advance(len(found))
        bare = [folder for folder in listed if folder and not self.tables]
        note_bare_folders(self.notes, bare, filter(is_image, self.paths))

    def read(self, path: str) -> bytes:
        try:
            # Not to wait for a pipe's other end, should one have come in place of a file.
            descriptor = os.open(self._place(path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            with open(descriptor, "rb") as file:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode):
                    raise BadImage("it is no regular file")
                if status.st_size > MAX_BYTES:
                    raise BadImage(f"the file has {status.st_size:,} bytes; the limit is {MAX_BYTES:,}")
                return file.read(MAX_BYTES)
        except OSError as error:
            raise BadImage(f"the file cannot be read ({error.strerror})") from error

    def size(self, path: str) -> int | None:
        stamp = self.stamp(path)
        return None if stamp is None else stamp[0]

    def stamp(self, path: str) -> tuple[int, int] | None:
        """Length in bytes and time of modification in ns, by which a changed file is known; None where it has gone."""
        try:
            status = os.stat(self._place(path))
        except OSError:
            return None
        return status.st_size, status.st_mtime_ns

    def _is_hidden(self, below: str, entry: os.DirEntry[str]) -> bool:
        if hidden := is_hidden(entry.name):
            note_hidden_folder(file_name(f"{below}/{entry.name}".lstrip("/"), self._encoding), self.notes)
        return hidden

    def _place(self, path: str) -> Path:
        return self._folder / self._stored_names.get(path, path)

    def _take(self, stored: str, entry: os.DirEntry[str]) -> None:
        path = file_name(stored, self._encoding)
        if _is_special(entry):
            self.notes.add("passed over, no regular files", path)
        elif is_wanted(path):
            self.paths.append(path)
            if path != stored:
                self._stored_names[path] = stored
        else:
            self.other_files.note(path, self.notes)
            if suffix_of(path) == "parquet" and not is_hidden(path):
                self.tables.append(stored)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_special(entry: os.DirEntry[str]) -> bool:
    """Whether it is neither a file nor a link that leads nowhere, which is told when it is read."""
    try:
        return not entry.is_file() and not stat.S_ISREG(entry.stat().st_mode)
    except OSError:
        return False
