"""`leoclr export --format hf`: timm and transformers load the folder without a network and give the run's features."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from leoclr.backends.networks.backbones import build_backbone
from leoclr.cli.commands.app import main
from leoclr.cli.config.settings import Settings
from leoclr.cli.exporting.export import TOLERANCE, export_encoder
from leoclr.cli.exporting.formats import ExportFormat
from leoclr.cli.exporting.model_card import without_paths
from leoclr.cli.exporting.target import ExportOptions
from leoclr.cli.exporting.timm_models import crop_share
from leoclr.cli.run.checkpoint import save_checkpoint
from leoclr.cli.run.encoders import LoadedEncoder, load_encoder
from leoclr.cli.run.folder import RunFolder
from leoclr.datasets.errors import CheckpointError
from leoclr.datasets.images.normalise import normalise
from leoclr.evals.features.preprocessing import resized_side, standard_rule, standard_view

MakeShards = Callable[..., Path]
SIDES = {"wide": (150, 110), "tall": (90, 130), "small": (40, 40)}

READERS = """
import json, socket, sys
import numpy, timm, torch, transformers
from PIL import Image

def refuse(*arguments):
    raise AssertionError("the network is off")

socket.socket.connect = socket.getaddrinfo = refuse
folder, images = sys.argv[1], [Image.open(path).convert("RGB") for path in sys.argv[3:]]
network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))
model = transformers.AutoModel.from_pretrained(folder)
processor = transformers.AutoImageProcessor.from_pretrained(folder)
pipe = transformers.pipeline("image-feature-extraction", model=folder, pool=True)
with torch.no_grad():
    pixels = torch.stack([transform(image) for image in images])
    found = {
        "pixels": pixels,
        "timm": network(pixels),
        "transformers": model(**processor(images, return_tensors="pt")).pooler_output,
        "pipeline": torch.cat([torch.tensor(features) for features in pipe(images)]),
    }
numpy.savez(sys.argv[2], **{name: tensor.numpy() for name, tensor in found.items()})
classifier = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=10)
print(type(model).__name__, tuple(classifier(pixels).shape))
assert not any(name.startswith("leoclr") for name in sys.modules)
"""


def photographs(folder: Path) -> list[Path]:
    generator, paths = np.random.default_rng(3), []
    for name, size in SIDES.items():
        coarse = Image.fromarray(generator.integers(0, 256, (9, 9, 3), dtype=np.uint8))
        paths.append(folder / f"{name}.jpg")
        coarse.resize(size, Image.Resampling.BICUBIC).save(paths[-1], quality=90)
    return paths


def make_run(folder: Path, data: Path | None = None, **encoder: Any) -> Path:
    """A run of ResNet-18 at 96 px whose BatchNorm has seen images."""
    told = {"backbone": "resnet18", **encoder}
    content = {"data": {"image_size": 96}, "encoder": told, "augmentation": {"mean": (0.4, 0.5, 0.6)}}
    settings = Settings.model_validate(content).model_dump(mode="json")
    run = RunFolder(folder)
    about: dict[str, Any] = {
        "train": [str(data)] if data else [],
        "val": [],
        "digest": "a" * 64,
        "samples": 20,
        "classes": ["x", "y"],
    }
    run.write({"settings": settings, "data": about, "versions": {"torch": "2"}, "command": ["leoclr", "/secret/x"]})
    run.metrics.write_text("".join(json.dumps({"epoch": n / 2, "loss": 7 - n}) + "\n" for n in range(5)))
    torch.manual_seed(0)
    backbone = build_backbone("resnet18", encoder.get("stem", "imagenet"), encoder.get("width", 64))
    backbone(torch.randn(4, 3, 64, 64))
    model = {f"encoder.backbone.{key}": value for key, value in backbone.state_dict().items()}
    save_checkpoint(run.checkpoints, 7, {"model": model}, {"settings": settings})
    return run.path


def features_of(encoder: LoadedEncoder, paths: list[Path]) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised pixels and features as `leoclr embed` makes them."""
    view = standard_view(encoder.image_size)
    pixels = np.stack([view(Image.open(path).convert("RGB"), 0) for path in paths])
    normalised = normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2), encoder.mean, encoder.std)
    with torch.no_grad():
        return normalised, encoder.backbone(normalised)


@pytest.mark.slow(ci=True)
def test_timm_and_transformers_give_the_runs_features_without_a_network(tmp_path: Path) -> None:
    encoder, paths = load_encoder(make_run(tmp_path / "run")), photographs(tmp_path)
    report = export_encoder(encoder, ExportFormat.hf, tmp_path / "folder")
    assert report.largest_difference <= TOLERANCE
    assert report.preprocessing_difference is not None and report.preprocessing_difference < 1e-6
    script = [sys.executable, "-c", READERS, str(tmp_path / "folder"), str(tmp_path / "found.npz"), *map(str, paths)]
    done = subprocess.run(script, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "TimmWrapperModel (3, 10)"
    found, (pixels, features) = np.load(tmp_path / "found.npz"), features_of(encoder, paths)
    np.testing.assert_allclose(found["pixels"], pixels.numpy(), rtol=0, atol=1e-6)
    assert features.std() > 0.01
    for reader in ("timm", "transformers", "pipeline"):
        np.testing.assert_allclose(found[reader], features.numpy(), rtol=0, atol=TOLERANCE, err_msg=reader)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported run whose data has gone."""
    parent = tmp_path_factory.mktemp("exported")
    run = make_run(parent / "run")
    encoder = load_encoder(run)
    record = {
        "kind": "knn",
        "results": {"weighted": {"top1": 0.5, "top1_half_width": 0.02}},
        "protocol": ["k-NN, exact", "test data: /home/me/secret/test, beside the training data"],
        "notes": [],
        "seed": 3,
        "checkpoint": {"digest": encoder.digest},
        "data": {
            "train": {"samples": 20, "digest": "b" * 64},
            "test": {"samples": 5, "digest": "c" * 64},
            "classes": 2,
        },
    }
    (run / "evals").mkdir()
    (run / "evals" / "knn-1.json").write_text(json.dumps(record))
    other = record | {"kind": "linear", "checkpoint": {"digest": "0"}}
    (run / "evals" / "linear-1.json").write_text(json.dumps(other))
    export_encoder(encoder, ExportFormat.hf, parent / "folder", ExportOptions(license="cc-by-4.0"))
    return parent / "folder"


def test_config_describes_network_and_preprocessing(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert (config["architecture"], config["num_classes"], config["num_features"]) == ("resnet18", 0, 512)
    assert config["global_pool"] == "avg"
    told = config["pretrained_cfg"]
    assert told["input_size"] == [3, 96, 96] and told["mean"] == [0.4, 0.5, 0.6] and told["first_conv"] == "conv1"
    assert (told["interpolation"], told["crop_mode"]) == ("bicubic", "center")
    assert sorted(file.name for file in folder.iterdir()) == [
        "README.md",
        "config.json",
        "curve.png",
        "model.safetensors",
    ]


def test_the_card_tells_training_scores_and_loading_but_no_path(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    for line in ("library_name: timm", "pipeline_tag: image-feature-extraction", "license: cc-by-4.0"):
        assert line in card.partition("\n---\n")[0]
    assert "| weighted | 50.00 ± 2.00 (draws) |" in card and "5 test images" in card and "seed 3" in card
    assert "1 scores of other checkpoints" in card and "### linear" not in card
    assert "torchvision.models.resnet18()" in card and "local-dir:" in card and "AutoModel" in card
    for words in ("95 % interval", "Apache-2.0", "no telemetry", "no account", "are yours"):
        assert words in card
    assert "2403.06813" in card and "(curve.png)" in card
    assert "secret" not in card and str(folder.parent) not in card
    assert Image.open(io.BytesIO((folder / "curve.png").read_bytes())).width > 400


def test_views_of_training_images_can_be_left_out(tmp_path: Path, make_shards: MakeShards) -> None:
    run = make_run(tmp_path / "run", make_shards((4,)))
    main_of("export", run, "--format", "hf", "-o", tmp_path / "with")
    assert "(views.png)" in (tmp_path / "with" / "README.md").read_text() and (tmp_path / "with" / "views.png").exists()
    main_of("export", run, "--format", "hf", "-o", tmp_path / "without", "--no-views")
    assert not (tmp_path / "without" / "views.png").exists()
    assert "views.png" not in (tmp_path / "without" / "README.md").read_text()
    main_of("export", run, "--format", "hf", "-o", tmp_path / "with", "--no-views")
    assert not (tmp_path / "with" / "views.png").exists()


def main_of(*arguments: object) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([str(argument) for argument in arguments])


def test_a_clone_of_a_repository_keeps_its_other_files(tmp_path: Path) -> None:
    encoder = load_encoder(make_run(tmp_path / "run"))
    (tmp_path / "clone" / ".git").mkdir(parents=True)
    (tmp_path / "clone" / "config.json").write_text("old")
    (tmp_path / "clone" / "views.png").write_text("of another program")
    export_encoder(encoder, ExportFormat.hf, tmp_path / "clone")
    assert (tmp_path / "clone" / ".git").is_dir()
    assert (tmp_path / "clone" / "views.png").read_text() == "of another program"
    assert json.loads((tmp_path / "clone" / "config.json").read_text())["architecture"] == "resnet18"
    assert not list((tmp_path / "clone").glob(".*.tmp"))


@pytest.mark.parametrize(
    ("encoder", "said"),
    [
        ({"stem": "cifar"}, "no resnet18 with the CIFAR stem from a config.json; export --format safetensors, torchv"),
        ({"width": 16}, "no resnet18 with width 16 from a config.json; export --format safetensors or onnx"),
    ],
)
def test_what_timm_cannot_build_is_refused(tmp_path: Path, encoder: dict[str, Any], said: str) -> None:
    loaded = load_encoder(make_run(tmp_path / "run", **encoder))
    with pytest.raises(CheckpointError, match=said):
        export_encoder(loaded, ExportFormat.hf, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_timm_resizes_to_the_same_side_at_every_size() -> None:
    for size in range(65, 1025):
        rule = standard_rule(size)
        assert math.floor(size / crop_share(rule)) == rule.size == resized_side(size)
    assert crop_share(standard_rule(224)) == 0.875 and crop_share(standard_rule(32)) == 1


@pytest.mark.parametrize(
    ("line", "published"),
    [
        ("test data: shards/x y, beside the training data", "test data: the split beside the training data"),
        ("from /home/me/x.tar, and s3://bucket/a", "from [path], and [path]"),
        ("runs/first/run.json was read", "[path] was read"),
        (
            "mean 0.485/0.456/0.406, votes exp(similarity / 0.07)",
            "mean 0.485/0.456/0.406, votes exp(similarity / 0.07)",
        ),
    ],
)
def test_protocols_lose_their_paths(line: str, published: str) -> None:
    assert without_paths(line) == published
