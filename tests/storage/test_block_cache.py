"""The cache of blocks: bounded, shared by processes, never torn, never mixed up."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from leoclr.datasets.errors import DataError
from leoclr.datasets.storage.block_cache import BLOCK_BYTES, BlockCache, CachedStorage

CONTENT = np.random.default_rng(0).integers(0, 256, 2 * BLOCK_BYTES + 1000, dtype=np.uint8).tobytes()


class Memory:
    """A storage that counts what is read of it."""

    def __init__(self, content: bytes = CONTENT) -> None:
        self.content = content
        self.reads = list[tuple[int, int]]()

    def size(self) -> int:
        return len(self.content)

    def identity(self) -> str:
        return "1"

    def read(self, offset: int, length: int) -> bytes:
        self.reads.append((offset, length))
        return self.content[offset : offset + length]

    def close(self) -> None:
        pass


@pytest.fixture
def cache(tmp_path: Path) -> BlockCache:
    made = BlockCache(tmp_path / "blocks", 16 * BLOCK_BYTES)
    made.prepare()
    return made


def cached(memory: Memory, cache: BlockCache, address: str = "http://host/x.tar", identity: str = "1") -> CachedStorage:
    return CachedStorage(memory, cache, address, identity, len(memory.content))


def block_files(cache: BlockCache) -> list[Path]:
    return [path for path in cache.folder.glob("??/*") if path.is_file()]


def test_ranges_come_from_blocks_that_are_fetched_once(cache: BlockCache) -> None:
    memory = Memory()
    storage = cached(memory, cache)
    for offset, length in ((0, 10), (BLOCK_BYTES - 5, 10), (0, len(CONTENT)), (len(CONTENT) - 1, 1), (7, 0)):
        assert storage.read(offset, length) == CONTENT[offset : offset + length]
    assert memory.reads == [(0, BLOCK_BYTES), (BLOCK_BYTES, BLOCK_BYTES), (2 * BLOCK_BYTES, 1000)]
    assert storage.missing(0, len(CONTENT)) == []


def test_equal_names_in_other_folders_and_other_versions_do_not_meet(cache: BlockCache) -> None:
    train, val, newer = (Memory(bytes([number]) * 100) for number in range(3))
    assert cached(train, cache, "http://host/train/x.tar").read(0, 1) == b"\0"
    assert cached(val, cache, "http://host/val/x.tar").read(0, 1) == b"\1"
    assert cached(newer, cache, "http://host/train/x.tar", identity="2").read(0, 1) == b"\2"
    assert cached(Memory(b""), cache, "http://host/train/x.tar").read(0, 0) == b""


def test_a_damaged_block_is_fetched_again(cache: BlockCache) -> None:
    memory = Memory(CONTENT[:100])
    storage = cached(memory, cache)
    storage.read(0, 1)
    (file,) = block_files(cache)
    file.write_bytes(b"cut short")
    assert storage.missing(0, 1) == [0] and storage.read(0, 100) == CONTENT[:100]
    storage.drop(0, 100)
    assert storage.missing(0, 1) == [0]


def test_the_limit_holds_and_what_was_used_last_stays(cache: BlockCache) -> None:
    memory = Memory(CONTENT[:BLOCK_BYTES])
    storages = [cached(memory, cache, f"http://host/{number}.tar") for number in range(40)]
    for number, storage in enumerate(storages):
        storage.read(0, 1)
        past = time.time() - 10_000 + number
        for path in block_files(cache):
            if time.time() - path.stat().st_mtime < 1_000:
                os.utime(path, (past, past))
        assert sum(path.stat().st_size for path in block_files(cache)) <= cache.limit
        assert storages[0].read(0, 1)  # in use all the time
    assert storages[0].missing(0, 1) == [] and storages[39].missing(0, 1) == [] and storages[5].missing(0, 1) == [0]


def test_half_written_files_of_killed_processes_are_removed(cache: BlockCache) -> None:
    leftover = cache.folder / "ab" / ".abc.1234.tmp"
    leftover.write_bytes(b"half")
    os.utime(leftover, (0, 0))
    cached(Memory(), cache).read(0, 1)
    assert not leftover.exists()


def test_without_room_on_the_disk_reading_goes_on(cache: BlockCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    memory = Memory()
    storage = cached(memory, cache)
    assert storage.read(5, 10) == CONTENT[5:15]
    assert block_files(cache) == [] and memory.reads == [(0, BLOCK_BYTES)]


def test_a_folder_that_cannot_be_written_or_a_tiny_limit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"run\.cache"):
        BlockCache(tmp_path / "file" / "blocks").prepare()
    with pytest.raises(DataError, match="too small"):
        BlockCache(tmp_path, 1000).prepare()


FILL = """
import sys
from pathlib import Path
from leoclr.datasets.storage.block_cache import BlockCache, CachedStorage
from leoclr.datasets.storage.http import HttpStorage

address, folder = sys.argv[1], Path(sys.argv[2])
remote = HttpStorage(address)
storage = CachedStorage(remote, BlockCache(folder), address, remote.identity(), remote.size())
sys.stdin.readline()
sys.stdout.buffer.write(storage.read(0, storage.size()))
"""


def test_processes_that_fill_one_cache_fetch_each_block_once(
    tmp_path: Path, cache: BlockCache, serve: Callable[[Path], str]
) -> None:
    (tmp_path / "x.tar").write_bytes(CONTENT)
    url = serve(tmp_path)
    command = [sys.executable, "-c", FILL, f"{url}/x.tar", str(cache.folder)]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(3)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(b"go\n")
        process.stdin.flush()
    assert [process.communicate()[0] == CONTENT for process in processes] == [True] * 3
    assert sorted(path.stat().st_size for path in block_files(cache)) == [1000, BLOCK_BYTES, BLOCK_BYTES]
    from urllib.request import urlopen

    with urlopen(f"{url}/log") as response:
        assert response.read().count(b'"range": "bytes=4194304-8388607"') == 1
