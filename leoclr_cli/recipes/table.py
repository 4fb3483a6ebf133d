"""The table of a recipe's results: text, Markdown, JSON and a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from PIL import Image

from leoclr.cli.plotting.charts import Dot, Line, Panel, dot_chart, line_chart
from leoclr.cli.recipes.definition import Recipe
from leoclr.cli.recipes.results import Cell, Change, cells
from leoclr.datasets.wording import aligned, counted

_HEADINGS = (
    *("figure", "method", "paper", "ours", "95 % interval", "difference"),
    *("from baseline", "seeds", "forward passes", "hours"),
)


def as_json(recipe: Recipe, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The cells with all that stands in the table, and what the table is about."""
    return {
        "title": recipe.title,
        "source": recipe.source,
        "notes": list(_notes(recipe)) + deviations(results),
        "tolerance": recipe.tolerance,
        "cells": [
            {
                "figure": cell.column.name,
                "method": cell.method,
                "paper": cell.paper,
                "mean": cell.mean,
                "values": list(cell.values),
                "half_width": cell.half_width,
                "difference": cell.difference,
                "reproduced": _reproduced(recipe, cell, results),
                "change": None if cell.change is None else asdict(cell.change),
                "forward_passes": cell.passes,
                "hours": cell.hours,
            }
            for cell in cells(recipe, results)
        ],
    }


def as_markdown(recipe: Recipe, results: Sequence[Mapping[str, Any]]) -> str:
    """Title, table and notes."""
    table = _markdown(_HEADINGS, [_row(recipe, cell, results) for cell in cells(recipe, results)])
    notes = "".join(f"\n- {note}" for note in (*_notes(recipe), *deviations(results)))
    return f"{recipe.title} ({recipe.source})\n\n{table}\n{notes}\n" if notes else f"{recipe.title}\n\n{table}\n"


def as_grid(recipe: Recipe, results: Sequence[Mapping[str, Any]]) -> str:
    """A row of Markdown for each method and a column for each figure, for a page that is read and not searched."""
    found, trial = list(cells(recipe, results)), deviations(results)
    figures = [column.name for column in recipe.columns if any(cell.column is column for cell in found)]
    rows = []
    for method, about in recipe.methods.items():
        here = {cell.column.name: cell for cell in found if cell.method == method}
        if here:
            first = next(iter(here.values()))
            name = f"{method}<br>*less {about.against}*" if about.against else method
            texts = (_grid_cell(here[figure], not trial) if figure in here else "" for figure in figures)
            rows.append((name, *texts, _millions(first.passes), f"{first.hours:.2f}"))
    table = _markdown(("method", *figures, "forward passes", "hours"), rows)
    seeds, intervals = _seeds(found), "95 % intervals of the mean, and of the mean difference within a seed"
    notes = [*_notes(recipe), *trial, seeds if seeds == "1 seed" else f"{seeds}; {intervals}"]
    return f"{recipe.title} ({recipe.source})\n\n{table}\n\n" + "".join(f"- {note}\n" for note in notes)


def as_text(recipe: Recipe, results: Sequence[Mapping[str, Any]]) -> str:
    """The same for a terminal."""
    rows = [_HEADINGS, *(_row(recipe, cell, results) for cell in cells(recipe, results))]
    notes = [f"note: {note}" for note in (*_notes(recipe), *deviations(results))]
    return "\n".join([f"{recipe.title} ({recipe.source})", "", aligned(rows, left=2), "", *notes])


def as_picture(recipe: Recipe, results: Sequence[Mapping[str, Any]]) -> Image.Image:
    """A panel for each figure, the paper's values hollow but in a trial; drops where the recipe names a baseline."""
    trial = bool(deviations(results))
    found = list(cells(recipe, results))
    if any(cell.column.curve for cell in found):
        return _curves(recipe, found)
    before = {cell.method: cell for cell in found if cell.column.name == recipe.baseline}
    panels = []
    for column in recipe.columns:
        if column.name == recipe.baseline:
            continue
        here = [cell for cell in found if cell.column.name == column.name]
        if recipe.baseline:
            dots = [_drop(before[cell.method], cell, trial) for cell in here if cell.method in before]
        else:
            dots = [Dot(cell.method, cell.mean, cell.half_width, None if trial else cell.paper) for cell in here]
        if dots:
            panels.append(Panel(f"{column.name}, drop" if recipe.baseline else column.name, tuple(dots)))
    subtitle = f"{recipe.source}; {_seeds(found)}"
    shares = {result["scale"] for result in results} - {1.0}
    of_epochs = f" with {max(shares):g} of the epochs" if shares else ""
    subtitle += f"; a trial{of_epochs}" if trial else "; filled: ours, hollow: the paper"
    return dot_chart(recipe.title, subtitle, panels)


def _seeds(found: Sequence[Cell]) -> str:
    """How many seeds there are of each method."""
    counts = {len(cell.values) for cell in found} or {0}
    least, most = min(counts), max(counts)
    return f"{least} to {most} seeds" if least < most else counted(most, "seed")


def _notes(recipe: Recipe) -> tuple[str, ...]:
    published = (f"published, {name}: {about.published}" for name, about in recipe.methods.items() if about.published)
    return (*recipe.notes, *published)


def deviations(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """What sets these results apart from the recipe as it is written."""
    lines = []
    scales = sorted({result["scale"] for result in results})
    if scales and scales != [1.0]:
        shown = ", ".join(f"{scale:g}" for scale in scales)
        lines.append(f"epochs at scale {shown}: a trial, not to be held against the paper's figures")
    if any(result.get("any_data") for result in results):
        lines.append("--any-data: perhaps other data than the recipe's, so a trial")
    changes = sorted({change for result in results for change in result["changes"]})
    if changes:
        lines.append(f"settings that are not the recipe's: {', '.join(changes)}")
    mixed = dict.fromkeys(method for (method, _), found in _settings_of(results).items() if len(found) > 1)
    return [*lines, *(f"{method}: its seeds were trained with different settings" for method in mixed)]


def _settings_of(results: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], set[str]]:
    """What decides the weights, by method and pre-training: the settings, but for the seed and the place of data."""
    found: dict[tuple[str, str], set[str]] = {}
    for result in results:
        settings = {name: value for name, value in result.get("settings", {}).items() if name != "run"}
        settings["train"] = {name: value for name, value in settings.get("train", {}).items() if name != "seed"}
        settings["data"] = {
            n: value for n, value in settings.get("data", {}).items() if n not in ("train", "val", "resident")
        }
        key = result["method"], result["pretrain"]
        found.setdefault(key, set()).add(json.dumps(settings, sort_keys=True))
    return found


def _curves(recipe: Recipe, found: Sequence[Cell]) -> Image.Image:
    """A chart for each curve, below each other, with a line for each method."""
    charts = []
    for curve in dict.fromkeys(cell.column.curve for cell in found if cell.column.curve):
        lines = []
        for method in recipe.methods:
            points = [cell for cell in found if (cell.method, cell.column.curve) == (method, curve)]
            if points:
                half_widths = tuple(cell.half_width or 0.0 for cell in points)
                x, y = tuple(cell.column.x or 0.0 for cell in points), tuple(cell.mean for cell in points)
                lines.append(Line(method, x, y, half_widths if any(half_widths) else ()))
        charts.append(line_chart(recipe.title, recipe.source, lines, recipe.x_label, f"{curve}, %", logarithmic=True))
    picture = Image.new("RGB", (charts[0].width, sum(chart.height for chart in charts)))
    for number, chart in enumerate(charts):
        picture.paste(chart, (0, number * chart.height))
    return picture


def _drop(before: Cell, cell: Cell, trial: bool) -> Dot:
    reference = None if trial or before.paper is None or cell.paper is None else before.paper - cell.paper
    return Dot(cell.method, before.mean - cell.mean, None, reference)


def _reproduced(recipe: Recipe, cell: Cell, results: Sequence[Mapping[str, Any]]) -> bool | None:
    if cell.difference is None or deviations(results):
        return None
    return abs(cell.difference) <= recipe.tolerance


def _markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = (headings, ["---"] * len(headings), *rows)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _grid_cell(cell: Cell, with_paper: bool) -> str:
    change = f"<br>*{_change(cell.change)}*" if cell.change else ""
    paper = f"<br>paper {cell.paper:.2f}" if with_paper and cell.paper is not None else ""
    return f"{cell.mean:.2f} {_interval(cell.half_width)}".rstrip() + change + paper


def _change(change: Change) -> str:
    return f"{change.mean:+.2f} {_interval(change.half_width)}".rstrip()


def _millions(passes: int) -> str:
    """Three digits, so that rows of equal cost can be compared: epochs are whole numbers."""
    millions = passes / 1e6
    return f"{millions:,.0f} M" if millions >= 99.95 else f"{millions:#.3g} M"


def _interval(half_width: float | None) -> str:
    return f"± {half_width:.2f}" if half_width is not None else ""


def _row(recipe: Recipe, cell: Cell, results: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    difference = ""
    reproduced = _reproduced(recipe, cell, results)
    if reproduced is not None:
        difference = f"{cell.difference:+.2f} ({'within tolerance' if reproduced else 'not reproduced'})"
    return (
        cell.column.name,
        cell.method,
        f"{cell.paper:.2f}" if cell.paper is not None else "",
        f"{cell.mean:.2f}",
        _interval(cell.half_width),
        difference,
        f"{_change(cell.change)} ({cell.change.against})" if cell.change else "",
        str(len(cell.values)),
        _millions(cell.passes),
        f"{cell.hours:.2f}",
    )
