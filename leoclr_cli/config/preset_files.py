"""Presets that come with leoclr, with variants for single methods.

`presets/cifar10.toml` is a preset; `presets/cifar10/byol.toml` overrides parts of it if the backend is byol. The first
line of each file is a comment that describes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from leoclr.cli.config.fields import nearest
from leoclr.cli.config.plugins import METHODS, plugins
from leoclr.datasets.errors import SettingsError

PRESETS = Path(__file__).with_name("presets")
AUTO = "auto"  # the preset whose values follow from data and device; `leoclr.cli.preflight.auto_preset`


class Chosen(NamedTuple):
    """What `--preset auto` stands for: the preset that it starts from, and values over it, each with its reason."""

    base: str
    values: Mapping[str, tuple[Any, str]]


def preset_names() -> tuple[str, ...]:
    """The presets that come with leoclr, in alphabetical order."""
    return tuple(sorted(path.stem for path in PRESETS.glob("*.toml")))


def describe_presets() -> dict[str, str]:
    """Each preset's own summary, the comment on the first line of its file."""
    return {name: summary(preset_path(name)) for name in preset_names()}


def recipe_path(preset: str, backend: str) -> Path | None:
    """The file with a method's own recipe, which is laid over a preset's; None where it has none."""
    path = PRESETS / preset / f"{backend}.toml"
    return path if backend in plugins(METHODS) and path.is_file() else None


def summary(path: Path) -> str:
    """The comment on the first line of a preset or recipe."""
    return path.read_text("utf-8").partition("\n")[0].lstrip("# ")


def preset_path(name: str) -> Path:
    """The file of a preset.

    Raises:
        SettingsError: There is no such preset.
    """
    if name not in preset_names():
        guess = nearest(name, preset_names())
        hint = f"did you mean {guess}?" if guess else f"there are {', '.join(preset_names())}"
        raise SettingsError(f"--preset {name}: no such preset; {hint}")
    return PRESETS / f"{name}.toml"
