"""BatchNorm in groups: torch's BatchNorm on each group is the reference, in float64 for the GPU's kernels, which run
here in Triton's interpreter."""

from __future__ import annotations

import copy
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.nn import functional as F

from leoclr.backends import method
from leoclr.backends.methods import moco
from leoclr.backends.networks import batchnorm_groups
from leoclr.backends.networks.batchnorm import split_batch_norm
from leoclr.backends.networks.batchnorm_groups import Running, group_batch_norm
from leoclr.backends.networks.encoder import contrastive_encoder
from leoclr.datasets.views import POLICIES

kernels: Any = pytest.importorskip("leoclr.backends.networks.batchnorm_triton", exc_type=ImportError)
pytestmark = pytest.mark.skipif(
    torch.cuda.is_available() and batchnorm_groups.why_no_triton() is not None, reason="Triton does not start here"
)

CHANNELS_LAST, CONTIGUOUS = torch.channels_last, torch.contiguous_format
TRITON = tuple(map(int, version("triton").split(".")[:2]))
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def loop_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interpreters before Triton 3.8 make an integer of an array in a way that NumPy 2.4 refuses."""
    if TRITON >= (3, 8):
        return
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patched(tensor: Any, *scope: Any) -> None:
        patch(tensor, *scope)
        tensor.__index__ = lambda self: int(self.handle.data.squeeze())

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patched)


def layer(channels: int, groups: int, updates: int = 1) -> tuple[Running, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    mean, var, weight, bias = (torch.rand(channels, generator=generator).to(DEVICE) + 0.5 for _ in range(4))
    return Running(mean, var, torch.tensor(3, device=DEVICE), 0.1, updates), weight, bias


def images(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Each group and each channel far from the others, and from zero."""
    generator = torch.Generator().manual_seed(seed)
    ramp = torch.arange(shape[0])[:, None, None, None] + 10 * (torch.arange(shape[1]) % 4)[:, None, None]
    return (torch.randn(shape, generator=generator) + ramp).to(DEVICE)


def one_by_one(
    pixels: Tensor, weight: Tensor, bias: Tensor, running: Running, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Torch's BatchNorm on each group; the output and the new running statistics."""
    exact = torch.promote_types(pixels.dtype, torch.float32)
    mean, var = running.mean.to(exact), running.var.to(exact)
    outputs, parts = [], iter(pixels.chunk(groups))
    for _ in range(running.updates):
        found = []
        for _ in range(groups // running.updates):
            own = mean.clone(), var.clone()
            outputs.append(F.batch_norm(next(parts), *own, weight, bias, True, running.momentum, eps))
            found.append(own)
        mean, var = (torch.stack(each).mean(dim=0) for each in zip(*found, strict=True))
    return torch.cat(outputs), mean, var


@pytest.mark.parametrize("memory_format", [CHANNELS_LAST, CONTIGUOUS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("groups", "updates"), [(2, 1), (4, 4), (4, 2)])
def test_without_kernels_it_is_torchs_of_each_group_bit_for_bit(
    memory_format: Any, dtype: torch.dtype, groups: int, updates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "DEVICE", "cpu")  # a GPU has the kernels
    found: list[list[Tensor]] = []
    for function in (group_batch_norm, one_by_one):
        running, weight, bias = layer(5, groups, updates)
        pixels = images((8, 5, 6, 3)).to(dtype).contiguous(memory_format=memory_format).requires_grad_()
        weight.requires_grad_(), bias.requires_grad_()
        result = function(pixels, weight, bias, running, groups, 1e-5)
        output, mean, var = result if isinstance(result, tuple) else (result, running.mean, running.var)
        gradients = torch.autograd.grad(output, [pixels, weight, bias], images((8, 5, 6, 3), seed=1).to(dtype))
        found.append([output.contiguous(), mean, var, *gradients])
        if function is group_batch_norm:
            assert int(running.batches) == 3 + updates and output.is_contiguous(memory_format=memory_format)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize(
    ("shape", "groups", "updates", "memory_format"),
    [
        ((6, 5, 7, 3), 2, 1, CHANNELS_LAST),
        ((6, 5, 7, 3), 2, 1, CONTIGUOUS),
        ((4, 66, 2, 2), 2, 2, CHANNELS_LAST),  # more channels than a program takes
        ((4, 2, 8, 17), 2, 2, CHANNELS_LAST),  # several chunks of rows, the last not full
        ((4, 2, 8, 17), 2, 1, CONTIGUOUS),
        ((8, 2, 1, 1), 4, 1, CHANNELS_LAST),
        ((3, 4, 5, 5), 1, 1, CHANNELS_LAST),
    ],
)
def test_the_kernels_are_float64s(memory_format: Any, shape: tuple[int, ...], groups: int, updates: int) -> None:
    running, weight, bias = layer(shape[1], groups, updates)
    pixels = images(shape).contiguous(memory_format=memory_format)
    gradient = images(shape, seed=1).contiguous(memory_format=memory_format)
    exact = [tensor.double().requires_grad_() for tensor in (pixels, weight, bias)]
    expected, mean, var = one_by_one(exact[0], exact[1], exact[2], running, groups, 1e-5)
    gradients = torch.autograd.grad(expected, exact, gradient.double())

    output, saved = kernels.forward(pixels, weight, bias, running, groups, 1e-5)
    found = kernels.backward(gradient, pixels, weight, saved, groups)
    assert output.stride() == pixels.stride()
    torch.testing.assert_close(output.double(), expected.detach(), rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(running.mean.double(), mean.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(running.var.double(), var.detach(), rtol=1e-4, atol=1e-5)
    assert int(running.batches) == 3 + updates
    for own, reference in zip(found, gradients, strict=True):
        torch.testing.assert_close(own.double(), reference, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_kernels_keep_float32_statistics_of_half_precision(dtype: torch.dtype) -> None:
    running, weight, bias = layer(5, 2)
    pixels, gradient = (images((4, 5, 5, 5), seed).to(dtype).contiguous(memory_format=CHANNELS_LAST) for seed in (0, 1))
    exact = [tensor.double().requires_grad_() for tensor in (pixels, weight, bias)]
    expected, mean, var = one_by_one(exact[0], exact[1], exact[2], running, 2, 1e-5)
    gradients = torch.autograd.grad(expected, exact, gradient.double())
    output, saved = kernels.forward(pixels, weight, bias, running, 2, 1e-5)
    found = kernels.backward(gradient, pixels, weight, saved, 2)
    assert output.dtype == found[0].dtype == dtype and found[1].dtype == saved.dtype == torch.float32
    rounding = torch.finfo(dtype).eps
    torch.testing.assert_close(output.double(), expected.detach(), rtol=rounding, atol=rounding)
    torch.testing.assert_close(running.var.double(), var.detach(), rtol=1e-4, atol=1e-5)
    for own, reference, tolerance in zip(found, gradients, (rounding, 1e-3, 1e-3), strict=True):
        torch.testing.assert_close(own.double(), reference, rtol=tolerance, atol=tolerance * 4)


def test_the_kernels_do_without_weight_and_bias() -> None:
    running, *_ = layer(3, 2)
    pixels, gradient = images((4, 3, 4, 4)), images((4, 3, 4, 4), seed=1)
    exact = pixels.double().requires_grad_()
    expected = torch.cat([F.batch_norm(part, None, None, None, None, True) for part in exact.chunk(2)])
    output, saved = kernels.forward(pixels, None, None, running, 2, 1e-5)
    found, *others = kernels.backward(gradient, pixels, None, saved, 2)
    torch.testing.assert_close(output.double(), expected.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        found.double(), torch.autograd.grad(expected, exact, gradient.double())[0], rtol=1e-3, atol=1e-4
    )
    assert others == [None, None]


def test_a_network_trains_alike_by_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: torch's BatchNorm in groups and timm's, which has an activation in it."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), BatchNormAct2d(6))
    network.to(DEVICE)
    split_batch_norm(network, 2)
    other = copy.deepcopy(network)
    pixels = images((4, 3, 9, 9)) / 10
    found: list[list[Tensor]] = []
    for each, by_kernels in ((network, False), (other, True)):
        monkeypatch.setattr(batchnorm_groups, "_has_kernel", lambda *_, answer=by_kernels: answer)
        output = each(pixels.contiguous(memory_format=torch.channels_last))
        output.square().mean().backward()
        found.append([output, *(parameter.grad for parameter in each.parameters()), *each.buffers()])  # type: ignore[list-item]
    tolerance = 1e-4 if DEVICE == "cpu" else 2e-3  # convolutions on a GPU compute in TF32
    for one, another in zip(*found, strict=True):
        torch.testing.assert_close(another, one, rtol=1e-3, atol=tolerance)


def test_a_group_of_one_pixel_is_refused_as_by_torch() -> None:
    running, weight, bias = layer(3, 2)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        group_batch_norm(images((2, 3, 1, 1)), weight, bias, running, 2, 1e-5)


@pytest.mark.parametrize(("groups", "updates"), [(4, 1), (4, 2)])
def test_what_a_compiler_gets_is_the_same(groups: int, updates: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[list[Tensor]] = []
    for compiling in (False, True):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda compiling=compiling: compiling)
        running, weight, bias = layer(5, groups, updates)
        pixels = images((8, 5, 6, 3)).requires_grad_()
        weight.requires_grad_(), bias.requires_grad_()
        output = group_batch_norm(pixels, weight, bias, running, groups, 1e-5)
        gradients = torch.autograd.grad(output, [pixels, weight, bias], images((8, 5, 6, 3), seed=1))
        found.append([output, running.mean, running.var, running.batches, *gradients])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("splits", [1, 2])
def test_views_in_one_pass_have_statistics_of_their_own(splits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: the embeddings of three views, gradients and running statistics are those of three passes."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    backbone: Any = nn.Sequential(*layers)
    backbone.feature_dim = 6
    encoder = contrastive_encoder(backbone, 2, 0, 4).double()
    split_batch_norm(encoder, splits)
    other = copy.deepcopy(encoder)
    views = {name: images((4, 3, 6, 6), seed).double().cpu() for seed, name in enumerate(("x", "x1", "x2"))}
    assert not method.in_one_pass(encoder, views)
    found: list[list[Tensor]] = []
    for each, together in ((encoder, False), (other, True)):
        monkeypatch.setattr(method, "in_one_pass", lambda *_, answer=together: answer)
        embeddings = method.encode_views(each, views)
        weights = torch.arange(1.0, 4.0)[:, None, None]
        loss = (torch.stack(list(embeddings.values())).sin() * weights).sum()
        torch.autograd.backward(loss)
        gradients = [parameter.grad for parameter in each.parameters() if parameter.grad is not None]
        found.append([*embeddings.values(), *gradients, *each.buffers()])
    for one, another in zip(*found, strict=True):
        torch.testing.assert_close(another, one, rtol=1e-10, atol=1e-12)


def test_the_keys_of_all_crops_in_one_pass_are_those_of_one_pass_each(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Tensor] = []
    for together in (False, True):
        monkeypatch.setattr(method, "in_one_pass", lambda *_, answer=together: answer)
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        backbone: Any = nn.Sequential(*layers)
        backbone.feature_dim = 6
        backbones: Iterator[Any] = iter([backbone])
        facts = method.Facts(partial(next, backbones), projector=(2, 0, 4))
        made = moco.MoCo(moco.Settings(queue=12, bn_splits=2, enqueue="all"), facts).double()
        views = {name: images((4, 3, 6, 6), seed).double().cpu() for seed, name in enumerate(("x", "x1", "x2"))}
        now = method.Progress(3, 10, 5)
        output = made(views, POLICIES["leoclr"].pairs, now)
        made.after_update(now)
        found.extend([output.loss.detach(), made.queue.keys, *made.key_encoder.buffers()])
    half = len(found) // 2
    for one, another in zip(found[:half], found[half:], strict=True):
        torch.testing.assert_close(another, one, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("groups", [2, 8, 24])
@pytest.mark.parametrize(("channels", "pixels"), [(64, 32 * 32), (256, 56 * 56)])
def test_a_large_gpu_has_enough_programs(groups: int, channels: int, pixels: int) -> None:
    """Loads wait for memory, so that less than four programs for each of 132 multiprocessors leave it idle."""
    images_of_a_group = 512 // groups
    grid = kernels._grid(groups, images_of_a_group * pixels, channels, True)
    assert 512 <= grid.chunks * grid.blocks * groups <= 8192
    assert grid.chunks <= kernels._MOST_CHUNKS.value


def test_a_layer_with_weight_alone_has_no_bias() -> None:
    """As torch 2.14 makes them."""
    layer = nn.BatchNorm2d(3)
    layer.bias = None  # type: ignore[assignment]
    network = nn.Sequential(copy.deepcopy(layer))
    split_batch_norm(network, 2)
    pixels = images((4, 3, 5, 5)).cpu().requires_grad_()
    expected = torch.cat([layer(part) for part in pixels.chunk(2)])
    found = network(pixels)
    torch.testing.assert_close(found, expected)
    given = [torch.autograd.grad(each.square().sin().sum(), pixels)[0] for each in (found, expected)]
    torch.testing.assert_close(*given)


@pytest.mark.slow
@pytest.mark.skipif(TRITON < (3, 3), reason="Triton before 3.3 is told what to compile in another way")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="Triton's assembler for GPUs comes with x86-64")
def test_all_kernels_compile_for_a_gpu() -> None:
    """The interpreter takes what the compiler refuses. No GPU is needed to compile."""
    program = Path(__file__).parents[1] / "programs" / "build_kernels.py"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    built = subprocess.run([sys.executable, str(program), "90"], env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    kernels = {name: int(wide) for name, wide, _ in map(str.split, built.stdout.splitlines())}
    assert len(kernels) == 10
    assert all(kernels[name] > 0 for name in ("_statistics", "_normalise", "_gradient_sums", "_gradient"))
