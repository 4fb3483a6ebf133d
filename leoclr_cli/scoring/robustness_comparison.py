"""What random crops cost several encoders: each measured by itself, then set beside each other."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from leoclr.cli.plotting.charts import Dot, Line, Panel, dot_chart, line_chart
from leoclr.cli.run.folder import resolve_checkpoint
from leoclr.cli.scoring.evaluation import FORMAT, Evaluation
from leoclr.cli.scoring.records import keep_and_show, write_record
from leoclr.cli.scoring.request import Request
from leoclr.cli.terminal import progress, say, warn
from leoclr.datasets.errors import RunError
from leoclr.datasets.files import atomic_path
from leoclr.evals.features.preprocessing import CentreCrop
from leoclr.evals.probes.linear import GRID, Normalisation
from leoclr.evals.robustness import CURVE_SHARES, RandomCrop, cut_share, square_part
from leoclr.evals.robustness_score import Part, ProbeKind, robustness_score
from leoclr.evals.scores import Row, Score
from leoclr.evals.tables import score_table

_SCORED = "pooled features of {}, before the projector"
_SUBTITLE = "top-1 in per cent on centre and random crops of the test images, 95 % intervals over draws of the crops"
_CURVE_SUBTITLE = "centre crop minus random square parts of a fixed share of the area; bands: 95 % over draws"


@dataclass(frozen=True)
class Crops:
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
    """The score of one encoder, its record, and where that was written, if anywhere."""

    name: str
    score: Score
    record: dict[str, Any]
    path: Path | None

    def row(self, key: str) -> Row:
        return next(row for row in self.score.rows if row.key == key)


def measure_one(request: Request, crops: Crops, output: Path | None, as_json: bool) -> None:
    """Score one encoder, print and keep that; with a curve also its picture, beside the record."""
    evaluation = Evaluation(request)
    score, images = _measure(evaluation, crops)
    evaluation.report("robustness", score, images, output, as_json, _SCORED)
    record = evaluation.record("robustness", score, images, _SCORED)
    path = output or evaluation.record_path("robustness", record)
    if crops.curve and path is not None:
        name = _names([evaluation.encoder.run or Path(evaluation.encoder.source)])[0]
        _save(_curve_chart([Measured(name, score, record, path)]), path.with_suffix(".png"))


def compare(request: Request, checkpoints: Sequence[Path], crops: Crops, output: Path, as_json: bool) -> None:
    """Score several encoders: each record is kept with its run, all of them in `output`, the pictures beside it."""
    for checkpoint in checkpoints:
        resolve_checkpoint(checkpoint)  # the last one is not found missing after hours
    measured = []
    for checkpoint, name in zip(checkpoints, _names(checkpoints), strict=True):
        say(f"{name}: {checkpoint}")
        measured.append(_measure_and_keep(replace(request, checkpoint=checkpoint), crops, name))
    notes = _differences(measured)
    for note in [*notes, *(f"{one.name}: {note}" for one in measured for note in one.record["notes"])]:
        warn(note)
    together = {
        "format": FORMAT,
        "kind": "robustness-comparison",
        "scores": {one.name: one.record for one in measured},
        "notes": notes,
    }
    keep_and_show(output, together, None if as_json else _text(measured))
    _save(_dots(measured), output.with_suffix(".png"))
    if crops.curve:
        _save(_curve_chart(measured), output.with_name(f"{output.stem}-curve.png"))


def _measure_and_keep(request: Request, crops: Crops, name: str) -> Measured:
    evaluation = Evaluation(request)
    score, images = _measure(evaluation, crops)
    record = evaluation.record("robustness", score, images, _SCORED)
    path = evaluation.record_path("robustness", record)
    if path is not None:
        write_record(path, record)
        say(f"written to {path}")
    return Measured(name, score, record, path)


def _measure(evaluation: Evaluation, crops: Crops) -> tuple[Score, list[str]]:
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


def _text(measured: Sequence[Measured]) -> str:
    rows = []
    for one in measured:
        rows += [replace(row, key=f"{one.name} {row.key}", label=f"{one.name}, {row.label}") for row in one.score.rows]
    first = measured[0].record
    return "\n".join([score_table(Score(tuple(rows), (), {})), "", *first["protocol"]])


def _dots(measured: Sequence[Measured]) -> Image.Image:
    panels = []
    for key, title in (("centre", "centre crop"), ("random", "random crop"), ("drop", "drop, in points")):
        found = [(one.name, one.row(key)) for one in measured]
        dots = (Dot(name, 100 * row.values["top1"], _percent(row)) for name, row in found)
        panels.append(Panel(title, tuple(dots)))
    return dot_chart("What random crops cost", _SUBTITLE, panels)


def _curve_chart(measured: Sequence[Measured]) -> Image.Image:
    lines = []
    for one in measured:
        centre = one.row("centre").values["top1"]
        cut = one.score.details["parts"]
        parts = {cut[row.key]: row for row in one.score.rows if row.key in cut}
        drops = tuple(100 * (centre - row.values["top1"]) for row in parts.values())
        halves = tuple(_percent(row) or 0.0 for row in parts.values())
        lines.append(Line(one.name, tuple(parts), drops, halves if any(halves) else ()))
    return line_chart(
        "What a smaller part of the image costs",
        _CURVE_SUBTITLE,
        lines,
        "share of the area that is seen",
        "drop in top-1, points",
        logarithmic=True,
    )


def _percent(row: Row) -> float | None:
    return 100 * row.half_widths["top1"] if "top1" in row.half_widths else None


def _save(picture: Image.Image, path: Path) -> None:
    try:
        with atomic_path(path) as temporary:
            picture.save(temporary, format="PNG")
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror or error})") from None
    say(f"written to {path}")
