"""Accuracy over the share of labels: measured for several encoders, printed and drawn as Figure 5."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from leoclr.cli.plotting.charts import Line, line_chart
from leoclr.cli.plotting.drawing import save_picture
from leoclr.cli.run.folder import RunFolder
from leoclr.cli.scoring.comparisons import compared, described
from leoclr.cli.scoring.evaluation import Evaluation
from leoclr.cli.scoring.finetuning import FINETUNED, Finetuned, finetuned, label_recipe
from leoclr.cli.scoring.records import FORMAT, Record, kept, path_in_run, show, write_record
from leoclr.cli.scoring.request import Request
from leoclr.cli.terminal import say
from leoclr.datasets.errors import EvaluationError
from leoclr.datasets.wording import aligned, counted
from leoclr.evals.finetuning.label_subsets import LabelSubset, balanced_subset, parse_percent
from leoclr.evals.scores import Row, Score
from leoclr.evals.tables import METRICS, cell

SHARES = (1, 2, 5, 10, 20, 50, 100)  # the paper's, in per cent
KIND = "label-curve"
_DRAWN = ("top1", "top5")


@dataclass(frozen=True)
class CurvePoint:
    """What was reached with some of the labels.

    Attributes:
        percents: The shares that were asked for and come to these images.
        images: How many have labels.
        share: Of the training images, in per cent.
    """

    percents: tuple[float, ...]
    images: int
    share: float
    found: Finetuned

    @property
    def key(self) -> str:
        """Its name in records: the smallest share that was asked for."""
        return f"{self.percents[0]:g}%"

    @property
    def label(self) -> str:
        """The shares that were asked for."""
        return ", ".join(f"{percent:g} %" for percent in self.percents)


@dataclass(frozen=True)
class Curve:
    """An encoder's points, from few labels to many, and the record that says what they are of."""

    name: str
    run: Path | None
    points: tuple[CurvePoint, ...]
    record: Record


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
    first run's `evals` folder, else in the working folder. The curve of each further run is kept in that run, too."""
    predictions = {curve.name: {point.key: point.found.predicted for point in curve.points} for curve in curves}
    record = {
        "format": FORMAT,
        "kind": KIND,
        "curves": [curve.record for curve in curves],
        "comparisons": compared(predictions, [point.key for point in curves[0].points]),
        "notes": sorted({note for curve in curves for note in curve.record["notes"]}),
    }
    path = output or _default_path(curves)
    with kept(record, path):
        show(record, as_json, lambda shown: "\n".join(_text(curves, shown)))
    for curve in curves if output else curves[1:]:
        if (own := path_in_run(curve.record, curve.run)) is not None:
            write_record(own, curve.record)
    return path


def draw_curves(curves: Sequence[Curve], path: Path) -> None:
    """Figure 5: top-1 beside top-5 over the share of the labels, which is on a logarithmic scale."""
    charts = [
        line_chart(
            f"{METRICS[metric].removesuffix(' %')} accuracy with a part of the labels",
            f"fine-tuned, {curves[0].record['data']['test']['samples']:,} test images",
            [
                Line(
                    curve.name,
                    tuple(point.share for point in curve.points),
                    tuple(100 * point.found.metrics[metric] for point in curve.points),
                )
                for curve in curves
            ],
            "labels, % of the training images",
            METRICS[metric],
            logarithmic=True,
        )
        for metric in _DRAWN
        if all(metric in point.found.metrics for curve in curves for point in curve.points)
    ]
    picture = Image.new("RGB", (sum(chart.width for chart in charts), charts[0].height))
    for number, chart in enumerate(charts):
        picture.paste(chart, (number * charts[0].width, 0))
    save_picture(picture, path)
    say(f"written to {path}")


def _curve(
    evaluation: Evaluation,
    name: str,
    shares: Sequence[float],
    options: tuple[int | None, float | None, float | None, int],
) -> Curve:
    data, view = evaluation.data, evaluation.encoder.view
    subsets: dict[bytes, tuple[LabelSubset, list[float]]] = {}
    for share in shares:  # of few images, several shares come to the same ones
        subset = balanced_subset(data.train, share / 100, evaluation.request.seed)
        subsets.setdefault(subset.numbers.tobytes(), (subset, []))[1].append(share)
    points, recipes = [], dict[str, list[str]]()
    for subset, percents in subsets.values():
        recipe = label_recipe(subset.share, len(subset.numbers), *options)
        train = data.train.subset(subset.numbers)
        found = finetuned(evaluation, train, data.test, recipe, f"{name}, {percents[0]:g} %")
        points.append(CurvePoint(tuple(percents), len(train), 100 * len(train) / len(data.train), found))
        recipes.setdefault(recipe.protocol, []).append(points[-1].label)
    protocol = (
        f"the same share of each class's labels (seed {evaluation.request.seed}), larger shares holding smaller ones",
        *(f"{', '.join(labels)}: {recipe}" for recipe, labels in recipes.items()),
        f"training images: {evaluation.crops(data.train, 1).protocol}",
    )
    rows = tuple(
        Row(point.key, f"{point.label}: {counted(point.images, 'label')}", point.found.metrics) for point in points
    )
    details = {
        "points": {point.key: point.found.summary for point in points},
        "shares": {point.key: {"asked": point.percents, "labelled": point.share / 100} for point in points},
    }
    notes = tuple(
        f"{' and '.join(f'{percent:g} %' for percent in point.percents)} of the labels are the same {point.images:,} "
        "images, as every class keeps one at least: one point"
        for point in points
        if len(point.percents) > 1
    )
    predictions = {point.key: point.found.predicted for point in points}
    score = Score(rows, protocol, details, notes, predictions)
    record = evaluation.record(KIND, score, [f"test images: {view.protocol}"], FINETUNED)
    return Curve(name, evaluation.encoder.run, tuple(points), record)


def _names(evaluations: Sequence[Evaluation]) -> list[str]:
    """The runs' or files' names; their paths where names are equal."""
    paths = [evaluation.encoder.run or Path(evaluation.encoder.source) for evaluation in evaluations]
    names = [path.resolve().name for path in paths]
    return names if len(set(names)) == len(names) else [evaluation.encoder.source for evaluation in evaluations]


def _text(curves: Sequence[Curve], record: Mapping[str, Any]) -> Iterator[str]:
    points = curves[0].points
    metrics = [metric for metric in METRICS if all(metric in point.found.metrics for point in points)]
    lines = [["labels", "images", *(f"{curve.name} {METRICS[metric]}" for curve in curves for metric in metrics)]]
    for point in points:
        results = [curve.record["results"][point.key] for curve in curves]
        cells = [cell(values, metric) for values in results for metric in metrics]
        lines.append([point.label, f"{point.images:,}", *cells])
    yield aligned(lines)
    yield ""
    for pair in record["comparisons"]:
        yield from described(pair)
    yield from curves[0].record["protocol"]


def _default_path(curves: Sequence[Curve]) -> Path:
    same = [
        [curve.record["checkpoint"]["digest"], curve.record["protocol"]]
        + [curve.record["data"][split]["digest"] for split in ("train", "test")]
        for curve in curves
    ]
    run = curves[0].run
    if run is None:
        return Path("label-curve.json")
    return RunFolder(run).evals / f"label-curve-{hashlib.sha256(json.dumps(same).encode()).hexdigest()[:10]}.json"
