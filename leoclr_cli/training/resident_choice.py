"""Whether a data set is to live on the device: `data.resident`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch

from leoclr.cli.config.settings import Settings
from leoclr.cli.terminal import progress
from leoclr.datasets.errors import RunError, SettingsError
from leoclr.datasets.loading.resident import ResidentImages, first_size, load_resident
from leoclr.datasets.shards.index import Index

_MOST_BYTES = 4 << 30
_LARGEST_SIDE = 128


def settle_resident(
    settings: Settings, index: Index, device: torch.device, workers: int, recorded: Mapping[str, Any] | None
) -> tuple[Settings, ResidentImages | None]:
    """The settings with `data.resident` settled where it is auto, and the images where it is yes.

    All processes of a run find the same, as it depends on the data and the kind of device alone, but where one has too
    little memory: that one has loader processes, for the same steps.

    Args:
        recorded: The settings in the run.json of a run that is gone on with, which keeps what it began with.

    Raises:
        SettingsError: It is yes, and something else than the device makes the views.
        RunError: It is yes, and the images have more than one size, or the device has not the memory.
    """
    wanted = settings.data.resident
    if wanted == "auto" and recorded is not None:
        wanted = recorded["data"].get("resident", "no")
    if wanted == "yes" and settings.augmentation.executor != "device":
        raise SettingsError(
            f"data.resident yes crops on the device; augmentation.executor is {settings.augmentation.executor} and "
            "must be device too"
        )
    if wanted == "no" or (wanted == "auto" and not _worth_it(settings, index, device)):
        return _settled(settings, "no"), None
    try:
        images = _load(index, device, workers)
    except torch.OutOfMemoryError:
        if wanted == "yes":
            raise RunError("the decoded images do not fit on the device; take --set data.resident=no") from None
        return _settled(settings, "no"), None
    if images is None and wanted == "yes":
        raise RunError("data.resident yes needs images that all have one size; take --set data.resident=no")
    return _settled(settings, "no" if images is None else "yes"), images


def _worth_it(settings: Settings, index: Index, device: torch.device) -> bool:
    augmentation = settings.augmentation
    if device.type != "cuda" or augmentation.executor != "device" or augmentation.reduced_decoding:
        return False
    size = first_size(index)
    return size is not None and max(size) <= _LARGEST_SIDE and len(index) * size[0] * size[1] * 3 <= _MOST_BYTES


def _load(index: Index, device: torch.device, workers: int) -> ResidentImages | None:
    with progress("decoding", len(index), "images") as advance:
        return load_resident(index, device, workers, advance)


def _settled(settings: Settings, resident: Literal["yes", "no"]) -> Settings:
    return settings.model_copy(update={"data": settings.data.model_copy(update={"resident": resident})})
