"""Shards: writing them in MB/s, and reading images, views and whole steps from them in samples/s.

Run: pytest benchmarks/bench_shards.py --benchmark-only
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leoclr.datasets.images.augmentation import AugmentationSpec
from leoclr.datasets.loading.loader import StepDataset, batches
from leoclr.datasets.loading.plan import Plan
from leoclr.datasets.packing.arrangement import arrange
from leoclr.datasets.packing.encoding import Encoding
from leoclr.datasets.packing.folder_source import FolderSource
from leoclr.datasets.packing.pack import PackingRecipe, pack
from leoclr.datasets.randomness import Permutation
from leoclr.datasets.shards.locate import open_data
from leoclr.datasets.shards.reader import SampleReader
from leoclr.datasets.shards.scan import build_index
from leoclr.datasets.views import POLICIES

_BATCH = 50


@pytest.mark.parametrize("encoding", [Encoding(), Encoding(shortest_side=128)], ids=["bytes kept", "shrunk to 128 px"])
def test_writing(
    benchmark: Any, rate: Callable[[str, float], None], images: Path, tmp_path: Path, encoding: Encoding
) -> None:
    source = FolderSource(images)
    collection = arrange(source)
    recipe = PackingRecipe("images", shard_bytes=4_000_000, encoding=encoding, workers=os.cpu_count() or 1)

    def empty_folder() -> None:
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()

    benchmark.pedantic(lambda: pack(source, collection, tmp_path, recipe), setup=empty_folder, rounds=3)
    size = sum(file.stat().st_size for file in images.iterdir())
    rate("MB/s", size / 1e6)


def test_indexing(benchmark: Any, rate: Callable[[str, float], None], shards: Path) -> None:
    """Reading the headers of shards without an index, from the page cache."""
    paths = sorted(shards.glob("*.tar"))
    index = benchmark.pedantic(lambda: build_index(paths, checksum=False), rounds=3)
    rate("samples/s", len(index))


@pytest.mark.parametrize("decoded", [False, True], ids=["bytes", "decoded"])
def test_reading(benchmark: Any, rate: Callable[[str, float], None], shards: Path, decoded: bool) -> None:
    """In random order, by one process, from the page cache."""
    index = open_data([str(shards)])
    reader, order = SampleReader(index), Permutation(len(index), 0)(np.arange(len(index))).tolist()

    def read_all() -> None:
        for number in order:
            reader.image(number) if decoded else reader.read(number)

    benchmark.pedantic(read_all, rounds=3, warmup_rounds=1)
    rate("samples/s", len(index))


@pytest.mark.parametrize("policy", ["leoclr", "pairwise"])
def test_loading(benchmark: Any, rate: Callable[[str, float], None], shards: Path, policy: str) -> None:
    """An epoch of augmented views at 224 px, by as many workers as there are cores."""
    index = open_data([str(shards)])
    dataset = StepDataset(
        index, Plan.of(index, _BATCH, seed=0), POLICIES[policy], AugmentationSpec(224, executor="fast")
    )

    def epoch() -> int:
        return sum(len(batch.samples) for batch in batches(dataset, 0, len(dataset), workers=os.cpu_count() or 1))

    samples = benchmark.pedantic(epoch, rounds=2)
    rate("samples/s", samples)
