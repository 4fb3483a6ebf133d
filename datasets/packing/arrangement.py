"""Split, class and key of an image from its name in the source.

    train/cat/1.png, test/dog/2.png   splits, classes cat and dog
    cat/1.png, dog/2.png              classes: no splits, classes cat and dog
    a.png, holiday/b.png              flat: no splits, no classes, since images lie at the top
    photos/a.png, photos/b.png        the same: a folder that holds everything is looked through
    cat/train/1.png, cat/test/2.png   classes-splits, which is taken only where it is asked for

Everything here is a pure function of the names, so that equal sources are packed equally.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from leoclr.datasets.errors import DataError
from leoclr.datasets.images.file_names import is_image, suffix_of
from leoclr.datasets.notes import Notes
from leoclr.datasets.packing.file_kinds import SIDECAR_SUFFIXES, advice
from leoclr.datasets.packing.layouts import NO_SPLIT as NO_SPLIT
from leoclr.datasets.packing.layouts import Layout, LayoutKind, Named, Reading, read_names
from leoclr.datasets.packing.nested_folders import first_folder
from leoclr.datasets.packing.sources import Source
from leoclr.datasets.packing.split_names import SPLITS as SPLITS
from leoclr.datasets.shards.index import NO_LABEL
from leoclr.datasets.shards.tar import REFUSED_IN_NAMES

# webdataset ends a key at the first dot; the others would break lines, paths or JSON somewhere down the road.
_UNSAFE = re.compile(r"[.\\\x00-\x1f\x7f\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Picture:
    """An image on its way into a shard.

    Attributes:
        path: Its name in the source.
        key: Its name in the shard, without suffix; no two in a split are equal.
        label: Its class number, or -1.
        renamed: Whether the key is not simply the name without suffix.
    """

    path: str
    key: str
    label: int
    renamed: bool


@dataclass(frozen=True)
class Collection:
    """The images of a source by split (`NO_SPLIT` where there is only one, without a name), and the class names.

    The numbers of the classes are their places in the sorted list of names, the same in all splits.

    Attributes:
        sidecars: Paths of the `.json` and `.txt` files of the source, by the path with its suffix in lower case.
        kind: How the folders were read.
        split_names: The split of each folder that stands for one.
        notes: What is left out, and what the names leave open.
    """

    splits: dict[str, list[Picture]]
    classes: tuple[str, ...]
    sidecars: Mapping[str, str]
    kind: LayoutKind = "flat"
    split_names: Mapping[str, str] = field(default_factory=dict)
    notes: Notes = field(default_factory=Notes, compare=False)

    def __len__(self) -> int:
        return sum(len(pictures) for pictures in self.splits.values())


def arrange(source: Source, layout: Layout | None = None) -> Collection:
    """Sort the images of a source into splits and classes.

    Raises:
        DataError: There is no image, or the folders can be understood in two ways.
    """
    images = sorted(path for path in source.paths if is_image(path))
    if not images:
        files = source.other_files.total() + len(source.paths)
        notes = list(source.notes.lines())
        found = f"no images among {files:,} files" if files else "no images" if notes else "it is empty"
        hints = "".join(f"; {line}" for line in (*notes, *advice(source.other_files)))
        raise DataError(
            f"{source.name}: {found}; expected images (.jpg, .png, .webp, ...) or one folder per class{hints}"
        )
    if source.reading is None:
        reading = read_names(source.name, images, layout or Layout())
    elif layout is None or layout == Layout():
        reading = source.reading
    else:
        raise DataError(f"{source.name}: --layout and --split-names are for folders; its columns say what images are")
    for path in images:
        if "\\" in path:  # of an archive of Windows that was unpacked by a program that does not know these
            reading.notes.add("names with a backslash, which separates no folders here (rename or unpack again)", path)
    numbers, pictures = _label(source.name, reading)
    sidecars = _sidecars(source.paths, images, reading.notes)
    return Collection(pictures, tuple(numbers), sidecars, reading.kind, dict(reading.split_names), reading.notes)


def make_keys(names: Iterable[str]) -> list[str]:
    """A key for each name: without suffix, safe in a shard, and unlike all others."""
    taken: set[str] = set()
    keys = []
    for name in names:
        wanted = _safe_key(name)
        key, number = wanted, 1
        while key in taken:
            number += 1
            key = f"{wanted}-{number}"
        taken.add(key)
        keys.append(key)
    return keys


def _label(source: str, reading: Reading) -> tuple[list[str], dict[str, list[Picture]]]:
    """The class names, and the pictures of every split."""
    if reading.classes is not None:
        _check_names(source, list(reading.classes.values()))
        declared = {folder: number for number, folder in enumerate(reading.classes)}
        return list(reading.classes.values()), {
            split: _pictures(members, declared) for split, members in reading.splits.items()
        }
    folders = {split: {first_folder(name) for _, name in members} for split, members in reading.splits.items()}
    flat = {split for split, found in folders.items() if "" in found or split == "unlabeled" or reading.kind == "flat"}
    # One folder alone is a class only when another split says so; else it is a folder that somebody put around.
    several = [found for split, found in folders.items() if split not in flat and len(found) > 1]
    classes = sorted(set().union(*several))
    _check_names(source, classes)
    numbers = {name: number for number, name in enumerate(classes)}
    unlabelled = flat | {split for split, found in folders.items() if not found <= numbers.keys()}
    _note_classes(reading, classes, folders, unlabelled)
    pictures = {
        split: _pictures(members, {} if split in unlabelled else numbers) for split, members in reading.splits.items()
    }
    return classes, pictures


def _check_names(source: str, classes: Sequence[str]) -> None:
    if unsafe := [name for name in classes if REFUSED_IN_NAMES.search(name)]:
        raise DataError(
            f"{source}: rename the folder {unsafe[0]!a}: a class name is UTF-8 without control characters; or give the "
            "--encoding of the names"
        )


def _note_classes(
    reading: Reading, classes: Sequence[str], folders: Mapping[str, set[str]], unlabelled: set[str]
) -> None:
    for split in sorted(unlabelled - {"unlabeled"}):
        members = reading.splits[split]
        if not classes:
            _note_folders_beside_images(reading, split, sorted(folders[split]))
            continue
        first = next((path for path, name in members if "/" not in name), members[0][0])
        reading.notes.add(
            f"images of the split {split} without a class, as folders are no classes of it", first, len(members)
        )
    labelled = {split: found for split, found in folders.items() if split not in unlabelled}
    trained = labelled.get("train", set(classes))
    for split, found in labelled.items():
        if extra := sorted(found - trained):
            reading.notes.add(f"classes of the split {split} that train lacks", extra[0], len(extra))
        if missing := sorted(trained - found):
            reading.notes.add(f"classes of train that the split {split} lacks", missing[0], len(missing))


def _note_folders_beside_images(reading: Reading, split: str, folders: Sequence[str]) -> None:
    """Note the folders of a split that could be classes, were there no images beside them."""
    if reading.kind != "flat" and folders[0] == "" and len(folders) > 2:
        first = next(path for path, name in reading.splits[split] if "/" not in name)
        reading.notes.add(
            f"folders of the split {split} that are no classes, since images lie beside them, {first} first (move "
            "these away to have classes)",
            folders[1],
            len(folders) - 1,
        )


def _pictures(members: Sequence[Named], numbers: Mapping[str, int]) -> list[Picture]:
    keys = make_keys(name for _, name in members)
    return [
        Picture(path, key, numbers.get(first_folder(name), NO_LABEL), key != _without_suffix(name))
        for (path, name), key in zip(members, keys, strict=True)
    ]


def _sidecars(paths: Iterable[str], images: Sequence[str], notes: Notes) -> dict[str, str]:
    found: dict[str, str] = {}
    for path in sorted(paths):
        if suffix_of(path) in SIDECAR_SUFFIXES:
            lower = f"{_without_suffix(path)}.{suffix_of(path)}"
            if lower in found:
                notes.add("passed over, text files whose names differ by case only", path)
            else:
                found[lower] = path
    if found:
        stems = {_without_suffix(path) for path in images}
        for lower, path in found.items():
            if _without_suffix(lower) not in stems:
                notes.add("passed over, text files that belong to no image", path)
    return found


def _safe_key(name: str) -> str:
    parts = _UNSAFE.sub("_", _without_suffix(name)).split("/")
    # webdataset takes names that begin with two underscores for metadata and passes them over.
    return "/".join(f"x{part}" if part.startswith("__") else part for part in parts)


def _without_suffix(name: str) -> str:
    return name.rpartition(".")[0]
