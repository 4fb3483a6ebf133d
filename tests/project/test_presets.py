"""Every preset resolves, explains itself, and holds the numbers of its source."""

from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

from leoclr.cli.commands.show_config import show_config
from leoclr.cli.config.fields import get, keys_of, replaced
from leoclr.cli.config.plugins import METHODS, plugins
from leoclr.cli.config.preset_files import PRESETS, describe_presets, preset_names, preset_path, recipe_path
from leoclr.cli.config.resolve import resolve
from leoclr.cli.config.settings import Settings
from leoclr.datasets.errors import SettingsError


def settings_of(preset: str) -> Settings:
    return resolve(preset, None, {}, {}).settings


@pytest.mark.parametrize("preset", preset_names())
@pytest.mark.parametrize("backend", list(plugins(METHODS)))
@pytest.mark.parametrize("views", ["leoclr", "pairwise", "multicrop"])
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
    with pytest.raises(SettingsError, match="--preset ../x: no such preset; there are auto, cifar10, "):
        preset_path("../x")


def test_imagenet_is_the_paper_s_recipe_which_is_also_the_default() -> None:
    settings = settings_of("imagenet")
    assert settings.optimizer.warmup_epochs == 1  # which the paper has not
    assert replaced(settings, {"optimizer.warmup_epochs": 0.0}) == Settings()
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


RECIPES = sorted((path.parent.name, path.stem) for path in PRESETS.glob("*/*.toml"))


@pytest.mark.parametrize(("preset", "backend"), RECIPES)
def test_a_method_s_own_recipe_lies_over_its_preset(preset: str, backend: str) -> None:
    resolved = resolve(preset, None, {}, {"backend": backend, "train.epochs": "2000"})
    origin = f"preset {preset} ({backend})"
    assert resolved.origins["optimizer.lr"] == resolved.origins["views"] == origin
    assert resolved.origins["encoder.backbone"] == f"preset {preset}"
    assert resolved.warnings == () and "publish" in resolved.recipe
    own = resolve(preset, None, {}, {"backend": backend, "views": "leoclr"})
    assert own.settings.views == "leoclr" and own.origins["views"] == "flag --set"


@pytest.mark.parametrize(("preset", "backend"), RECIPES)
def test_every_value_of_a_recipe_has_its_source(preset: str, backend: str) -> None:
    path = recipe_path(preset, backend)
    assert path is not None
    for line in path.read_text("utf-8").splitlines():
        if " = " in line.partition("#")[0]:
            assert line.partition("# ")[2], line


def test_every_method_has_a_recipe_of_its_own() -> None:
    methods = set(plugins(METHODS)) - {"moco", "simclr"}  # whose values are the presets' own
    assert {(preset, name) for preset in ("cifar10", "stl10", "imagenet") for name in methods} <= set(RECIPES)
    expected = {"byol": ("lars", 1.0, "byol"), "simsiam": ("sgd", 0.5, "pairwise-symmetric")}
    for backend, values in expected.items():
        settings = resolve("cifar10", None, {}, {"backend": backend}).settings
        assert (settings.optimizer.name, settings.optimizer.lr, settings.views) == values
    assert "92.58" in resolve("cifar10", None, {}, {"backend": "byol"}).recipe
    assert resolve("cifar10", None, {}, {}).recipe == ""


@pytest.mark.parametrize("preset", ["cifar10", "cifar10-paper", "stl10", "stl10-paper", "imagenet"])
def test_a_preset_s_warm_up_takes_at_most_half_of_a_short_run(preset: str) -> None:
    long, short = resolve(preset, None, {}, {}), resolve(preset, None, {}, {"train.epochs": "1"})
    assert (long.settings.optimizer.warmup_epochs, long.warnings) == (1, ())
    assert short.settings.optimizer.warmup_epochs == 0.5
    assert short.warnings == (f"optimizer.warmup_epochs (preset {preset}) is 0.5 here: half of train.epochs",)


def test_show_config_prints_the_published_figure() -> None:
    app = typer.Typer()
    app.command()(show_config)
    printed = CliRunner().invoke(app, ["--preset", "cifar10", "--backend", "vicreg"]).stdout
    assert printed.startswith("recipe: VICReg on CIFAR-10, ResNet-18: published 92.07 % online linear (solo-learn,")
    assert keys_of(resolve("cifar10", None, {}, {"backend": "vicreg"}).settings)[-1] in printed
