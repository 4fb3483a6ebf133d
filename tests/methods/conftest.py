"""A network of a few numbers, for tests of the methods."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import cast

import pytest
import torch
from torch import nn

from leoclr.backends.method import Facts
from leoclr.backends.networks.backbones import Backbone


def _tiny_backbone() -> Backbone:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    backbone = cast(Backbone, nn.Sequential(*layers))
    backbone.feature_dim = 6
    return backbone


def _staged_backbone() -> Backbone:
    """With the feature maps of two stages, as a ResNet has them: for 8 px, 6 x 6 and 4 x 4 cells."""
    torch.manual_seed(0)
    stages = {
        "layer3": nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()),
        "layer4": nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU()),
        "pool": nn.AdaptiveAvgPool2d(1),
        "flat": nn.Flatten(),
    }
    backbone = cast(Backbone, nn.Sequential(OrderedDict(stages)))
    backbone.feature_dim = 6
    return backbone


def _facts(new_backbone: Callable[[], Backbone]) -> Facts:
    return Facts(
        new_backbone,
        policy_views=("x", "x1", "x2"),
        pairs=(("x", "x1"), ("x", "x2")),
        batch_size=6,
    )


@pytest.fixture
def tiny_facts() -> Facts:
    """What a method of a few numbers is built from: batches of 6 images, LeOCLR's pairs."""
    return _facts(_tiny_backbone)


@pytest.fixture
def staged_facts() -> Facts:
    """The same, with a backbone that has stages."""
    return _facts(_staged_backbone)
