"""Images with boxes in the PASCAL VOC layout: Annotations/*.xml, JPEGImages/*, ImageSets/Main/SPLIT.txt.

The files are not trusted. Archives are unpacked to names that are made here; `voc_annotation` reads the boxes.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import re
import shutil
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from xml.parsers.expat import ExpatError

import numpy as np
from numpy.typing import NDArray

from leoclr.datasets.errors import BadImage, DataError
from leoclr.datasets.files import CHUNK_BYTES, ignore
from leoclr.datasets.images.decode import MAX_BYTES, decode_image, upright_size
from leoclr.datasets.images.file_names import IMAGE_SUFFIXES
from leoclr.datasets.notes import Notes
from leoclr.datasets.shards.description import look_alikes
from leoclr.datasets.voc_annotation import Annotation, Object, check_boxes, inside, read_annotation, sticks_out
from leoclr.datasets.wording import counted, first_of, printable

MAX_ANNOTATION_BYTES = 2**20
_FOLDERS = ("Annotations", "ImageSets", "JPEGImages")
_DEEPEST = 3
_NAME = re.compile(r"[\w.()+-]+")
_HEAD = 1 << 16  # bytes that nearly always hold the header of an image
_SHOWN = 3


@dataclass(frozen=True)
class BoxedImage:
    """An image file and what is in it.

    Attributes:
        boxes: Left, top, right, bottom in pixels from 0, float32, shape `(n, 4)`.
        labels: Class number of each box, from 0.
        difficult: Whether a box is marked as hard to make out, and is then no error to miss.
    """

    key: str
    path: Path
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    difficult: NDArray[np.bool_]

    def pixels(self) -> NDArray[np.uint8]:
        """The decoded image, shape `(height, width, 3)`; BadImage names the file."""
        try:
            return np.asarray(decode_image(self.path.read_bytes()))
        except BadImage as error:
            raise BadImage(f"{self.path}: {error}; replace it, or take {self.key} out of the split") from None
        except OSError as error:
            raise DataError(f"{self.path}: {error.strerror}") from None


@dataclass(frozen=True)
class BoxedImages:
    """A split.

    Attributes:
        digest: SHA-256 over keys, sizes of the image files, classes and boxes.
        remarks: A line for each oddity that is no fault, such as boxes without extent, with how often it occurs.
    """

    images: tuple[BoxedImage, ...]
    classes: tuple[str, ...]
    digest: str
    remarks: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)


def read_voc(roots: Sequence[Path], train_split: str, test_split: str) -> tuple[BoxedImages, BoxedImages]:
    """Read two splits. A root may be a VOC folder or hold several, such as VOC2007 and VOC2012 in VOCdevkit; a split is
    taken from every one that has it.

    Raises:
        DataError: There is no such layout or split, a file is missing or damaged, boxes do not fit their image, the
            splits share images, no object of a class is in the training split, or none that counts in the test split.
    """
    # A folder counts once, also where it is named beside the one that it lies in.
    folders = list(dict.fromkeys(folder.resolve() for root in roots for folder in _voc_folders(root)))
    raw = [_read_split(folders, split, roots) for split in (train_split, test_split)]
    shared = {image.path for image in raw[0].images} & {image.path for image in raw[1].images}
    if shared:
        example = min(shared).name
        raise DataError(f"{len(shared)} images are in {train_split} and in {test_split}, such as {example}")
    classes, tested = (sorted({one.name for image in split.images for one in image.objects}) for split in raw)
    absent = sorted(set(tested) - set(classes))
    if not classes or absent:
        what = f"{absent[0]!r} of {test_split} is" if absent else "objects are"
        raise DataError(f"{train_split}: {what} not in the training images")
    train, test = (_boxed(split, tuple(classes)) for split in raw)
    hard = [image.difficult.all() for image in test.images if len(image.labels)]
    if all(hard):
        which = "no object" if not hard else "no object that is not marked as difficult"
        raise DataError(f"{test_split}: there is {which} in its images, and so no precision")
    return replace(train, remarks=(*look_alikes(classes), *train.remarks)), test


def unpack_voc(archive: Path, folder: Path, advance: Callable[[int], None] = ignore) -> None:
    """Unpack what belongs to the layout from a tar file, compressed or not, in one pass. The folder appears as a whole,
    with a file `complete`, so that several processes may ask for it. Other members, links among them, are left.

    Args:
        advance: Called with 1 for each file.
    """
    complete = folder / "complete"
    if complete.exists():
        return
    partial = folder.with_name(f".{folder.name}-{os.getpid()}")
    try:
        with tarfile.open(archive, "r:*") as tar:
            for member in tar:
                path = _place(member.name) if member.isfile() and member.size <= MAX_BYTES else None
                content = tar.extractfile(member) if path is not None else None
                if path is not None and content is not None:
                    (partial / path).parent.mkdir(parents=True, exist_ok=True)
                    (partial / path).write_bytes(content.read())
                    advance(1)
            while tar.fileobj is not None and tar.fileobj.read(CHUNK_BYTES):
                pass  # to the end: only there does gzip compare the checksum
        partial.mkdir(parents=True, exist_ok=True)
        (partial / complete.name).touch()
        try:
            partial.rename(folder)
        except OSError:
            if complete.exists():  # another process was faster
                return
            shutil.rmtree(folder, ignore_errors=True)  # what an earlier version left half done
            partial.rename(folder)
    except (tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError) as error:
        if not complete.exists():  # else another process was faster
            raise DataError(f"{archive} cannot be unpacked to {folder}: {error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _place(name: str) -> Path | None:
    """Where a member goes: below one of the three folders, behind the name of the set; None for all else."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    start = next((number for number, part in enumerate(parts) if part in _FOLDERS), None)
    if start is None or not all(_NAME.fullmatch(part) and part != ".." for part in parts):
        return None
    return Path(*(parts[start - 1 :] if start else parts))


def _voc_folders(root: Path) -> list[Path]:
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    level = [root]
    for _ in range(_DEEPEST):
        found = [folder for folder in level if all((folder / name).is_dir() for name in _FOLDERS)]
        if found:
            return sorted(found)
        level = [inner for folder in level for inner in folder.iterdir() if inner.is_dir()]
    raise DataError(f"{root} holds no {', '.join(_FOLDERS)}: it is not in the layout of PASCAL VOC")


@dataclass(frozen=True)
class _Listed:
    """An image and its objects as they are written."""

    key: str
    path: Path
    objects: tuple[Object, ...]
    size: tuple[int, int]


@dataclass(frozen=True)
class _Split:
    images: list[_Listed]
    notes: Notes


def _read_split(folders: Sequence[Path], split: str, roots: Sequence[Path]) -> _Split:
    lists = [folder / "ImageSets" / "Main" / f"{split}.txt" for folder in folders]
    lists = [path for path in lists if path.is_file()] if _NAME.fullmatch(split) else []
    if not lists:
        raise DataError(f"{', '.join(map(str, roots))}: there is no ImageSets/Main/{split}.txt")
    found = _Split([], Notes())
    faults: dict[str, DataError] = {}
    for path in lists:
        keys = [line.split()[0] for line in path.read_text(errors="replace").splitlines() if line.strip()]
        for key, times in Counter(keys).items():
            if times > 1:
                found.notes.add(f"images named more than once in {path.name}, used once", key)
            try:
                found.images.append(_read_image(path.parents[2], key, path))
            except DataError as error:
                faults[key] = error
    if faults:
        first, *others = faults
        more = f" ({counted(len(others), 'further image')} with a fault: {first_of(others, _SHOWN)})" if others else ""
        raise DataError(printable(f"{faults[first]}{more}"))
    if not found.images:
        raise DataError(f"{lists[0]} names no images")
    return found


def _read_image(folder: Path, key: str, listed: Path) -> _Listed:
    if not _NAME.fullmatch(key):
        raise DataError(f"{listed}: {key!r} is no name of an image")
    candidates = (folder / "JPEGImages" / f"{key}.{suffix}" for suffix in ("jpg", *sorted(IMAGE_SUFFIXES)))
    image = next((path for path in candidates if path.is_file()), None)
    if image is None:
        raise DataError(f"{folder / 'JPEGImages' / key}.jpg is missing; {listed} names it")
    annotation = folder / "Annotations" / f"{key}.xml"
    content = _read_annotation(annotation, listed)
    size = _size_of(image)
    try:
        check_boxes(content, size)
    except ValueError as error:
        raise DataError(f"{annotation}: {error}") from None
    return _Listed(key, image, content.objects, size)


def _read_annotation(annotation: Path, listed: Path) -> Annotation:
    try:
        if annotation.stat().st_size > MAX_ANNOTATION_BYTES:
            raise DataError(f"{annotation} is larger than {MAX_ANNOTATION_BYTES:,} bytes")
        return read_annotation(annotation.read_bytes())
    except OSError as error:
        raise DataError(f"{annotation}: {error.strerror}; {listed} names it") from None
    except (ExpatError, ValueError) as error:
        raise DataError(f"{annotation} is no annotation of PASCAL VOC: {error}") from None


def _size_of(image: Path) -> tuple[int, int]:
    try:
        with image.open("rb") as file:
            head = file.read(_HEAD)
            try:
                return upright_size(head)
            except BadImage:
                return upright_size(head + file.read(MAX_BYTES))
    except BadImage as error:
        raise BadImage(f"{image}: {error}") from None
    except OSError as error:
        raise DataError(f"{image}: {error.strerror}") from None


def _boxed(split: _Split, classes: tuple[str, ...]) -> BoxedImages:
    numbers = {name: number for number, name in enumerate(classes)}
    digest = hashlib.sha256("\0".join(classes).encode())
    images = []
    for listed in split.images:
        kept = [one for one in listed.objects if inside(one.sides, listed.size)]
        if left_out := len(listed.objects) - len(kept):
            split.notes.add("boxes without extent in their image, left out", listed.key, left_out)
        if beyond := sum(sticks_out(one.sides, listed.size) for one in kept):
            split.notes.add("boxes that reach beyond their image, used as they are", listed.key, beyond)
        # Pixels count from 1 in VOC; a box from 1 to 2 covers two pixels, from 0 to 2.
        boxes = np.array([one.sides for one in kept], np.float32).reshape(-1, 4) - np.array([1, 1, 0, 0], np.float32)
        labels = np.array([numbers[one.name] for one in kept], np.int64)
        difficult = np.array([one.difficult for one in kept], np.bool_)
        digest.update(f"{listed.key}\0{listed.path.stat().st_size}\0".encode() + boxes.tobytes() + labels.tobytes())
        digest.update(difficult.tobytes())
        images.append(BoxedImage(listed.key, listed.path, boxes, labels, difficult))
    return BoxedImages(tuple(images), classes, digest.hexdigest(), tuple(split.notes.lines()))
