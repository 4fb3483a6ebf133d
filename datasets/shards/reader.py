"""Random access to the bytes of samples.

Local shards: one positioned read per sample on a file that stays open; no tar parsing, no scanning, no position that
workers share. Remote ones: the same from a cache of blocks on disk, the blocks of a batch fetched side by side.
"""

from __future__ import annotations

import os
import resource
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from PIL import Image

from leoclr.datasets.errors import BadImage, DataError
from leoclr.datasets.images.decode import MAX_BYTES, decode_image, too_long
from leoclr.datasets.shards.checksums import NO_CHECKSUM, checksum
from leoclr.datasets.shards.index import Index
from leoclr.datasets.storage.addresses import is_remote
from leoclr.datasets.storage.block_cache import FETCHES, BlockCache, CachedStorage
from leoclr.datasets.storage.opening import Storage, open_storage

_MAX_OPEN_FILES = 128
_SHARE_OF_FILES = 4  # one in so many of those that a process may open is for shards

Decoded = TypeVar("Decoded")


class SampleReader:
    """Reads samples of an index. Each process opens the shards for itself, at most 128 at a time."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self._shards: OrderedDict[int, Storage] = OrderedDict()
        self._process = os.getpid()
        self._most_open = min(_MAX_OPEN_FILES, max(1, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // _SHARE_OF_FILES))
        self._verified = bytearray(len(index) // 8 + 1)  # a bit for each sample of local shards

    def read(self, number: int) -> bytes:
        """The encoded image of a sample; DataError when its shard has gone or changed since it was indexed.

        Its checksum is compared when this process first reads it: 0.1 ms for a photograph, nothing after that.
        """
        shard_number = int(self.index.shard[number])
        offset, length = int(self.index.offset[number]), int(self.index.length[number])
        storage = self._open(shard_number)
        data = storage.read(offset, length)
        if self._verified[number >> 3] & 1 << (number & 7):
            return data
        if not self._intact(number, data) and isinstance(storage, CachedStorage):
            storage.drop(offset, length)  # the disk may have damaged a block; the server has the truth
            data = storage.read(offset, length)
        if not self._intact(number, data):
            path = self.index.shards[shard_number].path
            raise DataError(
                f"{path}: sample {self.index.key(number)!r} has changed since it was indexed (its checksum differs)"
            )
        if not isinstance(storage, CachedStorage):  # what is fetched again is checked again
            self._verified[number >> 3] |= 1 << (number & 7)
        return data

    def prefetch(self, numbers: Iterable[int]) -> None:
        """Bring what these samples need of remote shards into the cache, several blocks at a time."""
        wanted: dict[tuple[int, int], CachedStorage] = {}
        for number in numbers:
            shard_number = int(self.index.shard[number])
            if is_remote(self.index.shards[shard_number].path):
                storage = self._open(shard_number)
                assert isinstance(storage, CachedStorage)
                for block in storage.missing(int(self.index.offset[number]), int(self.index.length[number])):
                    wanted[shard_number, block] = storage
        if not wanted:
            return
        threads = ThreadPoolExecutor(FETCHES)
        try:
            for _ in threads.map(lambda place: wanted[place].fetch(place[1]), sorted(wanted)):
                pass
        finally:
            threads.shutdown(cancel_futures=True)

    def image(self, number: int) -> Image.Image:
        """A sample as RGB; BadImage names its key and shard."""
        return self.decoded(number, decode_image)

    def decoded(self, number: int, decode: Callable[[bytes], Decoded]) -> Decoded:
        """What `decode` makes of the encoded image of a sample; its BadImage gets the sample's key and shard."""
        try:
            if self.index.length[number] > MAX_BYTES:
                raise BadImage(too_long(int(self.index.length[number])))
            return decode(self.read(number))
        except BadImage as error:
            path = self.index.shards[int(self.index.shard[number])].path
            raise BadImage(f"{self.index.key(number)} in {path}: {error}") from None

    def close(self) -> None:
        """Close all shards; reading opens them again."""
        while self._shards:
            self._shards.popitem()[1].close()

    def _intact(self, number: int, data: bytes) -> bool:
        stored = int(self.index.crc[number])
        kind = self.index.shards[int(self.index.shard[number])].checksum
        return stored == NO_CHECKSUM or checksum(data, kind) == stored

    def _open(self, shard_number: int) -> Storage:
        if self._process != os.getpid():  # forked: share no descriptors, so that closing here closes nothing there
            self._shards, self._process = OrderedDict(), os.getpid()
        if shard_number in self._shards:
            self._shards.move_to_end(shard_number)
            return self._shards[shard_number]
        shard = self.index.shards[shard_number]
        storage: Storage
        if is_remote(shard.path):
            cache = self.index.cache or BlockCache()
            remote = open_storage(shard.path, shard.identity)
            storage = CachedStorage(remote, cache, shard.path, shard.identity or remote.identity(), shard.bytes)
        else:
            storage = open_storage(shard.path)
            if storage.size() != shard.bytes:
                storage.close()
                raise DataError(f"{shard.path} has changed since it was indexed; run `leoclr index` on the data again")
        self._shards[shard_number] = storage
        if len(self._shards) > self._most_open:
            self._shards.popitem(last=False)[1].close()
        return storage

    def __getstate__(self) -> dict[str, Any]:
        return {"index": self.index}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["index"])  # type: ignore[misc]

    def __del__(self) -> None:
        if getattr(self, "_process", None) == os.getpid():
            self.close()
