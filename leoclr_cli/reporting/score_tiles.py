"""Figures at the top of a report: one per kind of score and protocol.

Of records with equal kind, protocol and data one is shown: that of the newest checkpoint, then that of the longest
training or the most draws, then the newest.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from leoclr.cli.reporting.run_facts import ReportedRun
from leoclr.cli.run.json_file import lines_of, number, part
from leoclr.datasets.wording import counted

_METRICS = {"top1": "top-1", "mean_per_class": "mean per class", "ap50": "AP50"}
_ORDER = ("knn", "linear", "robustness", "semisup", "transfer-linear", "transfer", "detection")
_USUAL_CROPS = "0.08-1"


@dataclass(frozen=True)
class ScoreTile:
    """A figure, and what it is of."""

    value: str
    label: str


@dataclass(frozen=True)
class _Scored:
    """What a record is about.

    Attributes:
        score: The kind of score and its protocol; "" for what has no single figure.
        row, metric: The figure that stands for it.
        effort: Epochs or steps of the training, or draws of the crops, as far as told.
        effort_label: The same in words.
    """

    score: str
    row: str
    metric: str = "top1"
    effort: float = 0.0
    effort_label: str = ""


def score_tiles(run: ReportedRun) -> list[ScoreTile]:
    """The tiles of a run's scores, by kind."""
    records = [record for _, record in sorted(run.records.items())]
    chosen: dict[tuple[str, ...], tuple[tuple[str, float, str], _Scored, Mapping[str, Any]]] = {}
    for record in records:
        scored = _scored(record)
        if not scored.score or number(_figures(record, scored.row).get(scored.metric)) is None:
            continue
        group = (scored.score, scored.metric, *(_digest(record, split) for split in ("train", "test")))
        rank = (checkpoint_name(record), scored.effort, str(record.get("date")))
        if group not in chosen or rank > chosen[group][0]:
            chosen[group] = rank, scored, record
    splits = [split for split in ("train", "test") if len({_digest(record, split) for record in records}) > 1]
    shown = sorted(chosen.items(), key=lambda item: (_place(item[1][2]), item[0]))
    return [_tile(scored, record, splits) for _, (_, scored, record) in shown]


def _tile(scored: _Scored, record: Mapping[str, Any], splits: list[str]) -> ScoreTile:
    figures = _figures(record, scored.row)
    value = number(figures.get(scored.metric)) or 0.0
    half, over = _interval(figures, scored)
    metric = "" if scored.row == "drop" else _METRICS.get(scored.metric, scored.metric)
    parts = [metric, scored.score, scored.effort_label]
    parts += [f"{'trained' if split == 'train' else 'tested'} on {_source(record, split)}" for split in splits]
    shown = f"{100 * value:.1f} %" if half is None else f"{100 * value:.1f} ± {100 * half:.1f} %"
    return ScoreTile(shown, ", ".join(filter(None, [*parts, over])))


def _scored(record: Mapping[str, Any]) -> _Scored:
    details, kind = part(record, "details"), str(record.get("kind"))
    epochs = number(details.get("epochs")) or _epochs(record)
    trained = counted(round(epochs), "epoch") if epochs else ""
    probe = "linear probe" if "c" in details or "learning_rate" in details else "k-NN"
    if details.get("normalise") == "l2":
        probe += " on features of unit length"
    match kind:
        case "knn":
            k = details.get("k")
            whitened = " on whitened features" if details.get("whitened") is True else ""
            return _Scored(f"k-NN{whitened}" + (f", k = {k[0]}" if isinstance(k, list) and k else ""), "weighted")
        case "linear" if "learning_rate" in details:
            return _Scored("linear probe by SGD", "linear", effort=epochs, effort_label=trained)
        case "linear":
            return _Scored(probe, "linear")
        case "robustness":
            draws = part(details, "random").get("top1")
            count = len(draws) if isinstance(draws, list) else 0
            scale = _crops(record)
            score = f"drop on random crops{'' if scale == _USUAL_CROPS else f' of {scale} of the area'}, {probe}"
            return _Scored(score, "drop", effort=count, effort_label=f"{count} draws" if count else "")
        case "semisup":
            share = number(details.get("share"))
            of = f" with {100 * share:.3g} % of the labels" if share is not None else ""
            return _Scored(f"fine-tuned{of}", "finetuned", effort=epochs, effort_label=trained)
        case "transfer" | "transfer-linear":
            row, score = ("finetuned", "fine-tuned") if kind == "transfer" else ("linear", "linear probe")
            metric = "mean_per_class" if details.get("metric") == "mean_per_class" else "top1"
            effort = (epochs, trained) if kind == "transfer" else (0.0, "")
            return _Scored(f"transfer to {details.get('data_set', '?')}, {score}", row, metric, *effort)
        case "detection":
            steps = number(part(details, "recipe").get("iterations")) or 0.0
            trained = counted(round(steps), "step") if steps else ""
            from_random = details.get("random") is True or "from random weights" in " ".join(_protocol(record))
            score = f"detection{', from random weights' if from_random else ''}"
            return _Scored(score, "detection", "ap50", effort=steps, effort_label=trained)
        case "label-curve":
            return _Scored("", "")  # a chart of its own
    results = part(record, "results")
    return _Scored(kind, next(iter(results), ""))


def _place(record: Mapping[str, Any]) -> int:
    kind = record.get("kind")
    return _ORDER.index(kind) if kind in _ORDER else len(_ORDER)


def _interval(figures: Mapping[str, Any], scored: _Scored) -> tuple[float | None, str]:
    """Half of a 95 % interval, over the test images where that is told."""
    if (half := number(figures.get(f"{scored.metric}_image_half_width"))) is not None:
        return half, ""
    if (half := number(figures.get(f"{scored.metric}_half_width"))) is not None:
        return half, "± over draws"
    return None, ""


def _figures(record: Mapping[str, Any], row: str) -> Mapping[str, Any]:
    return part(record, "results", row)


def _digest(record: Mapping[str, Any], split: str) -> str:
    return str(part(record, "data", split).get("digest"))


def _source(record: Mapping[str, Any], split: str) -> str:
    source = part(record, "data", split).get("source")
    first = str(source[0]) if isinstance(source, list) and source else "?"
    return "/".join(PurePosixPath(first).parts[-2:])


def checkpoint_name(record: Mapping[str, Any]) -> str:
    """Such as step-000001000, which sorts by age."""
    return PurePosixPath(str(part(record, "checkpoint").get("path"))).name


def _epochs(record: Mapping[str, Any]) -> float:
    """Epochs of the training behind a score, which older records tell in their protocol alone."""
    found = re.search(r"\b(\d[\d,]*) epochs?\b", " ".join(_protocol(record)))
    return float(found[1].replace(",", "")) if found else 0.0


def _crops(record: Mapping[str, Any]) -> str:
    found = re.search(r"(?:part|crop) of ([\d.]+(?:-[\d.]+)?) of the area", " ".join(_protocol(record)))
    return found[1] if found else _USUAL_CROPS


def _protocol(record: Mapping[str, Any]) -> list[str]:
    return lines_of(record.get("protocol"))
