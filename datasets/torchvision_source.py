"""torchvision's CIFAR-10, CIFAR-100 and STL-10 as a source of PNG files.

torchvision reads CIFAR's own files with pickle. It does so only after their MD5 has been compared with the sums in
its source code, and it refuses to load them otherwise; nothing here unpickles anything, and no other pickle is read.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from leoclr.datasets.errors import DataError

_SPLITS: dict[str, tuple[str, ...]] = {
    "cifar10": ("train", "test"),
    "cifar100": ("train", "test"),
    "stl10": ("train", "test", "unlabeled"),
}
TORCHVISION_NAMES = tuple(_SPLITS)


class TorchvisionSource:
    """The images as lossless PNG, named `SPLIT/CLASS/NUMBER.png`, or `SPLIT/NUMBER.png` without labels.

    torchvision holds the pixels in memory: 180 MB for CIFAR, 3.1 GB for STL-10.
    """

    def __init__(self, name: str, root: Path, download: bool) -> None:
        self.name = name
        self.other_files = 0
        self._images: dict[str, tuple[Any, int]] = {}
        for split in _SPLITS[name]:
            images = _load(name, root, split, download)
            labels = images.targets if name.startswith("cifar") else images.labels
            for number in range(len(images)):
                unlabelled = labels is None or labels[number] < 0
                folder = split if unlabelled else f"{split}/{images.classes[labels[number]]}"
                self._images[f"{folder}/{number:06d}.png"] = (images, number)
        self.paths = list(self._images)

    def read(self, path: str) -> bytes:
        images, number = self._images[path]
        encoded = io.BytesIO()
        images[number][0].save(encoded, "PNG")
        return encoded.getvalue()


def _load(name: str, root: Path, split: str, download: bool) -> Any:
    from torchvision import datasets

    try:
        if name == "stl10":
            return datasets.STL10(root, split=split, download=download)
        kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
        return kind(root, train=split == "train", download=download)
    except RuntimeError as error:  # also what urllib's failures end as
        hint = "" if download else "; --download fetches it, --root says where it lies"
        raise DataError(f"{name}: not found or damaged in {root}{hint} ({error})") from error
    except OSError as error:
        raise DataError(f"{name}: cannot be fetched to {root} ({error})") from error
