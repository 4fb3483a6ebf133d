"""Hold out a validation split: a share of each class, with copies of an image on one side."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from leoclr.datasets.errors import DataError
from leoclr.datasets.packing.arrangement import NO_SPLIT, Collection, Picture
from leoclr.datasets.randomness import Permutation
from leoclr.datasets.shards.index import NO_LABEL
from leoclr.datasets.wording import counted

_HOLD_OUT = 1  # tells this use of the seed from that of the packing order


def hold_out(
    collection: Collection, fraction: float, seed: int, copy_of: Mapping[str, str] | None = None
) -> Collection:
    """Move a random part of the training images to a split `val`, of each class its share.

    Args:
        fraction: Share that is held out, above 0 and below 1; rounded so that the whole comes out right, not each
            class (of 1000 classes of 4 images, 0.1 takes 400 images and not none). The last image of a class stays,
            so that less is held out where many classes have one image.
        copy_of: For images that are copies, byte for byte, the path of the one whose side they take.

    Raises:
        DataError: There is a `val` split already, no training split, or too few images.
    """
    name = next((split for split in ("train", NO_SPLIT) if split in collection.splits), None)
    if name is None or "val" in collection.splits:
        found = ", ".join(collection.splits)
        raise DataError(f"nothing to hold out from: the source has the splits {found}; leave --val out")
    copies = copy_of or {}
    by_label: dict[int, list[Picture]] = defaultdict(list)
    for picture in collection.splits[name]:
        by_label[picture.label].append(picture)
    held: set[str] = set()
    seen = 0
    for label, pictures in sorted(by_label.items()):
        seen += len(pictures)
        # To make up for small classes, no other one gives more than its share, rounded up.
        count = min(round(fraction * seen) - len(held), int(fraction * len(pictures)) + 1)
        order = Permutation(len(pictures), seed, _HOLD_OUT, label)(np.arange(len(pictures)))
        staying = {copies.get(picture.path, picture.path) for picture in pictures} - held
        for number in order[: max(0, count)].tolist():
            path = pictures[number].path
            if label != NO_LABEL and staying == {path}:  # the last image of its class
                if len(pictures) == 1:
                    collection.notes.add("classes of one image, which stays in train", path)
                continue
            held.add(path)
            staying.discard(path)
    sides = [
        (picture, copies.get(picture.path, picture.path) in held)
        for label in sorted(by_label)
        for picture in by_label[label]
    ]
    train = [picture for picture, is_held in sides if not is_held]
    val = [picture for picture, is_held in sides if is_held]
    if not train or not val:
        total = len(train) + len(val)
        different = len({copies.get(picture.path, picture.path) for picture in (*train, *val)})
        if (share := round(fraction * total)) == len(val):
            why = f": the share comes to {'all' if share else 'none'} of them"
        else:
            why = _why_empty(total, different, one_stays=not val and len(by_label) > 1)
        raise DataError(f"--val {fraction} of {total} images leaves one of the two splits empty{why}")
    trained = {picture.label for picture in train}
    for label in sorted({picture.label for picture in val} - trained - {NO_LABEL}):
        collection.notes.add("classes of the split val that train lacks", collection.classes[label])
    others = {split: pictures for split, pictures in collection.splits.items() if split != name}
    return replace(collection, splits={"train": train, "val": val, **others})


def _why_empty(total: int, different: int, one_stays: bool) -> str:
    """Why all images are on one side; of `total`, `different` are no copies of others."""
    reasons = ["one image of each class stays in train"] if one_stays and different > 1 else []
    if different < total:
        only = f"{'is' if different == 1 else 'are'} only {counted(different, 'image')}"
        reasons.append(f"equal images stay together in one split, and without copies there {only}")
    return f": {'; '.join(reasons)}" if reasons else ""
