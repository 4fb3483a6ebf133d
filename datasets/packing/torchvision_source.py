"""CIFAR-10, CIFAR-100, STL-10, Stanford Cars and Oxford-IIIT Pets of torchvision as sources of images.

torchvision reads CIFAR's own files with pickle. It does so only after their MD5 has been compared with the sums in
its source code, and it refuses to load them otherwise; nothing here unpickles anything, and no other pickle is read.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from leoclr.datasets.errors import BadImage, DataError
from leoclr.datasets.images.decode import MAX_BYTES
from leoclr.datasets.notes import Notes
from leoclr.datasets.packing.file_kinds import OtherFiles
from leoclr.datasets.packing.layouts import Reading

_SPLITS: dict[str, tuple[str, ...]] = {
    "cifar10": ("train", "test"),
    "cifar100": ("train", "test"),
    "stl10": ("train", "test", "unlabeled"),
    "cars": ("train", "test"),
    "pets": ("train", "test"),
}
TORCHVISION_NAMES = tuple(_SPLITS)


class TorchvisionSource:
    """CIFAR and STL-10 as lossless PNG, named `SPLIT/CLASS/NUMBER.png`, or `SPLIT/NUMBER.png` without labels; the
    photographs of Cars and Pets as the files that they are, `SPLIT/CLASS/NAME.jpg`.

    torchvision holds the pixels of the former in memory: 180 MB for CIFAR, 3.1 GB for STL-10.
    """

    reading: Reading | None = None

    def __init__(self, name: str, root: Path, download: bool) -> None:
        self.name = name
        self.other_files = OtherFiles()
        self.repeated = ()
        self.notes = Notes()
        self._images: dict[str, tuple[Any, int]] = {}
        self._files: dict[str, Path] = {}
        for split in _SPLITS[name]:
            images = _load(name, root, split, download)
            if name in ("cars", "pets"):
                self._files |= _photographs(name, images, split)
                continue
            labels = images.targets if name.startswith("cifar") else images.labels
            for number in range(len(images)):
                unlabelled = labels is None or labels[number] < 0
                folder = split if unlabelled else f"{split}/{images.classes[labels[number]]}"
                self._images[f"{folder}/{number:06d}.png"] = (images, number)
        self.paths = [*self._images, *self._files]

    def size(self, path: str) -> int | None:
        return None

    def stamp(self, path: str) -> tuple[int, int] | None:
        return None  # torchvision compares the checksums of the files

    def read(self, path: str) -> bytes:
        if path in self._files:
            return _read(self._files[path])
        images, number = self._images[path]
        encoded = io.BytesIO()
        images[number][0].save(encoded, "PNG")
        return encoded.getvalue()


def _photographs(name: str, images: Any, split: str) -> dict[str, Path]:
    """The files of a split by their name here. A class may have a slash in its name, as Cars' "Ram C/V" has."""
    found = zip(images._images, images._labels, strict=True) if name == "pets" else images._samples
    return {f"{split}/{images.classes[label].replace('/', '-')}/{Path(file).name}": Path(file) for file, label in found}


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise BadImage(f"{path} has more than {MAX_BYTES:,} bytes")
        return path.read_bytes()
    except OSError as error:
        raise BadImage(f"{path}: cannot be read ({error.strerror})") from error


def _load(name: str, root: Path, split: str, download: bool) -> Any:
    from torchvision import datasets

    try:
        if name == "stl10":
            return datasets.STL10(root, split=split, download=download)
        if name == "pets":
            return datasets.OxfordIIITPet(root, split="trainval" if split == "train" else split, download=download)
        if name == "cars":
            return datasets.StanfordCars(root, split=split)  # nobody offers it for download any more
        kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
        return kind(root, train=split == "train", download=download)
    except RuntimeError as error:  # also what urllib's failures end as
        hint = "" if download else "; --download fetches it, --root says where it lies"
        if name == "cars":
            hint = "; nobody offers it for download any more, so --root must say where stanford_cars/ lies"
        raise DataError(f"{name}: not found or damaged in {root}{hint} ({error})") from error
    except OSError as error:
        raise DataError(f"{name}: cannot be fetched to {root} ({error})") from error
