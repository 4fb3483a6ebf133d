"""Augmentations from settings. Needs no torch."""

from __future__ import annotations

from leoclr.cli.config.settings import Settings
from leoclr.datasets.images.augmentation import AugmentationSpec


def augmentation_spec(settings: Settings) -> AugmentationSpec:
    """What all views of a run are made with, apart from a view's own changes. An executor that is not settled yet is
    taken as `fast`."""
    chosen = settings.augmentation.model_dump(exclude={"mean", "std"})
    if chosen["executor"] == "auto":
        chosen["executor"] = "fast"
    return AugmentationSpec(image_size=settings.data.image_size, **chosen)
