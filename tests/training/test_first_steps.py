"""The first steps of each preset, at a reduced size: the embeddings stay spread.

ResNet-18 of half the width on 32 px behaves like the full one in this: without a warm-up the spread under MoCo falls
below a sixth of its first value within twelve steps, with the preset's it does not. docs/collapse.md has the full size.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from leoclr.api import train
from leoclr.cli.config.plugins import METHODS, plugins
from leoclr.cli.config.resolve import resolve
from leoclr.datasets.photo_like import photo_like

BATCH, STEPS, PRESET_IMAGES = 64, 12, {"cifar10": 50_000, "stl10": 105_000, "imagenet": 1_281_167}
IMAGES = BATCH * STEPS


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As many images as a trial has steps for."""
    return photo_like(tmp_path_factory.mktemp("images"), IMAGES, 32)


def spreads(shards: Path, output: Path, preset: str, backend: str, views: str, **changes: object) -> list[float]:
    """`embedding_std` after each step. The warm-up takes as many steps as on the data set of the preset."""
    settings = resolve(preset, None, {}, {"backend": backend, "views": views}).settings
    steps = settings.optimizer.warmup_epochs * PRESET_IMAGES[preset] / settings.data.batch_size
    reduced = {
        "backend": backend,
        "views": views,
        "data.train": shards,
        "data.image_size": 32,
        "data.batch_size": BATCH,
        "encoder.backbone": "resnet18",
        "encoder.stem": "cifar",
        "encoder.width": 32,
        "optimizer.warmup_epochs": steps / STEPS,
        "train.epochs": max(2, round(2 * steps / STEPS)),
        "run.log_steps": 1,
        "run.workers": 0,
        "run.knn_epochs": 0,
    }
    found: list[float] = []
    enough = threading.Event()

    def listen(step: int, measures: Mapping[str, float]) -> None:
        found.append(measures["embedding_std"])
        if step == STEPS:
            enough.set()

    train(reduced | changes, output, preset=preset, on_metrics=listen, stop=enough)
    return found


@pytest.mark.slow
def test_the_reduced_size_draws_together_without_a_warm_up_as_the_full_one_does(shards: Path, tmp_path: Path) -> None:
    found = spreads(shards, tmp_path / "run", "cifar10", "moco", "leoclr", **{"optimizer.warmup_epochs": "0"})
    assert found[0] > 0.2 and found[-1] < 0.05


@pytest.mark.parametrize(
    "views",
    [
        pytest.param("leoclr", marks=pytest.mark.slow(ci=True)),
        pytest.param("pairwise", marks=pytest.mark.slow),
        pytest.param("original", marks=pytest.mark.slow),
    ],
)
def test_the_preset_stays_spread_under_moco(views: str, shards: Path, tmp_path: Path) -> None:
    found = spreads(shards, tmp_path / "run", "cifar10", "moco", views)
    assert len(found) == STEPS and min(found) > 0.05


@pytest.mark.parametrize("backend", [name for name, one in plugins(METHODS).items() if one.builtin])
@pytest.mark.parametrize("preset", PRESET_IMAGES)
@pytest.mark.slow
def test_every_preset_stays_spread_under_every_backend(preset: str, backend: str, shards: Path, tmp_path: Path) -> None:
    views = resolve(preset, None, {}, {"backend": backend}).settings.views
    changes = {"hcsc.clusters": (30, 20, 10)} if backend == "hcsc" else {}  # not more than there are images
    found = spreads(shards, tmp_path / "run", preset, backend, views, **changes)
    assert len(found) == STEPS and min(found) > 0.05
