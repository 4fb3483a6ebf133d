"""Encoders load from runs, checkpoints, exported files and other programs' weights: whole, or not at all."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from leoclr.backends.method import Facts
from leoclr.backends.methods.moco import MoCo
from leoclr.backends.methods.moco import Settings as MoCoSettings
from leoclr.backends.networks.backbones import Backbone, build_backbone
from leoclr.cli.config.settings import Settings
from leoclr.cli.run.checkpoint import load_checkpoint, save_checkpoint
from leoclr.cli.run.encoders import fresh_encoder, load_encoder, write_encoder
from leoclr.cli.run.folder import RunFolder
from leoclr.cli.scoring.records import described_encoder
from leoclr.datasets.errors import CheckpointError

SETTINGS = Settings.model_validate(
    {
        "data": {"image_size": 24},
        "encoder": {"backbone": "resnet18", "stem": "cifar", "width": 8, "projector_dim": 16},
        "augmentation": {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)},
    }
)


def train_a_little(module: nn.Module) -> None:
    """Give BatchNorm running statistics, without which a wrong load could go unseen."""
    module.train()
    module(torch.randn(8, 3, 24, 24))


@pytest.fixture(scope="module")
def trained() -> MoCo:
    facts = Facts(lambda: build_backbone("resnet18", "cifar", 8), projector=(2, 0, 16))
    moco = MoCo(MoCoSettings(queue=32, momentum=0.9, bn_splits=2), facts)
    train_a_little(moco.encoder)
    return moco


@pytest.fixture
def run(tmp_path: Path, trained: MoCo) -> Path:
    folder = RunFolder(tmp_path / "run")
    settings = SETTINGS.model_dump(mode="json")
    folder.write({"settings": settings})
    save_checkpoint(folder.checkpoints, 7, {"model": trained.state_dict()}, {"settings": settings})
    return folder.path


def features(backbone: nn.Module, size: int = 24) -> Tensor:
    with torch.no_grad():
        images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
        return backbone.eval()(images)  # type: ignore[no-any-return]


def resnet(name: str, **changes: Any) -> Backbone:
    backbone = build_backbone(name, **changes)
    train_a_little(backbone)
    return backbone


def test_a_run_its_checkpoint_and_a_copy_elsewhere_give_the_trained_backbone(
    run: Path, trained: MoCo, tmp_path: Path
) -> None:
    checkpoint = run / "checkpoints" / "step-000000007"
    copied = shutil.copytree(checkpoint, tmp_path / "taken" / "away")
    expected = features(trained.encoder.backbone)
    for path, belongs_to in ((run, run), (checkpoint, run), (copied, None)):
        loaded = load_encoder(path)
        assert torch.equal(features(loaded.backbone), expected)
        assert (loaded.name, loaded.stem, loaded.width, loaded.image_size) == ("resnet18", "cifar", 8, 24)
        assert (loaded.mean, loaded.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
        assert loaded.run == belongs_to
        assert not loaded.backbone.training
        assert not any(parameter.requires_grad for parameter in loaded.backbone.parameters())


def test_an_exported_file_says_everything_itself(run: Path, tmp_path: Path) -> None:
    loaded, path = load_encoder(run), tmp_path / "encoder.safetensors"
    write_encoder(loaded, path)
    again = load_encoder(path)
    assert torch.equal(features(again.backbone), features(loaded.backbone))
    for name in ("name", "stem", "width", "image_size", "mean", "std", "digest"):
        assert getattr(again, name) == getattr(loaded, name)
    assert (again.source, again.run) == (str(path), None)


def test_a_changed_weight_of_an_exported_file_is_noticed(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    write_encoder(load_encoder(run), path)
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=f"{path} has changed since it was exported"):
        load_encoder(path)
    path.write_bytes(data[:-3])
    with pytest.raises(CheckpointError, match=f"{path} is not a safetensors file"):
        load_encoder(path)


def test_the_digest_depends_on_the_weights_and_on_nothing_else(run: Path) -> None:
    loaded = load_encoder(run)
    assert loaded.digest == load_encoder(run / "checkpoints").digest
    untrained = fresh_encoder(loaded, seed=0)
    assert described_encoder(untrained)["path"] == "untrained, seed 0"  # no file of this folder
    assert untrained.digest == fresh_encoder(loaded, seed=0).digest
    assert len({loaded.digest, untrained.digest, fresh_encoder(loaded, seed=1).digest}) == 3


def test_a_fresh_encoder_shares_all_but_the_weights_and_leaves_the_generator_alone(run: Path) -> None:
    loaded = load_encoder(run)
    before = torch.get_rng_state()
    untrained = fresh_encoder(loaded, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert (untrained.image_size, untrained.mean, untrained.std) == (24, loaded.mean, loaded.std)
    assert (untrained.source, untrained.run) == ("untrained, seed 3", None)
    expected = {name: tensor.shape for name, tensor in loaded.backbone.state_dict().items()}
    assert {name: tensor.shape for name, tensor in untrained.backbone.state_dict().items()} == expected


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_torchvision_weights_tell_their_architecture_and_lose_their_classifier(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    classifier = models.get_model(name, weights=None)
    path = tmp_path / "weights.pth"
    torch.save(classifier.state_dict(), path)
    loaded = load_encoder(path)
    assert (loaded.name, loaded.stem, loaded.width, loaded.image_size) == (name, "imagenet", 64, 224)
    assert "left out fc.bias, fc.weight" in capsys.readouterr().err
    classifier.fc = nn.Identity()
    assert torch.equal(features(loaded.backbone, 64), features(classifier, 64))


@pytest.mark.parametrize(("stem", "width"), [("imagenet", 16), ("cifar", 64)])
def test_stem_and_width_are_told_from_the_shapes(tmp_path: Path, stem: str, width: int) -> None:
    backbone = resnet("resnet18", stem=stem, width=width)
    torch.save(backbone.state_dict(), tmp_path / "weights.pt")
    loaded = load_encoder(tmp_path / "weights.pt")
    assert (loaded.name, loaded.stem, loaded.width) == ("resnet18", stem, width)
    assert torch.equal(features(loaded.backbone), features(backbone))


def test_moco_checkpoints_give_their_query_encoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    backbone = resnet("resnet18", width=8)
    query = {f"module.encoder_q.{name}": tensor for name, tensor in backbone.state_dict().items()}
    keys = {name.replace("encoder_q", "encoder_k"): torch.zeros_like(tensor) for name, tensor in query.items()}
    head = {f"module.encoder_q.fc.{layer}.weight": torch.randn(4, 4) for layer in (0, 2)}
    content = {
        "epoch": 200,
        "arch": "resnet18",
        "state_dict": {**keys, **query, **head, "module.queue": torch.zeros(3)},
    }
    path = tmp_path / "moco.pth.tar"
    torch.save(content, path)
    assert torch.equal(features(load_encoder(path).backbone), features(backbone))
    assert "left out fc.0.weight, fc.2.weight" in capsys.readouterr().err


def test_distributed_prefixes_and_files_without_batch_counters_load(tmp_path: Path) -> None:
    backbone = resnet("resnet18", width=8)
    old = {name: tensor for name, tensor in backbone.state_dict().items() if not name.endswith("num_batches_tracked")}
    path = tmp_path / "old.pth"
    torch.save({"model": {f"module.{name}": tensor for name, tensor in old.items()}}, path)
    assert torch.equal(features(load_encoder(path).backbone), features(backbone))


def test_another_architecture_needs_its_name(tmp_path: Path) -> None:
    classifier = models.mobilenet_v3_small()
    path = tmp_path / "weights.pth"
    torch.save(classifier.state_dict(), path)
    with pytest.raises(CheckpointError, match="does not tell its architecture; name it with --backbone"):
        load_encoder(path)
    loaded = load_encoder(path, backbone="mobilenet_v3_small")
    classifier.classifier[3] = nn.Identity()
    assert torch.equal(features(loaded.backbone), features(classifier))
    with pytest.raises(CheckpointError, match="no classifier 'mobilenet_v9'"):
        load_encoder(path, backbone="mobilenet_v9")


def test_a_name_that_contradicts_the_file_is_refused(run: Path) -> None:
    with pytest.raises(CheckpointError, match="says itself that it is resnet18, not resnet50"):
        load_encoder(run, backbone="resnet50")


def test_keys_that_do_not_match_are_listed_by_kind(tmp_path: Path) -> None:
    tensors = resnet("resnet18", width=8).state_dict()
    del tensors["layer1.0.bn1.bias"]
    tensors["layer4.1.bn2.bias"] = torch.zeros(5)
    tensors["layer4.1.bn2.weight"] = torch.zeros(64, dtype=torch.int64)
    tensors.update({f"extra.{number}": torch.zeros(1) for number in range(10)})
    path = tmp_path / "weights.pth"
    torch.save(tensors, path)
    with pytest.raises(CheckpointError) as caught:
        load_encoder(path)
    extra = ", ".join(f"extra.{number}" for number in range(8))
    assert str(caught.value) == (
        f"{path} does not fit resnet18 (imagenet stem, width 8); "
        f"1 missing: layer1.0.bn1.bias; "
        f"10 unexpected: {extra} and 2 more; "
        f"1 of another shape: layer4.1.bn2.bias 5 instead of 64; "
        f"1 of another type: layer4.1.bn2.weight int64 instead of float32"
    )


def test_a_checkpoint_that_lacks_weights_or_settings_is_refused(run: Path, tmp_path: Path) -> None:
    whole = load_checkpoint(run / "checkpoints" / "step-000000007")
    key = "encoder.backbone.conv1.weight"
    partial = {"model": {name: tensor for name, tensor in whole.tensors["model"].items() if name != key}}
    with pytest.raises(CheckpointError, match="1 missing: conv1.weight"):
        load_encoder(save_checkpoint(tmp_path / "partial", 1, partial, whole.state))
    with pytest.raises(CheckpointError, match="'settings' is missing"):
        load_encoder(save_checkpoint(tmp_path / "silent", 1, whole.tensors, {}))
    settings = {**whole.state["settings"], "encoder": {"backbone": "resnet18", "stem": "none"}}
    with pytest.raises(CheckpointError, match="stem: Input should be 'imagenet' or 'cifar'"):
        load_encoder(save_checkpoint(tmp_path / "other", 1, whole.tensors, {"settings": settings}))


def test_the_encoder_of_a_method_that_is_not_installed_is_read(run: Path, tmp_path: Path) -> None:
    whole = load_checkpoint(run / "checkpoints" / "step-000000007")
    settings = {**whole.state["settings"], "backend": "elsewhere", "elsewhere": {"width": 3}}
    tensors = {"model": {f"teacher.{name}": tensor for name, tensor in whole.tensors["model"].items()}}
    state: dict[str, Any] = {"settings": settings, "encoder": "teacher.encoder.backbone"}
    loaded = load_encoder(save_checkpoint(tmp_path / "elsewhere", 1, tensors, state))
    assert loaded.digest == load_encoder(run).digest


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [1, 2], torch.zeros(3), {"state_dict": {1: torch.zeros(1)}}])
def test_a_file_without_a_state_dict_is_refused_by_name(tmp_path: Path, content: object) -> None:
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=f"{path} holds no state dict"):
        load_encoder(path)


@pytest.mark.parametrize("damage", ["garbage", "truncated", "empty"])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"weight": torch.randn(1000)}, path)
    path.write_bytes({"garbage": b"<html>404</html>", "truncated": path.read_bytes()[:2000], "empty": b""}[damage])
    with pytest.raises(CheckpointError, match=f"{path} is refused: not a file of tensors"):
        load_encoder(path)


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, evidence: Path) -> None:
        self.evidence = evidence

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.evidence),)


LOAD_ALL = """
import sys
from pathlib import Path
from leoclr.cli.run.encoders import load_encoder
from leoclr.datasets.errors import CheckpointError

started = []
events = ("os.mkdir", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen")
sys.addaudithook(lambda name, _: started.append(name) if name in events else None)
for path in sys.argv[1:]:
    try:
        load_encoder(Path(path))
    except CheckpointError as error:
        print(error)
assert not started, started
"""


def test_a_malicious_pickle_is_refused_by_name_and_not_run(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("zip.pth", "plain.pt", "renamed.safetensors")]
    evil = {"state_dict": Malicious(tmp_path / "evidence")}
    torch.save(evil, paths[0])
    for path in paths[1:]:
        path.write_bytes(pickle.dumps(evil))
    done = subprocess.run(
        [sys.executable, "-c", LOAD_ALL, *map(str, paths)],
        capture_output=True,
        text=True,
        env={**os.environ, "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"},
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    refusals = done.stdout.splitlines()
    assert len(refusals) == 3 and all(str(path) in line for path, line in zip(paths, refusals, strict=True))
    assert refusals[0].endswith("it asks to run posix.mkdir")
    assert not (tmp_path / "evidence").exists()
