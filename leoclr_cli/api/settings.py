"""Settings from Python values."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from leoclr.cli.config.flags import Given
from leoclr.cli.config.preset_files import AUTO
from leoclr.cli.config.settings import Settings
from leoclr.cli.terminal import warn
from leoclr.datasets.errors import SettingsError


def settled(settings: Settings | Mapping[str, Any], preset: str | None) -> Settings:
    """The settings that `train` means. The environment has no say: the caller's values alone count.

    Raises:
        SettingsError: Anything is unknown, of the wrong type or out of range: one line for each.
    """
    if isinstance(settings, Settings):
        if preset is not None:
            raise SettingsError("preset: the settings are complete; give a preset with a mapping of what differs")
        return settings
    values = {key: _text(value) for key, value in _flat(settings)}
    given = Given(values, {key: key for key in values}, preset, environment={})
    if preset == AUTO:
        from leoclr.cli.training.auto_settings import with_choices

        given = with_choices(given)
    resolved = given.resolve()
    for line in resolved.warnings:
        warn(line)
    return resolved.settings


def _flat(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _text(value: Any) -> str | tuple[str, ...]:
    """A value as a flag would say it, so that every wrong one is answered alike."""
    if isinstance(value, list | tuple):
        return tuple(str(_text(item)) for item in value)
    if isinstance(value, bool):
        return str(value).lower()
    return os.fspath(value) if isinstance(value, os.PathLike) else str(value)
