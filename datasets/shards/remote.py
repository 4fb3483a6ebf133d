"""Open remote shards: their index, their presence, and the version that a run reads.

The index lies beside the shards, put there with them: `x.index.json` and `x.index.safetensors` beside
`x-000.tar`, `x-001.tar`, ... Where there is none the shards' headers are read through the block cache, which for
images of usual size means all of their bytes, once.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from leoclr.datasets.errors import DataError, Missing
from leoclr.datasets.files import atomic_path, write_atomic
from leoclr.datasets.shards.concatenation import concatenate
from leoclr.datasets.shards.index import COLUMNS_SUFFIX, SUFFIX, Index
from leoclr.datasets.shards.index_format import columns_path, read_json
from leoclr.datasets.shards.joining import joined
from leoclr.datasets.shards.scan import index_file
from leoclr.datasets.shards.shard_names import common_name
from leoclr.datasets.storage.addresses import folder_of, name_of
from leoclr.datasets.storage.block_cache import BlockCache, CachedStorage
from leoclr.datasets.storage.opening import as_file, open_storage
from leoclr.datasets.storage.retries import Patience
from leoclr.datasets.wording import first_of

AT_THE_START = Patience(attempts=4)  # a wrong host name should not take minutes to be told
MAX_JSON_BYTES = 1 << 28
MAX_ROW_BYTES = 1 << 12  # of a sample, its key included
_PART_BYTES = 1 << 26  # of the rows, in memory at a time: how many there are is the server's word
_REQUESTS = 32
_SCANS = 8
_NAMED = 20

Question = TypeVar("Question")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class _Found:
    """A remote file as it was when the data were opened."""

    address: str
    size: int
    identity: str


def open_remote(addresses: Sequence[str], cache: BlockCache, advance: Callable[[int], None]) -> Index:
    """The index of remote shards, given one by one or by index files, in their order.

    Args:
        advance: Called with the bytes of each shard that had to be indexed.

    Raises:
        DataError: Shards are missing (all are named), refused, damaged, or others than their index says.
    """
    index = concatenate(remote_indexes(addresses, cache, advance))
    shards = []
    for shard, found in zip(index.shards, _find([shard.path for shard in index.shards]), strict=True):
        if found.size != shard.bytes:
            raise DataError(
                f"{shard.path} has {found.size:,} bytes where its index says {shard.bytes:,}: it was replaced; "
                "put the index that belongs to it beside it"
            )
        shards.append(replace(shard, identity=found.identity))
    return replace(index, shards=tuple(shards))


def remote_indexes(addresses: Sequence[str], cache: BlockCache, advance: Callable[[int], None]) -> list[Index]:
    """The indexes of remote shards as they are, one for each folder or index file; shards that have one are not looked
    at. Raises DataError as `open_remote` does."""
    cache.prepare()
    groups = itertools.groupby(addresses, key=_index_or_folder)
    return [replace(_open_group(list(group), cache, advance), cache=cache) for _, group in groups]


def cached_file(address: str, cache: BlockCache) -> CachedStorage:
    """A remote file as it is now, read through the cache; Missing where there is none."""
    storage = open_storage(address, patience=AT_THE_START)
    size, identity = storage.size(), storage.identity()
    return CachedStorage(open_storage(address, identity), cache, address, identity, size)


def working_set(index: Index, window: int) -> int:
    """Bytes of remote shards that one stretch of the order goes back and forth in; 0 where all shards are local.

    Args:
        window: Samples that are mixed at a time; 0 for all.
    """
    sizes = [shard.bytes for shard in index.shards if shard.identity]
    if not sizes:
        return 0
    if not window:
        return sum(sizes)
    # A window begins and ends inside a shard, and the windows of two neighbouring batches may both be in use.
    return min(sum(sizes), int(2 * window / len(index) * sum(sizes)) + 2 * max(sizes))


def fitting_window(index: Index, limit: int) -> int:
    """The samples of sixteen shards, or of as many as `limit` bytes hold while the order goes through them; 0 where
    not even one does."""
    per_shard = len(index) // len(index.shards)
    for shards in (16, 8, 4, 2, 1):
        if working_set(index, shards * per_shard) <= limit:
            return shards * per_shard
    return 0


def _index_or_folder(address: str) -> str:
    """What is opened together: shards one behind the other in a folder take one index."""
    return address if address.endswith(SUFFIX) else folder_of(address)


def _open_group(addresses: Sequence[str], cache: BlockCache, advance: Callable[[int], None]) -> Index:
    if addresses[0].endswith(SUFFIX):
        return _fetch_index(addresses[0], cache)
    folder, wanted = folder_of(addresses[0]), [name_of(address) for address in addresses]
    try:
        index = _fetch_index(f"{folder}/{common_name(wanted)}{SUFFIX}", cache)
    except Missing:
        return _build_index(addresses, cache, advance)
    numbers = {name_of(shard.path): number for number, shard in enumerate(index.shards)}
    if not all(name in numbers for name in wanted):
        return _build_index(addresses, cache, advance)
    return index if wanted == list(numbers) else index.with_shards([numbers[name] for name in wanted])


def _fetch_index(address: str, cache: BlockCache) -> Index:
    """The index at an address, by way of a copy in the cache's folder, which is mapped and not read."""
    storage = open_storage(address, patience=AT_THE_START)
    path = _copy_of(cache, f"{address}\0{storage.identity()}")
    if not columns_path(path).exists():
        if storage.size() > MAX_JSON_BYTES:
            raise DataError(f"{address} has {storage.size():,} bytes, which is too large for an index")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, storage.read(0, storage.size()))
        with _named(address, path):
            samples = read_json(path).samples
        columns = open_storage(address.removesuffix(SUFFIX) + COLUMNS_SUFFIX, patience=AT_THE_START)
        if columns.size() > MAX_ROW_BYTES * (samples + 1):
            raise DataError(f"{address}: its rows take {columns.size():,} bytes, too much for {samples:,} samples")
        with atomic_path(columns_path(path)) as temporary, temporary.open("wb") as file:
            for start in range(0, columns.size(), _PART_BYTES):
                file.write(columns.read(start, min(_PART_BYTES, columns.size() - start)))
    with _named(address, path):
        return Index.load(path, folder_of(address))


def _build_index(addresses: Sequence[str], cache: BlockCache, advance: Callable[[int], None]) -> Index:
    """Read the headers of shards that have no index; the result is kept in the cache's folder."""
    shards = _find(addresses)
    path = _copy_of(cache, "\0".join(f"{shard.address}\0{shard.identity}" for shard in shards))
    if not path.exists():

        def scan(shard: _Found) -> Index:
            remote = open_storage(shard.address, shard.identity)
            storage = CachedStorage(remote, cache, shard.address, shard.identity, shard.size)
            try:
                return index_file(as_file(storage), shard.address, checksum=False)
            except DataError:  # perhaps of what came in between: a later try is to fetch it anew
                storage.drop(0, shard.size)
                raise

        parts = []
        for part in _in_parallel(scan, shards, _SCANS):
            parts.append(part)
            advance(part.shards[0].bytes)
        path.parent.mkdir(parents=True, exist_ok=True)
        joined(parts).save(path)
    return Index.load(path, folder_of(addresses[0]))


@contextmanager
def _named(address: str, path: Path) -> Iterator[None]:
    """Errors about a copy as errors about what it is a copy of; a copy that is no index is not kept."""
    try:
        yield
    except DataError as error:
        columns_path(path).unlink(missing_ok=True)
        text = str(error)
        for file, suffix in ((path, SUFFIX), (columns_path(path), COLUMNS_SUFFIX)):
            text = text.replace(str(file), address.removesuffix(SUFFIX) + suffix)
        raise DataError(text) from None


def _copy_of(cache: BlockCache, version: str) -> Path:
    return cache.folder / "indexes" / hashlib.sha256(version.encode()).hexdigest() / f"x{SUFFIX}"


def _find(addresses: Sequence[str]) -> list[_Found]:
    """Size and identity of remote files; DataError with the names of all that are missing."""

    def ask(address: str) -> _Found | None:
        storage = open_storage(address, patience=AT_THE_START)
        try:
            return _Found(address, storage.size(), storage.identity())
        except Missing:
            return None

    answers = list(_in_parallel(ask, addresses, _REQUESTS))
    missing = [address for address, found in zip(addresses, answers, strict=True) if found is None]
    if missing:
        raise DataError(f"{len(missing)} of {len(addresses)} shards are missing: {first_of(missing, _NAMED)}")
    return [found for found in answers if found is not None]


def _in_parallel(ask: Callable[[Question], Answer], questions: Sequence[Question], threads: int) -> Iterator[Answer]:
    """The answers in order; the first error ends all that have not begun."""
    pool = ThreadPoolExecutor(threads)
    try:
        yield from pool.map(ask, questions)
    finally:
        pool.shutdown(cancel_futures=True)
