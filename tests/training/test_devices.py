"""What every device computes: once on the processor and, where there is one, once more on a GPU. The last tests are of
what only a GPU does; `pytest tests/training/test_devices.py` says which were left out."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from leoclr.backends.losses import info_nce, nt_xent
from leoclr.cli.commands.app import main
from leoclr.cli.config.settings import Settings
from leoclr.cli.training import trainer as training
from leoclr.cli.training.step import TrainStep
from leoclr.datasets.images.augment_device import crop_boxes, draw_all, photometric
from leoclr.datasets.images.augment_pillow import apply
from leoclr.datasets.images.augmentation import UNIFORMS, AugmentationSpec, crop_box, draw
from leoclr.datasets.images.crop_device import crops
from leoclr.datasets.loading import device_feed as transfer
from leoclr.datasets.randomness import uniforms
from leoclr.evals.probes.knn import knn_accuracy

MakeShards = Callable[..., Path]
MakeSettings = Callable[..., Settings]
MakeTinted = Callable[..., Path]

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
every_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])


@pytest.fixture
def settings(tiny_settings: MakeSettings) -> MakeSettings:
    return partial(
        tiny_settings, augmentation__executor="device", optimizer__lr="0.01", train__epochs="3", run__log_steps="1"
    )


def train(chosen: Settings, run: Path, resume: bool = False) -> bytes:
    result = training.train(chosen, run, None, ["test"], resume)
    return (Path(result.checkpoint) / "model.safetensors").read_bytes()


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@every_device
def test_losses_and_gradients_are_those_of_float64(device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    first, second, keys = (
        F.normalize(torch.randn(n, 32, generator=generator, dtype=torch.float64), dim=1) for n in (24, 24, 256)
    )
    for name in ("InfoNCE", "NT-Xent"):
        found = []
        for place, dtype in (("cpu", torch.float64), (device, torch.float32)):
            a, b, k = (tensor.to(place, dtype) for tensor in (first, second, keys))
            a.requires_grad_()
            value = info_nce(a, [b], k, 0.1).mean() if name == "InfoNCE" else nt_xent(a, b, 0.1)
            (gradient,) = torch.autograd.grad(value, a)
            found.append((value.item(), gradient.cpu().double()))
        (expected, gradient), (value32, gradient32) = found
        assert value32 == pytest.approx(expected, rel=1e-5)
        torch.testing.assert_close(gradient32, gradient, rtol=1e-3, atol=1e-5)


@every_device
def test_a_view_is_pillows_within_a_level(device: str) -> None:
    spec = AugmentationSpec(32, crop_scale=(0.2, 1.0))
    noise = np.random.default_rng(0).integers(0, 256, (64, 6, 6, 3), dtype=np.uint8)
    smooth = [Image.fromarray(pixels).resize((48, 40), Image.Resampling.BICUBIC) for pixels in noise]
    numbers = uniforms(0, 0, np.arange(64), 0, UNIFORMS)
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in smooth])).permute(0, 3, 1, 2).to(device)
    boxes = torch.from_numpy(crop_boxes(48, 40, spec, numbers).astype(np.float32)).to(device)
    found = photometric(crops(pixels, boxes, 32), draw_all(spec, numbers).to(device)).cpu()
    for image, row, view in zip(smooth, numbers, found, strict=True):
        crop = image.crop(crop_box(48, 40, spec, row)).resize((32, 32), Image.Resampling.BILINEAR)
        expected = torch.from_numpy(np.asarray(apply(crop, draw(spec, row)), np.float32)).permute(2, 0, 1)
        assert (view.float() - expected).abs().mean() < 1


@every_device
@pytest.mark.parametrize("resident", ["yes", "no"])
def test_a_stopped_run_goes_on_as_if_it_had_not_been(
    device: str, resident: str, make_shards: MakeShards, tmp_path: Path, settings: MakeSettings
) -> None:
    options = {"run__device": device, "run__deterministic": "true", "data__resident": resident}
    chosen = settings(make_shards((20, 9)), **options)
    whole = train(chosen, tmp_path / "run")
    newest = max((tmp_path / "run" / "checkpoints").iterdir())
    for file in newest.iterdir():
        file.unlink()
    newest.rmdir()
    assert train(chosen, tmp_path / "run", resume=True) == whole


@every_device
def test_neighbours_are_found_by_float64_too(device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    train_features, test_features = (torch.randn(n, 16, generator=generator) for n in (3000, 200))
    train_labels, test_labels = (torch.randint(10, (n,), generator=generator) for n in (3000, 200))
    train_features += 2 * F.one_hot(train_labels, 16)
    test_features += 2 * F.one_hot(test_labels, 16)
    there = [tensor.to(device) for tensor in (train_features, train_labels, test_features, test_labels)]
    found = knn_accuracy(there[0], there[1], there[2], there[3], chunk=2**14)
    similarity = F.normalize(test_features.double(), dim=1) @ F.normalize(train_features.double(), dim=1).T
    values, nearest = similarity.topk(200)
    scores = torch.zeros(200, 10, dtype=torch.float64).scatter_add_(1, train_labels[nearest], (values / 0.1).exp())
    assert found["top1"] == pytest.approx((scores.argmax(1) == test_labels).double().mean().item(), abs=1e-6)
    assert 0.5 < found["top1"] < 1


@every_device
def test_scores_are_the_processors(
    device: str, make_tinted: MakeTinted, tmp_path: Path, settings: MakeSettings
) -> None:
    data = make_tinted("data/train", [number % 3 for number in range(90)])
    make_tinted("data/test", [number % 3 for number in range(30)], seed=1)
    train(settings(data, run__device="cpu"), tmp_path / "run")

    def score(name: str, *command: str) -> dict[str, Any]:
        record = tmp_path / f"{name}.json"
        with pytest.raises(SystemExit, match="0"):
            main(["eval", *command, str(tmp_path / "run"), "-o", str(record), "--no-cache"])
        return {row: values["top1"] for row, values in json.loads(record.read_text())["results"].items()}

    for command in (("knn",), ("linear",), ("linear", "--protocol", "lbfgs"), ("linear", "--protocol", "sgd")):
        flags = ("--epochs", "5") if "sgd" in command else ()
        expected = score("cpu", *command, *flags, "--device", "cpu")
        some = (
            0.04 if device == "cpu" else 0.12
        )  # of 30 images, 18 of them held out; a GPU's convolutions round to TF32
        assert score("device", *command, *flags, "--device", device) == pytest.approx(expected, abs=some)
        assert min(expected.values()) > 0.4


@needs_gpu
@pytest.mark.parametrize("resident", ["yes", "no"])
@pytest.mark.parametrize(("backend", "views"), [("moco", "leoclr"), ("moco", "pairwise"), ("simclr", "leoclr")])
def test_a_run_on_a_gpu_is_the_processors(
    backend: str, views: str, resident: str, make_shards: MakeShards, tmp_path: Path, settings: MakeSettings
) -> None:
    data = make_shards((20, 9))
    options = {"backend": backend, "views": views, "data__resident": resident, "train__epochs": "2"}
    for device in ("cpu", "cuda"):
        train(settings(data, run__device=device, **options), tmp_path / device)
    assert losses(tmp_path / "cuda") == pytest.approx(losses(tmp_path / "cpu"), rel=0.03, abs=0.02)


@needs_gpu
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_gpu_trains_in_half_the_bits(
    precision: str, make_shards: MakeShards, tmp_path: Path, settings: MakeSettings
) -> None:
    data = make_shards((20, 9))
    for name in ("float32", precision):
        train(settings(data, run__device="cuda", train__precision=name), tmp_path / name)
    assert losses(tmp_path / precision) == pytest.approx(losses(tmp_path / "float32"), rel=0.05)


@needs_gpu
def test_a_gpu_makes_and_keeps_the_views_unless_told_otherwise(
    make_shards: MakeShards, tmp_path: Path, settings: MakeSettings
) -> None:
    train(settings(make_shards((16,)), run__device="auto", augmentation__executor="auto"), tmp_path / "run")
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert about["settings"]["augmentation"]["executor"] == "device" and about["settings"]["data"]["resident"] == "yes"


@needs_gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("resident", ["yes", "no"])
@pytest.mark.parametrize("backend", ["moco", "simclr"])
def test_no_step_makes_the_host_wait_for_the_gpu(
    resident: str,
    backend: str,
    make_shards: MakeShards,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: MakeSettings,
) -> None:
    """From the ninth step on: the first ones choose algorithms, allocate memory, and compare replays."""
    steps = [0]

    def watched(function: Callable[..., Any], counts: int) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            steps[0] += counts
            torch.cuda.set_sync_debug_mode("error" if steps[0] > 8 else "default")
            try:
                return function(*arguments)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        return call

    monkeypatch.setattr(TrainStep, "__call__", watched(TrainStep.__call__, 1))
    monkeypatch.setattr(transfer, "to_device", watched(transfer.to_device, 0))
    options = {"data__resident": resident, "backend": backend, "train__precision": "bf16", "run__device": "cuda"}
    train(settings(make_shards((64,)), **options), tmp_path / "run")
    assert steps[0] == 3 * 8


@needs_gpu
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores")  # torch before 2.14
def test_a_compiled_encoder_trains_alike(make_shards: MakeShards, tmp_path: Path, settings: MakeSettings) -> None:
    data = make_shards((20, 9))
    for compiled in ("false", "true"):
        train(settings(data, run__device="cuda", train__compile=compiled), tmp_path / compiled)
    assert losses(tmp_path / "true") == pytest.approx(losses(tmp_path / "false"), rel=0.02)


@needs_gpu
def test_memory_does_not_grow_with_the_steps(make_shards: MakeShards, tmp_path: Path, settings: MakeSettings) -> None:
    peaks: list[int] = []

    def measured(self: TrainStep, pixels: dict[str, Tensor], step: int) -> Any:
        peaks.append(torch.cuda.memory_allocated())
        return take(self, pixels, step)

    take = TrainStep.__call__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainStep, "__call__", measured)
        train(settings(make_shards((64,)), run__device="cuda", train__epochs="6"), tmp_path / "run")
    assert max(peaks[24:]) <= max(peaks[8:24]) * 1.05
