"""Checks of a recipe before its first step, which may take days."""

from __future__ import annotations

from pathlib import Path

from leoclr.cli.config.flags import parse_flags
from leoclr.cli.recipes.steps import RecipePlan
from leoclr.cli.scoring.transfer_data import REPORTED
from leoclr.datasets.errors import DataError, SettingsError
from leoclr.datasets.files import did_you_mean
from leoclr.datasets.shards.locate import check_specs


def check_names(plan: RecipePlan) -> None:
    """Raise SettingsError where methods or columns would share a run or a record: their names differ in signs alone."""
    units = list(plan.units())
    for unit in units:
        unit.evaluations()
        for other in units:
            if other != unit and other.name == unit.name:
                raise SettingsError(f"{unit.method!r} and {other.method!r} would share {unit.run}; rename one of them")


def check_settings(plan: RecipePlan) -> None:
    """Raise SettingsError where a pre-training would be refused its settings, or a change applies to none of them."""
    applied = set[str]()
    for unit in (unit for unit in plan.units() if unit.seed == plan.seeds[0]):
        try:
            parse_flags(unit.settings_flags()).resolve()
            applied.update(unit.changes())
        except SettingsError as error:
            raise SettingsError(f"{unit.method}: {error}") from None
    for change in plan.changes:
        if change not in applied:
            raise SettingsError(f"--set {change}: the recipe sets it for each of its methods itself")


def check_data(plan: RecipePlan) -> None:
    """Raise LeoclrError for what a step days from now would miss: shards, boxes, the packages that score them."""
    for pretraining in plan.recipe.pretrain.values():
        check_specs([plan.shards(pretraining.data)])
    for column in plan.recipe.columns:
        specs = [plan.shards(split) for split in (column.train_data, column.test_data) if split]
        if column.command[0] == "detection":
            from leoclr.evals.detection.detector import require_pycocotools  # and with it torch

            require_pycocotools()
            if missing := [spec for spec in specs if not Path(spec).exists()]:
                raise DataError(f"{missing[0]}: no such file or folder{did_you_mean(Path(missing[0]))}")
        elif column.command[0] != "transfer" or specs[0] not in REPORTED:  # which it packs itself
            check_specs(specs)
