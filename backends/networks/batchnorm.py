"""BatchNorm in groups: the statistics of several devices, computed on one device.

MoCo's BatchNorm sees a small group of the batch, one device's share. With one set of statistics over the whole batch
the network solves the task by what the statistics leak between query and key, and learns worse features (MoCo,
arXiv 1911.05722, section 3.3; its CIFAR demo loses 4 points). Groups are contiguous, so that one process with S groups
computes what S processes with one group each compute.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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
    batches = 1  # in the input, one after another: each has groups and an update of the running statistics of its own

    def forward(self, input: Tensor) -> Tensor:
        """Normalise; the batch must be a multiple of `splits` and `batches`."""
        groups = self.splits * self.batches
        if not self.training or groups == 1:
            return super().forward(input)
        return _split(self, input, groups, updates=self.batches)


def has_batch_norm(module: nn.Module) -> bool:
    """Whether what comes out for an image depends, in training, on the others in its batch."""
    return any(isinstance(part, _BatchNorm) for part in module.modules())


def split_batch_norm(module: nn.Module, splits: int) -> None:
    """Turn every BatchNorm2d inside `module` into one in splits, with its parameters and names.

    One of a class of its own, as timm's with an activation in it, stays and becomes a subclass of its class. With one
    split, which computes what plain BatchNorm does, only plain ones are turned: for `separate_statistics`.
    """
    for child in module.children():
        if isinstance(child, nn.BatchNorm2d) and splits == 1 and not _is_plain(child):
            continue
        if isinstance(child, nn.BatchNorm2d) and type(child) is not nn.BatchNorm2d:
            _call_in_splits(child, splits)
        elif isinstance(child, nn.BatchNorm2d):
            child.__class__ = SplitBatchNorm2d  # in place: whoever holds its parameters keeps them
            cast(SplitBatchNorm2d, child).splits = splits
        else:
            split_batch_norm(child, splits)


def _is_plain(layer: nn.BatchNorm2d) -> bool:
    return type(layer) is nn.BatchNorm2d and layer.affine and layer.track_running_stats and layer.momentum is not None


def can_separate_statistics(module: nn.Module) -> bool:
    """Whether `separate_statistics` reaches all BatchNorm inside."""
    return all(isinstance(part, SplitBatchNorm2d) for part in module.modules() if isinstance(part, _BatchNorm))


@contextmanager
def separate_statistics(module: nn.Module, batches: int) -> Iterator[None]:
    """The input of the block is some batches, one after another: each is normalised as if it came by itself."""
    layers = [part for part in module.modules() if isinstance(part, SplitBatchNorm2d)]
    for layer in layers:
        layer.batches = batches
    try:
        yield
    finally:
        for layer in layers:
            layer.batches = 1


def _split(layer: nn.BatchNorm2d, input: Tensor, splits: int, updates: int) -> Tensor:
    assert layer.running_mean is not None and layer.running_var is not None
    assert layer.momentum is not None and layer.num_batches_tracked is not None
    running = Running(layer.running_mean, layer.running_var, layer.num_batches_tracked, layer.momentum, updates)
    weight, bias = layer.weight, layer.bias
    if weight is not None and bias is None:  # torch 2.14 has such layers
        bias = torch.zeros_like(weight)
    return group_batch_norm(input, weight, bias, running, splits, layer.eps)


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
