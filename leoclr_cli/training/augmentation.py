"""From settings to augmentations, apart from `leoclr.cli.training.build` because it needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from leoclr.cli.config.settings import Settings
from leoclr.datasets.images.augment_pillow import AugmentationSpec

_BEFORE_THERE_WAS_A_CHOICE = "pillow"


def augmentation_spec(settings: Settings) -> AugmentationSpec:
    """What the views are made with; where that is not settled, as on a machine without a GPU."""
    chosen = settings.augmentation.model_dump(exclude={"mean", "std"})
    if chosen["executor"] == "auto":
        chosen["executor"] = "fast"
    return AugmentationSpec(image_size=settings.data.image_size, **chosen)


def settle_executor(settings: Settings, device_type: str, recorded: Mapping[str, Any] | None) -> Settings:
    """The settings with `augmentation.executor` settled where it is auto. Pixels depend on it, if only by rounding, so
    a run keeps what it began with on whatever device it goes on.

    Args:
        recorded: The settings in the run.json of a run that is gone on with.
    """
    if settings.augmentation.executor != "auto":
        return settings
    if recorded is not None:
        executor = recorded["augmentation"].get("executor", _BEFORE_THERE_WAS_A_CHOICE)
    else:
        executor = "device" if device_type == "cuda" or settings.data.resident == "yes" else "fast"
    augmentation = settings.augmentation.model_copy(update={"executor": executor})
    return settings.model_copy(update={"augmentation": augmentation})
