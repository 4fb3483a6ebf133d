"""The flags that stand for settings. `leoclr train` and `leoclr show-config` share them.

The values stay text here: the layers read them by the setting's type, like variables, so that every wrong value is
answered alike and all of them at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args

import typer

from leoclr.cli.config.fields import FIELDS
from leoclr.datasets.errors import SettingsError

FLAGS = {
    "backend": "--backend",
    "views": "--views",
    "data.train": "--data",
    "data.val": "--val-data",
    "data.batch_size": "--batch-size",
    "encoder.backbone": "--backbone",
    "optimizer.lr": "--lr",
    "train.epochs": "--epochs",
    "train.seed": "--seed",
    "train.precision": "--precision",
    "train.compile": "--compile",
    "run.device": "--device",
    "run.workers": "--workers",
}


def _flag(key: str, metavar: str = "") -> Any:
    choices = "|".join(str(choice) for choice in get_args(FIELDS[key].annotation) if isinstance(choice, str))
    return typer.Option(FLAGS[key], metavar=metavar or choices, help=FIELDS[key].description, show_default=False)


Backend = Annotated[str | None, _flag("backend")]
Views = Annotated[str | None, _flag("views")]
Data = Annotated[list[str] | None, _flag("data.train", "SHARDS")]
ValData = Annotated[list[str] | None, _flag("data.val", "SHARDS")]
BatchSize = Annotated[str | None, _flag("data.batch_size", "N")]
Backbone = Annotated[str | None, _flag("encoder.backbone", "NAME")]
LearningRate = Annotated[str | None, _flag("optimizer.lr", "NUMBER")]
Epochs = Annotated[str | None, _flag("train.epochs", "N")]
Seed = Annotated[str | None, _flag("train.seed", "N")]
Precision = Annotated[str | None, _flag("train.precision")]
Compile = Annotated[
    bool | None,
    typer.Option("--compile/--no-compile", help=FIELDS["train.compile"].description, show_default=False),
]
Device = Annotated[str | None, _flag("run.device", "NAME")]
Workers = Annotated[str | None, _flag("run.workers", "N")]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any other setting, e.g. moco.queue=4096. Repeatable."),
]
Preset = Annotated[
    str | None,
    typer.Option("--preset", metavar="NAME", help="A recipe to start from; `leoclr show-config --presets` lists them."),
]
Config = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Settings in a .toml, .yaml or .json file.")
]


def keys_of(arguments: Sequence[str]) -> set[str]:
    """The settings that a command line sets."""
    keys = {flag: key for key, flag in FLAGS.items()}
    found = {keys.get(word.partition("=")[0], "") for word in arguments}
    values = [value for word, value in pairwise(arguments) if word == "--set"]
    values += [word.removeprefix("--set=") for word in arguments if word.startswith("--set=")]
    return (found | {value.partition("=")[0] for value in values}) - {""}


class GivenFlags(NamedTuple):
    """What the flags say, by dotted key, and the flag that says it, for `layers.resolve`."""

    values: dict[str, str | Sequence[str]]
    names: dict[str, str]


def given_flags(
    *,
    backend: str | None = None,
    views: str | None = None,
    data: list[str] | None = None,
    val_data: list[str] | None = None,
    batch_size: str | None = None,
    backbone: str | None = None,
    lr: str | None = None,
    epochs: str | None = None,
    seed: str | None = None,
    precision: str | None = None,
    compile: bool | None = None,
    device: str | None = None,
    workers: str | None = None,
    assignments: list[str] | None = None,
) -> GivenFlags:
    """Gather the flags that were given; None and an empty list are flags that were not.

    Raises:
        SettingsError: An assignment is not KEY=VALUE, or a setting is given by two flags.
    """
    values: dict[str, str | Sequence[str] | None] = {
        "backend": backend,
        "views": views,
        "data.train": data,
        "data.val": val_data,
        "data.batch_size": batch_size,
        "encoder.backbone": backbone,
        "optimizer.lr": lr,
        "train.epochs": epochs,
        "train.seed": seed,
        "train.precision": precision,
        "train.compile": None if compile is None else str(compile).lower(),
        "run.device": device,
        "run.workers": workers,
    }
    given = GivenFlags({key: value for key, value in values.items() if value not in (None, [])}, dict(FLAGS))
    for assignment in assignments or ():
        key, equals, text = assignment.partition("=")
        if not equals:
            raise SettingsError(f"--set {assignment}: must be KEY=VALUE, such as --set moco.queue=4096")
        if key in given.values:
            raise SettingsError(f"--set {key}: given before, by {given.names[key]}")
        given.values[key] = text
        given.names[key] = f"--set {key}"
    return given
