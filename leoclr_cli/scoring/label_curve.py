"""Accuracy over the share of the labels: measured for several encoders, printed side by side, drawn as Figure 5."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from leoclr.cli.plotting.charts import Line, line_chart
from leoclr.cli.run.folder import RunFolder
from leoclr.cli.scoring.evaluation import FORMAT, Evaluation
from leoclr.cli.scoring.finetuning import FINETUNED, finetuned, label_recipe, metrics_of
from leoclr.cli.scoring.records import keep_and_show
from leoclr.cli.scoring.request import Request
from leoclr.cli.terminal import say, warn
from leoclr.datasets.errors import EvaluationError, RunError
from leoclr.datasets.files import atomic_path
from leoclr.evals.features.preprocessing import standard_view
from leoclr.evals.finetuning.label_subsets import balanced_subset, parse_percent
from leoclr.evals.scores import Row, Score
from leoclr.evals.tables import METRICS, aligned

SHARES = (1, 2, 5, 10, 20, 50, 100)  # the paper's, in per cent
_DRAWN = ("top1", "top5")


@dataclass(frozen=True)
class Curve:
    """An encoder's accuracies by share of the labels, in per cent, and the record that says what they are of."""

    name: str
    run: Path | None
    points: dict[float, dict[str, float]]
    record: dict[str, Any]


def measure(
    request: Request,
    checkpoints: Sequence[Path | None],
    percents: Sequence[str],
    options: tuple[int | None, float | None, float | None, int],
) -> list[Curve]:
    """Fine-tune every encoder with every share, unless that is done already.

    Args:
        options: Epochs, learning rates of encoder and new layer, and batch, as `label_recipe` takes them.

    Raises:
        EvaluationError: The encoders have different data, or a share is none.
    """
    shares = sorted({parse_percent(percent) for percent in percents})
    evaluations = [Evaluation(replace(request, checkpoint=checkpoint)) for checkpoint in checkpoints]
    first = evaluations[0].data
    for evaluation in evaluations[1:]:
        data = evaluation.data
        if (data.train.digest, data.test.digest) != (first.train.digest, first.test.digest):
            raise EvaluationError(
                f"{evaluations[0].encoder.source} and {evaluation.encoder.source} come with different data; name the "
                "data of all with --train-data and --data"
            )
    names = _names(evaluations)
    return [_curve(evaluation, name, shares, options) for evaluation, name in zip(evaluations, names, strict=True)]


def report_curves(curves: Sequence[Curve], output: Path | None, as_json: bool) -> Path:
    """Print the points side by side, or all as JSON, and write the JSON file; where it lies: `output`, else in the
    first run's `evals` folder, else in the working folder."""
    record = {"format": FORMAT, "kind": "label-curve", "curves": [curve.record for curve in curves]}
    for note in sorted({note for curve in curves for note in curve.record["notes"]}):
        warn(note)
    path = output or _default_path(curves)
    text = None if as_json else "\n".join([_table(curves), "", *curves[0].record["protocol"]])
    keep_and_show(path, record, text)
    return path


def draw_curves(curves: Sequence[Curve], path: Path) -> None:
    """Figure 5: top-1 beside top-5 over the share of the labels, which is on a logarithmic scale."""
    charts = [
        line_chart(
            f"{METRICS[metric].removesuffix(' %')} accuracy with a part of the labels",
            f"fine-tuned, {curves[0].record['data']['test']['samples']:,} test images",
            [
                Line(curve.name, tuple(curve.points), tuple(100 * point[metric] for point in curve.points.values()))
                for curve in curves
            ],
            "labels, %",
            METRICS[metric],
            logarithmic=True,
        )
        for metric in _DRAWN
        if all(metric in point for curve in curves for point in curve.points.values())
    ]
    picture = Image.new("RGB", (sum(chart.width for chart in charts), charts[0].height))
    for number, chart in enumerate(charts):
        picture.paste(chart, (number * charts[0].width, 0))
    try:
        with atomic_path(path) as temporary:
            picture.save(temporary, "PNG")
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror}") from error
    say(f"written to {path}")


def _curve(
    evaluation: Evaluation,
    name: str,
    shares: Sequence[float],
    options: tuple[int | None, float | None, float | None, int],
) -> Curve:
    data, view = evaluation.data, standard_view(evaluation.encoder.image_size)
    found: dict[float, dict[str, Any]] = {}
    recipes: dict[str, list[str]] = {}
    for share in shares:
        subset = balanced_subset(data.train, share / 100, evaluation.request.seed)
        recipe = label_recipe(share / 100, len(subset.numbers), *options)
        train = data.train.subset(subset.numbers)
        found[share] = finetuned(evaluation, train, data.test, recipe, f"{name}, {share:g} %")
        recipes.setdefault(recipe.protocol, []).append(f"{share:g}")
    rows = tuple(Row(f"{share:g}%", f"{share:g} %", metrics_of(point)) for share, point in found.items())
    protocol = (
        f"the same share of each class's labels (seed {evaluation.request.seed}), larger shares holding smaller ones",
        *(f"{', '.join(percents)} %: {recipe}" for recipe, percents in recipes.items()),
        f"training images: {evaluation.crops(data.train, 1).protocol}",
    )
    score = Score(rows, protocol, {"points": {f"{share:g}%": point for share, point in found.items()}})
    record = evaluation.record("label-curve", score, [f"test images: {view.protocol}"], FINETUNED)
    return Curve(name, evaluation.encoder.run, {share: metrics_of(point) for share, point in found.items()}, record)


def _names(evaluations: Sequence[Evaluation]) -> list[str]:
    """The runs' or files' names; their paths where names are equal."""
    paths = [evaluation.encoder.run or Path(evaluation.encoder.source) for evaluation in evaluations]
    names = [path.resolve().name for path in paths]
    return names if len(set(names)) == len(names) else [evaluation.encoder.source for evaluation in evaluations]


def _table(curves: Sequence[Curve]) -> str:
    metrics = [metric for metric in METRICS if any(metric in p for c in curves for p in c.points.values())]
    lines = [["labels", *(f"{curve.name} {METRICS[metric]}" for curve in curves for metric in metrics)]]
    for share in curves[0].points:
        cells = [f"{100 * curve.points[share][metric]:.2f}" for curve in curves for metric in metrics]
        lines.append([f"{share:g} %", *cells])
    return aligned(lines)


def _default_path(curves: Sequence[Curve]) -> Path:
    same = [[curve.record["checkpoint"]["digest"], curve.record["protocol"]] for curve in curves]
    run = curves[0].run
    if run is None:
        return Path("label-curve.json")
    return RunFolder(run).evals / f"label-curve-{hashlib.sha256(json.dumps(same).encode()).hexdigest()[:10]}.json"
