"""Verifying shards against their index, and every image by decoding it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from leoclr.datasets.decode import decode_image
from leoclr.datasets.errors import BadImage, DataError
from leoclr.datasets.files import ignore, sha256_file
from leoclr.datasets.index import Index
from leoclr.datasets.reader import SampleReader
from leoclr.datasets.scan import build_index

REFUSED = "train refuses to start and names the shard"
STOPS = "train stops when it reads the changed part"
SKIPPED = "train puts another image in its place, up to data.max_bad_samples"
_IN_FLIGHT = 64


@dataclass(frozen=True)
class Fault:
    """What is wrong with a shard or an image in it, and what `leoclr train` would do."""

    shard: str
    what: str
    consequence: str


def check_shard(index: Index, number: int, decode: bool, advance: Callable[[int], None] = ignore) -> list[Fault]:
    """Compare one shard with its index.

    Size first, then the SHA-256; where the index holds none, the members are read again. Then every image is decoded,
    unless the bytes are known to be others than those indexed.

    Args:
        number: Of the shard in the index.
        decode: Whether to decode the images.
        advance: Called with the number of samples that are done.
    """
    shard = index.shards[number]
    path = Path(shard.path)
    faults: list[Fault] = []
    if not path.is_file():
        faults.append(Fault(shard.path, "is missing", REFUSED))
    elif (size := path.stat().st_size) != shard.bytes:
        faults.append(Fault(shard.path, f"has {size:,} bytes; the index says {shard.bytes:,}", REFUSED))
    elif shard.sha256 is not None and sha256_file(path) != shard.sha256:
        faults.append(Fault(shard.path, "holds other bytes than when it was indexed (SHA-256)", STOPS))
    elif shard.sha256 is None:
        faults += _compare_members(index, number)
    if faults or not decode:
        advance(shard.samples)
        return faults
    return list(_undecodable(index, number, advance))


def _compare_members(index: Index, number: int) -> list[Fault]:
    path = index.shards[number].path
    try:
        found = build_index([Path(path)], checksum=False)
    except DataError as error:
        return [Fault(path, str(error).removeprefix(f"{path}: "), STOPS)]
    expected = index.with_shards([number])
    columns = ("offset", "length", "label", "key_bytes", "key_end")
    if all(np.array_equal(getattr(found, name), getattr(expected, name)) for name in columns):
        return []
    return [Fault(path, f"holds other samples than its index lists ({len(found):,}, not {len(expected):,})", STOPS)]


def _undecodable(index: Index, number: int, advance: Callable[[int], None]) -> Iterator[Fault]:
    """One fault for each image that cannot be decoded. Pillow decodes outside Python's lock, so threads serve."""
    reader, path = SampleReader(index), index.shards[number].path
    first, last = np.searchsorted(index.shard, [number, number + 1])
    with ThreadPoolExecutor() as pool:
        for start in range(int(first), int(last), _IN_FLIGHT):
            samples = range(start, min(start + _IN_FLIGHT, int(last)))
            try:
                encoded = [reader.read(sample) for sample in samples]
            except DataError as error:
                yield Fault(path, str(error).removeprefix(f"{path}: "), STOPS)
                break
            for sample, problem in zip(samples, pool.map(_problem, encoded), strict=True):
                advance(1)
                if problem is not None:
                    yield Fault(path, f"{index.key(sample)}: {problem}", SKIPPED)
    reader.close()


def _problem(encoded: bytes) -> str | None:
    try:
        decode_image(encoded)
    except BadImage as error:
        return str(error)
    return None
