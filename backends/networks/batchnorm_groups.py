"""BatchNorm of S contiguous groups of a batch in one call: `group_batch_norm`.

The implementation depends on the device; the results are those of BatchNorm on each group, one after another:

- On a GPU with Triton, two kernels for each direction, whatever S is (`batchnorm_triton`).
- Elsewhere torch's own kernel on each group, bit for bit, which writes into slices of one output.
- Under torch.compile the plain formula, which the compiler fuses with what is around it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_LEAST_CAPABILITY = (7, 0)  # Volta
_KERNEL_TYPES = (torch.float32, torch.bfloat16, torch.float16)


class Running(NamedTuple):
    """Running statistics, which training moves in place.

    Attributes:
        mean, var: Shape `(channels,)`.
        batches: Number of updates so far, int64, a scalar.
        momentum: Of an update.
        updates: An update is made with the mean over the statistics of S / `updates` groups, in order; S must be a
            multiple of it.
    """

    mean: Tensor
    var: Tensor
    batches: Tensor
    momentum: float
    updates: int = 1


def group_batch_norm(
    images: Tensor, weight: Tensor | None, bias: Tensor | None, running: Running, groups: int, eps: float
) -> Tensor:
    """Normalise each of `groups` contiguous parts of the batch by its own mean and variance, over images and pixels.

    Statistics are float32 at least, whatever autocast made of the images.

    Args:
        images: `(n, channels, height, width)`, n a multiple of `groups`.
        weight, bias: Shape `(channels,)`, or None.

    Returns:
        As `images` in shape and dtype.

    Raises:
        ValueError: A group has one value per channel, which has no variance.
    """
    assert len(images) % groups == 0, "groups of one batch have one size"
    if len(images) // groups * images.shape[2] * images.shape[3] == 1:
        raise ValueError(f"Expected more than 1 value per channel when training, got {groups} groups of {images.shape}")
    if torch.compiler.is_compiling():
        return _formula(images, weight, bias, running, groups, eps)
    return _GroupBatchNorm.apply(images, weight, bias, running, groups, eps)  # type: ignore[no-any-return]


class _GroupBatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor | None, bias: Tensor | None, running: Running, groups: int, eps: float
    ) -> Tensor:
        ctx.groups, ctx.eps = groups, eps
        if _has_kernel(images, groups):
            from leoclr.backends.networks import batchnorm_triton

            output, saved = batchnorm_triton.forward(_dense(images), weight, bias, running, groups, eps)
        else:
            output, saved = _each_group(images, weight, bias, running, groups, eps)
        ctx.save_for_backward(images, weight, saved)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, weight, saved = ctx.saved_tensors
        if _has_kernel(images, ctx.groups):
            from leoclr.backends.networks import batchnorm_triton

            dense = _dense(images)
            last = dense.is_contiguous(memory_format=torch.channels_last)
            same = gradient.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
            return *batchnorm_triton.backward(same, dense, weight, saved, ctx.groups), None, None, None
        return *_each_gradient(gradient, images, weight, saved, ctx.groups, ctx.eps), None, None, None


_kernels_allowed = True


@contextmanager
def without_kernels() -> Iterator[None]:
    """The block has tensors that say they are on a GPU and are not: plain code stands for the kernels."""
    global _kernels_allowed
    before, _kernels_allowed = _kernels_allowed, False
    try:
        yield
    finally:
        _kernels_allowed = before


def _has_kernel(images: Tensor, groups: int) -> bool:
    on_gpu = images.device.type == "cuda" and images.dtype in _KERNEL_TYPES
    counted = images.numel() // groups <= torch.iinfo(torch.int32).max  # places within a group are of 32 bits
    return counted and on_gpu and _kernels_allowed and why_no_kernels(images.dtype) is None


@cache
def why_no_triton() -> str | None:
    """Why Triton does not start on this GPU; None where it does.

    It comes with torch's CUDA builds for Linux. At its start it compiles a little C, for which a slim container has
    neither the compiler nor Python's headers.
    """
    if torch.cuda.is_available() and torch.cuda.get_device_capability() < _LEAST_CAPABILITY:
        return "the GPU is older than what Triton compiles for"
    try:
        from triton.runtime import driver

        driver.active.utils  # noqa: B018
    except Exception as error:  # whatever the compiler, the driver or the linker says
        return in_a_line(error)
    return None


@cache
def why_no_kernels(dtype: torch.dtype = torch.float32) -> str | None:
    """Why the kernels do not run on this GPU on images of `dtype`; None where they do.

    One of Triton's versions may not compile a kernel that others do, so they all run once, on a small batch: seconds
    on a machine where they never ran before. The steps of a run then find most of them compiled.
    """
    if (reason := why_no_triton()) is not None or not torch.cuda.is_available():
        return reason
    try:
        _try_kernels(dtype)
    except Exception as error:
        return in_a_line(error)
    return None


def in_a_line(error: Exception) -> str:
    """What an error says, shortened, or its kind."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _try_kernels(dtype: torch.dtype) -> None:
    from leoclr.backends.networks import batchnorm_triton

    channels = 512  # blocks of channels are then as wide as in most layers
    images = torch.ones(8, channels, 8, 8, device="cuda", dtype=dtype).contiguous(memory_format=torch.channels_last)
    weight, bias, mean, var = (torch.ones(channels, device="cuda") for _ in range(4))
    running = Running(mean, var, torch.zeros((), dtype=torch.long, device="cuda"), 0.1)
    output, saved = batchnorm_triton.forward(images, weight, bias, running, 2, 1e-5)
    batchnorm_triton.backward(output, images, weight, saved, 2)


def _dense(images: Tensor) -> Tensor:
    last = images.is_contiguous(memory_format=torch.channels_last)
    return images if last else images.contiguous()


def _each_group(
    images: Tensor, weight: Tensor | None, bias: Tensor | None, running: Running, groups: int, eps: float
) -> tuple[Tensor, Tensor]:
    """The output, and mean and inverse deviation of each group, `(groups, 2, channels)`."""
    output = torch.empty_like(images)
    saved = running.mean.new_empty(groups, 2, images.shape[1])
    parts = list(zip(images.chunk(groups), output.chunk(groups), saved, strict=True))
    size = groups // running.updates
    for update in range(running.updates):
        means, variances = running.mean.repeat(size, 1), running.var.repeat(size, 1)
        for number, (part, into, (mean, inverse)) in enumerate(parts[update * size :][:size]):
            torch.native_batch_norm(
                part, weight, bias, means[number], variances[number], True, running.momentum, eps,
                out=(into, mean, inverse),
            )  # fmt: skip
        running.mean.copy_(means.mean(dim=0))
        running.var.copy_(variances.mean(dim=0))
    running.batches.add_(running.updates)
    return output, saved


def _each_gradient(
    gradient: Tensor, images: Tensor, weight: Tensor | None, saved: Tensor, groups: int, eps: float
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    output = torch.empty_like(images)
    parts = zip(gradient.chunk(groups), images.chunk(groups), output.chunk(groups), saved, strict=True)
    of_weight: Tensor | None = None
    of_bias: Tensor | None = None
    for part, of_images, into, (mean, inverse) in reversed(list(parts)):  # autograd's order of summation
        found = torch.ops.aten.native_batch_norm_backward(
            part,
            of_images,
            weight,
            None,
            None,
            mean,
            inverse,
            True,
            eps,
            [True, weight is not None, weight is not None],
        )
        into.copy_(found[0])
        if weight is not None:
            of_weight = found[1] if of_weight is None else of_weight.add_(found[1])
            of_bias = found[2] if of_bias is None else of_bias.add_(found[2])
    return output, of_weight, of_bias


def _formula(
    images: Tensor, weight: Tensor | None, bias: Tensor | None, running: Running, groups: int, eps: float
) -> Tensor:
    exact = images if images.dtype == torch.float64 else images.float()
    grouped = exact.view(groups, -1, *images.shape[1:])
    variance, mean = torch.var_mean(grouped, dim=(1, 3, 4), correction=0, keepdim=True)
    normal = (grouped - mean) * torch.rsqrt(variance + eps)
    if weight is not None and bias is not None:
        normal = normal * weight[:, None, None] + bias[:, None, None]
    with torch.no_grad():
        rows = grouped[0].numel() // images.shape[1]
        shape = (running.updates, -1, images.shape[1])
        means = mean.reshape(shape).mean(dim=1)
        variances = variance.reshape(shape).mean(dim=1) * (rows / max(1, rows - 1))
        for update in range(running.updates):
            running.mean.lerp_(means[update], running.momentum)
            running.var.lerp_(variances[update], running.momentum)
        running.batches.add_(running.updates)
    output: Tensor = normal.flatten(0, 1).to(images.dtype)
    return output
