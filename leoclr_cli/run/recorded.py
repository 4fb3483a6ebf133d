"""Settings that a run was started with, read back from its run.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from leoclr.cli.config.fields import from_text, replaced
from leoclr.cli.config.plugins import METHODS, plugins
from leoclr.cli.config.resolve import differences
from leoclr.cli.config.settings import Settings
from leoclr.cli.image_folders import as_shards
from leoclr.cli.run.folder import RunFolder
from leoclr.datasets.errors import DataError, RunError
from leoclr.datasets.shards.locate import check_specs, sibling_split
from leoclr.datasets.wording import first_line


def recorded_settings(run: Path, moved: str | Sequence[str] | None = None) -> Settings:
    """The settings of a run.

    Args:
        moved: Training data that is named anew. Validation data that has gone is then looked for beside it.

    Raises:
        RunError: There is no run, its method is not installed, or this version does not read its settings.
    """
    description = RunFolder(run).read()
    try:
        if moved is not None and (beside := _beside(moved, description["data"]["val"])):
            description["data"]["val"] = beside
        settings = Settings.model_validate(description["settings"])
        return replaced(settings, {f"data.{key}": tuple(description["data"][key]) for key in ("train", "val")})
    except (ValidationError, KeyError, TypeError) as error:
        _refuse_missing_method(run, description)
        raise RunError(f"{run}/run.json does not hold settings that this version reads: {first_line(error)}") from None


def refuse_changes(run: Path, before: Settings, after: Settings) -> None:
    """Raise RunError where `after` would not give the weights of the run; more epochs may extend it."""
    if changed := differences(before, after, may_extend=True):
        raise RunError(
            f"{run} was started with other settings ({'; '.join(changed)}); resume without them, "
            "or start a new run with another --output"
        )


def _beside(moved: str | Sequence[str], val: list[str]) -> list[str]:
    """Validation data beside the training data that is named anew, where the run's own has gone."""
    try:
        check_specs(as_shards(val, announce=False))
    except DataError:
        return list(sibling_split(from_text("data.train", moved)))
    return []


def _refuse_missing_method(run: Path, description: Mapping[str, Any]) -> None:
    """Raise RunError where the method of a run is not installed."""
    name, origin = description.get("settings", {}).get("backend"), description.get("method")
    if isinstance(name, str) and name not in plugins(METHODS) and isinstance(origin, dict):
        package = f"{origin.get('package', '(unknown)')} {origin.get('version', '')}".strip()
        raise RunError(f"{run} was trained by the method {name} of the package {package}, which is not installed")
