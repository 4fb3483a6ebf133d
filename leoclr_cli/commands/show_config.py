"""`leoclr show-config`: every setting of a run with its value and origin."""

from __future__ import annotations

from typing import Annotated

import typer

from leoclr.cli import terminal as console
from leoclr.cli.commands.base.flags import resolved as resolve
from leoclr.cli.commands.base.flags import with_settings
from leoclr.cli.config.fields import get, keys_of
from leoclr.cli.config.flags import Given
from leoclr.cli.config.preset_files import describe_presets
from leoclr.cli.config.resolve import Resolved
from leoclr.cli.config.setting_files import to_toml, toml_value
from leoclr.datasets.errors import SettingsError


@with_settings()
def show_config(
    given: Given,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: settings, origins, warnings.")] = False,
    as_toml: Annotated[bool, typer.Option("--toml", help="Print a file that --config accepts.")] = False,
    presets: Annotated[bool, typer.Option("--presets", help="List the presets instead.")] = False,
) -> None:
    """Show every setting with its value and its origin.

    Values come from defaults, preset, file, LEOCLR_ variables and flags; later ones override earlier ones.

    \b
    Examples:
      leoclr show-config --preset cifar10 --epochs 400
      LEOCLR_OPTIMIZER__LR=0.1 leoclr show-config --config run.toml
      leoclr show-config --preset stl10 --toml > run.toml
      leoclr show-config --preset auto --data photos/
      leoclr show-config --presets
    """
    if as_json and as_toml:
        raise SettingsError("--json and --toml exclude each other")
    if presets:
        _print_presets(as_json)
        return
    resolved = resolve(given)
    for warning in resolved.warnings:
        console.warn(warning)
    if as_json:
        settings = resolved.settings.model_dump(mode="json")
        about = {"recipe": resolved.recipe} if resolved.recipe else {}
        console.print_json({"settings": settings, "origins": resolved.origins, "warnings": resolved.warnings} | about)
    elif as_toml:
        print(to_toml(resolved.settings), end="")
    else:
        _print_table(resolved)


def _print_table(resolved: Resolved) -> None:
    if resolved.recipe:
        print(f"recipe: {resolved.recipe}")
    rows = [("setting", "value", "origin")]
    rows += [
        (key, toml_value(get(resolved.settings, key)), resolved.origins[key]) for key in keys_of(resolved.settings)
    ]
    key_width, value_width = (max(len(row[column]) for row in rows) for column in (0, 1))
    for key, value, origin in rows:
        print(f"{key:{key_width}}  {value:{min(value_width, 44)}}  {origin}")


def _print_presets(as_json: bool) -> None:
    summaries = describe_presets()
    if as_json:
        console.print_json(summaries)
        return
    width = max(len(name) for name in summaries)
    for name, summary in summaries.items():
        print(f"{name:{width}}  {summary}")
