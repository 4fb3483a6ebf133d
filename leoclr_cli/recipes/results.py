"""Results of a recipe: a file per pre-training with its scores, and the table built from these files."""

from __future__ import annotations

import json
import math
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leoclr.cli.config.settings import Settings
from leoclr.cli.preflight.checks import facts_of
from leoclr.cli.recipes.definition import Column, Recipe
from leoclr.cli.recipes.steps import RecipePlan, Unit, read_json
from leoclr.datasets.errors import RunError
from leoclr.datasets.files import write_atomic

FORMAT = 1
_HOLD_PATHS = ("data", "checkpoint")
_TAKE_PATHS = ("--data", "--train-data", "--test-data", "--val-data", "--output", "-o")


def forward_passes(settings: Settings) -> float:
    """Forward passes of the encoder for each image, in passes over a view of full size. A backward pass counts as two;
    MoCo's keys have none."""
    own = settings.method.forward_passes(facts_of(settings, images=1, ranks=1))
    return own + 3 * settings.view_policy.passes


def write_result(unit: Unit, recipe_name: str) -> Path:
    """Gather run and records of a unit, whose steps are all done, in one file under `results`."""
    plan, run = unit.plan, read_json(unit.run / "run.json")
    sessions = unit.pretraining().sessions()
    settings = run["settings"]
    passes = forward_passes(Settings.model_validate(settings))
    scores = {}
    for column in unit.columns():
        record = read_json(unit.record(column))
        kept = ("kind", "results", "protocol", "notes", "seed", "seconds", "checkpoint", "data")
        scores[column.name] = {key: record[key] for key in kept if key in record}
    content = {
        "format": FORMAT,
        "recipe": recipe_name,
        "method": unit.method,
        "pretrain": unit.pretrain,
        "seed": unit.seed,
        "scale": plan.scale,
        "changes": list(unit.changes()),
        "any_data": plan.any_data,
        "settings": settings,
        "data": {key: run["data"][key] for key in ("digest", "samples")},
        "environment": {**run["environment"], "cores": sessions[-1].get("cores", "")},
        "versions": run["versions"],
        "commit": sessions[-1].get("commit", ""),
        "seconds": round(seconds_of(sessions), 1),
        "steps": sessions[-1]["steps"],
        "forward_passes": round(passes * sessions[-1]["steps"] * settings["data"]["batch_size"]),
        "scores": scores,
    }
    here = _places(plan)
    content = _elsewhere(content, here)
    commands = [_elsewhere_in(step.command_as_planned(), here) for step in unit.steps()]
    content["commands"] = [shlex.join(("leoclr", *words)) for words in commands]
    text = json.dumps(content, indent=2, allow_nan=False)
    path = plan.folder / "results" / f"{unit.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (text + "\n").encode())
    return path


def seconds_of(sessions: Sequence[Mapping[str, Any]]) -> float:
    """Of all steps of a pre-training. Sessions that were killed left no record: their steps count as long as the
    others."""
    seconds, made, before = 0.0, 0, 0
    for session in sessions:
        seconds += session["seconds"]
        made += session["step"] - session.get("first_step", before)
        before = session["step"]
    return seconds * before / made if made else seconds


def _places(plan: RecipePlan) -> dict[str, str]:
    """What stands for each path of this machine in a result, which is shown to others."""
    here = {os.path.abspath(plan.folder): "OUTPUT", os.path.normpath(plan.folder): "OUTPUT"}
    for name, shards in plan.data.items():
        here |= {shards: name.upper(), os.path.abspath(shards): name.upper()}
    return {path: here[path] for path in sorted(here, key=len, reverse=True) if path != "."}


def _elsewhere(value: Any, here: Mapping[str, str], place: str = "") -> Any:
    """A JSON value in which what stands for a path of this machine is named so: below the keys that hold paths."""
    if isinstance(value, dict):
        return {
            key: _elsewhere(item, here, place or (key if key in _HOLD_PATHS else "")) for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_elsewhere(item, here, place) for item in value]
    return _named(value, here) if place and isinstance(value, str) else value


def _elsewhere_in(words: Sequence[str], here: Mapping[str, str]) -> list[str]:
    """The same in a command, whose other words may look like a path: `--preset cifar10` beside a folder cifar10."""
    pairs = zip(("", *words), words, strict=False)
    return [_named(word, here) if before in _TAKE_PATHS or "/" in word else word for before, word in pairs]


def _named(text: str, here: Mapping[str, str]) -> str:
    for path, name in here.items():
        if text == path or text.startswith(f"{path}/"):
            return name + text[len(path) :]
    return text


def read_results(folder: Path) -> list[dict[str, Any]]:
    """All results of a folder; RunError where one is not of this format."""
    results = []
    for path in sorted(folder.glob("*.json")):
        result = read_json(path)
        if result.get("format") != FORMAT or not {"method", "pretrain", "seed", "scores"} <= result.keys():
            raise RunError(f"{path}: not a result of format {FORMAT}")
        results.append(result)
    return results


@dataclass(frozen=True)
class Change:
    """What a method is ahead of another by, in the mean over the seeds of both.

    Seeds are compared with themselves, which takes out what an initialisation and an order of images are worth.

    Attributes:
        half_width: Of the 95 % interval; None for a single seed.
    """

    against: str
    mean: float
    half_width: float | None


@dataclass(frozen=True)
class Cell:
    """One figure of one method.

    Attributes:
        values: One for each seed, in the unit of the column.
        half_width: Half of the 95 % interval of the mean (Student's t over the seeds); None for a single seed.
        change: From the method that it is compared with; None where there is none.
        paper: The paper's figure; None where there is none.
        passes: Forward passes of one pre-training.
        hours: Of one pre-training, the mean over the seeds.
    """

    method: str
    column: Column
    values: tuple[float, ...]
    half_width: float | None
    change: Change | None
    paper: float | None
    passes: int
    hours: float

    @property
    def mean(self) -> float:
        return sum(self.values) / len(self.values)

    @property
    def difference(self) -> float | None:
        return None if self.paper is None else self.mean - self.paper


def cells(recipe: Recipe, results: Sequence[Mapping[str, Any]]) -> Iterator[Cell]:
    """The table's cells, column by column, methods in the recipe's order; those without a result are left out."""
    for column in recipe.columns:
        of_column = [r for r in results if r["pretrain"] == column.pretrain and column.name in r["scores"]]
        for method, about in recipe.methods.items():
            found = [result for result in of_column if result["method"] == method]
            if not found:
                continue
            others = _by_seed(column, [result for result in of_column if result["method"] == about.against])
            scores = _by_seed(column, found)
            values = tuple(scores.values())
            yield Cell(
                method=method,
                column=column,
                values=values,
                half_width=half_width(values),
                change=_change(about.against, scores, others),
                paper=column.paper.get(method),
                passes=found[0]["forward_passes"],
                hours=sum(result["seconds"] for result in found) / len(found) / 3600,
            )


def _by_seed(column: Column, results: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    return {result["seed"]: _value(column, result["scores"][column.name]) for result in results}


def _change(against: str, scores: Mapping[int, float], others: Mapping[int, float]) -> Change | None:
    differences = [score - others[seed] for seed, score in scores.items() if seed in others]
    if not differences:
        return None
    return Change(against, sum(differences) / len(differences), half_width(differences))


def half_width(values: Sequence[float]) -> float | None:
    """Half of the 95 % interval of the mean of independent values; None where there is one."""
    if len(values) < 2:
        return None
    from scipy.stats import t

    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return float(t.ppf(0.975, len(values) - 1)) * deviation / math.sqrt(len(values))


def _value(column: Column, score: Mapping[str, Any]) -> float:
    row, _, metric = column.metric.partition(".")
    try:
        value = float(score["results"][row][metric])
    except (KeyError, TypeError, ValueError):
        raise RunError(f"the record of {column.name!r} holds no {column.metric}") from None
    return value * (100 if column.percent else 1)
