"""A network of a few numbers, for tests of the methods."""

from __future__ import annotations

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


@pytest.fixture
def tiny_facts() -> Facts:
    """What a method of a few numbers is built from: batches of 6 images, LeOCLR's pairs."""
    return Facts(
        _tiny_backbone,
        policy_views=("x", "x1", "x2"),
        pairs=(("x", "x1"), ("x", "x2")),
        batch_size=6,
    )
