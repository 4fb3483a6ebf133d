"""Options shared by the commands of `leoclr eval`, declared once as the fields of `Request`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from leoclr.cli.config.sections import LARGEST_SIDE
from leoclr.cli.options import with_fields
from leoclr.cli.run.folder import existing_weights

SIMILARITIES_PER_MIB = 2**18
SUFFIXES = (".csv", ".jsonl")  # of files of predictions

Checkpoint = Annotated[
    Path | None,
    typer.Argument(
        metavar="CHECKPOINT",
        help="Run, checkpoint, exported file or state dict; default: the newest run.",
    ),
]
TrainData = Annotated[
    list[str] | None,
    typer.Option(
        "--train-data",
        metavar="SHARDS",
        help="Labelled data for the classifier; default: the run's training data. Quote ranges and globs. Repeatable.",
    ),
]
Data = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        metavar="SHARDS",
        help="Labelled test data; default: the run's, the val or test split beside the training data, or a fifth of "
        "it. Repeatable.",
    ),
]
Backbone = Annotated[
    str | None,
    typer.Option("--backbone", metavar="NAME", help="Architecture of a state dict that does not identify it."),
]
ImageSize = Annotated[
    int | None,
    typer.Option(
        "--image-size",
        min=8,
        max=LARGEST_SIDE,
        metavar="PIXELS",
        help="Side of the images, in pixels; default: as in training.",
    ),
]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, metavar="N", help="Images in a forward pass.")]
Device = Annotated[str, typer.Option("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N.")]
Precision = Annotated[Literal["float32", "bf16"], typer.Option("--precision", help="Precision of the forward pass.")]
Workers = Annotated[
    int,
    typer.Option(
        "--workers", min=-1, metavar="N", help="Loader processes; -1: automatic. Results do not depend on it."
    ),
]
Seed = Annotated[
    int,
    typer.Option("--seed", min=0, max=2**32 - 1, metavar="N", help="Seed of all random choices: hold-outs and crops."),
]
NoCache = Annotated[
    bool,
    typer.Option(
        "--no-cache",
        help="Do not use the cache of features and trained classifiers, which is in the run folder, or for other "
        "weights in the user's cache folder, with at most 8 GiB of features each.",
    ),
]
MEMORY = 256
Memory = Annotated[int, typer.Option("--memory", min=1, metavar="MIB", help="Memory for k-NN's similarities, in MiB.")]
Normalise = Annotated[
    Literal["standard", "l2"],
    typer.Option("--normalise", help="Normalise features to zero mean and unit variance, or to unit length."),
]
Epochs = Annotated[
    int | None,
    typer.Option(
        "--epochs", min=1, metavar="N", help="Epochs of fine-tuning; default: 60 up to 1.5% of the labels, else 30."
    ),
]


def finite(value: float | None) -> float | None:
    """Refuse what is a number to click and to nobody else."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number")
    return value


BackboneRate = Annotated[
    float | None,
    typer.Option(
        "--backbone-lr",
        min=0,
        callback=finite,
        metavar="RATE",
        help="Learning rate of the encoder; default: 0.02 up to 1.5% of the labels, else 0.01.",
    ),
]
HeadRate = Annotated[
    float | None,
    typer.Option(
        "--head-lr",
        min=0,
        callback=finite,
        metavar="RATE",
        help="Learning rate of the new layer; default: 5 up to 1.5% of the labels if 10,000 images or more, else 0.2.",
    ),
]
TRAIN_BATCH = 256
TrainBatch = Annotated[int, typer.Option("--train-batch", min=1, metavar="N", help="Images in a training step.")]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", dir_okay=False, metavar="FILE", help="JSON file; default: in RUN/evals."),
]


def _predictions_file(path: Path | None) -> Path | None:
    if path is not None and path.suffix not in SUFFIXES:
        raise typer.BadParameter(f"{path}: predictions are written as {' or '.join(SUFFIXES)}; give such a name")
    return path


PredictionsFile = Annotated[
    Path | None,
    typer.Option(
        "--predictions",
        dir_okay=False,
        callback=_predictions_file,
        metavar="FILE",
        help="Also write a line per test image, .csv or .jsonl: key, label, prediction, score. `leoclr eval compare` "
        "compares two such files.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")]


@dataclass(frozen=True)
class Outputs:
    """Where a score goes.

    Attributes:
        record: File for the record; in the run's `evals` folder if None, and nowhere if there is no run.
        predictions: File for the predictions; None writes none.
        as_json: Whether the record is printed as JSON.
    """

    record: Path | None
    predictions: Path | None
    as_json: bool


@dataclass(frozen=True)
class Request:
    """Values of the options common to all scores; unnamed data is looked for."""

    checkpoint: Checkpoint = None
    train_data: TrainData = None
    data: Data = None
    backbone: Backbone = None
    image_size: ImageSize = None
    batch_size: BatchSize = 256
    device: Device = "auto"
    precision: Precision = "float32"
    workers: Workers = -1
    seed: Seed = 0
    no_cache: NoCache = False

    def __post_init__(self) -> None:
        """Refuse what is not there at once, before torch is imported, which takes seconds."""
        from leoclr.datasets.shards.locate import existing_data  # with numpy, which --help can do without

        existing_weights(self.checkpoint)
        existing_data(self.train_data)
        existing_data(self.data)


def with_request(*without: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Let a command whose first parameter is a `Request` take its fields as options instead, but for `without`."""
    return with_fields(Request, *without)
