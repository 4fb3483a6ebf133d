"""Every preset resolves, explains itself, and holds the numbers of its source."""

from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

from leoclr.cli.commands.show_config import show_config
from leoclr.cli.config.fields import get
from leoclr.cli.config.resolve import describe_presets, preset_names, preset_path, resolve
from leoclr.cli.config.settings import Settings
from leoclr.datasets.errors import SettingsError


def settings_of(preset: str) -> Settings:
    return resolve(preset, None, {}, {}).settings


@pytest.mark.parametrize("preset", preset_names())
@pytest.mark.parametrize("backend", ["moco", "simclr"])
@pytest.mark.parametrize("views", ["leoclr", "pairwise", "pairwise-symmetric"])
def test_every_preset_resolves_for_every_backend_and_view_policy(preset: str, backend: str, views: str) -> None:
    resolved = resolve(preset, None, {}, {"backend": backend, "views": views})
    assert (resolved.settings.backend, resolved.settings.views) == (backend, views)
    assert resolved.warnings == ()


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_opens_with_a_summary(preset: str) -> None:
    assert preset_path(preset).read_text("utf-8").startswith("# ")
    assert 20 < len(describe_presets()[preset]) <= 110


def test_the_recipes_that_are_promised_exist() -> None:
    assert {"imagenet", "cifar10", "cifar10-paper", "stl10", "stl10-paper"} <= set(preset_names())


def test_an_unknown_preset_is_answered_with_the_nearest() -> None:
    with pytest.raises(SettingsError, match="--preset imagnet: no such preset; did you mean imagenet?"):
        preset_path("imagnet")
    with pytest.raises(SettingsError, match="--preset ../x: no such preset; there are cifar10, "):
        preset_path("../x")


def test_imagenet_is_the_paper_s_recipe_which_is_also_the_default() -> None:
    settings = settings_of("imagenet")
    assert settings == Settings()
    expected = {
        "encoder.backbone": "resnet50",
        "optimizer.name": "sgd",
        "optimizer.lr": 0.03,
        "optimizer.momentum": 0.9,
        "optimizer.weight_decay": 1e-4,
        "data.batch_size": 256,
        "moco.momentum": 0.999,
        "moco.reduction": "sum",
        "views": "leoclr",
    }
    assert {key: get(settings, key) for key in expected} == expected


def test_cifar10_is_the_moco_authors_recipe() -> None:
    settings = settings_of("cifar10")
    expected = {
        "data.batch_size": 512,
        "data.image_size": 32,
        "encoder.backbone": "resnet18",
        "encoder.stem": "cifar",
        "optimizer.lr": 0.06,
        "optimizer.weight_decay": 5e-4,
        "moco.queue": 4096,
        "moco.momentum": 0.99,
        "moco.temperature": 0.1,
        "moco.bn_splits": 8,
        "augmentation.blur": 0.0,
    }
    assert {key: get(settings, key) for key in expected} == expected
    assert get(resolve("cifar10", None, {}, {"backend": "simclr"}).settings, "simclr.temperature") == 0.5


@pytest.mark.parametrize(("preset", "side"), [("cifar10-paper", 32), ("stl10-paper", 96)])
def test_the_paper_s_hyper_parameters_are_imagenet_s_on_every_data_set(preset: str, side: int) -> None:
    settings, imagenet = settings_of(preset), settings_of("imagenet")
    assert settings.method == imagenet.method
    assert settings.optimizer == imagenet.optimizer
    assert (settings.encoder.backbone, settings.data.image_size, settings.train.epochs) == ("resnet18", side, 800)


def test_show_config_lists_the_presets() -> None:
    app = typer.Typer()
    app.command()(show_config)
    listed = CliRunner().invoke(app, ["--presets"]).stdout
    assert [line.split()[0] for line in listed.splitlines()] == list(preset_names())
    assert json.loads(CliRunner().invoke(app, ["--presets", "--json"]).stdout) == describe_presets()
