"""What of a recipe can be refused before its first step, which may take days."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

from leoclr.cli.recipes.steps import Plan
from leoclr.cli.scoring.transfer_data import REPORTED
from leoclr.datasets.errors import DataError, SettingsError
from leoclr.datasets.shards.locate import check_specs


def check_names(plan: Plan) -> None:
    """Raise SettingsError where methods or columns would share a run or a record: their names differ in signs alone."""
    units = list(plan.units())
    for unit in units:
        unit.evaluations()
        for other in units:
            if other != unit and other.name == unit.name:
                raise SettingsError(f"{unit.method!r} and {other.method!r} would share {unit.run}; rename one of them")


def check_settings(plan: Plan) -> None:
    """Raise SettingsError where a pre-training would be refused its settings, or a change applies to none of them."""
    units = [unit for unit in plan.units() if unit.seed == plan.seeds[0]]
    for change in plan.changes:
        if not any(change in unit.changes() for unit in units):
            raise SettingsError(f"--set {change}: the recipe sets it for each of its methods itself")
    for unit in units:
        if problem := _refusal(("show-config", *unit.settings_flags())):  # which reads what `leoclr train` reads
            raise SettingsError(f"{unit.method}: {problem}")


def _refusal(command: Sequence[str]) -> str:
    """What a command says as it refuses; "" where it does not."""
    from leoclr.cli.commands.app import main

    with redirect_stdout(StringIO()), redirect_stderr(StringIO()) as errors:
        try:
            main(command)
        except SystemExit as ended:
            said = errors.getvalue().strip()
            return said.removeprefix("error: ").rpartition("\nError: ")[2] if ended.code else ""
    return ""


def check_data(plan: Plan) -> None:
    """Raise LeoclrError for what a step days from now would miss: shards, boxes, the packages that score them."""
    for pretraining in plan.recipe.pretrain.values():
        check_specs([plan.shards(pretraining.data)])
    for column in plan.recipe.columns:
        specs = [plan.shards(split) for split in (column.train_data, column.test_data) if split]
        if column.command[0] == "detection":
            from leoclr.evals.detection.detector import require_pycocotools  # and with it torch

            require_pycocotools()
            if missing := [spec for spec in specs if not Path(spec).exists()]:
                raise DataError(f"{missing[0]}: no such file or folder")
        elif column.command[0] != "transfer" or specs[0] not in REPORTED:  # which it packs itself
            check_specs(specs)
