"""`leoclr eval robustness`: what random crops cost."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from leoclr.cli.eval_options import SIMILARITIES_PER_MIB, AsJson, Memory, Normalise, Output, Request, with_request
from leoclr.datasets.errors import EvaluationError

Crop = Literal["random"]
Probe = Literal["linear", "knn"]


@with_request()
def robustness(
    request: Request,
    crop: Annotated[Crop, typer.Option("--crop", help="What is set beside the centre crop.")] = "random",
    crop_scale: Annotated[
        tuple[float, float],
        typer.Option(
            "--crop-scale",
            metavar="LOW HIGH",
            help="Share of the area that a random crop keeps. The paper names none; these are torchvision's.",
        ),
    ] = (0.08, 1.0),
    crop_seeds: Annotated[
        int, typer.Option("--crop-seeds", min=1, metavar="N", help="How often all crops are drawn.")
    ] = 5,
    probe: Annotated[Probe, typer.Option("--probe", help="Classifier, trained on centre crops.")] = "linear",
    normalise: Normalise = "standard",
    memory: Memory = 256,
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Measure what random instead of centre crops of the test images cost (the paper's Table 7).

    \b
    Examples:
      leoclr eval robustness --crop random
      leoclr eval robustness runs/first --crop-scale 0.2 1 --crop-seeds 10
      leoclr eval robustness runs/first --probe knn --train-data shards/train --data shards/test
    """
    from leoclr.cli.console import progress
    from leoclr.cli.evaluation import Evaluation
    from leoclr.evals.linear import GRID
    from leoclr.evals.preprocessing import CentreCrop
    from leoclr.evals.robustness import RandomCrop
    from leoclr.evals.scores import robustness_score

    if not 0 < crop_scale[0] <= crop_scale[1] <= 1:
        raise EvaluationError(f"--crop-scale {crop_scale[0]:g} {crop_scale[1]:g}: two shares in (0, 1], low then high")
    evaluation = Evaluation(request)
    size = evaluation.encoder.image_size
    centre, crops = CentreCrop(size), [RandomCrop(size, request.seed + draw, crop_scale) for draw in range(crop_seeds)]
    train, test = evaluation.train_features(centre), evaluation.test_features(centre)
    cropped = [evaluation.test_features(view) for view in crops]
    with progress(f"{probe} probe", len(GRID) + 1 if probe == "linear" else None, "fits") as advance:
        score = robustness_score(
            train,
            test,
            cropped,
            probe=probe,
            normalise=normalise,
            seed=request.seed,
            device=evaluation.device,
            chunk=memory * SIMILARITIES_PER_MIB,
            advance=advance,
        )
    images = [f"centre: {centre.protocol}", f"random: {crops[0].protocol} to {crops[-1].seed}"]
    evaluation.report("robustness", score, images, output, as_json)
