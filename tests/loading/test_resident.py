"""A data set on the device gives the steps that loader processes give, and runs on it resume bit for bit."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image
from safetensors.torch import load_file

from leoclr.cli.config.resolve import differences
from leoclr.cli.config.setting_files import to_toml
from leoclr.cli.config.settings import Settings
from leoclr.cli.preflight.auto import DataFacts, settle
from leoclr.cli.training import data as data_module
from leoclr.cli.training import trainer as training
from leoclr.cli.training.data import resident_images
from leoclr.datasets.errors import DataError, RunError, SettingsError
from leoclr.datasets.images.augment_device import crop_boxes
from leoclr.datasets.images.augment_pillow import whole
from leoclr.datasets.images.augmentation import UNIFORMS, AugmentationSpec, crop_box, view_specs
from leoclr.datasets.images.crop_device import crops, wholes
from leoclr.datasets.loading.device_feed import on_device
from leoclr.datasets.loading.loader import Batch, StepDataset, batches
from leoclr.datasets.loading.plan import Plan
from leoclr.datasets.loading.resident import ResidentImages, load_resident, resident_batches
from leoclr.datasets.loading.view_maker import ViewMaker
from leoclr.datasets.randomness import uniforms
from leoclr.datasets.shards.index import Index
from leoclr.datasets.shards.locate import open_data
from leoclr.datasets.views import POLICIES

MakeShards = Callable[..., Path]
MakeSettings = Callable[..., Settings]
CPU = torch.device("cpu")
SPEC = AugmentationSpec(12, executor="device")
SPECS = view_specs(POLICIES["leoclr"], SPEC)


@pytest.mark.parametrize(("width", "height"), [(32, 32), (48, 30), (96, 96)])
@pytest.mark.parametrize("size", [8, 32, 64])
def test_crops_are_pillows_within_two_levels(width: int, height: int, size: int) -> None:
    spec = AugmentationSpec(size)
    noise = np.random.default_rng(0).integers(0, 256, (40, height, width, 3), dtype=np.uint8)
    numbers = uniforms(0, 0, np.arange(40), 0, UNIFORMS)
    boxes = torch.from_numpy(crop_boxes(width, height, spec, numbers).astype(np.float32))
    found = crops(torch.from_numpy(noise).permute(0, 3, 1, 2), boxes, size).permute(0, 2, 3, 1).numpy()
    for image, row, pixels in zip(noise, numbers, found, strict=True):
        cropped = Image.fromarray(image).crop(crop_box(width, height, spec, row))
        expected = np.asarray(cropped.resize((size, size), Image.Resampling.BILINEAR), np.int16)
        difference = np.abs(pixels.astype(np.int16) - expected)
        assert difference.max() <= 2 and difference.mean() < 0.4


@pytest.mark.parametrize(("width", "height"), [(32, 32), (48, 30), (31, 64)])
@pytest.mark.parametrize("original", ["squash", "pad", "center"])
def test_whole_images_are_pillows_within_two_levels(
    width: int, height: int, original: Literal["squash", "pad", "center"]
) -> None:
    spec = AugmentationSpec(24, original=original)
    noise = np.random.default_rng(0).integers(0, 256, (10, height, width, 3), dtype=np.uint8)
    found = wholes(torch.from_numpy(noise).permute(0, 3, 1, 2), spec).permute(0, 2, 3, 1).numpy()
    for image, pixels in zip(noise, found, strict=True):
        difference = np.abs(pixels.astype(np.int16) - np.asarray(whole(Image.fromarray(image), spec), np.int16))
        assert difference.max() <= 2 and difference.mean() < 0.4


def resident(index: Index, rank: int = 0, ranks: int = 1, start: int = 0, stop: int = 6) -> list[Batch]:
    images = load_resident(index, CPU, workers=0)
    assert images is not None
    plan, make = Plan.of(index, 6, 3, rank, ranks), ViewMaker(SPECS, images.pixels)
    drawn = on_device(resident_batches(images, plan, POLICIES["leoclr"], SPEC, start, stop), CPU)
    return [replace(batch, views=make(batch.inputs)) for batch in drawn]


def loaded(index: Index) -> list[Batch]:
    data, finish = StepDataset(index, Plan.of(index, 6, 3), POLICIES["leoclr"], SPEC), ViewMaker(SPECS)
    return [replace(batch, views=finish(batch.inputs)) for batch in on_device(batches(data, 0, 6, 0), CPU)]


def test_steps_are_those_of_loader_processes(make_shards: MakeShards) -> None:
    index = open_data([str(make_shards((9, 5, 9), bad=(3, 11)))])
    for one, other in zip(resident(index), loaded(index), strict=True):
        assert one.step == other.step and one.samples.tolist() == other.samples.tolist() and one.bad == other.bad
        for name, pixels in one.views.items():
            difference = (pixels.int() - other.views[name].int()).abs()
            assert pixels.shape == (6, 3, 12, 12) and pixels.is_contiguous(memory_format=torch.channels_last)
            assert difference.float().mean() < 0.5
    assert {line.partition(" ")[0] for batch in resident(index) for line in batch.bad} == {"00003", "00011"}


def test_ranks_split_a_step_and_any_step_can_be_the_first(make_shards: MakeShards) -> None:
    index = open_data([str(make_shards((9, 14)))])
    whole_steps = resident(index)
    parts = [resident(index, rank, 2) for rank in range(2)]
    for together, first, second in zip(whole_steps, *parts, strict=True):
        assert together.samples.tolist() == [*first.samples.tolist(), *second.samples.tolist()]
        for name, pixels in together.views.items():
            assert torch.equal(pixels, torch.cat([first.views[name], second.views[name]]))
    for one, other in zip(resident(index, start=4), whole_steps[4:], strict=True):
        assert all(torch.equal(one.views[name], other.views[name]) for name in one.views)


def test_images_of_several_sizes_are_found_out_and_bad_ones_are_kept_apart(
    make_shards: MakeShards, tmp_path: Path
) -> None:
    index = open_data([str(make_shards((4, 3), bad=(0, 5)))])
    images = load_resident(index, CPU, workers=1)
    assert isinstance(images, ResidentImages) and images.pixels.shape == (7, 3, 16, 16)
    assert sorted(images.bad) == [0, 5] and "cannot be decoded" in images.bad[5]
    assert load_resident(open_data([str(mixed(tmp_path / "mixed"))]), CPU, workers=0) is None
    none = open_data([str(make_shards((3,), "none", bad=(0, 1, 2)))])
    assert load_resident(none, CPU, workers=0) is None
    dead = ResidentImages(images.pixels, dict.fromkeys(range(7), "00000 cannot be decoded"))
    with pytest.raises(DataError, match="100 images in a row cannot be decoded; the last: 00000"):
        list(resident_batches(dead, Plan.of(index, 6, 3), POLICIES["leoclr"], AugmentationSpec(12), 0, 1))


def mixed(folder: Path) -> Path:
    folder.mkdir()
    with webdataset.TarWriter(str(folder / "mixed-000000.tar"), encoder=False) as writer:
        for number, side in enumerate((16, 16, 17, 16, 16, 16, 16, 16)):
            buffer = io.BytesIO()
            Image.new("RGB", (side, 16)).save(buffer, "PNG")
            writer.write({"__key__": f"{number:05d}", "png": buffer.getvalue()})
    return folder


@pytest.fixture
def settings(tiny_settings: MakeSettings) -> MakeSettings:
    """Two epochs."""
    return partial(tiny_settings, train__epochs="2")


def test_a_run_resumes_bit_for_bit_and_keeps_to_the_device(
    make_shards: MakeShards, tmp_path: Path, settings: MakeSettings
) -> None:
    data, run = make_shards((20,), bad=(3,)), tmp_path / "run"
    chosen = settings(data, data__resident="yes", data__max_bad_samples="0.1")
    done = training.train(chosen, run, None, ["test"], False)
    assert done.bad_images == 1
    recorded = json.loads((run / "run.json").read_text())["settings"]
    assert (recorded["data"]["resident"], recorded["augmentation"]["executor"]) == ("yes", "device")
    newest = Path(done.checkpoint)
    before = (newest / "model.safetensors").read_bytes()
    for file in newest.iterdir():
        file.unlink()
    newest.rmdir()
    auto = settings(data, data__max_bad_samples="0.1")
    assert not differences(Settings.model_validate(recorded), auto)
    again = training.train(auto, run, None, ["test"], True)
    assert again.step == done.step and (newest / "model.safetensors").read_bytes() == before


def test_what_cannot_be_resident_is_refused_or_left_to_workers(
    make_shards: MakeShards, tmp_path: Path, settings: MakeSettings
) -> None:
    data = make_shards((16,))
    fast = settings(data, data__resident="yes", augmentation__executor="fast")
    with pytest.raises(SettingsError, match="augmentation.executor is fast and must be device too"):
        training.train(fast, tmp_path / "fast", None, ["test"], False)
    with pytest.raises(RunError, match="all have one size; take --set data.resident=no"):
        several = settings(mixed(tmp_path / "mixed"), data__resident="yes")
        training.train(several, tmp_path / "several", None, ["test"], False)
    training.train(settings(data, train__epochs="1"), tmp_path / "auto", None, ["test"], False)
    recorded: dict[str, Any] = json.loads((tmp_path / "auto" / "run.json").read_text())["settings"]
    assert (recorded["data"]["resident"], recorded["augmentation"]["executor"]) == ("no", "fast")


def test_what_does_not_fit_on_the_device_is_left_to_workers(
    make_shards: MakeShards, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_shards((16,))
    index = open_data([str(data)])

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(data_module, "load_resident", full)
    assert resident_images(index, CPU, 0, must=False) is None
    with pytest.raises(RunError, match="do not fit on the device; take --set data.resident=no"):
        resident_images(index, CPU, 0, must=True)


@pytest.mark.slow
def test_two_processes_train_what_one_does(make_shards: MakeShards, tmp_path: Path, settings: MakeSettings) -> None:
    data = make_shards((16,))
    weights = []
    for processes in (1, 2):
        run = tmp_path / f"run{processes}"
        config = tmp_path / "run.toml"
        config.write_text(to_toml(settings(data, data__resident="yes", train__epochs="1")))
        command = [sys.executable, "-m", "leoclr.cli", "train", "--config", str(config), "--output", str(run)]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            group = {
                "WORLD_SIZE": str(processes),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(probe.getsockname()[1]),
            }
        started = [
            subprocess.Popen(
                command,
                env=os.environ | group | {"OMP_NUM_THREADS": "1", "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stderr=subprocess.DEVNULL,
            )
            for rank in range(processes)
        ]
        assert [process.wait(timeout=120) for process in started] == [0] * processes
        weights.append(load_file(next((run / "checkpoints").glob("step-000000002")) / "model.safetensors"))
    for name, alone in weights[0].items():
        if "running" not in name:  # statistics are of each process's own groups
            torch.testing.assert_close(weights[1][name], alone, rtol=1e-3, atol=1e-4, msg=name)


def test_reduced_decoding_keeps_images_off_the_device(make_shards: MakeShards) -> None:
    """The two contradict each other, and a run's settings must be ones that can be read again."""
    small = DataFacts(images=8, first_size=(24, 24))

    def resident(reduced: bool) -> str:
        given = {"augmentation": {"executor": "device", "reduced_decoding": reduced}}
        return settle(Settings.model_validate(given), "cuda", small, None).data.resident

    assert (resident(reduced=False), resident(reduced=True)) == ("yes", "no")


@pytest.mark.parametrize(
    ("device", "data", "recorded", "resident"),
    [
        ("cuda", DataFacts(50_000, (32, 32)), None, "yes"),
        ("cuda", DataFacts(50_000, (32, 129)), None, "no"),  # too wide
        ("cuda", DataFacts(2_000_000, (32, 32)), None, "no"),  # more than 4 GiB
        ("cuda", DataFacts(50_000, None), None, "no"),
        ("cpu", DataFacts(50_000, (32, 32)), None, "no"),
        ("cpu", DataFacts(50_000, None), {"augmentation": {"executor": "device"}, "data": {"resident": "yes"}}, "yes"),
        ("cuda", DataFacts(50_000, (32, 32)), {"augmentation": {"executor": "fast"}, "data": {}}, "no"),
    ],
)
def test_auto_is_settled_by_the_data_the_device_and_what_a_run_began_with(
    device: str, data: DataFacts, recorded: dict[str, Any] | None, resident: str
) -> None:
    assert settle(Settings(), device, data, recorded).data.resident == resident
