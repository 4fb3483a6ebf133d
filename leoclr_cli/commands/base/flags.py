"""Flags of settings as options of a command."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from leoclr.cli.config.fields import FIELDS, choices
from leoclr.cli.config.flags import CONFIG, FLAGS, PRESET, SET, Flag, Given
from leoclr.cli.config.preset_files import AUTO
from leoclr.cli.config.resolve import Resolved
from leoclr.cli.config.settings import Settings
from leoclr.cli.options import with_shared
from leoclr.cli.terminal import warn
from leoclr.datasets.errors import SettingsError

_LAYERS = {
    PRESET: (
        "preset",
        str,
        typer.Option(PRESET, metavar="NAME", help="Preset to start from; `leoclr show-config --presets` lists them."),
    ),
    CONFIG: ("config", Path, typer.Option(CONFIG, metavar="FILE", help="Settings in a .toml, .yaml or .json file.")),
    SET: (
        "assignments",
        list[str],
        typer.Option(SET, metavar="KEY=VALUE", help="Any other setting, e.g. moco.queue=4096. Repeatable."),
    ),
}


def with_settings(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Let a command whose first parameter is a `Given` take flags for settings.

    Args:
        names: The flags that it takes; without any it takes all of them.
    """
    unknown = set(names) - {flag.name for flag in FLAGS} - _LAYERS.keys()
    assert not unknown, unknown
    flags = {flag.parameter: flag.name for flag in FLAGS if not names or flag.name in names}
    shared = [_parameter(flag.parameter, *_option(flag)) for flag in FLAGS if flag.name in flags.values()]
    shared += [_parameter(*layer) for name, layer in _LAYERS.items() if not names or name in names]

    def gather(**options: Any) -> Given:
        given = {flags[name]: value for name, value in options.items() if name in flags}
        return Given.of(given, options.get("assignments") or (), options.get("preset"), options.get("config"))

    return with_shared(shared, gather)


def resolved(given: Given, base: Settings | None = None, processes: int = 1) -> Resolved:
    """The settings that were asked for, with their origins; those of `--preset auto` are chosen now.

    Args:
        base: Those of a run that is resumed, which chooses nothing anew.
        processes: That are to train together.
    """
    if given.preset == AUTO and base is None:
        from leoclr.cli.image_folders import as_shards
        from leoclr.datasets.shards.locate import check_specs

        said = replace(given, preset=None).resolve().settings  # mistakes are told before torch is imported
        if said.data.train:
            check_specs(as_shards(said.data.train, announce=False))
        from leoclr.cli.training.auto_settings import with_choices

        given = with_choices(given, processes)
    return given.resolve(base)


def settings_of(given: Given) -> Settings:
    """The settings that were asked for; settings without effect cause a warning."""
    found = resolved(given)
    for line in found.warnings:
        warn(line)
    return found.settings


def _parameter(name: str, kind: Any, option: Any) -> inspect.Parameter:
    annotation = Annotated[kind | None, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _option(flag: Flag) -> tuple[Any, Any]:
    """Type and declaration; the choices are those that the settings have as the command is called."""
    about = FIELDS[flag.key].description
    if flag.is_switch:
        return bool, typer.Option(f"{flag.name}/{flag.off}", help=about, show_default=False)
    metavar = flag.metavar or "|".join(choices(flag.key))
    kind = list[str] if flag.takes_many else str
    return kind, typer.Option(flag.name, metavar=metavar, help=about, show_default=False)


def refuse_without_effect(reason: str, changed: Mapping[str, bool]) -> None:
    """Raise SettingsError for a flag that nothing reads, where it is not at its default.

    Args:
        changed: Whether each flag is.
    """
    for flag, is_changed in changed.items():
        if is_changed:
            raise SettingsError(f"{flag} has no effect {reason}")
