"""`leoclr export`: files that other programs open, with the same features, or no file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, patch

import numpy as np
import onnxruntime
import pytest
import torch
import torchvision
import typer
from PIL import Image
from safetensors import safe_open
from torch import Tensor, nn
from typer.testing import CliRunner

from leoclr.backends.networks.backbones import build_backbone
from leoclr.cli.commands.app import main
from leoclr.cli.commands.base.parsing import LeoclrCommand
from leoclr.cli.commands.export import default_path, export
from leoclr.cli.config.settings import Settings
from leoclr.cli.exporting.export import TOLERANCE, export_encoder
from leoclr.cli.exporting.formats import ExportFormat
from leoclr.cli.exporting.onnx_preprocessing import preprocessing_graph
from leoclr.cli.exporting.state_dicts import Safetensors
from leoclr.cli.exporting.target import Network
from leoclr.cli.run.checkpoint import save_checkpoint
from leoclr.cli.run.encoders import LoadedEncoder, load_encoder
from leoclr.cli.run.folder import RunFolder
from leoclr.datasets.errors import CheckpointError, SettingsError
from leoclr.datasets.images.normalise import normalise
from leoclr.evals.features.preprocessing import standard_rule, standard_view

app = typer.Typer()
app.command(cls=LeoclrCommand)(export)


def trained_weights(name: str, stem: str = "imagenet", width: int = 64) -> dict[str, Tensor]:
    torch.manual_seed(0)
    backbone = build_backbone(name, stem, width)
    backbone(torch.randn(8, 3, 32, 32))
    return backbone.state_dict()


def load_weights(folder: Path, tensors: dict[str, Tensor], name: str | None = None) -> LoadedEncoder:
    path = folder / "weights.pth"
    torch.save(tensors, path)
    return load_encoder(path, name)


@pytest.fixture(scope="module")
def cifar_encoder(tmp_path_factory: pytest.TempPathFactory) -> LoadedEncoder:
    return load_weights(tmp_path_factory.mktemp("cifar"), trained_weights("resnet18", "cifar"))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of a small ResNet."""
    return make_run(tmp_path)


def make_run(folder: Path, image_size: int = 32) -> Path:
    encoder = {"backbone": "resnet18", "stem": "cifar", "width": 8}
    settings = Settings.model_validate({"data": {"image_size": image_size}, "encoder": encoder}).model_dump(mode="json")
    run = RunFolder(folder / "runs" / "first")
    run.write({"settings": settings, "started": "2026-01-02T10:00:00+00:00"})
    model = {f"encoder.backbone.{key}": value for key, value in trained_weights("resnet18", "cifar", 8).items()}
    save_checkpoint(run.checkpoints, 7, {"model": model}, {"settings": settings})
    return run.path


PASTED = """
import json, sys
from pathlib import Path
for format, lines in json.loads(Path("usage.json").read_text()).items():
    pasted = {}
    exec(lines, pasted)
    import numpy, torch
    images = numpy.random.default_rng(0).standard_normal((5, 3, 32, 32), dtype=numpy.float32)
    if format == "onnx":
        features = pasted["session"].run(None, {"images": images})[0]
    else:
        model = pasted["model"]
        model.fc = torch.nn.Identity()
        with torch.no_grad():
            features = model.eval()(torch.from_numpy(images)).numpy()
    numpy.save(f"{format}.npy", features)
    assert format == "safetensors" or not any(name.startswith("leoclr") for name in sys.modules)
"""


@pytest.mark.slow
def test_the_printed_lines_run_as_pasted_in_another_folder_and_give_the_same_features(
    tmp_path: Path, cifar_encoder: LoadedEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # Detectron2 is not on PyPI; tests/results/test_hub_folder.py holds hf to more than this.
    formats = [format for format in ExportFormat if format not in (ExportFormat.detectron2, ExportFormat.hf)]
    usage = {}
    for format in sorted(formats, key=lambda format: format == ExportFormat.safetensors):  # it imports leoclr
        report = export_encoder(cifar_encoder, format, Path(f"it's {format}{format.suffix}"))
        assert report.largest_difference <= TOLERANCE
        usage[str(format)] = "\n".join(report.usage)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "usage.json").write_text(json.dumps(usage))
    done = subprocess.run([sys.executable, "-c", PASTED], cwd="elsewhere", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    images = np.random.default_rng(0).standard_normal((5, 3, 32, 32), dtype=np.float32)
    with torch.no_grad():
        expected = cifar_encoder.backbone(torch.from_numpy(images)).numpy()
    assert expected.std() > 0.01
    for format in formats:
        np.testing.assert_allclose(np.load(tmp_path / "elsewhere" / f"{format}.npy"), expected, rtol=0, atol=TOLERANCE)


def test_the_lines_stand_in_the_output_as_they_are_pasted(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["export", str(run)])
    facts, _, lines = capsys.readouterr().out.partition("\n\n")
    assert not ended.value.code and facts.startswith("wrote ")
    pasted: dict[str, Any] = {}
    exec(lines, pasted)
    assert pasted["model"].feature_dim == 64


@pytest.mark.parametrize("format", [ExportFormat.torchvision, ExportFormat.timm])
def test_resnet50_loads_into_the_librarys_own_model(tmp_path: Path, format: ExportFormat) -> None:
    encoder = load_weights(tmp_path, trained_weights("resnet50"))
    report = export_encoder(encoder, format, default_path(encoder.name, tmp_path, format))
    assert report.path == tmp_path / "export" / f"resnet50{format.suffix}"
    assert report.largest_difference <= TOLERANCE
    assert load_encoder(report.path).digest == encoder.digest
    tensors = torch.load(report.path, weights_only=True)
    missing, unexpected = torchvision.models.resnet50().load_state_dict(tensors, strict=False)
    assert (missing, unexpected) == (["fc.weight", "fc.bias"], [])


@pytest.mark.parametrize(
    ("name", "format"),
    [("mobilenet_v3_small", ExportFormat.torchvision), ("timm:resnet10t", ExportFormat.timm)],
)
def test_other_architectures_go_to_their_own_library_only(tmp_path: Path, name: str, format: ExportFormat) -> None:
    encoder = load_weights(tmp_path, trained_weights(name), name)
    assert export_encoder(encoder, format, tmp_path / "out.pth").largest_difference <= TOLERANCE
    (other,) = {ExportFormat.torchvision, ExportFormat.timm} - {format}
    with pytest.raises(CheckpointError, match=f"export --format {format} instead"):
        export_encoder(encoder, other, tmp_path / "other.pth")
    assert not (tmp_path / "other.pth").exists()


@pytest.mark.parametrize("format", [ExportFormat.torchvision, ExportFormat.timm])
def test_a_width_that_the_library_does_not_have_is_refused(run: Path, tmp_path: Path, format: ExportFormat) -> None:
    with pytest.raises(CheckpointError, match=f"{format}'s resnet18 has no width 8; export --format safetensors"):
        export_encoder(load_encoder(run), format, tmp_path / "out.pth")
    assert not (tmp_path / "out.pth").exists()


def test_a_file_with_other_features_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = load_weights(tmp_path, trained_weights("resnet18", "cifar", 8))
    path, read = tmp_path / "out" / "encoder.safetensors", Safetensors.open

    def a_little_more(self: Safetensors, file: Path) -> Network:
        network = read(self, file)
        return lambda images: network(images) + 1e-3

    monkeypatch.setattr(Safetensors, "open", a_little_more)
    with pytest.raises(CheckpointError, match=f"{path} was not written: its features differ by"):
        export_encoder(encoder, ExportFormat.safetensors, path)
    assert list(path.parent.iterdir()) == []


def test_large_features_may_differ_in_their_last_digit(tmp_path: Path) -> None:
    tensors = trained_weights("resnet18", "cifar", 8)
    tensors["layer4.1.bn2.weight"] *= 1e4  # as after a few steps on a few images
    report = export_encoder(load_weights(tmp_path, tensors), ExportFormat.onnx, tmp_path / "encoder.onnx")
    assert report.path.exists()


def test_features_that_are_not_numbers_are_refused_and_the_old_file_stays(tmp_path: Path) -> None:
    tensors = trained_weights("resnet18", "cifar", 8)
    tensors["layer4.1.bn2.weight"][0] = float("nan")
    path = tmp_path / "encoder.safetensors"
    path.write_bytes(b"older")
    with pytest.raises(CheckpointError, match="differ by nan"):
        export_encoder(load_weights(tmp_path, tensors), ExportFormat.safetensors, path)
    assert path.read_bytes() == b"older"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["encoder.safetensors", "weights.pth"]


@pytest.mark.parametrize("format", [ExportFormat.torchvision, ExportFormat.safetensors])
def test_the_same_encoder_gives_the_same_bytes(
    tmp_path: Path, cifar_encoder: LoadedEncoder, format: ExportFormat
) -> None:
    first = export_encoder(cifar_encoder, format, tmp_path / "first").path
    second = export_encoder(cifar_encoder, format, tmp_path / "second").path
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(("format", "module"), [(ExportFormat.timm, "timm"), (ExportFormat.onnx, "onnxscript")])
def test_a_missing_extra_is_named(
    tmp_path: Path,
    cifar_encoder: LoadedEncoder,
    format: ExportFormat,
    module: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SettingsError, match=rf"needs {module}: pip install 'leoclr-cli\[{format}\]'"):
        export_encoder(cifar_encoder, format, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path, cifar_encoder: LoadedEncoder) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "out.pth"
    with pytest.raises(CheckpointError, match=f"cannot write {path}"):
        export_encoder(cifar_encoder, ExportFormat.torchvision, path)


def test_detectron2_gets_its_own_names(tmp_path: Path, cifar_encoder: LoadedEncoder) -> None:
    encoder = load_weights(tmp_path, trained_weights("resnet50"))
    path = default_path(encoder.name, tmp_path, ExportFormat.detectron2)
    report = export_encoder(encoder, ExportFormat.detectron2, path)
    assert path.name == "resnet50.detectron2.pth" and report.largest_difference <= TOLERANCE
    stored = torch.load(path, weights_only=True)
    assert stored["matching_heuristics"] is True and len(stored["model"]) == 53 * 5  # convolution and BatchNorm
    weights = encoder.backbone.state_dict()
    for theirs, ours in (
        ("stem.conv1.weight", "conv1.weight"),
        ("stem.conv1.norm.running_mean", "bn1.running_mean"),
        ("res2.0.shortcut.weight", "layer1.0.downsample.0.weight"),
        ("res2.0.shortcut.norm.bias", "layer1.0.downsample.1.bias"),
        ("res5.2.conv3.norm.weight", "layer4.2.bn3.weight"),
    ):
        assert torch.equal(stored["model"][theirs], weights[ours])
    config = MagicMock()
    with patch.dict(sys.modules, {"detectron2": MagicMock(), "detectron2.config": MagicMock(get_cfg=lambda: config)}):
        exec("\n".join(report.usage), {})
    assert config.MODEL.WEIGHTS == str(path)
    assert (config.MODEL.RESNETS.DEPTH, config.MODEL.RESNETS.STRIDE_IN_1X1) == (50, False)
    with pytest.raises(CheckpointError, match="imagenet stem"):
        export_encoder(cifar_encoder, ExportFormat.detectron2, tmp_path / "out.pth")


def test_the_command_exports_the_newest_run_into_itself(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parent.parent)
    result = CliRunner().invoke(app, [], catch_exceptions=False)
    path = run / "export" / "resnet18.safetensors"
    assert str(path) in result.stdout
    assert "largest difference  0.0e+00" in result.stdout
    assert load_encoder(path).digest == load_encoder(run).digest


def test_no_two_formats_share_a_file(tmp_path: Path) -> None:
    assert len({default_path("resnet50", tmp_path, format) for format in ExportFormat}) == len(ExportFormat)


def test_files_have_the_mode_that_the_umask_says(run: Path, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        path = export_encoder(load_encoder(run), ExportFormat.safetensors, tmp_path / "encoder.safetensors").path
        checkpoint = save_checkpoint(tmp_path / "checkpoints", 1, {"model": {"weight": torch.zeros(2)}}, {})
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in (path, *checkpoint.iterdir())} == {0o640}


def test_a_file_says_how_images_are_resized(run: Path, tmp_path: Path) -> None:
    path = export_encoder(load_encoder(run), ExportFormat.safetensors, tmp_path / "encoder.safetensors").path
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["leoclr"])
    assert header["resize"] == {"mode": "squash", "size": 32, "crop": 32, "filter": "bicubic", "antialias": True}
    assert load_encoder(path).resize == standard_rule(32)


@pytest.fixture(scope="module")
def graph_of_pixels(tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedEncoder, dict[str, Any]]:
    """An encoder of 96 px, and what `leoclr export --with-preprocessing --json` says of its graph."""
    folder = tmp_path_factory.mktemp("pixels")
    path = make_run(folder, image_size=96)
    arguments = [str(path), "--format", "onnx", "--with-preprocessing", "--json"]
    report: dict[str, Any] = json.loads(CliRunner().invoke(app, arguments, catch_exceptions=False).stdout)
    assert report["path"] == str(path / "export" / "resnet18.pixels.onnx")
    return load_encoder(path), report


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(("size", "resized"), [((110, 150), False), ((151, 110), False), ((320, 240), True)])
def test_a_graph_of_pixels_gives_the_features_and_the_feature_map_of_the_run(
    graph_of_pixels: tuple[LoadedEncoder, dict[str, Any]], size: tuple[int, int], resized: bool
) -> None:
    encoder, report = graph_of_pixels
    photos = [photo(*size, seed) for seed in range(3)]
    session = onnxruntime.InferenceSession(report["path"], providers=["CPUExecutionProvider"])
    found = session.run(["features", "feature_map"], {"pixels": np.stack([np.asarray(one) for one in photos])})
    view = standard_view(96)
    own = torch.from_numpy(np.stack([view(one, 0) for one in photos])).permute(0, 3, 1, 2)
    with torch.no_grad():
        maps = nn.Sequential(*[*encoder.backbone.children()][:-2])(normalise(own, encoder.mean, encoder.std))
    features = maps.mean(dim=(2, 3)).numpy()
    assert found[0].shape == (3, 64) and found[1].shape == maps.shape == (3, 64, 12, 12)
    tolerance = 0.02 * features.std() if resized else TOLERANCE  # a resized pixel may differ by one level of 255
    np.testing.assert_allclose(found[0], features, rtol=0, atol=tolerance)
    np.testing.assert_allclose(found[1], maps.numpy(), rtol=0, atol=5 * tolerance)
    assert report["largest_difference"] <= TOLERANCE * maps.max() and report["preprocessing_difference"] < 0.018


@pytest.mark.parametrize("image_size", [32, 96])
def test_a_graph_resizes_as_pillow_to_one_level_in_a_thousandth_of_the_pixels(image_size: int) -> None:
    rule, view = standard_rule(image_size), standard_view(image_size)
    model = preprocessing_graph(rule, (0.0, 0.0, 0.0), (1 / 255,) * 3, ir=8, opset=18)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for size in ((320, 241), (97, 61), (40, 23), (900, 50), (110, 113), (image_size, image_size)):
        picture = photo(*size)
        (found,) = session.run(None, {"pixels": np.asarray(picture)[None]})
        differences = np.abs(found[0].transpose(1, 2, 0) - view(picture, 0).astype(np.float32)).round(3)
        assert differences.max() <= 1 and np.mean(differences > 0) < 1e-3, size


def test_only_an_onnx_graph_takes_pixels(run: Path) -> None:
    with pytest.raises(SettingsError, match="--with-preprocessing is part of an ONNX graph: add --format onnx"):
        CliRunner().invoke(app, [str(run), "--format", "timm", "--with-preprocessing"], catch_exceptions=False)


@pytest.mark.parametrize(
    ("name", "format", "advice"),
    [
        ("a.pth", "safetensors", "torchvision or --format timm"),
        ("a.onnx", "timm", "onnx"),
        ("a.safetensors", "hf", "saf"),
    ],
)
def test_a_name_of_another_format_is_refused(run: Path, tmp_path: Path, name: str, format: str, advice: str) -> None:
    with pytest.raises(SettingsError, match=f"--format {format} writes another kind of file; add --format {advice}"):
        arguments = [str(run), "--format", format, "-o", str(tmp_path / name)]
        CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert not list(tmp_path.glob("a.*"))


def test_the_command_prints_nothing_but_json_when_asked(graph_of_pixels: tuple[LoadedEncoder, dict[str, Any]]) -> None:
    encoder, result = graph_of_pixels
    assert result["bytes"] == Path(result["path"]).stat().st_size
    assert (result["backbone"], result["width"], result["feature_dim"], result["image_size"]) == ("resnet18", 8, 64, 96)
    assert result["digest"] == encoder.digest
