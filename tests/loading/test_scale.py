"""Ten million samples in a thousand shards: an index without images, read as training reads it."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from numpy.typing import NDArray

from leoclr.datasets.loading.plan import Plan
from leoclr.datasets.shards.index import Index, Shard

SHARDS, PER_SHARD, KEY_LENGTH = 1_000, 10_000, 8
Result = TypeVar("Result")


def synthetic(folder: Path, shards: int, per_shard: int) -> Index:
    """An index of shards that do not exist; the key of sample i is i in eight digits."""
    samples = shards * per_shard
    digits = np.arange(samples)[:, None] // 10 ** np.arange(KEY_LENGTH - 1, -1, -1) % 10
    return Index(
        shards=tuple(Shard(f"{folder}/s-{i:06d}.tar", per_shard * 1024, per_shard, None) for i in range(shards)),
        shard=np.repeat(np.arange(shards, dtype=np.int32), per_shard),
        offset=np.tile(np.arange(per_shard, dtype=np.int64) * 1024, shards),
        length=np.full(samples, 512, np.int64),
        label=np.arange(samples, dtype=np.int64) % 1_000,
        crc=np.zeros(samples, np.uint32),
        key_bytes=(digits + ord("0")).astype(np.uint8).ravel(),
        key_end=np.arange(KEY_LENGTH, KEY_LENGTH * samples + 1, KEY_LENGTH, dtype=np.int64),
    )


def timed(function: Callable[[], Result]) -> tuple[Result, float]:
    """A result, and the processor seconds that it took."""
    start = time.process_time()
    result = function()
    return result, time.process_time() - start


@pytest.fixture(scope="module")
def sorting() -> float:
    """Processor seconds for sorting a million numbers, the best of three. Bounds are multiples of it, so that they hold
    on a slow machine and on a busy one."""
    numbers = np.random.default_rng(0).random(1_000_000)
    return min(timed(lambda: np.sort(numbers))[1] for _ in range(3))


def test_choosing_shards_and_samples_keeps_their_keys(tmp_path: Path) -> None:
    index = synthetic(tmp_path, 5, 7)
    chosen = index.subset(np.array([34, 0, 8, 8]))
    assert chosen.keys() == ["00000034", "00000000", "00000008", "00000008"]
    part = index.with_shards([3, 1])
    assert part.keys() == [f"{i:08d}" for i in (*range(21, 28), *range(7, 14))]
    assert part.shard.tolist() == [0] * 7 + [1] * 7 and part.offset.tolist() == index.offset[:14].tolist()
    uneven = replace(index, key_end=np.sort(np.random.default_rng(0).integers(0, 280, 35)))
    numbers = np.random.default_rng(1).permutation(35)
    assert uneven.subset(numbers).keys() == [uneven.key(int(number)) for number in numbers]
    assert not index.subset(np.empty(0, np.int64)).keys()


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scale")
    path = folder / "s.index.json"
    synthetic(folder, SHARDS, PER_SHARD).save(path)
    return path


def private_megabytes() -> float:
    """Memory of this process that no file backs and the kernel therefore cannot drop."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) / 1024


def in_fork(function: Callable[[], float]) -> float:
    """What a function returns in a forked process, as a loader process is one."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, repr(function()).encode())
        os._exit(0)
    os.waitpid(child, 0)
    text = os.read(read, 100)
    os.close(read)
    os.close(write)
    return float(text)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_ten_million_samples_load_in_seconds_and_take_little_memory(stored: Path, sorting: float) -> None:
    before = private_megabytes()
    index, seconds = timed(lambda: Index.load(stored))
    after = private_megabytes()
    _, digest_seconds = timed(lambda: index.digest)
    half, half_seconds = timed(lambda: index.with_shards(range(0, SHARDS, 2)))
    assert half.key(PER_SHARD) == f"{2 * PER_SHARD:08d}"
    assert seconds < 500 * sorting and digest_seconds < 250 * sorting and half_seconds < 1000 * sorting
    assert after - before < 100  # the columns are mapped: 480 MB on disk

    def read_rows() -> float:
        start = private_megabytes()
        plan = Plan.of(index, 256, 0)
        for step in range(0, 30_000, 100):
            for number in plan.step(step).samples.tolist():
                assert index.key(number) == f"{number:08d}" and index.offset[number] == number % PER_SHARD * 1024
        return private_megabytes() - start

    grown = [in_fork(read_rows) for _ in range(3)]
    assert max(grown) < 30
    print(
        f"\n10 million samples: load {seconds:.1f} s, digest {digest_seconds:.1f} s, 500 of 1,000 shards "
        f"{half_seconds:.1f} s; private memory {after - before:.0f} MB, each worker {max(grown):.0f} MB more; "
        f"peak RSS {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MB"
    )


@pytest.mark.slow
@pytest.mark.parametrize("window", [0, 100_000])
def test_64_ranks_with_8_workers_share_a_million_samples_evenly(window: int) -> None:
    """Exactly once, the same for each of 512 readers to a step; and how many of 1,000 shards a step touches."""
    sizes = tuple(int(size) for size in np.random.default_rng(1).integers(500, 1_500, 1_000))
    batch, ranks, workers = 4_096, 64, 8
    plans = [Plan(sizes, batch, 0, rank, ranks, window) for rank in range(ranks)]
    steps, total = plans[0].steps_per_epoch, sum(sizes)
    shard_of = np.repeat(np.arange(len(sizes)), sizes)
    seen = np.zeros(total, np.int64)
    reads = np.zeros((ranks, workers), np.int64)
    touched: list[int] = []
    opened: list[set[int]] = [set() for _ in range(ranks)]
    for step in range(steps):
        parts: list[NDArray[np.int64]] = [plan.step(step).samples for plan in plans]
        for rank, part in enumerate(parts):
            reads[rank, step % workers] += len(part)
            opened[rank].update(shard_of[part].tolist())
        together = np.concatenate(parts)
        np.add.at(seen, together, 1)
        touched.append(len(np.unique(shard_of[together])))
    assert seen.max() == 1 and (seen == 0).sum() == total % batch
    assert len(set(reads.sum(axis=1).tolist())) == 1  # every rank reads as many
    assert reads.max() - reads.min() <= batch // ranks  # and every worker, but for one step's share
    per_shard = np.bincount(shard_of, weights=seen)
    assert (per_shard <= sizes).all() and per_shard.sum() == steps * batch
    if window:
        assert max(touched) <= 2 * (window // 500 + 2)
    print(
        f"\nwindow {window:,}: {total:,} samples, {steps} steps; each of {ranks * workers} workers reads "
        f"{reads.min()} to {reads.max()}; a step touches {np.mean(touched):.0f} shards, a rank in an epoch "
        f"{np.mean([len(shards) for shards in opened]):.0f} of {len(sizes)}; a shard is read "
        f"{per_shard.mean():.0f} times for its {np.mean(sizes):.0f} samples"
    )


@pytest.mark.parametrize("window", [0, 100_000])
def test_resuming_at_step_100_000_seeks(window: int, sorting: float) -> None:
    """Each epoch has 39,062 steps: to walk there would cost 100,000 times the first step."""
    sizes = (PER_SHARD,) * SHARDS
    Plan(sizes, 256, 0, window=window).step(0)
    seconds = min(timed(lambda: Plan(sizes, 256, 0, window=window).step(100_000))[1] for _ in range(3))
    assert seconds < 10 * sorting
    print(f"\nwindow {window:,}: the samples of step 100,000 in {seconds * 1000:.1f} ms")
