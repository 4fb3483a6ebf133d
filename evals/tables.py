"""Scores as text: the table that a person reads."""

from __future__ import annotations

from collections.abc import Sequence

from leoclr.evals.scores import Row, Score

METRICS = {"top1": "top-1 %", "top5": "top-5 %", "mean_per_class": "per class %"}


def score_table(score: Score) -> str:
    """The rows of a score in aligned columns, in per cent, with intervals where there are some."""
    metrics = [metric for metric in METRICS if any(metric in row.values for row in score.rows)]
    lines = [["", *(METRICS[metric] for metric in metrics)]]
    lines += [[row.label, *(_cell(row, metric) for metric in metrics)] for row in score.rows]
    return aligned(lines)


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Cells in columns as wide as their widest, the first to the left and the others to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]).rstrip()
        for line in lines
    )


def _cell(row: Row, metric: str) -> str:
    if metric not in row.values:
        return ""
    halves = ((row.half_widths, "draws"), (row.image_half_widths, "images"))
    intervals = [f"+/- {100 * half[metric]:.2f} ({over})" for half, over in halves if metric in half]
    return " ".join([f"{100 * row.values[metric]:.2f}", *intervals])
