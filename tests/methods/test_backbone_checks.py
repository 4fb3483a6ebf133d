"""What a backbone and a device cannot do is refused or told: wrong gradients of PyTorch, no compiler, too few GPUs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from leoclr.backends.networks.backbones import build_backbone, narrow_convolution
from leoclr.backends.networks.batchnorm_groups import why_no_kernels
from leoclr.cli.config.settings import Settings
from leoclr.cli.run import devices
from leoclr.cli.run.devices import accelerated, check_backbone, check_kernels, choose_device, explained
from leoclr.cli.training import build
from leoclr.datasets.errors import RunError

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("stem", "size", "name"),
    [("imagenet", 16, "layer4.0.conv1"), ("imagenet", 17, None), ("cifar", 4, "layer4.0.conv1"), ("cifar", 5, None)],
)
def test_the_first_convolution_with_longer_strides_than_its_input_is_wide_is_found(
    stem: str, size: int, name: str | None
) -> None:
    backbone = build_backbone("resnet18", stem, width=8)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    assert narrow_convolution(backbone, size) == name
    assert backbone.training
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())
    assert not any(module._forward_hooks for module in backbone.modules())


def test_only_bf16_on_a_cpu_is_refused() -> None:
    backbone = build_backbone("resnet18", width=8)
    check_backbone(backbone, 16, "float32", CPU)
    check_backbone(backbone, 16, "bf16", torch.device("cuda"))
    check_backbone(backbone, 32, "bf16", CPU)
    with pytest.raises(RunError, match=r"images of 16 px are too small for bf16 on a CPU: layer4\.0\.conv1"):
        check_backbone(backbone, 16, "bf16", CPU)


def test_a_gpu_without_a_compiler_is_told_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "why_no_kernels", lambda dtype: "Failed to find C compiler")
    (line,) = check_kernels(torch.device("cuda"), "bf16")
    assert "needs a C compiler" in line and "(Failed to find C compiler)" in line
    assert not check_kernels(CPU, "bf16")


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton starts on a GPU")
def test_without_a_gpu_triton_does_not_start() -> None:
    assert why_no_kernels()


def test_a_deterministic_run_that_comes_too_late_is_told_what_to_set() -> None:
    error = RuntimeError("Deterministic behavior was enabled, but CUBLAS_WORKSPACE_CONFIG is not set")
    assert "CUBLAS_WORKSPACE_CONFIG=:4096:8" in str(explained(error))
    assert explained(RuntimeError("broken")) is None


def test_no_method_is_built_on_wrong_gradients() -> None:
    settings = Settings.model_validate(
        {"data": {"image_size": 16}, "encoder": {"backbone": "resnet18"}, "train": {"precision": "bf16"}}
    )
    with pytest.raises(RunError, match="too small for bf16"):
        build.method(settings, CPU, images=1)


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this processor does not compute in bf16")
@pytest.mark.parametrize(("kernel", "stride", "width"), [(3, 2, 2), (3, 2, 3), (3, 1, 1), (1, 2, 2), (7, 2, 16)])
def test_gradients_in_bf16_are_near_those_in_float32(kernel: int, stride: int, width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(8, 16, width, width, generator=generator)
    layer = torch.nn.Conv2d(16, 16, kernel, stride, kernel // 2)
    found = []
    for precision in (torch.float32, torch.bfloat16):
        for size in (1_000, 10_000, 100_000):  # what an uninitialised tensor may be made of
            torch.full((size,), float("nan"))
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            result = layer(images)
        found.append(torch.autograd.grad(result.float().square().sum(), layer.weight)[0])
    assert (found[1] - found[0]).abs().max() < 0.05 * found[0].abs().max()


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda")
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(RunError, match="name none: --device cuda"):
        choose_device("cuda:1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert choose_device("cpu") == CPU
    with pytest.raises(RunError, match="3 processes need a GPU each; there are 2"):
        choose_device("auto")


def test_only_what_went_well_leaves_its_group_of_processes_in_order(tmp_path: Path) -> None:
    """With NCCL one that fails would wait for the others to leave as well, and they wait for it."""
    settings = Settings.model_validate({"run": {"device": "cpu", "trackers": []}})

    def join(name: str) -> None:
        torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / name}", rank=0, world_size=1)

    with accelerated(settings, tmp_path):
        join("first")
    assert not torch.distributed.is_initialized()
    with pytest.raises(ValueError, match="lost"), accelerated(settings, tmp_path):
        join("second")
        raise ValueError("lost")
    assert torch.distributed.is_initialized()
    torch.distributed.destroy_process_group()
