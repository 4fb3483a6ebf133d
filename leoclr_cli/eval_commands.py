"""`leoclr eval`: how good the features of a frozen encoder are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from leoclr.cli.command import LeoclrCommand
from leoclr.datasets.errors import EvaluationError

if TYPE_CHECKING:
    from leoclr.cli.evaluation import Request

_HELP = """Score a frozen encoder: k-NN, linear probe, robustness to cropping.

Without an argument the newest run is scored, on its own data. Features are computed once and kept.

\b
Examples:
  leoclr eval knn
  leoclr eval linear runs/first
  leoclr eval robustness --crop random
"""

app = typer.Typer(help=_HELP, no_args_is_help=True)

_SIMILARITIES_PER_MIB = 2**18

Crop = Literal["random"]
Probe = Literal["linear", "knn"]

Checkpoint = Annotated[
    Path | None,
    typer.Argument(
        metavar="CHECKPOINT", help="Run, checkpoint, exported file or state dict; the newest run when left out."
    ),
]
TrainData = Annotated[
    list[str] | None,
    typer.Option(
        "--train-data",
        metavar="SHARDS",
        help="Labelled data for the classifier; the run's own when left out. Quote ranges and globs. Repeatable.",
    ),
]
Data = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        metavar="SHARDS",
        help="Labelled test data; when left out the run's, the val or test split beside the training data, or a "
        "fifth of it. Repeatable.",
    ),
]
Backbone = Annotated[
    str | None, typer.Option("--backbone", metavar="NAME", help="Architecture of a state dict that does not tell it.")
]
ImageSize = Annotated[
    int | None,
    typer.Option(
        "--image-size", min=8, metavar="PIXELS", help="Side of the images, in pixels; as in training if not given."
    ),
]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, metavar="N", help="Images in a forward pass.")]
Device = Annotated[str, typer.Option("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N.")]
Precision = Annotated[Literal["float32", "bf16"], typer.Option("--precision", help="Of the forward pass.")]
Workers = Annotated[
    int, typer.Option("--workers", min=-1, metavar="N", help="Loader processes; -1 chooses. No figure depends on it.")
]
Seed = Annotated[
    int, typer.Option("--seed", min=0, metavar="N", help="Of every choice at random: hold-outs and crops.")
]
NoCache = Annotated[
    bool,
    typer.Option(
        "--no-cache",
        help="Neither read nor keep features. They are kept in RUN/features, those of other weights in the user's "
        "cache folder, at most 8 GiB in each.",
    ),
]
Memory = Annotated[
    int, typer.Option("--memory", min=1, metavar="MIB", help="MiB that k-NN's similarities may take at a time.")
]
Normalise = Annotated[
    Literal["standard", "l2"],
    typer.Option("--normalise", help="Features to zero mean and unit variance, or to unit length."),
]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="FILE", help="JSON file; in RUN/evals when left out.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the JSON instead of the table.")]


@app.command(cls=LeoclrCommand, short_help="Classify images by their neighbours.")
def knn(
    checkpoint: Checkpoint = None,
    train_data: TrainData = None,
    data: Data = None,
    memory: Memory = 256,
    backbone: Backbone = None,
    image_size: ImageSize = None,
    batch_size: BatchSize = 256,
    device: Device = "auto",
    precision: Precision = "float32",
    workers: Workers = -1,
    seed: Seed = 0,
    no_cache: NoCache = False,
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Classify test images by their nearest training images: k = 200 weighted, and k = 20 by majority.

    \b
    Examples:
      leoclr eval knn
      leoclr eval knn runs/first --train-data shards/train --data shards/test
      leoclr eval knn resnet18.pth --train-data 'shards/train-{000..009}.tar' --data shards/test --json
    """
    from leoclr.cli.evaluation import Evaluation
    from leoclr.evals.preprocessing import standard_view
    from leoclr.evals.scores import knn_score

    request = _request(
        checkpoint, train_data, data, backbone, image_size, batch_size, device, precision, workers, seed, no_cache
    )
    evaluation = Evaluation(request)
    view = standard_view(evaluation.encoder.image_size)
    train, test = evaluation.train_features(view), evaluation.test_features(view)
    score = knn_score(train, test, device=evaluation.device, chunk=memory * _SIMILARITIES_PER_MIB)
    evaluation.report("knn", score, [f"images: {view.protocol}"], output, as_json)


@app.command(cls=LeoclrCommand, short_help="Logistic regression on the features.")
def linear(
    checkpoint: Checkpoint = None,
    train_data: TrainData = None,
    data: Data = None,
    normalise: Normalise = "standard",
    backbone: Backbone = None,
    image_size: ImageSize = None,
    batch_size: BatchSize = 256,
    device: Device = "auto",
    precision: Precision = "float32",
    workers: Workers = -1,
    seed: Seed = 0,
    no_cache: NoCache = False,
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Train logistic regression on the features; its regularisation is chosen on a part of the training data.

    \b
    Examples:
      leoclr eval linear
      leoclr eval linear runs/first --train-data shards/train --data shards/test
      leoclr eval linear encoder.safetensors --train-data shards/train --normalise l2 -o linear.json
    """
    from leoclr.cli.console import progress
    from leoclr.cli.evaluation import Evaluation
    from leoclr.evals.linear import GRID
    from leoclr.evals.preprocessing import standard_view
    from leoclr.evals.scores import linear_score

    request = _request(
        checkpoint, train_data, data, backbone, image_size, batch_size, device, precision, workers, seed, no_cache
    )
    evaluation = Evaluation(request)
    view = standard_view(evaluation.encoder.image_size)
    train, test = evaluation.train_features(view), evaluation.test_features(view)
    with progress("linear probe", len(GRID) + 1, "fits") as advance:
        score = linear_score(train, test, normalise=normalise, seed=seed, advance=advance)
    evaluation.report("linear", score, [f"images: {view.protocol}"], output, as_json)


@app.command(cls=LeoclrCommand, short_help="What random crops cost.")
def robustness(
    checkpoint: Checkpoint = None,
    train_data: TrainData = None,
    data: Data = None,
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
    backbone: Backbone = None,
    image_size: ImageSize = None,
    batch_size: BatchSize = 256,
    device: Device = "auto",
    precision: Precision = "float32",
    workers: Workers = -1,
    seed: Seed = 0,
    no_cache: NoCache = False,
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
    request = _request(
        checkpoint, train_data, data, backbone, image_size, batch_size, device, precision, workers, seed, no_cache
    )
    evaluation = Evaluation(request)
    size = evaluation.encoder.image_size
    centre, crops = CentreCrop(size), [RandomCrop(size, seed + draw, crop_scale) for draw in range(crop_seeds)]
    train, test = evaluation.train_features(centre), evaluation.test_features(centre)
    cropped = [evaluation.test_features(view) for view in crops]
    with progress(f"{probe} probe", len(GRID) + 1 if probe == "linear" else None, "fits") as advance:
        score = robustness_score(
            train,
            test,
            cropped,
            probe=probe,
            normalise=normalise,
            seed=seed,
            device=evaluation.device,
            chunk=memory * _SIMILARITIES_PER_MIB,
            advance=advance,
        )
    images = [f"centre: {centre.protocol}", f"random: {crops[0].protocol} to {crops[-1].seed}"]
    evaluation.report("robustness", score, images, output, as_json)


def _request(
    checkpoint: Path | None,
    train_data: list[str] | None,
    data: list[str] | None,
    backbone: str | None,
    image_size: int | None,
    batch_size: int,
    device: str,
    precision: Literal["float32", "bf16"],
    workers: int,
    seed: int,
    no_cache: bool,
) -> Request:
    from leoclr.cli.evaluation import Request

    return Request(
        checkpoint=checkpoint,
        train_data=tuple(train_data or ()),
        data=tuple(data or ()),
        backbone=backbone,
        image_size=image_size,
        batch_size=batch_size,
        device=device,
        precision=precision,
        workers=workers,
        seed=seed,
        cache=not no_cache,
    )
