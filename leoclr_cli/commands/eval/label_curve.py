"""`leoclr eval label-curve`: accuracy over the share of labels, for several encoders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from leoclr.cli.run.folder import existing_weights
from leoclr.cli.scoring.request import (
    TRAIN_BATCH,
    AsJson,
    BackboneRate,
    Epochs,
    HeadRate,
    Output,
    Request,
    TrainBatch,
    with_request,
)


@with_request("checkpoint")
def label_curve(
    request: Request,
    checkpoints: Annotated[
        list[Path] | None,
        typer.Argument(metavar="CHECKPOINT", help="Runs, checkpoints or files; default: the newest run."),
    ] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option(
            "--labels",
            metavar="SHARE",
            help="Share of the labels; default: 1, 2, 5, 10, 20, 50, 100%. Repeatable.",
        ),
    ] = None,
    epochs: Epochs = None,
    backbone_lr: BackboneRate = None,
    head_lr: HeadRate = None,
    train_batch: TrainBatch = TRAIN_BATCH,
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Fine-tune each encoder with growing shares of the labels and draw the curves (the paper's Figure 5).

    Points finished here or by `leoclr eval semisup` are not repeated. The picture is written beside the JSON file.

    \b
    Examples:
      leoclr eval label-curve runs/leoclr runs/baseline
      leoclr eval label-curve runs/leoclr --labels 1% --labels 10% --epochs 10 -o curve.json
    """
    existing_weights(checkpoints)
    from leoclr.cli.scoring.label_curve import SHARES, draw_curves, measure, report_curves

    percents = labels or [f"{share}%" for share in SHARES]
    curves = measure(request, checkpoints or [None], percents, (epochs, backbone_lr, head_lr, train_batch))
    path = report_curves(curves, output, as_json)
    draw_curves(curves, path.with_suffix(".png"))
