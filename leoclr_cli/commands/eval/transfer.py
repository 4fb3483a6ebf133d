"""`leoclr eval transfer`: fine-tuning or a linear classifier on another data set."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from leoclr.cli.commands.base.flags import refuse_without_effect
from leoclr.cli.scoring.request import (
    TRAIN_BATCH,
    AsJson,
    Output,
    Outputs,
    PredictionsFile,
    Request,
    TrainBatch,
    with_request,
)
from leoclr.datasets.errors import EvaluationError

Mode = Literal["finetune", "linear"]
Metric = Literal["top1", "mean-per-class"]


@with_request("train_data", "data")
def transfer(
    request: Request,
    data: Annotated[
        list[str],
        typer.Option(
            "--data",
            metavar="NAME|SHARDS",
            help="cifar10, cifar100, cars or pets, which are packed into ROOT/shards first; or shards of any labelled "
            "data. Quote ranges and globs. Repeatable.",
        ),
    ],
    test_data: Annotated[
        list[str] | None,
        typer.Option(
            "--test-data",
            metavar="SHARDS",
            help="Test data; default: the val or test folder beside the training data. Repeatable.",
        ),
    ] = None,
    mode: Annotated[
        Mode, typer.Option("--mode", help="Fine-tune the whole network, or fit logistic regression to its features.")
    ] = "finetune",
    metric: Annotated[
        Metric | None,
        typer.Option(
            "--metric",
            help="Metric that chooses the hyper-parameters and is reported; default: the usual one of the data set, "
            "which is mean-per-class for pets.",
        ),
    ] = None,
    lr: Annotated[
        list[float] | None,
        typer.Option("--lr", metavar="RATE", help="Learning rate to try; default: 7 from 0.0001 to 0.1. Repeatable."),
    ] = None,
    weight_decay: Annotated[
        list[float] | None,
        typer.Option(
            "--weight-decay",
            metavar="SHARE",
            help="Weight decay to try, before division by the learning rate; default: 0 and 7 from 1e-6 to 1e-3. "
            "Repeatable.",
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            "--epochs", min=1, metavar="N", help="Epochs of each fine-tuning; default: those of 20,000 steps."
        ),
    ] = None,
    train_batch: TrainBatch = TRAIN_BATCH,
    root: Annotated[Path, typer.Option("--root", metavar="FOLDER", help="Folder of torchvision's data sets.")] = Path(
        "data"
    ),
    download: Annotated[bool, typer.Option("--download", help="Let torchvision download the data set.")] = False,
    output: Output = None,
    predictions: PredictionsFile = None,
    as_json: AsJson = False,
) -> None:
    """Fine-tune the encoder on another data set, or train a linear classifier on it (the paper's Table 3).

    Hyper-parameters are searched on a held-out fifth of the training data, as in SimCLR; the final training uses all of
    it. Repeat the command to resume; finished work is not repeated.

    \b
    Examples:
      leoclr eval transfer runs/first --data cifar10 --root data --download
      leoclr eval transfer runs/first --data pets --mode linear
      leoclr eval transfer runs/first --data shards/birds --lr 0.001 --lr 0.01 --weight-decay 0 --epochs 20
    """
    from leoclr.cli.scoring.evaluation import Evaluation
    from leoclr.cli.scoring.finetuning import FINETUNED
    from leoclr.cli.scoring.transfer_data import transfer_data
    from leoclr.cli.scoring.transfer_search import by_finetuning, by_linear_probe
    from leoclr.evals.finetuning.hyperparameters import LEARNING_RATES, WEIGHT_DECAYS, grid

    if any(not 0 < rate < math.inf for rate in lr or ()) or any(not 0 <= d < math.inf for d in weight_decay or ()):
        raise EvaluationError("--lr takes rates above 0, and --weight-decay shares from 0 on")
    if mode == "linear":
        changed = {"--lr": bool(lr), "--weight-decay": bool(weight_decay), "--epochs": epochs is not None}
        refuse_without_effect("with --mode linear", changed | {"--train-batch": train_batch != TRAIN_BATCH})
    found = transfer_data(data, test_data or [], root, download)
    evaluation = Evaluation(replace(request, train_data=list(found.train), data=list(found.test)))
    reported = metric.replace("-", "_") if metric else found.metric
    images = [f"test images: {evaluation.encoder.view.protocol}"]
    outputs = Outputs(output, predictions, as_json)
    if mode == "linear":
        evaluation.report("transfer-linear", by_linear_probe(evaluation, found.name, reported), images, outputs)
        return
    points = grid(lr or LEARNING_RATES, weight_decay or WEIGHT_DECAYS)
    score = by_finetuning(evaluation, found.name, reported, points, epochs, train_batch)
    evaluation.report("transfer", score, images, outputs, FINETUNED)
