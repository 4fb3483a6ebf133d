"""Weights of others: by name, out of folders, and out of the checkpoints of other training tools."""

from __future__ import annotations

import argparse
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models

from leoclr.backends.networks.backbones import build_backbone
from leoclr.cli.exporting.export import export_encoder
from leoclr.cli.exporting.formats import ExportFormat
from leoclr.cli.run.encoders import load_encoder
from leoclr.cli.run.foreign_weights import embedded_size
from leoclr.cli.run.layouts import summary
from leoclr.datasets.errors import CheckpointError


def features(network: nn.Module, size: int = 64) -> Tensor:
    with torch.no_grad():
        return network.eval()(torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1)))  # type: ignore


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    torch.manual_seed(0)
    network = build_backbone("resnet18")
    network(torch.randn(4, 3, 64, 64))
    return network


def prefixed(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def sequential(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As nn.Sequential(*children) numbers a ResNet's parts."""
    numbers = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
    return {f"{numbers[name.split('.')[0]]}.{name.partition('.')[2]}": tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("tool", "left_out"),
    [
        ("moco-v2", ("module.encoder_k", "module.queue", "fc")),
        ("moco-v3", ("module.momentum_encoder", "module.predictor", "fc")),
        ("solo-learn", ("momentum_backbone", "projector", "classifier")),
        ("lightly", ("projection_head",)),
        ("lightly-children", ("projection_head",)),
        ("simsiam", ("module.predictor", "fc")),
        ("swav", ("projection_head", "prototypes")),
        ("compiled", ("fc",)),
        ("lightning-compiled", ("projector",)),
    ],
)
def test_checkpoints_of_training_tools_give_their_backbone(
    tool: str, left_out: tuple[str, ...], tmp_path: Path, resnet: nn.Module, capsys: pytest.CaptureFixture[str]
) -> None:
    own, head = resnet.state_dict(), {"0.weight": torch.zeros(2, 2)}
    other = {name: torch.zeros_like(tensor) for name, tensor in own.items()}
    layouts = {
        "moco-v2": prefixed(own | prefixed(head, "fc."), "module.encoder_q.")
        | prefixed(other, "module.encoder_k.")
        | {"module.queue": torch.zeros(2)},
        "moco-v3": prefixed(own | prefixed(head, "fc."), "module.base_encoder.")
        | prefixed(other, "module.momentum_encoder.")
        | prefixed(head, "module.predictor."),
        "solo-learn": prefixed(own, "backbone.")
        | prefixed(other, "momentum_backbone.")
        | prefixed(head, "projector.")
        | prefixed(head, "classifier."),
        "lightly": prefixed(own, "backbone.") | prefixed(head, "projection_head.layers."),
        "lightly-children": prefixed(sequential(own), "backbone.") | prefixed(head, "projection_head.layers."),
        "simsiam": prefixed(own | prefixed(head, "fc."), "module.encoder.") | prefixed(head, "module.predictor."),
        "swav": prefixed(own | prefixed(head, "projection_head.") | prefixed(head, "prototypes."), "module."),
        "compiled": prefixed(own | prefixed(head, "fc."), "_orig_mod."),
        "lightning-compiled": prefixed(own, "backbone._orig_mod.") | prefixed(head, "projector."),
    }
    content = {"epoch": 3, "state_dict": layouts[tool], "hyper_parameters": argparse.Namespace(lr=0.1)}
    torch.save(content, tmp_path / "last.ckpt")
    loaded = load_encoder(tmp_path / "last.ckpt")
    assert (loaded.name, loaded.stem) == ("resnet18", "imagenet")
    assert torch.equal(features(loaded.backbone), features(resnet))
    said = capsys.readouterr().err
    for name in left_out:
        assert name in said


def test_of_two_networks_in_a_file_one_is_read_and_the_other_listed(
    tmp_path: Path, resnet: nn.Module, capsys: pytest.CaptureFixture[str]
) -> None:
    own = resnet.state_dict()
    other = {name: torch.zeros_like(tensor) for name, tensor in own.items()}
    dino = {"student": prefixed(other, "module.backbone."), "teacher": prefixed(own, "backbone."), "epoch": 9}
    for content, listed in ((dino, "student"), ({"model": own, "model_ema": other}, "model_ema")):
        torch.save(content, tmp_path / "two.pth")
        assert torch.equal(features(load_encoder(tmp_path / "two.pth").backbone), features(resnet))
        assert f"left out {listed} (120 tensors)" in capsys.readouterr().err


def test_the_padding_of_a_cifar_stem_is_not_guessed_in_silence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = build_backbone("resnet18", "cifar").state_dict()
    torch.save({"state_dict": prefixed(own, "backbone.") | {"classifier.bias": torch.zeros(2)}}, tmp_path / "a.ckpt")
    load_encoder(tmp_path / "a.ckpt")
    assert "solo-learn's pads by 2" in capsys.readouterr().err
    torch.save(own, tmp_path / "b.pth")
    load_encoder(tmp_path / "b.pth")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("name", "size"), [("test_vit", 160), ("test_vit2", 96), ("vit_tiny_r_s16_p8_224", 224), ("test_vit_relpos", 160)]
)
def test_a_vits_own_size_is_found_in_its_weights(tmp_path: Path, name: str, size: int) -> None:
    """With a class token, with a register token, behind convolutions, without a position embedding."""
    network: Any = timm.create_model(name, pretrained=False, num_classes=0, img_size=size)
    torch.save(network.state_dict(), tmp_path / "vit.pth")
    loaded = load_encoder(tmp_path / "vit.pth", f"timm:{name}")
    assert loaded.image_size == size
    assert torch.equal(features(loaded.backbone, size), features(network, size))


def test_patches_without_other_tokens_in_the_embedding() -> None:
    tokens = {"cls_token": torch.zeros(1, 1, 8), "reg_token": torch.zeros(1, 4, 8)}
    patches = {"patch_embed.proj.weight": torch.zeros(8, 3, 14, 14)}
    assert embedded_size(tokens | patches | {"pos_embed": torch.zeros(1, 37 * 37, 8)}) == 518
    assert embedded_size(tokens | patches | {"pos_embed": torch.zeros(1, 37 * 37 + 5, 8)}) == 518
    assert embedded_size(tokens | patches | {"pos_embed": torch.zeros(1, 37 * 37 + 2, 8)}) is None
    assert embedded_size(tokens) is None


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_weights_that_were_cast_as_a_whole_are_the_network_of_their_values(
    dtype: torch.dtype, suffix: str, tmp_path: Path, resnet: nn.Module
) -> None:
    """Also the counters of steps, which are integers, and infinite in 16 bits after many steps."""
    own = resnet.state_dict() | {"bn1.num_batches_tracked": torch.tensor(70_000)}
    cast = {name: tensor.to(dtype) for name, tensor in own.items()}
    if suffix == "pth":
        torch.save(cast, tmp_path / "cast.pth")
    else:
        save_file(cast, tmp_path / "cast.safetensors")
    loaded = load_encoder(tmp_path / f"cast.{suffix}", "resnet18")
    expected = build_backbone("resnet18")
    expected.load_state_dict({name: tensor.to(dtype).float() for name, tensor in resnet.state_dict().items()})
    assert torch.equal(features(loaded.backbone), features(expected))
    torch.testing.assert_close(features(loaded.backbone), features(resnet), atol=0.1, rtol=0.1)
    counter = loaded.backbone.state_dict()["bn1.num_batches_tracked"]
    assert counter.dtype == torch.int64 and abs(int(counter) - 70_000) < 300 or dtype == torch.float16
    if dtype == torch.float64:
        torch.save(own, tmp_path / "own.pth")
        assert loaded.digest == load_encoder(tmp_path / "own.pth").digest


@pytest.mark.parametrize(
    ("name", "dtype", "said"),
    [
        ("conv1.weight", torch.int8, "1 of another type: conv1.weight int8 instead of float32"),
        ("bn1.bias", torch.complex64, "1 of another type: bn1.bias complex64 instead of float32"),
        ("bn1.num_batches_tracked", torch.complex64, "bn1.num_batches_tracked complex64 instead of int64"),
    ],
)
def test_weights_of_a_type_that_cannot_be_meant_are_refused_by_type(
    name: str, dtype: torch.dtype, said: str, tmp_path: Path, resnet: nn.Module
) -> None:
    tensors = resnet.state_dict()
    torch.save(tensors | {name: tensors[name].to(dtype)}, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=said) as caught:
        load_encoder(tmp_path / "odd.pth")
    assert "shape" not in str(caught.value)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("executed",)


def test_records_are_replaced_unseen_and_anything_else_is_refused(
    tmp_path: Path, resnet: nn.Module, capsys: pytest.CaptureFixture[str]
) -> None:
    """A name of a known tool imports nothing, whatever it is given; any other name refuses the whole file."""
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": resnet.state_dict(), "hyper_parameters": Evil()}, path)
    with pytest.raises(CheckpointError, match="it asks to run print"):
        load_encoder(path)
    torch.save({"state_dict": resnet.state_dict(), "hyper_parameters": argparse.Namespace(lr=[1, {"a": 2}])}, path)
    assert torch.equal(features(load_encoder(path).backbone), features(resnet))
    assert "executed" not in capsys.readouterr().out


def make_folder(path: Path, name: str = "test_vit", classes: int = 5, **config: Any) -> nn.Module:
    """A folder as timm writes it, of a small network with a classifier."""
    torch.manual_seed(0)
    network: nn.Module = timm.create_model(name, pretrained=False, num_classes=classes)
    path.mkdir()
    save_file({key: tensor.contiguous() for key, tensor in network.state_dict().items()}, path / "model.safetensors")
    told = {"input_size": [3, 160, 160], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "num_classes": classes}
    content = {"architecture": name, "num_classes": classes, "pretrained_cfg": told, **config}
    (path / "config.json").write_text(json.dumps(content))
    return network


def pooled(network: Any, size: int) -> Tensor:
    network.reset_classifier(0)
    return features(network, size)


@pytest.mark.parametrize("place", ["{}", "local-dir:{}"])
def test_a_folder_of_timm_gives_its_network_and_preprocessing(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = make_folder(tmp_path / "vit")
    loaded = load_encoder(place.format(tmp_path / "vit"))
    assert (loaded.name, loaded.image_size, loaded.mean, loaded.std) == (
        "timm:test_vit",
        160,
        (0.1, 0.2, 0.3),
        (0.4, 0.5, 0.6),
    )
    assert torch.equal(features(loaded.backbone, 160), pooled(network, 160))
    assert "left out head.bias, head.weight, which" in capsys.readouterr().err


def test_an_exported_folder_loads_back_and_a_changed_one_does_not(tmp_path: Path, resnet: nn.Module) -> None:
    torch.save(resnet.state_dict(), tmp_path / "weights.pth")
    encoder = load_encoder(tmp_path / "weights.pth")
    export_encoder(encoder, ExportFormat.hf, tmp_path / "folder")
    again = load_encoder(tmp_path / "folder")
    assert (again.digest, again.name, again.image_size) == (encoder.digest, "resnet18", 224)
    path = tmp_path / "folder" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="has changed since it was exported"):
        load_encoder(tmp_path / "folder")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "config.json cannot be read"),
        ("[]", "config.json is not the configuration of a timm model"),
        (
            '{"architecture": "resnet18", "model_args": {"channels": [8]}}',
            "model_args channels: leoclr builds resnet18",
        ),
        ('{"architecture": "resnet18", "pretrained_cfg": {"std": [0, 1, 1]}}', "pretrained_cfg is not timm's"),
        ('{"architecture": "no_such"}', "timm has no model 'no_such'"),
        ('{"architecture": "resnet18", "model_args": [1]}', "config.json: model_args must be an object"),
        ('{"architecture": "resnet18", "model_args": "x"}', "config.json: model_args must be an object"),
        ('{"architecture": "resnet18", "model_args": {"in_chans": 1}}', "model_args in_chans: leoclr builds resnet18"),
        ('{"architecture": "resnet18", "pretrained_cfg": 3}', "pretrained_cfg is not timm's"),
        ('{"architecture": "resnet18", "input_size": [3, 1e400, 1e400]}', "config.json: .*input_size.1: .*finite"),
        ('{"architecture": "resnet18", "input_size": [3, 32, 1000000000]}', "config.json: .*input_size.2: .*16384"),
        ('{"architecture": "resnet18", "std": [NaN, 1, 1]}', "config.json: .*std.0: .*finite"),
        ('{"architecture": "resnet18", "mean": [0, 0, Infinity]}', "config.json: .*mean.2: .*finite"),
    ],
)
def test_folders_that_cannot_be_read_say_why(content: str, said: str, tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=said):
        load_encoder(tmp_path)


@pytest.mark.parametrize(("name", "size"), [("resnet18", 64), ("test_vit", 160), ("test_vit3", 160)])
@pytest.mark.parametrize("classes", [0, 5])
def test_what_timm_saves_loads(name: str, size: int, classes: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=classes)
    timm.models.save_for_hf(network, str(tmp_path))
    assert torch.equal(features(load_encoder(tmp_path).backbone, size), pooled(network, size))


def test_another_pooling_is_refused(tmp_path: Path) -> None:
    for number, (name, pooling) in enumerate((("resnet18", "max"), ("test_vit", "avg"))):
        network = timm.create_model(name, num_classes=0, global_pool=pooling)
        timm.models.save_for_hf(network, str(tmp_path / str(number)), model_args={"global_pool": pooling})
        with pytest.raises(CheckpointError, match="global_pool: leoclr builds|does not fit"):
            load_encoder(tmp_path / str(number))


def test_a_folder_with_a_pickle_goes_through_the_restricted_unpickler(tmp_path: Path) -> None:
    network = make_folder(tmp_path / "vit")
    (tmp_path / "vit" / "model.safetensors").unlink()
    torch.save(network.state_dict(), tmp_path / "vit" / "pytorch_model.bin")
    assert torch.equal(features(load_encoder(tmp_path / "vit").backbone, 160), pooled(network, 160))
    torch.save({"state_dict": Evil()}, tmp_path / "vit" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="it asks to run print"):
        load_encoder(tmp_path / "vit")


class Files(BaseHTTPRequestHandler):
    """A repository of the hub: files under /OWNER/NAME/resolve/REVISION/."""

    folder: Path

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = self.folder / self.path.rpartition("/")[2]
        there = self.path.startswith("/me/vit/resolve/") and path.is_file()
        data = path.read_bytes() if there else b"{}"
        self.send_response(200 if there else 404)
        if not there:
            self.send_header("X-Error-Code", "EntryNotFound" if self.path.startswith("/me/vit/") else "RepoNotFound")
        self.send_header("ETag", f'"{path.name}-{len(data)}"')
        self.send_header("X-Repo-Commit", "a" * 40)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that the hub serves as me/vit."""
    from huggingface_hub import constants

    handler = type("Served", (Files,), {"folder": tmp_path / "served"})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    try:
        yield tmp_path / "served"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_the_hub_is_asked_by_name(hub: Path) -> None:
    network = make_folder(hub)
    loaded = load_encoder("hf-hub:me/vit")
    assert (loaded.name, loaded.source) == ("timm:test_vit", "hf-hub:me/vit")
    assert torch.equal(features(loaded.backbone, 160), pooled(network, 160))
    with pytest.raises(CheckpointError, match="hf-hub:me/none cannot be fetched"):
        load_encoder("hf-hub:me/none")


def test_torchvision_weights_come_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    kept = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    kept.parent.mkdir(parents=True)
    torch.manual_seed(0)
    network = models.resnet18()
    torch.save(network.state_dict(), kept)
    loaded = load_encoder("torchvision:resnet18")
    assert (loaded.name, loaded.image_size, loaded.source) == ("resnet18", 224, "torchvision:resnet18.IMAGENET1K_V1")
    network.fc = nn.Identity()
    assert torch.equal(features(loaded.backbone), features(network))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("torchvision:resnet18.V9", "torchvision has no weights 'resnet18.V9'; it has IMAGENET1K_V1"),
        ("torchvision:nothing", "torchvision has no weights 'nothing'; it has no such model"),
        ("timm:nothing", "timm has no pre-trained weights 'nothing'"),
        ("local-dir:nowhere", "nowhere does not hold config.json"),
    ],
)
def test_names_that_mean_nothing_say_what_there_is(name: str, said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        load_encoder(name)


def test_many_names_are_summed_up_by_what_they_begin_with() -> None:
    names = [*(f"module.encoder_k.{number}" for number in range(5)), "module.queue", "fc.weight", "fc.bias"]
    assert summary(names) == "fc.bias, fc.weight, module.encoder_k (5 tensors), module.queue"


def test_a_path_that_looks_like_a_name_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_folder(tmp_path / "vit")
    shutil.move(tmp_path / "vit", tmp_path / "timm:mine")
    assert load_encoder("timm:mine").name == "timm:test_vit"
