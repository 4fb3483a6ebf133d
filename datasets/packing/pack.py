"""Pack the images of a source into WebDataset shards.

Each sample is `KEY.jpg` (or another format), `KEY.cls` with the class number as text where there is one, and
`KEY.json` and `KEY.txt` where the source has such files beside the image. An image whose key had to differ from its
name gets a `KEY.json` with its name in the source, unless it has one of its own.

The same source, recipe and seed give the same bytes: the order is a keyed permutation of the sorted names, the tar
headers hold no time and no user, and threads only read and code ahead, never decide.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from leoclr.datasets.errors import BadImage, DataError
from leoclr.datasets.files import ignore
from leoclr.datasets.images.file_names import suffix_of
from leoclr.datasets.notes import Notes
from leoclr.datasets.packing.arrangement import Collection, Picture
from leoclr.datasets.packing.duplicates import Contents, repeated_rows, shared_rows
from leoclr.datasets.packing.encoding import Encoding, usual_suffix
from leoclr.datasets.packing.file_kinds import SIDECAR_SUFFIXES
from leoclr.datasets.packing.journal import Finished, Journal
from leoclr.datasets.packing.shard_files import ShardFiles
from leoclr.datasets.packing.sources import Source
from leoclr.datasets.randomness import Permutation
from leoclr.datasets.shards.index import NO_LABEL, Index
from leoclr.datasets.threads import ordered_map
from leoclr.datasets.wording import printable

_ORDER = 2  # tells this use of the seed from that of the hold-out


@dataclass(frozen=True)
class PackingRecipe:
    """How to pack.

    Attributes:
        name: What shards and index are called.
        shard_bytes: A shard ends before its samples take more; a larger image still gets a shard of its own.
        encoding: What becomes of the images' bytes.
        seed: Chooses the order of the images.
        workers: Threads that read, check and code images.
        max_bad: Images that may be unreadable, in all splits together, before packing stops.
        made: What the index records of how the data were made.
    """

    name: str
    shard_bytes: int = 256_000_000
    encoding: Encoding = field(default_factory=Encoding)
    seed: int = 0
    workers: int = 1
    max_bad: int = 100
    made: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PackedSplit:
    """What was written of one split. `skipped` says `path: reason` for each image that was left out."""

    split: str
    index: Index
    skipped: tuple[str, ...]
    contents: Contents

    @property
    def copies(self) -> int:
        """Images whose bytes are those of an earlier one."""
        return len(repeated_rows(self.contents))

    def shared_with(self, other: PackedSplit) -> int:
        """Images whose bytes are those of one of another split."""
        return shared_rows(self.contents, other.contents)

    @property
    def images(self) -> int:
        return len(self.index)

    @property
    def shards(self) -> int:
        return len(self.index.shards)

    @property
    def bytes(self) -> int:
        return sum(shard.bytes for shard in self.index.shards)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.index.classes


def pack(
    source: Source,
    collection: Collection,
    folder: Path,
    recipe: PackingRecipe,
    advance: Callable[[int], None] = ignore,
    journal: Journal | None = None,
) -> list[PackedSplit]:
    """Write shards and index of every split: into `folder` where there are no splits, else into `folder/SPLIT`.

    Args:
        advance: Called with 1 for each image that is done.
        journal: Of finished shards in `folder`, which are taken as they are; further ones are noted there.

    Raises:
        DataError: More than `max_bad` images are unreadable, or all of a split.
    """
    packed: list[PackedSplit] = []
    skipped: list[str] = []
    for split in collection.splits:
        packed.append(_pack_split(source, collection, split, folder / split, recipe, advance, journal, skipped))
    return packed


def _pack_split(
    source: Source,
    collection: Collection,
    split: str,
    target: Path,
    recipe: PackingRecipe,
    advance: Callable[[int], None],
    journal: Journal | None,
    skipped: list[str],
) -> PackedSplit:
    """Write one split into `target`.

    Args:
        skipped: `path: reason` for each image of the splits before that was left out; those of this one are added.
    """
    pictures = collection.splits[split]
    target.mkdir(exist_ok=True)
    earlier = journal.finished(split) if journal else []
    done = earlier[-1].pictures if earlier else 0
    skipped_before = len(skipped)
    skipped += [line for entry in earlier for line in entry.skipped]
    noted, notes = len(skipped), Notes()
    for reason, (count, first) in earlier[-1].notes.items() if earlier else ():
        notes.add(reason, first, count)

    def finished(path: Path, sha256: str) -> None:
        nonlocal noted
        if journal is not None:
            journal.add(Finished(split, path.name, sha256, done, skipped[noted:], notes.found()))
            noted = len(skipped)

    with ShardFiles(target, recipe.name, recipe.shard_bytes, finished) as shards:
        for entry in earlier:
            shards.take(target / entry.shard, entry.sha256)
        with closing(_samples(source, collection.sidecars, pictures, recipe, done)) as samples:
            for sample in samples:
                if isinstance(sample, _Sample):
                    shards.write(sample.key, sample.members)
                    if sample.misnamed:
                        notes.add("stored under the suffix of what their bytes are", sample.misnamed)
                    for remark in sample.remarks:
                        notes.add(remark, sample.path)
                    for path in sample.unread:
                        notes.add("left out, text files that cannot be read", path)
                else:
                    skipped.append(sample)
                done += 1
                _check_limit(skipped, recipe.max_bad)
                advance(1)
    collection.notes.update(notes)
    if not shards.digests:
        first_skipped = skipped[skipped_before]
        raise DataError(f"{source.name}: none of the {len(pictures)} images can be read; the first: {first_skipped}")
    labelled = any(picture.label != NO_LABEL for picture in pictures)
    index = shards.index(collection.classes if labelled else (), recipe.made)
    return PackedSplit(split, index, tuple(skipped[skipped_before:]), shards.contents)


def _check_limit(skipped: list[str], limit: int) -> None:
    if len(skipped) > limit:
        raise DataError(f"more than {limit} images cannot be read (--max-bad allows more); the last: {skipped[-1]}")


@dataclass(frozen=True)
class _Sample:
    key: str
    members: dict[str, bytes]
    path: str
    misnamed: str
    remarks: tuple[str, ...]
    unread: tuple[str, ...]  # sidecars


def _samples(
    source: Source, sidecars: Mapping[str, str], pictures: list[Picture], recipe: PackingRecipe, start: int
) -> Generator[_Sample | str, None, None]:
    """Samples in packing order, from the place `start` on; for an unreadable image `path: reason` takes its place."""

    def make(number: int) -> _Sample | str:
        picture = pictures[number]
        try:
            read = source.read(picture.path)
            data, suffix, remarks = recipe.encoding.apply(read, suffix_of(picture.path))
        except BadImage as error:
            return f"{printable(picture.path)}: {error}"
        beside, unread = _sidecars(source, sidecars, picture)
        members = {suffix: data, **beside}
        if picture.label != NO_LABEL:
            members["cls"] = str(picture.label).encode()
        same = data is not read or usual_suffix(suffix_of(picture.path)) == suffix
        misnamed = "" if same else f"{picture.path} is {suffix}"
        return _Sample(picture.key, members, picture.path, misnamed, remarks, unread)

    order = Permutation(len(pictures), recipe.seed, _ORDER)(np.arange(start, len(pictures)))
    return ordered_map(make, map(int, order), recipe.workers)


def _sidecars(
    source: Source, sidecars: Mapping[str, str], picture: Picture
) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """The text files of an image by suffix, and those that cannot be read: the image does not go with them."""
    stem = picture.path.rpartition(".")[0]
    members, unread = dict[str, bytes](), list[str]()
    for suffix in SIDECAR_SUFFIXES:
        if (path := sidecars.get(f"{stem}.{suffix}")) is not None:
            try:
                members[suffix] = source.read(path)
            except BadImage:
                unread.append(path)
    if picture.renamed and "json" not in members:
        members["json"] = json.dumps({"path": picture.path}).encode()
    return members, tuple(unread)
