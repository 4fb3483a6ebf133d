"""What the names of Parquet files, and of the folders that they lie in, say: splits, and values in Hive's way."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from leoclr.datasets.errors import DataError
from leoclr.datasets.notes import Notes
from leoclr.datasets.packing.layouts import NO_SPLIT
from leoclr.datasets.packing.split_names import SPLITS, splits_of, suspicious

_SPLIT_FOLDERS = f"{', '.join(SPLITS[:-1])} or {SPLITS[-1]}"
# The number of a part, and the checksum that `push_to_hub` of older versions of `datasets` adds to it.
_PART = re.compile(r"([-_.]?[0-9]+)?([-_]of[-_][0-9]+)?(?<=[0-9])(-[0-9a-f]{16})?$")
_AROUND_SPLIT = re.compile(r"(partial-|split=)(?=.)")
_VALUE = re.compile(r"[^=]+=.*")  # a column and its value, as Hive and Spark name folders


def file_splits(name: str, root: Path, files: Sequence[Path]) -> dict[Path, str]:
    """The split of every file by its name or that of a folder below `root`; empty where no name says one.

    Raises:
        DataError: Some names mean a split and others do not, or all of them may mean one.
    """
    levels = _levels(root, files)
    means = [splits_of(set(names) - {""}) for names in levels]
    for names, found in zip(levels, means, strict=True):
        if found and found.keys() >= set(names):
            return {path: found[part] for path, part in zip(files, names, strict=True)}
    told = [
        {found[names[number]] for names, found in zip(levels, means, strict=True) if names[number] in found}
        for number in range(len(files))
    ]
    if all(len(splits) == 1 for splits in told):
        return {path: next(iter(splits)) for path, splits in zip(files, told, strict=True)}
    if any(told):
        odd = next(path for path, splits in zip(files, told, strict=True) if len(splits) != 1)
        meant = ", ".join(sorted(set().union(*told)))
        raise DataError(
            f"{name}: it is not clear to which split {odd.relative_to(root)} belongs, while other names mean {meant}: "
            f"name one file or folder to have it alone, or put the file into a folder {_SPLIT_FOLDERS}"
        )
    for names in levels:
        if doubtful := suspicious(set(names) - {""}):
            raise DataError(
                f"{name}: the names {', '.join(list(doubtful)[:4])} may be those of splits: name one file or folder to "
                f"have it alone, or put the files into folders {_SPLIT_FOLDERS}"
            )
    if all(path.parent == root for path in files) and (split := splits_of({root.name}).get(root.name)):
        return dict.fromkeys(files, split)
    return {}


def note_folders(notes: Notes, root: Path, files: Sequence[Path], splits: Mapping[Path, str]) -> None:
    """Data sets of several configurations have a folder for each, often of the same images in another form. Folders
    that tell a value are parts of one data set, which lacks a column then."""
    for split in dict.fromkeys(splits.get(path, NO_SPLIT) for path in files):
        folders = {
            str(root.joinpath(*(part for part in _folders(root, path) if not _VALUE.fullmatch(part)))): str(path.parent)
            for path in reversed(files)
            if splits.get(path, NO_SPLIT) == split
        }
        if len(folders) > 1:
            notes.add(
                "folders of Parquet files that were put together (name one to have it alone)",
                min(folders.values()),
                len(folders),
            )
    values = {part for path in files for part in _folders(root, path) if _VALUE.fullmatch(part)}
    if unread := sorted(part for part in values if not splits_of({_AROUND_SPLIT.sub("", part)})):
        notes.add("values in the names of folders, which are not read (make them a column)", unread[0], len(unread))


def _levels(root: Path, files: Sequence[Path]) -> list[list[str]]:
    """Names that may tell the splits, one for each file and empty where it has none: those of the files, and of their
    folders at each distance from the file and from the root."""
    folders = [[_bare(part) for part in _folders(root, path)] for path in files]
    depth = max(map(len, folders), default=0)
    places = (*range(-1, -1 - depth, -1), *range(depth))
    return [
        [_PART.sub("", path.stem) for path in files],
        *([parts[place] if -len(parts) <= place < len(parts) else "" for parts in folders] for place in places),
    ]


def _bare(folder: str) -> str:
    """A folder's name without what stands around that of a split; empty where it tells another column's value."""
    name = _AROUND_SPLIT.sub("", folder, count=1)
    return "" if _VALUE.fullmatch(name) else name


def _folders(root: Path, path: Path) -> tuple[str, ...]:
    return path.parent.relative_to(root).parts
