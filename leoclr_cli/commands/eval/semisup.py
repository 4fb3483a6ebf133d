"""`leoclr eval semisup`: fine-tuning with part of the labels."""

from __future__ import annotations

from typing import Annotated

import typer

from leoclr.cli.scoring.request import (
    TRAIN_BATCH,
    AsJson,
    BackboneRate,
    Epochs,
    HeadRate,
    Output,
    Outputs,
    PredictionsFile,
    Request,
    TrainBatch,
    with_request,
)
from leoclr.datasets.wording import counted


@with_request()
def semisup(
    request: Request,
    labels: Annotated[
        str,
        typer.Option(
            "--labels",
            metavar="SHARE|FILE",
            help="Share of each class's labels, such as 1%, chosen by the seed; or a file of image names, one per "
            "line, such as SimCLR's for ImageNet.",
        ),
    ] = "1%",
    epochs: Epochs = None,
    backbone_lr: BackboneRate = None,
    head_lr: HeadRate = None,
    train_batch: TrainBatch = TRAIN_BATCH,
    output: Output = None,
    predictions: PredictionsFile = None,
    as_json: AsJson = False,
) -> None:
    """Fine-tune the encoder with part of the labels (the paper's Table 2).

    Repeat the command to resume after the last epoch; finished work is not repeated.

    \b
    Examples:
      leoclr eval semisup runs/first --labels 1%
      leoclr eval semisup runs/first --labels 10% --epochs 30 --backbone-lr 0.01 --head-lr 0.2
      leoclr eval semisup runs/imagenet --labels 1percent.txt --train-data shards/train --data shards/val
    """
    from leoclr.cli.scoring.evaluation import Evaluation
    from leoclr.cli.scoring.finetuning import FINETUNED, finetuned, label_recipe
    from leoclr.evals.finetuning.label_subsets import label_subset
    from leoclr.evals.scores import Row, Score

    evaluation = Evaluation(request)
    data, view = evaluation.data, evaluation.encoder.view
    subset = label_subset(data.train, labels, request.seed)
    recipe = label_recipe(subset.share, len(subset.numbers), epochs, backbone_lr, head_lr, train_batch)
    train = data.train.subset(subset.numbers)
    found = finetuned(evaluation, train, data.test, recipe, "fine-tuning")
    row = Row("finetuned", f"fine-tuned, {counted(len(train), 'label')}", found.metrics)
    crops = evaluation.crops(train, recipe.batch_size)
    protocol = (subset.protocol, recipe.protocol, f"training images: {crops.protocol}; {crops.batches_protocol}")
    details = {"labels": len(train), "share": subset.share, "training": found.summary}
    score = Score((row,), protocol, details, predictions={"finetuned": found.predicted})
    outputs = Outputs(output, predictions, as_json)
    evaluation.report("semisup", score, [f"test images: {view.protocol}"], outputs, FINETUNED)
