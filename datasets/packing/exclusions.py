"""Lists of images to exclude."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from leoclr.datasets.errors import DataError
from leoclr.datasets.files import LINE_END
from leoclr.datasets.packing.arrangement import Collection, Picture

_MAX_BYTES = 1 << 30


@dataclass(frozen=True)
class Exclusions:
    """Names of images, and where they were read from."""

    source: str
    names: frozenset[str]

    @property
    def digest(self) -> str:
        """SHA-256 of the names."""
        return hashlib.sha256("\n".join(sorted(self.names)).encode(errors="surrogateescape")).hexdigest()


def read_exclusions(path: Path) -> Exclusions:
    """The lines of a text file; empty ones do not count.

    Raises:
        DataError: It cannot be read, is empty, or is no list of names.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise DataError(f"--without {path}: cannot be read ({error.strerror})") from error
    if len(content) > _MAX_BYTES or b"\0" in content[:4096]:
        raise DataError(f"--without {path}: expected a text file with the key or path of an image on each line")
    text = content.removeprefix(b"\xef\xbb\xbf").decode(errors="surrogateescape")
    names = frozenset(line.strip() for line in LINE_END.split(text) if line.strip())
    if not names:
        raise DataError(f"--without {path}: the list is empty")
    return Exclusions(str(path), names)


def without(collection: Collection, exclusions: Exclusions, source: str) -> Collection:
    """The collection without the images that are listed by path, with or without suffix, by key, or by split and key.

    Raises:
        DataError: No name of the list matches, or all images would be left out.
    """
    matched: set[str] = set()
    splits: dict[str, list[Picture]] = {}
    for split, pictures in collection.splits.items():
        kept = []
        for picture in pictures:
            if found := _names(picture, split, source) & exclusions.names:
                matched |= found
                collection.notes.add(f"left out, listed in {exclusions.source}", picture.path)
            else:
                kept.append(picture)
        if kept:
            splits[split] = kept
    if not matched:
        raise DataError(
            f"--without {exclusions.source}: none of its {len(exclusions.names):,} names is one of {source}'s, "
            f"{min(exclusions.names)!a} first; expected paths in it, or keys"
        )
    if not splits:
        raise DataError(f"--without {exclusions.source}: all images are listed")
    if unknown := exclusions.names - matched:
        collection.notes.add(f"names in {exclusions.source} that match no image", min(unknown), len(unknown))
    return replace(collection, splits=splits)


def _names(picture: Picture, split: str, source: str) -> set[str]:
    stem = picture.path.rpartition(".")[0]
    return {picture.path, stem, picture.key, f"{split}/{picture.key}", f"{source.rstrip('/')}/{picture.path}"}
