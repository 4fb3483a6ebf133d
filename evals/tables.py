"""Scores as text tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from leoclr.datasets.wording import aligned

METRICS = {"top1": "top-1 %", "top5": "top-5 %", "mean_per_class": "per class %"}
HALF_WIDTHS = {"half_width": "draws", "image_half_width": "images"}


def results_table(records: Mapping[str, Mapping[str, Any]]) -> str:
    """The results of records in aligned columns, in per cent, with the intervals that there are.

    Args:
        records: By the name that stands before each row; "" for none.
    """
    rows = [
        (", ".join(filter(None, (name, record["rows"][key]))), values)
        for name, record in records.items()
        for key, values in record["results"].items()
    ]
    metrics = [metric for metric in METRICS if any(metric in values for _, values in rows)]
    lines = [["", *(METRICS[metric] for metric in metrics)]]
    lines += [[label, *(cell(values, metric) for metric in metrics)] for label, values in rows]
    return aligned(lines)


def cell(values: Mapping[str, float], metric: str) -> str:
    """A metric in per cent with its intervals; nothing where it is missing."""
    if metric not in values:
        return ""
    halves = {over: values.get(f"{metric}_{name}") for name, over in HALF_WIDTHS.items()}
    intervals = [f"+/- {100 * half:.2f} ({over})" for over, half in halves.items() if half is not None]
    return " ".join([f"{100 * values[metric]:.2f}", *intervals])
