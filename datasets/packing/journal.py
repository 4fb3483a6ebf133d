"""Shards that an interrupted packing finished. The next packing of the same images in the same way goes on from them.

The journal is a file of JSON lines in the staging folder: first the fingerprint of all that decides the bytes of the
shards, then a line for each finished shard. Shards are taken only while their SHA-256 is that of the journal.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import PIL

from leoclr.datasets.files import ignore, sha256_file
from leoclr.datasets.json_text import parse_json_text
from leoclr.datasets.packing.arrangement import SPLITS, Collection
from leoclr.datasets.packing.sources import Source

JOURNAL_NAME = "journal.jsonl"
_FORMAT = 2


@dataclass(frozen=True)
class Finished:
    """A finished shard, and what holds of its split up to its end.

    Attributes:
        pictures: How many of the split's pictures, in packing order, are in this shard and those before it, or skipped.
        skipped: `path: reason` for each that was skipped since the shard before.
        notes: Counts and first names, by reason.
    """

    split: str
    shard: str
    sha256: str
    pictures: int
    skipped: list[str]
    notes: dict[str, tuple[int, str]]


class Journal:
    """The journal of a staging folder. Without one of the same fingerprint the folder is emptied."""

    def __init__(self, staging: Path, fingerprint: str) -> None:
        self._staging, self._file = staging, staging / JOURNAL_NAME
        self._found = _read(self._file, fingerprint)
        self._verified: dict[str, list[Finished]] = {}
        self._fingerprint = fingerprint

    @property
    def bytes(self) -> int:
        """What `verify` reads."""
        return sum(size for entry in self._found if (size := _size(self._path(entry))) is not None)

    @property
    def shards(self) -> int:
        """Verified shards."""
        return sum(map(len, self._verified.values()))

    @property
    def pictures(self) -> int:
        """Pictures that need not be packed again."""
        return sum(entries[-1].pictures for entries in self._verified.values())

    def verify(self, advance: Callable[[int], None] = ignore) -> None:
        """Read the finished shards, remove what is not as the journal says, and begin the journal anew."""
        broken = set[str]()
        for entry in self._found:
            path = self._path(entry)
            if entry.split in broken or _size(path) is None or sha256_file(path, advance) != entry.sha256:
                broken.add(entry.split)
            else:
                self._verified.setdefault(entry.split, []).append(entry)
        kept = {self._path(entry) for entries in self._verified.values() for entry in entries}
        for path in self._staging.iterdir():
            if path.is_file():
                if path not in kept:
                    path.unlink()
            elif not any(shard.is_relative_to(path) for shard in kept):
                shutil.rmtree(path)
            else:
                _remove_others(path, kept)
        self._append({"format": _FORMAT, "fingerprint": self._fingerprint})
        for entries in self._verified.values():
            for entry in entries:
                self._append(asdict(entry))

    def finished(self, split: str) -> list[Finished]:
        """The verified shards of a split, in order."""
        return self._verified.get(split, [])

    def add(self, entry: Finished) -> None:
        """Note a shard that is on the disk now."""
        self._append(asdict(entry))

    def _path(self, entry: Finished) -> Path:
        return self._staging / entry.split / entry.shard

    def _append(self, line: dict[str, Any]) -> None:
        with self._file.open("a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())


def fingerprint(source: Source, collection: Collection, recipe: Any) -> str:
    """A digest of all that decides the bytes of the shards: the images by name, size and time, and the recipe."""
    decides = (recipe.name, recipe.shard_bytes, asdict(recipe.encoding), recipe.seed, collection.classes)
    digest = hashlib.sha256(json.dumps([_FORMAT, PIL.__version__, decides]).encode())
    for split, pictures in collection.splits.items():
        for picture in pictures:
            row = (split, picture.path, picture.key, picture.label, source.stamp(picture.path))
            digest.update(json.dumps(row).encode())
    for name, path in sorted(collection.sidecars.items()):
        digest.update(json.dumps((name, path, source.stamp(path))).encode())
    return digest.hexdigest()


def kept_shards(staging: Path) -> int:
    """How many finished shards a journal lists; 0 where there is none."""
    try:
        return max(0, (staging / JOURNAL_NAME).read_bytes().count(b"\n") - 1)
    except OSError:
        return 0


def _read(file: Path, fingerprint: str) -> list[Finished]:
    """The entries of a journal of this fingerprint, up to one that was not written in full."""
    found: list[Finished] = []
    try:
        first, *lines = file.read_text(encoding="utf-8").splitlines()
        if parse_json_text(first) != {"format": _FORMAT, "fingerprint": fingerprint}:
            return []
        for line in lines:
            entry = Finished(**parse_json_text(line))
            before = [other.pictures for other in found if other.split == entry.split]
            if "/" in entry.shard or entry.split not in ("", *SPLITS) or not max(before, default=0) < entry.pictures:
                break
            found.append(entry)
    except (OSError, ValueError, TypeError):
        pass
    return found


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _remove_others(folder: Path, kept: set[Path]) -> None:
    for path in folder.iterdir():
        if path not in kept:
            path.unlink()
