"""The memory format of an encoder's stages, and that it changes nothing but speed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from leoclr.backends.methods.moco import MoCo
from leoclr.backends.networks.backbones import Backbone, build_backbone
from leoclr.backends.networks.memory_format import keep_short_rows_contiguous
from leoclr.cli.config.settings import Settings
from leoclr.cli.training import build


def contiguous_stages(backbone: nn.Module) -> set[str]:
    """The children that have a kernel which is contiguous and not channels-last."""
    return {
        name.partition(".")[0]
        for name, layer in backbone.named_modules()
        if isinstance(layer, nn.Conv2d)
        and layer.kernel_size[0] > 1
        and not layer.weight.is_contiguous(memory_format=torch.channels_last)
    }


@pytest.mark.parametrize(
    ("stem", "size", "width", "stages"),
    [
        ("cifar", 32, 64, {"layer4"}),
        ("cifar", 8, 64, set()),  # rows of one pixel
        ("cifar", 48, 64, set()),  # of six
        ("cifar", 32, 32, set()),  # 256 channels
        ("imagenet", 96, 64, {"layer4"}),
        ("imagenet", 224, 64, set()),
    ],
)
def test_wide_stages_of_short_rows_become_contiguous(stem: str, size: int, width: int, stages: set[str]) -> None:
    backbone = build_backbone("resnet18", stem, width).to(memory_format=torch.channels_last)
    keep_short_rows_contiguous(backbone, size)
    assert contiguous_stages(backbone) == stages


def test_the_memory_format_changes_neither_features_nor_gradients() -> None:
    torch.manual_seed(0)
    one: Backbone = build_backbone("resnet18", "cifar").to(memory_format=torch.channels_last).double()
    other = copy.deepcopy(one)
    keep_short_rows_contiguous(other, 32)
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    features = [network(images) for network in (one, other)]
    torch.testing.assert_close(features[1], features[0])
    for each in features:
        each.square().mean().backward()
    for first, second in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(second.grad, first.grad)
    assert list(one.state_dict()) == list(other.state_dict())


@pytest.mark.parametrize(
    ("train", "stages"),
    [
        ({"precision": "bf16"}, {"layer4"}),
        ({"precision": "float32"}, set()),
    ],
)
def test_both_encoders_are_laid_out_for_bf16_on_a_cpu(train: dict[str, str], stages: set[str]) -> None:
    settings = Settings.model_validate(
        {"data": {"image_size": 32}, "encoder": {"backbone": "resnet18", "stem": "cifar"}, "train": train}
    )
    method = build.method(settings, torch.device("cpu"), images=1)
    assert isinstance(method, MoCo)
    for encoder in (method.encoder, method.key_encoder):
        assert contiguous_stages(encoder.backbone) == stages
