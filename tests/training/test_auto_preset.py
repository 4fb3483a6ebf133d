"""`--preset auto`: what is chosen for how many images on which machine, and that it is chosen once."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from leoclr.cli.commands.app import main
from leoclr.cli.config.fields import get, keys_of
from leoclr.cli.config.preset_files import Chosen
from leoclr.cli.config.resolve import resolve
from leoclr.cli.config.settings import Settings
from leoclr.cli.preflight import memory
from leoclr.cli.preflight.auto_preset import Images, Machine, choose
from leoclr.cli.preflight.checks import facts_of, problems
from leoclr.cli.training import auto_settings

MakeShards = Callable[..., Path]
GIB = 1 << 30
CPU, GPU = Machine("cpu", False, 4), Machine("cuda", True, 32)


def settings_of(chosen: Chosen, **given: str) -> Settings:
    return resolve("auto", None, {}, given, chosen=chosen).settings


def images_in(free: float, settings: Settings) -> int:
    """How many images fit into so many GiB: a step of ResNet-50 at 224 px takes 0.1 GiB an image, others in proportion
    to the area, to the cost of the network and to the bytes of a number; 1 GiB goes to all else."""
    area = (settings.data.image_size / 224) ** 2 * (16 if settings.encoder.stem == "cifar" else 1)
    cost = area * (1.0 if settings.encoder.backbone == "resnet50" else 0.25)
    cost *= 1.0 if settings.train.precision == "float32" else 0.5
    return max(0, int((free - 1) / (0.1 * cost)))


def chosen(images: int, side: int, machine: Machine, free: float, backend: str = "moco", **given: Any) -> Chosen:
    said = {name.replace("__", "."): value for name, value in given.items()} | {"backend": backend}
    flags = {key: str(value) for key, value in said.items()}

    def recipe(preset: str) -> Mapping[str, Any]:
        settings = resolve(preset, None, {}, {"backend": backend}).settings
        return {key: get(settings, key) for key in keys_of(settings)}

    return choose(
        Images(images, side), machine, said, recipe, lambda found: images_in(free, settings_of(found, **flags))
    )


KEYS = ("data.image_size", "encoder.backbone", "encoder.stem", "data.batch_size", "moco.queue", "train.epochs")
CASES = [
    (600, 28, CPU, 16, (28, "resnet18", "cifar", 64, 256, 1000)),
    (600, 28, GPU, 22, (28, "resnet18", "cifar", 64, 256, 1000)),
    (600, 3000, CPU, 16, (96, "resnet18", "imagenet", 64, 256, 1000)),
    (600, 3000, GPU, 80, (224, "resnet18", "imagenet", 64, 256, 1000)),
    (50_000, 32, CPU, 8, (32, "resnet18", "cifar", 512, 4096, 200)),
    (50_000, 32, GPU, 22, (32, "resnet18", "cifar", 512, 4096, 200)),
    (100_000, 96, GPU, 22, (96, "resnet18", "imagenet", 512, 8192, 200)),
    (1_281_167, 400, GPU, 80, (224, "resnet50", "imagenet", 256, 65536, 200)),
    (1_281_167, 400, GPU, 7, (224, "resnet50", "imagenet", 64, 65536, 200)),
    (1_281_167, 400, CPU, 16, (96, "resnet18", "imagenet", 128, 65536, 7)),
    (5_000_000, 500, GPU, 80, (224, "resnet50", "imagenet", 256, 65536, 100)),
    (20, 500, CPU, 16, (96, "resnet18", "imagenet", 16, 16, 1000)),
    (3, 500, CPU, 16, (96, "resnet18", "imagenet", 2, 2, 1000)),
]


@pytest.mark.parametrize(("images", "side", "machine", "free", "expected"), CASES)
def test_what_is_chosen(images: int, side: int, machine: Machine, free: float, expected: tuple[Any, ...]) -> None:
    settings = settings_of(chosen(images, side, machine, free))
    assert tuple(get(settings, key) for key in KEYS) == expected
    assert settings.train.precision == ("float32" if machine is CPU else "bf16")


@pytest.mark.parametrize(("images", "side", "machine", "free", "_"), CASES)
@pytest.mark.parametrize("backend", ["moco", "simclr", "byol", "swav", "dino"])
def test_what_is_chosen_can_be_trained_in_the_memory_that_is_there(
    images: int, side: int, machine: Machine, free: float, _: Any, backend: str
) -> None:
    found = chosen(images, side, machine, free, backend)
    settings = settings_of(found, backend=backend)
    facts = facts_of(settings, images, 1)
    assert list(problems(settings, facts)) == [] and list(settings.method.warnings(facts)) == []
    assert settings.data.batch_size <= min(images, images_in(free, settings))
    assert settings.optimizer.warmup_epochs < settings.train.epochs
    assert all(reason for _, reason in found.values.values())
    usual = resolve(found.base, None, {}, {"backend": backend}).settings
    assert settings.optimizer.lr / settings.data.batch_size == pytest.approx(
        usual.optimizer.lr / usual.data.batch_size, rel=0.01
    )


def test_images_that_do_not_fit_get_smaller() -> None:
    settings = settings_of(chosen(100_000, 400, GPU, 1.5))
    assert (settings.data.image_size, settings.data.batch_size) == (160, 16)


def test_a_gpu_without_bf16_takes_fp16() -> None:
    old = chosen(600, 3000, Machine("cuda", False, 8), 8)
    assert settings_of(old).train.precision == "fp16"


def test_what_the_user_says_stays_and_the_rest_follows() -> None:
    found = chosen(50_000, 400, GPU, 80, data__batch_size=128, data__image_size=64, moco__queue=1000)
    assert not {"data.batch_size", "data.image_size", "moco.queue", "backend"} & found.values.keys()
    assert found.values["encoder.stem"][0] == "cifar" and found.base == "stl10"
    assert found.values["optimizer.lr"][0] == 0.06 * 128 / 512


def run(capsys: pytest.CaptureFixture[str], *words: object) -> Any:
    with pytest.raises(SystemExit) as ended:
        main([*map(str, words), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert ended.value.code in (0, None), found
    return found


@pytest.mark.parametrize("gib", [1.43, 64])
def test_a_run_keeps_its_choice(
    make_shards: MakeShards,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    gib: float,
) -> None:
    for module in (memory, auto_settings):
        monkeypatch.setattr(module, "free_bytes", lambda device: int(gib * GIB))
    auto = ["--preset", "auto", "--data", make_shards((400,)), "--device", "cpu", "--workers", "0"]
    shown = run(capsys, "show-config", *auto)
    batch, origin = shown["settings"]["data"]["batch_size"], shown["origins"]["data.batch_size"]
    assert (shown["settings"]["data"]["image_size"], shown["origins"]["data.image_size"]) == (
        16,
        "auto: images of 16 px",
    )
    assert shown["origins"]["run.device"] == "flag --device" and shown["warnings"] == []
    if gib > 10:
        assert (batch, origin) == (32, "auto: 400 images: 12 steps an epoch")
    else:
        assert batch == 16 and origin.endswith("images fit into the free memory of 1.4 GiB")
        assert run(capsys, "train", *auto, "--dry-run")["warnings"] == []
        return

    small = ["--set", "encoder.width=16", "--set", "run.trackers="]
    made = run(capsys, "train", *auto, *small, "--epochs", "1", "--output", tmp_path / "run")
    assert made["steps"] == 12
    monkeypatch.setattr(auto_settings, "choose", None)  # nothing is chosen anew
    assert run(capsys, "train", "--resume", tmp_path / "run", "--preset", "auto")["steps"] == 12
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["preset"] == "auto" and record["settings"]["data"]["batch_size"] == batch


def test_without_data_or_for_several_processes_nothing_is_chosen(
    make_shards: MakeShards, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, expected in (
        (["show-config"], "follow from the data; name a folder of images, or shards"),
        (
            ["train", "--data", str(make_shards((8,))), "--num-processes", "2"],
            "--toml > run.toml` writes its choice down",
        ),
    ):
        with pytest.raises(SystemExit) as ended:
            main([*words, "--preset", "auto"])
        assert ended.value.code == 2 and expected in capsys.readouterr().err
