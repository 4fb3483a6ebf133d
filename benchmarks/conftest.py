"""Images and shards that the benchmarks share, and rates in units that mean something."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from leoclr.datasets.packing.arrangement import arrange
from leoclr.datasets.packing.folder_source import FolderSource
from leoclr.datasets.packing.pack import PackingRecipe, pack

IMAGES = 1000
SIDE = 256

Rate = Callable[[str, float], None]
_RATES = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_RATES] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The rates, below the table of times."""
    for line in config.stash[_RATES]:
        terminalreporter.write_line(line)


@pytest.fixture
def rate(benchmark: Any, request: pytest.FixtureRequest) -> Rate:
    """`rate("images/s", 64)` after a benchmark: so many images were done in its mean time. Also kept in its JSON."""

    def record(unit: str, amount: float) -> None:
        value = amount / benchmark.stats["mean"]
        benchmark.extra_info[unit] = value
        request.config.stash[_RATES].append(f"{request.node.name:<40}  {value:>12,.1f} {unit}")

    return record


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of JPEGs as large as a shrunk ImageNet's: smooth pictures with some noise, about 20 kB each."""
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for number in range(IMAGES):
        coarse = Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.int16)
        noisy = np.clip(smooth + generator.normal(0, 8, smooth.shape), 0, 255).astype(np.uint8)
        encoded = io.BytesIO()
        Image.fromarray(noisy).save(encoded, "JPEG", quality=90)
        (folder / f"{number:05d}.jpg").write_bytes(encoded.getvalue())
    return folder


@pytest.fixture(scope="session")
def shards(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same images in shards of 4 MB."""
    folder = tmp_path_factory.mktemp("shards")
    source = FolderSource(images)
    pack(source, arrange(source), folder, PackingRecipe("images", shard_bytes=4_000_000, workers=2))
    return folder
