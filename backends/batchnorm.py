"""BatchNorm in splits: on one device, the statistics that several devices would have had.

MoCo's BatchNorm sees a small group of the batch, one device's share. With one set of statistics over the whole batch
the network solves the task by what the statistics leak between query and key, and learns worse features (MoCo,
arXiv 1911.05722, section 3.3; its CIFAR demo loses 4 points). Groups are contiguous, so that one process with S groups
computes what S processes with one group each compute.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SplitBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d that normalises each of `splits` contiguous groups of the batch by itself when training.

    The running statistics, which evaluation uses, move towards the mean over the groups.
    """

    splits = 1

    def forward(self, input: Tensor) -> Tensor:
        """Normalise; the batch must be a multiple of `splits`."""
        if not self.training or self.splits == 1:
            return super().forward(input)
        assert self.running_mean is not None and self.running_var is not None
        assert self.momentum is not None and self.num_batches_tracked is not None
        means = self.running_mean.repeat(self.splits, 1)
        variances = self.running_var.repeat(self.splits, 1)
        groups = [
            F.batch_norm(group, mean, variance, self.weight, self.bias, True, self.momentum, self.eps)
            for group, mean, variance in zip(input.chunk(self.splits), means, variances, strict=True)
        ]
        with torch.no_grad():
            self.running_mean.copy_(means.mean(dim=0))
            self.running_var.copy_(variances.mean(dim=0))
            self.num_batches_tracked.add_(1)
        return torch.cat(groups)


def split_batch_norm(module: nn.Module, splits: int) -> None:
    """Replace every BatchNorm2d inside `module` by one in splits, with the same parameters and names."""
    if splits == 1:
        return
    for name, child in module.named_children():
        if type(child) is nn.BatchNorm2d:
            split = SplitBatchNorm2d(child.num_features, eps=child.eps, momentum=child.momentum, affine=child.affine)
            split.to(child.weight.device, child.weight.dtype).load_state_dict(child.state_dict())
            split.splits = splits
            setattr(module, name, split)
        else:
            split_batch_norm(child, splits)
