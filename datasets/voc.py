"""Images with boxes in the PASCAL VOC layout: Annotations/*.xml, JPEGImages/*, ImageSets/Main/SPLIT.txt.

The files are not trusted. Annotations are read by expat with bounds, a document type (and with it every entity) is
refused; archives are unpacked to names that are made here.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.parsers import expat

import numpy as np
from numpy.typing import NDArray

from leoclr.datasets.errors import BadImage, DataError
from leoclr.datasets.files import ignore
from leoclr.datasets.images.decode import MAX_BYTES, decode_image
from leoclr.datasets.images.file_names import IMAGE_SUFFIXES

MAX_ANNOTATION_BYTES = 2**20
MAX_OBJECTS = 10_000
_FOLDERS = ("Annotations", "ImageSets", "JPEGImages")
_DEEPEST = 3
_NAME = re.compile(r"[\w.()+-]+")
_SIDES = ("xmin", "ymin", "xmax", "ymax")


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
            raise BadImage(f"{self.path}: {error}") from None
        except OSError as error:
            raise DataError(f"{self.path}: {error.strerror}") from None


@dataclass(frozen=True)
class BoxedImages:
    """A split.

    Attributes:
        digest: SHA-256 over keys, sizes of the image files, classes and boxes.
        left_out: Boxes without extent, which are no objects.
    """

    images: tuple[BoxedImage, ...]
    classes: tuple[str, ...]
    digest: str
    left_out: int

    def __len__(self) -> int:
        return len(self.images)


def read_voc(roots: Sequence[Path], train_split: str, test_split: str) -> tuple[BoxedImages, BoxedImages]:
    """Read two splits. A root may be a VOC folder or hold several, such as VOC2007 and VOC2012 in VOCdevkit; a split is
    taken from every one that has it.

    Raises:
        DataError: There is no such layout or split, a file is missing or damaged, the splits share images, no object
            of a class is in the training split, or none at all in the test split.
    """
    # A folder counts once, also where it is named beside the one that it lies in.
    folders = list(dict.fromkeys(folder.resolve() for root in roots for folder in _voc_folders(root)))
    raw = [_read_split(folders, split, roots) for split in (train_split, test_split)]
    shared = {path for _, path, _ in raw[0]} & {path for _, path, _ in raw[1]}
    if shared:
        example = min(shared).name
        raise DataError(f"{len(shared)} images are in {train_split} and in {test_split}, such as {example}")
    classes = tuple(sorted({name for _, _, objects in raw[0] for name, _, _ in objects}))
    absent = {name for _, _, objects in raw[1] for name, _, _ in objects} - set(classes)
    if not classes or absent:
        what = f"{min(absent)!r} of {test_split} is" if absent else "objects are"
        raise DataError(f"{train_split}: {what} not in the training images")
    if not any(objects for _, _, objects in raw[1]):
        raise DataError(f"{test_split}: there is no object in its images, and so no precision")
    train, test = (_boxed(split, classes) for split in raw)
    return train, test


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
        partial.mkdir(parents=True, exist_ok=True)
        (partial / complete.name).touch()
        try:
            partial.rename(folder)
        except OSError:
            if complete.exists():  # another process was faster
                return
            shutil.rmtree(folder, ignore_errors=True)  # what an earlier version left half done
            partial.rename(folder)
    except (tarfile.TarError, EOFError, OSError) as error:
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


_Object = tuple[str, tuple[float, ...], bool]
_Raw = tuple[str, Path, list[_Object]]


def _read_split(folders: Sequence[Path], split: str, roots: Sequence[Path]) -> list[_Raw]:
    lists = [folder / "ImageSets" / "Main" / f"{split}.txt" for folder in folders]
    lists = [path for path in lists if path.is_file()] if _NAME.fullmatch(split) else []
    if not lists:
        raise DataError(f"{', '.join(map(str, roots))}: there is no ImageSets/Main/{split}.txt")
    raw = []
    for path in lists:
        folder = path.parents[2]
        for line in path.read_text(errors="replace").splitlines():
            if line.strip():
                raw.append(_read_image(folder, line.split()[0], path))
    if not raw:
        raise DataError(f"{lists[0]} names no images")
    return raw


def _read_image(folder: Path, key: str, listed: Path) -> _Raw:
    if not _NAME.fullmatch(key):
        raise DataError(f"{listed}: {key!r} is no name of an image")
    candidates = (folder / "JPEGImages" / f"{key}.{suffix}" for suffix in ("jpg", *sorted(IMAGE_SUFFIXES)))
    image = next((path for path in candidates if path.is_file()), None)
    if image is None:
        raise DataError(f"{folder / 'JPEGImages' / key}.jpg is missing; {listed} names it")
    annotation = folder / "Annotations" / f"{key}.xml"
    try:
        if annotation.stat().st_size > MAX_ANNOTATION_BYTES:
            raise DataError(f"{annotation} is larger than {MAX_ANNOTATION_BYTES:,} bytes")
        return key, image, read_annotation(annotation.read_bytes())
    except OSError as error:
        raise DataError(f"{annotation}: {error.strerror}; {listed} names it") from None
    except (expat.ExpatError, ValueError) as error:
        raise DataError(f"{annotation} is no annotation of PASCAL VOC: {error}") from None


def read_annotation(data: bytes) -> list[_Object]:
    """The objects of an annotation: name, sides (xmin, ymin, xmax, ymax as written, from 1), and whether difficult.

    Raises:
        ExpatError, ValueError: It is not well-formed, has a document type, or has no usable box.
    """
    parser = expat.ParserCreate()
    path: list[str] = []
    texts: list[str] = []
    objects: list[dict[str, str]] = []

    def start(name: str, attributes: dict[str, str]) -> None:
        path.append(name)
        texts.append("")
        if path == ["annotation", "object"]:
            if len(objects) >= MAX_OBJECTS:
                raise ValueError(f"more than {MAX_OBJECTS:,} objects")
            objects.append({})
        if len(path) > 16:
            raise ValueError("elements inside elements without end")

    def end(name: str) -> None:
        text = texts.pop().strip()
        path.pop()
        if path == ["annotation", "object"] and name in ("name", "difficult"):
            objects[-1][name] = text
        elif path == ["annotation", "object", "bndbox"] and name in _SIDES:
            objects[-1][name] = text

    def text(data: str) -> None:
        if texts:
            texts[-1] += data

    def refuse(*_: object) -> None:
        raise ValueError("it has a document type")

    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, text
    parser.StartDoctypeDeclHandler = refuse
    parser.Parse(data, True)
    return [_object(found) for found in objects]


def _object(found: dict[str, str]) -> _Object:
    missing = [name for name in ("name", *_SIDES) if not found.get(name)]
    if missing:
        raise ValueError(f"an object has no {missing[0]}")
    sides = tuple(float(found[side]) for side in _SIDES)
    if not np.isfinite(sides).all():
        raise ValueError("a box is not finite")
    return found["name"], sides, found.get("difficult", "0") not in ("", "0")


def _boxed(split: Sequence[_Raw], classes: tuple[str, ...]) -> BoxedImages:
    numbers = {name: number for number, name in enumerate(classes)}
    digest = hashlib.sha256("\0".join(classes).encode())
    images, left_out = [], 0
    for key, path, objects in split:
        kept = [one for one in objects if one[1][2] > one[1][0] - 1 and one[1][3] > one[1][1] - 1]
        left_out += len(objects) - len(kept)
        # Pixels count from 1 in VOC; a box from 1 to 2 covers two pixels, from 0 to 2.
        boxes = np.array([sides for _, sides, _ in kept], np.float32).reshape(-1, 4) - np.array(
            [1, 1, 0, 0], np.float32
        )
        labels = np.array([numbers[name] for name, _, _ in kept], np.int64)
        difficult = np.array([hard for *_, hard in kept], np.bool_)
        digest.update(f"{key}\0{path.stat().st_size}\0".encode() + boxes.tobytes() + labels.tobytes())
        digest.update(difficult.tobytes())
        images.append(BoxedImage(key, path, boxes, labels, difficult))
    return BoxedImages(tuple(images), classes, digest.hexdigest(), left_out)
