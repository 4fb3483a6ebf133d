"""Verify shards against their index and decode every image."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from leoclr.datasets.errors import BadImage, DataError, Missing
from leoclr.datasets.files import ignore
from leoclr.datasets.images.decode import MAX_BYTES, decode_image, too_long
from leoclr.datasets.images.file_facts import facts_of
from leoclr.datasets.shards.index import Index
from leoclr.datasets.shards.labels import renumbered
from leoclr.datasets.shards.reader import SampleReader
from leoclr.datasets.shards.scan import index_file
from leoclr.datasets.storage.addresses import is_remote
from leoclr.datasets.storage.block_cache import BlockCache, CachedStorage
from leoclr.datasets.storage.opening import LocalFile, Storage, as_file

REFUSED = "train refuses to start and names the shard"
STOPS = "train stops when it reads the changed part"
SKIPPED = "train puts another image in its place, up to data.max_bad_samples"
USED = "train uses it as it is"
_IN_FLIGHT = 64
_FEW_VALUES = 16  # of 256: what 12 bits look like in a file that declares 16
_ALMOST_ONE_VALUE = (
    "images of almost one value (where 16 bits hold fewer, `leoclr shard --levels LOW:HIGH` says the range)"
)
_OUTLIERS = 0.001  # share of the pixels, at either end
_PIECE = 1 << 25  # bytes of a shard that are in memory at a time


@dataclass(frozen=True)
class Fault:
    """What is wrong with a shard or an image in it, and what `leoclr train` would do; no fault but a warning where that
    is `USED`."""

    shard: str
    what: str
    consequence: str


def check_shard(index: Index, number: int, decode: bool, advance: Callable[[int], None] = ignore) -> list[Fault]:
    """Compare one shard, local or remote, with its index.

    Size first, then the SHA-256; where the index holds none, the members are read again. Then every image is decoded,
    unless the bytes are known to be others than those indexed.

    Args:
        number: Of the shard in the index.
        decode: Whether to decode the images.
        advance: Called with the number of samples that are done.

    Raises:
        DataError: A server refuses to show the shard, or cannot be reached.
    """
    shard = index.shards[number]
    try:
        with closing(_open(index, number)) as storage:
            fault = _difference(index, number, storage)
    except Missing:
        fault = Fault(shard.path, "is missing", REFUSED)
    if fault or not decode:
        advance(shard.samples)
        return [fault] if fault else []
    return list(_undecodable(index, number, advance))


def difference_of_members(index: Index, number: int) -> str | None:
    """What a local shard holds that its index does not say, by the headers of its members; None where they agree."""
    with closing(LocalFile(Path(index.shards[number].path))) as storage:
        fault = _compare_members(index, number, storage)
    return fault.what if fault else None


def sha256_of(storage: Storage) -> str:
    """SHA-256 in hexadecimal of all of a file; what is remote is fetched several blocks at a time."""
    digest, size = hashlib.sha256(), storage.size()
    for start in range(0, size, _PIECE):
        length = min(_PIECE, size - start)
        if isinstance(storage, CachedStorage):
            storage.bring(start, length)
        digest.update(storage.read(start, length))
    return digest.hexdigest()


def _open(index: Index, number: int) -> Storage:
    path = index.shards[number].path
    if not is_remote(path):
        return LocalFile(Path(path))
    from leoclr.datasets.shards.remote import cached_file

    return cached_file(path, index.cache or BlockCache())


def _difference(index: Index, number: int, storage: Storage) -> Fault | None:
    shard = index.shards[number]
    if (size := storage.size()) != shard.bytes:
        return Fault(shard.path, f"has {size:,} bytes; the index says {shard.bytes:,}", REFUSED)
    if shard.sha256 is None:
        return _compare_members(index, number, storage)
    if sha256_of(storage) != shard.sha256:
        return Fault(shard.path, "holds other bytes than when it was indexed (SHA-256)", STOPS)
    return None


def _compare_members(index: Index, number: int, storage: Storage) -> Fault | None:
    path = index.shards[number].path
    try:
        found = index_file(as_file(storage), path, checksum=False, which=index.shards[number].members)
    except DataError as error:
        return Fault(path, str(error).removeprefix(f"{path}: "), STOPS)
    expected = index.with_shards([number])
    if found.classes:
        found = replace(found, label=renumbered(found.label, found.classes, expected.classes))
    columns = ("offset", "length", "label", "key_bytes", "key_end")
    if all(np.array_equal(getattr(found, name), getattr(expected, name)) for name in columns):
        return None
    return Fault(path, f"holds other samples than its index lists ({len(found):,}, not {len(expected):,})", STOPS)


def _undecodable(index: Index, number: int, advance: Callable[[int], None]) -> Iterator[Fault]:
    """One fault for each image that cannot be decoded. Pillow decodes outside Python's lock, so threads serve."""
    reader, path = SampleReader(index), index.shards[number].path
    remarks: dict[str, tuple[int, str]] = {}
    first, last = np.searchsorted(index.shard, [number, number + 1])
    with ThreadPoolExecutor() as pool:
        for samples in _groups(index, int(first), int(last)):
            if index.length[samples[0]] > MAX_BYTES:
                advance(1)
                yield Fault(path, f"{index.key(samples[0])}: {too_long(int(index.length[samples[0]]))}", SKIPPED)
                continue
            try:
                reader.prefetch(samples)
                encoded = [reader.read(sample) for sample in samples]
            except DataError as error:
                yield Fault(path, str(error).removeprefix(f"{path}: "), STOPS)
                break
            for sample, (problem, found) in zip(samples, pool.map(_look, encoded), strict=True):
                advance(1)
                if problem is not None:
                    yield Fault(path, f"{index.key(sample)}: {problem}", SKIPPED)
                for remark, what in found.items():
                    count, seen = remarks.get(remark, (0, f"{index.key(sample)}{what}"))
                    remarks[remark] = (count + 1, seen)
    reader.close()
    for remark, (count, seen) in remarks.items():
        yield Fault(path, f"{remark}: {count:,} ({seen}{' first' if count > 1 else ''})", USED)


def _groups(index: Index, first: int, last: int) -> Iterator[range]:
    """Samples that are read together: so many, and of so many bytes that memory stays bounded; too long ones alone."""
    start = first
    while start < last:
        stop, length = start + 1, int(index.length[start])
        while stop < min(start + _IN_FLIGHT, last) and length + index.length[stop] <= MAX_BYTES:
            length += int(index.length[stop])
            stop += 1
        yield range(start, stop)
        start = stop


def _look(encoded: bytes) -> tuple[str | None, dict[str, str]]:
    """What is wrong with an image; and remarks on one that is used, each with what is said of it beside its key."""
    try:
        image = decode_image(encoded)
    except BadImage as error:
        return str(error), {}
    remarks = dict.fromkeys(facts_of(encoded).remarks, "")
    if (values := _few_values(image)) is not None:
        remarks[_ALMOST_ONE_VALUE] = f", {values[0]} to {values[1]} of 255"
    return None, remarks


def _few_values(image: Image.Image) -> tuple[int, int] | None:
    """The lowest and highest value where those of each channel lie within 16 of 256, but for a few outliers."""
    counts = np.array(image.histogram()).reshape(3, 256)
    within = counts.cumsum(axis=1) / max(1, image.width * image.height)
    lowest, highest = (within > _OUTLIERS).argmax(axis=1), (within >= 1 - _OUTLIERS).argmax(axis=1)
    return (int(lowest.min()), int(highest.max())) if (highest - lowest < _FEW_VALUES).all() else None
