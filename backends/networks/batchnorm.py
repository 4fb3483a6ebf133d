"""BatchNorm in splits: on one device, the statistics that several devices would have had.

MoCo's BatchNorm sees a small group of the batch, one device's share. With one set of statistics over the whole batch
the network solves the task by what the statistics leak between query and key, and learns worse features (MoCo,
arXiv 1911.05722, section 3.3; its CIFAR demo loses 4 points). Groups are contiguous, so that one process with S groups
computes what S processes with one group each compute.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.resnet import BasicBlock, Bottleneck

from leoclr.backends.networks.batchnorm_groups import Running, group_batch_norm


class SplitBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d that normalises each of `splits` contiguous groups of the batch by itself when training.

    The running statistics, which evaluation uses, move towards the mean over the groups.
    """

    splits = 1

    def forward(self, input: Tensor) -> Tensor:
        """Normalise; the batch must be a multiple of `splits`."""
        if not self.training or self.splits == 1:
            return super().forward(input)
        return _split(self, input, self.splits, updates=1)


def has_batch_norm(module: nn.Module) -> bool:
    """Whether what comes out for an image depends, in training, on the others in its batch."""
    return any(isinstance(part, _BatchNorm) for part in module.modules())


def split_batch_norm(module: nn.Module, splits: int) -> None:
    """Replace every BatchNorm2d inside `module` by one in splits, with the same parameters and names.

    One of a class of its own, as timm's with an activation in it, stays and becomes a subclass of its class.
    """
    if splits == 1:
        return
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d) and type(child) is not nn.BatchNorm2d:
            _call_in_splits(child, splits)
        elif isinstance(child, nn.BatchNorm2d):
            split = SplitBatchNorm2d(child.num_features, eps=child.eps, momentum=child.momentum, affine=child.affine)
            split.to(child.weight.device, child.weight.dtype).load_state_dict(child.state_dict())
            split.splits = splits
            setattr(module, name, split)
        else:
            split_batch_norm(child, splits)


def _split(layer: nn.BatchNorm2d, input: Tensor, splits: int, updates: int) -> Tensor:
    assert layer.running_mean is not None and layer.running_var is not None
    assert layer.momentum is not None and layer.num_batches_tracked is not None
    running = Running(layer.running_mean, layer.running_var, layer.num_batches_tracked, layer.momentum, updates)
    return group_batch_norm(input, layer.weight, layer.bias, running, splits, layer.eps)


def _call_in_splits(layer: nn.BatchNorm2d, splits: int) -> None:
    """Its running statistics move once for each group, by a part of its momentum."""
    kind = type(layer)
    only_activates = _is_timms(layer)

    class Split(kind):  # type: ignore[valid-type, misc]
        def forward(self, input: Tensor) -> Tensor:
            if not self.training:
                return super().forward(input)  # type: ignore[no-any-return]
            if only_activates:
                return cast(Tensor, self.act(_split(self, input, splits, updates=splits)))
            return torch.cat([super(Split, self).forward(group) for group in input.chunk(splits)])

    layer.__class__ = Split
    if layer.momentum is not None:
        layer.momentum /= splits


def _is_timms(layer: nn.BatchNorm2d) -> bool:
    """Whether the layer is BatchNorm and then an activation: timm's BatchNormAct2d, without the rarer drop layer."""
    try:
        from timm.layers.norm_act import BatchNormAct2d
    except ImportError:
        return False
    plain = layer.momentum is not None and layer.track_running_stats
    return type(layer) is BatchNormAct2d and isinstance(layer.drop, nn.Identity) and plain


def sync_batch_norm(module: nn.Module) -> nn.Module:
    """The module with BatchNorm whose statistics are those of all processes.

    timm's classes with an activation in them are converted by timm: torch would leave the activation out.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
    if all(type(layer) is nn.BatchNorm2d for layer in layers):
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-any-return, no-untyped-call]
    from timm.layers.norm_act import convert_sync_batchnorm

    return cast(nn.Module, convert_sync_batchnorm(module))  # type: ignore[no-untyped-call]


def zero_last_norms(backbone: nn.Module) -> None:
    """Let each residual block of a ResNet begin as the identity: the scale of its last BatchNorm becomes zero.

    torchvision's and timm's ResNets have such blocks; other backbones stay as they are.
    """
    for block in backbone.modules():
        last = {BasicBlock: "bn2", Bottleneck: "bn3"}.get(type(block))
        if last is not None:
            nn.init.zeros_(block.get_submodule(last).get_parameter("weight"))
        elif callable(zero := getattr(block, "zero_init_last", None)):
            zero()
