"""The size at which methods are checked: a small ResNet, images of 16 px, eight to a batch, and what the method's own
`small` says."""

from __future__ import annotations

from pydantic import ValidationError

from leoclr.backends.settings import STANDARD_WIDTH
from leoclr.cli.config.fields import replaced
from leoclr.cli.config.plugins import METHODS, VIEWS, method_settings, plugin, plugins
from leoclr.cli.config.settings import Settings
from leoclr.datasets.errors import SettingsError, first_fault

BATCH = 8
_SIDE, _WIDTH, _EPOCHS = 16, 16, 3


def small_settings(name: str) -> Settings:
    """Settings with which a step of a method takes a fraction of a second."""
    own = method_settings(name)
    others = {key: value for key, value in own.small.items() if "." in key}
    small = {key: value for key, value in own.small.items() if key not in others}
    if own.default_views not in plugins(VIEWS):
        raise SettingsError(f"default_views of {name}: no view policy {own.default_views!r} is installed")
    try:
        own(**small)
    except ValidationError as error:
        raise SettingsError(f"small of {name}: {first_fault(error)}") from None
    usual = Settings.model_validate(
        {
            "backend": name,
            "views": own.default_views,
            "data": {"batch_size": BATCH, "image_size": _SIDE},
            "encoder": {"backbone": "resnet18", "stem": "cifar", "width": _WIDTH, "projector_dim": 16},
            "optimizer": {"lr": 0.05},
            "train": {"epochs": _EPOCHS},
            "run": {"device": "cpu", "workers": 0, "trackers": (), "checkpoint_epochs": 1, "knn_epochs": 0},
            plugin(METHODS, name).section: small,
        }
    )
    standard = {"encoder.stem": "imagenet", "encoder.width": STANDARD_WIDTH} if "encoder.backbone" in others else {}
    try:
        return replaced(usual, standard | others)
    except ValidationError as error:
        raise SettingsError(f"small of {name}: {first_fault(error)}") from None
    except KeyError as error:
        raise SettingsError(f"small of {name}: there is no section {error}") from None
