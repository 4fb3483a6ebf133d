"""ViTs of timm under every backend: any size of images, drop path, frozen patch embedding, decay by group and layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file

from leoclr.backends.method import Method
from leoclr.backends.networks.backbones import build_backbone
from leoclr.backends.networks.depth import layers
from leoclr.backends.networks.feature_maps import map_channels, recorded_maps
from leoclr.cli.config.settings import Settings
from leoclr.cli.exporting.export import TOLERANCE, export_encoder
from leoclr.cli.exporting.formats import ExportFormat
from leoclr.cli.run.encoders import load_encoder, write_encoder
from leoclr.cli.training import build
from leoclr.cli.training import trainer as training
from leoclr.cli.training.optimizers import build_optimizer
from leoclr.datasets.errors import LeoclrError

MakeShards = Callable[..., Path]
MakeSettings = Callable[..., Settings]
VIT = {
    "encoder__backbone": "timm:test_vit",
    "encoder__stem": "imagenet",
    "encoder__width": "64",
    "data__image_size": "32",
    "optimizer__name": "adamw",
    "optimizer__lr": "1e-3",
    "optimizer__weight_decay": "0.1",
}


def train(settings: Settings, run: Path, resume: bool = False) -> dict[str, torch.Tensor]:
    result = training.train(settings, run, None, ["test"], resume)
    return load_file(Path(result.checkpoint) / "model.safetensors")


def method_of(settings: Settings) -> Method:
    return build.method(settings, torch.device("cpu"), 16)


@pytest.mark.parametrize("backend", ["moco", "simclr"])
def test_a_vit_trains_at_the_size_of_its_images_and_resumes_exactly(
    backend: str, make_shards: MakeShards, tiny_settings: MakeSettings, tmp_path: Path
) -> None:
    options = VIT | {"backend": backend, "encoder__drop_path": "0.2", "encoder__freeze_patches": "true"}
    settings = tiny_settings(make_shards((16,)), train__epochs="2", **options)
    before = {name: tensor.clone() for name, tensor in method_of(settings).state_dict().items()}
    after = train(settings, tmp_path / "run")
    patches, blocks = "encoder.backbone.patch_embed.proj.weight", "encoder.backbone.blocks.0.attn.qkv.weight"
    assert torch.equal(after[patches], before[patches]) and not torch.equal(after[blocks], before[blocks])
    assert after["encoder.backbone.pos_embed"].shape == (1, 5, 64)  # 2 x 2 patches of 16 px and the class token
    newest = max((tmp_path / "run" / "checkpoints").iterdir())
    for file in newest.iterdir():
        file.unlink()
    newest.rmdir()
    again = train(settings, tmp_path / "run", resume=True)
    assert all(torch.equal(again[name], tensor) for name, tensor in after.items())


def test_a_trained_vit_goes_out_and_comes_in_again_at_another_size(
    make_shards: MakeShards, tiny_settings: MakeSettings, tmp_path: Path
) -> None:
    data = make_shards((16,))
    train(tiny_settings(data, train__epochs="1", **VIT), tmp_path / "run")
    encoder = load_encoder(tmp_path / "run")
    for format in (ExportFormat.hf, ExportFormat.timm):
        assert export_encoder(encoder, format, tmp_path / f"out-{format}").largest_difference <= TOLERANCE
    assert load_encoder(tmp_path / "out-hf").digest == encoder.digest
    write_encoder(encoder, tmp_path / "encoder.safetensors")
    options = VIT | {"data__image_size": "64", "optimizer__lr": "1e-12"}
    chosen = tiny_settings(data, train__epochs="1", encoder__weights=str(tmp_path / "encoder.safetensors"), **options)
    found = train(chosen, tmp_path / "larger")
    assert found["encoder.backbone.pos_embed"].shape == (1, 17, 64)
    own = encoder.backbone.state_dict()
    torch.testing.assert_close(found["encoder.backbone.blocks.3.mlp.fc1.weight"], own["blocks.3.mlp.fc1.weight"])
    timm_layers: Any = timm.layers
    resized = timm_layers.resample_abs_pos_embed(own["pos_embed"], [4, 4])
    torch.testing.assert_close(found["encoder.backbone.pos_embed"], resized)


def test_tokens_and_vectors_do_not_decay_and_early_layers_move_less(
    make_shards: MakeShards, tiny_settings: MakeSettings
) -> None:
    settings = tiny_settings(make_shards((16,)), optimizer__layer_decay="0.5", **VIT)
    method = method_of(settings)
    optimizer = build_optimizer(method, settings.optimizer)
    decay = {name: group["weight_decay"] for group in optimizer.param_groups for name in group["names"]}
    scale = {name: group["scale"] for group in optimizer.param_groups for name in group["names"]}
    backbone = "encoder.backbone"
    for name in ("cls_token", "pos_embed", "patch_embed.proj.bias", "blocks.0.norm1.weight"):
        assert decay[f"{backbone}.{name}"] == 0, name
    assert decay[f"{backbone}.blocks.0.attn.qkv.weight"] == 0.1
    depth = len(method.get_submodule(f"{backbone}.blocks"))  # type: ignore[arg-type]
    assert scale[f"{backbone}.norm.weight"] == 1
    assert scale[f"{backbone}.blocks.{depth - 1}.attn.qkv.weight"] == 0.5
    assert scale[f"{backbone}.blocks.0.attn.qkv.weight"] == 0.5**depth
    assert scale[f"{backbone}.patch_embed.proj.weight"] == 0.5 ** (depth + 1)
    assert all(value == 1 for name, value in scale.items() if not name.startswith(backbone))
    trained = {name for name, parameter in method.named_parameters() if parameter.requires_grad}
    assert trained == set(scale)


def test_layers_are_counted_from_the_images() -> None:
    found = layers(build_backbone("resnet18").state_dict())
    assert (found["conv1.weight"], found["bn1.bias"]) == (0, 0)
    assert [found[f"layer{number}.0.conv1.weight"] for number in (1, 2, 3, 4)] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"encoder__freeze_patches": "true"}, "resnet18 has no patch embedding"),
        ({"encoder__drop_path": "0.1"}, "drop_path applies to timm's models; resnet18 is torchvision's"),
        (VIT | {"data__image_size": "40"}, "should be divisible by patch size"),
        (
            VIT | {"backend": "dino"},
            "divisible by patch size.*the size of s[1-8] in multicrop views, 0.429 of data.image",
        ),
    ],
)
def test_what_a_network_does_not_have_is_refused(
    options: dict[str, str], said: str, make_shards: MakeShards, tiny_settings: MakeSettings
) -> None:
    with pytest.raises(LeoclrError, match=said):
        method_of(tiny_settings(make_shards((16,)), **options))


def test_the_maps_of_a_vit_are_its_patches_in_their_places() -> None:
    """Behind the last block of a quarter of them; the class token is left out."""
    backbone = build_backbone("timm:test_vit", image_size=48, any_size=True).eval()
    images = torch.rand(2, 3, 48, 48)
    assert map_channels(backbone, (2, 4), 48) == [64, 64]
    with recorded_maps(backbone, (2, 4)) as passes, torch.no_grad():
        backbone(images)
        assert isinstance(backbone, timm.models.vision_transformer.VisionTransformer)
        _, theirs = backbone.forward_intermediates(images, indices=[2, 5], norm=False)
    assert len(passes[0]) == 2
    for ours, each in zip(passes[0], theirs, strict=True):
        torch.testing.assert_close(ours, each)


@pytest.mark.parametrize("backend", ["scfs", "obow"])
def test_methods_of_feature_maps_train_a_vit(
    backend: str, make_shards: MakeShards, tiny_settings: MakeSettings, tmp_path: Path
) -> None:
    small = {"obow__words": "32"} if backend == "obow" else {"scfs__stage_dim": "16", "scfs__outputs": "32"}
    own = {"backend": backend, "views": "leoclr", "train__epochs": "1"}
    settings = tiny_settings(make_shards((16,)), **(VIT | small | own))
    before = {name: tensor.clone() for name, tensor in method_of(settings).state_dict().items()}
    after = train(settings, tmp_path / "run")
    moved = "encoder.backbone.blocks.0.attn.qkv.weight"
    assert not torch.equal(after[moved], before[moved])
