"""Lists of images to exclude."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from leoclr.datasets.errors import DataError
from leoclr.datasets.files import LINE_END
from leoclr.datasets.packing.arrangement import Collection, Picture

_MAX_BYTES = 1 << 30
# What a name may be, in order: the first kind of which there is an image counts.
_KINDS: tuple[Callable[[Picture, str, str], tuple[str, ...]], ...] = (
    lambda picture, split, source: (picture.path, f"{source.rstrip('/')}/{picture.path}"),
    lambda picture, split, source: (f"{split}/{picture.key}",),
    lambda picture, split, source: (picture.key,),
    lambda picture, split, source: (picture.path.rpartition(".")[0],),
)


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
    """The collection without the images that are listed: a name is a path, or else a split and key, or else a key, or
    else a path without its suffix, so that a key does not stand for a file of another suffix, too.

    Raises:
        DataError: No name of the list matches, or all images would be left out.
    """
    matched: dict[str, list[Picture]] = {}
    left_out: set[tuple[str, str]] = set()
    for names_of in _KINDS:
        found: dict[str, list[Picture]] = {}
        for split, pictures in collection.splits.items():
            for picture in pictures:
                for name in names_of(picture, split, source):
                    if name in exclusions.names and name not in matched:
                        found.setdefault(name, []).append(picture)
                        left_out.add((split, picture.path))
        matched |= found
    splits: dict[str, list[Picture]] = {}
    for split, pictures in collection.splits.items():
        kept = []
        for picture in pictures:
            if (split, picture.path) in left_out:
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
    if unknown := exclusions.names - matched.keys():
        collection.notes.add(f"names in {exclusions.source} that match no image", min(unknown), len(unknown))
    if several := [name for name, found in matched.items() if len(found) > 1]:
        collection.notes.add(
            f"names in {exclusions.source} that match several images, all left out", min(several), len(several)
        )
    return replace(collection, splits=splits)
