"""Flags of settings, declared once for all commands and for recipes.

Values stay text here. `leoclr.cli.config.resolve` parses them by the type of the setting, like variables, so that all
errors have one form and are reported together.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from leoclr.cli.config.fields import all_fields, is_list, is_switch, nearest, nearest_key
from leoclr.cli.config.preset_files import Chosen
from leoclr.cli.config.resolve import Resolved, resolve
from leoclr.cli.config.settings import Settings
from leoclr.cli.options import spread_values
from leoclr.datasets.errors import SettingsError


class Flag(NamedTuple):
    """A flag, the dotted key of its setting, and how help names the value ("" lists the choices)."""

    name: str
    key: str
    metavar: str = ""

    @property
    def parameter(self) -> str:
        """The flag as a Python name."""
        return self.name.removeprefix("--").replace("-", "_")

    @property
    def takes_many(self) -> bool:
        return is_list(self.key)

    @property
    def is_switch(self) -> bool:
        return is_switch(self.key)

    @property
    def off(self) -> str:
        """What turns a switch off."""
        return f"--no-{self.name.removeprefix('--')}"


FLAGS = (
    Flag("--data", "data.train", "SHARDS"),
    Flag("--backend", "backend"),
    Flag("--views", "views"),
    Flag("--val-data", "data.val", "SHARDS"),
    Flag("--epochs", "train.epochs", "N"),
    Flag("--batch-size", "data.batch_size", "N"),
    Flag("--lr", "optimizer.lr", "NUMBER"),
    Flag("--backbone", "encoder.backbone", "NAME"),
    Flag("--init", "encoder.weights", "WEIGHTS"),
    Flag("--device", "run.device", "NAME"),
    Flag("--precision", "train.precision"),
    Flag("--compile", "train.compile"),
    Flag("--workers", "run.workers", "N"),
    Flag("--seed", "train.seed", "N"),
)
SET, PRESET, CONFIG = "--set", "--preset", "--config"

# What other tools call it, where the names are not alike.
_OTHER_NAMES = {
    "--amp": "--precision",
    "--arch": "--backbone",
    "--bf16": "--precision",
    "--bs": "--batch-size",
    "--checkpoint": "--init",
    "--ckpt": "--init",
    "--devices": "--num-processes",
    "--fp16": "--precision",
    "--gpus": "--num-processes",
    "--learning-rate": "--lr",
    "--method": "--backend",
    "--mixed-precision": "--precision",
    "--model": "--backbone",
    "--network": "--backbone",
    "--nproc-per-node": "--num-processes",
    "--num-gpus": "--num-processes",
    "--num-workers": "--workers",
    "--pretrained": "--init",
    "--root": "--data",
    "--save-dir": "--output",
    "--wd": "--set optimizer.weight_decay=VALUE",
    "--weights": "--init",
}


@dataclass(frozen=True)
class Given:
    """All that a command line says about settings.

    Attributes:
        values: Dotted key -> text, or a sequence of texts where the setting is a list.
        names: Dotted key -> the flag that said it, for messages.
        chosen: What the preset `auto` stands for, once that is known.
        environment: Variables below the flags; None takes those of the process.
    """

    values: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    preset: str | None = None
    config: Path | None = None
    chosen: Chosen | None = None
    environment: Mapping[str, str] | None = None

    @classmethod
    def of(
        cls,
        flags: Mapping[str, Any],
        assignments: Iterable[str] = (),
        preset: str | None = None,
        config: Path | None = None,
    ) -> Given:
        """Gather what was given.

        Args:
            flags: Flag -> text, sequence of texts or truth value; None and empty sequences were not given.
            assignments: KEY=VALUE, as --set has them.

        Raises:
            SettingsError: An assignment is not KEY=VALUE, or a setting is given by two flags.
        """
        values: dict[str, str | Sequence[str]] = {}
        names: dict[str, str] = {}
        for flag in FLAGS:
            value = flags.get(flag.name)
            if value is not None and value != []:
                values[flag.key] = str(value).lower() if isinstance(value, bool) else value
                names[flag.key] = flag.name
        for assignment, following in pairwise((*assignments, "")):
            key, equals, text = assignment.partition("=")
            if not equals:
                example = f"{key}={following or 'VALUE'}" if key in all_fields() else "moco.queue=4096"
                raise SettingsError(f"{SET} {assignment}: must be KEY=VALUE, such as {SET} {example}")
            if key in values:
                raise SettingsError(f"{SET} {key}: given before, by {names[key]}")
            values[key], names[key] = text, f"{SET} {key}"
        return cls(values, names, preset, config)

    def resolve(self, base: Settings | None = None) -> Resolved:
        """The settings; see `leoclr.cli.config.resolve.resolve`."""
        environment = os.environ if self.environment is None else self.environment
        return resolve(self.preset, self.config, environment, self.values, base, self.names, self.chosen)


def parse_flags(words: Sequence[str]) -> Given:
    """Read a command line that holds nothing but flags for settings.

    Raises:
        SettingsError: A flag is unknown, or its value is missing.
    """
    given: dict[str, list[str]] = {}
    switches: dict[str, bool] = {}
    known = {flag.name: flag for flag in FLAGS}
    turned = {name: name == flag.name for flag in FLAGS if flag.is_switch for name in (flag.name, flag.off)}
    repeatable = {SET, *(flag.name for flag in FLAGS if flag.takes_many)}
    for name, value in _pairs(spread_values(words, repeatable), turned):
        if name in turned:
            switches[next(flag.name for flag in FLAGS if name in (flag.name, flag.off))] = turned[name]
        elif name in known or name in (SET, PRESET, CONFIG):
            given.setdefault(name, []).append(value)
        else:
            raise SettingsError(no_such_flag(name, (*known, *turned, SET, PRESET, CONFIG)))
    flags = {name: values if known[name].takes_many else values[-1] for name, values in given.items() if name in known}
    preset, config = (given.get(name, [None])[-1] for name in (PRESET, CONFIG))
    return Given.of(flags | switches, given.get(SET, ()), preset, None if config is None else Path(config))


def _pairs(words: Iterable[str], switches: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Each flag with its value; a switch with ""."""
    name = ""
    for word in words:
        if word.startswith("--"):
            if name:
                raise SettingsError(f"{name}: needs a value")
            flag, equals, value = word.partition("=")
            if equals or flag in switches:
                yield flag, value
            else:
                name = flag
        elif name:
            yield name, word
            name = ""
        else:
            raise SettingsError(f"{word}: expected a flag, such as {FLAGS[0].name} {word}")
    if name:
        raise SettingsError(f"{name}: needs a value")


def no_such_flag(flag: str, names: Iterable[str]) -> str:
    """What to say of a flag that is none of `names`, with the one that was probably meant."""
    return f"{flag}: no such flag{_hint(flag, set(names))}"


def _hint(flag: str, names: set[str]) -> str:
    word = flag.removeprefix("--").replace("-", "_")
    dashed = "--" + word.replace("_", "-")
    if dashed in names:
        return f"; did you mean {dashed}?"
    if SET in names:
        keys = [key for key in all_fields() if word in (key, key.rpartition(".")[2], key.replace(".", "_"))]
        if keys:
            flags = set() if "." in word else names
            return f"; did you mean {' or '.join(_said(key, flags) for key in keys)}?"
    meant = _OTHER_NAMES.get(dashed, "")
    if meant.partition(" ")[0] in names:
        return f"; did you mean {meant}?"
    if guess := nearest(word, (name.removeprefix("--").replace("-", "_") for name in names)):
        return f"; did you mean --{guess.replace('_', '-')}?"
    if SET in names and (key := nearest_key(word)):
        return f"; did you mean {_said(key, names)}?"
    return ""


def _said(key: str, names: set[str]) -> str:
    """The flag of a setting, where the command has one."""
    return next((flag.name for flag in FLAGS if flag.key == key and flag.name in names), f"{SET} {key}=VALUE")
