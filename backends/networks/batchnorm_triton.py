"""BatchNorm of contiguous groups of a batch as Triton kernels: two for the forward pass and two for the backward pass.

As many as plain BatchNorm takes, for any number of groups: the group is an axis of the grid. The rows of a group, its
images' pixels, are cut into chunks. The first kernel of a pair reduces each chunk; each program of the second one adds
up the chunks of its group, which are few and in the cache, and goes over the pixels. Nothing is atomic and no program
waits for another, so results repeat bit for bit. Statistics are float32: the chunk's sums are taken about its first
pixel, and the chunks' are merged by Chan's formula, so that a mean far from zero costs no digits.

An additional program for each block of channels writes what concerns all groups: the running statistics, or the
gradients of weight and bias. `TRITON_INTERPRET=1`, set before this module is imported, runs all of it on a CPU.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

# Programs hide the latency of each other's loads. With 56 to 80 registers a thread, an H100 holds about a thousand.
_PROGRAMS = 1024
_MOST_CHUNKS: tl.constexpr = tl.constexpr(64)
_CHANNELS = 32  # of a block, so that 64 chunks of them fit into registers
_LEAST_CHANNELS = 16  # where groups are few: 32 bytes of bfloat16, the least that memory delivers
_LEAST_ROWS = 256  # with fewer, merging the chunks reads as much as the chunk itself
_WARPS = 4
_COUNTS = ("groups", "updates")  # for whose values nothing is compiled again


@triton.jit
def _places(rows, channels, group, row_count, channel_count, pixels, CHANNELS_LAST: tl.constexpr):
    """Offsets of elements from the start of the batch, `(rows, channels)`."""
    start = group.to(tl.int64) * row_count * channel_count
    if CHANNELS_LAST:
        return start + rows[:, None] * channel_count + channels[None, :]
    return start + (rows // pixels * channel_count * pixels + rows % pixels)[:, None] + channels[None, :] * pixels


@triton.jit
def _merged(partial, group, channels, row_count, channel_count, chunks, chunk_rows):
    """Mean and biased variance of a group, for each of some channels."""
    chunk = tl.arange(0, _MOST_CHUNKS)
    inside = (chunk < chunks)[:, None] & (channels < channel_count)[None, :]
    place = (group * chunks + chunk)[:, None] * 2 * channel_count + channels[None, :]
    means = tl.load(partial + place, mask=inside, other=0.0)
    squares = tl.load(partial + place + channel_count, mask=inside, other=0.0)
    rows = tl.maximum(tl.minimum(row_count - chunk * chunk_rows, chunk_rows), 0).to(tl.float32)[:, None]
    mean = tl.sum(means * rows, axis=0) / row_count
    distance = tl.where(inside, means - mean[None, :], 0.0)
    return mean, tl.sum(squares + rows * distance * distance, axis=0) / row_count


@triton.jit(do_not_specialize=_COUNTS)
def _statistics(
    images, partial, row_count, channel_count, pixels, chunk_rows,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """Of each chunk: its mean, and the sum of the squared distances from it."""
    chunk, group = tl.program_id(0), tl.program_id(2)
    channels = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    known = channels < channel_count
    begin = chunk * chunk_rows
    end = tl.minimum(begin + chunk_rows, row_count)
    first = begin + tl.zeros([1], tl.int32)
    pivot = tl.load(
        images + _places(first, channels, group, row_count, channel_count, pixels, CHANNELS_LAST),
        mask=known[None, :], other=0.0,
    ).to(tl.float32)  # fmt: skip
    sums = tl.zeros([ROWS, CHANNELS], tl.float32)
    squares = tl.zeros([ROWS, CHANNELS], tl.float32)
    for start in range(begin, end, ROWS):
        rows = start + tl.arange(0, ROWS)
        inside = (rows < end)[:, None] & known[None, :]
        place = _places(rows, channels, group, row_count, channel_count, pixels, CHANNELS_LAST)
        distance = tl.where(inside, tl.load(images + place, mask=inside, other=0.0).to(tl.float32) - pivot, 0.0)
        sums += distance
        squares += distance * distance
    count = (end - begin).to(tl.float32)
    shift = tl.sum(sums, axis=0) / count
    place = (group * tl.num_programs(0) + chunk) * 2 * channel_count + channels
    tl.store(partial + place, tl.sum(pivot, axis=0) + shift, mask=known)
    tl.store(partial + place + channel_count, tl.sum(squares, axis=0) - shift * shift * count, mask=known)


@triton.jit(do_not_specialize=_COUNTS)
def _normalise(
    images, output, weight, bias, partial, saved, running_mean, running_var, batches,
    row_count, channel_count, pixels, chunk_rows, groups, updates, momentum, unbiased, eps,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    AFFINE: tl.constexpr,
):  # fmt: skip
    """Normalise each chunk; save each group's mean and inverse deviation; move the running statistics."""
    chunk, group, chunks = tl.program_id(0), tl.program_id(2), tl.num_programs(0) - 1
    channels = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    known = channels < channel_count
    if chunk < chunks:
        mean, variance = _merged(partial, group, channels, row_count, channel_count, chunks, chunk_rows)
        inverse = 1.0 / tl.sqrt(variance + eps)
        if chunk == 0:
            tl.store(saved + group * 2 * channel_count + channels, mean, mask=known)
            tl.store(saved + (group * 2 + 1) * channel_count + channels, inverse, mask=known)
        scale = inverse
        shift = -mean * inverse
        if AFFINE:
            scale = inverse * tl.load(weight + channels, mask=known, other=0.0).to(tl.float32)
            shift = tl.load(bias + channels, mask=known, other=0.0).to(tl.float32)
        begin = chunk * chunk_rows
        end = tl.minimum(begin + chunk_rows, row_count)
        for start in range(begin, end, ROWS):
            rows = start + tl.arange(0, ROWS)
            inside = (rows < end)[:, None] & known[None, :]
            place = _places(rows, channels, group, row_count, channel_count, pixels, CHANNELS_LAST)
            values = tl.load(images + place, mask=inside, other=0.0).to(tl.float32)
            if AFFINE:
                normal = (values - mean[None, :]) * scale[None, :] + shift[None, :]
            else:
                normal = (values - mean[None, :]) * scale[None, :]
            tl.store(output + place, normal.to(output.dtype.element_ty), mask=inside)
    elif group == 0:
        running = tl.load(running_mean + channels, mask=known, other=0.0).to(tl.float32)
        spread = tl.load(running_var + channels, mask=known, other=0.0).to(tl.float32)
        share = momentum / (groups // updates)
        for number in range(groups):
            if number % (groups // updates) == 0:
                running = running * (1.0 - momentum)
                spread = spread * (1.0 - momentum)
            mean, variance = _merged(partial, number, channels, row_count, channel_count, chunks, chunk_rows)
            running += share * mean
            spread += share * unbiased * variance
        tl.store(running_mean + channels, running.to(running_mean.dtype.element_ty), mask=known)
        tl.store(running_var + channels, spread.to(running_var.dtype.element_ty), mask=known)
        if tl.program_id(1) == 0:
            tl.store(batches, tl.load(batches) + updates)


@triton.jit(do_not_specialize=_COUNTS)
def _gradient_sums(
    gradients, images, saved, partial, row_count, channel_count, pixels, chunk_rows,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """Of each chunk: the sum of the gradients, and of their products with the normalised values."""
    chunk, group = tl.program_id(0), tl.program_id(2)
    channels = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    known = channels < channel_count
    mean = tl.load(saved + group * 2 * channel_count + channels, mask=known, other=0.0)
    inverse = tl.load(saved + (group * 2 + 1) * channel_count + channels, mask=known, other=0.0)
    begin = chunk * chunk_rows
    end = tl.minimum(begin + chunk_rows, row_count)
    sums = tl.zeros([ROWS, CHANNELS], tl.float32)
    products = tl.zeros([ROWS, CHANNELS], tl.float32)
    for start in range(begin, end, ROWS):
        rows = start + tl.arange(0, ROWS)
        inside = (rows < end)[:, None] & known[None, :]
        place = _places(rows, channels, group, row_count, channel_count, pixels, CHANNELS_LAST)
        gradient = tl.load(gradients + place, mask=inside, other=0.0).to(tl.float32)
        sums += gradient
        products += gradient * (tl.load(images + place, mask=inside, other=0.0).to(tl.float32) - mean[None, :])
    place = (group * tl.num_programs(0) + chunk) * 2 * channel_count + channels
    tl.store(partial + place, tl.sum(sums, axis=0), mask=known)
    tl.store(partial + place + channel_count, tl.sum(products, axis=0) * inverse, mask=known)


@triton.jit
def _totals(partial, group, channels, channel_count, chunks):
    chunk = tl.arange(0, _MOST_CHUNKS)
    inside = (chunk < chunks)[:, None] & (channels < channel_count)[None, :]
    place = (group * chunks + chunk)[:, None] * 2 * channel_count + channels[None, :]
    sums = tl.load(partial + place, mask=inside, other=0.0)
    products = tl.load(partial + place + channel_count, mask=inside, other=0.0)
    return tl.sum(sums, axis=0), tl.sum(products, axis=0)


@triton.jit(do_not_specialize=_COUNTS)
def _gradient(
    gradients, images, output, weight, saved, partial, weight_gradient, bias_gradient,
    row_count, channel_count, pixels, chunk_rows, groups,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    AFFINE: tl.constexpr,
):  # fmt: skip
    """The gradient of the input, chunk by chunk, and of weight and bias, over all groups."""
    chunk, group, chunks = tl.program_id(0), tl.program_id(2), tl.num_programs(0) - 1
    channels = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    known = channels < channel_count
    if chunk < chunks:
        mean = tl.load(saved + group * 2 * channel_count + channels, mask=known, other=0.0)
        inverse = tl.load(saved + (group * 2 + 1) * channel_count + channels, mask=known, other=0.0)
        sums, products = _totals(partial, group, channels, channel_count, chunks)
        sums, products = sums / row_count, products / row_count
        scale = inverse
        if AFFINE:
            scale = inverse * tl.load(weight + channels, mask=known, other=0.0).to(tl.float32)
        begin = chunk * chunk_rows
        end = tl.minimum(begin + chunk_rows, row_count)
        for start in range(begin, end, ROWS):
            rows = start + tl.arange(0, ROWS)
            inside = (rows < end)[:, None] & known[None, :]
            place = _places(rows, channels, group, row_count, channel_count, pixels, CHANNELS_LAST)
            gradient = tl.load(gradients + place, mask=inside, other=0.0).to(tl.float32)
            normal = (tl.load(images + place, mask=inside, other=0.0).to(tl.float32) - mean[None, :]) * inverse[None, :]
            result = (gradient - sums[None, :] - normal * products[None, :]) * scale[None, :]
            tl.store(output + place, result.to(output.dtype.element_ty), mask=inside)
    elif AFFINE:
        if group == 0:
            weights = tl.zeros([CHANNELS], tl.float32)
            biases = tl.zeros([CHANNELS], tl.float32)
            for number in range(groups):
                sums, products = _totals(partial, number, channels, channel_count, chunks)
                weights += products
                biases += sums
            tl.store(weight_gradient + channels, weights.to(weight_gradient.dtype.element_ty), mask=known)
            tl.store(bias_gradient + channels, biases.to(bias_gradient.dtype.element_ty), mask=known)


class _Grid(NamedTuple):
    """How the elements of a batch are shared out among programs."""

    chunks: int
    blocks: int
    chunk_rows: int
    rows: int
    channels: int


@lru_cache(maxsize=256)
def _grid(groups: int, row_count: int, channel_count: int, channels_last: bool) -> _Grid:
    channels = min(_CHANNELS, triton.next_power_of_2(channel_count)) if channels_last else 1
    while channels > _LEAST_CHANNELS and -(-channel_count // channels) * groups * _MOST_CHUNKS.value < _PROGRAMS:
        channels //= 2
    rows = max(16, 2048 // channels)
    blocks = -(-channel_count // channels)
    wanted = min(_MOST_CHUNKS.value, max(1, _PROGRAMS // (blocks * groups)), max(1, row_count // _LEAST_ROWS))
    chunk_rows = -(-row_count // wanted)
    chunk_rows = -(-chunk_rows // rows) * rows if chunk_rows > rows else chunk_rows
    chunks = -(-row_count // chunk_rows)
    return _Grid(chunks, blocks, chunk_rows, rows, channels)


def _shape(images: Tensor, groups: int) -> tuple[int, int, int, bool]:
    """Rows of a group, channels, pixels of an image where kernels need them, whether channels are last in memory."""
    count, channel_count, height, width = images.shape
    last = images.is_contiguous(memory_format=torch.channels_last)
    return count // groups * height * width, channel_count, 1 if last else height * width, last


def forward(
    images: Tensor, weight: Tensor | None, bias: Tensor | None, running: Any, groups: int, eps: float
) -> tuple[Tensor, Tensor]:
    """Normalise each group and move the running statistics.

    Args:
        images: `(n, channels, height, width)`, dense in either memory format; float32, bfloat16 or float16.
        running: A `leoclr.backends.networks.batchnorm_groups.Running`.

    Returns:
        The normalised images, as `images` in dtype and memory; and float32, `(groups, 2, channels)`: mean and inverse
        deviation of each group.
    """
    row_count, channel_count, pixels, last = _shape(images, groups)
    grid = _grid(groups, row_count, channel_count, last)
    partial = images.new_empty(groups, grid.chunks, 2, channel_count, dtype=torch.float32)
    saved = images.new_empty(groups, 2, channel_count, dtype=torch.float32)
    output = torch.empty_like(images)
    shape = row_count, channel_count, pixels, grid.chunk_rows
    tiles: dict[str, Any] = {"ROWS": grid.rows, "CHANNELS": grid.channels, "CHANNELS_LAST": last, "num_warps": _WARPS}
    _statistics[(grid.chunks, grid.blocks, groups)](images, partial, *shape, **tiles)
    _normalise[(grid.chunks + 1, grid.blocks, groups)](
        images, output, images if weight is None else weight, images if bias is None else bias, partial, saved,
        running.mean, running.var, running.batches, *shape, groups, running.updates, running.momentum,
        row_count / max(1, row_count - 1), eps, AFFINE=weight is not None, **tiles,
    )  # fmt: skip
    return output, saved


def backward(
    gradients: Tensor, images: Tensor, weight: Tensor | None, saved: Tensor, groups: int
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The gradients of images, weight and bias.

    Args:
        gradients: Of the output, in the memory format of `images`.
        saved: From `forward`.
    """
    row_count, channel_count, pixels, last = _shape(images, groups)
    grid = _grid(groups, row_count, channel_count, last)
    partial = images.new_empty(groups, grid.chunks, 2, channel_count, dtype=torch.float32)
    output = torch.empty_like(images)
    weight_gradient, bias_gradient = (None, None) if weight is None else (torch.empty_like(weight) for _ in range(2))
    shape = row_count, channel_count, pixels, grid.chunk_rows
    tiles: dict[str, Any] = {"ROWS": grid.rows, "CHANNELS": grid.channels, "CHANNELS_LAST": last, "num_warps": _WARPS}
    _gradient_sums[(grid.chunks, grid.blocks, groups)](gradients, images, saved, partial, *shape, **tiles)
    _gradient[(grid.chunks + 1, grid.blocks, groups)](
        gradients, images, output, images if weight is None else weight, saved, partial,
        partial if weight_gradient is None else weight_gradient, partial if bias_gradient is None else bias_gradient,
        *shape, groups, AFFINE=weight is not None, **tiles,
    )  # fmt: skip
    return output, weight_gradient, bias_gradient
