"""`leoclr eval robustness`: the accuracy lost on random crops."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from leoclr.cli.commands.base.flags import refuse_without_effect
from leoclr.cli.run.folder import existing_weights
from leoclr.cli.scoring.request import (
    MEMORY,
    SIMILARITIES_PER_MIB,
    AsJson,
    Memory,
    Normalise,
    Outputs,
    PredictionsFile,
    Request,
    with_request,
)
from leoclr.datasets.errors import EvaluationError

Crop = Literal["random"]
Probe = Literal["linear", "knn"]


@with_request("checkpoint")
def robustness(
    request: Request,
    checkpoints: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="CHECKPOINT",
            help="Runs, checkpoints, exported files or state dicts, one or several; default: the newest run.",
        ),
    ] = None,
    crop: Annotated[Crop, typer.Option("--crop", help="Crop that is compared with the centre crop.")] = "random",
    crop_scale: Annotated[
        tuple[float, float],
        typer.Option(
            "--crop-scale",
            metavar="LOW HIGH",
            help="Range of a random crop's share of the area; torchvision's, as the paper states none.",
        ),
    ] = (0.08, 1.0),
    crop_seeds: Annotated[
        int, typer.Option("--crop-seeds", min=1, metavar="N", help="Number of draws of all crops.")
    ] = 5,
    curve: Annotated[
        bool,
        typer.Option("--curve", help="Also test square parts of about 8 % to 100 % of the area, and draw the drop."),
    ] = False,
    probe: Annotated[Probe, typer.Option("--probe", help="Classifier; trained on centre crops.")] = "linear",
    normalise: Normalise = "standard",
    memory: Memory = MEMORY,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            dir_okay=False,
            metavar="FILE",
            help="JSON file, pictures beside it; default: in RUN/evals, or robustness.json for several encoders.",
        ),
    ] = None,
    predictions: PredictionsFile = None,
    as_json: AsJson = False,
) -> None:
    """Measure the accuracy lost on random instead of centre crops of the test images (the paper's Table 7).

    Several checkpoints share one table and one picture, and are compared image by image with the first (McNemar's
    test).

    \b
    Examples:
      leoclr eval robustness --crop random
      leoclr eval robustness runs/leoclr runs/baseline --curve -o table7.json
      leoclr eval robustness runs/first --crop-scale 0.2 1 --crop-seeds 10
      leoclr eval robustness runs/first --probe knn --train-data shards/train --data shards/test
    """
    existing_weights(checkpoints)
    from leoclr.cli.scoring.robustness_comparison import CropSeries, compare, measure_one

    if not 0 < crop_scale[0] <= crop_scale[1] <= 1:
        raise EvaluationError(f"--crop-scale {crop_scale[0]:g} {crop_scale[1]:g}: two shares in (0, 1], low then high")
    if probe == "knn":
        refuse_without_effect("with --probe knn", {"--normalise": normalise != "standard"})
    else:
        refuse_without_effect("without --probe knn", {"--memory": memory != MEMORY})
    crops = CropSeries(crop_scale, crop_seeds, curve, probe, normalise, memory * SIMILARITIES_PER_MIB)
    if checkpoints and len(checkpoints) > 1:
        if predictions is not None:
            raise EvaluationError("--predictions is for one checkpoint at a time; several are compared as they are")
        compare(request, checkpoints, crops, output or Path("robustness.json"), as_json)
    else:
        request = replace(request, checkpoint=checkpoints[0] if checkpoints else None)
        measure_one(request, crops, Outputs(output, predictions, as_json))
