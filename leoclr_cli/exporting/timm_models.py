"""The timm model of an encoder, and its preprocessing."""

from __future__ import annotations

import math
from typing import Any

from torch import nn
from torchvision.models.resnet import ResNet

from leoclr.backends.networks.backbones import timm_arguments
from leoclr.cli.run.encoders import LoadedEncoder
from leoclr.datasets.errors import CheckpointError, SettingsError
from leoclr.evals.features.preprocessing import ResizeRule

PREFIX = "timm:"


def require_timm(format: str) -> None:
    """Raise SettingsError where timm is not installed."""
    try:
        import timm  # noqa: F401
    except ImportError:
        raise SettingsError(f"--format {format} needs timm: pip install 'leoclr-cli[timm]'") from None


def timm_name(encoder: LoadedEncoder) -> str:
    """timm's name of the architecture. Its ResNets have the names and the arithmetic of torchvision's.

    Raises:
        CheckpointError: timm computes something else under this name, or nothing.
    """
    if not encoder.name.startswith(PREFIX) and not isinstance(encoder.backbone, ResNet):
        raise CheckpointError(f"timm's {encoder.name} is not torchvision's; export --format torchvision instead")
    return encoder.name.removeprefix(PREFIX)


def arguments(encoder: LoadedEncoder) -> dict[str, Any]:
    """What `timm.create_model` is told besides the name: the size of images, where the network is built for one."""
    return timm_arguments(timm_name(encoder), encoder.image_size)


def pretrained_cfg(encoder: LoadedEncoder, network: nn.Module) -> dict[str, Any]:
    """timm's description of weights: input, normalisation, resizing, and which layers a user replaces.

    Args:
        network: timm's model of the same architecture, for the names of its first convolution and its classifier. The
            file holds no classifier; with its name timm makes a new one for `num_classes=N`.
    """
    own: Any = network.pretrained_cfg
    rule, size = encoder.resize, encoder.image_size
    return {
        "tag": "leoclr",
        "custom_load": False,
        "input_size": [3, size, size],
        "fixed_input_size": bool(own.get("fixed_input_size")),
        "interpolation": rule.filter,
        "crop_pct": crop_share(rule),
        "crop_mode": "squash" if rule.mode == "squash" else "center",
        "mean": list(encoder.mean),
        "std": list(encoder.std),
        "num_classes": 0,
        "pool_size": None,
        "first_conv": own.get("first_conv"),
        "classifier": own.get("classifier"),
    }


def crop_share(rule: ResizeRule) -> float:
    """timm's `crop_pct`: the crop over the resized side. timm resizes to `floor(crop / crop_pct)`, so that rounding
    must not go up: 0.873 would make 109 px of 110."""
    exact = rule.crop / rule.size
    rounded = (round(exact, digits) for digits in range(3, 8))
    return next(
        (share for share in rounded if math.floor(rule.crop / share) == rule.size), rule.crop / (rule.size + 0.5)
    )
