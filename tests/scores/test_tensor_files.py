"""Files of tensors that are damaged, hold two networks or something else, and the layouts that were once refused."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models
from torchvision.transforms.functional import normalize

from leoclr.backends.networks.backbones import build_backbone
from leoclr.cli.run.encoders import load_encoder
from leoclr.cli.run.foreign_weights import Architecture, fitting_tensors
from leoclr.cli.run.layouts import backbone_tensors
from leoclr.datasets.errors import CheckpointError


@pytest.fixture(scope="module")
def own() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return build_backbone("resnet18", "cifar", 4).state_dict()


@pytest.fixture(scope="module")
def other(own: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor + 1 for name, tensor in own.items()}


def prefixed(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def saved(content: Any, folder: Path) -> Path:
    torch.save(content, folder / "weights.pth")
    return folder / "weights.pth"


def assert_loads(path: Path, own: dict[str, Tensor]) -> None:
    loaded = load_encoder(path).backbone.state_dict()
    assert loaded.keys() == own.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in own.items())


def test_one_damaged_byte_is_found_and_its_record_named(own: dict[str, Tensor], tmp_path: Path) -> None:
    path = saved(own, tmp_path)
    data = bytearray(path.read_bytes())
    data[data.find(own["layer4.1.conv2.weight"].numpy().tobytes()) + 1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"is damaged: weights/data/\d+ does not have its CRC-32"):
        load_encoder(path)


def test_files_without_checksums_and_of_the_older_format_load(own: dict[str, Tensor], tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        assert_loads(saved(own, tmp_path), own)
    finally:
        torch.serialization.set_crc32_options(True)
    torch.save(own, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert_loads(tmp_path / "old.pth", own)


def test_records_that_unpack_to_more_than_the_file_are_not_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(saved({"weight": torch.zeros(1000)}, tmp_path)) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in records.items():
            archive.writestr(name, data * 1000)
    with pytest.raises(CheckpointError, match=r"records are 4\.\d MB in a file of .* kB; torch.save writes"):
        load_encoder(tmp_path / "bomb.pth")


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("backbone.", "model.backbone."),
        ("module.backbone.", "backbone."),
        ("encoder_q.", "module.encoder_q."),
        ("student_backbone.", "student.backbone."),
        ("_orig_mod.", ""),
        ("backbone._orig_mod.", "backbone."),
    ],
)
def test_two_networks_under_one_name_are_never_mixed(
    one: str, two: str, suffix: str, own: dict[str, Tensor], other: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / f"two.{suffix}"
    write: Any = save_file if suffix == "safetensors" else torch.save
    parted = set(list(own)[::2])
    halves = {name: own[name] for name in parted}, {name: other[name] for name in own.keys() - parted}
    pairs = [(own, other), *([halves] if "_orig_mod." not in one else [])]
    for first, second in pairs:
        write(prefixed(first, one) | prefixed(second, two), path)
        with pytest.raises(CheckpointError, match="two networks, ") as caught:
            load_encoder(path, "resnet18")
        assert one in str(caught.value) and two in str(caught.value)
    copied = {name: tensor.clone() for name, tensor in own.items()}
    write(prefixed(own, one) | prefixed(copied, two), path)  # one network that two modules share
    assert_loads(path, own)


@pytest.mark.parametrize(
    "layout", ["module.", "backbone.", "module.backbone.", "model.", "encoder.", "_orig_mod.", "module._orig_mod."]
)
def test_safetensors_have_the_prefixes_of_training_tools_too(
    layout: str, own: dict[str, Tensor], tmp_path: Path
) -> None:
    save_file(prefixed(own, layout), tmp_path / "weights.safetensors")
    assert_loads(tmp_path / "weights.safetensors", own)


def test_an_averaged_model_loads(own: dict[str, Tensor], tmp_path: Path) -> None:
    network = build_backbone("resnet18", "cifar", 4)
    network.load_state_dict(own)
    averaged: nn.Module = torch.optim.swa_utils.AveragedModel(network)
    assert_loads(saved(averaged.state_dict(), tmp_path), own)


def test_a_teacher_is_taken_before_a_student_and_a_student_alone_is_told(
    own: dict[str, Tensor], other: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for joint in (".", "_"):
        flat = prefixed(other, f"student{joint}backbone.") | prefixed(own, f"teacher{joint}backbone.")
        assert_loads(saved(flat, tmp_path), own)
        assert "left out student" in capsys.readouterr().err
    assert_loads(saved({"student": prefixed(own, "module."), "epoch": 1}, tmp_path), own)
    assert "the weights are its student's; it holds no teacher" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensor: tensor.to_sparse(), "conv1.weight is a sparse_coo tensor"),
        (lambda tensor: tensor.to("meta"), "conv1.weight is a meta tensor"),
        (lambda tensor: tensor.numpy(), "'conv1.weight' is an object of numpy, not a tensor; save torch.from_numpy"),
        (lambda tensor: {"a": tensor}, "'conv1.weight' is dict, not a tensor; save model.state_dict()"),
    ],
)
def test_what_is_no_plain_tensor_is_named(change: Any, said: str, own: dict[str, Tensor], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        load_encoder(saved(own | {"conv1.weight": change(own["conv1.weight"])}, tmp_path))
    assert said in str(caught.value)


def test_names_that_are_numbers_are_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"its names are text, and 1 is int; save model.state_dict\(\)"):
        load_encoder(saved({1: torch.zeros(1)}, tmp_path))


def test_the_second_head_of_a_distilled_vit_is_left_out(tmp_path: Path) -> None:
    network: Any = timm.create_model("deit_tiny_distilled_patch16_224", pretrained=False, num_classes=5)
    loaded = load_encoder(saved(network.state_dict(), tmp_path), "timm:deit_tiny_distilled_patch16_224")
    assert {name.partition(".")[0] for name in loaded.left_out} == {"head", "head_dist"}


def test_a_network_whose_own_names_begin_like_a_training_tools_keeps_them(own: dict[str, Tensor]) -> None:
    """As timm's gemma4_vit, whose names all begin with "encoder."."""
    expected = prefixed(own, "encoder.")
    tensors, left_out = backbone_tensors(expected | {"head.bias": torch.zeros(1)}, Path("a"))
    fitting, _ = fitting_tensors(tensors, expected, Path("a"), Architecture("gemma"))
    assert fitting.keys() == expected.keys() and left_out == ["head.bias"]


def test_googlenets_weights_by_name_see_what_torchvision_shows_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They have transform_input and two auxiliary classifiers; a file of them does not tell the former."""
    torch.manual_seed(0)
    network: Any = models.googlenet(init_weights=False, transform_input=True)
    kept = tmp_path / "hub" / "checkpoints" / "googlenet-1378be20.pth"
    kept.parent.mkdir(parents=True)
    torch.save(network.state_dict(), kept)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    loaded = load_encoder("torchvision:googlenet")
    assert "aux1 (" in capsys.readouterr().err
    network.fc = nn.Identity()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        mine = loaded.backbone(normalize(images, loaded.mean, loaded.std))
        theirs = network.eval()(normalize(images, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-4)
    load_encoder(kept, "googlenet")
    assert "name torchvision:googlenet" in capsys.readouterr().err
