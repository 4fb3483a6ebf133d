"""What the names in a source mean: which split an image is of, which class, and the key it gets in the shards.

    train/cat/1.png, test/dog/2.png   two splits, classes cat and dog
    cat/1.png, dog/2.png              no splits, classes cat and dog
    a.png, holiday/b.png              no splits, no classes: images lie at the top
    photos/a.png, photos/b.png        the same: a folder that holds everything is looked through

Everything here is a pure function of the names, so that equal sources are packed equally.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from leoclr.datasets.errors import DataError
from leoclr.datasets.packing.sources import Source, is_image
from leoclr.datasets.randomness import Permutation
from leoclr.datasets.shards.index import NO_LABEL
from leoclr.datasets.shards.tar import REFUSED_IN_NAMES

SPLIT_NAMES = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "unlabeled": "unlabeled",
    "unlabelled": "unlabeled",
}
SPLITS = ("train", "val", "test", "unlabeled")
NO_SPLIT = ""
_HOLD_OUT = 1  # tells this use of the seed from that of the packing order
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

    `sidecars` are the paths of the `.json` and `.txt` files of the source. The numbers of the classes are their
    places in the sorted list of names, the same in all splits.
    """

    splits: dict[str, list[Picture]]
    classes: tuple[str, ...]
    sidecars: frozenset[str]

    def __len__(self) -> int:
        return sum(len(pictures) for pictures in self.splits.values())


def arrange(source: Source) -> Collection:
    """Sort the images of a source into splits and classes.

    Raises:
        DataError: There is no image, or the folders can be understood in two ways.
    """
    images = sorted(path for path in source.paths if is_image(path))
    if not images:
        files = source.other_files.total() + len(source.paths)
        found = f"no images among {files:,} files" if files else "it is empty"
        raise DataError(f"{source.name}: {found}; expected images (.jpg, .png, .webp, ...) or one folder per class")
    splits = _by_split(source.name, images, _wrapper(images))
    folders = {split: {_first_folder(name) for _, name in members} for split, members in splits.items()}
    flat = {split for split, found in folders.items() if "" in found or split == "unlabeled"}
    # One folder alone is a class only when another split says so; else it is a folder that somebody put around.
    several = [found for split, found in folders.items() if split not in flat and len(found) > 1]
    classes = sorted(set().union(*several))
    if unsafe := [name for name in classes if REFUSED_IN_NAMES.search(name)]:
        raise DataError(
            f"{source.name}: rename the folder {unsafe[0]!a}: a class name is UTF-8 without control characters"
        )
    numbers = {name: number for number, name in enumerate(classes)}
    unlabelled = flat | {split for split, found in folders.items() if not found <= numbers.keys()}
    return Collection(
        splits={split: _pictures(members, {} if split in unlabelled else numbers) for split, members in splits.items()},
        classes=tuple(classes),
        sidecars=frozenset(path for path in source.paths if not is_image(path)),
    )


def hold_out(collection: Collection, fraction: float, seed: int) -> Collection:
    """Move a random part of the training images to a split `val`, of each class its share.

    Args:
        fraction: Share that is held out, above 0 and below 1; rounded so that the whole comes out right, not each
            class (of 1000 classes of 4 images, 0.1 takes 400 images and not none).

    Raises:
        DataError: There is a `val` split already, no training split, or too few images.
    """
    name = next((split for split in ("train", NO_SPLIT) if split in collection.splits), None)
    if name is None or "val" in collection.splits:
        found = ", ".join(collection.splits)
        raise DataError(f"nothing to hold out from: the source has the splits {found}; leave --val out")
    by_label: dict[int, list[Picture]] = defaultdict(list)
    for picture in collection.splits[name]:
        by_label[picture.label].append(picture)
    train: list[Picture] = []
    val: list[Picture] = []
    for label, pictures in sorted(by_label.items()):
        count = round(fraction * (len(train) + len(val) + len(pictures))) - len(val)
        order = Permutation(len(pictures), seed, _HOLD_OUT, label)(np.arange(len(pictures)))
        held = set(order[:count].tolist())
        val += [picture for number, picture in enumerate(pictures) if number in held]
        train += [picture for number, picture in enumerate(pictures) if number not in held]
    if not train or not val:
        raise DataError(f"--val {fraction} of {len(train) + len(val)} images leaves one of the two splits empty")
    others = {split: pictures for split, pictures in collection.splits.items() if split != name}
    return Collection({"train": train, "val": val, **others}, collection.classes, collection.sidecars)


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


def _safe_key(name: str) -> str:
    parts = _UNSAFE.sub("_", _without_suffix(name)).split("/")
    # webdataset takes names that begin with two underscores for metadata and passes them over.
    return "/".join(f"x{part}" if part.startswith("__") else part for part in parts)


def _without_suffix(name: str) -> str:
    return name.rpartition(".")[0]


def _first_folder(name: str) -> str:
    return name.partition("/")[0] if "/" in name else ""


def _wrapper(images: Sequence[str]) -> str:
    """The folders around everything, with a `/` behind each; a split's folder is not one of them."""
    wrapper = ""
    while True:
        folder = _first_folder(images[0].removeprefix(wrapper))
        inside = f"{wrapper}{folder}/"
        if not folder or folder.lower() in SPLIT_NAMES or not all(path.startswith(inside) for path in images):
            return wrapper
        wrapper = inside


def _by_split(source: str, images: Sequence[str], wrapper: str) -> dict[str, list[tuple[str, str]]]:
    """(path in the source, name within the split) of every image, by split."""
    names = [path.removeprefix(wrapper) for path in images]
    folders = sorted({_first_folder(name) for name in names})
    split_folders = [folder for folder in folders if folder.lower() in SPLIT_NAMES]
    if split_folders != folders:
        if len(split_folders) > 1:
            other = next(folder for folder in folders if folder not in split_folders) or "images"
            raise DataError(f"{source}: {other} lies beside the split folders {', '.join(split_folders)}; move it away")
        return {NO_SPLIT: list(zip(images, names, strict=True))}  # `train` may be a class, beside car and aeroplane
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for path, name in zip(images, names, strict=True):
        folder, _, rest = name.partition("/")
        found[SPLIT_NAMES[folder.lower()]].append((path, rest))
    if len(found) != len(folders):
        raise DataError(f"{source}: two of the folders {', '.join(folders)} are the same split; merge or rename them")
    return {split: found[split] for split in SPLITS if split in found}


def _pictures(members: Sequence[tuple[str, str]], numbers: dict[str, int]) -> list[Picture]:
    keys = make_keys(name for _, name in members)
    return [
        Picture(path, key, numbers.get(_first_folder(name), NO_LABEL), key != _without_suffix(name))
        for (path, name), key in zip(members, keys, strict=True)
    ]
