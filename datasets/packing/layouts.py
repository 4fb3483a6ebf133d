"""Recognise the layout of a source from its names (listed in `leoclr.datasets.packing.arrangement`).

Ambiguous names raise an error that names the deciding option; files skipped by a reading are noted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from leoclr.datasets.errors import DataError
from leoclr.datasets.notes import Notes
from leoclr.datasets.packing.nested_folders import (
    first_folder,
    folders_within,
    numbered_thousands,
    several_folders,
    shared_folders,
    wrapper_of,
)
from leoclr.datasets.packing.split_names import (
    SPLITS,
    is_plain,
    is_split_beside,
    numbered_parts,
    parts_of_samples,
    repeated,
    splits_of,
    suspicious,
)
from leoclr.datasets.wording import first_of

LayoutKind = Literal["flat", "classes", "splits", "classes-splits"]
NO_SPLIT = ""
_FEW = 10  # so many images in folders for each beside them: those beside are there by mistake
_FEW_FOLDERS = 4  # so many folders of which one is named like a split and one holds folders may all be splits

Named = tuple[str, str]  # path in the source, name within the split: CLASS/REST


@dataclass(frozen=True)
class Layout:
    """How the user wants the folders to be read: `kind` None where they tell; `splits` by the name of the folder."""

    kind: LayoutKind | None = None
    splits: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Reading:
    """Images by split, the split of each folder that stands for one, and what was left out. `classes` are the names
    of the classes by folder, in their order, where the source itself says them."""

    kind: LayoutKind
    splits: dict[str, list[Named]]
    split_names: Mapping[str, str] = field(default_factory=dict)
    notes: Notes = field(default_factory=Notes)
    classes: Mapping[str, str] | None = None


def read_names(source: str, images: Sequence[str], layout: Layout) -> Reading:
    """Read the sorted paths of the images of `source` as the layout says, or as their names tell.

    Raises:
        DataError: They can be read in two ways, or not as the layout says.
    """
    kind = layout.kind or ("splits" if layout.splits else None)
    if kind:
        return _read_as(source, images, kind, layout.splits)
    reading = _read(source, images)
    for members in reading.splits.values() if reading.kind != "flat" else ():
        if parts_of_samples(folders := {first_folder(name) for _, name in members if "/" in name}):
            raise DataError(
                f"{source}: {_listed(folders)} can be read in two ways: classes, or images and what belongs to them. "
                f"Say --layout {reading.kind}, or name the folder of images, or move the others away"
            )
        names = [name for _, name in members]
        _refuse_folders_that_hold_classes(source, reading.kind, names)
        if numbered_parts(folders) or numbered_thousands(names):
            flat = "--layout flat" if reading.kind == "classes" else "put the images of the split into one folder"
            raise DataError(
                f"{source}: {_listed(folders)} can be read in two ways: classes, or parts of one collection. Say "
                f"--layout {reading.kind} if the former, else {flat}"
            )
        if inner := folders_within(names):
            reading.notes.add("folders within the class folders, which are looked through", inner[0], len(inner))
    return reading


def _refuse_folders_that_hold_classes(source: str, kind: LayoutKind, names: Sequence[str]) -> None:
    """Raise DataError where what would be classes hold folders of the same names, as splits, domains and patients do
    (`photo/cat`, `photo/dog`, `sketch/cat`, `sketch/dog`), or where a split lies among the classes of another."""
    within: dict[str, list[str]] = defaultdict(list)
    for name in names:
        folder, _, rest = name.partition("/")
        if "/" in rest:
            within[folder].append(rest)
    if kind == "splits" and (
        odd := [folder for folder in within if is_plain(folder) and several_folders(within[folder])]
    ):
        raise DataError(
            f"{source}: the folder {odd[0]} lies among the classes of a split and holds several folders: is it a class "
            "or a split? Say --layout splits, or move it beside the other splits"
        )
    if sum(map(len, within.values())) * _FEW < len(names) * (_FEW - 1) or len(within) < 2:
        return
    if shared := shared_folders(list(within.values())):
        example = _example(dict(zip(sorted(within), ("train", "test"), strict=False)))
        splits = f", or which folder is which split, as in {example}" if kind == "classes" else ""
        raise DataError(
            f"{source}: the folders {_listed(within)} hold folders of the same names ({_listed(shared)}); which of "
            f"them are classes? Say --layout {kind} if the former are{splits}, or name the folder meant"
        )


def _read(source: str, images: Sequence[str]) -> Reading:
    """The reading that the names give; DataError where there are two."""
    wrapper = wrapper_of(images, is_plain)
    beside = [path for path in images if "/" not in path[len(wrapper) :]]
    inside = [path for path in images if "/" in path[len(wrapper) :]]
    if not inside:
        return _flat(images, wrapper)
    if beside:
        return _read_with_images_beside(source, images, wrapper, beside, inside)
    folders = {first_folder(path[len(wrapper) :]) for path in inside}
    splits = splits_of(folders)
    if len(splits) == len(folders):
        return _read_all_splits(source, inside, splits)
    if len(splits) > 1:
        other = min(folder for folder in folders if folder not in splits)
        raise DataError(
            f"{source}: {other} lies beside the split folders {_listed(splits)}; move it away, or say which folders "
            f"are splits, as in {_example(splits)}, or --layout classes"
        )
    names = [path[len(wrapper) :] for path in inside]
    if splits:
        (split,) = splits  # `train` may be a class, beside car and aeroplane; but not if it holds classes
        below: dict[str, set[str]] = defaultdict(set)
        for name in names:
            if name.count("/") > 1:
                outer, inner, _ = name.split("/", 2)
                below[outer].add(inner)
        several = {folder for folder, inner in below.items() if len(inner) > 1}
        few = several if len(folders) <= _FEW_FOLDERS else several & {split}
        if few or is_split_beside(splits[split], folders - {split}):
            raise _two_readings(source, [split], f"the split {splits[split]} or a class", splits)
    elif odd := suspicious(folders):
        raise _two_readings(source, list(odd), "splits or classes", odd)
    nested = splits_of({name.split("/")[1] for name in names if name.count("/") > 1})
    if len(set(nested.values())) > 1 and "train" in nested.values():
        inner = _listed(nested)
        raise DataError(
            f"{source}: the folders {_listed(folders)} hold folders {inner}: splits within classes, or folders "
            "of which one is not wanted? Say --layout classes-splits, --layout classes, or name the folder meant"
        )
    return Reading("classes", {NO_SPLIT: [(path, path[len(wrapper) :]) for path in inside]})


def _read_all_splits(source: str, images: Sequence[str], splits: Mapping[str, str]) -> Reading:
    plain = [folder for folder in splits if is_plain(folder)]
    if twice := repeated(splits):
        raise DataError(
            f"{source}: two of the folders {_listed(splits)} are the same split; merge or rename them, or say which "
            f"counts for which, as in {_example({twice[0]: splits[twice[0]]})}, or --layout classes"
        )
    if len(plain) < len(splits) and ("train" not in splits.values() or len(splits) < 2):
        raise _two_readings(source, list(splits), "splits or classes", splits)
    reading = _read_as(source, images, "splits", splits)
    if len(plain) < len(splits):
        pairs = ", ".join(f"{folder} as {split}" for folder, split in splits.items())
        reading.notes.add("folders read as splits (--layout classes makes them classes)", pairs)
    return reading


def _read_with_images_beside(
    source: str, images: Sequence[str], wrapper: str, beside: Sequence[str], inside: Sequence[str]
) -> Reading:
    """Images beside folders: a collection without classes, or folders with a stray image beside them."""
    inner = _read(source, inside)
    if inner.kind == "splits" or (inner.kind == "classes" and _FEW * len(beside) <= len(inside)):
        what = "split folders" if inner.kind == "splits" else "class folders"
        inner.notes.add(f"left out, images beside the {what} (--layout flat takes them)", beside[0], len(beside))
        return inner
    flat = _flat(images, wrapper)
    folders = sorted({first_folder(path[len(wrapper) :]) for path in inside})
    if len(folders) > 1:
        flat.notes.add(
            f"folders that are no classes, since images lie beside them, {beside[0]} first (--layout classes leaves "
            "these out)",
            folders[0],
            len(folders),
        )
    return flat


def _flat(images: Sequence[str], wrapper: str) -> Reading:
    return Reading("flat", {NO_SPLIT: [(path, path[len(wrapper) :]) for path in images]})


def _read_as(source: str, images: Sequence[str], kind: LayoutKind, splits: Mapping[str, str]) -> Reading:
    """The reading that was asked for; what does not fit in is left out."""
    if kind in ("flat", "classes"):
        wrapper = wrapper_of(images, lambda folder: False)
        if kind == "flat":
            return _flat(images, wrapper)
        reading = _without_beside(Reading("classes", {NO_SPLIT: [(path, path[len(wrapper) :]) for path in images]}))
        if len({first_folder(name) for _, name in reading.splits[NO_SPLIT]}) < 2:
            path, _ = reading.splits[NO_SPLIT][0]
            reading.notes.add("--layout classes finds no classes, as it takes two folders or more", path)
        return reading
    within = kind == "classes-splits"
    wrapper = wrapper_of(images, lambda folder: folder in splits or (not within and is_plain(folder)))
    reading = Reading(kind, {})
    rows = []
    for path in images:
        folder, _, rest = path[len(wrapper) :].partition("/")
        if within:
            inner, _, last = rest.partition("/")
            folder, rest = (inner, f"{folder}/{last}") if last else ("", rest)
        if not rest or not folder:
            reading.notes.add("left out, images in none of the split folders", path)
        else:
            rows.append((path, folder, rest))
    folders = {folder for _, folder, _ in rows}
    known = {folder: split for folder, split in (splits or splits_of(folders)).items() if folder in folders}
    if unknown := sorted(folders - known.keys()):
        raise DataError(
            f"{source}: {unknown[0]} is no split by its name; say which each is, as in "
            f"{_example(known or {unknown[0]: 'train'})}"
        )
    if not known:
        raise DataError(f"{source}: no folders of splits there, as --layout {kind} asks for")
    if not splits and (twice := repeated(known)):
        raise DataError(f"{source}: {twice[0]} and {twice[1]} are the same split; say so, as in {_example(known)}")
    found: dict[str, list[Named]] = defaultdict(list)
    for path, folder, rest in rows:
        found[known[folder]].append((path, rest))
    reading.splits = {split: found[split] for split in SPLITS if split in found}
    reading.split_names = dict(sorted(known.items()))
    return _without_beside(reading if within else _looked_through(reading))


def _looked_through(reading: Reading) -> Reading:
    """Take away a folder that holds all of a split and several folders (`train/images/cat/1.png`), unless it is a class
    of another split."""
    for split, members in reading.splits.items():
        others = [{first_folder(name) for _, name in rows} for other, rows in reading.splits.items() if other != split]
        classes = set().union(*(folders for folders in others if len(folders) > 1))
        wrapper = wrapper_of([name for _, name in members], lambda folder: folder in classes)  # noqa: B023
        inside = [(path, name[len(wrapper) :]) for path, name in members]
        if wrapper and split != "unlabeled" and len({first_folder(name) for _, name in inside}) > 1:
            reading.splits[split] = inside
            reading.notes.add("folders around all of a split, which are looked through", f"{split}/{wrapper}")
    return reading


def _without_beside(reading: Reading) -> Reading:
    """Leave out the few images that lie beside the class folders of their split; all of them where classes were asked
    for."""
    for split, members in reading.splits.items():
        inside = [(path, name) for path, name in members if "/" in name]
        beside = [path for path, name in members if "/" not in name]
        wanted = reading.kind == "classes" or len({first_folder(name) for _, name in inside}) > 1
        few = reading.kind == "classes" or _FEW * len(beside) <= len(inside)
        if beside and inside and wanted and few and split != "unlabeled":
            reading.splits[split] = inside
            reading.notes.add("left out, images beside the class folders", beside[0], len(beside))
    return reading


def _two_readings(source: str, folders: Sequence[str], readings: str, splits: Mapping[str, str]) -> DataError:
    known = splits or {folders[0]: "train"}
    return DataError(
        f"{source}: {_listed(folders)} can be read in two ways: {readings}. Say --layout classes, or --layout splits, "
        f"or which folder is which split, as in {_example(known)}"
    )


def _example(splits: Mapping[str, str]) -> str:
    return "--split-names " + ",".join(f"{split}={folder}" for folder, split in sorted(splits.items()))


def _listed(names: Iterable[str]) -> str:
    return first_of(sorted(names), 6)
