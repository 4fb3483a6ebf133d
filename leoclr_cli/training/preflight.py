"""What is said about a run before its first step: refusals with their arithmetic, warnings, and its description."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch

from leoclr.cli.config.settings import Settings
from leoclr.cli.run.versions import environment, versions
from leoclr.datasets.errors import RunError
from leoclr.datasets.shards.description import remarks
from leoclr.datasets.shards.index import Index
from leoclr.datasets.shards.locate import absolute


def micro_batch(settings: Settings, ranks: int) -> int:
    """Images that a process pushes through the encoder at a time.

    Raises:
        RunError: The batch cannot be split evenly over processes, micro-batches and BatchNorm groups.
    """
    batch_size, accumulation = settings.data.batch_size, settings.train.accumulation
    if batch_size % (ranks * accumulation):
        raise RunError(
            f"batch size {batch_size} cannot be split evenly into {ranks * accumulation} parts "
            f"({ranks} processes x {accumulation} micro-batches)"
        )
    micro = batch_size // (ranks * accumulation)
    splits = max(1, settings.moco.bn_splits // ranks)
    if settings.backend == "moco" and (micro % splits or micro // splits < 2):
        raise RunError(
            f"a batch of {micro} images cannot be split into {splits} groups of two or more for BatchNorm; "
            f"change --batch-size, or --set moco.bn_splits=1"
        )
    if settings.backend == "simclr" and micro * ranks < 2:
        raise RunError("SimCLR's negatives are the other images of the batch, and a batch of one has none")
    return micro


def warnings_about(settings: Settings, index: Index, micro: int) -> Iterator[str]:
    """What will work, but perhaps not as it was meant."""
    if settings.backend == "moco" and settings.moco.queue > len(index):
        yield (
            f"the queue of {settings.moco.queue:,} keys is longer than the data set of {len(index):,} images: an "
            "image is among its own negatives; --set moco.queue=... to about a tenth of the data set"
        )
    if settings.backend == "simclr" and settings.train.accumulation > 1:
        yield f"with accumulation, SimCLR's negatives come from micro-batches of {micro} images only"
    yield from remarks(index)


def description(
    settings: Settings,
    index: Index,
    val: tuple[str, ...],
    preset: str | None,
    command: list[str],
    device: torch.device,
    ranks: int,
) -> dict[str, Any]:
    """The content of run.json: all that is needed to know, repeat, resume or score the run."""
    return {
        "settings": settings.model_dump(mode="json"),
        "preset": preset,
        "data": {
            "train": list(absolute(settings.data.train)),
            "val": list(absolute(val)),
            "digest": index.digest,
            "samples": len(index),
            "classes": list(index.classes),
            "labelled": index.labelled,
        },
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": command,
        "versions": versions(),
        "environment": environment(device, ranks),
    }
