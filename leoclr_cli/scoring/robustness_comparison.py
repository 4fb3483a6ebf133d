"""Compare the robustness of several encoders to cropping."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from leoclr.cli.plotting.charts import Dot, Line, Panel, dot_chart, line_chart
from leoclr.cli.plotting.drawing import save_picture
from leoclr.cli.run.folder import find_checkpoint
from leoclr.cli.scoring.comparisons import compared, described
from leoclr.cli.scoring.evaluation import Evaluation
from leoclr.cli.scoring.records import FORMAT, Record, kept, path_in_run, show
from leoclr.cli.scoring.request import Outputs, Request
from leoclr.cli.terminal import progress, say, warn
from leoclr.evals.features.preprocessing import CentreCrop
from leoclr.evals.probes.linear import GRID, Normalisation
from leoclr.evals.robustness import CURVE_SHARES, RandomCrop, cut_share, square_part
from leoclr.evals.robustness_score import Part, ProbeKind, robustness_score
from leoclr.evals.scores import Score
from leoclr.evals.tables import results_table

_SUBTITLE = "top-1 in per cent on centre and random crops of the test images, 95 % intervals over draws of the crops"
_CURVE_SUBTITLE = "centre crop minus random square parts of a fixed share of the area; bands: 95 % over draws"


@dataclass(frozen=True)
class CropSeries:
    """Which crops are tested, and by what.

    Attributes:
        scale: Range of the share of the area that a random crop keeps.
        draws: How often all crops are drawn.
        curve: Whether square parts of fixed shares are tested too.
        chunk: Similarities that k-NN holds at a time.
    """

    scale: tuple[float, float]
    draws: int
    curve: bool
    probe: ProbeKind
    normalise: Normalisation
    chunk: int


@dataclass(frozen=True)
class Measured:
    """The score of one encoder and its record."""

    name: str
    score: Score
    record: Record

    def figure(self, row: str) -> tuple[float, float | None]:
        """Top-1 of a row in per cent, and half of its interval over the draws, if it has one."""
        values = self.record["results"][row]
        half = values.get("top1_half_width")
        return 100 * values["top1"], None if half is None else 100 * half


def measure_one(request: Request, crops: CropSeries, outputs: Outputs) -> None:
    """Score one encoder, print and keep that; with a curve also its picture, beside the record."""
    evaluation = Evaluation(request)
    score, images = _measure(evaluation, crops)
    record, path = evaluation.report("robustness", score, images, outputs)
    if crops.curve and path is not None:
        name = _names([evaluation.encoder.run or Path(evaluation.encoder.source)])[0]
        _save(_curve_chart([Measured(name, score, record)]), path.with_suffix(".png"))


def compare(request: Request, checkpoints: Sequence[Path], crops: CropSeries, output: Path, as_json: bool) -> None:
    """Score several encoders: each record is kept with its run, all of them in `output`, the pictures beside it."""
    for checkpoint in checkpoints:
        find_checkpoint(checkpoint)  # the last one is not found missing after hours
    measured = []
    for checkpoint, name in zip(checkpoints, _names(checkpoints), strict=True):
        say(f"{name}: {checkpoint}")
        measured.append(_measure_and_keep(replace(request, checkpoint=checkpoint), crops, name))
    together = {
        "format": FORMAT,
        "kind": "robustness-comparison",
        "scores": {one.name: one.record for one in measured},
        "comparisons": compared({one.name: one.score.predictions for one in measured}, ("centre", "random, draw 0")),
        "notes": _differences(measured),
    }
    with kept(together, output):
        show(together, as_json, _text)
    _save(_dots(measured), output.with_suffix(".png"))
    if crops.curve:
        _save(_curve_chart(measured), output.with_name(f"{output.stem}-curve.png"))


def _measure_and_keep(request: Request, crops: CropSeries, name: str) -> Measured:
    evaluation = Evaluation(request)
    score, images = _measure(evaluation, crops)
    record = evaluation.record("robustness", score, images)
    with kept(record, path_in_run(record, evaluation.encoder.run)):
        for note in record["notes"]:
            warn(f"{name}: {note}")
    return Measured(name, score, record)


def _measure(evaluation: Evaluation, crops: CropSeries) -> tuple[Score, list[str]]:
    size, seed = evaluation.encoder.image_size, evaluation.request.seed
    centre, draws = CentreCrop(size), range(crops.draws)
    views = [RandomCrop(size, seed, draw, crops.scale) for draw in draws]
    shares = CURVE_SHARES if crops.curve else ()
    train, test = evaluation.train_features(centre), evaluation.test_features(centre)
    cropped = [evaluation.test_features(view) for view in views]
    curve = [
        # Of the whole area there is one part only.
        Part(
            share,
            cut_share(size, share),
            [
                evaluation.test_features(square_part(size, seed, draw, share))
                for draw in (draws if share < 1 else draws[:1])
            ],
        )
        for share in shares
    ]
    with progress(f"{crops.probe} probe", len(GRID) + 1 if crops.probe == "linear" else None, "fits") as advance:
        score = robustness_score(
            train,
            test,
            cropped,
            curve,
            probe=crops.probe,
            normalise=crops.normalise,
            seed=seed,
            device=evaluation.device,
            chunk=crops.chunk,
            advance=advance,
        )
    last = f" to {views[-1].draw}" if len(views) > 1 else ""
    images = [f"centre: {centre.protocol}", f"random: {views[0].protocol}{last}"]
    if curve:
        images.append(f"square parts: {square_part(size, seed, 0, curve[0].share).protocol}{last}, and so on")
    return score, images


def _names(paths: Sequence[Path]) -> list[str]:
    """The last part of each path, or as many as it takes to tell them apart."""
    parts = [path.resolve().parts for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        names = [os.path.join(*part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{number}: {path}" for number, path in enumerate(paths, start=1)]  # the same one twice


def _differences(measured: Sequence[Measured]) -> list[str]:
    """What keeps the figures from being compared."""
    notes = []
    for split in ("train", "test"):
        if len({one.record["data"][split]["digest"] for one in measured}) > 1:
            notes.append(f"the encoders were scored on different {split} data; the figures cannot be compared")
    if len({one.record["checkpoint"]["image_size"] for one in measured}) > 1:
        notes.append("the encoders take images of different sizes; the crops differ in more than the encoder")
    return notes


def _text(together: Mapping[str, Any]) -> str:
    scores = together["scores"]
    lines = [line for pair in together["comparisons"] for line in described(pair)]
    return "\n".join([results_table(scores), "", *lines, "", *next(iter(scores.values()))["protocol"]])


def _dots(measured: Sequence[Measured]) -> Image.Image:
    titles = {"centre": "centre crop", "random": "random crop", "drop": "drop, in points"}
    panels = [Panel(title, tuple(Dot(one.name, *one.figure(row)) for one in measured)) for row, title in titles.items()]
    return dot_chart("What random crops cost", _SUBTITLE, panels)


def _curve_chart(measured: Sequence[Measured]) -> Image.Image:
    lines = []
    for one in measured:
        cut: dict[str, float] = one.record["details"]["parts"]
        centre, _ = one.figure("centre")
        figures = [one.figure(row) for row in cut]
        halves = tuple(half or 0.0 for _, half in figures)
        drops = tuple(centre - value for value, _ in figures)
        lines.append(Line(one.name, tuple(100 * share for share in cut.values()), drops, halves if any(halves) else ()))
    return line_chart(
        "What a smaller part of the image costs",
        _CURVE_SUBTITLE,
        lines,
        "share of the area that is seen, %",
        "drop in top-1, points",
        logarithmic=True,
    )


def _save(picture: Image.Image, path: Path) -> None:
    save_picture(picture, path)
    say(f"written to {path}")
