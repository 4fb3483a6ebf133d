"""Where settings come from, which layer wins, and what each wrong value is answered with."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from leoclr.cli.commands.base.parsing import LeoclrCommand
from leoclr.cli.commands.show_config import show_config
from leoclr.cli.config.fields import FIELDS, from_text, get, keys_of, nested, split_list
from leoclr.cli.config.resolve import Resolved, differences, resolve
from leoclr.cli.config.setting_files import to_toml
from leoclr.cli.config.settings import Settings
from leoclr.datasets.errors import SettingsError


def layered(
    config: Path | None = None,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, str | Sequence[str]] | None = None,
    preset: str | None = None,
    base: Settings | None = None,
) -> Resolved:
    return resolve(preset, config, environment or {}, flags or {}, base=base, flag_names={"optimizer.lr": "--lr"})


def written(folder: Path, text: str, name: str = "run.toml") -> Path:
    path = folder / name
    path.write_text(text, "utf-8")
    return path


def refusal(**layers: Any) -> str:
    with pytest.raises(SettingsError) as refused:
        layered(**layers)
    return str(refused.value)


def run_show_config(*args: str, environment: Mapping[str, str] | None = None) -> Result:
    app = typer.Typer(rich_markup_mode=None)
    app.command("show-config", cls=LeoclrCommand)(show_config)
    return CliRunner().invoke(app, list(args), env=dict(environment or {}))


def shown(*args: str) -> dict[str, Any]:
    result = run_show_config("--json", *args)
    assert result.exception is None, result.exception
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


def complaint(*args: str) -> str:
    result = run_show_config(*args)
    assert isinstance(result.exception, SettingsError), result.output
    return str(result.exception)


def test_each_layer_wins_over_the_one_below_and_is_named_as_the_origin(tmp_path: Path) -> None:
    config = written(tmp_path, "[train]\nepochs = 3\nseed = 3\nprecision = 'bf16'")
    environment = {"LEOCLR_TRAIN__EPOCHS": "4", "LEOCLR_TRAIN__SEED": "4", "HOME": "/"}
    resolved = layered(config, environment, {"train.epochs": "5", "optimizer.lr": "0.5"}, preset="cifar10")
    expected = {
        "train.epochs": (5, "flag --set"),
        "optimizer.lr": (0.5, "flag --lr"),
        "train.seed": (4, "env LEOCLR_TRAIN__SEED"),
        "train.precision": ("bf16", str(config)),
        "data.batch_size": (512, "preset cifar10"),
        "train.accumulation": (1, "default"),
    }
    assert {key: (get(resolved.settings, key), resolved.origins[key]) for key in expected} == expected
    assert set(resolved.origins) == set(keys_of(resolved.settings))


def test_a_resumed_run_takes_the_place_of_the_defaults() -> None:
    base = layered(flags={"optimizer.lr": "0.7", "train.epochs": "9"}).settings
    resolved = layered(flags={"train.epochs": "10"}, base=base)
    assert (resolved.settings.optimizer.lr, resolved.origins["optimizer.lr"]) == (0.7, "run")
    assert (resolved.settings.train.epochs, resolved.origins["train.epochs"]) == (10, "flag --set")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("run.toml", 'backend = "simclr"\n[optimizer]\nlr = 1e-3\n[augmentation]\ncrop_scale = [0.5, 1]'),
        ("run.yaml", "backend: simclr\noptimizer: {lr: 1e-3}\naugmentation:\n  crop_scale: [0.5, 1]\n"),
        ("run.YML", "backend: simclr\noptimizer:\n  lr: 0.001\naugmentation: {crop_scale: [.5, 1.0]}\nmoco: {}\n"),
        ("run.json", '{"backend": "simclr", "optimizer": {"lr": 1e-3}, "augmentation": {"crop_scale": [0.5, 1]}}'),
    ],
)
def test_the_same_settings_in_every_file_format(tmp_path: Path, name: str, text: str) -> None:
    wanted = {"backend": "simclr", "optimizer": {"lr": 1e-3}, "augmentation": {"crop_scale": (0.5, 1.0)}}
    assert layered(written(tmp_path, text, name)).settings == Settings.model_validate(wanted)


@pytest.mark.parametrize("name", ["empty.toml", "empty.yaml"])
def test_an_empty_file_changes_nothing(tmp_path: Path, name: str) -> None:
    assert layered(written(tmp_path, "", name)).settings == Settings()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[optimizer]\nlrr = 1", "optimizer.lrr: unknown key; did you mean optimizer.lr?"),
        ("lr = 1", "lr: unknown key; did you mean optimizer.lr?"),
        ("[train]\nlr = 1", "train.lr: unknown key; did you mean optimizer.lr?"),
        ("[optimiser]\nlr = 1", "optimiser: unknown section; did you mean optimizer?"),
        ("[moco]\nzzz = 1", "moco.zzz: unknown key; moco has queue, momentum,"),
        ("'optimizer.lr' = 1", "optimizer.lr: a dotted name; write the key inside its section"),
        ("optimizer = 1", "optimizer: must be a section with keys, got 1"),
        ("[optimizer.lr]\nx = 1", "optimizer.lr: must be a valid number, got {'x': 1}"),
        ("[optimizer]\nlr = nan", "optimizer.lr: must be a finite number, got nan"),
        ("[optimizer]\nlr = inf", "optimizer.lr: must be a finite number, got inf"),
        ("[optimizer]\nlr = 0", "optimizer.lr: must be greater than 0, got 0"),
        ("[optimizer]\nlr = '0.1'", "optimizer.lr: must be a valid number, got '0.1'"),
        ("[train]\nepochs = '3'", "train.epochs: must be a valid integer, got '3'"),
        ("[train]\nepochs = 3.0", "train.epochs: must be a valid integer, got 3.0"),
        ("[train]\nepochs = true", "train.epochs: must be a valid integer, got True"),
        ("[train]\nepochs = 2020-01-01", "train.epochs: must be text, a number, true, false or a list of these"),
        ("[train]\nseed = 99999999999999999999", "train.seed: must be less than 9223372036854775808"),
        ("[train]\nchannels_last = 1", "train.channels_last: must be a valid boolean, got 1"),
        ("[train]\nprecision = 'bf61'", "must be 'float32', 'bf16' or 'fp16', got 'bf61'; did you mean 'bf16'?"),
        ("[data]\ntrain = 'a.tar'", "data.train: must be a list, got 'a.tar'"),
        ("[augmentation]\ncrop_scale = [0.5]", "augmentation.crop_scale: item 2 is missing"),
        ("[augmentation]\ncrop_scale = [0.5, 2]", "augmentation.crop_scale: item 2 must be less than or equal to 1"),
        ("[augmentation]\ncrop_scale = [1, 0.5]", "augmentation.crop_scale: must be two numbers, low then high"),
        ("[augmentation]\nstd = [58.4, 57.1, 57.4]", "augmentation.std: item 1 must be less than or equal to 1"),
        ("[augmentation]\ncrop_ratio = [1, 2, 3]", "augmentation.crop_ratio: must have at most 2 items, not 3"),
        ("[run]\ndevice = 'gpu'", "run.device: must be auto, cpu, cuda or cuda:N, got 'gpu'"),
        ("[run]\ndevice = 'cuda:'", "run.device: must be auto, cpu, cuda or cuda:N, got 'cuda:'"),
    ],
)
def test_a_wrong_entry_of_a_file_is_named_by_file_and_key(tmp_path: Path, text: str, problem: str) -> None:
    config = written(tmp_path, text)
    message = refusal(config=config)
    assert message.startswith(f"{config}: ")
    assert problem in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("run.toml", "[train]\nseed = 1\nseed = 2\n", "Cannot overwrite a value (at line 3, column 9)"),
        ("run.toml", "[train\n", "line 1"),
        ("run.yaml", "train:\n  seed: 1\n  seed: 2\n", "the key 'seed' stands twice (line 3, column 3)"),
        ("run.yaml", "train: {seed: 1}\ntrain: {seed: 2}\n", "the key 'train' stands twice (line 2, column 1)"),
        ("run.yaml", "train: {? [1] : 2}", "a key must be a name"),
        ("run.yaml", "train: &t {seed: 1}\nmoco: *t\n", "aliases (*name) are not read here (line 2"),
        ("run.yaml", "train: [", "line 1"),
        ("run.yaml", "- 1\n- 2\n", "must hold sections with keys"),
        ("run.yaml", "train: {epochs: !!python/object/apply:os.system ['true']}", "tags (!!name) are not read here"),
        ("run.yaml", "[" * 20_000, "nested too deeply"),
        ("run.json", '{"train": {"seed": 1, "seed": 2}}', "the key 'seed' stands twice"),
        ("run.json", "", "line 1 column 1"),
        ("run.json", '{"train": {"epochs": null}}', "train.epochs: must be a valid integer, got None"),
        ("run.ini", "", "a settings file ends in .toml, .yaml, .yml, .json"),
        ("run.toml", "#" * 2_000_000, "more than 1 MiB"),
        ("run.toml", f"[data]\nbatch_size = 0x{'f' * 5000}", "a number of thousands of digits"),
        ("run.yaml", 'train: {epochs: !!timestamp "x"}', "tags (!!name) are not read here"),
        ("run.yaml", "train: {epochs: !!bool maybe}", "tags (!!name) are not read here"),
        ("run.yaml", "augmentation: {blur_sigma: [0.1, 200]}", "less than or equal to 20"),
    ],
)
def test_a_malformed_file_is_refused_by_name(tmp_path: Path, name: str, text: str, problem: str) -> None:
    config = written(tmp_path, text, name)
    message = refusal(config=config)
    assert message.startswith(f"{config}: ")
    assert problem in message
    assert "\n" not in message


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    written(tmp_path, "", "settings.toml")
    missing = tmp_path / "setings.toml"
    assert refusal(config=missing) == f"{missing}: no such file; did you mean {tmp_path / 'settings.toml'}?"
    folder = tmp_path / "folder.toml"
    folder.mkdir()
    assert refusal(config=folder) == f"{folder}: cannot be read: Is a directory"
    latin = tmp_path / "latin.toml"
    latin.write_bytes(b"# \xe9")
    assert refusal(config=latin) == f"{latin}: not UTF-8 text (byte 2)"


def test_yaml_is_read_as_version_1_2(tmp_path: Path) -> None:
    config = written(tmp_path, "train: {seed: 010}\nrun: {workers: +1, checkpoint_minutes: 1E1}\n", "run.yaml")
    settings = layered(config).settings
    assert (settings.train.seed, settings.run.workers, settings.run.checkpoint_minutes) == (10, 1, 10.0)
    for text in ("train: {channels_last: no}", "train: {seed: 1:30}", "train: {epochs: 1_0}"):
        assert "must be a valid" in refusal(config=written(tmp_path, text, "run.yaml"))


@pytest.mark.parametrize(
    ("name", "guess"),
    [
        ("LEOCLR_OPTIMIZER__LRR", "LEOCLR_OPTIMIZER__LR"),
        ("LEOCLR_OPTIMIZER_LR", "LEOCLR_OPTIMIZER__LR"),
        ("LEOCLR_LR", "LEOCLR_OPTIMIZER__LR"),
        ("LEOCLR_optimizer__lr", "LEOCLR_OPTIMIZER__LR"),
        ("LEOCLR_TRAIN_EPOCHS", "LEOCLR_TRAIN__EPOCHS"),
        ("LEOCLR_BACKENDS", "LEOCLR_BACKEND"),
    ],
)
def test_an_unknown_variable_is_answered_with_the_nearest(name: str, guess: str) -> None:
    assert refusal(environment={name: "1"}) == f"{name}: no such setting; did you mean {guess}?"


def test_text_is_read_by_the_type_of_the_setting() -> None:
    environment = {
        "LEOCLR_TRAIN__CHANNELS_LAST": "off",
        "LEOCLR_AUGMENTATION__CROP_SCALE": "0.3, 0.9",
        "LEOCLR_DATA__TRAIN": "{a,b}-{00..09}.tar,c.tar",
        "LEOCLR_RUN__TRACKERS": "",
    }
    flags = {
        "data.val": ["x,y.tar", "z.tar"],
        "simclr.stop_gradient": "YES",
        "optimizer.lr": "1e-3",
        "backend": "simclr",
    }
    settings = layered(environment=environment, flags=flags).settings
    assert settings.train.channels_last is False
    assert settings.augmentation.crop_scale == (0.3, 0.9)
    assert settings.data.train == ("{a,b}-{00..09}.tar", "c.tar")
    assert settings.data.val == ("x,y.tar", "z.tar")
    assert settings.run.trackers == ()
    assert get(settings, "simclr.stop_gradient") is True
    assert settings.optimizer.lr == 1e-3


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("augmentation.crop_scale", "[0.3, 0.9]", (0.3, 0.9)),
        ("augmentation.crop_scale", "0.3,0.9", (0.3, 0.9)),
        ("data.train", '["a.tar", "b{0,1}.tar"]', ("a.tar", "b{0,1}.tar")),
        ("data.train", "[ab].tar,c.tar", ("[ab].tar", "c.tar")),
        ("run.trackers", "[]", ()),
    ],
)
def test_lists_are_taken_as_they_are_printed(key: str, text: str, value: tuple[object, ...]) -> None:
    assert from_text(key, text) == value


@pytest.mark.parametrize(
    ("text", "items"),
    [("", ()), ("a", ("a",)), ("a,{b,c}d, e", ("a", "{b,c}d", "e")), ("a,", ("a", "")), ("}a,b", ("}a", "b"))],
)
def test_lists_are_split_outside_braces(text: str, items: tuple[str, ...]) -> None:
    assert split_list(text) == items


@pytest.mark.parametrize(
    ("key", "text", "problem"),
    [
        ("optimizer.lr", "nan", "--lr: must be a finite number, got 'nan'"),
        ("optimizer.lr", "fast", "--lr: must be a valid number, got 'fast'"),
        ("optimizer.lr", "1_0", "--lr: must be a number without underscores, got '1_0'"),
        ("train.epochs", "1_0", "--set train.epochs: must be a number without underscores, got '1_0'"),
        (
            "augmentation.crop_scale",
            "0.2,1_0e-1",
            "--set augmentation.crop_scale: must be a number without underscores, got '1_0e-1'",
        ),
        ("train.epochs", "3.5", "--set train.epochs: must be a valid integer, got '3.5'"),
        ("train.channels_last", "maybe", "--set train.channels_last: must be a valid boolean, got 'maybe'"),
        ("views", "leoclrr", "--set views: must be 'byol', 'clsa', 'leoclr', "),
        ("optimizer.lrr", "1", "--set optimizer.lrr: unknown key; did you mean optimizer.lr?"),
        (
            "train",
            "1",
            "--set train: unknown key; train has epochs, seed, precision, channels_last, compile, graph, accumulation",
        ),
        ("data.train", "a.tar,,b.tar", "--set data.train: item 2 must be printable text, and not empty"),
    ],
)
def test_a_wrong_flag_is_named(key: str, text: str, problem: str) -> None:
    assert refusal(flags={key: text}).startswith(problem)


@pytest.mark.parametrize("text", ["pipe:id", "a{b,PIPE:id}", "a.tar::b.tar", "x-${HOME}.tar", "a\nb.tar", "a\udcff"])
@pytest.mark.parametrize("key", ["data.train", "data.val", "encoder.backbone", "run.device"])
def test_commands_and_control_characters_are_refused_in_every_text(tmp_path: Path, key: str, text: str) -> None:
    variable = f"LEOCLR_{key.replace('.', '__').upper()}"
    assert refusal(flags={key: [text] if key.startswith("data.") else text}).startswith(f"--set {key}: ")
    assert refusal(environment={variable: text}).startswith(f"{variable}: ")
    content: str | list[str] = [text] if key.startswith("data.") else text
    config = written(tmp_path, json.dumps(nested({key: content})), "run.json")
    assert refusal(config=config).startswith(f"{config}: {key}: ")


def test_all_errors_of_all_layers_are_reported_also_where_a_higher_layer_overrides(tmp_path: Path) -> None:
    config = written(tmp_path, "[optimizer]\nlr = -1\n[train]\nepoch = 1")
    message = refusal(
        preset="cifar11", config=config, environment={"LEOCLR_X": "1"}, flags={"optimizer.lr": "1", "a.b": "2"}
    )
    assert message.splitlines() == [
        "5 settings are wrong:",
        "  --preset cifar11: no such preset; did you mean cifar10?",
        f"  {config}: optimizer.lr: must be greater than 0, got -1",
        f"  {config}: train.epoch: unknown key; did you mean train.epochs?",
        "  LEOCLR_X: no such setting; a variable is named like LEOCLR_OPTIMIZER__LR",
        "  --set a.b: unknown key; `leoclr show-config` lists them all",
    ]


def test_values_that_do_not_fit_together_are_named_with_their_origins(tmp_path: Path) -> None:
    config = written(tmp_path, "[optimizer]\nwarmup_epochs = 10\n")
    assert layered(config).settings.optimizer.warmup_epochs == 10
    assert refusal(config=config, flags={"train.epochs": "5"}) == (
        "optimizer.warmup_epochs must not be more than train.epochs "
        f"(optimizer.warmup_epochs: {config}, train.epochs: flag --set)"
    )
    environment = {"LEOCLR_TRAIN__ACCUMULATION": "3", "LEOCLR_TRAIN__PRECISION": "fp16", "LEOCLR_RUN__DEVICE": "cpu"}
    assert refusal(environment=environment).splitlines()[0] == "2 settings are wrong:"
    flags = {"augmentation.reduced_decoding": "true", "augmentation.executor": "pillow", "data.resident": "yes"}
    assert refusal(flags=flags).splitlines()[0] == "2 settings are wrong:"


def test_a_width_that_corrupts_memory_is_refused_but_for_runs_that_have_it() -> None:
    with pytest.raises(SettingsError, match=r"encoder.width \(flag --set\): must be at least 16, got 8"):
        resolve(None, None, {}, {"encoder.width": "8"})
    old = Settings.model_validate({"encoder": {"width": 8}})
    assert resolve(None, None, {}, {"train.epochs": "3"}, base=old).settings.encoder.width == 8


def test_a_value_of_the_other_backend_gives_a_warning_and_a_preset_or_an_equal_value_does_not() -> None:
    resolved = layered(flags={"backend": "simclr", "moco.queue": "16"}, preset="cifar10")
    assert resolved.warnings == ("moco.queue (flag --set) has no effect: the backend is simclr",)
    resolved = resolve(None, None, {}, {"encoder.projector_layers": "1", "encoder.projector_hidden": "64"})
    assert resolved.warnings == ("encoder.projector_hidden (flag --set) has no effect: encoder.projector_layers is 1",)
    assert layered(flags={"backend": "simclr", "moco.queue": "4096"}, preset="cifar10").warnings == ()
    assert layered(flags={"backend": "moco", "moco.queue": "16"}).warnings == ()


def test_differences_are_those_that_change_the_weights() -> None:
    before = layered().settings
    changed = {
        "optimizer.lr": "0.06",
        "run.workers": "3",
        "data.train": "moved.tar",
        "data.val": "v",
        "views": "pairwise",
    }
    assert differences(before, layered(flags=changed).settings) == [
        "views: leoclr -> pairwise",
        "optimizer.lr: 0.03 -> 0.06",
    ]
    assert differences(before, before) == []


def test_every_setting_says_what_it_means() -> None:
    assert [key for key, field in FIELDS.items() if not field.description] == []


def test_a_typo_is_answered_within_a_second_and_without_torch(tmp_path: Path) -> None:
    program = """
import os, sys, time
from pathlib import Path
from leoclr.cli.config.resolve import resolve
from leoclr.datasets.errors import SettingsError
try:
    resolve(None, Path(sys.argv[1]), {}, {})
except SettingsError as error:
    print(error)
heavy = {"torch", "torchvision", "accelerate", "webdataset", "sklearn", "numpy", "rich"} & set(sys.modules)
print(sorted(heavy), time.clock_gettime(time.CLOCK_PROCESS_CPUTIME_ID) < 1)
"""
    config = written(tmp_path, "[optimizer]\nlrr = 1")
    answer = subprocess.run(
        [sys.executable, "-c", program, str(config)],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        timeout=60,
    )
    assert answer.stdout.splitlines() == [
        f"{config}: optimizer.lrr: unknown key; did you mean optimizer.lr?",
        "[] True",
    ]


def test_show_config_prints_every_value_with_its_origin() -> None:
    result = run_show_config("--lr", "0.5", environment={"LEOCLR_TRAIN__SEED": "4"})
    rows = [line.split(maxsplit=1) for line in result.stdout.splitlines()]
    assert [row[0] for row in rows] == ["setting", *keys_of(Settings())]
    values = {key: " ".join(rest.split()) for key, rest in rows}
    assert values["optimizer.lr"] == "0.5 flag --lr"
    assert values["train.seed"] == "4 env LEOCLR_TRAIN__SEED"
    assert values["augmentation.crop_scale"] == "[0.2, 1.0] default"


def test_show_config_warns_on_stderr_and_keeps_stdout_for_the_result() -> None:
    result = run_show_config("--json", "--backend", "simclr", "--set", "moco.queue=5")
    assert result.stderr == "warning: moco.queue (flag --set) has no effect: the backend is simclr\n"
    answer = json.loads(result.stdout)
    assert "moco" not in answer["settings"] and answer["settings"]["simclr"]["temperature"] == 0.1
    assert answer["origins"]["simclr.temperature"] == "default"


def test_show_config_gives_a_file_that_config_accepts(tmp_path: Path) -> None:
    args = ("--preset", "stl10", "--data", 'a "quoted" \\ é.tar', "b.tar", "--set", "optimizer.weight_decay=1e-7")
    config = written(tmp_path, run_show_config("--toml", *args).stdout)
    assert shown("--config", str(config))["settings"] == shown(*args)["settings"]


@pytest.mark.parametrize("seed", range(20))
def test_settings_survive_being_written_and_read(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    values: dict[str, Any] = {}
    for key, value in {key: get(Settings(), key) for key in FIELDS}.items():
        if isinstance(value, bool):
            values[key] = chance.random() < 0.5
        elif isinstance(value, float) and key != "optimizer.warmup_epochs":
            values[key] = value * chance.random() ** 9 + 1e-12
        elif isinstance(value, int) and value > 0 and key not in ("train.accumulation", "data.image_size"):
            values[key] = chance.randrange(1, 2**59) * (16 if key == "encoder.width" else 1)
        elif key.startswith("data."):
            values[key] = value
    values["data.train"] = tuple("".join(chance.choices("aé\"'\\#={}[], ~😀", k=9)) + "x" for _ in range(3))
    settings = Settings.model_validate(nested(values))
    assert layered(written(tmp_path, to_toml(settings))).settings == settings


def test_data_that_the_shell_has_expanded_stays_with_its_flag() -> None:
    args = ("--data", "a.tar", "b.tar", "--val-data=v.tar", "w.tar", "--epochs", "3", "--data", "c.tar")
    data = shown(*args)["settings"]["data"]
    assert (data["train"], data["val"]) == (["a.tar", "b.tar", "c.tar"], ["v.tar", "w.tar"])


def test_a_stray_argument_is_refused() -> None:
    result = run_show_config("--epochs", "3", "b.tar")
    assert result.exit_code == 2
    assert "b.tar" in result.stderr


@pytest.mark.parametrize(
    ("flag", "hint"),
    [
        ("--epoch", "did you mean --epochs?"),
        ("--batch_size", "did you mean --batch-size?"),
        ("--bn-splits", "did you mean --set hcsc.bn_splits=VALUE or --set moco.bn_splits=VALUE?"),
        ("--optimizer.lr", "did you mean --set optimizer.lr=VALUE?"),
        ("--wieght-decay", "did you mean --set optimizer.weight_decay=VALUE?"),
    ],
)
def test_an_unknown_flag_is_answered_with_the_nearest(flag: str, hint: str) -> None:
    assert complaint("--data", "a.tar", flag, "3") == f"{flag}: no such flag; {hint}"
    assert complaint("--data", "a.tar", f"{flag}=3") == f"{flag}: no such flag; {hint}"


def test_wrong_uses_of_flags_are_refused() -> None:
    assert complaint("--set", "moco.queue") == "--set moco.queue: must be KEY=VALUE, such as --set moco.queue=VALUE"
    assert complaint("--lr", "1", "--set", "optimizer.lr=2") == "--set optimizer.lr: given before, by --lr"
    assert complaint("--set", "moco.queue=1", "moco.queue=2").startswith("--set moco.queue: given before")
    assert complaint("--json", "--toml") == "--json and --toml exclude each other"
    assert complaint("--lr", "-1") == "--lr: must be greater than 0, got '-1'"
