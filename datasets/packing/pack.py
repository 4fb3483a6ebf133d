"""Images of a source into WebDataset shards.

Each sample is `KEY.jpg` (or another format), `KEY.cls` with the class number as text where there is one, and
`KEY.json` and `KEY.txt` where the source has such files beside the image. An image whose key had to differ from its
name gets a `KEY.json` with its name in the source, unless it has one of its own.

The same source, recipe and seed give the same bytes: the order is a keyed permutation of the sorted names, the tar
headers hold no time and no user, and threads only read and code ahead, never decide.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from leoclr.datasets.errors import BadImage, DataError
from leoclr.datasets.files import ignore
from leoclr.datasets.packing.arrangement import Collection, Picture
from leoclr.datasets.packing.encoding import Encoding
from leoclr.datasets.packing.shard_files import ShardFiles
from leoclr.datasets.packing.sources import SIDECAR_SUFFIXES, Source, suffix_of
from leoclr.datasets.randomness import Permutation
from leoclr.datasets.shards.index import NO_LABEL

_ORDER = 2  # tells this use of the seed from that of the hold-out
_AHEAD = 4  # images in memory for each thread
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Recipe:
    """How to pack.

    Attributes:
        name: What shards and index are called.
        shard_bytes: A shard ends before its samples take more; a larger image still gets a shard of its own.
        encoding: What becomes of the images' bytes.
        seed: Chooses the order of the images.
        workers: Threads that read, check and code images.
        max_bad: Images that may be unreadable, in all splits together, before packing stops.
    """

    name: str
    shard_bytes: int = 256_000_000
    encoding: Encoding = field(default_factory=Encoding)
    seed: int = 0
    workers: int = 1
    max_bad: int = 100


@dataclass(frozen=True)
class PackedSplit:
    """What was written of one split. `skipped` says `path: reason` for each image that was left out."""

    split: str
    images: int
    shards: int
    bytes: int
    classes: tuple[str, ...]
    skipped: tuple[str, ...]


def pack(
    source: Source, collection: Collection, folder: Path, recipe: Recipe, advance: Callable[[int], None] = ignore
) -> list[PackedSplit]:
    """Write shards and index of every split: into `folder` where there are no splits, else into `folder/SPLIT`.

    Args:
        advance: Called with 1 for each image that is done.

    Raises:
        DataError: More than `max_bad` images are unreadable, or all of a split.
    """
    packed: list[PackedSplit] = []
    skipped: list[str] = []
    for split, pictures in collection.splits.items():
        target = folder / split
        target.mkdir(exist_ok=True)
        skipped_before = len(skipped)
        with (
            ShardFiles(target, recipe.name, recipe.shard_bytes) as shards,
            closing(_samples(source, collection.sidecars, pictures, recipe)) as samples,
        ):
            for sample in samples:
                if isinstance(sample, _Sample):
                    shards.write(sample.key, sample.members)
                else:
                    skipped.append(sample)
                _check_limit(skipped, recipe.max_bad)
                advance(1)
        if not shards.digests:
            first = skipped[skipped_before]
            raise DataError(f"{source.name}: none of the {len(pictures)} images can be read; the first: {first}")
        labelled = any(picture.label != NO_LABEL for picture in pictures)
        index = shards.index(collection.classes if labelled else ())
        size = sum(shard.bytes for shard in index.shards)
        lines = tuple(skipped[skipped_before:])
        packed.append(PackedSplit(split, len(index), len(index.shards), size, index.classes, lines))
    return packed


def _check_limit(skipped: list[str], limit: int) -> None:
    if len(skipped) > limit:
        raise DataError(f"more than {limit} images cannot be read (--max-bad allows more); the last: {skipped[-1]}")


@dataclass(frozen=True)
class _Sample:
    key: str
    members: dict[str, bytes]


def _samples(
    source: Source, sidecars: frozenset[str], pictures: list[Picture], recipe: Recipe
) -> Generator[_Sample | str, None, None]:
    """Samples in packing order; for an unreadable image `path: reason` takes its place."""

    def make(number: int) -> _Sample | str:
        picture = pictures[number]
        try:
            data, suffix = recipe.encoding.apply(source.read(picture.path), suffix_of(picture.path))
            members = {suffix: data, **_sidecars(source, sidecars, picture)}
        except BadImage as error:
            return f"{picture.path}: {error}"
        if picture.label != NO_LABEL:
            members["cls"] = str(picture.label).encode()
        return _Sample(picture.key, members)

    order = Permutation(len(pictures), recipe.seed, _ORDER)(np.arange(len(pictures)))
    return ordered_map(make, order.tolist(), recipe.workers)


def _sidecars(source: Source, sidecars: frozenset[str], picture: Picture) -> dict[str, bytes]:
    stem = picture.path.rpartition(".")[0]
    found = {suffix: f"{stem}.{suffix}" for suffix in SIDECAR_SUFFIXES if f"{stem}.{suffix}" in sidecars}
    members = {suffix: source.read(path) for suffix, path in found.items()}
    if picture.renamed and "json" not in members:
        members["json"] = json.dumps({"path": picture.path}).encode()
    return members


def ordered_map(
    work: Callable[[_Item], _Result], items: Iterable[_Item], workers: int
) -> Generator[_Result, None, None]:
    """`map` on threads: results in the order of `items`, and never more than a few of them in memory.

    Threads are enough, since reading, decoding and hashing let go of Python's lock.
    """
    with ThreadPoolExecutor(workers) as threads:
        pending: deque[Future[_Result]] = deque()
        try:
            for item in items:
                pending.append(threads.submit(work, item))
                if len(pending) >= _AHEAD * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
