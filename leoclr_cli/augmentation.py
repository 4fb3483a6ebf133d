"""From settings to augmentations, apart from `leoclr.cli.build` because it needs no torch."""

from __future__ import annotations

from leoclr.cli.settings import Settings
from leoclr.datasets.augment import AugmentationSpec


def augmentation_spec(settings: Settings) -> AugmentationSpec:
    """What the views are made with."""
    chosen = settings.augmentation.model_dump(exclude={"mean", "std"})
    return AugmentationSpec(image_size=settings.data.image_size, **chosen)
