"""Faster R-CNN with a C4 body from torchvision's parts, as MoCo fine-tunes it on PASCAL VOC.

The first three stages of the ResNet see the image; the region proposals and the boxes come from their features, 1/16
of the image's size. The fourth stage (res5) is the head: it runs on every region, followed by a BatchNorm of its own,
since the features of a contrastive encoder have no scale that the new layers could count on.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.resnet import ResNet
from torchvision.ops import MultiScaleRoIAlign

from leoclr.datasets.errors import EvaluationError

ANCHOR_SIDES = (32, 64, 128, 256, 512)
ANCHOR_RATIOS = (0.5, 1.0, 2.0)
_REGION = 14
_LONG_SIDE = 1333


class Body(nn.Module):
    """Stem and the first three stages."""

    def __init__(self, network: ResNet, channels: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool)
        self.stages = nn.Sequential(network.layer1, network.layer2, network.layer3)
        self.out_channels = channels  # torchvision asks for it

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.stages(self.stem(images)))


class Head(nn.Module):
    """The fourth stage, its BatchNorm, and the mean over the region."""

    def __init__(self, stage: nn.Module, channels: int) -> None:
        super().__init__()
        self.stage = stage
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, regions: Tensor) -> Tensor:
        return cast(Tensor, self.norm(self.stage(regions)).mean(dim=(2, 3)))


def build_detector(
    backbone: nn.Module,
    classes: int,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    short_sides: tuple[int, ...],
    regions: int,
    candidates: int,
    proposals: int,
    seed: int,
) -> FasterRCNN:
    """A detector whose body and head start as copies of the backbone's stages; the rest is random by the seed.

    Args:
        backbone: A torchvision ResNet with the imagenet stem.
        classes: Without the background.
        short_sides: To which the short side is resized in training, one of them at random; the last one in tests.
        regions: That the head is trained on, for each image.
        candidates: See `DetectionRecipe`.
        proposals: Regions that the head scores in a test image.

    Raises:
        EvaluationError: The backbone is no such ResNet.
    """
    if not isinstance(backbone, ResNet) or not isinstance(backbone.maxpool, nn.MaxPool2d):
        raise EvaluationError("detection needs a ResNet with the imagenet stem, whose third stage has stride 16")
    network = copy.deepcopy(backbone).requires_grad_(True)
    body_channels, head_channels = (_channels(stage) for stage in (network.layer3, network.layer4))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        detector = FasterRCNN(
            Body(network, body_channels),
            min_size=short_sides,
            max_size=_LONG_SIDE,
            image_mean=list(mean),
            image_std=list(std),
            rpn_anchor_generator=AnchorGenerator((ANCHOR_SIDES,), (ANCHOR_RATIOS,)),
            rpn_pre_nms_top_n_train=candidates,
            rpn_pre_nms_top_n_test=candidates // 2,
            rpn_post_nms_top_n_train=2_000,
            rpn_post_nms_top_n_test=proposals,
            box_roi_pool=MultiScaleRoIAlign(["0"], _REGION, sampling_ratio=2),
            box_head=Head(network.layer4, head_channels),
            box_predictor=FastRCNNPredictor(head_channels, classes + 1),
            box_batch_size_per_image=regions,
        )
    return detector


def _channels(stage: nn.Module) -> int:
    """What comes out of a stage: the width of its last BatchNorm."""
    norms = [module for module in stage.modules() if isinstance(module, nn.BatchNorm2d)]
    return norms[-1].num_features
