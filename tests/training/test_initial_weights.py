"""`encoder.weights`: a run that starts from the backbone of another."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from leoclr.backends.networks.backbones import build_backbone
from leoclr.cli.commands.app import main
from leoclr.cli.config.settings import Settings
from leoclr.cli.run.encoders import load_encoder
from leoclr.cli.training import trainer as training
from leoclr.datasets.errors import SettingsError

MakeShards = Callable[..., Path]
MakeSettings = Callable[..., Settings]


@pytest.fixture
def settings(tiny_settings: MakeSettings) -> MakeSettings:
    return partial(tiny_settings, optimizer__lr="0.05", train__epochs="2")


def train(chosen: Settings, run: Path, resume: bool = False) -> Path:
    return Path(training.train(chosen, run, None, ["test"], resume).checkpoint) / "model.safetensors"


@pytest.mark.parametrize("backend", ["moco", "simclr"])
def test_a_run_starts_from_the_backbone_of_another(
    backend: str, make_shards: MakeShards, tmp_path: Path, settings: MakeSettings
) -> None:
    data = make_shards((16,))
    train(settings(data), tmp_path / "first")
    before = load_encoder(tmp_path / "first")
    still = {"optimizer__lr": "1e-12", "train__seed": "5", "backend": backend}  # hardly a step
    options = {"encoder__weights": str(tmp_path / "first"), **still}
    found = load_file(train(settings(data, **options), tmp_path / "second"))
    fresh = load_file(train(settings(data, **still), tmp_path / "fresh"))
    for encoder in ("encoder", "key_encoder") if backend == "moco" else ("encoder",):
        for name, parameter in before.backbone.named_parameters():
            torch.testing.assert_close(found[f"{encoder}.backbone.{name}"], parameter, rtol=0, atol=1e-6)
        projector = f"{encoder}.projector.0.weight"
        torch.testing.assert_close(found[projector], fresh[projector], rtol=0, atol=1e-6)
    weights = json.loads((tmp_path / "second" / "run.json").read_text())["weights"]
    assert (weights["source"], weights["digest"]) == (str(tmp_path / "first"), before.digest)
    assert json.loads((tmp_path / "fresh" / "run.json").read_text())["weights"] is None


def test_another_normalisation_is_told(
    make_shards: MakeShards, tmp_path: Path, settings: MakeSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    data, halves = make_shards((16,)), "0.5,0.5,0.5"
    train(settings(data, augmentation__mean=halves), tmp_path / "first")
    options = {"encoder__weights": str(tmp_path / "first"), "train__epochs": "1"}
    told = "warning: these weights know images of another normalisation; take --set augmentation.mean=0.5,0.5,0.5"
    train(settings(data, **options), tmp_path / "other")
    assert told in capsys.readouterr().err
    train(settings(data, augmentation__mean=halves, **options), tmp_path / "same")
    assert told not in capsys.readouterr().err


def test_the_usual_normalisation_is_told_where_the_weights_state_it(
    make_shards: MakeShards, tmp_path: Path, settings: MakeSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_shards((16,))
    train(settings(data), tmp_path / "first")
    torch.save(build_backbone("resnet18", "cifar", 16).state_dict(), tmp_path / "weights.pth")
    told = "know images of another normalisation; take --set augmentation.mean=0.485,0.456,0.406 --set augmentation.std"
    for weights, warned in (("first", True), ("weights.pth", False)):
        options = {"encoder__weights": str(tmp_path / weights), "train__epochs": "1"}
        train(settings(data, augmentation__mean="0.5,0.5,0.5", **options), tmp_path / f"from-{weights}")
        assert (told in capsys.readouterr().err) == warned, weights


def test_a_resumed_run_does_not_need_them_again(
    make_shards: MakeShards, tmp_path: Path, settings: MakeSettings
) -> None:
    data = make_shards((16,))
    torch.manual_seed(3)
    torch.save(build_backbone("resnet18", "cifar", 16).state_dict(), tmp_path / "weights.pth")
    chosen = settings(data, encoder__weights=str(tmp_path / "weights.pth"))
    whole = train(chosen, tmp_path / "run").read_bytes()
    assert whole != train(settings(data), tmp_path / "other").read_bytes()
    shutil.rmtree(max((tmp_path / "run" / "checkpoints").iterdir()))
    (tmp_path / "weights.pth").unlink()
    assert train(chosen, tmp_path / "run", resume=True).read_bytes() == whole
    with pytest.raises(SystemExit, match="0"):
        main(["train", "--resume", str(tmp_path / "run")])


def test_other_architectures_and_missing_files_are_refused(
    make_shards: MakeShards, tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: MakeSettings
) -> None:
    data = make_shards((16,))
    torch.save(build_backbone("resnet18", "cifar", 32).state_dict(), tmp_path / "wide.pth")
    problem = "has cifar stem, width 32; the settings say cifar stem, width 16; take --set encoder.width=32$"
    with pytest.raises(SettingsError, match=problem):
        train(settings(data, encoder__weights=str(tmp_path / "wide.pth")), tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()
    with pytest.raises(SystemExit, match="2"):
        main(["train", "--data", str(data), "--set", f"encoder.weights={tmp_path / 'none.pth'}"])
    assert "none.pth: no such run, checkpoint or file" in capsys.readouterr().err


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(
    value: float, make_shards: MakeShards, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = build_backbone("resnet18", "cifar", 16).state_dict()
    tensors["layer1.0.conv1.weight"][0] = value
    torch.save(tensors, tmp_path / "weights.pth")
    options = [f"--set=encoder.{option}" for option in ("backbone=resnet18", "stem=cifar", "width=16")]
    options += ["--data", str(make_shards((16,))), "--init", str(tmp_path / "weights.pth"), "--batch-size", "16"]
    for dry in ([], ["--dry-run"]):
        with pytest.raises(SystemExit, match="2"):
            main(
                [
                    "train",
                    *options,
                    "--device=cpu",
                    "--set=data.image_size=32",
                    "--set=moco.queue=16",
                    "--output",
                    str(tmp_path / "run"),
                    *dry,
                ]
            )
        assert "weights.pth: layer1.0.conv1.weight: NaN or infinite" in capsys.readouterr().err


def test_the_flag_says_what_was_loaded_and_what_was_left_out(
    make_shards: MakeShards, tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: MakeSettings
) -> None:
    torch.manual_seed(3)
    own = build_backbone("resnet18", "cifar", 16).state_dict()
    tensors = {f"backbone.{name}": tensor for name, tensor in own.items()} | {"projector.0.weight": torch.zeros(2)}
    torch.save({"state_dict": tensors}, tmp_path / "solo.ckpt")
    run, data = tmp_path / "run", make_shards((16,))
    chosen = settings(data, encoder__weights=str(tmp_path / "solo.ckpt")).model_dump(mode="json")
    (tmp_path / "run.json").write_text(json.dumps(chosen | {"encoder": chosen["encoder"] | {"weights": ""}}))
    arguments = ["--config", str(tmp_path / "run.json"), "--init", str(tmp_path / "solo.ckpt"), "--output", str(run)]
    with pytest.raises(SystemExit, match="0"):
        main(["train", *arguments])
    said = capsys.readouterr().err
    assert f"starts from {tmp_path / 'solo.ckpt'}: {len(own)} tensors loaded" in said
    assert "left out projector.0.weight, which" in said
    content = json.loads((run / "run.json").read_text())
    assert content["settings"]["encoder"]["weights"] == str(tmp_path / "solo.ckpt")
    assert (content["weights"]["tensors"], content["weights"]["left_out"]) == (len(own), ["projector.0.weight"])
